import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import amortized as am
from amortized.errors import CheckpointError, UsageError
from amortized.fit import checkpoint
from amortized.fit.checkpoint import read
from tests.fit import tiny
from tests.fit.harness import SIZE, fit, pair
from tests.fit.test_model_checkpoint import Score, scored
from tests.fit.test_recovery import bits, flagged

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def modules() -> Pair:
    return tiny.ModuleModel(), tiny.ModuleGuide()


def functions() -> Pair:
    return tiny.local_model, tiny.param_guide


def lazy_guide() -> Pair:
    return tiny.global_model, AutoNormal(tiny.global_model)


def closed_over() -> Pair:
    network = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x.unsqueeze(-1)).squeeze(-1), 1.0))

    return tiny.local_model, guide


class LazyLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> None:
        loc = self.layer(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))


def lazy_layers() -> Pair:
    return tiny.local_model, LazyLayers()


PAIRS = {
    "modules": modules,
    "functions": functions,
    "an autoguide": lazy_guide,
    "networks closed over": closed_over,
    "lazy layers": lazy_layers,
}
NEED_NO_BATCH = ("modules",)


def fitted(make: Callable[[], Pair], **options: Any) -> am.SVI:
    pyro.set_rng_seed(0)
    svi = am.SVI(*make(), lr=0.05, **options)
    fit(svi, max_epochs=3, seed=0)
    return svi


def tensors(svi: am.SVI) -> dict[str, Tensor]:
    return svi._stepper.parameters.snapshot()


def draws(svi: am.SVI, x: Tensor) -> dict[str, Tensor]:
    pyro.set_rng_seed(5)
    with torch.no_grad():
        return Predictive(svi.model, guide=svi.guide, num_samples=20)(x)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("writer", ["save", "ModelCheckpoint"])
def test_a_fitted_pair_comes_back(tmp_path, name: str, writer: str) -> None:
    """Parameters and buffers bit for bit, held-out numbers, draws of Pyro's Predictive."""
    if writer == "save":
        svi = fitted(PAIRS[name])
        path = svi.save(tmp_path)
        assert path.parent == tmp_path and path.name == "step-00000015"
    else:
        pyro.set_rng_seed(0)
        svi, path = am.SVI(*PAIRS[name](), lr=0.05), tmp_path
        fit(svi, max_epochs=3, seed=0, callbacks=[am.ModelCheckpoint(tmp_path)])
    pyro.set_rng_seed(9)
    x = tiny.data(10)
    again = am.load(path, PAIRS[name](), batch=x)
    before, after = tensors(svi), tensors(again)
    assert before.keys() == after.keys() and before
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]) and tensor.dtype == after[key].dtype, key
    assert svi.evaluate(x, 20, seed=1) == again.evaluate(x, 20, seed=1)
    assert svi.params().keys() == again.params().keys()
    for site, value in draws(svi, x).items():
        assert torch.equal(value, draws(again, x)[site]), site
    assert len(pyro.get_param_store()) == 0


def test_constrained_values_come_back_as_such(tmp_path) -> None:
    svi = fitted(functions)
    again = am.load(svi.save(tmp_path), functions(), batch=tiny.data(4))
    assert again.params()["scale"] == svi.params()["scale"] > 0
    assert again.params()["scale"] != again._stepper.parameters.tensors()["store.scale"]


@pytest.mark.parametrize("name", PAIRS)
def test_without_a_batch_it_is_said_that_one_is_needed(tmp_path, name: str) -> None:
    path = fitted(PAIRS[name]).save(tmp_path)
    if name in NEED_NO_BATCH:
        assert am.load(path, PAIRS[name]()).evaluate(tiny.data(4), 2)
        return
    with pytest.raises(CheckpointError, match=r"declares when it runs need batch=\.\.\."):
        am.load(path, PAIRS[name]())


def test_a_program_brings_its_own_batch(tmp_path) -> None:
    svi = fitted(functions)
    path = svi.save(tmp_path)
    program = am.Program(*functions(), train=tiny.data(SIZE))
    assert am.load(path, program).params() == svi.params()


def test_training_can_go_on_with_what_was_loaded(tmp_path) -> None:
    svi = fitted(modules)
    again = am.load(svi.save(tmp_path), modules())
    before = tensors(again)["guide.layer.weight"]
    fit(again, max_epochs=1)
    assert again._stepper.steps == 15 + 5 and tensors(again)["guide.layer.weight"] != before


def test_the_size_of_the_data_comes_back(tmp_path) -> None:
    """Global latents are charged once over the training data, also after loading."""
    svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=0.0)
    fit(svi, max_epochs=1)
    again = am.load(
        svi.save(tmp_path), (tiny.global_model, tiny.point_guide(0.1)), batch=tiny.data(4)
    )
    x = tiny.data(8)
    assert svi.evaluate(x, 1)["elbo"] == again.evaluate(x, 1)["elbo"]
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item()
    expected = tiny.normal_log_prob(x, 0.5).mean().item() + prior / SIZE
    assert again.evaluate(x, 1)["elbo"] == pytest.approx(expected, rel=1e-5)


# Which of them


def saved_with_scores(folder, scores: list[float]) -> None:
    fit(
        pair(lr=0.1),
        max_epochs=len(scores),
        callbacks=[Score(scores), scored(folder, keep_last=9, every_n_steps=4)],
    )


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 15),
        ({"which": "last"}, 15),
        ({"which": "best", "monitor": "score"}, 10),
        ({"which": "best", "monitor": "score", "mode": "max"}, 5),
    ],
    ids=str,
)
def test_the_last_or_the_best(tmp_path, options, step: int) -> None:
    saved_with_scores(tmp_path, [3.0, 1.0, 2.0])
    svi = am.load(tmp_path, functions(), batch=tiny.data(4), **options)
    expected = read(tmp_path / f"step-{step:08d}").state["parameters"]
    for name, tensor in svi._stepper.parameters.tensors().items():
        assert torch.equal(tensor, expected[name])


def test_the_folder_of_a_run_leads_to_its_checkpoints(tmp_path) -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.step(tiny.data(8))
    svi.save(tmp_path / "checkpoints")
    pair = tiny.local_model, tiny.param_guide
    again = am.load(tmp_path, pair, batch=tiny.data(8))
    assert again.params() == svi.params()
    svi.step(tiny.data(8))
    svi.save(tmp_path)  # what lies in the folder itself comes first
    assert am.load(tmp_path, pair, batch=tiny.data(8)).params() == svi.params() != again.params()


def test_only_the_best_is_read_whole(tmp_path, monkeypatch) -> None:
    saved_with_scores(tmp_path, [3.0, 1.0, 2.0])
    loaded, real = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **o: loaded.append(file.name) or real(file, **o)
    )
    am.load(tmp_path, functions(), batch=tiny.data(4), which="best", monitor="score")
    assert loaded == [str(tmp_path / "step-00000010" / "state.pt")]


def test_a_damaged_one_is_not_the_best(tmp_path) -> None:
    saved_with_scores(tmp_path, [3.0, 1.0, 2.0])
    (tmp_path / "step-00000010" / "state.pt").write_bytes(b"")
    svi = am.load(tmp_path, functions(), batch=tiny.data(4), which="best", monitor="score")
    expected = read(tmp_path / "step-00000015").state["parameters"]["store.slope"]
    assert svi.params()["slope"] == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"which": "best"},
            CheckpointError,
            r"records 'val_loss', so none is the best; pass which",
        ),
        ({"which": "first"}, UsageError, r"which='first': expected 'last' or 'best'"),
        ({"which": "best", "mode": "up"}, UsageError, r"mode='up': expected 'min' or 'max'"),
    ],
    ids=str,
)
def test_wrong_wishes(tmp_path, options, error, message: str) -> None:
    saved_with_scores(tmp_path, [3.0])
    with pytest.raises(error, match=message):
        am.load(tmp_path, functions(), batch=tiny.data(4), **options)


# Another program


class Changed(tiny.ModuleGuide):
    """A module guide whose parameters can be changed by name."""

    def __init__(self, change: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        change(self)


def wider(guide: nn.Module) -> None:
    guide.layer = nn.Linear(1, 2)


def more(guide: nn.Module) -> None:
    guide.extra = nn.Parameter(torch.zeros(3))


def fewer(guide: nn.Module) -> None:
    del guide.layer.bias
    guide.layer.bias = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"guide\.layer\.weight: the file has \(1, 1\), the program \(2, 1\)"),
        (lambda g: g.double(), r"guide\.layer\.bias: the file has float32, the program float64"),
        (more, r"guide\.extra: the file has no such parameter, the program has \(3,\)"),
        (fewer, r"guide\.layer\.bias: the file has \(1,\), the program has no such parameter"),
    ],
    ids=["shape", "dtype", "extra", "missing"],
)
def test_differences_are_named_and_nothing_is_taken_over(tmp_path, change, message: str) -> None:
    path = fitted(modules).save(tmp_path)
    guide = Changed(change)
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        am.load(path, (tiny.ModuleModel(), guide))
    assert "does not fit this program" in str(caught.value) and str(path) in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in guide.state_dict().items())


def test_a_stored_parameter_of_another_shape_is_named(tmp_path) -> None:
    path = fitted(functions).save(tmp_path)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(2))
        pyro.param("new", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope.sum() * x, 1.0))

    with pytest.raises(CheckpointError) as caught:
        am.load(path, (tiny.local_model, guide), batch=tiny.data(4))
    for sentence in (
        "store.slope: the file has (), the program (2,)",
        "store.new: the file has no such parameter",
        "store.scale: the file has (), the program has no such parameter",
    ):
        assert sentence in str(caught.value)


# Estimators


@pytest.mark.parametrize("baseline", ["moving_average", "neural_baseline"])
def test_estimators_come_back_with_their_loss_only(tmp_path, baseline: str) -> None:
    svi = bits(baseline)
    fit(svi, flagged("nan"), max_epochs=3)
    path, batch = svi.save(tmp_path), next(iter(flagged("nan")))
    programs = (svi.model.program, svi.guide.program)
    loss = am.VariationalLoss(estimators=baseline)
    again = am.load(path, programs, loss=loss, batch=batch)
    before, after = tensors(svi), tensors(again)
    learned = [name for name in before if name.startswith("loss.")]
    assert learned and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = am.load(path, programs, batch=batch)
    assert plain.params() == svi.params()
    fresh = tensors(plain)  # those of the default loss, where it has some
    assert not any(torch.equal(fresh[name], before[name]) for name in learned if name in fresh)
    with pytest.raises(CheckpointError, match=r"loss\."):
        am.load(path, programs, loss=am.VariationalLoss(estimators="enumerate"), batch=batch)


def test_what_was_trained_keeps_its_estimators_when_parameters_are_loaded(tmp_path) -> None:
    svi, other = bits("moving_average"), bits("moving_average")
    for one in (svi, other):
        fit(one, flagged("nan"), max_epochs=2)
    path = svi.save(tmp_path)
    fit(other, flagged("nan"), max_epochs=2)
    average = {n: t for n, t in tensors(other).items() if n.startswith("loss.")}
    other.load(path, estimators=False)
    assert average and all(torch.equal(tensors(other)[n], t) for n, t in average.items())
    assert other.params() == svi.params()
    other.load(path)
    assert all(torch.equal(tensors(other)[n], t) for n, t in tensors(svi).items())


# Files


def test_nothing_is_saved_before_training(tmp_path) -> None:
    with pytest.raises(UsageError, match="made at the first step: none was taken yet"):
        pair().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_saving_twice_keeps_both(tmp_path) -> None:
    svi = fitted(functions)
    names = [svi.save(tmp_path).name for _ in range(2)]
    assert names == ["step-00000015", "step-00000015-v2"]


def test_a_file_from_a_gpu_is_put_where_the_parameters_are(tmp_path, monkeypatch) -> None:
    """torch would put tensors back where they were, unless told otherwise."""
    places = []
    real = torch.load

    def load(*args: Any, **options: Any) -> Any:
        places.append(options["map_location"])
        return real(*args, **options)

    path = fitted(functions).save(tmp_path)
    monkeypatch.setattr(torch, "load", load)
    am.load(path, functions(), batch=tiny.data(4), device="cpu")
    am.load(path, functions(), batch=tiny.data(4))
    fit(pair(), max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path / "x")])
    fit(pair(), max_epochs=2, resume_from=tmp_path / "x")
    assert places and {torch.device(place) for place in places} == {torch.device("cpu")}


def test_paths_that_are_none(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="there is nothing of that name"):
        am.load(tmp_path / "missing", functions())
    with pytest.raises(CheckpointError, match="no checkpoint can be read below"):
        am.load(tmp_path, functions())
    with pytest.raises(CheckpointError, match="no checkpoint records"):
        am.load(tmp_path, functions(), which="best")


@pytest.mark.parametrize("wrong", [tiny.local_model, (tiny.local_model,), (1, 2), None, "x"])
def test_a_program_or_a_pair_is_needed(tmp_path, wrong) -> None:
    with pytest.raises(UsageError, match=r"program: found \w+; expected am.Program"):
        am.load(fitted(functions).save(tmp_path), wrong)


def test_a_whole_checkpoint_of_something_else_is_refused(tmp_path) -> None:
    """Its checksums are right, and its content is not ours."""
    about = {"step": 1, "epoch": 0, "metrics": {}, "config": {}}
    names = {"store.slope": torch.zeros(()), "store.scale": torch.zeros(())}
    path = checkpoint.write(tmp_path / "a", {"x": 1}, parameters=names, **about)
    with pytest.raises(CheckpointError, match="does not hold what"):
        am.load(path, functions(), batch=tiny.data(4))
    lying = {name: torch.zeros(3) for name in names}
    state = {"parameters": lying, "data": {"plate": None, "size": None}}
    path = checkpoint.write(tmp_path / "b", state, parameters=names, **about)
    with pytest.raises(CheckpointError, match=r"store.slope: the file has \(3,\)"):
        am.load(path, functions(), batch=tiny.data(4))
    assert math.isfinite(fitted(functions).evaluate(tiny.data(4), 2)["elbo"])
