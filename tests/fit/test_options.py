import functools
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import amortized as am
from amortized.fit.checkpoint import about
from amortized.fit.options import settled
from tests.fit import tiny
from tests.fit.harness import Do, Stop, fit, pair, stop
from tests.fit.test_resume import everything, noisy, same

VAL = tiny.data(9)


def exponential(gamma: float) -> Any:
    return lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma)


def one_cycle(max_lr: float) -> Any:
    return functools.partial(lr_scheduler.OneCycleLR, max_lr=max_lr, total_steps=40)


def adam(decay: float) -> Any:
    return functools.partial(torch.optim.AdamW, weight_decay=decay)


def half(step: int) -> float:
    return 0.5


def third(step: int) -> float:
    return 1 / 3


def run(folder: Any, resume: bool = False, epochs: int = 2, **options: Any) -> am.SVI:
    """A training by options of `SVI` and of `fit` alike."""
    names = ("lr", "optimizer", "loss", "data_plate", "precision")
    svi = pair(**{name: options.pop(name) for name in names if name in options})
    more = options.pop("callbacks", [])
    saving = am.ModelCheckpoint(folder, "train_loss", keep_last=9)
    options |= {"resume_from": folder} if resume else {}
    fit(svi, None, VAL, max_epochs=epochs, callbacks=[*more, saving], **options)
    return svi


SAVED, GIVEN = "the saved one is used", "the given one is used"
CHANGES = {
    "precision": (
        {"precision": "bf16-mixed"},
        {"precision": "float32"},
        "precision: saved 'bf16-mixed', given 'float32'",
        GIVEN,
    ),
    "lr": ({"lr": 0.01}, {"lr": 0.02}, "lr: saved 0.01, given 0.02", SAVED),
    "lr of a group": (
        {"lr": {"guide": 0.01}},
        {"lr": {"guide": 0.02}},
        "lr: saved {'model': 0.001, 'guide': 0.01, 'estimators': 0.001}, given {",
        SAVED,
    ),
    "lr of a factory": (
        {"lr": None, "optimizer": functools.partial(torch.optim.SGD, lr=0.01)},
        {"lr": None, "optimizer": functools.partial(torch.optim.SGD, lr=0.02)},
        "optimizer(lr): saved 0.01, given 0.02",
        SAVED,
    ),
    "optimizer": (
        {"optimizer": adam(0.1)},
        {"optimizer": adam(0.2)},
        "optimizer(weight_decay): saved 0.1, given 0.2",
        SAVED,
    ),
    "scheduler": (
        {"scheduler": exponential(0.9)},
        {"scheduler": exponential(0.8)},
        "scheduler(gamma): saved 0.9, given 0.8",
        SAVED,
    ),
    "scheduler in the optimizer": (
        {"scheduler": one_cycle(0.1)},
        {"scheduler": one_cycle(0.2)},
        "optimizer(max_lr): saved 0.1, given 0.2",
        SAVED,
    ),
    "interval": (
        {"scheduler": exponential(0.9)},
        {"scheduler": exponential(0.9), "scheduler_interval": "step"},
        "scheduler_interval: saved 'epoch', given 'step'",
        GIVEN,
    ),
    "seed": ({"seed": 1}, {"seed": 2}, "seed: saved 1, given 2", SAVED),
    "a seed at last": ({}, {"seed": 2}, "seed: saved None, given 2", SAVED),
    "loss": (
        {},
        {"loss": am.VariationalLoss(am.ELBO(num_particles=2))},
        'loss: saved "VariationalLoss(ELBO(num_particles=1',
        GIVEN,
    ),
    "data_plate": ({}, {"data_plate": "data"}, "data_plate: saved [None, 40], given", GIVEN),
    "clip": ({}, {"gradient_clip_val": 0.5}, "gradient_clip_val: saved None, given 0.5", GIVEN),
    "weight": ({}, {"kl_weight": 0.5}, "kl_weight: saved 1.0, given 0.5", GIVEN),
    "function": (
        {"kl_weight": half},
        {"kl_weight": third},
        "kl_weight: saved 'half', given 'third'",
        GIVEN,
    ),
    "warm-up": (
        {"n_epochs_kl_warmup": 2},
        {"n_epochs_kl_warmup": 3},
        "n_epochs_kl_warmup: saved 2, given 3",
        GIVEN,
    ),
    "patience": (
        {"callbacks": [am.EarlyStopping(patience=5)]},
        {"callbacks": [am.EarlyStopping(patience=3, min_delta=math.inf)]},
        "EarlyStopping(patience): saved 5, given 3, the given one is used; "
        "EarlyStopping(min_delta): saved 0.0, given 'inf'",
        GIVEN,
    ),
    "no early stopping": (
        {"callbacks": [am.EarlyStopping()]},
        {},
        "EarlyStopping callbacks: saved 1, given 0",
        GIVEN,
    ),
    "validation": (
        {},
        {"limit_val_batches": 1, "check_val_every_n_epoch": 2},
        "limit_val_batches: saved None, given 1, the given one is used; check_val_every_n_epoch: ",
        GIVEN,
    ),
    "policy": (
        {},
        {"non_finite": "skip", "non_finite_limit": 3},
        "non_finite: saved 'raise', given 'skip', the given one is used; non_finite_limit: ",
        GIVEN,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_option_is_named_with_both_values_and_which_is_used(tmp_path, change) -> None:
    before, after, sentence, which = CHANGES[change]
    run(tmp_path, **before)
    with pytest.warns(UserWarning) as caught:
        run(tmp_path, resume=True, epochs=3, **after)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"resumed with changed options: {sentence}"), message
    assert which in message and {SAVED: GIVEN, GIVEN: SAVED}[which] not in message
    assert ("svi.load(path)" in message) == (which == SAVED)


def test_nothing_is_said_of_what_is_harmless_or_the_same(tmp_path) -> None:
    """More epochs, a seed left out, other hooks, and functions that are written anew."""
    options = {"kl_weight": lambda step: 1.0, "n_epochs_kl_warmup": 2, "callbacks": [print]}
    options |= {"optimizer": adam(0.1), "scheduler": exponential(0.9), "lr": np.float64(0.01)}
    run(tmp_path, seed=1, **options | {"callbacks": []})
    options |= {"optimizer": adam(0.1), "kl_weight": lambda step: 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, resume=True, epochs=3, **options, detect_anomaly=True)


def test_a_file_that_does_not_say_is_not_compared() -> None:
    given = {"gradient_clip_val": 1.0, "lr": {"guide": 0.1}}
    assert settled({"training": "x", "lr": {"guide": 0.1}}, given) == given


# What is used


def test_the_saved_rates_are_used_and_said_to_be(tmp_path) -> None:
    """Also by checkpoints that come after the resume: a second one is told the same."""
    whole, again = (run(tmp_path / "whole", epochs=4, lr=0.1, seed=0), None)
    run(tmp_path / "cut", lr=0.1, seed=0)
    for epochs in (3, 4):
        with pytest.warns(UserWarning, match="lr: saved 0.1, given 0.5, the saved"):
            again = run(tmp_path / "cut", resume=True, epochs=epochs, lr=0.5)
    config = about(tmp_path / "cut" / "step-00000020")["config"]
    assert (config["lr"]["guide"], config["seed"]) == (0.1, 0)
    assert again is not None and again.params() == whole.params()


def test_the_given_weight_is_used(tmp_path) -> None:
    run(tmp_path)
    svi = pair()
    with pytest.warns(UserWarning, match="kl_weight: saved 1.0, given 0.25"):
        history = fit(svi, None, VAL, max_epochs=3, kl_weight=0.25, resume_from=tmp_path)
    assert history["kl_weight"][2] == 0.25


@pytest.mark.parametrize("given", [4, 2, None])
def test_more_patience_goes_on_with_what_had_stopped(tmp_path, given: int | None) -> None:
    def callbacks(patience: int) -> list[am.EarlyStopping]:
        return [am.EarlyStopping("train_loss", patience, min_delta=1e9)]

    run(tmp_path, epochs=9, callbacks=callbacks(2))
    assert about(tmp_path / "step-00000015")["epoch"] == 3
    svi, chosen = pair(), [] if given is None else callbacks(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if given == 2 else "ignore")
        history = fit(svi, None, VAL, max_epochs=9, callbacks=chosen, resume_from=tmp_path)
    stopped = None if given is None else "early stopped"
    assert (history.epochs, history.stopped) == ({4: 5, 2: 3, None: 9}[given], stopped)


def test_another_monitor_has_no_best_yet(tmp_path) -> None:
    """Numbers of two keys are not to be compared: -2 of a bound is not better than a loss of 2."""
    run(tmp_path, callbacks=[am.EarlyStopping("train_elbo", None, mode="max")])
    watching = am.EarlyStopping("train_loss", None)
    with pytest.warns(UserWarning, match=r"EarlyStopping\(monitor\): saved 'train_elbo', given"):
        run(tmp_path, resume=True, epochs=3, callbacks=[watching])
    assert watching.best_epoch == 3


def test_the_best_is_not_brought_back_if_not_wanted_any_more(tmp_path) -> None:
    stopping = functools.partial(am.EarlyStopping, "train_loss", None, min_delta=1e9)
    run(tmp_path, lr=0.1, callbacks=[stopping()])
    with pytest.warns(UserWarning, match="restore_best"):
        svi = run(tmp_path, resume=True, epochs=3, lr=0.1, callbacks=[stopping(restore_best=False)])
    last = am.load(tmp_path, (tiny.local_model, tiny.param_guide), batch=VAL)
    assert svi.params() == last.params()


# What is kept


def test_every_option_is_in_the_file_as_plain_json(tmp_path) -> None:
    class Odd:
        def __call__(self, step: int) -> float:
            return 1.0

    run(
        tmp_path,
        seed=np.int64(3),
        batch_size=np.int64(8),
        kl_weight=Odd(),
        scheduler=functools.partial(lr_scheduler.MultiStepLR, milestones=[2, 3]),
        callbacks=[am.EarlyStopping(min_delta=math.inf), am.EarlyStopping("kl/z")],
    )
    config = about(tmp_path / "step-00000005")["config"]
    assert (config["seed"], config["batch_size"], config["kl_weight"]) == (3, 8, Odd.__qualname__)
    assert config["scheduler(milestones)"] == {"2": 1, "3": 1}
    assert config["EarlyStopping(min_delta)"] == "inf"
    assert config["EarlyStopping2(monitor)"] == "kl/z"
    assert not any(re.search(" at 0x", str(value)) for value in config.values())


def test_options_change_nothing_in_training(tmp_path) -> None:
    """The comparison looks at optimizer and scheduler, which go on as if it had not."""
    options = {"scheduler": exponential(0.9), "seed": 0, "max_epochs": 3}
    whole, again = noisy(), noisy()
    expected = fit(whole, **options)
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path, "train_loss")
        fit(noisy(), callbacks=[Do(stop, 7), saving], **options)
    with pytest.warns(UserWarning, match="scheduler.gamma"):
        found = fit(again, resume_from=tmp_path, **options | {"scheduler": exponential(0.5)})
    same(everything(whole, expected), everything(again, found))
