from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import amortized as am
from amortized.compare.training import training
from amortized.compare.training.result import TrainingComparison
from amortized.compare.training.trial import Job, Plan, Trial
from tests.compare.training.programs import bits, level_guide, overflowing

LOSSES = {
    "loo": "leave_one_out",
    "disarm": {"b": "disarm"},
    "three": am.VariationalLoss(am.ELBO(3)),
}


def compared(program: Any = bits, candidates: Any = None, **changes: Any) -> TrainingComparison:
    few = {"max_steps": 4, "seeds": 2, "check_every": 2, "num_particles": 2, "batch_size": 10}
    asked: dict[str, Any] = {**few, "lr": 0.05, "compile": "off", "progress": False, **changes}
    return am.compare_training(program, LOSSES if candidates is None else candidates, **asked)


@pytest.fixture
def run_so_far(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The trials that are really run."""
    met: list[tuple[str, int]] = []
    from amortized.compare.training import workers

    whole = workers.run_trial

    def watched(plan: Plan, job: Job) -> Trial | None:
        met.append((job.candidate, job.seed))
        return whole(plan, job)

    monkeypatch.setattr(workers, "run_trial", watched)
    yield met


def test_every_candidate_is_trained_under_every_seed_from_one_start():
    found = compared()
    assert found.candidates == ["loo", "disarm", "three"]
    turns = [(t.candidate, t.seed) for t in found.trials]
    assert turns == [(n, 0) for n in LOSSES] + [(n, 1) for n in ("disarm", "three", "loo")]
    assert [t.place for t in found.trials] == [1, 2, 3, 4, 5, 6]
    for seed in (0, 1):
        trials = [t for t in found.trials if t.seed == seed]
        assert len({t.start for t in trials}) == len({t.elbo[0] for t in trials}) == 1
        assert len({t.elbo[-1] for t in trials}) == 3
    assert found.evaluations == {"loo": 2, "disarm": 2, "three": 3}
    assert found.held_out and found.missing == 0
    assert "after 4 steps" in str(found) and len(found.sheet().rows) == 3
    assert len(pyro.get_param_store()) == 0


def test_a_candidate_that_diverges_does_not_end_the_others(tmp_path: Path):
    losses = {"steady": {"z": am.Pathwise()}, "other": {"z": am.ScoreFunction()}}
    found = compared(
        partial(overflowing, last=90), losses, max_steps=100, check_every=50, folder=tmp_path
    )
    assert len(found.trials) == 4 and len(list(tmp_path.iterdir())) == 4
    assert all(t.failure and t.failed_step for t in found.trials)
    again = compared(
        partial(overflowing, last=90), losses, max_steps=100, check_every=50, folder=tmp_path
    )
    assert [t.failure for t in again.trials] == [t.failure for t in found.trials]


def test_ctrl_c_keeps_what_is_finished_and_the_folder_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_so_far: list[tuple[str, int]]
):
    whole = compared()
    run_so_far.clear()
    finished: list[Trial] = []
    kept = training._line

    def interrupting(trial: Trial, number: int, total: int) -> str:
        finished.append(trial)
        if len(finished) == 4:
            raise KeyboardInterrupt
        return kept(trial, number, total)

    monkeypatch.setattr(training, "_line", interrupting)
    some = compared(folder=tmp_path, progress=True)
    assert some.missing == 2 and len(some.trials) == 4
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(training, "_line", kept)
    run_so_far.clear()
    found = compared(folder=tmp_path)
    assert run_so_far == [("three", 1), ("loo", 1)]
    assert [t.elbo for t in found.trials] == [t.elbo for t in whole.trials]
    run_so_far.clear()
    compared(folder=tmp_path)
    assert run_so_far == []
    # more seeds and candidates may come, and only they are run
    more = compared(candidates={**LOSSES, "arm": "arm"}, folder=tmp_path, seeds=[0, 1, 7])
    assert len(more.trials) == 12 and len(run_so_far) == 6


def test_ctrl_c_before_anything_is_finished_goes_on(monkeypatch: pytest.MonkeyPatch):
    def interrupting(*_: Any) -> bool:
        return True

    monkeypatch.setattr(training, "run_trials", interrupting)
    with pytest.raises(KeyboardInterrupt):
        compared()


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    compared(seeds=1, candidates={"loo": "leave_one_out"})
    assert os.listdir() == []


def test_one_line_a_trial(capsys: pytest.CaptureFixture[str]):
    compared(seeds=1, progress=True, candidates={"loo": "leave_one_out"})
    line = capsys.readouterr().err
    assert line.startswith("1/1 loo, seed 0: ELBO -") and "after 4 steps" in line


def test_networks_that_outlive_a_trial_are_refused():
    """A second candidate would go on where the first one ended."""
    kept = bits()
    with pytest.raises(am.UsageError, match=r"started from other parameters than 'loo'"):
        compared(lambda: kept)


def test_a_loader_in_an_order_of_its_own_is_refused():
    def shuffled(generator: torch.Generator | None = None) -> am.Program:
        made = bits()
        data = TensorDataset(made.train)
        loader = DataLoader(data, 10, shuffle=True, generator=generator)
        return am.Program(made.model, made.guide, train=loader, val=made.val)

    with pytest.raises(am.UsageError, match="shuffles by torch's global generator"):
        compared(shuffled)
    own = partial(shuffled, torch.Generator().manual_seed(0))
    assert len(compared(own, {"loo": "leave_one_out"}, seeds=1).trials) == 1


class Noisy(Dataset):  # type: ignore[type-arg]
    """Items that are drawn anew whenever they are asked for."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.bernoulli(0.2 + 0.6 * self.data[index])


def test_an_order_that_goes_on_from_trial_to_trial_is_refused():
    made = bits()
    own = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(made.train), 10, shuffle=True, generator=own)

    def program() -> am.Program:
        made = bits()
        return am.Program(made.model, made.guide, train=loader, val=made.val)

    with pytest.raises(
        am.UsageError,
        match=r"'disarm' met other training data than 'loo' from epoch 1, batch 1 on; expected the "
        r"same for all: .* make the DataLoader and its generator inside of program\(\)",
    ):
        compared(program)


def test_a_loader_whose_generator_is_made_in_the_program_is_the_same_for_all():
    def program() -> am.Program:
        made = bits()
        own = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(made.train), 10, shuffle=True, generator=own)
        return am.Program(made.model, made.guide, train=loader, val=made.val)

    found = compared(program, seeds=1, max_steps=6)
    assert len({str(trial.batches) for trial in found.trials}) == 1
    assert len(set(found.trials[0].batches.values())) == 6


def test_items_that_are_drawn_anew_are_refused():
    """The first batch is the same for all; at the second one candidates have drawn unlike much."""

    def program() -> am.Program:
        made = bits()
        return am.Program(made.model, made.guide, train=Noisy(made.train), val=made.val)

    with pytest.raises(
        am.UsageError, match=r"from epoch 1, batch 2 on; .* torch's global generator"
    ):
        compared(program, {"loo": "leave_one_out", "one": am.ScoreFunction()})


def test_a_folder_of_another_program_is_refused_by_what_is_measured(tmp_path: Path):
    """Parameters, data and code are equal, but not what the program reads."""
    file = tmp_path / "scale"

    def program() -> am.Program:
        made, scale = bits(), float(file.read_text())

        def model(x: torch.Tensor) -> None:
            with pyro.poutine.scale(scale=scale):
                made.model(x)

        return am.Program(model, made.guide, train=made.train, val=made.val)

    file.write_text("1.0")
    one = {"loo": "leave_one_out"}
    first = compared(program, one, folder=tmp_path / "kept")
    again = compared(program, one, folder=tmp_path / "kept")
    assert [t.elbo for t in again.trials] == [t.elbo for t in first.trials]
    file.write_text("2.0")
    with pytest.raises(
        am.UsageError, match="'loo' with seed 0 in it had the ELBO before training = "
    ):
        compared(program, folder=tmp_path / "kept")


def test_a_candidate_that_cannot_serve_is_named_before_any_training(
    run_so_far: list[tuple[str, int]],
):
    with pytest.raises(am.EstimatorError, match="candidate 'path'"):
        compared(candidates={**LOSSES, "path": "pathwise"})
    with pytest.raises(am.UsageError, match="candidate 'typo'"):
        compared(candidates={"typo": "disram"})
    assert run_so_far == []


def test_options_are_read_as_on_the_command_line(tmp_path: Path):
    path = tmp_path / "some.py"
    path.write_text(
        "from tests.compare.training.programs import bits\n"
        "def program(size: int = 3, rows: int = 40):\n    return bits(size, rows)\n"
    )
    few = {"seeds": 1, "candidates": {"loo": "leave_one_out"}}
    found = compared(str(path), options={"size": 2, "rows": "30"}, **few)
    assert found.trials[0].elbo == compared(partial(bits, 2, 30), **few).trials[0].elbo
    with pytest.raises(am.UsageError, match="did you mean size"):
        compared(path, options={"sise": 2}, **few)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"seeds": []}, "seeds="),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": [-1]}, "seeds="),
        ({"workers": 0}, "workers=0"),
        ({"check_every": 0}, "check_every=0"),
        ({"candidates": {}}, "expected a dict of losses"),
        ({"candidates": {"pyro": pyro.infer.Trace_ELBO()}}, r"compared by am\.compare_gradients"),
        ({"candidates": {"x": 3}}, "candidate 'x': found 3"),
        ({"training": {"max_epochs": 3}}, "expected arguments of SVI.fit among"),
        ({"program": 3}, "program: found int"),
        ({"program": am.Program(print, print, ())}, "program: found"),
        ({"program": dict}, "found a class"),
        ({"stpes": 3}, "it has no such argument"),
    ],
)
def test_wrong_calls(changes: dict[str, Any], sentence: str):
    with pytest.raises(am.UsageError, match=sentence):
        compared(**changes)


def test_what_is_wrong_with_the_program_is_said_once(run_so_far: list[tuple[str, int]]):
    network = nn.Linear(1, 1)

    def broken() -> am.Program:
        def model(x: torch.Tensor) -> None:
            raise ValueError(f"no such thing {network}")

        return am.Program(model, level_guide, train=torch.zeros(4, 1))

    with pytest.raises(am.AmortizedError, match="no such thing"):
        compared(broken)
    assert run_so_far == []
