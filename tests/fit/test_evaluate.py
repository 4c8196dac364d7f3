import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import UsageError
from amortized.fit import evaluate
from amortized.fit.data import as_batches
from amortized.fit.evaluate import Evaluation
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.rng import seeded
from amortized.fit.step import Stepper
from amortized.loss import VariationalLoss
from amortized.objectives.elbo import ELBO
from amortized.programs import runner
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


@pytest.mark.parametrize("plate", [True, False])
def test_a_pair_that_learned_from_simulations_has_an_elbo_on_data(plate: bool) -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        if plate:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        else:
            pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(x.mean(), 0.3))

    x = tiny.data(8)
    asked = {"num_particles": 40, "batch_size": 8}
    learned = run(model, guide, x, loss=VariationalLoss(am.ForwardKL()), **asked)
    plain = run(model, guide, x, **asked)
    assert learned == plain and math.isfinite(plain["elbo"])


def test_what_learned_from_simulations_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a batch: the loss that evaluates it is one and the same."""
    probes = []

    def counted(*args, **kwargs):
        probes.append(args)
        return probe(*args, **kwargs)

    probe = runner.probe
    monkeypatch.setattr(runner, "probe", counted)
    loss = VariationalLoss(am.ForwardKL())
    guide = tiny.point_guide(0.5)
    counts = []
    for rows in (16, 64):
        probes.clear()
        found = run(tiny.global_model, guide, tiny.data(rows), 2, loss=loss, batch_size=8)
        assert math.isfinite(found["elbo"])
        counts.append(len(probes))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("count", [5, np.int64(5)], ids=["int", "numpy"])
def test_one_number_of_particles_is_one_bound(count: int) -> None:
    x = tiny.data(12)
    found = run(tiny.local_model, tiny.exact_guide, x, count)
    assert not [key for key in found if key.startswith("log_evidence/")]
    assert "log_evidence/5" in run(tiny.local_model, tiny.exact_guide, x, (count,))


def test_particles_of_the_objective_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    evaluated = Stepper.evaluated

    def counted(self, batch, data):
        calls.append(len(batch))
        return evaluated(self, batch, data)

    monkeypatch.setattr(Stepper, "evaluated", counted)
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


def narrow(limit, seen):
    """`tiny.local_model` on a machine that holds at most so many latents at a time."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            seen.append(z.numel())
            if z.numel() > limit:
                message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
                raise RuntimeError(message)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def point(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(0.3 * x))


@pytest.mark.parametrize("limit", [100, 16, 7, 1])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("guide", [point, tiny.exact_guide], ids=["point", "exact"])
def test_numbers_do_not_depend_on_how_memory_divides_them(limit, vectorize, guide) -> None:
    x, seen = tiny.data(40), []
    whole = run(tiny.local_model, guide, x, 12)
    loss = VariationalLoss(vectorize=vectorize)
    found = run(narrow(limit, seen), guide, x, 12, loss=loss)
    keys = ("elbo", "reconstruction", "kl") if guide is point else ("elbo", "log_evidence")
    assert {key: found[key] for key in keys} == pytest.approx({key: whole[key] for key in keys})
    assert found.keys() == whole.keys() and found["num_particles"] == 12
    if vectorize and limit == 100 and guide is not point:  # 6 particles of 16 rows
        assert max(size for size in seen if size <= limit) == 96
    # after the first failures what fitted is kept
    assert sum(size > limit for size in seen) < 12


def test_the_evidence_of_particles_in_parts_is_that_of_all() -> None:
    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = tiny.data(40)
    found = run(narrow(1000, []), prior, x, 3000)
    assert found["log_evidence"] == pytest.approx(tiny.log_evidence(x), abs=0.01)


def test_one_data_point_that_does_not_fit_fails_as_torch_says() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(narrow(0, []), tiny.exact_guide, tiny.data(4), 3)


def test_other_failures_are_not_tried_again() -> None:
    calls = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            if z.ndim == 1 and len(calls) > 8:
                raise RuntimeError("a mistake")
            calls.append(z.shape)

    with pytest.raises(RuntimeError, match="a mistake"):
        run(model, tiny.exact_guide, tiny.data(400), 3, loss=VariationalLoss(vectorize=False))


def test_global_latents_are_evaluated_in_parts() -> None:
    def model(x):
        if len(x) > 4:
            raise MemoryError
        tiny.global_model(x)

    x = tiny.data(40)
    whole = run(tiny.global_model, tiny.point_guide(0.5), x, 2)
    assert run(model, tiny.point_guide(0.5), x, 2) == pytest.approx(whole)


def test_validation_is_divided_as_memory_asks() -> None:
    sizes = []

    def model(x):
        if not torch.is_grad_enabled():
            sizes.append(len(x))
            if len(x) > 10:
                raise MemoryError
        tiny.global_model(x)

    x, found = tiny.data(40), []
    for program in (model, tiny.global_model):
        svi = am.SVI(program, tiny.point_guide(0.5))
        val = DataLoader(TensorDataset(x), batch_size=40)
        found.append(svi.fit(x[:8], val, max_epochs=2, seed=0, progress=False, check=False))
    assert found[0]["val_loss"] == pytest.approx(found[1]["val_loss"], abs=1e-12)
    assert sizes.count(40) == 1 and sizes.count(10) >= 8


def test_totals_are_not_put_together_from_parts() -> None:
    def model(x):
        if len(x) > 4:
            raise MemoryError
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(UsageError, match="a batch of 8 rows does not fit into memory, and without"):
        run(model, tiny.point_guide(0.5), tiny.data(8), 2)


def test_a_run_takes_at_most_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen = tiny.data(40), []
    run(narrow(math.inf, seen), tiny.exact_guide, x, 50)
    assert max(seen) == 50 * 16
    monkeypatch.setattr(evaluate, "free_bytes", lambda device: 64_000)
    for numbers in (few := [], fewer := []):
        found = run(narrow(math.inf, numbers), tiny.exact_guide, x, 50)
        assert found["log_evidence"] == pytest.approx(tiny.log_evidence(x))
        monkeypatch.setattr(evaluate, "free_bytes", lambda device: 32_000)
    # a row of a particle takes some 8-byte numbers: the draw, densities, their sums
    assert 50 * 16 > max(few) > max(fewer) >= 16 and max(few) <= 64_000 // 2 // 8 // 3


def test_rows_are_divided_beforehand_only_where_their_number_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "free_bytes", lambda device: 4_000)
    x = tiny.data(400)
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.step(x)
    found = {}
    for name, data, batch_size in (("ours", x, None), ("asked", x, 100), ("own", loader(x), None)):
        seen = []
        monkeypatch.setattr(svi._stepper, "model", narrow(math.inf, seen))
        assert svi.evaluate(data, 1, batch_size=batch_size, seed=0)["per_datum"]
        found[name] = set(seen)
    assert found["asked"] == {100} and found["own"] == {80}
    # one look at 128 rows first
    assert max(found["ours"] - {128}) < 80 and 400 not in found["ours"]


def loader(x):
    return DataLoader(TensorDataset(x), batch_size=80)


def test_few_particles_take_many_rows() -> None:
    x, seen = tiny.data(1000), []
    svi = am.SVI(narrow(math.inf, seen), tiny.param_guide)
    svi.evaluate(x, 1)
    assert max(seen) == 1000
    seen.clear()
    svi.evaluate(x, 64)
    assert max(seen) == 64 * 128


@pytest.mark.parametrize("name", ["num_particles", "max_rows"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0"):
        run(tiny.local_model, tiny.exact_guide, tiny.data(4), **{name: 0})
