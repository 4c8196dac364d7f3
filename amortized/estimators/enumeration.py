"""Exact summation over a finite support."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Binomial

from amortized.estimators.base import Draw, Estimator, Noise, Site, base_of

# 2 ** 12 joint values of one event: beyond that a sampled estimator is the honest choice
_MAX_SUPPORT = 4096


class ListsSupport(Estimator, ABC):
    """An estimator that lists the values of a finite support.

    How many there are may stand in a tensor, a Binomial's ``total_count``, which cannot be read
    while a step is captured. The graph then has as many as the first step, which could, and the
    values are NaN wherever that is wrong: a loss of NaN makes a replayed step be done again.
    """

    _trials: int | None = None

    def values(self, site: Site) -> Tensor:
        """The support of one element, shape ``[S, *event of the base]``."""
        inner = base_of(site.law)
        if not isinstance(inner, Binomial):
            return _element_support(site.law)
        if site.reads or self._trials is None:
            values = _element_support(site.law)
            if self._trials is None:  # a changed one would make captured steps be captured again
                self._trials = len(values) - 1
            return values
        like = inner.logits
        values = torch.arange(1 + self._trials, dtype=like.dtype, device=like.device)
        right = (inner.total_count == self._trials).all()
        return torch.where(right, values, torch.full_like(values, torch.nan))

    def support_size(self, site: Site) -> int:
        """The number of values in the (joint) support."""
        return len(self.values(site)) ** _elements(site.law)


class Enumerate(ListsSupport):
    r"""The site is summed out: every value of its support, weighted by its probability.

    .. math:: \sum_z q_\phi(z)\, f(z) \quad\text{with the weights attached}

    Exact in this site: no bias, no variance, no state. Copies: the size of the support (of the
    joint support for ``to_event``: 2^D for D bits). Elements of a plate are enumerated in
    parallel, so no term outside the plate may depend on the site.

    Refuses infinite supports and joint supports above 4096 values.

    >>> Enumerate()
    Enumerate()
    """

    label = "enumerate"
    attached = True
    joint_copies = False
    weighted_base = True
    per_particle = False

    def copies(self, site: Site) -> int:
        """The number of values in the (joint) support."""
        return self.support_size(site)

    def refusal(self, site: Site) -> str | None:
        """Only finite supports of a sensible size."""
        instead = "use am.ScoreFunction(am.LeaveOneOut()) or another sampled estimator"
        if not getattr(base_of(site.law), "has_enumerate_support", False):
            return f"{site.family} has no finite support to enumerate; {instead}"
        try:
            count = self.copies(site)
        except NotImplementedError as error:
            return f"the support of {site.family} cannot be enumerated ({error}); {instead}"
        if count > _MAX_SUPPORT:
            return f"the joint support has {count} values (at most {_MAX_SUPPORT}); {instead}"
        return None

    def draw(self, site: Site, noise: Noise) -> Draw:
        """All values, shape ``[C, *batch, *event]``."""
        values = support_of(site.law, self.values(site))
        return Draw(site, values, len(values)) if len(values) > 1 else Draw(site, values[0])

    def weights(self, draw: Draw) -> Tensor:
        """q of each value, attached."""
        return draw.log_prob.exp()


def support_of(law: Any, values: Tensor | None = None) -> Tensor:
    """The joint support of a finite law, shape ``[C, *batch, *event]``.

    Args:
        law: with ``enumerate_support``.
        values: the support of one element, if it is known.
    """
    values, elements = _element_support(law) if values is None else values, _elements(law)
    if elements > 1:
        index = torch.arange(len(values), device=values.device)
        values = values[torch.cartesian_prod(*([index] * elements))]
    values = values.reshape(-1, *(1,) * len(law.batch_shape), *law.event_shape)
    return values.expand(-1, *law.batch_shape, *law.event_shape)


def _elements(law: Any) -> int:
    """How many independent elements an event holds (``to_event``)."""
    own = len(base_of(law).event_shape)
    return law.event_shape[: len(law.event_shape) - own].numel()


def _element_support(law: Any) -> Tensor:
    """The support of one element, shape ``[S, *event of the base]``."""
    base = base_of(law)
    values = base.enumerate_support(expand=False)
    return values.reshape(values.shape[0], *base.event_shape)
