"""Validation from graphs gives the numbers of eager validation, bit for bit, or it is eager."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import CheckWarning, NonFiniteError, ProgramError
from amortized.fit.callbacks import FitState
from amortized.fit.compiled.evaluations import Evaluations
from amortized.fit.compiled.steps import CompiledSteps, Signature
from amortized.fit.data import as_batches
from amortized.fit.memory import Parts
from amortized.fit.plan import Plan
from amortized.fit.rng import rng_state
from amortized.fit.terms import Terms
from amortized.fit.validation import Validation, _made_for, to_come
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.laws.structures import EVERY

X, VAL = tiny.data(24), tiny.data(44)[24:]
Pair = tuple[Any, Any, am.VariationalLoss | None]


def known(svi: am.SVI) -> list[Signature]:
    """What is known of evaluations, by signature."""
    steps = svi._stepper.evaluations._steps
    return [] if steps is None else [s for variants in steps._met.values() for s in variants]


def replays(svi: am.SVI) -> int:
    return sum(found.replays for found in known(svi))


def captures_of_training(svi: am.SVI) -> int:
    met = svi._stepper._steps()._met.values()
    return sum(found.graph is not None for variants in met for found in variants)


def fitted(
    pair: Callable[[], Pair], mode: Any, train: Any = X, val: Any = VAL, **options: Any
) -> tuple[am.SVI, list[Any]]:
    """A fit, and everything that it leaves: its history, what it moved, and the generators."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, loss = pair()
    svi = am.SVI(model, guide, loss, lr=0.05, compile=mode)
    options = {"max_epochs": 4, "batch_size": 8, "progress": False, "check": False} | options
    history = svi.fit(train, val() if callable(val) else val, **options)
    history.pop("epoch_time")
    moved = {name: t.numpy().tobytes() for name, t in svi._stepper.parameters.snapshot().items()}
    modes = [part.training for part in svi._stepper.parameters.networks]
    return svi, [repr(dict(history)), history.notices, moved, modes, repr(rng_state())]


def agree(pair: Callable[[], Pair], **options: Any) -> am.SVI:
    """Asserts that validation from graphs cannot be told from eager validation."""
    expected = fitted(pair, "off", **options)[1]
    svi, found = fitted(pair, "graph", **options)
    assert found == expected
    assert replays(svi) > 0, "nothing was replayed"
    return svi


# --- structures -----------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Batch norm and dropout, which validation runs in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.layers(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


class Decoder(nn.Module):
    """The model of a small VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layers(z).squeeze(-1), 1.0), obs=x)


class Coder(nn.Module):
    """Its guide."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.layers(x.unsqueeze(-1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def vae(loss: am.VariationalLoss | None = None) -> Pair:
    return Decoder(), Coder(), loss


def batch_norm() -> Pair:
    return tiny.local_model, Encoder(), None


class Clusters(nn.Module):
    """A cluster, a place near its mean, and an observation of that."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-1.0, 1.0, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=x.new_zeros(3)))
            z = pyro.sample("z", dist.Normal(self.means[c], 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class ClusterGuide(nn.Module):
    """Both from the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.cluster = nn.Linear(1, 1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> None:
        rows = x.unsqueeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=self.cluster(rows)))
            pyro.sample("z", dist.Normal(self.place(rows).squeeze(-1), 0.5))


def mixture(estimator: Any) -> Pair:
    return Clusters(), ClusterGuide(), am.VariationalLoss(estimators={"c": estimator})


def masked_model(x: Tensor, mask: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def masked_guide(x: Tensor, mask: Tensor) -> None:
    with pyro.poutine.mask(mask=mask):
        tiny.param_guide(x)


def totals_model(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)


def loader(**options: Any) -> DataLoader:
    return DataLoader(TensorDataset(VAL), batch_size=8, **options)


def own_order() -> DataLoader:
    """Another order at each pass, from a generator of the user's own."""
    return loader(shuffle=True, generator=torch.Generator().manual_seed(5))


PARTICLES = am.VariationalLoss(am.ELBO(num_particles=3))
CASES: dict[str, tuple[Callable[[], Pair], dict[str, Any]]] = {
    "a VAE": (vae, {}),
    "closed forms": (lambda: vae(am.VariationalLoss(am.ELBO(kl="analytic"))), {}),
    "particles": (lambda: vae(PARTICLES), {}),
    "one by one": (lambda: vae(am.VariationalLoss(PARTICLES.objective, vectorize=False)), {}),
    "an enumerated mixture": (lambda: mixture("enumerate"), {}),
    "a score function": (lambda: mixture(am.ScoreFunction()), {}),
    "a stateful baseline": (lambda: mixture(am.ScoreFunction(am.MovingAverage())), {}),
    "leave one out": (lambda: mixture(am.ScoreFunction(am.LeaveOneOut())), {}),
    "batch norm and dropout": (batch_norm, {}),
    "parameters of functions": (lambda: (tiny.local_model, tiny.param_guide, None), {}),
    "a global latent": (lambda: (tiny.global_model, tiny.point_guide(0.5), None), {}),
    "totals": (lambda: (totals_model, tiny.point_guide(0.5), None), {"val": X[:16]}),
    "masks": (
        lambda: (masked_model, masked_guide, None),
        {"train": (X, X > 0), "val": {"x": VAL, "mask": VAL > 0}},
    ),
    "a DataLoader": (vae, {"val": loader}),
    "a DataLoader that shuffles": (vae, {"val": lambda: loader(shuffle=True)}),
    "an order of its own": (vae, {"val": own_order}),
    "no short last batch": (vae, {"val": VAL[:16]}),
    "one batch": (vae, {"val": VAL[:5]}),
    "some batches": (vae, {"val": VAL, "limit_val_batches": 2}),
    "every second epoch": (vae, {"check_val_every_n_epoch": 2, "max_epochs": 9}),
    "a warm-up of the KL": (batch_norm, {"n_epochs_kl_warmup": 3}),
    "a seed": (batch_norm, {"seed": 3}),
    "data of another precision": (vae, {"val": VAL.to(torch.float64).to(torch.float32) * 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_eager_validation(name: str) -> None:
    pair, options = CASES[name]
    agree(pair, **options)


@pytest.mark.float64
@pytest.mark.parametrize("kind", ["normal", "bernoulli"])
@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"control_flow"}))
def test_every_structure(structure: str, kind: str) -> None:
    def pair() -> Pair:
        found = EVERY[structure](kind)
        return found.model, found.guide, None

    agree(pair, train=(), val=())


@pytest.mark.parametrize("name", ["a VAE", "leave one out", "batch norm and dropout", "totals"])
def test_every_term_of_every_batch(name: str) -> None:
    """Terms of single sites are not in the history of a validation."""
    pair, options = CASES[name]
    val = as_batches(options.get("val", VAL), 8)
    found = []
    for mode in ("off", "graph"):
        svi = fitted(pair, mode, val=None)[0]
        svi._stepper.evaluations = Evaluations(mode)
        torch.manual_seed(1)
        for _ in range(3):
            passed = validation(svi, DataPlate(size=len(X)))
            terms = [each for batch in val.epoch() for each, _ in passed.terms(batch)]
            found.append([seen(each) for each in terms])
        found.append(torch.get_rng_state().tolist())
        assert (replays(svi) > 0) is (mode == "graph")
    assert found[:4] == found[4:]
    assert len({str(each) for each in found[:3]}) == (1 if name == "totals" else 3)  # no draws


def validation(svi: am.SVI, data: DataPlate) -> Validation:
    batches = as_batches(X, 8)
    plan = Plan(batches, batches, data, max_epochs=9, max_steps=None, callbacks=[], progress=False)
    return Validation(svi._stepper, plan, svi_state(svi), Parts(), lambda estimate: None)


def svi_state(svi: am.SVI) -> FitState:
    return FitState(svi._stepper.parameters, am.History(9))


def seen(terms: Terms) -> Any:
    values = {name: value.numpy().tobytes() for name, value in terms.values.items()}
    return values, list(values), terms.per_datum, terms.local


# --- what is refused ------------------------------------------------------------------------------


class Watching(nn.Module):
    """`tiny.local_model`, which adds what a function of itself and z gives."""

    def __init__(self, shift: Callable[[Watching, Tensor], Any]) -> None:
        super().__init__()
        self.shift, self.calls, self.number = shift, 0, 0.0

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + self.shift(self, z), 1.0), obs=x)


def watching(shift: Callable[[Watching, Tensor], Any]) -> Callable[[], Pair]:
    return lambda: (Watching(shift), tiny.param_guide, None)


def counted(model: Watching, z: Tensor) -> float:
    model.calls += not model.training
    return 0.0 if model.training else 0.001 * model.calls


def only_in(training: bool, shift: Callable[[Tensor], Any]) -> Callable[[Watching, Tensor], Any]:
    return lambda model, z: shift(z) if model.training is training else 0.0


def read(z: Tensor) -> float:
    return 0.1 if float(z.detach().mean()) > 0 else 0.0


REFUSED: dict[str, tuple[Callable[[Watching, Tensor], Any], str]] = {
    "item": (only_in(False, read), "read the value of a tensor"),
    "a mask": (only_in(False, lambda z: z[z > 0].sum()), "select elements by a mask"),
    "random": (only_in(False, lambda z: 0.1 * random.random()), "generator of Python or numpy"),
    "numpy": (only_in(False, lambda z: 0.1 * float(np.random.rand())), "generator of Python"),
    "a seed": (only_in(False, lambda z: (torch.manual_seed(7), 0.0)[1]), "differs from the eager"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_eager_and_training_is_captured(name: str) -> None:
    shift, reason = REFUSED[name]
    expected = fitted(watching(shift), "off")[1]
    text = f"compile='graph': validation runs eagerly from epoch 1, .*{reason}"
    with pytest.warns(CheckWarning, match=text) as caught:
        svi, found = fitted(watching(shift), "graph")
    assert found == expected
    assert len(caught) == 1 and captures_of_training(svi) == 1
    assert known(svi) == [] and svi._stepper.evaluations.mode == "off"
    svi.fit(X, VAL, max_epochs=2, progress=False)  # and there is no other warning


def test_a_counter_would_stand_still() -> None:
    with pytest.warns(
        CheckWarning, match="validation runs eagerly.*calls while they run"
    ) as caught:
        svi = fitted(watching(counted), "graph")[0]
    assert len(caught) == 1 and captures_of_training(svi) == 1 and known(svi) == []


def test_a_batch_of_objects_is_validated_eagerly() -> None:
    class Rows:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

    def model(x: Tensor, other: Any = None) -> None:
        tiny.local_model(x if other is None else x + other.rows)

    def guide(x: Tensor, other: Any = None) -> None:
        tiny.param_guide(x)

    def pair() -> Pair:
        return model, guide, None

    class Loader(DataLoader):
        def __iter__(self) -> Any:
            return ((x, Rows(x)) for (x,) in super().__iter__())

    val = Loader(TensorDataset(VAL), batch_size=8)
    with pytest.warns(CheckWarning, match="validation runs eagerly.* the batch holds a Rows"):
        found = fitted(pair, "graph", val=val)[1]
    assert found == fitted(pair, "off", val=val)[1]


@pytest.fixture
def eager_to_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trainings are worth a capture."""
    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_STEPS", 5)
    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_EVALUATIONS", 5)
    monkeypatch.setattr("amortized.fit.compiled.steps._LOOK", 3)
    monkeypatch.setattr("amortized.fit.compiled.steps._LOOK_AT_EVALUATIONS", 3)
    monkeypatch.setattr("amortized.fit.compiled.choice._VETO", 1e9)


@pytest.mark.usefixtures("eager_to_capture")
def test_a_training_that_cannot_be_captured_leaves_validation_captured() -> None:
    pair = watching(only_in(True, read))
    with pytest.warns(CheckWarning, match="training goes on eagerly.*read the value") as caught:
        svi, found = fitted(pair, "auto", max_epochs=12)
    assert len(caught) == 1 and replays(svi) > 0
    assert found == fitted(pair, "off", max_epochs=12)[1]


@pytest.mark.usefixtures("eager_to_capture")
def test_a_reason_that_training_has_told_is_not_told_again() -> None:
    pair = watching(lambda model, z: read(z))
    with pytest.warns(CheckWarning, match="training goes on eagerly.*read the value") as caught:
        svi, found = fitted(pair, "auto", max_epochs=12)
    assert len(caught) == 1
    assert (svi._stepper.compile, svi._stepper.evaluations.mode) == ("off", "off")
    assert found == fitted(pair, "off", max_epochs=12)[1]


# --- what changes ---------------------------------------------------------------------------------


class Hidden:
    """A number in a place that nobody looks at."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0


def drifting(mode: str, **options: Any) -> tuple[am.SVI, list[float]]:
    """From the sixth pass on a program has another number in eval mode."""
    hidden, numbers = Hidden(), []

    def note(state: FitState) -> None:
        numbers.append(state.history["val_loss"][-1])
        hidden.number = float(state.epoch >= 5)

    pair = watching(only_in(False, lambda z: hidden.number))
    svi, _ = fitted(pair, mode, val=VAL[:8], max_epochs=30, callbacks=[note], **options)
    return svi, numbers


def test_drift_ends_a_training_that_asked_for_graphs() -> None:
    with pytest.raises(
        ProgramError,
        match=r"epoch 12, validation batch 1: compile='graph': the graph of validation no longer "
        r"serves: its replay differs from the eager step.*compile='off'",
    ):
        drifting("graph")


@pytest.mark.usefixtures("eager_to_capture")
def test_after_drift_auto_says_which_numbers_are_in_doubt() -> None:
    with pytest.warns(CheckWarning, match="validation runs eagerly from epoch 14") as caught:
        svi, found = drifting("auto")
    assert "may be wrong from epoch 5 to 14" in str(caught[0].message) and len(caught) == 1
    assert svi._stepper.compile == "auto" and captures_of_training(svi) == 1
    right = drifting("off")[1]
    assert found[:5] == right[:5] and found[13:] == right[13:]
    assert found[5:13] != right[5:13]


def beta_at(epochs: Iterable[int]) -> Callable[..., tuple[am.SVI, list[Any]]]:
    """Fits of a program whose number in eval mode is changed after some epochs."""

    def run(mode: str, **options: Any) -> tuple[am.SVI, list[Any]]:
        model = Watching(lambda model, z: 0.0 if model.training else model.number)

        def change(state: FitState) -> None:
            model.number += float(state.epoch in epochs)

        pair = lambda: (model, tiny.param_guide, None)  # noqa: E731
        return fitted(pair, mode, callbacks=[change], **options)

    return run


def test_a_number_that_was_changed_has_a_graph_of_its_own() -> None:
    run = beta_at({2, 4})
    svi, found = run("graph", max_epochs=6)
    assert found == run("off", max_epochs=6)[1]
    assert sum(s.graph is not None for s in known(svi)) == 6  # two sizes, three numbers


@pytest.mark.usefixtures("eager_to_capture")
def test_auto_does_not_capture_what_changes_too_soon() -> None:
    """Five replays repay a capture here: there are six, and then two."""
    run = beta_at(range(9, 40, 2))
    svi, found = run("auto", max_epochs=40, val=VAL[:8])
    assert found == run("off", max_epochs=40, val=VAL[:8])[1]
    assert sum(s.graph is not None for s in known(svi)) == 2
    assert replays(svi) == 8


def test_what_a_callback_does_to_parameters_is_seen() -> None:
    class Halved(am.Callback):
        def on_train_epoch_end(self, state: FitState) -> None:
            for tensor in state.parameters.tensors().values():
                if tensor.is_floating_point():
                    tensor.data.mul_(0.5)

    agree(batch_norm, callbacks=[Halved()], max_epochs=6)


def test_eval_mode_is_that_of_the_users_modules() -> None:
    def shift(model: Watching, z: Tensor) -> Any:
        return torch.where(z > 0, 1.0, 0.0) if model.training else 0.0

    agree(watching(shift))


# --- numbers that are not finite ------------------------------------------------------------------


def overflowing(model: Watching, z: Tensor) -> Any:
    """Infinite for some draws of a generator of the program's own, in eval mode."""
    if model.training:
        return 0.0
    return torch.where(torch.rand((), generator=model.own) < 0.3, torch.inf, 0.0)


def own_generator() -> Pair:
    model = Watching(overflowing)
    model.own = torch.Generator().manual_seed(1)
    return model, tiny.param_guide, None


def test_numbers_that_are_not_finite_are_noted_as_in_eager_validation() -> None:
    svi = agree(own_generator, non_finite="skip", max_epochs=8)
    assert any("validation batch" in notice for notice in fitted_notices(svi))


def fitted_notices(svi: am.SVI) -> list[str]:
    options = {"max_epochs": 3, "batch_size": 8, "progress": False, "check": False}
    return svi.fit(X, VAL, non_finite="skip", **options).notices


def test_numbers_that_are_not_finite_end_training_as_in_eager_validation() -> None:
    errors = []
    for mode in ("off", "graph"):
        with pytest.raises(NonFiniteError) as error:
            fitted(own_generator, mode, max_epochs=30)
        errors.append((str(error.value), error.value.table))
    assert errors[0] == errors[1]
    assert "validation batch" in errors[0][0] and "site 'x'" in errors[0][0]


def test_what_a_batch_did_to_buffers_is_done_once() -> None:
    """A count in a buffer, and a loss that is infinite at every fifth run."""

    def shift(model: Watching, z: Tensor) -> Tensor:
        if not model.training:
            model.count.add_(1)
        return torch.where(model.count % 5 == 4, torch.inf, 0.0)

    def pair() -> Pair:
        model = Watching(shift)
        model.register_buffer("count", torch.tensor(0))
        return model, tiny.param_guide, None

    agree(pair, non_finite="skip", max_epochs=8)


# --- memory ---------------------------------------------------------------------------------------


def test_parts_of_batches_have_graphs_of_their_own() -> None:
    sizes: list[int] = []

    def model(x: Tensor) -> None:
        if not torch.is_grad_enabled() and len(x) > 3:
            sizes.append(len(x))
            raise MemoryError
        tiny.local_model(x)

    def pair() -> Pair:
        return model, tiny.param_guide, None

    svi = agree(pair, train=X[:3], val=VAL[:11])
    assert sizes == [8, 4] * 2
    assert sum(s.graph is not None for s in known(svi)) == 2  # of two rows, and of one


def test_the_data_are_not_kept() -> None:
    model, guide, _ = vae()
    svi, data = am.SVI(model, guide, compile="graph"), tiny.data(30)
    watched = weakref.ref(data)
    svi.fit(data, data[:8], max_epochs=3, progress=False)
    assert replays(svi) > 0
    del data
    gc.collect()
    assert watched() is None


def test_data_count_and_not_batches() -> None:
    """Nothing is random: nine rows in two batches have the mean of nine rows in one."""

    def pair() -> Pair:
        return tiny.global_model, tiny.point_guide(0.5), None

    found = []
    for val in (loader_of(VAL[:9], 8), loader_of(VAL[:9], 9)):
        svi = fitted(pair, "graph", train=X[:8], val=val)[0]
        assert replays(svi) > 0
        found.append(svi.fit(X[:8], val, max_epochs=1, seed=0, progress=False)["val_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def loader_of(rows: Tensor, batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(rows), batch_size)


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "captured"), [(10, False), (99, False), (100, True)])
def test_auto_captures_what_pays_for_itself(epochs: int, captured: bool) -> None:
    options = {"train": X[:8], "val": VAL[:8], "max_epochs": epochs}
    svi, found = fitted(vae, "auto", **options)
    assert (replays(svi) > 0 or any(s.eager for s in known(svi))) is captured
    assert found == fitted(vae, "off", **options)[1]


def plan(**options: Any) -> Plan:
    train = as_batches(X, 5)  # five batches
    given: dict[str, Any] = {"max_epochs": None, "max_steps": None, "callbacks": []} | options
    given = {"val": as_batches(VAL, 8), "progress": False, **given}
    if given["max_epochs"] is None and given["max_steps"] is None:
        given["callbacks"] = [am.EarlyStopping(patience=3)]
    return Plan(train=train, data=DataPlate(), **given)


@pytest.mark.parametrize(
    ("options", "epoch", "step", "expected"),
    [
        ({"max_epochs": 10}, 1, 5, 30),
        ({"max_epochs": 10}, 10, 50, 3),
        ({"max_epochs": 10, "limit_val_batches": 2}, 4, 20, 14),
        ({"max_epochs": 10, "check_val_every_n_epoch": 4}, 4, 20, 6),
        ({"max_steps": 23}, 1, 5, 15),
        ({"max_steps": 23}, 5, 23, 3),
        ({"max_steps": 23, "accumulate_grad_batches": 2}, 1, 3, 24),
        ({"max_epochs": 3, "max_steps": 500}, 1, 5, 9),
        ({}, 1, 5, None),
        ({"max_epochs": 10, "val": as_batches(DataLoader(iter([]), None))}, 1, 5, None),  # type: ignore[arg-type]
    ],
)
def test_batches_to_come(
    options: dict[str, Any], epoch: int, step: int, expected: int | None
) -> None:
    assert to_come(plan(**options), epoch, step) == expected


def test_checks_and_a_search_for_anomalies_are_eager() -> None:
    svi = fitted(vae, "graph", detect_anomaly=True)[0]
    assert replays(svi) == 0 and known(svi) == []
    model, guide, _ = vae()
    svi = am.SVI(model, guide, validate=True)
    assert svi._stepper.evaluations.mode == "off"
    assert known(fitted(vae, "off")[0]) == []


# --- from one fit to the next ---------------------------------------------------------------------


def again(svi: am.SVI) -> str:
    """One more epoch, validated once in batches of a size that was met."""
    options = {"max_epochs": 1, "batch_size": 8, "seed": 7, "progress": False}
    return repr(svi.fit(X, VAL, **options)["val_loss"])


def test_graphs_serve_the_next_fit_and_copies_have_their_own() -> None:
    svi, expected = fitted(vae, "graph")[0], again(fitted(vae, "off")[0])
    copied = copy.deepcopy(svi)
    graphs, before = known(svi), replays(svi)
    assert again(svi) == expected
    assert known(svi) == graphs and replays(svi) == before + 3
    assert known(copied) == []
    assert again(copied) == expected  # where the first was before it went on


def test_other_parts_have_other_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = fitted(vae, "graph")[0]._stepper
    found = [_made_for(stepper)]
    assert found == [_made_for(stepper)]
    stepper.loss.estimators.by_site["another"] = am.Pathwise()
    found.append(_made_for(stepper))
    with stepper.parameters.scope():
        pyro.param("another", torch.zeros(()))
    found.append(_made_for(stepper))
    monkeypatch.setattr(stepper.parameters, "first", lambda: torch.zeros((), device="meta"))
    found.append(_made_for(stepper))
    assert len(set(found)) == 4


def test_pickles_capture_anew() -> None:
    svi = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide(), compile="graph")
    svi.fit(X, VAL, max_epochs=3, batch_size=8, seed=0, progress=False)
    assert replays(svi) > 0
    read_back = pickle.loads(pickle.dumps(svi))
    assert known(read_back) == []
    assert again(read_back) == again(svi)


def test_resume_is_exact(tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    def stop(state: FitState) -> None:
        if state.epoch == 3:
            raise Stop

    whole = fitted(batch_norm, "graph", max_epochs=6)[1][:3]
    assert whole == fitted(batch_norm, "off", max_epochs=6)[1][:3]
    for step in (1, 3):  # in the middle of an epoch, and at its end
        folder, saving = tmp_path / str(step), am.ModelCheckpoint
        with pytest.raises(Stop):
            options = {"max_epochs": 6, "callbacks": [saving(folder, every_n_steps=step), stop]}
            fitted(batch_norm, "graph", **options)
        svi, found = fitted(batch_norm, "graph", max_epochs=6, resume_from=folder)
        assert found[:3] == whole and replays(svi) > 0


def test_validation_is_replayed_and_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Evaluations("inductor").mode == "graph"

    def compiled(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("validation was compiled")

    monkeypatch.setattr("amortized.fit.compiled.steps.compiled_step", compiled)
    monkeypatch.setattr("amortized.fit.compiled.steps.worth_compiling", lambda *args: True)
    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_STEPS", 10**9)
    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_EVALUATIONS", 5)
    monkeypatch.setattr("amortized.fit.compiled.choice._VETO", 1e9)
    svi = fitted(vae, "auto", val=VAL[:8], max_epochs=70)[0]
    assert replays(svi) == 50


# --- changes that each of these must notice -------------------------------------------------------


def other_term(step: Any) -> Any:
    def changed(*tensors: Tensor) -> list[Tensor]:
        loss, norm, terms = step(*tensors)
        return [loss, norm, terms * torch.tensor([1.0] * (len(terms) - 1) + [1.0001])]

    return changed


def other_draws(step: Any) -> Any:
    def changed(*tensors: Tensor) -> list[Tensor]:
        found = step(*tensors)
        torch.rand(1)
        return found

    return changed


@pytest.mark.parametrize("mutant", [other_term, other_draws])
def test_the_audit_refuses_a_replay_that_differs(
    mutant: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fitted(vae, "off")[1]
    replay_of = CompiledSteps.__dict__["_take"].__globals__["replay_of"]
    monkeypatch.setattr(
        "amortized.fit.compiled.steps.replay_of",
        lambda module: mutant(replay_of(module)) if outputs(module) == 3 else replay_of(module),
    )
    with pytest.warns(CheckWarning, match="validation runs eagerly.*differs from the eager step"):
        found = fitted(vae, "graph")[1]
    assert found == right


def outputs(module: Any) -> int:
    """Three of an evaluation; a step of training has gradients too."""
    return len(next(iter(reversed(module.graph.nodes))).args[0])
