from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amortized as am
from amortized.compare.training import folder
from amortized.compare.training.folder import Results, config_of
from amortized.compare.training.trial import Job, Trial
from tests.compare.training.programs import bits, job, plan

TRIAL = Trial(
    "one",
    0,
    1,
    steps=[0, 2],
    train="cd",
    val="",
    batches={"1/1": "ef"},
    seconds=[0.0, 0.5],
    wall=[0.0, 0.6],
    elbo=[-math.inf, math.nan],
    start="ab",
    failed_step=3,
    failure="it is not finite",
)


def test_a_trial_comes_back_as_it_was(tmp_path: Path):
    results = Results(tmp_path / "new" / "folder", plan())
    assert results.read(job()) is None
    results.write(job(), TRIAL)
    found = results.read(job())
    assert found is not None and str(found) == str(TRIAL)
    assert math.isnan(found.elbo[1])
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name.endswith("-seed0.json")
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.fixture(autouse=True)
def _the_same_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TRIAL` was not run."""
    monkeypatch.setattr(folder, "beginning_of", lambda plan, job: TRIAL.beginning)


def test_names_that_a_file_cannot_have_are_told_apart(tmp_path: Path):
    results = Results(tmp_path, plan())
    for name in ("a/b", "a b", "../a:b", ""):
        results.write(job(candidate=name), TRIAL)
    results.write(job(seed=1), TRIAL)
    assert len(list(tmp_path.iterdir())) == 5


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    results = Results(None, plan())
    results.write(job(), TRIAL)
    assert results.read(job()) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": 8}, "max_steps = 6, and now it is 8"),
        ({"options": {"size": "4"}}, r'options.size = null, and now it is "4"'),
        ({"program": partial(bits, 2)}, r"program\.function = null"),
        ({"lr": {"model": 0.1, "guide": 0.2}}, r"optimizer made.* = 0.05, and now it is 0\.1"),
        ({"training": {"gradient_clip_val": 1.0}}, r"training\.gradient_clip_val = null"),
        ({"optimizer": lambda p: torch.optim.SGD(p)}, r'"Adam", and now it is "SGD"; ask for'),
    ],
)
def test_trials_of_another_kind_are_refused(changes: dict, named: str, tmp_path: Path):
    Results(tmp_path, plan()).write(job(), TRIAL)
    with pytest.raises(am.UsageError, match=named):
        Results(tmp_path, plan(**changes)).read(job())
    assert Results(tmp_path, plan(**changes)).read(job(seed=1)) is None


def test_another_loss_under_the_same_name_is_refused(tmp_path: Path):
    Results(tmp_path, plan()).write(job(), TRIAL)
    with pytest.raises(am.UsageError, match=r"the trial of 'one' with seed 0 in it had loss = "):
        Results(tmp_path, plan()).read(job("disarm"))


def test_a_file_that_is_damaged_is_named(tmp_path: Path):
    results = Results(tmp_path, plan())
    results.write(job(), TRIAL)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:50])
    with pytest.raises(am.CheckpointError, match=f"{file.name} cannot be read .* remove it"):
        results.read(job())


def damaged(**changes: Any) -> dict[str, Any]:
    kept = {"format": 2, "config": {"max_steps": 6}}
    trial = {**vars(TRIAL), "elbo": [-3.0, -2.0], **changes}
    return {**kept, "trial": {name: value for name, value in trial.items() if value != "gone"}}


@pytest.mark.parametrize(
    ("held", "what"),
    [
        ([], "expected an object with config and trial"),
        ({"config": {}, "format": 2, "trial": None}, "its trial is None; expected an object"),
        (damaged(elbo=[]), "elbo has 0 numbers, and steps has 2"),
        (damaged(elbo=[-3.0]), "elbo has 1 numbers, and steps has 2"),
        (damaged(seed=77), "its trial has seed 77; expected 0"),
        (damaged(candidate="zzz"), "its trial has candidate 'zzz'; expected 'one'"),
        (damaged(elbo=[-3.0, "low"]), "elbo: found 'low'; expected numbers"),
        (damaged(failure="", failed_step=None), "its last step is 2; expected 6"),
        (damaged(steps=[2, 0]), "steps: found .* grow from 0"),
        (damaged(steps=[]), "steps: found .* grow from 0"),
        (damaged(wall="gone"), "lacks wall"),
        (damaged(more=3), "more, or it should not be there"),
        (damaged(batches=[]), "batches: found"),
        (damaged(notices=[3]), "notices: found"),
        (damaged(failed_step="3"), "failed_step: found '3'; expected a whole number"),
        (damaged(per_datum=1), "per_datum: found 1; expected true or false"),
        (damaged(place=None), "place: found None"),
        (damaged(failure=None), "failure: found None; expected text"),
    ],
)
def test_what_is_no_trial_is_refused(held: Any, what: str, tmp_path: Path):
    results = Results(tmp_path, plan())
    results.write(job(), TRIAL)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(held))
    with pytest.raises(am.CheckpointError, match=f"{file.name} cannot be read .*{what}.* remove"):
        results.read(job())


def test_a_file_of_another_version_is_refused(tmp_path: Path):
    results = Results(tmp_path, plan())
    results.write(job(), TRIAL)
    (file,) = tmp_path.iterdir()
    held = json.loads(file.read_text())
    del held["format"]
    file.write_text(json.dumps(held))
    with pytest.raises(am.CheckpointError, match=f"{file.name} was written by another version"):
        results.read(job())


def program_of(noise: float) -> Callable[[], am.Program]:
    def program() -> am.Program:
        made = bits()
        return am.Program(made.model, made.guide, train=made.train * noise, val=made.val)

    return program


def test_a_program_of_the_same_name_is_not_the_same(tmp_path: Path):
    Results(tmp_path, plan(program_of(1.0))).write(job(), TRIAL)
    with pytest.raises(am.UsageError, match=r"program\.values\.noise = 1\.0, and now it is 0\.5"):
        Results(tmp_path, plan(program_of(0.5))).read(job())


def test_a_program_file_that_was_edited_is_refused(tmp_path: Path):
    path, kept = tmp_path / "p.py", tmp_path / "kept"
    path.write_text("one = 1\n")
    Results(kept, plan(path)).write(job(), TRIAL)
    path.write_text("one = 2\n")
    with pytest.raises(am.UsageError, match=r"had program\.text = "):
        Results(kept, plan(path)).read(job())


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (am.VariationalLoss(vectorize=False), "vectorize_particles = true, and now it is false"),
        (am.VariationalLoss(layout="rows"), r'layout = "auto", and now it is "rows"'),
        (am.VariationalLoss(max_plate_nesting=3), "min_nesting = 0, and now it is 3"),
    ],
)
def test_options_of_a_loss_that_its_text_does_not_show(
    loss: am.VariationalLoss, named: str, tmp_path: Path
):
    asked = dataclasses.replace(job(), loss=am.VariationalLoss())
    Results(tmp_path, plan()).write(asked, TRIAL)
    assert Results(tmp_path, plan()).read(asked) is not None
    with pytest.raises(am.UsageError, match=named):
        Results(tmp_path, plan()).read(dataclasses.replace(asked, loss=loss))


def test_a_baseline_network_of_another_size_is_another_loss(tmp_path: Path):
    def made(width: int) -> Job:
        network = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
        return job(am.ScoreFunction(am.NeuralBaseline(network)))

    Results(tmp_path, plan()).write(made(4), TRIAL)
    assert Results(tmp_path, plan()).read(made(4)) is not None, "whatever its first values"
    with pytest.raises(am.UsageError, match="loss"):
        Results(tmp_path, plan()).read(made(5))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"start": "zz"}, r'the initial parameters = "ab", and now it is "zz"'),
        ({"train": "zz"}, "the training data ="),
        ({"val": "zz"}, "the validation data ="),
        ({"elbo": -3.0}, "the ELBO before training = -2.0, and now it is -3.0"),
    ],
)
def test_what_trials_start_from_is_measured(
    changes: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trial = dataclasses.replace(TRIAL, elbo=[-2.0, -1.0])
    now = dataclasses.replace(trial.beginning, **changes)
    monkeypatch.setattr(folder, "beginning_of", lambda plan, job: now)
    Results(tmp_path, plan()).write(job(), trial)
    with pytest.raises(am.UsageError, match=named):
        Results(tmp_path, plan()).read(job())


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(am.UsageError, match="folder="):
        Results(tmp_path / "file" / "folder", plan())


def test_what_was_asked_for_is_the_same_in_every_process():
    found = config_of(plan(Path("some/where/p.py"), optimizer=partial(torch.optim.Adam, eps=1e-3)))
    assert found["program"]["file"] == "p.py"
    assert json.loads(json.dumps(found)) == found, "as a file gives it back"
    assert " at 0x" not in json.dumps(found) and found["optimizer"]["given"] == {"eps": 0.001}
    assert found["optimizer made"]["groups"][0]["eps"] == 0.001
    assert set(found) == {*(f.name for f in dataclasses.fields(plan())), "optimizer made"}
