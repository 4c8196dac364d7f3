from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.compare.training.checks import HeldOut
from amortized.fit.rng import seeded
from tests.compare.training.programs import bits, level


def held_out(svi: am.SVI, data: Any, size: int, **changes: Any) -> HeldOut:
    asked: dict[str, Any] = {"particles": 8, "batch_size": 5, "device": None, "seed": 3}
    return HeldOut(svi, data, plate=am.DataPlate(None, size), **{**asked, **changes})


def test_numbers_per_datum_are_those_of_evaluate():
    with seeded(0):
        p = bits()
    svi = am.SVI(p.model, p.guide, am.VariationalLoss(am.IWAE(4), "leave_one_out"))
    found = held_out(svi, p.val, len(p.train)).numbers()
    assert found == svi.evaluate(p.val, num_particles=8, seed=3)
    assert {"elbo", "log_evidence", "per_datum"} <= found.keys()


def test_a_global_latent_is_charged_once_over_the_training_data():
    p = level()
    svi = am.SVI(p.model, p.guide, am.VariationalLoss())
    svi.step(p.train)
    found = held_out(svi, p.train[:6], 12, particles=4000).numbers()
    params = {name: float(value) for name, value in svi.params().items()}
    loc, shift = params["loc"], params["shift"]
    # E log q - E log p(z), over the 12 training data
    spread = torch.tensor(0.1)
    kl = float(-spread.log() + (spread**2 + loc**2 - 1) / 2)
    away = p.train[:6] - loc - shift
    expected = -0.5 * float((away**2).mean() + spread**2 + torch.tensor(2 * torch.pi).log())
    assert found["elbo"] == pytest.approx(expected - kl / 12, abs=0.02)
    assert found["per_datum"] is True and "log_evidence" not in found


def test_a_relaxed_loss_does_not_reach_the_checks():
    """A global bit: the loss would have the bound at relaxed values."""

    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(3.0 * b * (1.0 - b), 0.1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.0))))

    x = torch.zeros(10)
    svi = am.SVI(model, guide, am.VariationalLoss(estimators="relaxed"))
    svi.step(x)
    exact = held_out(svi, x, 10, particles=50).numbers()["elbo"]
    relaxed = svi.evaluate(x, num_particles=50, seed=3)["elbo"]
    assert exact == pytest.approx(float(dist.Normal(0.0, 0.1).log_prob(torch.tensor(0.0))), abs=0.1)
    assert relaxed < exact - 1.0


def test_networks_are_in_eval_mode_and_come_back():
    dropout = nn.Dropout(0.5)
    modes: list[bool] = []

    def model(x: Tensor) -> None:
        modes.append(dropout.training)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(dropout(x) + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    svi = am.SVI(model, guide)
    svi.step(torch.ones(4))
    modes.clear()
    checks = held_out(svi, torch.ones(4), 4)
    assert checks.numbers() == checks.numbers(), "the same noise at each check"
    assert modes and not any(modes)
    assert dropout.training


def test_a_program_that_takes_one_particle_only_is_checked_one_by_one():
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        weights = z.reshape(2, 1)  # has no room for particles
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((x @ weights).squeeze(-1), 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    x = torch.ones(6, 2)
    svi = am.SVI(model, guide)
    svi.step(x)
    found = held_out(svi, x, 6, particles=3).numbers()
    assert -5.0 < found["elbo"] < 0.0
