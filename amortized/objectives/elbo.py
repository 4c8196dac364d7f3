"""The evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Objective

Beta = float | Callable[[Tensor], Tensor]


class ELBO(Objective):
    r"""The evidence lower bound, in either of its two forms.

    .. math::
        E_q[\log p(x, z) - \log q(z \mid x)] = E_q[\log p(x \mid z)] - KL(q(z \mid x) \| p(z))

    ``kl="sample"`` is the left side. ``kl="analytic"`` is the right side for every site whose KL
    is known in closed form and whose prior does not depend on anything downstream of the site in
    the guide; the other sites keep the left side, and `VariationalLoss.describe` says which.

    With ``beta`` or ``free_bits`` it is no longer the bound that is maximized, but

    .. math:: E_q[\log p(x \mid z)] - \sum_s \beta_s \max(\lambda_s, KL_s)

    where :math:`KL_s = E_q[\log q(z_s \mid \cdot) - \log p(z_s \mid \cdot)]` is averaged over the
    data points of the batch. A site below its :math:`\lambda_s` has no pull towards the prior. The
    maximum of an average over a batch is a biased estimate of that over all data. Both work with
    every estimator; reports (``elbo``, ``kl``) stay those of the bound.

    Args:
        num_particles: independent runs of the guide, averaged.
        kl: ``"sample"`` or ``"analytic"``.
        beta: the weight of each site's KL: a number, or a function from the number of batches
            learned from (a scalar tensor; optimizer steps, times ``accumulate_grad_batches``) to
            one; or a mapping of those by site name or glob, first match first.
        free_bits: nats per data point that a site's KL may have for nothing; or a mapping.

    Raises:
        UsageError: ``num_particles`` below 1, another ``kl``, a negative weight.

    Jordan et al. 1999; Kingma & Welling 2013 (1312.6114); beta: Higgins et al. 2017; free bits:
    Kingma et al. 2016 (1606.04934).

    >>> ELBO(num_particles=4, kl="analytic")
    ELBO(num_particles=4, kl='analytic')
    >>> ELBO(beta={"z": 4.0}, free_bits=0.25)
    ELBO(num_particles=1, kl='sample', beta={'z': 4.0}, free_bits={'*': 0.25})
    """

    additive = True

    def __init__(
        self,
        num_particles: int = 1,
        kl: Literal["sample", "analytic"] = "sample",
        *,
        beta: Beta | Mapping[str, Beta] = 1.0,
        free_bits: float | Mapping[str, float] = 0.0,
    ) -> None:
        if type(num_particles) is not int or num_particles < 1:
            raise UsageError(f"ELBO(num_particles={num_particles!r}): expected an int, at least 1")
        if kl not in ("sample", "analytic"):
            raise UsageError(f"ELBO(kl={kl!r}): expected 'sample' or 'analytic'")
        self.num_particles = num_particles
        self.kl = kl
        self.analytic_kl = kl == "analytic"
        self.beta = _by_site("beta", beta, 1.0)
        self.free_bits: dict[str, float] = _by_site("free_bits", free_bits, 0.0)
        self.by_site = bool(self.beta or self.free_bits)
        self.sums_over_rows = not any(self.free_bits.values())
        self.scheduled = any(callable(weight) for weight in self.beta.values())

    def beta_of(self, site: str, step: Tensor) -> float | Tensor:
        """The weight of a site's KL after so many batches."""
        weight = _first(self.beta, site, 1.0)
        return weight if isinstance(weight, int | float) else weight(step)

    def free_bits_of(self, site: str) -> float:
        """The nats per data point that a site has for nothing."""
        return _first(self.free_bits, site, 0.0)

    def same_beta(self, sites: Collection[str]) -> bool:
        """Whether the KLs of these sites have one weight: a number, or the same function."""
        first, *others = [_first(self.beta, site, 1.0) for site in sites]
        return all(other == first for other in others)

    def unmatched(self, sites: Collection[str]) -> list[str]:
        """The keys of ``beta`` and ``free_bits`` that match no site."""
        keys = [*self.beta, *self.free_bits]
        return [key for key in keys if not any(fnmatchcase(site, key) for site in sites)]

    def bound(self, log_weights: Tensor) -> Tensor:
        """The mean over particles."""
        return log_weights.mean(0)

    def __repr__(self) -> str:
        """One line."""
        given = f", beta={self.beta!r}" if self.beta else ""
        given += f", free_bits={self.free_bits!r}" if self.free_bits else ""
        return f"ELBO(num_particles={self.num_particles}, kl={self.kl!r}{given})"


def _by_site(name: str, given: Any, default: float) -> dict[str, Any]:
    """A mapping of checked weights; empty where the default is meant."""
    found = dict(given) if isinstance(given, Mapping) else {"*": given}
    for site, weight in found.items():
        number = type(weight) in (int, float) and math.isfinite(weight) and weight >= 0
        if not isinstance(site, str) or not (number or (name == "beta" and callable(weight))):
            what = "a number, at least 0" + (", or a function of the step" * (name == "beta"))
            raise UsageError(f"ELBO({name}={given!r}): expected {what}, or a mapping of it by site")
    return {} if found == {"*": default} else found


def _first(by_pattern: Mapping[str, Any], site: str, default: float) -> Any:
    """The first entry whose pattern matches, an exact name before all globs."""
    if site in by_pattern:
        return by_pattern[site]
    return next((v for p, v in by_pattern.items() if fnmatchcase(site, p)), default)
