"""The protocol of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Objective(ABC):
    """A bound as a function of log-weights.

    ``additive`` objectives are means of sums of terms, so every site is charged its downstream
    cost alone. The others are charged through the bound itself (design: one generic identity).
    """

    num_particles: int
    additive: bool
    analytic_kl: bool

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound per element of the shared plates.

        Args:
            log_weights: log p - log q, shape ``[K, *plates]`` in nats.

        Returns:
            shape ``[*plates]``, in nats.
        """
