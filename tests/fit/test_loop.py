import itertools
import math

import pytest
import torch
from torch import nn

from amortized.errors import NonFiniteError, UsageError
from amortized.fit.callbacks import Callback, EarlyStopping, FitState
from amortized.fit.data import as_batches
from amortized.fit.loop import Loop, Plan
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.step import Stepper
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate
from tests.fit import tiny


def plan(train=None, val=None, batch_size=16, **options) -> Plan:
    options = {"max_epochs": None, "max_steps": None, "callbacks": [], **options}
    return Plan(
        train=as_batches(tiny.data(40) if train is None else train, batch_size),
        val=None if val is None else as_batches(val, batch_size),
        data=DataPlate(None, 40),
        progress=False,
        **options,
    )


def loop(wanted: Plan, model=tiny.local_model, guide=tiny.param_guide, lr: float = 0.01) -> Loop:
    optimizer = GroupedOptimizer(torch.optim.Adam, lr)
    return Loop(Stepper(model, guide, VariationalLoss(), optimizer), wanted)


class Recorder(Callback):
    """Every hook that was called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str):
        if name.startswith("on_"):
            return lambda state, *error: self.calls.append(name)
        return super().__getattribute__(name)


def test_hooks_are_called_in_order() -> None:
    recorder = Recorder()
    loop(plan(val=tiny.data(8), max_epochs=1, callbacks=[recorder])).run()
    assert recorder.calls == [
        "on_fit_start",
        "on_train_epoch_start",
        *["on_train_batch_end"] * 3,
        "on_validation_epoch_end",
        "on_train_epoch_end",
        "on_fit_end",
    ]


def test_the_keys_of_the_history() -> None:
    history = loop(plan(val=tiny.data(8), max_epochs=2)).run()
    train = {"train_loss", "train_elbo", "reconstruction", "kl", "kl/z", "epoch_time"}
    train |= {"grad_norm", "lr"}
    assert set(history) == train | {"val_loss", "val_elbo", "val_reconstruction", "val_kl"}
    for values in history.values():
        assert len(values) == 2 and all(type(v) is float and math.isfinite(v) for v in values)
    assert history["train_elbo"][0] == -history["train_loss"][0]
    assert history.stopped is None and history.per_datum


def test_the_mean_of_an_epoch_weighs_data_not_batches() -> None:
    # Nothing is learned and nothing is random: the mean over batches 16, 16, 8 is the full loss.
    x = tiny.data(40)
    found = loop(plan(x, max_epochs=1), tiny.global_model, tiny.point_guide(0.5), lr=0.0).run()
    likelihood = tiny.normal_log_prob(x, 0.5).mean().item()
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item() / 40
    assert found["train_elbo"][0] == pytest.approx(likelihood + prior, rel=1e-5)
    assert found["reconstruction"][0] == pytest.approx(likelihood, rel=1e-5)
    assert found["kl"][0] == pytest.approx(-prior, rel=1e-4)


@pytest.mark.parametrize(
    ("ends", "steps", "epochs"),
    [
        ({"max_epochs": 2}, 6, 2),
        ({"max_steps": 4}, 4, 2),
        ({"max_epochs": 1, "max_steps": 9}, 3, 1),
        ({"max_epochs": 9, "max_steps": 3}, 3, 1),
    ],
)
def test_it_ends_at_the_first_of_both_limits(ends, steps: int, epochs: int) -> None:
    running = loop(plan(**ends))
    history = running.run()
    assert (running.stepper.steps, history.epochs) == (steps, epochs)
    assert running.plan.steps == min([ends.get("max_steps", 99), 3 * ends.get("max_epochs", 99)])


def test_validation_disturbs_neither_training_nor_modes() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.seen = nn.Dropout(0.5), []

        def forward(self, x):
            self.seen.append(self.training)
            tiny.local_model(self.drop(x))

    ends = []
    for val in (None, tiny.data(20)):
        torch.manual_seed(3)
        model = Noisy()
        history = loop(plan(val=val, max_epochs=2), model).run()
        ends.append(history["train_loss"])
        assert model.training and (False in model.seen) is (val is not None)
    assert ends[0] == ends[1]


def test_validation_uses_the_same_noise_at_each_epoch() -> None:
    found = loop(plan(val=tiny.data(20), max_epochs=3), lr=0.0).run()["val_elbo"]
    assert len(set(found)) == 1


def test_early_stopping_is_recorded() -> None:
    stopping = EarlyStopping(patience=1, min_delta=1e9)
    history = loop(plan(val=tiny.data(20), callbacks=[stopping])).run()
    assert history.epochs == 2 and history.stopped == "early stopped"


def test_ctrl_c_keeps_what_was_learned_and_the_started_epoch() -> None:
    class Impatient(Recorder):
        def __getattribute__(self, name: str):
            if name == "on_train_batch_end" and self.calls.count("on_train_epoch_start") == 2:
                raise KeyboardInterrupt
            return super().__getattribute__(name)

    impatient = Impatient()
    running = loop(plan(max_epochs=9, callbacks=[impatient]))
    history = running.run()
    assert (history.stopped, history.epochs, running.stepper.steps) == ("interrupted", 2, 4)
    assert impatient.calls[-2:] == ["on_exception", "on_fit_end"]
    assert running.stepper.parameters.tensors()["store.slope"].item() != 0.0


def test_a_non_finite_loss_names_epoch_and_step() -> None:
    class Poison(Callback):
        def on_train_batch_end(self, state: FitState) -> None:
            if state.step == 4:
                with torch.no_grad():
                    state.parameters.tensors()["store.slope"].fill_(math.nan)

    recorder = Recorder()
    with pytest.raises(
        NonFiniteError, match=r"epoch 2, batch 2, step 5: the loss is nan.*site 'z'"
    ):
        loop(plan(max_epochs=3, callbacks=[Poison(), recorder])).run()
    assert recorder.calls[-1] == "on_exception"


@pytest.mark.parametrize(
    ("ends", "message"),
    [({}, "fit has no end"), ({"max_epochs": 0}, "max_epochs=0"), ({"max_steps": 0}, "max_steps")],
)
def test_the_end_is_checked(ends, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**ends)


def test_the_order_of_data_differs_between_epochs() -> None:
    class Watcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.orders: list[list[float]] = []

        def forward(self, x):
            if torch.is_grad_enabled():
                self.orders.append(x.tolist())
            tiny.local_model(x)

    watcher = Watcher()
    loop(plan(torch.arange(8.0), batch_size=8, max_epochs=3), watcher).run()
    assert len(watcher.orders) == 3
    for one, other in itertools.combinations(watcher.orders, 2):
        assert one != other and sorted(one) == sorted(other)
