"""Evaluation by several processes is in `test_distributed`; by one in `test_evaluate`."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.fit.evaluating import evaluated
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.harness import pair

OPTIONS = {"num_particles": 5, "batch_size": None, "max_rows": 64}


def test_it_is_what_svi_gives() -> None:
    svi = pair()
    svi.step(tiny.data(8))
    found = evaluated(svi._stepper, DataPlate(), tiny.data(20), seed=3, **OPTIONS)
    assert found == svi.evaluate(tiny.data(20), 5, seed=3, max_rows=64)


@pytest.mark.parametrize("wrong", [{"num_particles": 0}, {"max_rows": 0}, {"batch_size": 0}])
def test_bad_counts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(am.UsageError, match="at least 1"):
        evaluated(pair()._stepper, DataPlate(), tiny.data(8), seed=0, **{**OPTIONS, **wrong})


@pytest.mark.parametrize("size", [4, 9, 36])
def test_rows_drawn_from_a_minibatch_are_scaled_in_held_out_numbers_too(size: int) -> None:
    """A global latent counts once in training, validation and evaluation."""
    x = torch.full((36,), 0.5)

    def model(x: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])

    def guide(x: torch.Tensor) -> None:
        pyro.sample("w", dist.Delta(pyro.param("loc", torch.tensor(0.3))))

    svi = am.SVI(model, guide, lr=1e-9, compile="off")
    history = svi.fit(x, x, batch_size=size, max_epochs=1, progress=False, check=False)
    exact = dist.Normal(0.3, 1.0).log_prob(x[0]) + dist.Normal(0.0, 1.0).log_prob(
        torch.tensor(0.3)
    ) / len(x)
    found = [history["train_elbo"][0], history["val_elbo"][0]]
    found.append(svi.evaluate(x, batch_size=size, seed=0)["elbo"])
    assert found == pytest.approx([exact.item()] * 3, rel=1e-5)
