import math

import numpy as np
import pytest
from torch.utils.data import DataLoader

import amortized as am
from amortized.errors import UsageError
from amortized.fit.callbacks import Callback
from amortized.fit.data import as_batches
from amortized.fit.loggers import LogEachEpoch
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.plan import Plan, in_order, limited, on_trial
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.harness import Do, Recorded, Stream, fit, pair, stop


def plan(train=None, val=None, batch_size=16, **options) -> Plan:
    options = {"max_epochs": 2, "max_steps": None, "callbacks": [], **options}
    return Plan(
        train=as_batches(tiny.data(40) if train is None else train, batch_size),
        val=None if val is None else as_batches(val, batch_size),
        data=DataPlate(None, 40),
        progress=False,
        **options,
    )


STREAM = DataLoader(Stream(tiny.data(40)), 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, r"max_epochs=0: expected at least 1"),
        ({"max_steps": -1}, r"max_steps=-1"),
        ({"accumulate_grad_batches": 0}, r"accumulate_grad_batches=0"),
        ({"check_val_every_n_epoch": 0}, r"check_val_every_n_epoch=0"),
        ({"gradient_clip_val": 0.0}, r"gradient_clip_val=0.0: expected a norm above 0"),
        ({"gradient_clip_val": -1.0}, r"gradient_clip_val=-1.0"),
        ({"gradient_clip_val": math.nan}, r"gradient_clip_val=nan"),
        ({"limit_train_batches": 0}, r"limit_train_batches=0: expected a count from 1"),
        ({"limit_train_batches": 1.5}, r"limit_train_batches=1.5"),
        ({"limit_train_batches": math.nan}, r"limit_train_batches=nan"),
        ({"limit_train_batches": True}, r"limit_train_batches=True"),
        ({"val": tiny.data(9), "limit_val_batches": -2}, r"limit_val_batches=-2"),
        ({"train": STREAM, "limit_train_batches": 0.5}, r"do not say how many batches"),
        ({"max_epochs": None}, r"fit has no end"),
    ],
)
def test_options_are_checked_before_the_first_step(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**options)


def test_an_early_stop_is_an_end() -> None:
    callbacks: list[Callback] = [am.EarlyStopping("train_loss")]
    assert plan(max_epochs=None, callbacks=callbacks).steps is None


def test_two_checkpoints_in_one_folder_are_refused(tmp_path) -> None:
    one, other = ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path / "x" / "..")
    with pytest.raises(UsageError, match=r"two ModelCheckpoints write below .* folder of"):
        plan(callbacks=[one, other])
    plan(callbacks=[one, ModelCheckpoint(tmp_path / "other")])


@pytest.mark.parametrize(
    ("total", "limit", "expected"),
    [
        (10, None, 10),
        (None, None, None),
        (10, 3, 3),
        (2, 3, 2),
        (None, 3, 3),
        (10, 1.0, 10),
        (10, 0.25, 2),
        (3, 0.01, 1),
        (10, 1, 1),
        (10, np.int64(3), 3),
        (10, np.float32(0.5), 5),
        (None, np.int64(3), 3),
    ],
)
def test_a_limit_is_a_count_or_a_fraction(total, limit, expected) -> None:
    found = limited(total, limit, "limit")
    assert found == expected and type(found) in (int, type(None))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 9),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": 3, "max_steps": 50}, 9),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 3, "limit_train_batches": 1}, 3),
        ({"train": STREAM}, None),
        ({"train": STREAM, "max_steps": 4}, 4),
    ],
)
def test_steps_to_come(options, steps) -> None:
    assert plan(**options).steps == steps


@pytest.mark.parametrize(("limit", "steps"), [(2, 4), (0.5, 4), (1, 2), (1.0, 10), (99, 10)])
def test_the_limit_of_training_batches_is_kept(limit, steps: int) -> None:
    svi = pair()
    fit(svi, max_epochs=2, limit_train_batches=limit)
    assert svi._stepper.steps == steps


def test_a_limited_epoch_of_a_stream() -> None:
    svi = pair()
    fit(svi, DataLoader(Stream(tiny.data(40)), 8), max_epochs=2, limit_train_batches=3)
    assert svi._stepper.steps == 6


def test_the_limit_of_validation_batches_is_kept() -> None:
    """Validation is in order, so that the limit sees the smallest numbers only."""
    held_out = tiny.data(16).sort().values

    def loss(val, **limit) -> float:
        return fit(pair(lr=0.0), None, val, max_epochs=1, seed=0, **limit)["val_loss"][0]

    assert loss(held_out, limit_val_batches=1) == loss(held_out[:8])
    assert loss(held_out, limit_val_batches=0.5) == loss(held_out[:8])
    assert loss(held_out) != loss(held_out[:8])


def test_validation_every_second_epoch() -> None:
    validated = []
    seen = Do(lambda state: validated.append(state.epoch), hook="validation_epoch_end")
    history = fit(
        pair(), None, tiny.data(8), max_epochs=5, check_val_every_n_epoch=2, callbacks=[seen]
    )
    assert validated == [2, 4]
    for key in ("val_loss", "val_elbo", "val_reconstruction", "val_kl"):
        assert [math.isnan(value) for value in history[key]] == [True, False, True, False, True]


def test_early_stopping_waits_for_validation_every_second_epoch() -> None:
    stopping = am.EarlyStopping(patience=2, min_delta=1e9)
    history = fit(pair(), None, tiny.data(8), check_val_every_n_epoch=2, callbacks=[stopping])
    assert (history.epochs, history.stopped) == (6, "early stopped")


@pytest.mark.parametrize(("run", "steps"), [(True, 1), (3, 3)])
def test_a_trial_is_short_and_writes_nothing(tmp_path, run, steps: int) -> None:
    logger, svi, epochs = Recorded(), pair(), []
    writers = [ModelCheckpoint(tmp_path / "x"), am.EarlyStopping("no such key")]
    history = fit(
        svi,
        None,
        tiny.data(40),
        max_epochs=9,
        fast_dev_run=run,
        logger=[logger, am.TensorBoard(tmp_path / "y")] if _has_tensorboard() else logger,
        callbacks=[*writers, epochs.append],
    )
    assert (svi._stepper.steps, history.epochs, len(epochs)) == (steps, 1, 1)
    assert "val_loss" in history and logger.seen == [] and list(tmp_path.iterdir()) == []


def _has_tensorboard() -> bool:
    try:
        am.TensorBoard("x")
    except UsageError:
        return False
    return True


def test_a_trial_takes_a_step_whatever_is_accumulated() -> None:
    svi = pair()
    fit(svi, max_epochs=9, fast_dev_run=True, accumulate_grad_batches=4)
    assert svi._stepper.steps == 1


def test_a_trial_still_names_mistakes() -> None:
    with pytest.raises(UsageError, match="fast_dev_run=-1"):
        fit(pair(), max_epochs=1, fast_dev_run=-1)
    with pytest.raises(UsageError, match="limit"):
        plan(limit_train_batches=0)


def test_what_a_trial_leaves_out() -> None:
    other = Do(stop)
    callbacks = [am.EarlyStopping(), ModelCheckpoint("x"), LogEachEpoch(Recorded()), other]
    kept, limits = on_trial(callbacks, {"max_epochs": 7, "limit_val_batches": 0.5}, 2)
    assert kept == [other]
    assert limits == {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2}


def test_checkpoints_come_after_everything_else() -> None:
    checkpoint, other = ModelCheckpoint("x"), Do(stop)
    found = in_order([checkpoint, other, print], Recorded())
    assert found[0] is other and found[-1] is checkpoint
    assert isinstance(found[2], LogEachEpoch) and len(found) == 4


@pytest.mark.parametrize(
    "name", ["max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"]
)
def test_counts_are_whole(name: str) -> None:
    for wrong in (2.5, math.inf, math.nan, "3", True):
        with pytest.raises(UsageError, match=f"{name}=.*: expected a whole number, at least 1"):
            plan(**{name: wrong})
    for right in (3, 1e3, np.int64(2)):
        assert getattr(plan(**{name: right}), name) == right


def test_a_data_set_has_no_negative_size() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide, data_plate=DataPlate("data", -3))
    with pytest.raises(UsageError, match="data_plate's size=-3: expected at least 1"):
        fit(svi, max_epochs=1)
