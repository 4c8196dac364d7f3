"""RELAX: the score function with a learned control variate; LAX on continuous sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from amortized.estimators.base import Cost, Draw, Noise, Site, base_of
from amortized.estimators.baselines import features_of, rebuilt
from amortized.estimators.conditional import (
    carried,
    conditioned,
    in_logits,
    logits_by_element,
    means_of,
    over_event,
    sum_event,
)
from amortized.estimators.elements import (
    element_dims,
    finite,
    is_bernoulli,
    is_categorical,
    is_one_hot,
    is_straight_through,
    positive,
    sum_elements,
    to_elements,
)
from amortized.estimators.enumeration import ListsSupport
from amortized.estimators.rebar import REBAR, zeroed
from amortized.estimators.running import Running, applied, network_or_default

_FAR: Final = 1e4
"""Noise beyond this is as good as infinite."""


class RELAX(Running, ListsSupport):
    r"""The score function with a network as control variate, trained on the gradient's variance.

    .. math:: \hat g = (f(b) - c(\tilde z))\, \nabla_\phi \log q_\phi(b)
        + \nabla_\phi c(z) - \nabla_\phi c(\tilde z)

    ``b`` is the hard value of ``z``, and ``z~`` is drawn from the law of z given b, differentiably.
    On a continuous site with ``rsample`` it is LAX, whose z is the value itself and given:

    .. math:: \hat g = (f(z) - c(z))\, \nabla_\phi \log q_\phi(z) + \nabla_\phi c(z)

    Unbiased for every c. The cost need not be differentiable, nor defined at relaxed values: one
    evaluation of the model, two of the network. Here ``c = m + s network(u)``, with m and s the
    running mean and spread of what the network is left with (past costs, less REBAR's control
    variate if there is one), and u the parameters of the site's distribution (or the
    tensor at the site, ``infer={"baseline_input": tensor}``) beside the relaxed value
    ``relax(z / lambda)``: a bit as a number in (0, 1), a category as a point of the simplex, a
    continuous value as it is. Network and lambda minimize the variance of the gradient in the
    site's parameters; nothing of that reaches phi or theta.

    Sites: Bernoulli, Categorical, one-hot and other finite supports of numbers, also ``to_event``;
    continuous ones whose elements are numbers. Copies: 1 (3, or 2 if tied, with ``relaxed_model``).
    State: the network, ``log_temperature``, and ``mean``, ``square``, ``rate`` of past costs.

    Args:
        network: maps ``[..., features]`` to ``[..., 1]``, twice differentiable; None builds one
            hidden layer.
        hidden: width of the hidden layer of the default network.
        temperature: where lambda starts, positive.
        tied: z~ takes its noise from z, which saves an evaluation; less variance or more.
        relaxed_model: adds REBAR's control variate, eta times the cost at relaxed values, with
            eta learned; for Bernoulli and one-hot sites under a model that accepts them.

    Raises:
        UsageError: a network that is no module, a width below 1, a temperature that is not
            positive.

    Grathwohl et al. 2018 (1711.00123).

    >>> RELAX(hidden=32)
    RELAX(hidden=32)
    """

    label = "relax"

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        hidden: int = 64,
        temperature: float = 0.5,
        tied: bool = False,
        relaxed_model: bool = False,
    ) -> None:
        super().__init__()
        self._given = {
            "hidden": hidden,
            "temperature": positive("RELAX(temperature=...)", temperature),
        }
        self._given |= {"tied": tied, "relaxed_model": relaxed_model}
        self._named = None if network is None else type(network).__name__
        self.network = network_or_default("RELAX", network, hidden)
        self.tied = tied
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.make_running()
        self.rebar = REBAR(temperature=temperature, tied=tied) if relaxed_model else None
        # with relaxed copies, their protocol
        self.differentiates_cost = self.base_only = self.keeps_log_q = relaxed_model
        self.in_rows = relaxed_model

    def copies(self, site: Site) -> int:
        """One, unless the model is evaluated at relaxed values."""
        return 1 if self.rebar is None else self.rebar.copies(site)

    def refusal(self, site: Site) -> str | None:
        """Finite supports of numbers or one-hot vectors, and laws with ``rsample`` of numbers."""
        law, family = site.law, site.family
        if self.rebar is not None:
            return self.rebar.refusal(site)
        if family == "Delta":
            return "a Delta is deterministic and owes no gradient here; leave it to am.Pathwise()"
        if law.has_rsample:
            if is_straight_through(law):
                return (
                    f"{family} rounds what it draws, and the slope of what is rounded is not that "
                    "of the value; write the site as a Bernoulli or OneHotCategorical"
                )
            if not base_of(law).event_shape and _Held.of(law) is not None:
                return None
            return (
                f"{family} has no parameters of its own for each number that it draws, in which "
                "variance could be taken; use am.Pathwise()"
            )
        if is_bernoulli(law) or is_categorical(law) or _is_finite(law):
            return None
        return (
            f"{family} has neither a finite support of numbers nor a reparameterized draw; use "
            "am.ScoreFunction(am.LeaveOneOut())"
        )

    def density(self, law: Any, value: Tensor) -> Tensor:
        """The law's own, unless values are relaxed."""
        return law.log_prob(value) if self.rebar is None else self.rebar.density(law, value)

    def log_q(self, draw: Draw) -> Tensor:
        """log q of the draw."""
        return super().log_q(draw) if self.rebar is None else self.rebar.log_q(draw)

    def draw(self, site: Site, noise: Noise) -> Draw:
        """One value, shape ``[*batch, *event]``, a constant to phi; or REBAR's copies."""
        if self.rebar is not None:
            return self.rebar.draw(site, noise)
        if site.law.has_rsample:
            return _continuous(site, noise)
        support = self._numbers(site)
        logits = logits_by_element(site.law, support)
        found = conditioned(site, logits, noise, tied=self.tied)
        memory = {
            "hard": found.hard,
            "free": found.free,
            "given": found.given,
            "turn": found.turn,
        }
        return Draw(site, _value_of(site.law, found.hard, support), memory=memory)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """The gradient in the site's parameters, handed on to them; and what trains the network."""
        if draw.site.law.has_rsample:
            return self._continuous(draw, cost)
        law, memory = draw.site.law, draw.memory
        noises = [memory["free"]] if self.tied else [memory["free"], memory["given"]]
        values, slopes = self._control(draw, torch.stack(noises))
        if not torch.is_grad_enabled():
            return None
        logits = logits_by_element(law, self._numbers(draw.site))
        means = means_of(law, logits.detach())
        score = memory["hard"] - means
        pathwise = in_logits(law, slopes[0] - memory["turn"] * slopes[-1], means)
        control = over_event(values[-1], law) * score - pathwise
        plain = finite(over_event(draw.each(cost.copies)[0], law) * score)
        if self.rebar is not None:
            control = control + self.rebar.scale * self.rebar.parts(draw, cost)[1]
        gradient = plain - finite(control)
        return carried(gradient, logits, law) - zeroed(sum_event(gradient**2, law))

    def _numbers(self, site: Site) -> Tensor | None:
        """The support, where values are numbers; None where they are bits, indices or one-hot."""
        if is_bernoulli(site.law) or is_categorical(site.law):
            return None
        return self.values(site)

    def _continuous(self, draw: Draw, cost: Cost) -> Tensor | None:
        """LAX."""
        law = draw.site.law
        values, slopes = self._control(draw, draw.value.detach().unsqueeze(0))
        held = _Held.of(law)
        if held is None or not torch.is_grad_enabled():
            return None
        owed = torch.zeros_like(cost.copies)
        left = to_elements(cost.copies - values[0], law)
        for name, parameter in held.parameters.items():
            gradient = finite(left * draw.memory[f"score {name}"])
            gradient = gradient + draw.memory[f"slope {name}"] * slopes[0]
            moved = gradient.detach() * zeroed(parameter) - zeroed(gradient**2)
            owed = owed + sum_elements(moved, law)
        return owed

    def _control(self, draw: Draw, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """c at each noise, ``[*batch]``, and its slope there; attached to what is learned only."""
        law, learning = draw.site.law, torch.is_grad_enabled()
        noise = noise.detach().requires_grad_() if learning else noise
        left = noise.shape[: 1 + len(law.batch_shape)]
        relaxed = self._relaxed(law, noise).reshape(*left, noise.shape[len(left) :].numel())
        given = features_of(law) if draw.site.inputs is None else draw.site.inputs.detach()
        given = given.to(relaxed.dtype).expand(*relaxed.shape[:-1], given.shape[-1])
        found = applied(self.network, torch.cat([given, relaxed], -1))
        values = self.mean.to(found).clone() + self.spread().to(found) * found
        if not learning:
            return [*values], []
        (slope,) = torch.autograd.grad(
            values.sum(), noise, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return [*values], [*slope]

    def _relaxed(self, law: Any, noise: Tensor) -> Tensor:
        if law.has_rsample:
            return noise
        # an impossible category has noise -infinity, and 0 * inf would be the temperature's slope
        cold = noise.clamp(-_FAR, _FAR) / self.log_temperature.to(noise).exp()
        return cold.sigmoid() if is_bernoulli(law) else cold.softmax(-1)

    def update(self, draw: Draw, cost: Cost) -> None:
        """Move mean and spread by what the network is to predict, in place."""
        costs = draw.each(cost.copies)
        # REBAR's control variate has the level already: c must not subtract it once more
        left = costs[0] if self.rebar is None else costs[0] - self.rebar.scale * costs[-1]
        self.follow(left.detach())

    def extra_repr(self) -> str:
        """What differs from the defaults."""
        default = {"hidden": 64, "temperature": 0.5}
        kept = {k: v for k, v in self._given.items() if v != default.get(k, False)}
        shown = [f"{name}={value!r}" for name, value in kept.items()]
        return ", ".join(([] if self._named is None else [self._named]) + shown)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        return f"RELAX({self.extra_repr()})"


@final
@dataclass(frozen=True, eq=False)
class _Held:
    """A continuous law made again from its own parameters, each with an entry for each element."""

    law: Any
    """On constants that can be differentiated."""
    leaves: list[Tensor]
    parameters: dict[str, Tensor]
    """Attached."""

    @classmethod
    def of(cls, law: Any) -> _Held | None:
        """None: it cannot be made from what it calls its parameters."""
        inner, shape = base_of(law), law.batch_shape + law.event_shape
        found = rebuilt(law, shape)
        if found is None or not found[1] or found[0].batch_shape != shape:
            return None
        again, leaves = found
        given = {name: torch.as_tensor(getattr(inner, name)).expand(shape) for name in leaves}
        dims = element_dims(law)
        return cls(again.to_event(dims) if dims else again, list(leaves.values()), given)


def _continuous(site: Site, noise: Noise) -> Draw:
    """A constant, with its derivative and its score in each parameter."""
    held = _Held.of(site.law)
    if held is None or not torch.is_grad_enabled():
        return Draw(site, noise.rsample(site.law, site=site.name).detach())
    value = noise.rsample(held.law, site=site.name)
    slopes = _derivatives(value, held.leaves)
    scores = _derivatives(held.law.log_prob(value.detach()), held.leaves)
    memory = {}
    for name, slope, score in zip(held.parameters, slopes, scores, strict=True):
        memory |= {f"slope {name}": slope.detach(), f"score {name}": score.detach()}
    return Draw(site, value.detach(), memory=memory)


def _derivatives(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        value.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _is_finite(law: Any) -> bool:
    """Whether the elements have finitely many values, each a number."""
    inner = base_of(law)
    if not getattr(inner, "has_enumerate_support", False) or inner.event_shape:
        return False
    try:
        inner.enumerate_support(expand=False)
    except NotImplementedError:
        return False
    return True


def _value_of(law: Any, hard: Tensor, support: Tensor | None) -> Tensor:
    """The value that a hard choice stands for."""
    if is_bernoulli(law) or is_one_hot(law):
        return hard
    index = hard.argmax(-1)
    return index if support is None else support[index]
