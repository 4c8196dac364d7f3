"""How the signal-to-noise ratio of gradients goes with the number of particles.

A one-dimensional Gaussian model, whose independent copies on a plate have parameters of their own,
so that one evaluation of the loss gives as many draws as there are copies; the limit of many
particles is known from integrals over a fine grid. And the small variational autoencoder of the
examples on scikit-learn's digits, halfway through its training, by whole gradients of the loss: as
it is, and with all scales of its guide multiplied by a number. The theory asks for weights with
finite moments. The decoder's likelihood does not fall to zero far out, so that the weight's tail is
that of N(0, 1) / q, whose square has no mean where a scale of the guide is below sqrt(1/2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

import amortized as am
from amortized.compare.candidates import Pair, as_candidate
from amortized.compare.draws import Sampler
from amortized.compare.groups import trained
from tests.benchmarks.objectives.moments import Moments, Ratio
from tests.benchmarks.programs import example

PLAIN, DREG, WAKE, MODEL = "IWAE, pathwise", "IWAE, DReG", "wake-phi", "theta (IWAE)"
LOSSES: Mapping[str, Callable[[int], am.VariationalLoss]] = {
    PLAIN: lambda k: am.VariationalLoss(am.IWAE(k)),
    DREG: lambda k: am.VariationalLoss(am.IWAE(k), am.DoublyReparameterized()),
    WAKE: lambda k: am.VariationalLoss(am.ReweightedWakeSleep(k)),
}
EXPECTED: Mapping[str, float] = {PLAIN: -0.5, DREG: 0.5, WAKE: 0.5, MODEL: 0.5}
"""Slopes in the limit of many particles: Rainforth et al. 2018; Tucker et al. 2018."""
AT_ONCE = 2**24
"""Bounds the copies of the Gaussian model in one evaluation, which may hold K^2 numbers each."""
WIDER = 2.0
"""The factor of the guide's scales in the second measurement of the network."""


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on."""

    particles: tuple[int, ...] = (1, 4, 16, 64, 256)
    draws: int = 200_000
    """Of the Gaussian model's plain gradient; the others, with more signal, get a twentieth."""
    network_draws: int = 4000
    """Of the network's; the others get a quarter."""
    images: int = 16
    steps: int = 500
    """Of training before the network's gradients are measured; see `half_trained`."""
    seed: int = 0


@dataclass(frozen=True)
class Gaussian:
    """z ~ N(theta, 1), x ~ N(z, 1) and q(z | x) = N(loc, scale): all that is needed, as numbers.

    The guide is wider than the posterior, N((x + theta) / 2, 1/2), so that the fourth power of a
    weight has a mean: the variance of the doubly reparameterized gradient needs it.
    """

    x: float = 1.5
    theta: float = 0.0
    loc: float = 0.25
    scale: float = 0.9

    def limits(self) -> dict[str, float]:
        """The ratio over K to the power of its slope, in the limit of many particles.

        With v = w / p(x) of one draw and h its score or slope, the leading terms of mean and
        variance in 1/K: plain, E[v v'] / K and Var[v'] / K; doubly reparameterized, with
        m = E[v^2 h], m / K and Var[v^2 h - 2 m v] / K^3; wake-phi and theta, E[v h] and
        Var[v (h - E[v h])] / K.
        """
        noise = np.linspace(-14.0, 14.0, 400_001)
        mass = np.exp(-0.5 * noise**2)
        mass /= mass.sum()

        def ratio(values: np.ndarray, mean: float) -> float:
            variance = (mass * values**2).sum() - (mass * values).sum() ** 2
            return float(abs(mean) / math.sqrt(variance))

        z = self.loc + self.scale * noise
        log_v = -0.5 * (z - self.theta) ** 2 - 0.5 * (self.x - z) ** 2 + 0.5 * noise**2
        v = np.exp(log_v)
        v /= (mass * v).sum()
        joint, score, prior = self.theta + self.x - 2 * z, noise / self.scale, z - self.theta
        sticking = joint + score  # d log w / dz with the guide's parameters frozen
        wake, model = (mass * v * score).sum(), (mass * v * prior).sum()
        doubly = (mass * v**2 * sticking).sum()
        return {
            PLAIN: ratio(v * joint, (mass * v**2 * joint).sum()),
            DREG: ratio(v**2 * sticking - 2 * doubly * v, doubly),
            WAKE: ratio(v * (score - wake), wake),
            MODEL: ratio(v * (prior - model), model),
        }


class GaussianModel(PyroModule):
    """Every copy has its own theta."""

    def __init__(self, about: Gaussian, copies: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((copies,), about.theta))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class GaussianGuide(PyroModule):
    """Every copy has its own location; the scale is given."""

    def __init__(self, about: Gaussian, copies: int) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.full((copies,), about.loc)), about.scale

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale))


Found = dict[str, list[tuple[int, Ratio]]]


def gaussian(settings: Settings, about: Gaussian) -> Found:
    """Ratios of the guide's location by estimate and K, and theta's."""
    found: Found = {}
    for name, loss in LOSSES.items():
        draws = settings.draws if name == PLAIN else settings.draws // 20
        for k in settings.particles:
            if name == WAKE and k == 1:  # the mean is zero
                continue
            began = time.process_time()
            location, theta = copies(about, loss(k), draws, settings.seed + k)
            found.setdefault(name, []).append((k, location))
            if name == PLAIN:
                found.setdefault(MODEL, []).append((k, theta))
            say("Gaussian", name, k, location, time.process_time() - began)
    return found


def copies(about: Gaussian, loss: am.VariationalLoss, draws: int, seed: int) -> tuple[Ratio, Ratio]:
    """Of the location and of theta, in float64."""
    size = min(2000, draws, AT_ONCE // loss.objective.num_particles**2)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        x = torch.full((size,), about.x)
        model, guide = GaussianModel(about, size), GaussianGuide(about, size)
        moments = Moments(draws, 1), Moments(draws, 1)
        loss.warm_up(model, guide, x)
        for first in range(0, draws, size):
            value = loss.estimate(model, guide, (x,), {}).loss
            slopes = torch.autograd.grad(value, [guide.loc, model.theta])
            for several, slope in zip(moments, slopes, strict=True):
                several.add(slope[: draws - first, None])
    finally:
        torch.set_default_dtype(kept)
    return moments[0].ratio(), moments[1].ratio()


class Widened(PyroModule):
    """The guide of the example with its scales multiplied."""

    def __init__(self, guide: Any, factor: float) -> None:
        super().__init__()
        self.encoder, self.factor = guide.encoder, factor

    def forward(self, x):
        loc, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.factor * softplus(scale)).to_event(1))


def half_trained(settings: Settings) -> tuple[am.Program, Tensor]:
    """The small program of the examples after half the steps of a hundred epochs, by the ELBO."""
    torch.manual_seed(settings.seed)
    program = example("vae").program(latent_dim=8, hidden=64)
    svi = am.SVI(program.model, program.guide, lr=1e-3, compile="graph")
    options: dict[str, Any] = {"batch_size": 128, "seed": settings.seed, "progress": False}
    svi.fit(program.train, max_steps=settings.steps, **options)
    return program, program.train[: settings.images]


def network(settings: Settings, factor: float = 1.0) -> tuple[Found, dict[str, float]]:
    """Ratios of the guide's parameters together and of the model's; and about the weights."""
    program, x = half_trained(settings)
    pair = Pair(program.model, Widened(program.guide, factor), x)
    known = trained(pair)
    columns = {group.name: group.columns for group in known.groups}
    leaves = list(known.leaves.values())
    found: Found = {}
    for name, loss in LOSSES.items():
        draws = settings.network_draws // (1 if name == PLAIN else 4)
        for k in settings.particles:
            if name == WAKE and k == 1:
                continue
            began = time.process_time()
            torch.manual_seed(settings.seed + k)
            candidate = as_candidate(name, loss(k))
            candidate.prepare(pair, 0)
            sides: dict[str, Ratio] = {}
            with candidate.quiet(), pyro.validation_enabled(False):
                sampler = Sampler(lambda one=candidate: one.gradient(pair, leaves))
                sides = by_side(sampler.chunks(draws), draws, columns)
            found.setdefault(name, []).append((k, sides["guide"]))
            if name == PLAIN:
                found.setdefault(MODEL, []).append((k, sides["model"]))
            spent = time.process_time() - began
            say(f"network x {factor:g}", name, k, sides["guide"], spent, sampler.reason)
    return found, about_weights(settings, pair, factor)


def about_weights(settings: Settings, pair: Pair, factor: float) -> dict[str, float]:
    """The effective share of the draws, and that of the guide's scales below sqrt(1/2)."""
    size = max(settings.particles)
    svi = am.SVI(pair.model, pair.guide, compile="off")
    effective = svi.evaluate(pair.batch, num_particles=size, seed=settings.seed)["ess"]
    with torch.no_grad():
        scale = factor * softplus(pair.guide.encoder(pair.batch).chunk(2, -1)[1])
    return {"ess": effective / size, "narrow": float((scale < math.sqrt(0.5)).float().mean())}


def by_side(
    chunks: Iterator[Tensor], draws: int, columns: Mapping[str, Tensor]
) -> dict[str, Ratio]:
    """The ratio of the guide's parameters and that of the model's."""
    moments = {side: Moments(draws, len(columns[side])) for side in ("guide", "model")}
    for chunk in chunks:
        for side, several in moments.items():
            several.add(chunk[:, columns[side]])
    return {side: several.ratio() for side, several in moments.items()}


def say(work: str, name: str, k: int, ratio: Ratio, seconds: float, reason: str = "") -> None:
    low, high = ratio.interval
    text = f"{work}, {name}, K = {k}: {ratio.value:.4g} [{low:.4g}, {high:.4g}], {seconds:.0f} s"
    print(f"{text} {reason}".rstrip(), flush=True)
