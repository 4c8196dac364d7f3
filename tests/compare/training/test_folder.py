from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

import amortized as am
from amortized.compare.training.folder import Results, config_of, described
from amortized.compare.training.trial import Trial
from tests.compare.training.programs import bits, job, plan

TRIAL = Trial(
    "one",
    0,
    1,
    steps=[0, 2],
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
        ({"options": {"size": "4"}}, r'options = {}, and now it is {"size": "4"}'),
        ({"program": partial(bits, 2)}, "program = "),
        ({"lr": {"model": 0.1, "guide": 0.2}}, "lr = 0.05"),
        ({"training": {"gradient_clip_val": 1.0}}, "training = "),
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


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(am.UsageError, match="folder="):
        Results(tmp_path / "file" / "folder", plan())


def test_what_was_asked_for_is_the_same_in_every_process():
    found = config_of(plan(Path("some/where/p.py"), optimizer=partial(torch.optim.Adam, eps=1e-3)))
    assert found["program"] == "p.py"
    json.dumps(found)
    assert " at 0x" not in json.dumps(found) and "eps=0.001" in found["optimizer"]
    assert described(bits) == "bits" and described(torch.optim.Adam) == "Adam"
    assert set(found) == {field.name for field in dataclasses.fields(plan())}
