"""The protocol of an estimator: where a site is evaluated, and what its gradient owes.

A latent site ``z ~ q(. | parents)`` of the guide is evaluated on ``C`` copies. The estimator says

* ``draw``: which values, and what it must remember of them;
* ``weights``: how the copies average to the value of the objective (``None`` means ``1 / C``);
* ``surrogate``: a term of value zero whose gradient is the site's share, given the downstream cost
  of each copy;
* ``update``: how its own state moves, after use and in training only.

Randomness is handed in as a `Noise`, so that laws can enumerate it and comparisons can share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class Noise(Protocol):
    """A source of randomness: torch's generator, a recording, or an enumeration."""

    def sample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        """Draw from ``fn`` without a gradient, shape ``[*sample_shape, *batch, *event]``."""
        ...

    def rsample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        """Draw from ``fn`` with a reparameterized gradient, same shape as `sample`."""
        ...

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        """Uniform numbers in the open interval (0, 1), of the dtype and device of ``like``."""
        ...


class TorchNoise:
    """Fresh draws from torch's global generator: the source of every ordinary run."""

    def sample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        """Draw with ``fn.sample``."""
        with torch.no_grad():
            return fn.sample(torch.Size(sample_shape))

    def rsample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        """Draw with ``fn.rsample``."""
        return fn.rsample(torch.Size(sample_shape))

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        """Draw uniforms, clamped away from 0 in the working dtype."""
        u = torch.rand(shape, dtype=like.dtype, device=like.device)
        return u.clamp(min=torch.finfo(like.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Site:
    """What an estimator may know of a latent site.

    ``law`` is the distribution that the value is drawn from: unscaled and unmasked, its batch
    shape ``[copies of earlier sites..., particles?, plates...]``.
    """

    name: str
    law: Distribution
    num_particles: int = 1
    particle_dim: int | None = None
    inputs: Tensor | None = None

    @property
    def family(self) -> str:
        """The name of the distribution without its wrappers, for messages."""
        return type(base_of(self.law)).__name__


@dataclass(frozen=True, eq=False)
class Draw:
    """The values of a site on its copies.

    ``value`` has shape ``[*left, *event]``; with ``copies > 1`` the dim ``axis`` of ``left``
    (counted from the right of the batch shape) is the private axis of the site.
    """

    site: Site
    value: Tensor
    copies: int = 1
    axis: int | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def log_prob(self) -> Tensor:
        """log q of each copy, unscaled and unmasked, attached to the site's parameters."""
        return self.site.law.log_prob(self.value)


@dataclass(frozen=True, eq=False)
class Cost:
    """The downstream cost of a site, to be maximized, in nats per datum.

    "Per datum": the subsampling factor of the site's plates is divided out (and multiplied back
    into the surrogate by the caller), so that what estimators learn does not grow with N / B.

    ``copies`` has shape ``[copies?, copies of earlier sites..., particles?, plates...]``.
    ``peers`` is what the other particles say of a particle's cost (under an additive objective
    their mean), the same shape without the copies; None with one particle.
    """

    copies: Tensor
    peers: Tensor | None = None

    def detach(self) -> Cost:
        """The same numbers without their graph."""
        peers = None if self.peers is None else self.peers.detach()
        return Cost(self.copies.detach(), peers)


class Estimator(nn.Module, ABC):
    """How the gradient of one latent site is estimated."""

    #: the name in tables
    label: str = ""
    #: True: gradients reach phi through the value or its weight, and -log q stays attached
    attached: bool = False
    #: True: `surrogate` differentiates the cost, so it must not arrive detached
    differentiates_cost: bool = False
    #: True: copy c of all elements of a plate is one joint draw with constant weights, so a cost
    #: that mixes elements (a sum over the plate) may be charged to each of them
    joint_copies: bool = True
    #: True: every particle draws the site anew
    per_particle: bool = True

    @abstractmethod
    def draw(self, site: Site, noise: Noise) -> Draw:
        """Evaluate the site; with C > 1 copies the value has a leading axis of size C."""

    def copies(self, site: Site) -> int:
        """How many values of the site are evaluated."""
        return 1

    def refusal(self, site: Site) -> str | None:
        """Why the site cannot be served, as a clause without the site's name; or None."""
        return None

    def weights(self, draw: Draw) -> Tensor | None:
        """Weights of the copies, shape of ``draw.log_prob``; None means 1 / C each."""
        return None

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """A term of value zero with the site's gradient, the copies already averaged."""
        return None

    def update(self, draw: Draw, cost: Cost) -> None:
        """Move the estimator's state, after its use; called in training only."""
        return None

    def extra_repr(self) -> str:
        """Nothing to add by default."""
        return ""


_WRAPPERS = ("MaskedDistribution", "Independent", "ExpandedDistribution")


def wrappers_of(fn: Any) -> Iterator[Any]:
    """The masks, event dims and expansions around a distribution, outermost first."""
    while type(fn).__name__ in _WRAPPERS:
        yield fn
        fn = fn.base_dist


def base_of(fn: Any) -> Any:
    """The distribution inside masks, event dims and expansions."""
    for layer in wrappers_of(fn):
        fn = layer.base_dist
    return fn


# of several ways to write the same parameter, the one that is used
_REDUNDANT = {"logits": ("probs",), "scale_tril": ("covariance_matrix", "precision_matrix")}


def parameters_of(law: Distribution) -> list[Tensor]:
    """The parameters of a law without redundancy, detached: ``[*batch of the base, *event]``."""
    inner = base_of(law)
    names = list(inner.arg_constraints)
    for kept, others in _REDUNDANT.items():
        if kept in names:
            names = [n for n in names if n not in others]
    found = []
    for name in names:
        value = torch.as_tensor(getattr(inner, name)).detach()
        try:
            event_dim = inner.arg_constraints[name].event_dim
        except NotImplementedError:  # a Delta's value: its event dims are the site's own
            continue
        found.append(value.expand((*inner.batch_shape, *value.shape[value.dim() - event_dim :])))
    return found
