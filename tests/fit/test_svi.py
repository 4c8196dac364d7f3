import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.autoguide.effect import AutoNormalMessenger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from tests.fit import tiny

quiet = functools.partial(am.SVI.fit, progress=False)


def test_a_function_guide_with_pyro_param_is_fitted() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.02)
    assert svi.params() == {}
    history = quiet(svi, tiny.data(64), max_epochs=150, batch_size=32, seed=0)
    found = svi.params()
    # the posterior of z is N(x / 2, 1 / 2)
    assert found["slope"].item() == pytest.approx(0.5, abs=0.05)
    assert found["scale"].item() == pytest.approx(math.sqrt(0.5), abs=0.05)
    exact = tiny.log_evidence(tiny.data(64))
    assert history["train_elbo"][-1] == pytest.approx(exact, abs=0.15)
    assert len(pyro.get_param_store()) == 0


def test_modules_are_trained_in_place() -> None:
    model, guide = tiny.ModuleModel(), tiny.ModuleGuide()
    before = guide.layer.weight.item()
    quiet(am.SVI(model, guide, lr=0.05), tiny.data(), max_epochs=3, seed=0)
    assert guide.layer.weight.item() != before and len(pyro.get_param_store()) == 0


def test_two_functions_with_the_same_names_never_share() -> None:
    first = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
    second = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
    x = tiny.data()
    quiet(first, x, max_epochs=5, seed=0)
    after_first = first.params()
    quiet(second, x, max_epochs=10, seed=1)
    assert first.params() == after_first != second.params()
    assert torch.equal(mean_of(first.guide, x), after_first["slope"] * x)
    assert torch.equal(mean_of(second.guide, x), second.params()["slope"] * x)


@pytest.mark.parametrize("register", [False, True], ids=["PyroModule", "pyro.module"])
def test_two_modules_with_the_same_names_never_share(register: bool) -> None:
    pairs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        guide = tiny.ModuleGuide()
        program = registered(guide) if register else guide
        svi = am.SVI(tiny.ModuleModel(), program, lr=0.05)
        start = guide.layer.weight.item()
        quiet(svi, tiny.data(), max_epochs=3, seed=0)
        pairs.append((start, guide.layer.weight.item()))
    (start, end), (other_start, other_end) = pairs
    assert start != end and other_start != other_end and end != other_end


def registered(module: nn.Module):
    """A function that registers a module, as Pyro's tutorials do."""
    inner = nn.ModuleList([module])

    def guide(x):
        pyro.module("guide", inner)
        return module(x)

    return guide


def mean_of(guide, x: torch.Tensor) -> torch.Tensor:
    return pyro.poutine.trace(guide).get_trace(x).nodes["z"]["fn"].mean


def test_a_users_global_store_is_neither_read_nor_written() -> None:
    pyro.param("slope", torch.tensor(9.0))
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
    quiet(svi, tiny.data(), max_epochs=2, seed=0)
    assert pyro.param("slope").item() == 9.0 and abs(svi.params()["slope"].item()) < 1.0
    assert set(pyro.get_param_store().keys()) == {"slope"}


@pytest.mark.parametrize("auto", [AutoNormal, AutoDelta, AutoNormalMessenger])
def test_lazy_guides_learn_and_serve(auto) -> None:
    guide = auto(tiny.global_model)
    svi = am.SVI(tiny.global_model, guide, lr=0.05)
    x = tiny.data() + 2.0
    quiet(svi, x, max_epochs=60, batch_size=20, seed=0)
    posterior = (x.sum() / (len(x) + 1)).item()
    with torch.no_grad():
        draws = [svi.guide(x)["m"].item() for _ in range(50)]
    assert sum(draws) / 50 == pytest.approx(posterior, abs=0.25)
    assert len(pyro.get_param_store()) == 0


def test_the_fitted_pair_serves_predictive() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
    x = tiny.data()
    quiet(svi, x, max_epochs=30, seed=0)
    pyro.set_rng_seed(0)
    draws = Predictive(svi.model, guide=svi.guide, num_samples=400)(x)["z"]
    slope, scale = svi.params()["slope"], svi.params()["scale"]
    assert torch.allclose(draws.mean(0), slope * x, atol=4 * scale.item() / 20)
    assert len(pyro.get_param_store()) == 0


def test_the_scope_is_for_code_that_calls_the_programs() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
    svi.step(tiny.data())
    with svi.scope():
        assert pyro.param("slope").item() == svi.params()["slope"].item()


def test_a_loss_can_serve_many_pairs() -> None:
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.MovingAverage())})
    first = am.SVI(tiny.local_model, tiny.param_guide, loss, lr=0.1)
    quiet(first, tiny.data(), max_epochs=1, seed=0)
    assert first.loss is not loss
    assert first.loss.state_dict() and not loss.state_dict()


def test_step_returns_nats_per_datum() -> None:
    x = tiny.data(4)
    plate = am.DataPlate("data", 40)
    svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), data_plate=plate)
    likelihood = tiny.normal_log_prob(x, 0.5).mean().item()
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item()
    found = svi.step(x)
    assert type(found) is float and found == pytest.approx(-likelihood - prior / 40, rel=1e-5)


def test_a_batch_is_a_tensor_a_tuple_or_a_dict() -> None:
    def model(x, y):
        tiny.local_model(x + y)

    def guide(x, y):
        tiny.param_guide(x + y)

    x = tiny.data()
    found = []
    for data in ((x, x), {"y": x, "x": x}, DataLoader(TensorDataset(x, x), batch_size=128)):
        svi = am.SVI(model, guide)
        found.append(quiet(svi, data, data, max_epochs=2, seed=0)["val_elbo"])
    assert found[0] == pytest.approx(found[1])
    assert found[2] == pytest.approx(found[0], abs=2.0)  # a loader moves the noise


def test_a_program_without_arguments() -> None:
    x = tiny.data(50) + 1.0

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[rows])

    def guide():
        pyro.sample("m", dist.Delta(pyro.param("m_loc", torch.tensor(0.0))))

    svi = am.SVI(model, guide, lr=0.05)
    history = quiet(svi, (), max_steps=100, seed=0)
    assert svi.params()["m_loc"].item() == pytest.approx(x.mean().item(), abs=0.2)
    assert history.per_datum and history["train_loss"][-1] < 3.0


def test_the_seed_is_local_to_the_call() -> None:
    def run(seed: int | None) -> tuple[list[float], torch.Tensor]:
        pyro.set_rng_seed(11)
        svi = am.SVI(tiny.local_model, tiny.param_guide)
        losses = quiet(svi, tiny.data(), tiny.data(8), max_epochs=2, seed=seed)["train_loss"]
        return losses, torch.rand(3)

    pyro.set_rng_seed(11)
    untouched = torch.rand(3)
    (one, after), (same, _), (other, _) = run(0), run(0), run(1)
    assert one == same != other and torch.equal(after, untouched)
    (free, moved), (again, _) = run(None), run(None)
    assert free == again and not torch.equal(moved, untouched)


def test_evaluate_has_a_local_seed_too() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.step(tiny.data())
    before = torch.get_rng_state()
    found = [svi.evaluate(tiny.data(), 5, seed=s)["log_evidence"] for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and torch.equal(before, torch.get_rng_state())


def test_evaluate_before_training_describes_the_start() -> None:
    found = am.SVI(tiny.local_model, tiny.param_guide).evaluate(tiny.data(), 200, seed=0)
    assert set(found) == {
        "elbo",
        "reconstruction",
        "kl",
        "log_evidence",
        "ess",
        "num_particles",
        "per_datum",
    }
    assert found["elbo"] < found["log_evidence"] < tiny.log_evidence(tiny.data()) + 0.05


def test_held_out_global_latents_are_charged_over_the_training_data() -> None:
    svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=0.0)
    quiet(svi, tiny.data(40), max_epochs=1, seed=0)
    x = tiny.data(8)
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item()
    expected = tiny.normal_log_prob(x, 0.5).mean().item() + prior / 40
    assert svi.evaluate(x, 1)["elbo"] == pytest.approx(expected, rel=1e-4)


def test_fit_goes_on_where_it_stopped() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.01)
    first = quiet(svi, tiny.data(), max_epochs=2, seed=0)
    optimizer, halfway = svi.optimizer, svi.evaluate(tiny.data(), 2000, seed=1)["elbo"]
    second = quiet(svi, tiny.data(), max_epochs=2, seed=0)
    assert svi.optimizer is optimizer and first.epochs == second.epochs == 2
    # the same draws judge both: the bound rises as the slope leaves 0 for 1/2
    assert svi.evaluate(tiny.data(), 2000, seed=1)["elbo"] > halfway


def test_the_best_epoch_comes_back() -> None:
    # a rate so large that training is worst at its end
    svi = am.SVI(tiny.local_model, tiny.param_guide, lr=1.0)
    stopping = am.EarlyStopping(patience=3)
    history = quiet(svi, tiny.data(), tiny.data(20), max_epochs=40, seed=0, callbacks=[stopping])
    best = min(history["val_loss"])
    assert history.stopped == "early stopped" and best == stopping.best
    found = svi.evaluate(tiny.data(20), 500, seed=1)["elbo"]
    assert found == pytest.approx(-best, abs=0.2)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.fit(tiny.data(), tiny.data(8), max_epochs=2, seed=0)
    out, err = capsys.readouterr()
    assert out == "" and "epoch 2/2  train_loss" in err and "val_loss" in err
    quiet(svi, tiny.data(), max_epochs=1)
    assert capsys.readouterr() == ("", "")


def test_describe_needs_no_global_store() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, am.VariationalLoss())
    assert "Pathwise" in str(svi.describe(tiny.data(4))) and len(pyro.get_param_store()) == 0


def test_parameters_local_to_their_modules() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = tiny.ModuleGuide()
        svi = am.SVI(tiny.ModuleModel(), guide, lr=0.05)
        before = guide.layer.weight.item()
        quiet(svi, tiny.data(), tiny.data(8), max_epochs=2, seed=0)
        assert guide.layer.weight.item() != before and svi.params() == {}


def test_lazy_layers() -> None:
    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(1)

        def forward(self, x):
            loc = self.layer(x.unsqueeze(-1)).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0))

    svi = am.SVI(tiny.local_model, Guide(), lr=0.05)
    history = quiet(svi, tiny.data(), max_epochs=20, seed=0)
    assert history["train_loss"][-1] < history["train_loss"][0]


def test_learning_rates_by_group() -> None:
    svi = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide(), lr={"model": 0.0, "guide": 0.1})
    svi.step(tiny.data())
    assert svi.optimizer is not None
    assert {g["name"]: g["lr"] for g in svi.optimizer.param_groups} == {"model": 0.0, "guide": 0.1}
    assert svi.model.noise.item() == 1.0 != svi.guide.scale.item()


def test_a_named_data_plate() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, data_plate="nonsense")
    with pytest.raises(am.UsageError, match="nonsense"):
        svi.step(tiny.data())


def test_numbers_of_a_program_without_a_plate_are_totals() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    history = quiet(am.SVI(model, tiny.point_guide(0.5)), tiny.data(), max_epochs=1, seed=0)
    assert not history.per_datum


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, tiny.param_guide), "model: found int"),
        ((tiny.local_model, None), "guide: found NoneType"),
        ((tiny.local_model, tiny.param_guide, Trace_ELBO()), "loss: found Trace_ELBO"),
    ],
)
def test_arguments_are_checked(arguments, message: str) -> None:
    with pytest.raises(am.UsageError, match=message):
        am.SVI(*arguments)


def test_the_repr_is_one_line() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.step(tiny.data())
    assert repr(svi) == (
        "SVI(steps=1, loss=VariationalLoss(ELBO(num_particles=1, kl='sample'), {}))"
    )


def series(x: torch.Tensor) -> None:
    """Rows are series, but the outer plate is time."""
    with pyro.plate("time", 5, dim=-2), pyro.plate("series", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(5, len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def series_guide(x: torch.Tensor) -> None:
    with pyro.plate("time", 5, dim=-2), pyro.plate("series", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.T / 2, pyro.param("s", torch.tensor(0.7))))


def test_a_data_plate_that_is_not_the_minibatch_is_refused() -> None:
    x = torch.randn(20, 5)
    with pytest.raises(am.ProgramError, match=r"plate 'time'.*5 elements.*10 rows"):
        quiet(am.SVI(series, series_guide), x, max_epochs=1, batch_size=10)
    svi = am.SVI(series, series_guide, data_plate="series")
    history = quiet(svi, x, max_epochs=1, batch_size=10, seed=0)
    assert 5.0 < history["train_loss"][0] < 12.0


def test_networks_of_function_programs_are_evaluated_in_eval_mode() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4))
    modes = []

    def model(x: torch.Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            modes.append(network.training)
            pyro.sample("x", dist.Normal(z + network(x.unsqueeze(-1)).sum(-1), 1.0), obs=x)

    svi = am.SVI(model, tiny.param_guide)
    quiet(svi, tiny.data(), max_epochs=1)
    before, seen = network[1].running_mean.clone(), len(modes)
    svi.evaluate(tiny.data(), 2)
    assert not any(modes[seen:]) and all(modes[:seen]) and network.training
    assert torch.equal(network[1].running_mean, before)


def test_a_resumed_call_leaves_the_global_generators_alone(tmp_path) -> None:
    x = tiny.data()
    options = {"check": False, "batch_size": 8}
    first = am.SVI(tiny.local_model, tiny.param_guide)
    quiet(first, x, max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path)], **options)
    pyro.set_rng_seed(5)
    expected = torch.rand(3)
    pyro.set_rng_seed(5)
    again = am.SVI(tiny.local_model, tiny.param_guide)
    quiet(again, x, max_epochs=2, resume_from=tmp_path, **options)
    assert torch.equal(torch.rand(3), expected) and again._stepper.steps == 10


def test_parameters_that_only_some_batches_declare_are_resumed(tmp_path) -> None:
    """The short last batch of an epoch declares one more."""

    def guide(x):
        loc = pyro.param("early", torch.zeros(()))
        if len(x) == 4:
            loc = loc + pyro.param("late", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x, options = tiny.data(20), {"batch_size": 8, "check": False, "seed": 1}
    whole, first, again = (am.SVI(tiny.local_model, guide, lr=0.1) for _ in range(3))
    expected = quiet(whole, x, max_epochs=3, **options)
    quiet(first, x, max_epochs=2, callbacks=[am.ModelCheckpoint(tmp_path)], **options)
    found = quiet(again, x, max_epochs=3, resume_from=tmp_path, **options)
    assert whole.params() == again.params() and expected["kl"] == found["kl"]
    assert whole.params().keys() == {"early", "late"}


def test_a_program_that_lacks_a_parameter_is_refused_at_a_resume(tmp_path) -> None:
    x, options = tiny.data(), {"check": False, "max_epochs": 1}
    first = am.SVI(tiny.local_model, tiny.param_guide)
    quiet(first, x, callbacks=[am.ModelCheckpoint(tmp_path)], **options)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.zeros(())) * x, 1.0))

    with pytest.raises(am.CheckpointError, match=r"store\.scale: the file has"):
        quiet(am.SVI(tiny.local_model, guide), x, resume_from=tmp_path, **options)


def test_a_lone_step_says_what_a_gradient_died_of() -> None:
    def model(x: torch.Tensor) -> None:
        weight = pyro.param("weight", torch.zeros(()))
        moved = torch.exp(weight)
        score = moved * 1.0
        moved.add_(1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(score, 1.0), obs=x)

    svi = am.SVI(model, lambda x: None)
    with pytest.raises(am.ProgramError, match=r"step 1: torch cannot take the gradient"):
        svi.step(tiny.data(4))
