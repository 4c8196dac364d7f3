"""Straight-through gradients: hard values forward, the gradient of something smooth backward."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution

from amortized.errors import UsageError
from amortized.estimators.base import Draw, Estimator, Noise, Site
from amortized.estimators.elements import (
    held,
    is_bernoulli,
    linear_log_prob,
    logits_of,
    positive,
    unrelaxable,
)
from amortized.estimators.relaxed import perturbed, soften

Kind = Literal["plain", "gumbel", "reinmax"]

_BIAS: dict[str, str] = {
    "plain": "the value gets the gradient of its mean: exact only where what is maximized is "
    "multilinear in the bits (linear in a one-hot vector)",
    "gumbel": "the value gets the gradient of a relaxed one: exact only where what is maximized "
    "does not depend on it",
    "reinmax": "what a change of the value is worth is taken by the trapezoid rule: exact only "
    "where what is maximized is quadratic in each element's value",
}


class StraightThrough(Estimator):
    r"""A hard draw whose gradient is that of something smooth: the mean, a relaxed value, ReinMax.

    .. math::
        \text{plain: } J(\pi)^\top f'(z), \qquad
        \text{gumbel: } \nabla_\phi \operatorname{softmax}((\ell + G)/\lambda)^\top f'(z), \qquad
        \text{reinmax: } 2 J\big(\tfrac{\pi + z}{2}\big)^\top f'(z) - \tfrac12 J(\pi)^\top f'(z)

    with ``J(pi) = diag(pi) - pi pi^T`` and, for gumbel, ``z`` the largest of ``l + G``. Biased for
    phi, except for costs of one kind; the cost is what is expected downstream, given this value:

    * ``"plain"``: multilinear in the bits of all sites, linear in a one-hot vector;
    * ``"gumbel"``: none that depends on the value;
    * ``"reinmax"``: quadratic in each element's value, the others held (also products of elements).

    Values are exactly 0 or 1, so the loss and theta's gradient have no bias of their own, and the
    model only needs to be differentiable at hard values. Low bias is not low variance: ReinMax can
    vary more than a score function with a baseline.

    Own log q: phi is frozen inside (its direct gradient has mean zero, except under bounds that
    weight draws by each other: a second bias there), the way through the value stays. log p and log
    q are the linear functions through the discrete log-probabilities.

    Bernoulli and OneHotCategorical, ``to_event`` included. One copy, no surrogate, no state. Value:
    shape ``[*batch, *event]``.

    Args:
        kind: whose gradient the value gets.
        temperature: lambda of ``"gumbel"``, by default 1.

    Raises:
        UsageError: an unknown kind, or a temperature that has no use or is not above 0.

    Bengio et al. 2013 (1308.3432); Jang et al. 2016 (1611.01144); Liu et al. 2023 (2304.08612).

    >>> StraightThrough("gumbel", temperature=0.5)
    StraightThrough('gumbel', temperature=0.5)
    """

    label = "straight_through"
    needs = "a model that is differentiable at hard values"
    attached = True

    def __init__(self, kind: Kind = "plain", *, temperature: float | None = None) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UsageError(
                f"StraightThrough(kind={kind!r}): expected one of {', '.join(get_args(Kind))}"
            )
        if temperature is not None:
            temperature = positive("StraightThrough(temperature=...)", temperature)
            if kind != "gumbel":
                raise UsageError(
                    f"StraightThrough({kind!r}, temperature=...): only 'gumbel' has a temperature"
                )
        self.kind: Kind = kind
        self.temperature = temperature
        self.bias = _BIAS[kind]

    def refusal(self, site: Site) -> str | None:
        """Only bits and one-hot vectors: an integer carries no gradient."""
        return unrelaxable(site)

    def bias_of(self, site: Site, *, weighted: bool = False) -> str:
        """Beside weights the gradient that is held back has no mean of zero."""
        if not weighted:
            return self.bias
        return f"{self.bias}; beside weights, the direct gradient of log q is missing as well"

    def draw(self, site: Site, noise: Noise) -> Draw:
        """A draw of the law, with something smooth, of value zero, added."""
        if self.kind == "gumbel":
            logits, jitter = perturbed(site, noise)
            score = logits + jitter
            temperature = score.new_ones(()) * (self.temperature or 1.0)
            return Draw(
                site, _carrying(_hard(score, site.law), soften(score, temperature, site.law))
            )
        hard = noise.sample(site.law, site=site.name)
        logits = logits_of(site.law).expand(hard.shape)
        smooth = (
            _mean(logits, site.law) if self.kind == "plain" else _reinmax(logits, hard, site.law)
        )
        return Draw(site, _carrying(hard, smooth))

    def density(self, law: Distribution, value: Tensor) -> Tensor:
        """The linear function through the discrete log-probabilities, which has a slope in z."""
        return linear_log_prob(law, value)

    def log_q(self, draw: Draw) -> Tensor:
        """The same under the guide's law, its parameters held."""
        return linear_log_prob(held(draw.site.law), draw.value)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        warmth = "" if self.temperature is None else f", temperature={self.temperature}"
        return f"{type(self).__name__}({self.kind!r}{warmth})"


def _carrying(hard: Tensor, smooth: Tensor) -> Tensor:
    """The hard value, with the gradient of the smooth one."""
    return hard + (smooth - smooth.detach())


def _hard(score: Tensor, law: Any) -> Tensor:
    """The value that the scores stand for, without a gradient."""
    if is_bernoulli(law):
        return (score > 0).to(score.dtype)
    # not F.one_hot, which looks at the values
    return torch.zeros_like(score).scatter(-1, score.argmax(-1, keepdim=True), 1.0)


def _mean(logits: Tensor, law: Any) -> Tensor:
    return torch.sigmoid(logits) if is_bernoulli(law) else torch.softmax(logits, -1)


def _reinmax(logits: Tensor, hard: Tensor, law: Any) -> Tensor:
    r"""A tensor whose Jacobian in the logits is ``2 J((pi + z) / 2) - J(pi) / 2``.

    For a bit this is half the probability of the other value, which does not cancel.
    """
    fixed = logits.detach()
    # of value zero; where a category is impossible -inf - -inf would be NaN
    change = torch.where(fixed > -torch.inf, logits - fixed, 0.0)
    if is_bernoulli(law):
        return 0.5 * torch.sigmoid(fixed * (1.0 - 2.0 * hard)) * change
    prior = torch.softmax(fixed, -1)
    middle = 0.5 * (prior + hard)
    return 2.0 * _along(middle, change) - 0.5 * _along(prior, change)


def _along(probs: Tensor, change: Tensor) -> Tensor:
    """The Jacobian of softmax, applied to a change of the logits."""
    return probs * (change - (probs * change).sum(-1, keepdim=True))
