"""The elements of an event, and densities at relaxed values.

An event of ``to_event(k)`` holds elements that are drawn independently. Coefficients of antithetic
and control-variate estimators belong to one element, while the cost belongs to the whole event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from pyro.distributions import (
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)

from amortized.errors import EstimatorError, UsageError
from amortized.estimators.base import Site, base_of

_MASKED: Final = "MaskedDistribution"
_INDEPENDENT: Final = "Independent"


def is_bernoulli(law: Any) -> bool:
    """Whether the elements are bits with a probability."""
    return isinstance(base_of(law), Bernoulli)


def is_one_hot(law: Any) -> bool:
    """Whether an element is a one-hot vector, which has relaxed values on the simplex."""
    return isinstance(base_of(law), OneHotCategorical)


def is_categorical(law: Any) -> bool:
    """Whether an element is one of finitely many categories, as an index or one-hot."""
    return is_one_hot(law) or isinstance(base_of(law), torch.distributions.Categorical)


def logits_of(law: Any) -> Tensor:
    """The logits of the elements, attached.

    Bernoulli: log p - log(1 - p), shape ``[*batch, *elements]``. Categorical or one-hot: normalized
    log-probabilities, shape ``[*batch, *elements, categories]``.
    """
    inner = base_of(law)
    logits = inner.logits
    if is_categorical(law):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        return logits.expand(*inner.batch_shape, logits.shape[-1])
    return logits.expand(inner.batch_shape)


def element_dims(law: Any) -> int:
    """How many dims of the event are independent elements (``to_event``)."""
    return len(law.event_shape) - len(base_of(law).event_shape)


def to_elements(cost: Tensor, law: Any) -> Tensor:
    """A tensor of shape ``[*left]`` with a dim of size 1 for each dim of elements."""
    return cost.reshape((*cost.shape, *(1,) * element_dims(law)))


def sum_elements(value: Tensor, law: Any) -> Tensor:
    """A tensor of shape ``[*left, *elements]``, summed over the elements."""
    dims = element_dims(law)
    return value.sum(tuple(range(-dims, 0))) if dims else value


def finite(signal: Tensor) -> Tensor:
    """The signal, 0 where it is infinite or NaN: 0 * inf would spoil the value of the loss."""
    return torch.nan_to_num(signal, 0.0, 0.0, 0.0)


def over_elements(law: Any, each: Callable[[Any], Tensor], what: str) -> Tensor:
    """A density of elements, under the masks and event dims of a law.

    Args:
        law: with its wrappers.
        each: the density of a Bernoulli or one-hot law without wrappers.
        what: it is called so in the error.

    Raises:
        EstimatorError: the elements are no bits and no one-hot vectors.
    """
    kind = type(law).__name__
    if kind == _MASKED:
        inner = over_elements(law.base_dist, each, what)
        return torch.where(torch.as_tensor(law._mask), inner, torch.zeros_like(inner))
    if kind == _INDEPENDENT:
        inner = over_elements(law.base_dist, each, what)
        dims = law.reinterpreted_batch_ndims
        return inner.sum(tuple(range(-dims, 0))) if dims else inner
    if is_bernoulli(law) or is_one_hot(law):
        return each(law)
    raise EstimatorError(
        f"a {type(base_of(law)).__name__} has no {what} at relaxed values; relaxed values "
        "need a Bernoulli or a OneHotCategorical in model and guide, under the same name"
    )


def linear_log_prob(law: Any, value: Tensor) -> Tensor:
    """The log-probability of a Bernoulli or one-hot law as the linear function of its value.

    ``z * logit - softplus(logit)``, or ``sum_i z_i log pi_i``: the log-probability where z is hard,
    and defined where it is relaxed. Masks inside the law apply.

    Raises:
        EstimatorError: another law, whose log-probability at a relaxed value nobody has defined.
    """

    def each(inner: Any) -> Tensor:
        if isinstance(inner, Bernoulli):
            logits, bits = torch.broadcast_tensors(inner.logits, value)
            return -F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
        log_probs = inner.logits - inner.logits.logsumexp(-1, keepdim=True)
        # a category that is impossible and not taken contributes nothing: 0 * -inf is NaN; the
        # others keep the slope that they have at 0
        nothing = (value == 0) & (log_probs == -torch.inf)
        return (value * torch.where(nothing, 0.0, log_probs)).sum(-1)

    return over_elements(law, each, "log-probability")


def held(law: Any) -> Distribution:
    """A Bernoulli or one-hot law with its parameters detached."""
    logits = logits_of(law).detach()
    kind = Bernoulli if is_bernoulli(law) else OneHotCategorical
    inner, dims = kind(logits=logits, validate_args=False), element_dims(law)
    return Independent(inner, dims, validate_args=False) if dims else inner


def is_straight_through(law: Any) -> bool:
    """Whether ``rsample`` rounds the value that its gradient belongs to."""
    kinds = (
        RelaxedBernoulliStraightThrough,
        RelaxedOneHotCategoricalStraightThrough,
        OneHotCategoricalStraightThrough,
    )
    return isinstance(base_of(law), kinds)


def support_moves(law: Any) -> bool:
    """Whether a bound of the support has a gradient: then the score does not have mean zero."""
    try:
        support = base_of(law).support
    except NotImplementedError:
        return False
    bounds = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in bounds)


def positive(what: str, number: Any) -> float:
    """A finite number above 0.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UsageError(f"{what}: expected a number above 0, found {number!r}")
    if not 0.0 < number < math.inf:
        raise UsageError(f"{what}: expected a finite number above 0, found {number!r}")
    return float(number)


def unrelaxable(site: Site) -> str | None:
    """Why a site has no relaxed values, as a clause; or None."""
    if is_bernoulli(site.law) or is_one_hot(site.law):
        return None
    if is_categorical(site.law):
        return (
            f"{site.family} has integer values, and there is nothing between two indices; write "
            "the site as a OneHotCategorical in model and guide, or use am.RELAX(), whose network "
            "needs no relaxed model, or am.Enumerate()"
        )
    return (
        f"{site.family} has no relaxed values, only Bernoulli and OneHotCategorical do; "
        "use am.Pathwise() where it has rsample, am.RELAX() where the support is finite, else "
        "am.ScoreFunction(am.LeaveOneOut())"
    )


def copies_last(tensor: Tensor, axis: int) -> Tensor:
    """The copies as a last dim, with a dim of size 1 where they were: ``[..., 1, ..., C]``."""
    return tensor.unsqueeze(-1).transpose(axis - 1, -1)
