"""A training that is interrupted anywhere and resumed ends bit for bit where it would have."""

import functools
import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import amortized as am
from amortized.errors import CheckpointError
from amortized.fit import checkpoint, loop, progress, resume
from amortized.fit.callbacks import Callback
from tests.fit import tiny

EXPONENTIAL = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=40)
PLATEAU = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
SIZE, BATCH, EPOCHS = 40, 7, 3  # 6 batches an epoch, the last one short


class Stop(Exception):
    """Stands for whatever ends a process."""


class StopAt(Callback):
    """Raises after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state) -> None:
        if state.step == self.step:
            raise Stop


class Noisy(nn.Module):
    """A guide with everything that moves: dropout, batch norm, a Python and a numpy draw."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )

    def forward(self, x):
        jitter = 0.01 * (random.random() + float(np.random.rand()))
        loc, log_scale = (self.layers(x.unsqueeze(-1)) + jitter).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def bit_model(x):
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.full((len(x),), 0.4)))
        pyro.sample("x", dist.Normal(weight * c, 1.0), obs=x)


def bit_guide(x):
    logit = pyro.param("logit", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=logit * x))


def noisy() -> am.SVI:
    pyro.set_rng_seed(0)
    return am.SVI(tiny.local_model, Noisy(), lr=0.01)


def stored() -> am.SVI:
    return am.SVI(tiny.local_model, tiny.param_guide, lr=0.05, optimizer=torch.optim.SGD)


def baseline(kind: str) -> am.SVI:
    pyro.set_rng_seed(0)
    return am.SVI(bit_model, bit_guide, am.VariationalLoss(estimators=kind), lr=0.02)


def closing_over_a_network() -> am.SVI:
    pyro.set_rng_seed(1)
    network = Noisy()

    def guide(x):
        pyro.module("network", network)
        network(x)

    return am.SVI(tiny.local_model, guide, lr=0.01)


PAIRS = {
    "dropout, batch norm, Python's generators": noisy,
    "pyro.param and SGD": stored,
    "a moving average": lambda: baseline("moving_average"),
    "a neural baseline": lambda: baseline("neural_baseline"),
    "a network closed over": closing_over_a_network,
}


class Jittered(Dataset):
    """Items with noise of their own, from the global generator."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int):
        return tiny.data(SIZE)[index] + 0.1 * torch.randn(())


def own_generator() -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(tiny.data(SIZE)), BATCH, shuffle=True, generator=generator)


DATA = {
    "a tensor": lambda: tiny.data(SIZE),
    "a loader": lambda: DataLoader(TensorDataset(tiny.data(SIZE)), BATCH, shuffle=True),
    "a loader with its own generator": own_generator,
    "a dataset with random items": Jittered,
}

OPTIONS = {
    "plain": {},
    "validation and early stopping": {"val": tiny.data(9)},
    "a scheduler each epoch": {"scheduler": EXPONENTIAL},
    "a scheduler each step": {"scheduler": ONE_CYCLE, "scheduler_interval": "step"},
    "a scheduler on the loss": {"scheduler": PLATEAU, "val": tiny.data(9)},
    "accumulation": {"accumulate_grad_batches": 4},
    "a warm-up and clipping": {"n_epochs_kl_warmup": 3, "gradient_clip_val": 0.1},
    "half of the batches": {"limit_train_batches": 3},
}


def everything(svi: am.SVI, history: am.History) -> dict[str, object]:
    """What must agree: parameters, buffers, estimators, optimizer, history, generators."""
    state = svi._stepper.state_dict()
    recorded = {key: values for key, values in history.items() if key != "epoch_time"}
    flat = dict(state["parameters"])
    for name, of in state["optimizer"]["state"].items():
        flat |= {f"{name}/{key}": torch.as_tensor(value) for key, value in of.items()}
    rates = [group["lr"] for group in state["optimizer"]["groups"]]
    return {"tensors": flat, "rates": rates, "steps": state["steps"], "history": recorded}


def same(first: dict, second: dict) -> None:
    assert first["tensors"].keys() == second["tensors"].keys()
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name
    for key in ("rates", "steps"):
        assert first[key] == second[key], key
    assert first["history"].keys() == second["history"].keys()
    for key, values in first["history"].items():
        assert np.array_equal(values, second["history"][key], equal_nan=True), key


def callbacks(folder, every: int | None, *more: Callback) -> list:
    stopping = am.EarlyStopping("train_elbo", patience=3, mode="max")
    return [stopping, am.ModelCheckpoint(folder, "train_loss", every_n_steps=every), *more]


def interrupted_and_resumed(make, data, options, folder, at: int, every: int | None) -> None:
    fit = {"max_epochs": EPOCHS, "batch_size": BATCH, "progress": False, "seed": 3} | options
    whole = make()
    expected = whole.fit(data(), callbacks=callbacks(folder / "whole", every), **fit)
    with pytest.raises(Stop):
        make().fit(data(), callbacks=callbacks(folder / "cut", every, StopAt(at)), **fit)
    again = make()
    found = again.fit(
        data(), callbacks=callbacks(folder / "cut", every), resume_from=folder / "cut", **fit
    )
    same(everything(whole, expected), everything(again, found))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("at", "every"), [(3, 1), (8, 2), (14, None)], ids=str)
def test_every_pair(tmp_path, pair: str, at: int, every: int | None) -> None:
    interrupted_and_resumed(PAIRS[pair], DATA["a tensor"], {}, tmp_path, at, every)


@pytest.mark.parametrize("data", DATA)
def test_every_kind_of_data(tmp_path, data: str) -> None:
    interrupted_and_resumed(noisy, DATA[data], {}, tmp_path, 9, 2)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(tmp_path, options: str) -> None:
    at = 5 if "accumul" in options else 9
    interrupted_and_resumed(noisy, DATA["a tensor"], OPTIONS[options], tmp_path, at, 2)


@pytest.mark.parametrize("at", [1, 5, 6, 7, 12])
def test_every_step(tmp_path, at: int) -> None:
    """Epoch ends among them: the last step of an epoch is saved before its validation."""
    interrupted_and_resumed(noisy, DATA["a tensor"], {"val": tiny.data(9)}, tmp_path, at, 1)


def test_the_limit_of_steps_counts_what_was_taken_before(tmp_path) -> None:
    fit = {"max_steps": 8, "batch_size": BATCH, "progress": False, "seed": 3}
    whole, cut, again = noisy(), noisy(), noisy()
    expected = whole.fit(tiny.data(SIZE), **fit)
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=1)
    with pytest.raises(Stop):
        cut.fit(tiny.data(SIZE), callbacks=[saving, StopAt(8)], **fit)
    found = again.fit(tiny.data(SIZE), resume_from=tmp_path, **fit)
    same(everything(whole, expected), everything(again, found))


def test_a_finished_training_stays_finished(tmp_path) -> None:
    fit = {"max_epochs": 2, "batch_size": BATCH, "progress": False, "seed": 3}
    done = noisy()
    history = done.fit(tiny.data(SIZE), callbacks=[am.ModelCheckpoint(tmp_path)], **fit)
    again = noisy()
    same(
        everything(done, history),
        everything(again, again.fit(tiny.data(SIZE), resume_from=tmp_path, **fit)),
    )


def test_a_training_that_stopped_early_stays_stopped(tmp_path) -> None:
    fit = {"max_epochs": 9, "batch_size": BATCH, "progress": False, "seed": 3}
    stopping = am.EarlyStopping("train_loss", patience=1, min_delta=100.0)
    whole, cut, again = noisy(), noisy(), noisy()
    expected = whole.fit(tiny.data(SIZE), callbacks=[stopping], **fit)
    cut.fit(tiny.data(SIZE), callbacks=[stopping, am.ModelCheckpoint(tmp_path)], **fit)
    found = again.fit(tiny.data(SIZE), callbacks=[stopping], resume_from=tmp_path, **fit)
    same(everything(whole, expected), everything(again, found))
    assert found.stopped == expected.stopped == "early stopped" and len(found["train_loss"]) == 2


def test_more_epochs_go_on_from_the_end(tmp_path) -> None:
    fit = {"batch_size": BATCH, "progress": False, "seed": 3}
    whole, first, again = noisy(), noisy(), noisy()
    expected = whole.fit(tiny.data(SIZE), max_epochs=3, **fit)
    first.fit(tiny.data(SIZE), max_epochs=2, callbacks=[am.ModelCheckpoint(tmp_path)], **fit)
    found = again.fit(tiny.data(SIZE), max_epochs=3, resume_from=tmp_path, **fit)
    same(everything(whole, expected), everything(again, found))


class SaveAt(Callback):
    """Saves once, in a hook."""

    def __init__(self, folder, hook: str, epoch: int) -> None:
        self.folder, self.hook, self.epoch = folder, hook, epoch

    def __getattribute__(self, name: str):
        if name != f"on_{super().__getattribute__('hook')}":
            return super().__getattribute__(name)
        return self.save

    def save(self, state) -> None:
        if state.epoch == self.epoch and not checkpoint.listed(self.folder):
            state.save(self.folder)


HOOKS = [
    ("fit_start", 0),
    ("train_epoch_start", 1),
    ("train_epoch_start", 2),
    ("validation_epoch_end", 2),
    ("train_epoch_end", 1),
    ("fit_end", 3),
]


@pytest.mark.parametrize("data", ["a tensor", "a loader", "a loader with its own generator"])
@pytest.mark.parametrize(("hook", "epoch"), HOOKS, ids=str)
def test_a_callback_may_save_in_every_hook(tmp_path, hook: str, epoch: int, data: str) -> None:
    """Before the first batch too; nothing is passed over and nothing done twice."""
    options = {"max_epochs": 3, "batch_size": BATCH, "progress": False, "val": tiny.data(9)}
    options |= {"seed": 3, "scheduler": EXPONENTIAL, "check": False}

    def watching() -> list[Callback]:  # after the one that saves
        return [am.EarlyStopping("train_elbo", patience=3, mode="max")]

    whole, again = noisy(), noisy()
    expected = whole.fit(DATA[data](), callbacks=watching(), **options)
    saving = noisy()
    stale = watching()
    stale[0].best, stale[0].waited = -math.inf, 2  # of an earlier training, until it starts anew
    first = saving.fit(DATA[data](), callbacks=[SaveAt(tmp_path, hook, epoch), *stale], **options)
    same(everything(whole, expected), everything(saving, first))
    found = again.fit(DATA[data](), callbacks=watching(), resume_from=tmp_path, **options)
    same(everything(whole, expected), everything(again, found))


def test_a_save_before_the_callbacks_have_their_state_keeps_it(tmp_path) -> None:
    """Of a training that is resumed, and resumed again from what its start had saved."""
    options = {"max_epochs": 9, "batch_size": BATCH, "progress": False, "seed": 3}

    def stopping() -> am.EarlyStopping:
        return am.EarlyStopping("train_loss", patience=3, min_delta=100.0)

    noisy().fit(
        tiny.data(SIZE),
        callbacks=[stopping(), am.ModelCheckpoint(tmp_path / "a")],
        **options | {"max_epochs": 2},
    )
    first = SaveAt(tmp_path / "b", "fit_start", 2)
    noisy().fit(
        tiny.data(SIZE), callbacks=[first, stopping()], resume_from=tmp_path / "a", **options
    )
    found = noisy().fit(
        tiny.data(SIZE), callbacks=[stopping()], resume_from=tmp_path / "b", **options
    )
    assert (found.epochs, found.stopped) == (4, "early stopped")


def test_seconds_count_what_came_before_the_resume(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])

    class Tick(Callback):
        def on_train_batch_end(self, state) -> None:
            now[0] += 1.0

    fit = {"max_epochs": 3, "batch_size": BATCH, "progress": False, "seed": 3}
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path, every_n_steps=2, save_on_exception=False)
        noisy().fit(tiny.data(SIZE), callbacks=[Tick(), StopAt(9), saving], **fit)
    now[0] += 1000.0
    history = noisy().fit(tiny.data(SIZE), callbacks=[Tick()], resume_from=tmp_path, **fit)
    assert history["epoch_time"] == [6.0, 6.0, 6.0] and history.train_seconds == 18.0


def test_the_progress_line_goes_on_where_training_stands(tmp_path, monkeypatch) -> None:
    fit = {"batch_size": BATCH, "seed": 3}
    saving = am.ModelCheckpoint(tmp_path)
    noisy().fit(tiny.data(SIZE), max_epochs=2, callbacks=[saving], progress=False, **fit)
    asked = []
    silent = progress.Silent()
    monkeypatch.setattr(loop, "reporter", lambda *given: asked.append(given) or silent)
    noisy().fit(tiny.data(SIZE), max_epochs=3, resume_from=tmp_path, **fit)
    assert asked == [(True, 3, 18, 12)]


@pytest.mark.parametrize("left_out", ["rng", "start", "optimizer", "averager", "parameters"])
def test_the_comparison_can_fail(tmp_path, monkeypatch, left_out: str) -> None:
    """A checkpoint without one of its parts leads elsewhere."""
    real = checkpoint.read

    def broken(path, map_location="cpu"):
        found = real(path, map_location)
        if left_out == "rng":
            found.state["moment"]["rng"]["torch"] = torch.Generator().manual_seed(9).get_state()
        elif left_out == "start":
            found.state["moment"]["start"]["shuffle"] = torch.Generator().manual_seed(9).get_state()
        elif left_out == "optimizer":
            found.state["optimizer"]["state"].clear()
        elif left_out == "averager":
            found.state["moment"]["averager"]["totals"]["loss"] += 1.0
        else:
            found.state["parameters"]["guide.layers.1.running_mean"] += 1e-6
        return found

    monkeypatch.setattr(checkpoint, "read", broken)
    with pytest.raises(AssertionError):
        interrupted_and_resumed(noisy, DATA["a tensor"], {}, tmp_path, 9, 2)


def test_a_changed_program_is_reported_by_name_and_shape(tmp_path) -> None:
    fit = {"max_epochs": 1, "batch_size": BATCH, "progress": False}
    noisy().fit(tiny.data(SIZE), callbacks=[am.ModelCheckpoint(tmp_path)], **fit)
    guide = Noisy()
    guide.layers[4] = nn.Linear(8, 3)
    changed = am.SVI(tiny.local_model, guide)
    guide.forward = lambda x: None  # it is not run before it is compared
    with pytest.raises(CheckpointError, match=r"guide\.layers\.4\.weight: the file has \(2, 8\)"):
        changed.load(tmp_path)


@pytest.mark.parametrize("change", [{"batch_size": 5}, {"limit_train_batches": 2}])
def test_other_data_or_batches_are_refused(tmp_path, change) -> None:
    fit = {"max_epochs": 1, "batch_size": BATCH, "progress": False}
    noisy().fit(tiny.data(SIZE), callbacks=[am.ModelCheckpoint(tmp_path)], **fit)
    with pytest.raises(CheckpointError, match="batches"):
        noisy().fit(tiny.data(SIZE), resume_from=tmp_path, **{**fit, **change})


def test_what_save_wrote_is_no_training(tmp_path) -> None:
    svi = noisy()
    svi.step(tiny.data(8))
    path = svi.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"am\.load"):
        noisy().fit(tiny.data(SIZE), max_epochs=1, resume_from=path)


def test_another_number_of_threads_is_told(tmp_path) -> None:
    fit = {"max_epochs": 1, "batch_size": BATCH, "progress": False}
    noisy().fit(tiny.data(SIZE), callbacks=[am.ModelCheckpoint(tmp_path)], **fit)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match="threads"):
            noisy().fit(tiny.data(SIZE), resume_from=tmp_path, **fit)
    finally:
        torch.set_num_threads(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noisy().fit(tiny.data(SIZE), resume_from=tmp_path, **fit)


class Cut(Callback):
    """Ends training when the first validation is done, and not yet recorded."""

    def on_validation_epoch_end(self, state) -> None:
        raise Stop


def test_a_validation_that_was_cut_short_comes_again_in_the_same_order(tmp_path) -> None:
    def fit(*callbacks: Callback, **options) -> am.History:
        own = torch.Generator().manual_seed(1)
        val = DataLoader(TensorDataset(tiny.data(12)), 5, shuffle=True, generator=own)
        svi = am.SVI(tiny.local_model, tiny.param_guide)
        given = {"max_epochs": 2, "seed": 3, "progress": False, "limit_val_batches": 1} | options
        return svi.fit((tiny.data(20),), val, batch_size=8, callbacks=callbacks, **given)

    with pytest.raises(Stop):
        fit(Cut(), am.ModelCheckpoint(tmp_path))
    again = fit(am.ModelCheckpoint(tmp_path), seed=None, resume_from=tmp_path)
    assert again["val_loss"] == fit()["val_loss"]


class Count(Callback):
    """Counts what it is told, and may end training when it is."""

    def __init__(self, hook: str, stop_at: int | None = None) -> None:
        self.hook, self.stop_at, self.told = hook, stop_at, 0

    def __getattribute__(self, name: str):
        if name != f"on_{super().__getattribute__('hook')}":
            return super().__getattribute__(name)
        return self.hear

    def hear(self, state) -> None:
        self.told += 1
        if self.told == self.stop_at:
            raise Stop

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state) -> None:
        self.told = state["told"]


TOLD = ["train_epoch_start", "train_batch_end", "validation_epoch_end", "train_epoch_end"]


@pytest.mark.parametrize("hook", TOLD)
def test_a_callback_that_raises_leaves_the_others_told_once(tmp_path, hook: str) -> None:
    """Those before it have heard of the moment, those after it have not."""
    options = {"max_epochs": 4, "batch_size": BATCH, "progress": False, "val": tiny.data(9)}
    options |= {"seed": 3, "check": False}

    def all_of(folder: str, stop_at: int | None = None) -> list[Callback]:
        stopping = am.EarlyStopping("train_elbo", patience=1, min_delta=100.0, mode="max")
        counts = [Count(hook), Count(hook, stop_at), Count(hook)]
        return [*counts, stopping, am.ModelCheckpoint(tmp_path / folder)]

    whole, again, uncut, after = noisy(), noisy(), all_of("whole"), all_of("cut")
    expected = whole.fit(tiny.data(SIZE), callbacks=uncut, **options)
    with pytest.raises(Stop):
        noisy().fit(tiny.data(SIZE), callbacks=all_of("cut", 2), **options)
    found = again.fit(tiny.data(SIZE), callbacks=after, resume_from=tmp_path / "cut", **options)
    same(everything(whole, expected), everything(again, found))
    told = [[c.told for c in callbacks if isinstance(c, Count)] for callbacks in (uncut, after)]
    assert told[0] == told[1] and found.stopped == expected.stopped == "early stopped"
