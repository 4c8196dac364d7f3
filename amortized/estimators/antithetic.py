"""Antithetic pairs: two draws of a discrete site from one uniform, compared with each other.

A bit is ``b = 1[u < p]`` and its twin ``b' = 1[1 - u < p]``. Both have the site's law, so each
counts one half. The gradient is half of what the costs differ by, those of the whole event, times
one coefficient per element. Categories are broken into bits (the first 1 is where the stick
breaks), each with a twin.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, base_of
from amortized.estimators.elements import (
    is_bernoulli,
    is_categorical,
    is_one_hot,
    logits_of,
    sum_elements,
    to_elements,
)


class _Pair(Estimator):
    """Two joint draws of the site, and the half difference of their costs."""

    in_rows = True

    def copies(self, site: Site) -> int:
        """Two: a draw and its twin."""
        return 2

    @abstractmethod
    def coefficient(self, bits: Tensor, twin: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
        """What the half difference of the costs is multiplied by, for each bit; detached."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        """The bits and their twins, shape ``[2, *batch, *event]``."""
        logits = bit_logits(site.law)
        bits, twin, uniform = twins(logits.detach(), noise, site.name)
        kappa = self.coefficient(bits, twin, logits.detach(), uniform)
        return _drawn(site, torch.stack([bits, twin]), kappa * (logits - logits.detach()))

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        """``1/2 (f(b) - f(b'))`` times the coefficients, summed over the elements of the event."""
        first, second = draw.each(cost.copies.detach())
        # where a cost is infinite or NaN nothing can be said: 0 * inf would spoil the loss
        half = (0.5 * (first - second)).nan_to_num(0.0, 0.0, 0.0)
        law = draw.site.law
        return sum_elements(to_elements(half, law) * draw.memory["score"], law)


class ARM(_Pair):
    r"""Augment-REINFORCE-merge: an antithetic pair of Bernoulli draws, weighed by its uniform.

    .. math:: \hat g_i = (f(b') - f(b))\,(u_i - \tfrac12), \qquad
        b_i = 1[u_i < \sigma(\phi_i)], \quad b'_i = 1[1 - u_i < \sigma(\phi_i)]

    the gradient in the logits :math:`\phi`. Unbiased; its variance is never below that of `DisARM`,
    which averages the uniform out at no cost: it is here for comparison. Needs Bernoulli sites, in
    plates or ``to_event``, given by logits or probabilities; the cost need not be differentiable.
    Two copies, jointly for the event; no state. Draws have shape ``[2, *batch, *event]``.

    Probabilities of exactly 0 or 1 are kept; closer than the rounding unit of their dtype to these
    they pass no gradient, as in the log-probability of ``torch.distributions``.

    Refuses other distributions.

    Yin & Zhou 2019 (1807.11143).

    >>> ARM()
    ARM()
    """

    label = "arm"

    def refusal(self, site: Site) -> str | None:
        """Bits only."""
        if is_bernoulli(site.law):
            return None
        if is_categorical(site.law):
            return f"ARM pairs bits, and {site.family} has categories; use am.DisARM()"
        return f"ARM pairs bits, and {site.family} is no Bernoulli; {_instead(site)}"

    def coefficient(self, bits: Tensor, twin: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
        """``1 - 2 u``."""
        return 1 - 2 * uniform


class DisARM(_Pair):
    r"""ARM with the uniform averaged out (also called U2G), for bits and for categories.

    .. math:: \hat g_i = \tfrac12 (f(b) - f(b'))\,(b_i - b'_i)\, \sigma(|\phi_i|) , \qquad
        b_i = 1[u_i < \sigma(\phi_i)], \quad b'_i = 1[1 - u_i < \sigma(\phi_i)]

    the gradient in the logits :math:`\phi`: the expectation of `ARM` given the two draws. Unbiased;
    never worse than ARM, and for a single bit never worse than leave-one-out with two samples; in
    several dimensions neither is always better than the other. Zero where both draws agree or cost
    the same, so zero at the exact posterior.

    A category is the place of the first 1 among independent bits with the logits
    :math:`\alpha_i = \ell_i - \log\sum_{j>i} e^{\ell_j}`. With lo and hi the lower and higher of
    the two categories z and z', the coefficient of half the costs' difference is

    .. math:: \kappa_{lo} = \pm\sigma(|\alpha_{lo}|), \quad
        \kappa_j = \mp(\beta_j - \sigma(\alpha_j)) \; (lo < j \le hi), \quad
        0 \text{ elsewhere},

    the upper sign if z is the lower, :math:`\beta` the bits that led to hi. The order of the
    categories matters for the variance and not for the mean.

    Needs Bernoulli, Categorical or OneHotCategorical sites, in plates or ``to_event``, given by
    logits or probabilities; the cost need not be differentiable. Two copies, jointly for the event;
    no state. Draws have shape ``[2, *batch, *event]``. Probabilities of exactly 0 or 1 are kept;
    closer than the rounding unit of their dtype to these they pass no gradient, as in the
    log-probability of ``torch.distributions``.

    Refuses other distributions.

    Dong, Mnih & Tucker 2020 (2006.10680); Yin et al. 2020 (2006.06448); categories: 2021
    (2106.08056).

    >>> DisARM()
    DisARM()
    """

    label = "disarm"

    def refusal(self, site: Site) -> str | None:
        """Bits and categories."""
        if is_bernoulli(site.law) or is_categorical(site.law):
            return None
        return (
            f"DisARM pairs bits or categories, and {site.family} has neither (am.Enumerate() takes "
            f"any small finite support); {_instead(site)}"
        )

    def draw(self, site: Site, noise: Noise) -> Draw:
        """The draw and its twin, shape ``[2, *batch, *event]``."""
        if is_bernoulli(site.law):
            return super().draw(site, noise)
        logits = stick_logits(site.law)
        bits, twin, _ = twins(logits.detach(), noise, site.name)
        first, second = _broken_at(bits), _broken_at(twin)
        kappa = _stick_coefficients(bits, twin, first, second, logits.detach())
        score = (kappa * (logits - logits.detach())).sum(-1)
        value = torch.stack([first, second])
        if is_one_hot(site.law):
            categories = torch.arange(logits.shape[-1] + 1, device=value.device)
            value = (value.unsqueeze(-1) == categories).to(logits.dtype)
        return _drawn(site, value, score)

    def coefficient(self, bits: Tensor, twin: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
        """``(b - b') sigmoid(|logit|)``."""
        return (bits - twin) * torch.sigmoid(logits.abs())


def _drawn(site: Site, value: Tensor, score: Tensor) -> Draw:
    """Both copies, and the coefficients times the logits: zero, with a gradient in the logits."""
    return Draw(site, value, 2, memory={"score": score})


def _instead(site: Site) -> str:
    if site.law.has_rsample:
        return "use am.Pathwise()"
    return "use am.ScoreFunction(am.LeaveOneOut())"


def _huge(dtype: torch.dtype) -> float:
    """A logit that no uniform reaches, and of which several can be added."""
    return torch.finfo(dtype).max / 8


def _given_probabilities(law: Any) -> Tensor | None:
    """The probabilities, unless torch would have to compute them from logits."""
    return base_of(law).__dict__.get("probs")


def bit_logits(law: Any) -> Tensor:
    """The finite logits of a Bernoulli law's elements, attached, shape ``[*batch, *elements]``.

    torch moves given probabilities away from 0 and 1 before it takes logits. A bit that is
    impossible or certain gets a logit that no uniform passes.
    """
    logits, given = logits_of(law), _given_probabilities(law)
    huge = _huge(logits.dtype)
    if given is not None:
        logits = torch.where(given <= 0, -huge, torch.where(given >= 1, huge, logits))
    return logits.clamp(-huge, huge)


def stick_logits(law: Any) -> Tensor:
    """The logits of the bits of which the first 1 is the category, finite and attached.

    ``alpha_i = l_i - logsumexp_{j > i} l_j``, shape ``[*batch, *elements, categories - 1]``. Where
    a category is impossible its bit is never 1, and the last that is possible always.
    """
    logs, given = logits_of(law), _given_probabilities(law)
    huge = _huge(logs.dtype)
    if given is not None:
        logs = torch.where(given <= 0, -huge, logs)
    # an infinite logit has no finite differences, and a NaN gradient in the sums
    logs = logs.clamp(min=-huge)
    tails = logs.flip(-1).logcumsumexp(-1).flip(-1)
    return logs[..., :-1] - tails[..., 1:]


def twins(logits: Tensor, noise: Noise, site: str) -> tuple[Tensor, Tensor, Tensor]:
    """Antithetic bits of given logits, as numbers, and the uniforms that both are made of.

    Logits are compared: in float32 a probability is 1 from a logit of 17 on, and its twin would be
    lost.
    """
    uniform = noise.uniform(tuple(logits.shape), logits, site=site)
    limits = torch.finfo(uniform.dtype)
    level = torch.logit(uniform.clamp(limits.tiny, 1 - limits.eps / 2))
    return (level < logits).to(logits.dtype), (-level < logits).to(logits.dtype), uniform


def _broken_at(bits: Tensor) -> Tensor:
    """The place of the first 1, or the number of bits if there is none: the category."""
    return (1 - bits).cumprod(-1).sum(-1).long()


def _stick_coefficients(
    bits: Tensor, twin: Tensor, first: Tensor, second: Tensor, logits: Tensor
) -> Tensor:
    """The expectation of each bit's coefficient given both categories, ``[..., categories - 1]``.

    Up to the earlier category both copies have zeros. There one of them has a 1: the pair differs.
    Behind it, that copy's bits are not seen any more, which leaves the score of the other's.
    """
    place = torch.arange(logits.shape[-1], device=logits.device)
    low = torch.minimum(first, second).unsqueeze(-1)
    high = torch.maximum(first, second).unsqueeze(-1)
    leads = (first < second).unsqueeze(-1)
    behind = torch.sigmoid(logits) - torch.where(leads, twin, bits)
    behind = torch.where((place > low) & (place <= high), behind, torch.zeros_like(behind))
    split = (place == low) & (low < high)
    kappa = torch.where(split, torch.sigmoid(logits.abs()), behind)
    return torch.where(leads, kappa, -kappa)
