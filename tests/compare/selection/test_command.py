import csv
import io
import json

import pytest

import amortized as am
from amortized.cli import main
from amortized.compare.selection.command import candidates_of

PROGRAM = """
import pyro, pyro.distributions as dist, torch
import amortized as am

def program(size: int = 16):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x))

    return am.Program(model, guide, torch.linspace(-1, 2, size))
"""


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM, encoding="utf-8")

    def run(*options: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["select", str(path), "--batch-size", "8", *options])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_the_choice_is_ready_to_paste(call):
    code, out, _ = call("--candidate", "leave_one_out", "--candidate", "enumerate")
    assert code == 0
    offered = ("moving_average", "leave_one_out", "enumerate")
    assert out.splitlines()[-1] in [f"--estimator c={name}" for name in offered]


def test_what_is_in_use_is_measured_beside_the_candidates(call):
    asked = ("--candidate", "leave_one_out", "--candidate", "enumerate", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(call(*asked)[1])))
    assert {row["candidate"] for row in rows} == {"moving_average", "leave_one_out", "enumerate"}
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_json_has_the_options_too(call):
    code, out, _ = call("--candidate", "c=disarm", "--candidate", "c=straight_through", "--biased")
    assert code == 0 and "straight_through (biased)" in out
    code, out, _ = call("--candidate", "disarm", "--format", "json", "--budget", "0")
    assert code == 0 and json.loads(out)["options"] == ["c=moving_average"]


def test_a_mistake_is_one_sentence(call):
    for options, match in (
        (["--format", "pdf"], "--format pdf: expected one of"),
        (["--seed", "-1"], "--seed -1: expected a whole number from 0 to"),
        (["--candidate", "nobody"], "unknown estimator 'nobody'"),
        (
            ["--candidate", "q=disarm"],
            "--candidate 'q' matches no random latent site of the guide",
        ),
        (["--objective", "tvo"], "takes samples as data"),
    ):
        code, out, err = call(*options)
        assert code in (2, 3) and match in err and out == ""
        assert err.count("\n") == 1


def test_names_with_and_without_a_site_are_not_mixed():
    with pytest.raises(am.UsageError, match="--candidate disarm: others name a site"):
        candidates_of(["c=arm", "disarm"])


def test_without_a_choice_there_is_nothing_to_paste(call, tmp_path):
    wish = PROGRAM.replace("logits=slope * x)", "logits=slope * x), infer={'estimator': 'disarm'}")
    (tmp_path / "mine.py").write_text(wish, encoding="utf-8")
    code, out, _ = call()
    assert code == 0 and "--estimator" not in out and "chosen" not in out
    assert "nothing to choose: the program asks for the estimator of each latent site" in out
    assert not out.endswith("\n\n") and out.splitlines()[-1].startswith("the pilot took")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_terminal_shows_all_of_it(call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = call("--candidate", "sum_and_sample", "--candidate", "measure_valued")
    table = out[: out.index("\nchosen:")]
    assert all(len(line) <= int(columns) for line in table.splitlines())
    for head in ("site", "candidate", "verdict", "variance [95 %]", "steps", " ms", "work (ms)"):
        assert head in table
