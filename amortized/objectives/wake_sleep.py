"""Wake-sleep: the guide learns from weighted particles, or from what the model simulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, final

from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Observed, Reweighted


@final
class ReweightedWakeSleep(Reweighted):
    r"""Reweighted wake-sleep: losses of their own for the model and for the guide.

    .. math::
        \text{wake-}\theta:\; \log \tfrac1K \sum_k w_k, \qquad
        \text{wake-}\phi:\; \sum_k \bar w_k \log q_\phi(z_k \mid x), \qquad
        \text{sleep-}\phi:\; \log q_\phi(z \mid x),\; (z, x) \sim p_\theta

    All are maximized; :math:`\bar w` are the weights :math:`w_k = p(x, z_k) / q(z_k \mid x)` of one
    data point's particles, normalized, and constants, like the samples. So discrete and continuous
    latents are alike, and sites have no estimators (`EstimatorError`). theta's gradient is that of
    `IWAE`. phi's wake gradient aims at -KL(p(z | x) || q), with a bias of order 1/K; with one
    particle its mean is zero. The sleep gradient is unbiased, on data that the model dreams.

    One weight for each element of the plates that hold all latents and all terms of the model. A
    parameter that model and guide share gets both gradients, added.

    Reported (nats per data point): ``loss_model``, minus the wake-theta bound; ``loss_guide``, what
    phi minimizes; ``loss``, their sum. The guide's part is no bound of anything: watch
    ``val_elbo``.

    Args:
        num_particles: K, draws from the guide for each data point; at least 2 unless
            ``phi="sleep"``.
        phi: ``"wake"``, ``"sleep"``, or the weight of wake in a mix of both, between 0 and 1.
        observed: which argument of the guide carries which simulated site, for sleep; by default
            the one of the same name. Or a function from the simulated sites to arguments.

    Raises:
        UsageError: an argument out of range.

    Bornschein & Bengio 2014 (1406.2751); Le et al. 2019 (1805.10469).

    >>> ReweightedWakeSleep(num_particles=10)
    ReweightedWakeSleep(num_particles=10, phi='wake')
    >>> ReweightedWakeSleep(phi=0.5)
    ReweightedWakeSleep(num_particles=5, phi=0.5)
    """

    def __init__(
        self,
        num_particles: int = 5,
        phi: Literal["wake", "sleep"] | float = "wake",
        observed: Observed = None,
    ) -> None:
        self.phi = phi
        self._wake = _share_of_wake(phi)
        least = 2 if self._wake else 1
        if type(num_particles) is not int or num_particles < least:
            why = "; one particle has weight 1, and says nothing of phi" if least == 2 else ""
            raise UsageError(
                f"ReweightedWakeSleep(num_particles={num_particles!r}): expected an int, at least "
                f"{least}{why}"
            )
        self.num_particles = num_particles
        self.simulated = 1.0 - self._wake
        self.observed = checked_names("ReweightedWakeSleep", observed)

    def bounds(self, log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
        """The model's bound, and the guide's wake part, shape ``[*plates]`` each."""
        log_weights = log_p - log_q.detach()
        model = log_weights.logsumexp(0) - math.log(len(log_weights))
        if not self._wake:
            return {"model": model}
        normalized = log_weights.detach().softmax(0)
        return {"model": model, "guide": self._wake * weighted(normalized, log_q)}

    def __repr__(self) -> str:
        """One line."""
        given = "" if self.observed is None else f", observed={self.observed!r}"
        return f"ReweightedWakeSleep(num_particles={self.num_particles}, phi={self.phi!r}{given})"


@final
class ForwardKL(Reweighted):
    r"""Inference compilation: the model simulates, and the guide learns to invert it.

    .. math:: \min_\phi E_{p(x, z)}[-\log q_\phi(z \mid x)]
        = E_{p(x)}[KL(p(z \mid x) \| q_\phi(z \mid x))] + H(z \mid x)

    The model draws latents *and* observations, the guide sees these observations as its arguments
    and is charged minus log q of these latents: one simulation for each data point of a batch,
    whose values count for their shapes alone, except behind masks of observations: there the guide
    is given what the batch has. Unbiased; discrete and continuous latents alike, and sites have no
    estimators (`EstimatorError`). The guide samples every latent of the model. theta gets no
    gradient. At the posterior the loss is the conditional entropy H(z | x), not zero.

    ``simulate=False`` takes a stored set of simulations instead: the batch holds observations and,
    under the names of the sites, latents, and both programs accept these arguments.

    Reported: ``loss``, in nats per data point; no ELBO, which asks for data.

    Args:
        observed: which argument of the guide carries which simulated site: a name by site, by
            default the argument of the same name. Or a function from the simulated sites, a dict of
            tensors, to arguments by name.
        simulate: False: latents are in the batch.

    Raises:
        UsageError: an argument of another kind.

    Le, Baydin & Wood 2017 (1610.09900).

    >>> ForwardKL(observed={"x": "images"})
    ForwardKL(observed={'x': 'images'})
    """

    weighs_particles = False
    trains_model = False
    simulated = 1.0

    def __init__(self, observed: Observed = None, *, simulate: bool = True) -> None:
        if type(simulate) is not bool:
            raise UsageError(f"ForwardKL(simulate={simulate!r}): expected True or False")
        if not simulate and observed is not None:
            raise UsageError(
                "ForwardKL(observed=..., simulate=False): a stored set has its observations in "
                "place already; leave out observed="
            )
        self.num_particles = 1
        self.observed = checked_names("ForwardKL", observed)
        self.draws_simulations = simulate

    def bounds(self, log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
        """Nothing: no particles are weighed."""
        return {}

    def __repr__(self) -> str:
        """One line."""
        given = [] if self.observed is None else [f"observed={self.observed!r}"]
        given += [] if self.draws_simulations else ["simulate=False"]
        return f"ForwardKL({', '.join(given)})"


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """The weighted sum over particles; a weight of zero silences a value that is infinite."""
    return (weights * values.masked_fill(weights == 0, 0.0)).sum(0)


def checked_names(family: str, observed: Observed) -> Observed:
    """The mapping, if it is one of names to names, or a function.

    Raises:
        UsageError: it is neither.
    """
    if observed is None or (isinstance(observed, Callable) and not isinstance(observed, Mapping)):
        return observed
    if isinstance(observed, Mapping) and all(
        isinstance(part, str) for pair in observed.items() for part in pair
    ):
        return dict(observed)
    raise UsageError(
        f"{family}(observed={observed!r}): expected the guide's argument by the name of the site, "
        "such as {'x': 'images'}, or a function from simulated sites to arguments"
    )


def _share_of_wake(phi: Literal["wake", "sleep"] | float) -> float:
    if phi in ("wake", "sleep"):
        return 1.0 if phi == "wake" else 0.0
    if type(phi) in (int, float) and 0.0 <= phi <= 1.0:
        return float(phi)
    raise UsageError(
        f"ReweightedWakeSleep(phi={phi!r}): expected 'wake', 'sleep', or the weight of wake in a "
        "mix of both, between 0 and 1"
    )
