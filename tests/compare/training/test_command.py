from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import amortized as am
from amortized.cli import main
from amortized.compare.training import command, workers
from amortized.compare.training.command import losses_of
from amortized.compare.training.trial import Job, Plan, Trial

PROGRAM = (
    "from tests.compare.training.programs import bits\n"
    "def program(size: int = 3):\n    return bits(size)\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "small.py"
    found.write_text(PROGRAM)
    return found


def code_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as found:
        main([str(argument) for argument in arguments])
    assert isinstance(found.value.code, int)
    return found.value.code


PAIR = ("--estimator", "b=leave_one_out", "--estimator", "pairs: b=disarm")
FEW = ("--train", "--max-steps", 4, "--seeds", 2, "--lr", 0.05, "--batch-size", 10)


def test_candidates_are_read_from_text():
    found = losses_of(["disarm", "b=arm", "two: b=disarm , c*=enumerate", "n: disarm"], am.ELBO(2))
    assert list(found) == ["disarm", "b=arm", "two", "n"]
    assert "'c*': Enumerate()" in repr(found["two"]) and "DisARM()" in repr(found["n"])
    assert all(loss.objective.num_particles == 2 for loss in found.values())


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "--estimator: there is nothing to compare"),
        (["b=arm", "b=arm"], "there are two candidates 'b=arm'"),
        (["a: "], "expected 'site=estimator'"),
        ([": b=arm"], "expected 'site=estimator'"),
        (["b=arm,c"], "--estimator c: expected name=value"),
        (["disram"], "did you mean 'disarm'"),
    ],
)
def test_what_is_no_candidate_is_refused(texts: list[str], sentence: str):
    with pytest.raises(am.UsageError, match=sentence):
        losses_of(texts, am.ELBO())


def test_gradients_are_compared(path: Path, capsys: pytest.CaptureFixture[str]):
    report = path.parent / "out.html"
    options = ("--num-draws", 60, "--set", "size=2", "--report", report, "--parameter", "*bias")
    assert code_of("compare", path, *PAIR, *options) == 0
    shown = capsys.readouterr().out
    assert "b=leave_one_out" in shown and "pairs" in shown and "BIASED" not in shown
    assert "exact, by enumeration" in shown and "decoder.bias" in shown
    page = report.read_text()
    assert "<title>small.py: b=leave_one_out, pairs</title>" in page
    assert "<dd>size=2</dd>" in page and page.count("<img ") == 4


def test_a_comparison_of_gradients_has_a_budget(path: Path, capsys: pytest.CaptureFixture[str]):
    assert code_of("compare", path, *PAIR, "--num-draws", 60, "--budget", 0) == 2
    assert "--budget 0.0: expected seconds above 0" in capsys.readouterr().err
    draws = 500_000
    options = ("--num-draws", draws, "--budget", 0.1, "--format", "json", "--reference", "long")
    assert code_of("compare", path, *PAIR, *options) == 0
    assert 50 <= json.loads(capsys.readouterr().out)["num_draws"] < draws


def test_equal_seeds_give_equal_numbers(path: Path, capsys: pytest.CaptureFixture[str]):
    def means(seed: int) -> list[float]:
        options = ("--num-draws", 60, "--format", "json", "--seed", seed)
        assert code_of("compare", path, *PAIR, *options) == 0
        return [row["norm"] for row in json.loads(capsys.readouterr().out)["rows"]]

    assert means(0) == means(0) != means(1)


def test_trainings_are_compared(path: Path, capsys: pytest.CaptureFixture[str]):
    report, folder = path.parent / "out.html", path.parent / "trials"
    options = ("--report", report, "--folder", folder, "--seed", 5, "--check-every", 2)
    assert code_of("compare", path, *PAIR, *FEW, *options) == 0
    read = capsys.readouterr()
    assert "finished" in read.out and "2 of 2" in read.out
    assert [line[:3] for line in read.err.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]
    assert report.read_text().count("<img ") == 3
    names = sorted(file.name for file in folder.iterdir())
    assert len(names) == 4 and all(re.search(r"-seed[56]\.json$", name) for name in names)
    assert code_of("compare", path, *PAIR, *FEW, *options, "--format", "csv") == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out.startswith("candidate,seed,step,seconds")


def test_ctrl_c_says_how_to_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, met = workers.run_trial, []

    def interrupted(plan: Plan, job: Job) -> Trial | None:
        met.append(job)
        return None if len(met) > 2 else whole(plan, job)

    monkeypatch.setattr(workers, "run_trial", interrupted)
    assert code_of("compare", path, *PAIR, *FEW, "--folder", path.parent / "trials") == 130
    read = capsys.readouterr()
    assert "1 of 1" in read.out
    assert "interrupted: 2 trials are missing; the same call with --folder" in read.err
    met.clear()
    met += [None, None]
    assert code_of("compare", path, *PAIR, *FEW) == 130
    assert capsys.readouterr().err.strip() == "amortized: interrupted"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "--estimator: there is nothing to compare"),
        (("--estimator", "z=arm"), 3, "candidate 'z=arm'"),
        (("--estimator", "b=pathwise"), 3, "candidate 'b=pathwise'"),
        (("--estimator", "b=pathwise", *FEW), 3, "candidate 'b=pathwise'"),
        ((*PAIR, "--format", "xml"), 2, "--format xml: expected one of text, markdown"),
        ((*PAIR, "--report", "no/such/folder.html"), 2, "--report no/such/folder.html"),
        ((*PAIR, "--num-draws", 3), 2, "--num-draws 3: expected an int, at least 50"),
        ((*PAIR, "--reference", "best"), 2, "--reference 'best'"),
        ((*PAIR, "--parameter", "nothing"), 2, "--parameter"),
        ((*PAIR, *FEW, "--seeds", 0), 2, "--seeds 0"),
        ((*PAIR, *FEW, "--workers", 0), 2, "--workers 0"),
        ((*PAIR, *FEW, "--max-steps", 0), 2, "--max-steps 0"),
        ((*PAIR, "--set", "sise=3"), 2, "did you mean size"),
        ((*PAIR, "--seed", -1), 2, "--seed -1"),
        ((*PAIR, "--max-steps", 1000), 2, "--max-steps: it is about training, and without --train"),
        ((*PAIR, "--seeds", 5), 2, "--seeds: it is about training"),
        ((*PAIR, "--lr", 0.1), 2, "--lr: it is about training"),
        ((*PAIR, "--folder", "x"), 2, "--folder: it is about training"),
        ((*PAIR, "--check-every", 2), 2, "--check-every: it is about training"),
        ((*PAIR, "--workers", 2), 2, "--workers: it is about training"),
        (
            (*PAIR, *FEW, "--budget", 20),
            2,
            "--budget: it is about measuring gradients, and --train",
        ),
        ((*PAIR, *FEW, "--num-draws", 99), 2, "--num-draws: it is about measuring"),
        ((*PAIR, *FEW, "--warmup-steps", 9), 2, "--warmup-steps: it is about measuring"),
        ((*PAIR, *FEW, "--reference", "long"), 2, "--reference: it is about measuring"),
        ((*PAIR, *FEW, "--parameter", "*"), 2, "--parameter: it is about measuring"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[Any, ...],
    code: int,
    sentence: str,
    path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert code_of("compare", path, *arguments) == code
    read = capsys.readouterr()
    assert sentence in read.err and read.err.startswith("amortized: ")
    assert len(read.err.splitlines()) == 1 and read.out == ""


def test_a_report_says_what_was_asked_for(path: Path):
    source = command.Source(path, {"size": "2"}, {}, am.ELBO(), None, 3)
    request = command.Comparison(
        source, ["arm"], None, "text", {"num_draws": 60, "warmup_steps": 0}, 128, None
    )
    assert request.asked == {
        "program": "small.py",
        "options": "size=2",
        "candidates": "arm",
        "objective": "ELBO(num_particles=1, kl='sample')",
        "batch size": 128,
        "seed": 3,
        "num draws": 60,
    }
