"""Bounds of several importance weights: IWAE and Rényi."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Objective

# closer to 1 than this, 1 / (1 - alpha) loses all digits, and the limit is the ELBO
_NEARLY_ONE = 1e-6


class IWAE(Objective):
    r"""The importance weighted bound of each data point.

    .. math::
        \mathcal L_K = E\Big[\log \frac1K \sum_k w_k\Big],
        \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    One bound for each element of the plates that hold all latents and all terms of the model, so
    that data points do not share weights; the subsampling factor of these plates stands outside the
    logarithm. With a global latent it is one bound of the whole, without minibatches.

    Tighter than the ELBO, equal to it for ``num_particles=1``, and increasing in it. The signal of
    the guide's pathwise gradient falls with it (Rainforth et al. 2018, 1802.04537).

    Args:
        num_particles: K, independent runs of the guide.

    Raises:
        UsageError: ``num_particles`` below 1.

    Burda et al. 2015 (1509.00519).

    >>> IWAE(num_particles=5)
    IWAE(num_particles=5)
    """

    additive = False
    analytic_kl = False

    def __init__(self, num_particles: int = 5) -> None:
        if type(num_particles) is not int or num_particles < 1:
            raise UsageError(f"IWAE(num_particles={num_particles!r}): expected an int, at least 1")
        self.num_particles = num_particles

    def bound(self, log_weights: Tensor) -> Tensor:
        """The log of the mean weight, shape ``[*plates]`` from ``[K, *plates]``."""
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def slopes(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The normalized weights w, and w - w^2."""
        return _slopes(log_weights, 1.0)

    def __repr__(self) -> str:
        """One line."""
        return f"IWAE(num_particles={self.num_particles})"


class Renyi(Objective):
    r"""The variational Rényi bound of each data point.

    .. math::
        \mathcal L_{\alpha, K} = \frac{1}{1 - \alpha}
            E\Big[\log \frac1K \sum_k w_k^{1 - \alpha}\Big]

    ``alpha = 0`` is IWAE, ``alpha -> 1`` and ``K = 1`` are the ELBO. Decreasing in alpha; for
    ``alpha < 0`` it can exceed the evidence, so it is no bound there. Per data point as in `IWAE`.

    Args:
        alpha: the order.
        num_particles: K, independent runs of the guide.

    Raises:
        UsageError: ``alpha`` is no finite number, ``num_particles`` below 1.

    Li & Turner 2016 (1602.02311).

    >>> Renyi(0.5, num_particles=4)
    Renyi(alpha=0.5, num_particles=4)
    """

    additive = False
    analytic_kl = False

    def __init__(self, alpha: float = 0.5, num_particles: int = 5) -> None:
        if type(num_particles) is not int or num_particles < 1:
            raise UsageError(f"Renyi(num_particles={num_particles!r}): expected an int, at least 1")
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise UsageError(f"Renyi(alpha={alpha!r}): expected a finite number")
        self.alpha = float(alpha)
        self.num_particles = num_particles

    def bound(self, log_weights: Tensor) -> Tensor:
        """Shape ``[*plates]`` from ``[K, *plates]``."""
        order = 1.0 - self.alpha
        if abs(order) < _NEARLY_ONE:
            return log_weights.mean(0)
        powers = (order * log_weights).logsumexp(0) - math.log(len(log_weights))
        return powers / order

    def slopes(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The normalized powers of the weights v, and (1 - alpha)(v - v^2)."""
        order = 1.0 - self.alpha
        return _slopes(log_weights, 0.0 if abs(order) < _NEARLY_ONE else order)

    def __repr__(self) -> str:
        """One line."""
        return f"Renyi(alpha={self.alpha:g}, num_particles={self.num_particles})"


def _slopes(log_weights: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """Derivatives of ``1 / order log sum w^order``; of the mean at order 0."""
    if order == 0.0:
        first = torch.full_like(log_weights, 1.0 / len(log_weights))
        return first, torch.zeros_like(first)
    powers = (order * log_weights).softmax(0)
    return powers, order * (powers - powers**2)
