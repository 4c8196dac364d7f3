import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import amortized as am
from amortized.errors import DataError, NonFiniteError, ProgramError, UsageError
from amortized.fit import checkpoint
from amortized.fit.callbacks import Callback, EarlyStopping, FitState
from amortized.fit.data import as_batches
from amortized.fit.loop import Loop, Plan
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.step import Stepper
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.harness import Do, Stop, fit, pair, poison, stop
from tests.fit.test_resume import everything, noisy, same


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


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_the_programs_refuse_says_where_training_stood(batch: int, policy: str) -> None:
    """Parameters that are NaN at the first step, or later where every step is validated."""
    svi = pair(validate=True)
    svi.describe(tiny.data(4))
    if batch == 1:
        poison(FitState(svi._stepper.parameters, am.History()))
    message = rf"^epoch 1, batch {batch}, step {batch}: .*refuses.*nan"
    with pytest.raises(ProgramError, match=message):
        fit(svi, max_epochs=2, non_finite=policy, callbacks=[Do(poison, batch - 1)])


def test_what_the_programs_refuse_at_their_first_run_says_so_too() -> None:
    def guide(x) -> None:
        loc = pyro.param("loc", torch.tensor(math.nan))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(ProgramError, match=r"^epoch 1, batch 1, step 1: .*refuses.*nan"):
        fit(am.SVI(tiny.local_model, guide), max_epochs=1)


def test_what_the_programs_refuse_in_validation_says_so() -> None:
    poisoned = Do(poison, 5)
    with pytest.raises(ProgramError, match=r"^epoch 1, validation batch 1: .*refuses"):
        fit(pair(validate=True), None, tiny.data(9), max_epochs=2, callbacks=[poisoned])


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


# Data that cannot be read


class Broken(Dataset):
    """Fails when it is asked for an item the so-manieth time; works when it is mended."""

    def __init__(self, at: int | None, size: int = 40) -> None:
        self.at, self.size, self.items = at, size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        self.items += 1
        if self.items == self.at:
            raise OSError(5, "Input/output error")
        return tiny.data(self.size)[index]


def broken(epoch: int, batch: int, **options) -> DataLoader:
    """Fails at the second item of a batch of eight; the warm-up looks at none."""
    return DataLoader(Broken(40 * (epoch - 1) + 8 * (batch - 1) + 2), 8, **options)


def test_a_loader_that_fails_is_named_with_epoch_and_batch() -> None:
    with pytest.raises(DataError) as caught:
        fit(pair(), broken(2, 3), max_epochs=3)
    sentence = str(caught.value)
    assert sentence.startswith("epoch 2, batch 3: the data could not be read: OSError: [Errno 5]")
    assert isinstance(caught.value.__cause__, OSError)


def test_validation_data_that_fail_are_named_too() -> None:
    with pytest.raises(
        DataError, match=r"^epoch 2, validation batch 2: the data could not be read"
    ):
        fit(pair(), None, DataLoader(Broken(16 + 8 + 2, 16), 8), max_epochs=3)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 2), (2, 1), (2, 3), (3, 5)])
def test_after_a_failure_of_the_data_training_goes_on_bit_for_bit(tmp_path, epoch, batch) -> None:
    """In the middle of an epoch, or at its very beginning."""
    options = {"max_epochs": 3, "seed": 2}
    whole, cut, again = noisy(), noisy(), noisy()
    expected = fit(whole, DataLoader(Broken(None), 8, shuffle=True), **options)
    seen = Ended()
    callbacks = [ModelCheckpoint(tmp_path), seen]
    with pytest.raises(DataError, match=f"epoch {epoch}, batch {batch}"):
        fit(cut, broken(epoch, batch, shuffle=True), callbacks=callbacks, **options)
    assert isinstance(seen.error, DataError) and seen.whole
    assert checkpoint.newest(tmp_path).metadata["step"] == 5 * (epoch - 1) + batch - 1
    mended = DataLoader(Broken(None), 8, shuffle=True)
    same(
        everything(whole, expected),
        everything(again, fit(again, mended, resume_from=tmp_path, **options)),
    )


def test_a_failure_during_validation_is_made_up_for(tmp_path) -> None:
    options = {"max_epochs": 2, "seed": 2}
    whole, cut, again = noisy(), noisy(), noisy()
    expected = fit(whole, None, DataLoader(Broken(None, 16), 8), **options)
    with pytest.raises(DataError, match="epoch 1, validation batch 2"):
        failing = DataLoader(Broken(10, 16), 8)
        fit(cut, None, failing, callbacks=[ModelCheckpoint(tmp_path)], **options)
    assert checkpoint.newest(tmp_path).state["moment"]["mid_epoch"]
    found = fit(again, None, DataLoader(Broken(None, 16), 8), resume_from=tmp_path, **options)
    same(everything(whole, expected), everything(again, found))


def test_a_failure_in_the_middle_of_a_group_saves_the_step_before(tmp_path) -> None:
    options = {"max_epochs": 2, "seed": 2, "accumulate_grad_batches": 2}
    whole, cut, again = noisy(), noisy(), noisy()
    expected = fit(whole, DataLoader(Broken(None), 8), **options)
    with pytest.raises(DataError, match="epoch 1, batch 4"):
        saving = ModelCheckpoint(tmp_path, every_n_steps=1)
        fit(cut, broken(1, 4), callbacks=[saving], **options)
    assert checkpoint.newest(tmp_path).metadata["step"] == 1
    found = fit(again, DataLoader(Broken(None), 8), resume_from=tmp_path, **options)
    same(everything(whole, expected), everything(again, found))


def test_a_failure_while_batches_are_passed_over_is_counted_right(tmp_path) -> None:
    with pytest.raises(Stop):
        callbacks = [ModelCheckpoint(tmp_path), Do(stop, 8)]
        fit(pair(), DataLoader(Broken(None), 8), max_epochs=2, callbacks=callbacks)
    # eight items are read for a look at a batch, and the second of the three batches fails
    with pytest.raises(DataError, match=r"^epoch 2, batch 2: the data could not be read"):
        fit(pair(), DataLoader(Broken(8 + 8 + 3), 8), max_epochs=2, resume_from=tmp_path)


class Ended(Callback):
    """The error that ended training, and whether the state was whole."""

    error: BaseException | None = None
    whole = False

    def on_exception(self, state: FitState, error: BaseException) -> None:
        self.error, self.whole = error, state.whole


# The rest


def test_a_wrong_weight_in_the_middle_is_saved_before(tmp_path) -> None:
    """A mistake of the user's own function, between two steps."""
    seen = Ended()
    weight = lambda step: 1.0 if step < 3 else -1.0  # noqa: E731
    with pytest.raises(UsageError, match=r"kl_weight=-1\.0 at step 3"):
        fit(pair(), max_epochs=1, kl_weight=weight, callbacks=[ModelCheckpoint(tmp_path), seen])
    assert seen.whole and checkpoint.newest(tmp_path).metadata["step"] == 3


def test_a_gradient_that_was_left_over_is_forgotten() -> None:
    """An error between two batches of a group has no part in the next training."""
    fresh, again = am.SVI(*PLAIN, lr=0.1), am.SVI(*PLAIN, lr=0.1)
    with pytest.raises(DataError):
        fit(again, broken(1, 2), max_epochs=1, accumulate_grad_batches=5)
    assert not again._stepper.pending
    for svi in (fresh, again):
        fit(svi, DataLoader(tiny.data(40), 8), max_epochs=1)
    assert fresh.params() == again.params() and fresh._stepper.steps == again._stepper.steps == 5


PLAIN = (tiny.global_model, tiny.point_guide(0.5))


def test_an_epoch_that_was_cut_short_has_no_validation() -> None:
    interrupt = Do(interrupted, 7)
    history = fit(pair(), None, tiny.data(8), max_epochs=9, callbacks=[interrupt])
    assert history.epochs == 2 and math.isnan(history["val_loss"][1])
    assert math.isfinite(history["train_loss"][1])


def interrupted(state: FitState) -> None:
    raise KeyboardInterrupt
