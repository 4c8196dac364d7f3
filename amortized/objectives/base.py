"""The protocols of objectives: functions of log-weights that know neither sites nor Pyro.

Two families. An `Objective` differentiates the sampling, so each latent site has an estimator. A
`Reweighted` objective takes samples as data: values are constants, weights are constants, and the
gradient goes through the two log-densities alone, so there is nothing to estimate at a site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from amortized.errors import UsageError

Observed = Mapping[str, str] | Callable[[dict[str, Tensor]], Mapping[str, Any]] | None
"""Which argument of the guide carries which simulated site: names by site, or a function."""


class Objective(ABC):
    """A bound as a function of log-weights; how to write one: ``docs/extend.md``.

    ``additive`` objectives are means of sums of terms, so every site is charged its downstream
    cost alone. The others are charged through the bound itself (design: one generic identity).
    """

    num_particles: int
    additive: bool = False
    #: whether KLs are taken in closed form where there is one (additive objectives)
    analytic_kl: bool = False
    #: whether latent sites have estimators; not where samples are data
    site_estimators: bool = True
    #: whether parameters of the model get gradients
    trains_model: bool = True
    #: whether particles are drawn from the guide on the data
    weighs_particles: bool = True
    #: whether the KL of a site has a weight or free bits of its own (additive objectives)
    by_site: bool = False
    #: whether the loss of a batch is a sum over its rows, so that parts of a batch add up
    sums_over_rows: bool = True
    #: whether such a weight moves with the number of batches
    scheduled: bool = False

    def beta_of(self, site: str, step: Tensor) -> float | Tensor:
        """The weight of a site's KL after so many batches."""
        return 1.0

    def free_bits_of(self, site: str) -> float:
        """The nats per data point that a site's KL has for nothing."""
        return 0.0

    def same_beta(self, sites: Collection[str]) -> bool:
        """Whether the KLs of these sites have one weight, whatever the step."""
        return True

    def unmatched(self, sites: Collection[str]) -> list[str]:
        """The names or globs of weights and free bits that match no site."""
        return []

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound per element of the shared plates, to be maximized.

        Args:
            log_weights: log p - log q, shape ``[K, *plates]`` in nats.

        Returns:
            shape ``[*plates]``, in nats.
        """

    def slopes(self, log_weights: Tensor) -> tuple[Tensor, Tensor] | None:
        """The first and second derivative of the bound in each log-weight, ``[K, *plates]`` each.

        Not needed: None has them taken from `bound`, of which K copies are then made at once.
        """
        return None


class Reweighted(Objective):
    """An objective whose samples are data: constants, whose two densities are differentiated.

    The gradient of theta is that of log p, the gradient of phi that of log q, at values drawn from
    the guide on the data (``weighs_particles``), or at values that the model simulates together
    with observations of its own (``simulated``), or both.
    """

    site_estimators = False
    #: the weight of ``-log q`` at what the model simulates; 0: nothing is simulated
    simulated: float = 0.0
    #: False: values of latents are arguments of the programs, and nothing is simulated
    draws_simulations: bool = True
    #: which argument carries which simulated site; None: the one of the same name
    observed: Observed = None

    def bound(self, log_weights: Tensor) -> Tensor:
        """The sum of what `bounds` gives, as a value: such a bound has no gradient in the weights.

        Raises:
            UsageError: always, unless a child has one.
        """
        raise UsageError(f"{self!r} is no function of the log-weights alone")

    @abstractmethod
    def bounds(self, log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
        """What is maximized, by whose it is: ``"model"``, ``"guide"``, or ``""`` for both.

        The gradient of the value is the estimate, so what is a weight has to be detached.

        Args:
            log_p: log p(x, z) of each particle, shape ``[K, *plates]``, attached to theta.
            log_q: log q(z | x), the same shape, attached to phi.

        Returns:
            each of shape ``[*plates]``, in nats.
        """
