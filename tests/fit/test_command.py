from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import amortized as am
from amortized.fit import command
from amortized.fit.command import Request, Source, run

PROGRAM = """
import pyro, pyro.distributions as dist, torch
import amortized as am

def program(size: int = 24):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", lambda: torch.randn(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return am.Program(model, guide, torch.randn(size))
"""
TRAINING: dict[str, Any] = {"max_epochs": 1, "progress": False, "check": True}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return Source(path, {}, {"z": "pathwise"}, am.ELBO(2), None, 3)


def request(source: Source, out: Path | None = None, **training: Any) -> Request:
    return Request(source, out, False, False, 1e-3, 0, {**TRAINING, **training})


def test_a_program_is_built_under_its_seed_and_the_stream_stays(source: Source) -> None:
    before = torch.get_rng_state()
    data = []
    for _ in range(2):
        with source.opened() as program:
            data.append(program.train)
    assert torch.equal(*data) and torch.equal(torch.get_rng_state(), before)
    assert repr(source.loss) == repr(am.VariationalLoss(am.ELBO(2), {"z": "pathwise"}))


def test_what_is_raised_later_is_not_blamed_on_the_file(source: Source) -> None:
    with pytest.raises(ZeroDivisionError), source.opened():
        raise ZeroDivisionError


def test_what_a_helper_beside_the_file_raises_has_its_line(source: Source) -> None:
    helper = source.path.with_name("helper_beside_it.py")
    helper.write_text("def fail():\n    raise OSError('no such disk')\n", encoding="utf-8")
    source.path.write_text("import helper_beside_it\nhelper_beside_it.fail()\n", encoding="utf-8")
    expected = "^helper_beside_it.py line 2: OSError: no such disk$"
    with pytest.raises(am.ProgramError, match=expected), source.opened():
        pass


def test_a_finished_run_prints_and_says_nothing(
    source: Source, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run(request(source)) is None
    out, err = capsys.readouterr()
    assert "Pathwise()" in out and "History(epochs=1/1" in out and err == ""


def test_programs_that_fail_unchecked_fail_in_training(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PROGRAM.replace("slope * x, 0.7", "slope * x, 0.7).to_event(5")
    source.path.write_text(text, encoding="utf-8")
    with pytest.raises(Exception, match="Expected reinterpreted_batch_ndims"):
        run(request(source, check=False))
    assert "the table of sites is left out" in capsys.readouterr().out


def test_only_warnings_of_the_check_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="other"), command._check_warnings_printed():
        warnings.warn("once", am.CheckWarning, stacklevel=1)
        warnings.warn("other", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: once\n"


def test_processes_started_anew_go_on_with_what_their_launcher_began(
    source: Source, tmp_path: Path
) -> None:
    asked, steps = request(source, tmp_path / "out"), []

    def history() -> list[str]:
        return (tmp_path / "out" / "history.csv").read_text().splitlines()

    def done(asked: Request, launcher: str) -> int:
        run(asked, launcher=launcher)
        steps.append(sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir()))
        return len(history()) - 1

    longer = replace(asked, training={**asked.training, "max_epochs": 2})
    assert done(asked, "night 1") == 1
    with pytest.raises(am.UsageError, match="holds an earlier run"):
        done(longer, "night 2")
    first = history()[:2]
    assert done(longer, "night 1") == 2 and history()[:2] == first
    assert steps[0][0] in steps[1]
    # an older run is overwritten, and what followed it is not
    assert done(replace(asked, overwrite=True), "night 3") == 1
    assert done(replace(longer, overwrite=True), "night 3") == 2
    assert steps[0] == steps[2] and steps[1] == steps[3]


def test_a_folder_is_removed_if_nothing_came_of_the_run(source: Source, tmp_path: Path) -> None:
    source.path.write_text("raise ValueError", encoding="utf-8")
    with pytest.raises(am.ProgramError):
        run(request(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_test_data_are_looked_at_before_training(source: Source, tmp_path: Path) -> None:
    text = PROGRAM.replace("torch.randn(size))", "torch.randn(size), test=torch.ones(4) / 0)")
    source.path.write_text(text, encoding="utf-8")
    with pytest.raises(am.DataError, match=r"test: .*rows 0, 1, 2 and 1 more of the test data"):
        run(request(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_test_bound_that_is_no_number_is_said_after_all_is_written(
    source: Source, tmp_path: Path
) -> None:
    text = PROGRAM.replace("torch.randn(size))", "torch.randn(size), test=torch.ones(4) / 0)")
    source.path.write_text(text, encoding="utf-8")
    with pytest.raises(am.DataError, match=r"test: site 'x' .*an infinite value in 4 rows"):
        run(request(source, tmp_path / "out", check=False))
    assert (tmp_path / "out" / "metrics.json").exists()


def test_a_test_bound_that_is_no_number_for_another_reason(source: Source, tmp_path: Path) -> None:
    text = PROGRAM.replace("slope * x, 0.7", "slope * x - 1 / (x.abs().max() < 9), 0.7")
    text = text.replace("torch.randn(size))", "torch.randn(size), test=torch.full((4,), 9.0))")
    source.path.write_text(text, encoding="utf-8")
    with pytest.raises(am.NonFiniteError, match=r"test: the ELBO is (nan|-inf); expected a finite"):
        run(request(source, tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.json").exists()
