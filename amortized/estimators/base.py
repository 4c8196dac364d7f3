"""The protocol of an estimator: where a site is evaluated, and what its gradient owes.

A latent site ``z ~ q(. | parents)`` of the guide is evaluated on ``C`` copies. The estimator says

* ``draw``: which values, and what it must remember of them;
* ``weights``: how the copies average to the value of the objective (``None`` means ``1 / C``);
* ``density``, ``log_q``: what the site's two terms are at values that are no ordinary draws;
* ``surrogate``: a term of value zero whose gradient is the site's share, given the downstream cost
  of each copy;
* ``update``, ``advance``: how its own state moves, after use and in training only.

How to write one: ``docs/extend.md``.

Randomness is handed in as a `Noise`, so that laws can enumerate it and comparisons can share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical, TransformedDistribution


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
            inner, size = base_of(fn), torch.Size(sample_shape)
            shape = inner.batch_shape + inner.event_shape
            if isinstance(inner, TransformedDistribution):
                # another object: a cache would answer for the inverse with one that has no gradient
                return fn.sample(size).detach()
            if not isinstance(inner, OneHotCategorical) or shape != fn.batch_shape + fn.event_shape:
                return fn.sample(size)
            # torch's one_hot reads values, which a captured step cannot; the same draws without it
            index = inner._categorical.sample(size).unsqueeze(-1)
            return inner.logits.new_zeros(size + shape).scatter(-1, index, 1.0)

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
    reads: bool = True
    """Whether values of tensors may be read: not while a step is captured."""

    @property
    def family(self) -> str:
        """The name of the distribution without its wrappers, for messages."""
        return type(base_of(self.law)).__name__


@dataclass(frozen=True, eq=False)
class Draw:
    """The values of a site on its copies.

    An estimator makes it with ``value`` of shape ``[C, *batch, *event]`` (``[*batch, *event]`` for
    one copy). The caller places it: in what `Estimator.surrogate` gets, ``value`` has shape
    ``[*left, *event]``, and with ``copies > 1`` the dim ``axis`` of ``left``, counted from its
    right, is the private axis of the site.

    ``memory`` is what `Estimator.surrogate` needs again: tensors without the axis of the copies,
    such as ``[*batch, *event]``, which align from the right with everything else.
    """

    site: Site
    value: Tensor
    copies: int = 1
    axis: int | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    ordinary: int | None = None
    """So many copies, the first ones, are values of the support, and their log q is a term of the
    objective; the others, relaxed values, have none. None: all of them."""
    root: Tensor | None = None
    """What every value that the program sees was computed from: slopes are taken here."""
    copy: int | None = None
    """Which copy this is, where copies are evaluated one by one."""

    @cached_property
    def log_prob(self) -> Tensor:
        """log q of each ordinary copy, unscaled and unmasked, attached to the site's parameters."""
        value = self.value
        if self.ordinary is not None and self.copies > 1:
            value = value.narrow(self.dim(value), 0, self.ordinary)
        return self.site.law.log_prob(value)

    def dim(self, value: Tensor | None = None) -> int:
        """Where the copies lie in ``value``; without an argument, in what has no event dims.

        Counted from the right, and only after the draw was placed if there are several copies.
        """
        if self.axis is None:
            return 0
        return self.axis - (0 if value is None else len(self.site.law.event_shape))

    def each(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """A tensor without event dims, copy by copy, the dim of the copies kept with size 1.

        A tensor that does not depend on the copies is the same for all.
        """
        if self.axis is None:
            return (tensor,)
        if tensor.dim() < -self.axis or tensor.shape[self.axis] == 1:
            return (tensor,) * self.copies
        return tensor.split(1, self.axis)


@dataclass(frozen=True, eq=False)
class Cost:
    """The downstream cost of a site, to be maximized, in nats per datum.

    "Per datum": the subsampling factor of the site's plates is divided out (and multiplied back
    into the surrogate by the caller), so that what estimators learn does not grow with N / B.

    ``copies`` has shape ``[copies?, copies of earlier sites..., particles?, plates...]``.
    ``peers`` is what the other particles say of a particle's cost (under an additive objective
    their mean), the same shape without the copies; None with one particle. ``total`` is the sum of
    all terms downstream of any element, each counted once, attached: a scalar to differentiate;
    None unless the estimator ``differentiates_cost``.
    """

    copies: Tensor
    peers: Tensor | None = None
    total: Tensor | None = None

    def detach(self) -> Cost:
        """The same numbers without their graph."""
        peers = None if self.peers is None else self.peers.detach()
        return Cost(self.copies.detach(), peers)

    def slope(self, draw: Draw, *, create_graph: bool = False) -> Tensor:
        """The derivative of each element's cost in its value, shape of ``draw.value``.

        It holds how the laws of later sites depend on the value, not only their draws. Zero where
        the cost does not depend on it, or where nothing is differentiated (``torch.no_grad``).
        """
        root = draw.value if draw.root is None else draw.root
        total = self.total
        if total is None or not total.requires_grad or not root.requires_grad:
            return torch.zeros_like(draw.value)
        (slope,) = torch.autograd.grad(
            total,
            root,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return slope.reshape(draw.value.shape)


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
    #: True: the first copy alone is a draw of the objective's own: it makes the value, and the
    #: gradient of theta; the others only tell costs apart
    base_only: bool = False
    #: True: a draw by the weights of the copies is an ordinary draw of the site; else copy 0 is one
    weighted_base: bool = False
    #: True: where copies of dependent sites would be too many, those of this one may lie in rows
    in_rows: bool = False
    #: True: it relies on scores of mean zero, which a support that moves with phi does not give
    scores: bool = True
    #: True: the direct gradient of the site's own log q, of mean zero, is taken out (which runs the
    #: guide once more)
    frozen: bool = False
    #: True: `log_q` comes detached where it has to be, and is taken as it is: at relaxed values it
    #: may have a slope
    keeps_log_q: bool = False
    #: where the site's two terms come from: the objective's way, or -KL in closed form
    kl: Literal["objective", "analytic"] = "objective"
    #: what the model must be able to do beyond a log-probability, as a noun; empty: nothing
    needs: str = ""
    #: why the mean of the gradient is not the gradient of the objective; empty: it is. A loss asks
    #: `bias_of` for each site's own copy
    bias: str = ""

    @abstractmethod
    def draw(self, site: Site, noise: Noise) -> Draw:
        """Evaluate the site; with C > 1 copies the value has a leading axis of size C."""

    def copies(self, site: Site) -> int:
        """How many values of the site are evaluated."""
        return 1

    def refusal(self, site: Site) -> str | None:
        """Why the site cannot be served, as a clause without the site's name; or None."""
        return None

    def bias_of(self, site: Site, *, weighted: bool = False) -> str:
        """`bias` at a site, as a clause.

        Args:
            site: the latent.
            weighted: the objective is no sum of terms: it weights draws by each other.
        """
        return self.bias

    def weights(self, draw: Draw) -> Tensor | None:
        """Weights of the copies, shape of ``draw.log_prob``; None means 1 / C each.

        Not asked of an estimator with ``base_only``.
        """
        return None

    def density(self, law: Distribution, value: Tensor) -> Tensor:
        """The log-density of values of this site under a law: the guide's, or the prior.

        Raises:
            EstimatorError: the law has none at such values.
        """
        return law.log_prob(value)

    def log_p(self, law: Distribution, draw: Draw) -> Tensor:
        """log p of each copy as a term of the objective, under the model's law of the site.

        By default the density of the values; a draw may remember more than its rounded values.
        """
        return self.density(law, draw.value)

    def log_q(self, draw: Draw) -> Tensor:
        """log q of each copy as a term of the objective; 0 for copies that are not ordinary."""
        if draw.ordinary is None or (draw.copies == 1 and draw.copy is None):
            return draw.log_prob
        if draw.copy is not None:
            law = draw.site.law
            if draw.copy < draw.ordinary:
                return law.log_prob(draw.value)
            return draw.value.new_zeros(law.batch_shape)
        ordinary = draw.log_prob
        shape = list(ordinary.shape)
        shape[draw.dim()] = draw.copies - draw.ordinary
        return torch.cat([ordinary, ordinary.new_zeros(shape)], draw.dim())

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """A term of value zero with the site's gradient, the copies already averaged."""
        return None

    def update(self, draw: Draw, cost: Cost) -> None:
        """Move the estimator's state by what its site was charged; called in training only.

        Sites that owe no surrogate are not charged.
        """
        return None

    def advance(self) -> None:
        """Move what goes by the number of steps, such as a temperature; called in training only."""
        return None

    def extra_repr(self) -> str:
        """Nothing to add by default."""
        return ""


def beside_weights(estimator: Estimator) -> str | None:
    """Why it does not serve an objective that weights draws by each other, as a clause; or None."""
    if estimator.kl == "analytic":
        return "takes the site's KL in closed form, and a mean of weights has no KL of one site"
    if estimator.differentiates_cost:
        return "differentiates the cost, which is not served under such a bound in this version"
    return None


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


def parameter_names(inner: Any) -> list[str]:
    """What a law without wrappers is made of, each parameter in one of its ways to be written."""
    names = list(inner.arg_constraints)
    for kept, others in _REDUNDANT.items():
        if kept in names:
            names = [n for n in names if n not in others]
    return names


def parameters_of(law: Distribution) -> list[Tensor]:
    """The parameters of a law without redundancy, detached: ``[*batch of the base, *event]``."""
    inner = base_of(law)
    found = []
    for name in parameter_names(inner):
        value = torch.as_tensor(getattr(inner, name)).detach()
        try:
            event_dim = inner.arg_constraints[name].event_dim
        except NotImplementedError:  # a Delta's value: its event dims are the site's own
            continue
        found.append(value.expand((*inner.batch_shape, *value.shape[value.dim() - event_dim :])))
    return found
