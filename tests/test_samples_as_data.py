"""Which runs an objective asks for, and what its estimate reports."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am

pytestmark = pytest.mark.float64


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.1))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


DATA = 20 * [0.5, -1.0, 2.0]


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        (am.ReweightedWakeSleep(3), ["train_elbo", "kl/z", "loss_model", "loss_guide"]),
        (am.ReweightedWakeSleep(3, phi="sleep"), ["train_elbo", "loss_model", "loss_guide"]),
        (am.TVO(3), ["train_elbo", "kl", "reconstruction"]),
        (am.ForwardKL(), ["train_loss", "loss_guide", "val_loss"]),
    ],
    ids=repr,
)
def test_history_has_what_there_is(objective: am.Objective, keys: list[str]) -> None:
    svi = am.SVI(model, guide, am.VariationalLoss(objective), lr=0.05)
    data = torch.tensor(DATA)
    history = svi.fit(data, data, max_epochs=2, batch_size=20, seed=0, progress=False)
    assert set(keys) <= set(history)
    assert ("train_elbo" in history) != isinstance(objective, am.ForwardKL)
    assert all(len(values) == 2 for values in history.values())


@pytest.mark.parametrize(
    "objective", [am.ReweightedWakeSleep(10), am.ReweightedWakeSleep(phi="sleep"), am.ForwardKL()]
)
def test_the_guide_finds_the_posterior(objective: am.Objective) -> None:
    """z | x ~ N(0.8 x, 0.2): conjugate. The objectives see other x, and agree on q."""
    pyro.set_rng_seed(0)
    svi = am.SVI(model, guide, am.VariationalLoss(objective), lr=0.02)
    svi.fit(torch.tensor(DATA), max_epochs=250, batch_size=60, seed=0, progress=False)
    found = svi.params()
    assert found["slope"].item() == pytest.approx(0.8, abs=0.04)
    assert found["scale"].item() == pytest.approx(0.2**0.5, abs=0.04)


def test_the_harness_evaluates_the_pair_on_data_all_the_same() -> None:
    svi = am.SVI(model, guide, am.VariationalLoss(am.ForwardKL()), lr=0.02)
    svi.fit(torch.tensor(DATA), max_epochs=1, seed=0, progress=False)
    found = svi.evaluate(torch.tensor(DATA), num_particles=50, seed=0)
    assert found["elbo"] <= found["log_evidence"]


def test_what_describe_says_of_sites() -> None:
    loss = am.VariationalLoss(am.ReweightedWakeSleep(3))
    text = str(loss.describe(model, guide, (torch.tensor(DATA),)))
    assert "none: samples are data" in text
    assert "for each element of 'data'" in text


def test_vectorize_false_serves_one_particle_only() -> None:
    am.VariationalLoss(am.ForwardKL(), vectorize=False)
    am.VariationalLoss(am.ReweightedWakeSleep(1, phi="sleep"), vectorize=False)
    with pytest.raises(am.UsageError, match="needs all particles at once"):
        am.VariationalLoss(am.TVO(2), vectorize=False)


def test_warm_up_of_the_kl_is_refused_by_fit() -> None:
    svi = am.SVI(model, guide, am.VariationalLoss(am.ReweightedWakeSleep(3)))
    with pytest.raises(am.UsageError, match="no KL that could count less"):
        svi.fit(torch.tensor(DATA), max_epochs=2, n_epochs_kl_warmup=2, progress=False)
