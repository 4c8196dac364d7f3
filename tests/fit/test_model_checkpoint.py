import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import CheckpointError, UsageError
from amortized.fit import checkpoint_files
from amortized.fit.callbacks import Callback
from amortized.fit.checkpoint import newest, read
from tests.fit import tiny
from tests.fit.harness import BATCH, SIZE, Do, Stop, fit, pair, stop
from tests.fit.test_resume import everything, noisy, same

SCORES = [3.0, 1.0, 2.0, 4.0, 5.0]


class Score(Callback):
    """Records a number of the test's own after each epoch."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_train_epoch_end(self, state) -> None:
        state.history["score"] = self.values[: state.epoch]


def scored(folder: Path, **options: Any) -> am.ModelCheckpoint:
    return am.ModelCheckpoint(folder, "score", **options)


def run(saving: am.ModelCheckpoint, *more: Callback, epochs: int = 5, svi=None, **options) -> Any:
    callbacks = [Score(options.pop("scores", SCORES)), saving, *more]
    svi = pair() if svi is None else svi
    return fit(svi, callbacks=callbacks, max_epochs=epochs, seed=0, **options)


def names(folder: Path) -> list[str]:
    """The steps of what is there, and whatever else."""
    return sorted(path.name.removeprefix("step-000000") for path in folder.iterdir())


def spoil(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(bytes(content))


# Which remain


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["10", "20", "25"]),
        ({"save_top_k": 0}, ["20", "25"]),
        ({"save_top_k": 2, "keep_last": 1}, ["10", "15", "25"]),
        ({"save_top_k": 9, "keep_last": 1}, ["05", "10", "15", "20", "25"]),
        ({"mode": "max"}, ["20", "25"]),
        ({"mode": "max", "save_top_k": 3, "keep_last": 1}, ["05", "20", "25"]),
        ({"every_n_epochs": 2}, ["10", "20"]),
        ({"every_n_epochs": 9}, []),
        ({"every_n_steps": 2, "save_top_k": 0, "keep_last": 3}, ["22", "24", "25"]),
        ({"every_n_steps": 5, "keep_last": 3, "save_top_k": 0}, ["20-v2", "25", "25-v2"]),
        (
            {"every_n_steps": 4, "every_n_epochs": 9, "keep_last": 9},
            ["04", "08", "12", "16", "20", "24"],
        ),
    ],
    ids=str,
)
def test_which_remain(tmp_path, options, left: list[str]) -> None:
    saving = scored(tmp_path, **options)
    assert saving.best_path is None and saving.last_path is None
    run(saving)
    assert names(tmp_path) == left
    assert saving.last_path == (tmp_path / f"step-000000{left[-1]}" if left else None)
    for path in tmp_path.iterdir():
        assert read(path).metadata["step"] == int(path.name[5:13])


@pytest.mark.parametrize(
    ("scores", "mode", "best"),
    [
        (SCORES, "min", 10),
        (SCORES, "max", 25),
        ([2.0, 1.0, 1.0, 1.0, 2.0], "min", 10),
        ([math.nan, 5.0, math.nan, 6.0, math.nan], "min", 10),
        ([math.nan] * 5, "min", None),
        ([math.inf, math.inf, 3.0, math.inf, 4.0], "min", 15),
    ],
)
def test_the_best(tmp_path, scores, mode, best: int | None) -> None:
    saving = scored(tmp_path, mode=mode)
    run(saving, scores=scores)
    assert saving.best_path == (None if best is None else tmp_path / f"step-{best:08d}")
    if best is not None:
        assert read(saving.best_path).metadata["metrics"]["score"] == scores[best // 5 - 1]


def test_the_validation_loss_is_watched_unless_said_otherwise(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path)
    history = fit(pair(lr=0.5), None, tiny.data(8), max_epochs=6, callbacks=[saving], seed=0)
    best = min(range(6), key=history["val_loss"].__getitem__)
    assert saving.best_path == tmp_path / f"step-{5 * (best + 1):08d}"
    assert repr(saving) == f"ModelCheckpoint({str(tmp_path)!r}, monitor='val_loss')"


def test_what_a_checkpoint_says_of_itself(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=4, keep_last=9)
    history = fit(pair(lr=0.25), None, tiny.data(8), max_epochs=1, callbacks=[saving], seed=7)
    middle, end = (read(tmp_path / f"step-0000000{step}").metadata for step in (4, 5))
    assert (middle["step"], middle["epoch"], middle["metrics"]) == (4, 1, {})
    assert (end["step"], end["epoch"]) == (5, 1)
    assert end["metrics"] == {key: values[0] for key, values in history.items()}
    assert end["config"]["seed"] == 7 and end["config"]["lr"]["guide"] == 0.25
    shapes = end["fingerprint"]["parameters"]
    assert shapes == {"store.slope": ["float32", []], "store.scale": ["float32", []]}


# Across a resume


@pytest.mark.parametrize("epochs", [2, 3])
def test_the_best_is_known_after_a_resume(tmp_path, epochs: int) -> None:
    """Also if it is what was resumed from, which does not contain its own name."""
    run(scored(tmp_path), epochs=epochs)
    saving = scored(tmp_path)
    run(saving, resume_from=tmp_path)
    assert saving.best_path == tmp_path / "step-00000010"
    assert names(tmp_path) == ["10", "20", "25"]


def test_nothing_is_best_twice(tmp_path) -> None:
    run(scored(tmp_path, save_top_k=2), epochs=2)
    saving = scored(tmp_path, save_top_k=2, keep_last=1)
    run(saving, resume_from=tmp_path)
    assert names(tmp_path) == ["10", "15", "25"]


def test_the_best_of_another_folder_is_left_there(tmp_path) -> None:
    run(scored(tmp_path / "a"), epochs=3)
    saving = scored(tmp_path / "b")
    run(saving, resume_from=tmp_path / "a")
    assert names(tmp_path / "a") == ["10", "15"] and names(tmp_path / "b") == ["20", "25"]
    assert saving.best_path == tmp_path / "b" / "step-00000020"


def test_paths_may_be_spelt_differently(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(scored(Path("runs")), epochs=2)
    run(scored(tmp_path / "runs"), epochs=3, resume_from="runs")
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    run(scored(Path("link")), epochs=4, resume_from=tmp_path / "runs" / ".")
    saving = scored(Path("runs"))
    run(saving, resume_from="link/step-00000020")
    assert names(tmp_path / "runs") == ["10", "20", "25"]
    assert saving.best_path == Path("runs/step-00000010")


def test_several_checkpoints_resume_together(tmp_path) -> None:
    """One for crashes, one for the best: from either of them."""

    def both(*more: Callback) -> list[Callback]:
        often = am.ModelCheckpoint(tmp_path / "often", every_n_steps=2, save_top_k=0)
        best = am.ModelCheckpoint(tmp_path / "best", "score", save_on_exception=False)
        return [Score(SCORES), often, best, *more]

    options = {"max_epochs": 5, "seed": 0}
    whole = noisy()
    expected = fit(whole, **options)
    with pytest.raises(Stop):
        fit(noisy(), callbacks=both(Do(stop, 17)), **options)
    assert names(tmp_path / "often") == ["16", "17"] and names(tmp_path / "best") == ["10", "15"]
    again, callbacks = noisy(), both()
    found = fit(again, callbacks=callbacks, resume_from=tmp_path / "often", **options)
    found.pop("score")
    same(everything(whole, expected), everything(again, found))
    assert callbacks[2].best_path == tmp_path / "best" / "step-00000010"
    assert names(tmp_path / "best") == ["10", "20", "25"]
    assert names(tmp_path / "often") == ["24", "25"]


def test_a_training_that_stopped_early_stays_stopped(tmp_path) -> None:
    def callbacks() -> list[Callback]:
        return [am.EarlyStopping("train_loss", 1, 1e9), am.ModelCheckpoint(tmp_path)]

    first, again = noisy(), noisy()
    expected = fit(first, callbacks=callbacks(), max_epochs=9, seed=0)
    found = fit(again, callbacks=callbacks(), max_epochs=9, resume_from=tmp_path)
    assert (found.epochs, found.stopped) == (expected.epochs, "early stopped") == (2, found.stopped)
    same(everything(first, expected), everything(again, found))


@pytest.mark.parametrize("shuffled", ["train", "val"])
def test_a_loader_with_a_generator_goes_on_after_a_whole_epoch(tmp_path, shuffled: str) -> None:
    def loader(data: torch.Tensor, own: bool) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(5) if own else None
        return DataLoader(TensorDataset(data), BATCH, shuffle=own, generator=generator)

    def run_for(epochs: int, svi: am.SVI, **options: Any) -> am.History:
        train, val = loader(tiny.data(SIZE), shuffled == "train"), loader(tiny.data(16), True)
        return fit(svi, train, val, max_epochs=epochs, seed=3, **options)

    whole, again = noisy(), noisy()
    expected = run_for(4, whole)
    run_for(2, noisy(), callbacks=[am.ModelCheckpoint(tmp_path)])
    same(everything(whole, expected), everything(again, run_for(4, again, resume_from=tmp_path)))


def test_another_order_of_the_data_is_refused(tmp_path) -> None:
    own = DataLoader(tiny.data(SIZE), BATCH, generator=torch.Generator())
    fit(pair(), own, max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path)])
    with pytest.raises(CheckpointError, match="had 1 generators of its own, and this one has 0"):
        fit(pair(), DataLoader(tiny.data(SIZE), BATCH), max_epochs=2, resume_from=tmp_path)


# Whose folder


def test_a_folder_of_another_training_is_refused_before_the_first_step(tmp_path) -> None:
    run(scored(tmp_path), epochs=1)
    svi = pair()
    with pytest.raises(CheckpointError) as caught:
        run(scored(tmp_path), svi=svi)
    assert svi._stepper.steps == 0 and names(tmp_path) == ["05"]
    for part in ("step-00000005", "another training", "resume_from=", "another folder"):
        assert part in str(caught.value)


@pytest.mark.parametrize("same_object", [True, False])
def test_a_second_fit_goes_on_in_the_folder_of_the_first(tmp_path, same_object: bool) -> None:
    """Look, and train on: the newest and the best of both calls are kept."""
    svi, saving = noisy(), scored(tmp_path)
    run(saving, svi=svi, epochs=3, scores=[3.0, 1.0, 2.0])
    again = saving if same_object else scored(tmp_path)
    run(again, svi=svi, epochs=3, scores=[4.0, 5.0, 6.0])
    assert names(tmp_path) == ["10", "25", "30"]
    assert again.best_path == tmp_path / "step-00000010"
    run(again, svi=svi, epochs=2, scores=[0.5, 7.0])
    assert names(tmp_path) == ["35", "40"] and again.best_path == tmp_path / "step-00000035"


def test_the_second_of_two_fits_in_a_folder_is_resumed_bit_for_bit(tmp_path) -> None:
    options = {"n_epochs_kl_warmup": 2}
    whole, cut, again = noisy(), noisy(), noisy()
    run(scored(tmp_path / "first"), svi=whole, epochs=2)
    run(scored(tmp_path / "cut"), svi=cut, epochs=2)
    expected = run(scored(tmp_path / "whole"), svi=whole, epochs=3, **options)
    with pytest.raises(Stop):
        run(scored(tmp_path / "cut"), Do(stop, 8), svi=cut, epochs=3, **options)
    assert names(tmp_path / "cut") == ["10", "15", "18"]
    found = run(
        scored(tmp_path / "cut"), svi=again, epochs=3, resume_from=tmp_path / "cut", **options
    )
    same(everything(whole, expected), everything(again, found))
    run(scored(tmp_path / "cut"), svi=again, epochs=1)  # and that one may be called again


def test_another_pair_of_the_same_process_is_another_training(tmp_path) -> None:
    saving = scored(tmp_path)
    run(saving, epochs=1)
    with pytest.raises(
        CheckpointError, match=r"another training: go on from it with fit\(resume_from"
    ):
        run(saving, epochs=1)
    assert names(tmp_path) == ["05"]


def test_a_pair_that_was_put_back_does_not_write_among_its_later_ones(tmp_path) -> None:
    svi, saving = pair(), scored(tmp_path, keep_last=9)
    run(saving, svi=svi, epochs=3)
    svi.load(tmp_path / "step-00000010")
    with pytest.raises(CheckpointError, match=r"step-00000015, .* later than where it stands"):
        run(saving, svi=svi, epochs=1)


def test_two_folders_for_two_fits(tmp_path) -> None:
    svi = noisy()
    run(scored(tmp_path / "a"), svi=svi, epochs=2)
    second = scored(tmp_path / "b")
    run(second, svi=svi, epochs=2)
    assert svi._stepper.steps == 20 and names(tmp_path / "b") == ["15", "20"]
    # and the second can be resumed, with the parameters that the first one left
    whole, again = noisy(), noisy()
    fit(whole, max_epochs=2, seed=0)
    expected = fit(whole, max_epochs=3, seed=0)
    found = fit(again, max_epochs=3, resume_from=tmp_path / "b")
    found.pop("score")
    same(everything(whole, expected), everything(again, found))


def test_what_another_training_left_is_not_deleted_by_a_resumed_one(tmp_path) -> None:
    run(scored(tmp_path / "a"), epochs=1)
    run(scored(tmp_path / "b"), epochs=3)
    before = names(tmp_path / "a")
    with pytest.raises(CheckpointError, match="step-00000005, a checkpoint of another training"):
        run(scored(tmp_path / "a"), resume_from=tmp_path / "b")
    assert names(tmp_path / "a") == before


def test_later_ones_of_the_same_training_are_not_passed_over(tmp_path) -> None:
    run(scored(tmp_path, keep_last=9), epochs=3)
    with pytest.raises(CheckpointError, match=r"step-00000015, .* later than where it stands"):
        run(scored(tmp_path), resume_from=tmp_path / "step-00000010")
    saving = scored(tmp_path / "other")
    run(saving, resume_from=tmp_path / "step-00000010")
    assert names(tmp_path / "other") == ["15", "20", "25"] and saving.best_path is not None


# Faults


@pytest.mark.parametrize("keep", [1, 2])
def test_after_a_damaged_one_the_one_before_is_resumed(tmp_path, keep: int) -> None:
    saving = scored(tmp_path, every_n_steps=1, keep_last=3, save_on_exception=False)
    whole, again = pair(), pair()
    expected = run(scored(tmp_path / "whole"), svi=whole)
    folder = tmp_path / "cut"
    saving = scored(folder, every_n_steps=2, keep_last=2, save_on_exception=False)
    with pytest.raises(Stop):
        run(saving, Do(stop, 19))
    assert names(folder) == ["10-v2", "16", "18"]
    spoil(folder / "step-00000018")
    saving = scored(folder, every_n_steps=1, keep_last=keep, save_on_exception=False)
    with pytest.warns(UserWarning, match=r"step-00000018: state.pt differs .* using step-00000016"):
        found = run(saving, svi=again, resume_from=folder)
    same(everything(whole, expected), everything(again, found))


def test_what_is_written_beside_a_damaged_one_stays(tmp_path) -> None:
    """The damaged one has a later step, and does not count as one of the last."""
    with pytest.raises(Stop):
        run(scored(tmp_path, every_n_steps=8, save_on_exception=False, save_top_k=0), Do(stop, 9))
    spoil(tmp_path / "step-00000008")
    saving = scored(tmp_path, every_n_steps=1, keep_last=1, save_top_k=0, save_on_exception=False)
    with pytest.warns(UserWarning, match="using step-00000005"), pytest.raises(Stop):
        run(saving, Do(stop, 7), resume_from=tmp_path)
    assert saving.last_path == tmp_path / "step-00000006"
    assert names(tmp_path) == ["06", "08"]
    with pytest.warns(UserWarning, match="using step-00000006"):
        run(saving, resume_from=tmp_path)
    assert names(tmp_path) == ["25-v2"]


def test_a_fresh_start_touches_nothing_that_it_cannot_read(tmp_path) -> None:
    """It may be another training's, damaged or of a newer format: it would be pruned."""
    svi = pair()
    run(scored(tmp_path), svi=svi, epochs=1)
    (tmp_path / "step-00000005" / "metadata.json").write_bytes(b"{}")
    for ours in (svi, pair()):
        with pytest.raises(
            CheckpointError, match=r"step-00000005, which cannot be read .* remove it"
        ):
            run(scored(tmp_path), svi=ours, epochs=1)
    assert names(tmp_path) == ["05"]


def test_states_are_not_loaded_to_know_whose_they_are(tmp_path, monkeypatch) -> None:
    """Weights may be many gigabytes."""
    run(scored(tmp_path, keep_last=9), epochs=4)
    loaded, real = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **given: loaded.append(file.name) or real(file, **given)
    )
    saving = scored(tmp_path, keep_last=9)
    run(saving, resume_from=tmp_path)
    assert loaded == [str(tmp_path / "step-00000020" / "state.pt")]
    assert saving.best_path == tmp_path / "step-00000010"
    with pytest.raises(CheckpointError, match="another training"):
        run(scored(tmp_path))
    assert len(loaded) == 1


def test_a_damaged_one_is_not_one_of_the_last(tmp_path) -> None:
    """It lies between the good ones, and takes the place of none."""
    with pytest.raises(Stop):
        run(scored(tmp_path, every_n_steps=8, save_on_exception=False, save_top_k=0), Do(stop, 9))
    assert names(tmp_path) == ["05", "08"]
    spoil(tmp_path / "step-00000008")
    seen = []
    look = Do(lambda state: seen.append(names(tmp_path)), 9, 10, 14, 15)
    saving = scored(tmp_path, every_n_epochs=9, every_n_steps=4, save_top_k=0)
    with pytest.warns(UserWarning, match="using step-00000005"):
        run(saving, look, epochs=4, resume_from=tmp_path)
    assert seen == [
        ["05", "08", "08-v2"],
        ["05", "08", "08-v2"],
        ["08-v2", "12"],
        ["08-v2", "12"],
    ]
    assert names(tmp_path) == ["16", "20"]


def test_the_best_is_by_the_monitor_that_is_asked_for_now(tmp_path) -> None:
    run(scored(tmp_path, save_top_k=3), epochs=3, scores=[3.0, 1.0, 2.0])
    saving = scored(tmp_path, mode="max")
    run(saving, scores=[3.0, 1.0, 2.0, 2.5], epochs=4, resume_from=tmp_path)
    assert saving.best_path == tmp_path / "step-00000005"


@pytest.mark.parametrize(
    ("method", "code"),
    [("mkdir", errno.EACCES), ("touch", errno.EROFS), ("touch", errno.ENOSPC)],
)
def test_a_folder_that_cannot_be_written_is_named_before_training(
    tmp_path, monkeypatch, method: str, code: int
) -> None:
    def refuse(*_, **__) -> None:
        raise OSError(code, "computer says no")

    monkeypatch.setattr(Path, method, refuse)
    svi = pair()
    with pytest.raises(
        CheckpointError, match=r"cannot be written below .*: computer says no; make"
    ):
        fit(svi, max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path / "x")])
    assert svi._stepper.steps == 0


def test_a_file_in_its_place(tmp_path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match="File exists"):
        fit(pair(), max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path / "x")])


@pytest.mark.parametrize("at", [7, 10])
@pytest.mark.parametrize("function", ["write_file", "sync_folder"])
def test_a_full_disk_ends_training_and_loses_nothing(tmp_path, monkeypatch, at, function) -> None:
    real = getattr(checkpoint_files, function)

    def full(path: Path, *args: Any) -> None:
        real(path, *args)
        raise OSError(errno.ENOSPC, "No space left on device")

    saving = am.ModelCheckpoint(tmp_path, every_n_steps=1)
    fill = Do(lambda state: monkeypatch.setattr(checkpoint_files, function, full), at)
    whole, cut, again = noisy(), noisy(), noisy()
    expected = fit(whole, max_epochs=3, seed=0)
    with pytest.raises(CheckpointError, match=r"cannot .*: No space left on device; free space"):
        fit(cut, callbacks=[fill, saving], max_epochs=3, seed=0)
    monkeypatch.undo()
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
    assert newest(tmp_path).metadata["step"] in (at - 1, at)
    found = fit(again, callbacks=[am.ModelCheckpoint(tmp_path)], max_epochs=3, resume_from=tmp_path)
    same(everything(whole, expected), everything(again, found))


# When training fails


def test_an_error_between_steps_is_saved_unless_not_wanted(tmp_path) -> None:
    for wanted in (True, False):
        saving = scored(tmp_path / str(wanted), save_on_exception=wanted)
        with pytest.raises(Stop):
            run(saving, Do(stop, 3))
    assert names(tmp_path / "True") == ["03"] and names(tmp_path / "False") == []


def test_the_same_step_is_not_saved_twice(tmp_path) -> None:
    with pytest.raises(Stop):
        run(scored(tmp_path / "a", every_n_steps=3), Do(stop, 3))
    again = Do(lambda state: stop(state) if state.epoch == 2 else None, hook="train_epoch_start")
    with pytest.raises(Stop):
        run(scored(tmp_path / "b"), again)
    assert names(tmp_path / "a") == ["03"] and names(tmp_path / "b") == ["05"]


def test_an_error_within_a_step_is_not(tmp_path) -> None:
    svi, real = pair(), am.VariationalLoss.estimate
    calls: list[int] = []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # the first was the warm-up
            raise Stop
        return real(svi.loss, *args, **options)

    svi.loss.estimate = failing
    with pytest.raises(Stop):
        run(scored(tmp_path, every_n_steps=3), svi=svi)
    assert svi._stepper.steps == 4 and names(tmp_path) == ["03"]
    with pytest.raises(Stop):
        run(scored(tmp_path / "x"), Do(stop, hook="train_epoch_start"))
    assert names(tmp_path / "x") == []


# Arguments


def test_a_monitor_that_is_misspelt_is_refused_before_the_first_step(tmp_path) -> None:
    svi = pair()
    message = r"ModelCheckpoint watches 'val_los'; recorded are .* mean 'val_loss'\?"
    with pytest.raises(UsageError, match=message):
        fit(svi, max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path / "x", "val_los")])
    assert svi._stepper.steps == 0 and not (tmp_path / "x").exists()
    for saving in (
        am.ModelCheckpoint(tmp_path / "a"),  # without validation data nothing is the best
        am.ModelCheckpoint(tmp_path / "b", "kl/z"),
        am.ModelCheckpoint(tmp_path / "c", "none", save_top_k=0),
    ):
        assert fit(pair(), max_epochs=1, callbacks=[saving]).notices == []


def test_a_monitor_that_is_never_recorded_is_told(tmp_path) -> None:
    history = fit(pair(), max_epochs=2, callbacks=[am.ModelCheckpoint(tmp_path, "kl/other")])
    (notice,) = history.notices
    assert notice.startswith("ModelCheckpoint watched 'kl/other', which was not recorded")


@pytest.mark.parametrize(
    "wrong",
    [
        {"save_top_k": -1},
        {"keep_last": 0},
        {"every_n_epochs": 0},
        {"every_n_steps": 0},
        {"mode": "up"},
    ],
    ids=str,
)
def test_arguments_are_checked(wrong) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=rf"ModelCheckpoint\({name}={value!r}\): expected"):
        am.ModelCheckpoint("x", **wrong)
