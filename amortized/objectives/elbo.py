"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Objective


class ELBO(Objective):
    r"""The evidence lower bound, in either of its two forms.

    .. math::
        E_q[\log p(x, z) - \log q(z \mid x)] = E_q[\log p(x \mid z)] - KL(q(z \mid x) \| p(z))

    ``kl="sample"`` is the left side. ``kl="analytic"`` is the right side for every site whose KL
    is known in closed form and whose prior does not depend on anything downstream of the site in
    the guide; the other sites keep the left side, and `VariationalLoss.describe` says which.

    Args:
        num_particles: independent runs of the guide, averaged.
        kl: ``"sample"`` or ``"analytic"``.

    Raises:
        UsageError: ``num_particles`` below 1, or another ``kl``.

    Jordan et al. 1999; Kingma & Welling 2013 (1312.6114).

    >>> ELBO(num_particles=4, kl="analytic")
    ELBO(num_particles=4, kl='analytic')
    """

    additive = True

    def __init__(
        self, num_particles: int = 1, kl: Literal["sample", "analytic"] = "sample"
    ) -> None:
        if type(num_particles) is not int or num_particles < 1:
            raise UsageError(f"ELBO(num_particles={num_particles!r}): expected an int, at least 1")
        if kl not in ("sample", "analytic"):
            raise UsageError(f"ELBO(kl={kl!r}): expected 'sample' or 'analytic'")
        self.num_particles = num_particles
        self.kl = kl
        self.analytic_kl = kl == "analytic"

    def bound(self, log_weights: Tensor) -> Tensor:
        """The mean over particles."""
        return log_weights.mean(0)

    def __repr__(self) -> str:
        """One line."""
        return f"ELBO(num_particles={self.num_particles}, kl={self.kl!r})"
