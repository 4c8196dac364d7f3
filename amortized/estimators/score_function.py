"""The score function: any distribution, any cost, at the price of variance."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from amortized.estimators.baselines import Baseline
from amortized.estimators.elements import finite

_BIAS: Final = (
    "normalize=True divides the gradient by the running standard deviation of the signal where "
    "that is above 1"
)
# of the running moments
_DECAY: Final = 0.9


class ScoreFunction(Estimator):
    r"""REINFORCE with a baseline: the score times what the draw earned above expectation.

    .. math:: \hat g = (f(z) - b)\, \nabla_\phi \log q_\phi(z)

    Unbiased if the baseline does not depend on the draw or on anything downstream of it; all
    baselines of this package hold to that. Any distribution with ``log_prob``; the cost need not
    be differentiable. The score is the unscaled, unmasked log q; the cost is the downstream cost.

    Args:
        baseline: None, or one of `Constant`, `MovingAverage`, `LeaveOneOut`, `NeuralBaseline`, or
            `Scaled` around one of them.
        num_samples: values of this site, on its own axis (1, or what the baseline needs).
        normalize: divide the signal ``f - b`` by ``max(1, std)``, std the running standard
            deviation of past signals (NVIL's variance normalization). **Biased**: it multiplies
            the site's gradient by that number, a step size of its own, which also shifts what
            sites that share parameters agree on. State: the two running moments.

    Raises:
        UsageError: ``num_samples`` below 1.

    Williams 1992; Paisley et al. 2012 (1206.6430); Ranganath et al. 2014 (1401.0118); Mnih & Gregor
    2014 (1402.0030).

    >>> from amortized.estimators.baselines import LeaveOneOut
    >>> ScoreFunction(LeaveOneOut(), num_samples=4)
    ScoreFunction(num_samples=4, baseline=LeaveOneOut())
    """

    label = "score_function"

    moments: Tensor

    def __init__(
        self,
        baseline: Baseline | None = None,
        *,
        num_samples: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if baseline is not None and not isinstance(baseline, Baseline):
            raise UsageError(
                f"ScoreFunction(baseline={baseline!r}): expected an amortized baseline "
                "(am.Constant, am.MovingAverage, am.LeaveOneOut, am.NeuralBaseline) or None"
            )
        if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
            raise UsageError(
                f"ScoreFunction(num_samples={num_samples!r}): expected an int, at least 1"
            )
        if type(normalize) is not bool:
            raise UsageError(f"ScoreFunction(normalize={normalize!r}): expected True or False")
        self.baseline = baseline
        self.num_samples = num_samples
        self.normalize = normalize
        if normalize:
            self.bias = _BIAS
            self.register_buffer("moments", torch.zeros(2))

    def copies(self, site: Site) -> int:
        """The samples asked for, else what the baseline needs."""
        if self.num_samples is not None:
            return self.num_samples
        return 1 if self.baseline is None else self.baseline.copies(site)

    def refusal(self, site: Site) -> str | None:
        """Deterministic sites have no score; a baseline may need more samples."""
        if site.family == "Delta":
            return "a Delta is deterministic and has no score; leave it to am.Pathwise()"
        if self.baseline is None:
            return None
        return self.baseline.refusal(site, self.copies(site))

    def draw(self, site: Site, noise: Noise) -> Draw:
        """C independent draws without a gradient."""
        count = self.copies(site)
        shape = (count,) if count > 1 else ()
        return Draw(site, noise.sample(site.law, shape, site=site.name), count)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        """``(log q - sg log q) (cost - b)``, averaged over the copies."""
        cost = cost.detach()
        score = draw.log_prob - draw.log_prob.detach()
        if self.baseline is None:
            owed = score * finite(self._signal(cost.copies))
        else:
            predicted = self.baseline(draw, cost)
            owed = score * finite(self._signal(cost.copies - predicted.detach()))
            fit = self.baseline.regression(predicted, cost.copies)
            owed = owed if fit is None else owed + fit
        return owed if draw.axis is None else owed.mean(draw.axis, keepdim=True)

    def _signal(self, signal: Tensor) -> Tensor:
        """The signal, normalized by what was seen before if that was asked for."""
        if not self.normalize:
            return signal
        mean, square = self.moments.to(signal).clone().unbind()
        return signal / (square - mean * mean).clamp(min=1.0).sqrt()

    def update(self, draw: Draw, cost: Cost) -> None:
        """Hand the costs to the baseline, and the signals to the running moments."""
        cost = cost.detach()
        if self.normalize:
            self._watch(draw, cost)
        if self.baseline is not None:
            self.baseline.observe(draw, cost)

    @torch.no_grad()
    def _watch(self, draw: Draw, cost: Cost) -> None:
        signal = cost.copies if self.baseline is None else cost.copies - self.baseline(draw, cost)
        moments = torch.stack([signal.mean(), signal.square().mean()]).to(self.moments)
        # one impossible event must not spoil every later gradient
        moments = torch.where(moments.isfinite().all(), moments, self.moments)
        self.moments.mul_(_DECAY).add_(moments, alpha=1.0 - _DECAY)

    def extra_repr(self) -> str:
        """What was given besides the baseline."""
        given = [] if self.num_samples is None else [f"num_samples={self.num_samples}"]
        return ", ".join([*given, "normalize=True"] if self.normalize else given)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        given = [self.extra_repr()] if self.extra_repr() else []
        if self.baseline is not None:
            given.append(f"baseline={self.baseline!r}")
        return f"ScoreFunction({', '.join(given)})"
