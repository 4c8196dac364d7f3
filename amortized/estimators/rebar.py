"""REBAR: the score function, and the model at a relaxed value as its control variate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortized.errors import UsageError
from amortized.estimators.base import Cost, Draw, Noise, Site
from amortized.estimators.conditional import (
    WithRelaxedCopies,
    carried,
    conditioned,
    in_logits,
    logits_by_element,
    means_of,
    over_event,
    sum_event,
    through,
)
from amortized.estimators.elements import finite, is_bernoulli, positive


class REBAR(WithRelaxedCopies):
    r"""The score function with the cost at a relaxed value as control variate.

    .. math:: \hat g = (f(b) - \eta\, c(\tilde z))\, \nabla_\phi \log q_\phi(b)
        + \eta\, \nabla_\phi c(z) - \eta\, \nabla_\phi c(\tilde z),
        \qquad c(z) = f(\mathrm{relax}_\lambda(z))

    ``b`` is the hard value of ``z``, and ``z~`` is drawn from the law of z given b, differentiably.
    Unbiased for every scale eta and temperature lambda, with later sites that depend on this one
    too: the slopes of the cost hold how their laws move. Value and theta's gradient are those of
    the hard copy alone. There is no guarantee that it varies less than the score function.

    Bernoulli and one-hot sites (also ``to_event``, with a joint cost), under a model that accepts
    relaxed values and is differentiable there. Copies: 3 (hard, relaxed, relaxed given the hard
    value), or 2 with ``tied``. State: ``scale`` and ``log_temperature``, numbers of the site.

    Args:
        temperature: lambda, positive; where it starts, if it is learned.
        scale: eta; where it starts, if it is learned.
        learn_scale: eta minimizes the variance of the gradient in the logits, exactly.
        learn_temperature: lambda does too, as far as the draws of later sites show; differentiates
            the model twice.
        tied: z~ takes its noise from z, which saves one evaluation; less variance or more.
        improved: relaxes ``k logits + noise``, k = (lambda^2 + lambda + 1) / (lambda + 1), which
            comes closer to the score's own derivative; Bernoulli only.

    Raises:
        UsageError: a temperature that is not positive, a scale that is not finite.

    Tucker et al. 2017 (1703.07370).

    >>> REBAR(temperature=0.5, tied=True)
    REBAR(tied=True)
    """

    label = "rebar"
    scale: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        scale: float = 1.0,
        learn_scale: bool = True,
        learn_temperature: bool = False,
        tied: bool = False,
        improved: bool = False,
    ) -> None:
        super().__init__()
        self._given = {
            "temperature": positive("REBAR(temperature=...)", temperature),
            "scale": scale,
            "learn_scale": learn_scale,
            "learn_temperature": learn_temperature,
            "tied": tied,
            "improved": improved,
        }
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise UsageError(f"REBAR(scale={scale!r}): expected a finite number")
        self.learn_scale, self.learn_temperature = learn_scale, learn_temperature
        self.tied, self.improved = tied, improved
        _number(self, "scale", float(scale), learn_scale)
        _number(self, "log_temperature", math.log(temperature), learn_temperature)

    def copies(self, site: Site) -> int:
        """Hard, relaxed, and relaxed given the hard value unless that is the same."""
        return 2 if self.tied else 3

    def refusal(self, site: Site) -> str | None:
        """Bernoulli and one-hot; the improved relaxation is one of bits."""
        if self.improved and not is_bernoulli(site.law):
            return (
                f"improved=True is a relaxation of Bernoulli sites, and this is {site.family}; "
                "leave improved out"
            )
        return super().refusal(site)

    def draw(self, site: Site, noise: Noise) -> Draw:
        """The hard value and its relaxed companions, ``[C, *batch, *event]``.

        They are constants to phi, whose gradient `surrogate` carries.
        """
        law = site.law
        logits = logits_by_element(law).detach()
        found = conditioned(site, logits, noise, tied=self.tied)
        heat = self.log_temperature.to(logits).expand(law.batch_shape)
        made = [found.free] if self.tied else [found.free, found.given]
        relaxed = [self._relax(z, logits, over_event(heat, law), site) for z in made]
        value = torch.stack([found.hard, *relaxed])
        if torch.is_grad_enabled() and not value.requires_grad:
            value = value.requires_grad_()
        memory = {
            "hard": found.hard,
            "free": found.free,
            "given": found.given,
            "turn": found.turn,
            "heat": heat,
        }
        return Draw(site, value, self.copies(site), memory=memory, ordinary=1)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """The gradient in the logits, handed on to them; and what trains scale and temperature."""
        if not torch.is_grad_enabled():
            return None
        law = draw.site.law
        plain, control = self.parts(draw, cost)
        gradient = plain - self.scale * control.detach()
        owed = carried(gradient, logits_by_element(law), law)
        if self.learn_scale:
            owed = owed - zeroed(sum_event(gradient**2, law))
        if self.learn_temperature:
            owed = owed - self._heated(draw, plain - self.scale.detach() * control)
        return owed

    def parts(self, draw: Draw, cost: Cost) -> tuple[Tensor, Tensor]:
        """The score function's gradient in the logits, and what eta times is subtracted of it.

        Shapes of the logits. The second has mean zero; it keeps its graph in the temperature if
        that is learned.
        """
        law, memory = draw.site.law, draw.memory
        slopes = self.rows(draw, cost.slope(draw, create_graph=self.learn_temperature))
        values = self.rows(draw, draw.value if self.learn_temperature else draw.value.detach())
        costs = draw.each(cost.copies)
        means = means_of(law, logits_by_element(law).detach())
        score = memory["hard"] - means
        # per element; the derivative of the cost is its slope wherever elements are apart
        known = over_event(costs[-1], law)
        if self.learn_temperature:
            moved = slopes[-1].detach() * (values[-1] - values[-1].detach())
            known = known + over_event(sum_event(moved, law), law)
        heat = over_event(
            memory["heat"] if self.learn_temperature else memory["heat"].detach(), law
        )
        more = _stretch(heat) - 1 if self.improved else 0.0
        free = through(law, values[1], slopes[1]) / heat.exp() * (1.0 + more)
        given = through(law, values[-1], slopes[-1]) / heat.exp() * (memory["turn"] + more)
        control = known * score - in_logits(law, free - given, means)
        return finite(over_event(costs[0], law) * score), finite(control)

    def _relax(self, z: Tensor, logits: Tensor, heat: Tensor, site: Site) -> Tensor:
        if not is_bernoulli(site.law):
            return (z / heat.exp()).softmax(-1)
        if self.improved:
            z = z + (_stretch(heat) - 1) * logits
        return (z / heat.exp()).sigmoid()

    def _heated(self, draw: Draw, gradient: Tensor) -> Tensor:
        """A term of value zero with the variance's gradient in the temperature."""
        heat = draw.memory["heat"]
        (slope,) = torch.autograd.grad(
            (gradient**2).sum(), heat, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return finite(slope) * zeroed(self.log_temperature)

    def extra_repr(self) -> str:
        """What differs from the defaults."""
        default = {"temperature": 0.5, "scale": 1.0, "learn_scale": True}
        kept = {k: v for k, v in self._given.items() if v != default.get(k, False)}
        return ", ".join(f"{name}={value!r}" for name, value in kept.items())

    def __repr__(self) -> str:
        """One line: what a user would type."""
        return f"{type(self).__name__}({self.extra_repr()})"


def zeroed(term: Tensor) -> Tensor:
    """Value zero, the gradient of the term."""
    return term - term.detach()


def _number(module: nn.Module, name: str, value: float, learned: bool) -> None:
    if learned:
        module.register_parameter(name, nn.Parameter(torch.tensor(value)))
    else:
        module.register_buffer(name, torch.tensor(value))


def _stretch(heat: Tensor) -> Tensor:
    """The factor of the logits in the improved relaxation."""
    temperature = heat.exp()
    return (temperature**2 + temperature + 1) / (temperature + 1)
