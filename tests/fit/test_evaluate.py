import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from amortized.errors import UsageError
from amortized.fit.data import as_batches
from amortized.fit.evaluate import Evaluation
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.rng import seeded
from amortized.fit.step import Stepper
from amortized.loss import VariationalLoss
from amortized.objectives.elbo import ELBO
from amortized.programs.records import DataPlate
from tests.fit import tiny

pytestmark = pytest.mark.float64


def run(model, guide, x, num_particles=10, max_rows=8192, loss=None, batch_size=16):
    with_parameter = lambda x: (pyro.param("unused", torch.zeros(())), guide(x))  # noqa: E731
    step = Stepper(
        model, with_parameter, loss or VariationalLoss(), GroupedOptimizer(torch.optim.Adam, 0.1)
    )
    batches = as_batches(x, batch_size)
    data = DataPlate(None, batches.size)
    with seeded(0):
        options = {"num_particles": num_particles, "max_rows": max_rows}
        return Evaluation(step, data, **options).run(batches)


@pytest.mark.parametrize("max_rows", [8192, 64, 1], ids=["at once", "chunks", "one by one"])
def test_the_posterior_gives_the_exact_evidence(max_rows: int) -> None:
    x = tiny.data(40)
    found = run(tiny.local_model, tiny.exact_guide, x, 3, max_rows)
    exact = tiny.log_evidence(x)
    assert found["log_evidence"] == pytest.approx(exact, abs=1e-9)
    assert found["elbo"] == pytest.approx(exact, abs=1e-9)
    assert found["elbo"] == pytest.approx(found["reconstruction"] - found["kl"])
    assert found["num_particles"] == 3 and found["per_datum"]


def test_the_prior_as_guide_needs_particles() -> None:
    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = tiny.data(40)
    few, many = (run(tiny.local_model, prior, x, k, 20_000) for k in (1, 3000))
    exact = tiny.log_evidence(x)
    # E_q log p(x | z) is known: the guide is the prior, so the KL is zero
    elbo = (-0.5 * (x**2 + 1) - 0.5 * math.log(2 * math.pi)).mean().item()
    assert many["elbo"] == pytest.approx(elbo, abs=0.03)
    assert many["kl"] == pytest.approx(0.0, abs=1e-9)
    assert many["log_evidence"] == pytest.approx(exact, abs=0.01)
    assert few["log_evidence"] == pytest.approx(few["elbo"])


def test_global_latents_have_no_evidence_per_datum() -> None:
    x = tiny.data(40)
    found = run(tiny.global_model, tiny.point_guide(0.5), x, 2, batch_size=16)
    assert "log_evidence" not in found and found["per_datum"]
    likelihood = tiny.normal_log_prob(x, 0.5).mean().item()
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item()
    assert found["reconstruction"] == pytest.approx(likelihood)
    assert found["elbo"] == pytest.approx(likelihood + prior / 40)


def test_without_a_data_plate_numbers_are_totals() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    x = tiny.data(8)
    found = run(model, tiny.point_guide(0.5), x, 2)
    total = tiny.normal_log_prob(x, 0.5).sum() + tiny.normal_log_prob(torch.tensor(0.5), 0.0)
    assert not found["per_datum"] and found["elbo"] == pytest.approx(total.item())


def test_particles_of_the_objective_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    terms = Stepper.terms

    def counted(self, batch, data):
        calls.append(len(batch))
        return terms(self, batch, data)

    monkeypatch.setattr(Stepper, "terms", counted)
    loss = VariationalLoss(ELBO(num_particles=4))
    run(tiny.global_model, tiny.point_guide(0.5), tiny.data(6), 8, loss=loss, batch_size=4)
    assert calls == [4, 4, 2, 2]


@pytest.mark.parametrize("vectorize", [True, False])
def test_programs_that_cannot_broadcast_are_evaluated_one_by_one(vectorize: bool) -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    x = tiny.data(5)
    found = run(model, tiny.exact_guide, x, 3, loss=VariationalLoss(vectorize=vectorize))
    assert found["log_evidence"] == pytest.approx(tiny.log_evidence(x), abs=1e-9)


@pytest.mark.parametrize("name", ["num_particles", "max_rows"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0"):
        run(tiny.local_model, tiny.exact_guide, tiny.data(4), **{name: 0})
