"""The thermodynamic variational objective: a Riemann sum of the path from q to the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Reweighted
from amortized.objectives.wake_sleep import weighted

# the first point after 0 of the authors' code, 10 ** -1.09: the curve is steep near 0
_FIRST = 10.0**-1.09


@final
class TVO(Reweighted):
    r"""The thermodynamic variational objective of each data point.

    .. math::
        \log p(x) = \int_0^1 E_{\pi_b}[\log w] \, db, \qquad \pi_b \propto q^{1-b} p^b
        \qquad \text{TVO} = \sum_j (b_{j+1} - b_j) E_{\pi_{b_j}}[\log w]

    A lower bound by left sums (``side="lower"``), an upper one by right sums. Expectations under
    :math:`\pi_b` are those of the K particles with weights softmax(b log w), per element of the
    plates that hold all latents and all terms; values and weights are constants, and theta and phi
    get the covariance gradient

    .. math::
        \nabla E_{\pi_b}[\log w] = E_{\pi_b}[\nabla \log w]
            + Cov_{\pi_b}(\log w, (1 - b) \nabla \log q + b \nabla \log p).

    At b = 0 the covariance is corrected by K / (K - 1), and the direct term of log q, of mean zero,
    is dropped: with one interval the gradient is that of the ELBO with leave-one-out, draw by draw.
    For b > 0 self-normalization has a bias of order 1/K. Sites have no estimators
    (`EstimatorError`).

    Args:
        num_particles: K, at least 2.
        partition: the number of intervals, or all points 0 = b_0 < ... < b_P = 1. A number gives 0
            and points spaced evenly in log b from 10^-1.09 to 1.
        side: ``"lower"`` or ``"upper"``.

    Raises:
        UsageError: an argument out of range.

    Masrani, Le & Wood 2019 (1907.00031); Brekelmans et al. 2020 (2007.00642).

    >>> TVO(num_particles=10, partition=[0.0, 0.25, 1.0])
    TVO(num_particles=10, partition=[0.0, 0.25, 1.0])
    """

    def __init__(
        self,
        num_particles: int = 5,
        partition: int | Sequence[float] = 2,
        side: Literal["lower", "upper"] = "lower",
    ) -> None:
        if type(num_particles) is not int or num_particles < 2:
            raise UsageError(
                f"TVO(num_particles={num_particles!r}): expected an int, at least 2; a covariance "
                "of one particle is zero"
            )
        if side not in ("lower", "upper"):
            raise UsageError(f"TVO(side={side!r}): expected 'lower' or 'upper'")
        self.num_particles, self.side = num_particles, side
        self.partition = _points(partition)

    def bounds(self, log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
        """The Riemann sum, shape ``[*plates]``."""
        total: Tensor | None = None
        for left, right in pairwise(self.partition):
            point = left if self.side == "lower" else right
            part = (right - left) * _expectation(point, log_p, log_q)
            total = part if total is None else total + part
        return {} if total is None else {"": total}

    def __repr__(self) -> str:
        """One line."""
        points = [round(point, 6) for point in self.partition]
        side = "" if self.side == "lower" else f", side={self.side!r}"
        return f"TVO(num_particles={self.num_particles}, partition={points}{side})"


def _expectation(point: float, log_p: Tensor, log_q: Tensor) -> Tensor:
    """E of log w under the tempered posterior, with the covariance gradient; ``[*plates]``."""
    log_weights = (log_p - log_q).detach()
    weights = torch.full_like(log_weights, 1.0 / len(log_weights))
    if point > 0.0:
        weights = (point * log_weights).softmax(0)
    mean = weighted(weights, log_weights)
    deviation = (log_weights - mean).masked_fill(weights == 0, 0.0)
    tempered = (1.0 - point) * log_q + point * log_p
    direct = log_p - log_q
    if point == 0.0:
        count = len(log_weights)
        deviation = deviation * (count / (count - 1))
        direct = log_p - log_q.detach()
    owed = direct - direct.detach() + deviation * (tempered - tempered.detach())
    return mean + weighted(weights, owed)


def _points(partition: int | Sequence[float]) -> tuple[float, ...]:
    if type(partition) is int and partition >= 1:
        if partition == 1:
            return 0.0, 1.0
        steps = partition - 1
        return 0.0, *(_FIRST ** (1.0 - step / steps) for step in range(steps + 1))
    if isinstance(partition, Sequence) and not isinstance(partition, str):
        points = tuple(float(point) for point in partition)
        rising = all(a < b for a, b in pairwise(points))
        if len(points) >= 2 and points[0] == 0.0 and points[-1] == 1.0 and rising:
            return points
    raise UsageError(
        f"TVO(partition={partition!r}): expected the number of intervals, at least 1, or points "
        "that rise from 0.0 to 1.0"
    )
