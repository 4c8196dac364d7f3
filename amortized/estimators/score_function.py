"""The score function: any distribution, any cost, at the price of variance."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from amortized.estimators.baselines import Baseline


class ScoreFunction(Estimator):
    r"""REINFORCE with a baseline: the score times what the draw earned above expectation.

    .. math:: \hat g = (f(z) - b)\, \nabla_\phi \log q_\phi(z)

    Unbiased if the baseline does not depend on the draw or on anything downstream of it; all
    baselines of this package hold to that. Any distribution with ``log_prob``; the cost need not
    be differentiable. The score is the unscaled, unmasked log q; the cost is the downstream cost.

    Args:
        baseline: None, or one of `Constant`, `MovingAverage`, `LeaveOneOut`, `NeuralBaseline`.
        num_samples: values of this site, on its own axis (1, or what the baseline needs).

    Raises:
        UsageError: ``num_samples`` below 1.

    Williams 1992; Paisley et al. 2012 (1206.6430); Ranganath et al. 2014 (1401.0118).

    >>> from amortized.estimators.baselines import LeaveOneOut
    >>> ScoreFunction(LeaveOneOut(), num_samples=4)
    ScoreFunction(num_samples=4, baseline=LeaveOneOut())
    """

    label = "score_function"

    def __init__(self, baseline: Baseline | None = None, *, num_samples: int | None = None) -> None:
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
        self.baseline = baseline
        self.num_samples = num_samples

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
            owed = score * _finite(cost.copies)
        else:
            predicted = self.baseline(draw, cost)
            owed = score * _finite(cost.copies - predicted.detach())
            fit = self.baseline.regression(predicted, cost.copies)
            owed = owed if fit is None else owed + fit
        return owed if draw.axis is None else owed.mean(draw.axis, keepdim=True)

    def update(self, draw: Draw, cost: Cost) -> None:
        """Hand the costs to the baseline."""
        if self.baseline is not None:
            self.baseline.update(cost.copies.detach())

    def extra_repr(self) -> str:
        """The number of samples, if it was given."""
        return "" if self.num_samples is None else f"num_samples={self.num_samples}"

    def __repr__(self) -> str:
        """One line: what a user would type."""
        given = [self.extra_repr()] if self.num_samples is not None else []
        if self.baseline is not None:
            given.append(f"baseline={self.baseline!r}")
        return f"ScoreFunction({', '.join(given)})"


def _finite(signal: Tensor) -> Tensor:
    """The signal, 0 where it is infinite or NaN: 0 * inf would spoil the value of the loss."""
    return torch.where(signal.isfinite(), signal, torch.zeros_like(signal))
