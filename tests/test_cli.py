import csv
import importlib.metadata
import json
import subprocess
import sys
import traceback
from pathlib import Path

import pyro
import pytest
import torch

import amortized as am
from amortized import cli
from amortized.checks.examination import Examination
from amortized.cli import main
from amortized.errors import ProgramError
from amortized.fit.files import program_file
from amortized.fit.rng import seeded

PROGRAM = """
import math
import pyro, pyro.distributions as dist, torch
import amortized as am

def program(size: int = 64, path: str = "", broken: bool = False, missing: bool = False):
    pixels = (torch.rand(size, 6) > 0.5).float()
    if missing:
        pixels[3, 2] = math.nan
    net = torch.nn.Linear(2, 6)

    def model(x):
        decode = pyro.module("net", net)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = decode(z) + c.unsqueeze(-1)
            if broken:
                raise RuntimeError("two\\nlines")
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.sigmoid(pyro.param("logit", torch.tensor(0.0)))))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return am.Program(model, guide, pixels, pixels[:16], pixels[:20], (2, 3), torch.arange(20) % 4)
"""
TOTALS = """
import pyro, pyro.distributions as dist, torch
import amortized as am

def program():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([8]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return am.Program(model, guide, torch.ones(8), test=TEST)
"""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell is folded."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as found:
        main(arguments)
    return (found.value.code, *capsys.readouterr())


def fit(capsys: pytest.CaptureFixture[str], program: str, *more: str) -> str:
    """A run that must succeed."""
    code, out, err = run(capsys, "fit", program, "--epochs", "2", "--batch-size", "32", *more)
    assert code == 0, err
    return out


def test_it_shows_the_sites_and_the_test_numbers(capsys, program: str) -> None:
    out = fit(capsys, program, "--estimator", "c=leave_one_out", "--estimator", "z=pathwise")
    assert "LeaveOneOut" in out and "mapping 'c'" in out
    assert "History(epochs=2/2, train_loss=" in out
    assert "test ELBO" in out and "test evidence" in out and "nats per data point" in out
    assert len(pyro.get_param_store()) == 0


def test_files_are_written_only_where_asked(
    capsys, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    fit(capsys, program)
    assert not list(here.iterdir())
    fit(capsys, program, "--out", "runs/a", "--set", "size=40", "--seed", "3", "--kl", "analytic")
    found = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    names = ("metrics.json", "history.csv", "curves.png", "reconstructions.png", "samples.png")
    saved = {name for name in found if "/checkpoints/step-" in name}
    assert found - saved == {f"runs/a/{name}" for name in (*names, "latent.png", "config.json")}
    assert {Path(name).name for name in saved} == {"state.pt", "metadata.json"}
    metrics = json.loads((here / "runs/a/metrics.json").read_text(encoding="utf-8"))
    assert metrics["options"] == {"size": "40"} and metrics["seed"] == 3
    assert metrics["objective"] == "ELBO(num_particles=1, kl='analytic')"
    assert metrics["epochs"] == 2 and metrics["test_elbo"] <= metrics["test_log_evidence"]


def test_the_seed_decides_everything_and_is_local(capsys, program: str) -> None:
    before = torch.get_rng_state()
    lines = []
    for seed in ("0", "0", "1"):
        out = fit(capsys, program, "--seed", seed)
        lines.append([line for line in out.splitlines() if line.startswith("test")])
    assert lines[0] == lines[1] != lines[2]
    assert torch.equal(before, torch.get_rng_state())


def test_progress_is_a_plain_line_and_can_be_off(capsys, program: str) -> None:
    arguments = ("fit", program, "--epochs", "2")
    assert "epoch 2/2  train_loss" in run(capsys, *arguments)[2]
    assert run(capsys, *arguments, "--no-progress")[2] == ""


@pytest.mark.parametrize("test", ["None", "torch.ones(8)"])
def test_programs_without_a_plate_or_test_data(capsys, tmp_path: Path, test: str) -> None:
    path = tmp_path / "totals.py"
    path.write_text(TOTALS.replace("TEST", test), encoding="utf-8")
    out = fit(capsys, str(path), "--out", str(tmp_path / "out"))
    assert ("no test data" if test == "None" else "nats in all") in out
    assert (tmp_path / "out" / "curves.png").is_file()


MISTAKES = [
    (2, ["nowhere.py"], "no program file nowhere.py"),
    (2, ["PROGRAM", "--set", "sise=3"], "did you mean size?"),
    (2, ["PROGRAM", "--set", "size"], "--set size: expected name=value"),
    (2, ["PROGRAM", "--set", "size=big"], "--set size=big: expected a whole number"),
    (4, ["PROGRAM", "--set", "size=0"], "the data set is empty"),
    (3, ["PROGRAM", "--estimator", "d=pathwise"], "it matches no latent site"),
    (3, ["PROGRAM", "--estimator", "c=pathwise"], "site 'c'"),
    (2, ["PROGRAM", "--estimator", "c=scorefunction"], "did you mean 'score_function'?"),
    (2, ["PROGRAM", "--kl", "exact"], "--kl exact: expected sample or analytic"),
    (2, ["PROGRAM", "--num-particles", "0"], "--num-particles 0"),
    (2, ["PROGRAM", "--epochs", "0"], "--epochs 0: expected at least 1"),
    (2, ["PROGRAM", "--epochs", "many"], "--epochs"),
    (2, ["PROGRAM", "--lr", "-1"], "--lr -1.0"),
    (2, ["PROGRAM", "--non-finite", "ignore"], "--non-finite 'ignore'"),
    (2, ["PROGRAM", "--device", "tpu9"], "--device 'tpu9'"),
    (2, ["PROGRAM", "--resume"], "--resume: say which run"),
    (2, ["PROGRAM", "--seed", "-1"], "--seed"),
    (2, ["PROGRAM", "--seed", str(2**32)], "--seed"),
    (2, ["PROGRAM", "--wrong"], "--wrong"),
    (2, [], "argument"),
    (3, ["PROGRAM", "--set", "broken=true"], "RuntimeError: two lines"),
    (1, ["PROGRAM", "--set", "broken=true", "--no-check"], "two lines (--traceback shows where)"),
    (4, ["PROGRAM", "--set", "missing=true"], "nan"),
]


@pytest.mark.parametrize(("code", "arguments", "message"), MISTAKES, ids=lambda v: str(v)[:30])
def test_a_mistake_is_one_sentence(
    capsys, program: str, code: int, arguments: list[str], message: str
) -> None:
    given = [program if a == "PROGRAM" else a for a in arguments]
    found, _, err = run(capsys, "fit", *given, "--no-progress")
    assert found == code and message.lower() in err.lower()
    assert err.startswith("amortized: ") and len(err.splitlines()) == 1


def test_numbers_that_are_not_finite_come_with_a_table(capsys, program: str) -> None:
    huge = ("--lr", "1e30", "--batch-size", "16", "--no-progress")
    code, _, err = run(capsys, "fit", program, *huge)
    sentence, _, *table = err.splitlines()
    assert code == 5 and "batch 2, step 2" in sentence and "site 'z'" in sentence
    assert table[0].split()[:2] == ["site", "program"] and any("nan" in row for row in table)


def test_a_folder_that_cannot_be_made_is_found_out_before_training(capsys, program: str) -> None:
    code, out, err = run(capsys, "fit", program, "--out", program)
    assert code == 2 and out == "" and err == f"amortized: --out {program}: File exists\n"


def test_an_unknown_command_is_a_sentence_too(capsys) -> None:
    code, _, err = run(capsys, "frobnicate")
    assert code == 2 and len(err.splitlines()) == 1 and "frobnicate" in err


def test_tracebacks_are_there_when_asked_for(program: str) -> None:
    with pytest.raises(RuntimeError, match="two"):
        main(["fit", program, "--set", "broken=true", "--no-check", "--traceback"])
    with pytest.raises(ProgramError, match="two lines") as found:
        main(["fit", program, "--set", "broken=true", "--traceback"])
    assert found.value.__cause__ is not None
    lines = traceback.extract_tb(found.value.__cause__.__traceback__)
    assert program in {line.filename for line in lines}


def test_help_is_no_mistake(capsys) -> None:
    code, out, _ = run(capsys, "fit", "--help")
    assert code == 0 and "--estimator" in out


def test_python_dash_m() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "amortized", "fit", "nowhere.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "amortized: no program file nowhere.py\n"


def test_a_run_is_resumed_as_if_never_interrupted(capsys, program: str, tmp_path: Path) -> None:
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    arguments = ("fit", program, "--batch-size", "32", "--no-progress")
    assert run(capsys, *arguments, "--epochs", "4", "--out", whole)[0] == 0
    assert run(capsys, *arguments, "--epochs", "2", "--out", cut)[0] == 0
    code, _, err = run(capsys, *arguments, "--epochs", "4", "--out", cut)
    assert code == 2 and "add --resume" in err
    code, _, err = run(capsys, *arguments, "--epochs", "4", "--out", cut, "--resume", "--seed", "1")
    assert code == 2 and "seed = 0, and now it is 1" in err
    assert run(capsys, *arguments, "--epochs", "4", "--out", cut, "--resume")[0] == 0
    reports = [json.loads((Path(f) / "metrics.json").read_text()) for f in (whole, cut)]
    for report, folder in zip(reports, (whole, cut), strict=True):
        rows = csv.DictReader((Path(folder) / "history.csv").read_text().splitlines())
        # of all epochs, those before the resume too
        seconds = [float(row["epoch_time"]) for row in rows]
        assert len(seconds) == 4 and report.pop("train_seconds") == pytest.approx(sum(seconds))
    assert reports[0] == reports[1]
    times = ",epoch_time"
    rows = [(Path(f) / "history.csv").read_text().splitlines() for f in (whole, cut)]
    assert rows[0][0] == rows[1][0] and rows[0][0].endswith(times)
    assert [r.rpartition(",")[0] for r in rows[0]] == [r.rpartition(",")[0] for r in rows[1]]


def test_the_precision_of_layers(capsys, program: str, tmp_path: Path) -> None:
    code, _, err = run(capsys, "fit", program, "--precision", "half")
    assert code == 2 and "precision='half': expected one of float32, bf16-mixed" in err
    into = ("fit", program, "--no-progress", "--out", str(tmp_path / "run"), "--epochs")
    mixed = ("--precision", "bf16-mixed")
    assert run(capsys, *into, "1", *mixed)[0] == 0
    code, _, err = run(capsys, *into, "2", "--resume")
    assert code == 2 and '"bf16-mixed", and now it is "float32"' in err
    assert run(capsys, *into, "2", *mixed, "--resume")[0] == 0


def test_nothing_to_resume_is_said(capsys, program: str, tmp_path: Path) -> None:
    code, _, err = run(capsys, "fit", program, "--out", str(tmp_path / "new"), "--resume")
    assert code == 2 and "no checkpoint to go on with; start without --resume" in err


def test_a_trial_run_trains_one_batch_and_keeps_nothing(
    capsys, program: str, tmp_path: Path
) -> None:
    out = fit(capsys, program, "--fast-dev-run", "--out", str(tmp_path / "trial"))
    assert "History(epochs=1/1" in out
    assert not (tmp_path / "trial" / "checkpoints").exists()


def test_check_finds_what_is_wrong(capsys, program: str) -> None:
    code, out, _ = run(capsys, "check", program)
    assert code == 0 and out.startswith("no findings")
    code, out, _ = run(capsys, "check", program, "--estimator", "c=pathwise", "--json")
    (finding,) = json.loads(out)["findings"]
    assert code == 3 and (finding["code"], finding["site"]) == ("estimator-unsupported", "c")


def test_check_looks_at_all_data(capsys, program: str) -> None:
    text = Path(program).read_text(encoding="utf-8")
    Path(program).write_text(text.replace("pixels[:16]", "-pixels[:16]"), encoding="utf-8")
    code, out, _ = run(capsys, "check", program)
    assert code == 4 and "val: site 'x' of the model" in out and "outside the support" in out
    Path(program).write_text(text.replace("pixels[3, 2]", "pixels[50, 2]"), encoding="utf-8")
    code, out, _ = run(capsys, "check", program, "--set", "missing=true", "--batch-size", "20")
    assert code == 4 and "row 50 of the data set" in " ".join(out.split())


def test_a_wrong_image_shape_is_found_before_training(capsys, program: str) -> None:
    text = Path(program).read_text(encoding="utf-8")
    Path(program).write_text(text.replace("(2, 3)", "(28, 28)"), encoding="utf-8")
    code, out, err = run(capsys, "fit", program, "--epochs", "1", "--no-progress")
    assert code == 3 and "image_shape=(28, 28): found site 'x' has 6" in err
    assert "History" not in out


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--epochs", "0", "--epochs 0: expected at least 1"),
        ("--batch-size", "0", "--batch-size 0: expected at least 1"),
        ("--clip", "0", "--clip 0.0: expected a norm above 0"),
        ("--accumulate", "0", "--accumulate 0: expected at least 1"),
        ("--kl-warmup", "0", "--kl-warmup 0: expected at least 1"),
        ("--num-particles", "0", "--num-particles 0: expected an int"),
        ("--non-finite", "stop", "--non-finite 'stop': expected one of"),
        ("--max-steps", "0", "--max-steps 0: expected at least 1"),
        ("--device", "gpu", "--device 'gpu': there is no such device"),
        ("--lr", "-1", "--lr -1.0 for model: expected"),
    ],
)
def test_messages_name_the_options(capsys, program: str, option, value, expected) -> None:
    code, _, err = run(capsys, "fit", program, option, value)
    assert code == 2 and err.startswith(f"amortized: {expected}")


def test_words_that_are_no_options_stay() -> None:
    sentence = "the batch is on another device; seed and lr are known; at non_finite_limit=3"
    assert cli.as_options(sentence) == sentence
    assert cli.as_options("clip (gradient_clip_val), or fit(detect_anomaly=True)") == (
        "clip (--clip), or --detect-anomaly"
    )


def test_overwriting_comes_after_everything_was_found_right(
    capsys, program: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fit(capsys, program, "--out", str(out))
    saved = sorted(path.name for path in (out / "checkpoints").iterdir())
    for wrong in (("--set", "sise=3"), ("--estimator", "c=pathwise"), ("--resume",)):
        code, _, _ = run(capsys, "fit", program, "--out", str(out), "--overwrite", *wrong)
        assert code in (2, 3)
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == saved
    fit(capsys, program, "--out", str(out), "--overwrite", "--epochs", "1")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == saved[:1]


def test_bad_data_have_their_own_exit_code_everywhere(capsys, program: str) -> None:
    for command in ("check", "fit"):
        code, out, err = run(capsys, command, program, "--set", "missing=true")
        assert code == 4 and "row 3" in out + err


def test_the_version(capsys) -> None:
    code, out, err = run(capsys, "--version")
    assert code == 0 and err == ""
    assert out == f"amortized {importlib.metadata.version('amortized')}\n"


@pytest.mark.parametrize("command", ["fit", "check"])
def test_seeds_are_numbers_that_every_generator_takes(capsys, program: str, command: str) -> None:
    for seed in ("-1", "4294967296"):
        code, _, err = run(capsys, command, program, "--seed", seed)
        assert code == 2 and "--seed" in err and seed in err and len(err.splitlines()) == 1


FAULTS = {
    "syntax": ("import torch\n\ndef program(:\n", "line 3", "SyntaxError"),
    "import": ("import torch\nimport nowhere_at_all\n", "line 2", "ModuleNotFoundError"),
    "name": ("x = 1\ny = undefined\n", "line 2", "NameError"),
    "call": ("def program():\n    return [][0]\n", "line 2", "IndexError"),
    "deeper": (
        "import json\ndef program():\n    return json.loads('{')\n",
        "line 3",
        "JSONDecodeError",
    ),
}


@pytest.mark.parametrize("command", ["fit", "check"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_run_is_a_mistake_in_the_program(
    capsys, tmp_path: Path, fault: str, command: str
) -> None:
    text, line, kind = FAULTS[fault]
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    code, _, err = run(capsys, command, str(path))
    assert code == 3 and err.startswith(f"amortized: mine.py {line}: {kind}")
    assert len(err.splitlines()) == 1
    with pytest.raises(ProgramError) as found:
        main([command, str(path), "--traceback"])
    assert type(found.value.__cause__).__name__ == kind


def test_a_program_is_checked_once(capsys, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    report = Examination.report

    def counted(self: Examination) -> object:
        reports.append(1)
        return report(self)

    monkeypatch.setattr(Examination, "report", counted)
    fit(capsys, program)
    assert len(reports) == 1
    fit(capsys, program, "--no-check")
    assert len(reports) == 1


def test_warnings_of_the_check_are_lines_before_the_table(capsys, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    unregistered = PROGRAM.replace('pyro.module("net", net)', "net")
    path.write_text(unregistered, encoding="utf-8")
    code, out, err = run(capsys, "fit", str(path), "--epochs", "1", "--no-progress")
    assert code == 0 and "KL" in out.splitlines()[0]
    (line,) = err.splitlines()
    assert line.startswith("warning: network 'net' (Linear)")


def test_a_command_gives_what_a_call_gives(capsys, program: str, tmp_path: Path) -> None:
    fit(capsys, program, "--out", str(tmp_path / "out"), "--patience", "0", "--seed", "3")
    with program_file(Path(program)) as function, seeded(3):
        built = function()
        svi = am.SVI(built.model, built.guide, am.VariationalLoss(am.ELBO()))
        options = {"max_epochs": 2, "batch_size": 32, "seed": 3, "progress": False}
        history = svi.fit(built.train, built.val, **options)
    rows = csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines())
    assert [float(row["train_loss"]) for row in rows] == history["train_loss"]


def test_the_table_fits_the_terminal(capsys, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 90):
        monkeypatch.setenv("COLUMNS", str(columns))
        table, _, _ = fit(capsys, program).partition("objective ")
        assert max(map(len, table.splitlines())) <= columns


def test_ctrl_c_before_training_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise KeyboardInterrupt", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["check", str(path)])
    assert end.value.code == 130
    assert capsys.readouterr().err.split() == ["amortized:", "interrupted"]
