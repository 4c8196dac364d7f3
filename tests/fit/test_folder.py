import errno
import json
import math
from pathlib import Path

import pytest
from torch import nn

from amortized.errors import CheckpointError, UsageError
from amortized.fit.callbacks import FitState
from amortized.fit.folder import RunFolder, write_json
from amortized.fit.history import History
from amortized.fit.parameters import Parameters


def history() -> History:
    found = History()
    found.record({"train_loss": 2.5})
    found.record({"train_loss": 1.5, "val_elbo": -1.75})
    return found


def begun() -> FitState:
    return FitState(Parameters(print, print, nn.Identity()), history())


def test_it_writes_while_training_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b", {"seed": 3})
    state = begun()
    folder.on_fit_start(state)
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 3}
    folder.on_train_epoch_end(state)
    text = (folder.path / "history.csv").read_text(encoding="utf-8")
    assert text.splitlines() == ["epoch,train_loss,val_elbo", "1,2.5,", "2,1.5,-1.75"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch, number: int) -> None:
    write_json(tmp_path / "metrics.json", {"elbo": -1.0})

    def full(descriptor: int) -> None:
        raise OSError(number, "No room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot be written: No room"):
        write_json(tmp_path / "metrics.json", {"elbo": -2.0})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"elbo": -1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_other_options_are_refused_on_resuming(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, {"seed": 3, "epochs": 5})
    write_json(tmp_path / "config.json", first.config)
    (first.checkpoints / "step-00000001").mkdir(parents=True)
    RunFolder(tmp_path, {"seed": 3, "epochs": 9}).refuse_another_run(True, ("epochs",))
    with pytest.raises(UsageError, match="seed = 3, and now it is 4"):
        RunFolder(tmp_path, {"seed": 4, "epochs": 5}).refuse_another_run(True, ("epochs",))
    with pytest.raises(UsageError, match="add --resume"):
        first.refuse_another_run(False)


def test_a_run_is_its_launchers_until_another_goes_on_with_it(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, {}, ["night 7", "night 8"])
    first.on_fit_start(begun())
    assert not first.begun_by(["night 7"])  # nothing to go on with yet
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert first.begun_by(["night 8", "night 9"])
    assert not first.begun_by(["night 9"]) and not first.begun_by([])
    for damaged in ("", "{", "null", '{"launchers": 5}', '{"launchers": [["a"]]}', "{}"):
        (tmp_path / "launchers.json").write_text(damaged)
        assert not first.begun_by(["night 8"])
    RunFolder(tmp_path, {}).on_fit_start(begun())
    assert not first.begun_by(["night 7"])


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_options_that_cannot_be_read_are_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"--resume: .*config\.json"):
        RunFolder(tmp_path, {}).refuse_another_run(True)


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--out"):
        RunFolder(tmp_path / "file", {})
    assert math.isnan(history()["val_elbo"][0])


def test_numbers_that_json_lacks_are_text(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"elbo": math.nan, "best": -math.inf, "epochs": 2})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "elbo": "nan",
        "best": "-inf",
        "epochs": 2,
    }
