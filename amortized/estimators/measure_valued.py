"""Measure-valued derivatives: the derivative of a law as a difference of two laws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import torch
from torch import Tensor
from torch import distributions as dist

from amortized.errors import EstimatorError, UsageError
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, base_of
from amortized.estimators.elements import (
    copies_last,
    element_dims,
    finite,
    is_bernoulli,
    is_categorical,
    is_one_hot,
    logits_of,
    sum_elements,
)

Coupling = Literal["coupled", "independent"]

_COUPLINGS: Final = ("coupled", "independent")
_PARAMETERS: Final = ("loc", "scale", "rate")


class MeasureValued(Estimator):
    r"""The weak derivative: what the cost is worth under two laws, for each scalar parameter.

    .. math:: \partial_\varphi E_q f = \kappa\, (E_{q^+} f - E_{q^-} f)

    ================== ========== ======================== ==================== ==================
    law, parameter     kappa      z+                       z-                   extra values
    ================== ========== ======================== ==================== ==================
    Bernoulli, logit   p (1 - p)  1                        0                    1
    Binomial, logit    n p (1-p)  Y + 1                    Y ~ Bin(n - 1, p)    1
    Categorical,       p_i        i                        q, summed out        categories - 1
    logit i
    Normal, loc        1/(s√2π)   m + s W, W ~ Rayleigh    m - s W'             2
    Normal, scale      1 / s      m + s M, M ~ Maxwell     m + s N, N ~ N(0,1)  1
    Poisson, rate      1          X + 1                    X                    1
    Gamma, rate b      a / b      X                        Y ~ Gamma(a + 1, b)  1
    Exponential, rate  1 / b      X                        Y ~ Gamma(2, b)      1
    ================== ========== ======================== ==================== ==================

    Unbiased for any cost, differentiable or not. Another parameterization (probs, a Gamma's
    scale as ``1 / rate``) is served through autograd. One copy is an ordinary draw: it makes the
    value and the gradient of theta, and stands for a branch wherever one has the law q itself
    (of Bernoulli and Binomial, for one of the two). Copies: ``1 + D * extra`` for an event of D
    elements, each moved while the others stay at the ordinary draw. Elements of a plate move
    together, so no term outside the plate may depend on the site. The gradient is zero, draw by
    draw, where the cost is constant, hence at q = posterior.

    Args:
        coupling: "coupled" takes both branches from the same noise (W' = W, M from N, Y from X),
            "independent" from fresh noise; or one of the two for each of "loc", "scale", "rate".
            Coupling helps where the cost is flat or even around the draw, as near the optimum,
            and can hurt where it is steep (twice the variance for loc and a linear cost). It says
            nothing for Bernoulli, Categorical and Binomial.

    Raises:
        UsageError: another coupling.

    Refuses other distributions, and a Gamma whose concentration is learned: the shape has no
    simple decomposition.

    Pflug 1996; Heidergott & Vázquez-Abad 2008; Mohamed et al. 2020 (1906.10652). The sum over
    categories: Titsias & Lázaro-Gredilla 2015 (1503.01494).

    >>> MeasureValued({"loc": "independent"})
    MeasureValued({'loc': 'independent'})
    """

    label = "measure_valued"
    joint_copies = False
    base_only = True

    def __init__(self, coupling: Coupling | Mapping[str, Coupling] = "coupled") -> None:
        super().__init__()
        given = coupling if isinstance(coupling, Mapping) else dict.fromkeys(_PARAMETERS, coupling)
        if not given.keys() <= set(_PARAMETERS) or any(c not in _COUPLINGS for c in given.values()):
            raise UsageError(
                f"MeasureValued(coupling={coupling!r}): expected 'coupled' or 'independent', or a "
                "mapping to these from 'loc', 'scale' or 'rate'"
            )
        self.coupling = coupling if isinstance(coupling, str) else dict(coupling)
        self._independent = frozenset(n for n, c in given.items() if c == "independent")

    def copies(self, site: Site) -> int:
        """The ordinary draw, and the other values of each element."""
        row = _row_of(site.law)
        if row is None:
            return 1
        return 1 + row.others(base_of(site.law)) * _elements(site.law).numel()

    def refusal(self, site: Site) -> str | None:
        """Only laws whose derivative is written down above."""
        if _row_of(site.law) is None:
            return (
                f"the weak derivative of {site.family} is not known here (of Bernoulli, "
                "Categorical, OneHotCategorical, Binomial, Normal, Poisson, Exponential and a "
                "Gamma's rate it is); use am.ScoreFunction(am.LeaveOneOut()), or am.Pathwise() if "
                "it is reparameterizable"
            )
        return _learned_shape(site)

    def draw(self, site: Site, noise: Noise) -> Draw:
        """The ordinary draw, then every other value of the first element, of the second, ..."""
        row, shape_learned = _row_of(site.law), _learned_shape(site)
        if row is None or shape_learned:
            # seen only now: a warm-up without gradients cannot tell what is learned
            raise EstimatorError(f"site {site.name!r}: {shape_learned or self.refusal(site)}")
        with torch.no_grad():
            base, others, memory = row.draw(_Source(site, noise, self._independent))
            value = _moved(base, others, site.law)
        copies = value.shape[0]
        return Draw(site, value if copies > 1 else base, copies, memory=memory)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """Parameter times what moving the element gained, summed over parameters and elements."""
        axis, costs, law = draw.axis, cost.copies.detach(), draw.site.law
        row = _row_of(law)
        if row is None or axis is None or costs.dim() < -axis or costs.shape[axis] == 1:
            return None  # one value, or a cost that is the same for all of them
        parameter, share = row.shares(law, draw.memory)
        share = share.detach()
        elements = _elements(law)
        costs = copies_last(costs, axis)
        gained = (costs[..., 1:] - costs[..., :1]).unflatten(-1, (-1, share.shape[-1]))
        gained = gained.unflatten(-2, elements) if elements else gained.squeeze(-2)
        signal = torch.where(share != 0, share * gained, torch.zeros_like(gained))
        # an impossible value would spoil the value of the loss, and its gradient
        signal = finite(signal)
        moved = torch.where(signal != 0, parameter - parameter.detach(), torch.zeros_like(signal))
        return sum_elements((moved * signal).sum(-1), law)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        return f"MeasureValued({'' if self.coupling == 'coupled' else repr(self.coupling)})"


def _elements(law: Any) -> torch.Size:
    """The shape of the independent elements of an event."""
    return law.event_shape[: element_dims(law)]


def _learned_shape(site: Site) -> str | None:
    inner = base_of(site.law)
    if not (isinstance(inner, dist.Gamma) and inner.concentration.requires_grad):
        return None
    return (
        f"the concentration of this {site.family} has a gradient, and a shape has no simple weak "
        "derivative, only a rate has; detach the concentration, or use am.Pathwise() or "
        "am.ScoreFunction(am.LeaveOneOut())"
    )


def _moved(base: Tensor, others: Tensor, law: Any) -> Tensor:
    """The base, then for each element its other values: ``[1 + D * A, *batch, *event]``.

    ``others``, of shape ``[A, *batch, *event]``, has them for all elements at once.
    """
    elements, own = _elements(law), base_of(law).event_shape
    count = elements.numel()
    here = torch.eye(count, dtype=torch.bool, device=base.device)
    ones = (1,) * (1 + len(law.batch_shape))
    here = here.reshape(count, *ones, *elements, *(1,) * len(own))
    moved = torch.where(here, others, base).flatten(0, 1)
    return torch.cat([base.unsqueeze(0), moved])


@dataclass(frozen=True)
class _Source:
    """The noise of one draw, and the parameters of the law for each element, detached."""

    site: Site
    noise: Noise
    independent: frozenset[str]

    def base(self) -> Tensor:
        """An ordinary draw."""
        return self.noise.sample(self.site.law, site=self.site.name)

    def fresh(self, name: str, base: Tensor) -> Tensor:
        """The draw that a branch of a parameter starts from: the base, or another one."""
        return self.base() if name in self.independent else base

    def parameter(self, name: str) -> Tensor:
        """A parameter, shape ``[*batch, *elements]``."""
        return _parameter(self.site.law, name).detach()

    def exponential(self, like: Tensor) -> Tensor:
        """Standard exponential numbers."""
        return -self.noise.uniform(tuple(like.shape), like, site=self.site.name).log()


def _parameter(law: Any, name: str) -> Tensor:
    value = torch.as_tensor(getattr(base_of(law), name))
    return value.expand(law.batch_shape + _elements(law))


class _Row(ABC):
    """The decompositions of one family.

    The ordinary draw has cost f_0, the other values of an element f_1 .. f_A. The gradient in a
    parameter is the sum of ``share_a (f_a - f_0)`` over what belongs to it.
    """

    @abstractmethod
    def others(self, inner: Any) -> int:
        """How many other values an element has."""

    @abstractmethod
    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """An ordinary draw, the other values ``[A, *batch, *event]``, and what to remember."""

    @abstractmethod
    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The parameter, attached, and the share of each value: ``[*batch, *elements, A]``."""


@final
class _Bit(_Row):
    """Bernoulli and Binomial: one trial, at 1 and at 0, the other trials as drawn."""

    def others(self, inner: Any) -> int:
        return 1

    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        law = source.site.law
        if is_bernoulli(law):
            trial = source.base()
            return trial, (1 - trial).unsqueeze(0), {"trial": trial}
        logits = logits_of(law).detach().expand(law.batch_shape + _elements(law))
        count = source.parameter("total_count").to(logits)
        rest = dist.Binomial((count - 1).clamp(min=0), logits=logits, validate_args=False)
        others = source.noise.sample(rest, site=source.site.name)
        bit = dist.Bernoulli(logits=logits, validate_args=False)
        trial = source.noise.sample(bit, site=source.site.name)
        some = (count > 0).to(logits)
        value, other = others + some * trial, others + some * (1 - trial)
        return value, other.unsqueeze(0), {"trial": trial}

    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits, trial = logits_of(law), memory["trial"]
        # p (1 - p) that does not round to 0 where p rounds to 1
        share = torch.sigmoid(logits) * torch.sigmoid(-logits) * (1 - 2 * trial)
        if not is_bernoulli(law):
            share = share * _parameter(law, "total_count")
        return logits.expand(trial.shape).unsqueeze(-1), share.unsqueeze(-1)


@final
class _Category(_Row):
    """Categorical and one-hot: all other categories, so that the branches are summed out."""

    def others(self, inner: Any) -> int:
        return inner.logits.shape[-1] - 1

    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        law, base = source.site.law, source.base()
        count = base_of(law).logits.shape[-1]
        index = base.argmax(-1) if is_one_hot(law) else base
        steps = torch.arange(1, count, device=index.device)
        found = (index.unsqueeze(-1) + steps) % count
        others = found.movedim(-1, 0)
        if is_one_hot(law):
            # F.one_hot reads a value, which a captured step must not
            others = others.unsqueeze(-1) == torch.arange(count, device=index.device)
        return base, others.to(base.dtype), {"categories": found}

    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        found, logits = memory["categories"], logits_of(law)
        probability = logits.exp().expand(*found.shape[:-1], logits.shape[-1]).gather(-1, found)
        # p_i (1 - p_i) of logit i against the others is the derivative of p through the logits
        return probability, torch.ones_like(probability)


@final
class _Normal(_Row):
    """Rayleigh branches for loc; a double-sided Maxwell against the draw itself for scale.

    With N standard normal, ``sign(N) sqrt(N^2 + 2 E)`` is Maxwell, and N = U M for a uniform U.
    """

    def others(self, inner: Any) -> int:
        return 3

    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        base, loc, scale = source.base(), source.parameter("loc"), source.parameter("scale")
        up = (2 * source.exponential(loc)).sqrt()
        down = (2 * source.exponential(loc)).sqrt() if "loc" in source.independent else up
        normal = (source.fresh("scale", base) - loc) / scale
        maxwell = (normal * normal + 2 * source.exponential(loc)).sqrt()
        maxwell = torch.where(normal < 0, -maxwell, maxwell)
        others = [loc + scale * up, loc - scale * down, loc + scale * maxwell]
        return base, torch.stack(others), {}

    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loc, scale = _parameter(law, "loc"), _parameter(law, "scale")
        tilt = 1 / (scale * math.sqrt(2 * math.pi))
        return torch.stack([loc, loc, scale], -1), torch.stack([tilt, -tilt, 1 / scale], -1)


@final
class _Poisson(_Row):
    """One more event."""

    def others(self, inner: Any) -> int:
        return 1

    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        base = source.base()
        return base, (source.fresh("rate", base) + 1).unsqueeze(0), {}

    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        rate = _parameter(law, "rate").unsqueeze(-1)
        return rate, torch.ones_like(rate)


@final
class _Gamma(_Row):
    """Gamma and Exponential: an exponential waiting time more, against a higher rate."""

    def others(self, inner: Any) -> int:
        return 1

    def draw(self, source: _Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        base, rate = source.base(), source.parameter("rate")
        longer = source.fresh("rate", base) + source.exponential(rate) / rate
        return base, longer.unsqueeze(0), {}

    def shares(self, law: Any, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        rate = _parameter(law, "rate")
        shape = _parameter(law, "concentration") if isinstance(base_of(law), dist.Gamma) else 1.0
        return rate.unsqueeze(-1), (-shape / rate).unsqueeze(-1)


_ROWS: Final[tuple[tuple[type[dist.Distribution], _Row], ...]] = (
    (dist.Binomial, _Bit()),
    (dist.Normal, _Normal()),
    (dist.Poisson, _Poisson()),
    (dist.Gamma, _Gamma()),
    (dist.Exponential, _Gamma()),
)


def _row_of(law: Any) -> _Row | None:
    """The decompositions of a law, if they are known."""
    if is_bernoulli(law):
        return _Bit()
    if is_categorical(law):
        return _Category()
    inner = base_of(law)
    return next((row for kind, row in _ROWS if isinstance(inner, kind)), None)
