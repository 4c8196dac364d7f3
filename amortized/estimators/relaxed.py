"""Concrete (Gumbel-softmax) values: differentiable stand-ins for bits and one-hot vectors.

A site's elements get noise, ``score = logits + noise``, and the value is ``sigmoid`` or ``softmax``
of ``score / temperature``. A value close to 0 or 1 is rounded, so densities are computed from the
scores that a draw remembers. They are densities of ``logit y`` or ``log y``: the Jacobian is the
same under guide and prior, and cancels between them.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from amortized.errors import UsageError
from amortized.estimators.base import Draw, Estimator, Noise, Site, base_of
from amortized.estimators.elements import (
    is_bernoulli,
    linear_log_prob,
    logits_of,
    over_elements,
    positive,
    sum_elements,
    unrelaxable,
)

Terms = Literal["analytic", "relaxed", "discrete"]

_BIAS: dict[str, str] = {
    "analytic": "the likelihood is that of relaxed values (off by the order of the temperature, "
    "at times with the wrong sign); the KL is exact",
    "relaxed": "it is the gradient of the bound of a relaxed model, not of the discrete one",
    "discrete": "discrete log-probabilities at relaxed values are a bound of nothing",
}


class Relaxed(Estimator):
    r"""Concrete, or Gumbel-softmax: a relaxed value in [0, 1], differentiated pathwise.

    .. math::
        y = \sigma\big((\phi + \operatorname{logit} u) / \lambda\big), \qquad
        y = \operatorname{softmax}\big((\ell + G) / \lambda\big), \; G = -\log(-\log u)

    Biased for the discrete objective, by the order of the temperature, and at times with the wrong
    sign; the variance grows as the temperature falls. theta, too, is fitted to relaxed values. The
    gradient is the exact gradient of a *relaxed objective*, and ``terms`` says which:

    * ``"analytic"``: the expected log-likelihood at relaxed values, minus the KL of the *discrete*
      laws in closed form. The default: the part of the bound that is known exactly stays exact,
      with no noise, and only the likelihood is relaxed. It is refused where the prior depends on
      something that the guide draws later.
    * ``"relaxed"``: Concrete densities on both sides. A proper bound, of another model: the one
      whose prior is relaxed with ``prior_temperature``. It works in every order of sites.
    * ``"discrete"``: discrete log-probabilities, which are linear in the value, at relaxed values.
      Common in code; not a bound of anything.

    Reported losses are those of the relaxed objective too. An objective that takes KLs in closed
    form wherever it can, ``ELBO(kl="analytic")``, does so here as well, whatever ``terms`` says.

    Needs a Bernoulli or OneHotCategorical, ``to_event`` included, in model and guide, and a model
    that accepts and differentiates values between 0 and 1. One copy, no surrogate. Value: shape
    ``[*batch, *event]``, at low temperatures often rounded to exactly 0 or 1. Densities come from
    the scores before rounding, so they stay finite. State: the number of steps of an annealing,
    or the logarithm of a learned temperature.

    Args:
        temperature: lambda; where it starts, if ``end`` is given or it is learned.
        end: the temperature goes there geometrically, over so many ``steps``, and stays.
        steps: the number of training steps of the annealing.
        learned: the logarithm of the temperature is a parameter (group ``"estimators"``). The
            objective then chooses the temperature at which the *relaxed* bound is best, which is
            no measure of the bias: with ``terms="relaxed"`` and a fixed ``prior_temperature`` this
            tightens a proper bound; with a shared one it moves the prior as well; with the other
            two it favours whatever lets relaxed values say more than bits can.
        prior_temperature: of the relaxed prior, for ``terms="relaxed"``; None: the same.
        terms: which objective is meant.

    Raises:
        UsageError: options that are out of range or do not belong together.

    Maddison et al. 2016 (1611.00712); Jang et al. 2016 (1611.01144).

    >>> Relaxed(1.0, end=0.1, steps=5000)
    Relaxed(1.0, end=0.1, steps=5000)
    """

    label = "relaxed"
    needs = "a model that accepts, and is differentiable at, values between 0 and 1"
    attached = True
    taken: Tensor

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        end: float | None = None,
        steps: int | None = None,
        learned: bool = False,
        prior_temperature: float | None = None,
        terms: Terms = "analytic",
    ) -> None:
        super().__init__()
        self.start = positive("Relaxed(temperature=...)", temperature)
        self.end, self.steps, self.learned = end, steps, learned
        self.prior_temperature, self.terms = prior_temperature, terms
        self._refuse_options()
        self.kl = "analytic" if terms == "analytic" else "objective"
        self.bias = _BIAS[terms]
        if learned:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(self.start)))
        if steps is not None:
            self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def _refuse_options(self) -> None:
        if self.terms not in get_args(Terms):
            raise UsageError(
                f"Relaxed(terms={self.terms!r}): expected one of {', '.join(get_args(Terms))}"
            )
        if (self.end is None) != (self.steps is None):
            raise UsageError(
                f"Relaxed(end={self.end!r}, steps={self.steps!r}): an annealing needs both"
            )
        if self.end is not None:
            positive("Relaxed(end=...)", self.end)
            if self.learned:
                raise UsageError(
                    "Relaxed(learned=True, end=...): a temperature is learned or annealed; drop one"
                )
        if self.steps is not None and (type(self.steps) is not int or self.steps < 1):
            raise UsageError(f"Relaxed(steps={self.steps!r}): expected an int, at least 1")
        if self.prior_temperature is not None:
            positive("Relaxed(prior_temperature=...)", self.prior_temperature)
            if self.terms != "relaxed":
                raise UsageError(
                    f"Relaxed(prior_temperature=..., terms={self.terms!r}): only a relaxed prior "
                    "has a temperature; give terms='relaxed', or drop it"
                )

    def refusal(self, site: Site) -> str | None:
        """Only bits and one-hot vectors."""
        return unrelaxable(site)

    def temperature(self, like: Tensor) -> Tensor:
        """The temperature now, a scalar with the dtype of ``like``; attached if it is learned."""
        if self.learned:
            return self.log_temperature.to(like).exp()
        if self.end is None or self.steps is None:
            return torch.full((), self.start, dtype=like.dtype, device=like.device)
        done = (self.taken.to(like) / self.steps).clamp(max=1.0)
        return (math.log(self.start) + done * math.log(self.end / self.start)).exp()

    def draw(self, site: Site, noise: Noise) -> Draw:
        """One relaxed value; the scores and their noise are remembered, in logits."""
        logits, jitter = perturbed(site, noise)
        score = logits + jitter
        value = soften(score, self.temperature(score), site.law)
        return Draw(site, value, memory={"score": score, "noise": jitter}, ordinary=0)

    def density(self, law: Distribution, value: Tensor) -> Tensor:
        """The log-density that ``terms`` names, of values without their memory.

        For ``"relaxed"`` these are taken to lie inside (0, 1), by one rounding error, and the
        temperature is the prior's.
        """
        if self.terms != "relaxed":
            return linear_log_prob(law, value)
        floor, eps = torch.finfo(value.dtype).tiny, torch.finfo(value.dtype).eps
        inside = value.clamp(floor, 1.0 - eps)
        # for a one-hot vector log y and the score differ by a constant, which does not matter
        logit = inside.log() - torch.log1p(-inside) if is_bernoulli(law) else inside.log()
        return self._relaxed_prior(law, self.temperature(value) * logit)

    def log_p(self, law: Distribution, draw: Draw) -> Tensor:
        """log p as ``terms`` has it, from the scores where the prior is relaxed."""
        if self.terms != "relaxed" or "score" not in draw.memory:
            return self.density(law, draw.value)
        return self._relaxed_prior(law, draw.memory["score"])

    def log_q(self, draw: Draw) -> Tensor:
        """log q as ``terms`` has it; for ``"analytic"`` minus the entropy of the discrete law.

        In scores the Concrete density of a guide's own draw is a function of the noise alone:
        nothing cancels, and phi has no part in it.
        """
        law = draw.site.law
        if self.terms == "analytic":
            return -sum_elements(base_of(law).entropy(), law)
        if self.terms == "discrete":
            return linear_log_prob(law, draw.value)
        score, jitter = draw.memory["score"], draw.memory["noise"]
        temperature = self.temperature(score)
        return sum_elements(concrete(-jitter, score > -torch.inf, temperature, law), law)

    def advance(self) -> None:
        """One step further in the annealing."""
        if self.steps is not None:
            self.taken.add_(1)

    def _relaxed_prior(self, law: Any, score: Tensor) -> Tensor:
        """The Concrete density of the scores under a law, with the prior's temperature."""
        own = self.temperature(score)
        theirs = own
        if self.prior_temperature is not None:
            theirs = torch.full_like(own, self.prior_temperature)
        possible = score > -torch.inf
        scaled = torch.where(possible, score, 0.0) * (theirs / own)

        def each(inner: Any) -> Tensor:
            return concrete(logits_of(inner) - scaled, possible, theirs, inner)

        return over_elements(law, each, "density")

    def __repr__(self) -> str:
        """One line: what a user would type."""
        given = [f"{self.start}"]
        given += [f"end={self.end}, steps={self.steps}"] if self.end is not None else []
        given += ["learned=True"] if self.learned else []
        if self.prior_temperature is not None:
            given.append(f"prior_temperature={self.prior_temperature}")
        given += [f"terms={self.terms!r}"] if self.terms != "analytic" else []
        return f"{type(self).__name__}({', '.join(given)})"


def perturbed(site: Site, noise: Noise) -> tuple[Tensor, Tensor]:
    """Logits and their noise, shape ``[*batch, *event]``: logistic for bits, else Gumbel."""
    law: Any = site.law
    logits = logits_of(law).expand(law.batch_shape + law.event_shape)
    u = noise.uniform(tuple(logits.shape), logits.detach(), site=site.name)
    limits = torch.finfo(u.dtype)
    u = u.clamp(limits.tiny, 1.0 - limits.eps)
    if is_bernoulli(law):
        return logits, u.log() - torch.log1p(-u)
    return logits, -torch.log(-u.log())


def soften(score: Tensor, temperature: Tensor, law: Any) -> Tensor:
    """Values in [0, 1] from scores, same shape; an impossible category (score -inf) gets 0."""
    if is_bernoulli(law):
        return torch.sigmoid(score / temperature)
    possible = score > -torch.inf
    # dividing -inf would give the temperature a gradient of 0 * inf
    scaled = torch.where(possible, score, 0.0) / temperature
    return torch.softmax(scaled.masked_fill(~possible, -torch.inf), -1)


def concrete(shift: Tensor, possible: Tensor, temperature: Tensor, law: Any) -> Tensor:
    """The Concrete log-density of each element, with respect to ``logit y`` or ``log y``.

    Impossible categories are left out: the density on the face of the simplex that remains.

    Args:
        shift: ``phi - temperature * logit y``, shape ``[*batch, *elements]``; for categories
            ``log pi - temperature * log y`` up to a constant, ``[*batch, *elements, categories]``.
        possible: where categories have a chance, same shape; unused for bits.
        temperature: of the density, a scalar.
        law: the law, for its kind.
    """
    if is_bernoulli(law):
        return temperature.log() + shift - 2.0 * F.softplus(shift)
    count = possible.sum(-1).to(shift.dtype)
    total = torch.where(possible, shift, 0.0).sum(-1)
    largest = shift.masked_fill(~possible, -torch.inf).logsumexp(-1)
    return torch.lgamma(count) + (count - 1.0) * temperature.log() + total - count * largest
