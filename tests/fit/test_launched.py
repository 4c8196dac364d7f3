"""The command line under ``torchrun``: runs, mistakes, and a worker that is killed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import amortized as am
from amortized.errors import WorkerError
from amortized.fit.launched import Launch, device_among, launched, this_launcher

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parent / "processes" / "program.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
OPTIONS = ("--batch-size", "16", "--no-progress", "--patience", "0", "--epochs", "8")


def start(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [
        *TORCHRUN,
        f"--max-restarts={restarts}",
        f"--master-port={29500 + os.getpid() % 999}",
    ]
    return subprocess.Popen(
        [*command, "-m", "amortized", "fit", PROGRAM, *OPTIONS, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def history(folder: Path) -> list[list[str]]:
    """What was recorded, without what the clock says."""
    rows = list(csv.reader(io.StringIO((folder / "history.csv").read_text())))
    return [row[: rows[0].index("epoch_time")] for row in rows]


def ended_well(running: subprocess.Popen[str]) -> str:
    """What it printed."""
    said, complaints = running.communicate(timeout=200)
    assert running.returncode == 0, complaints
    return said


def kill_a_worker(running: subprocess.Popen[str], folder: Path) -> None:
    """In the middle of an epoch, after some checkpoints."""
    while len(list((folder / "checkpoints").glob("step-0000003*"))) == 0:
        assert running.poll() is None
        time.sleep(0.02)
    found = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = start("--out", str(killed), "--set", "slow=0.03", restarts=1)
    kill_a_worker(running, killed)
    said, complaints = running.communicate(timeout=200)
    assert running.returncode == 0, complaints
    assert "amortized: process" in complaints and "cannot reach the others" in complaints
    told = ended_well(start("--out", str(whole)))
    assert told.count("test ELBO") == 1 and said.count("test ELBO") == 1  # one process prints
    assert history(whole) == history(killed) and len(history(whole)) == 9
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed)]
    assert numbers[0]["test_elbo"] == numbers[1]["test_elbo"]
    files = [{p.name for p in folder.iterdir()} for folder in (whole, killed)]
    assert files[0] == files[1] and not any(name.startswith(".tmp") for name in files[0])


def test_a_mistake_is_said_once_by_the_process_that_made_it() -> None:
    running = start("--set", "broken=true")
    _, complaints = running.communicate(timeout=200)
    lines = [line for line in complaints.splitlines() if line.startswith("amortized: ")]
    assert lines == ["amortized: ValueError: out of luck (--traceback shows where)"]


@pytest.mark.long
def test_a_restart_goes_on_with_its_own_run_and_no_older_one(tmp_path: Path) -> None:
    older, fresh = tmp_path / "older", tmp_path / "fresh"
    request = ("--epochs", "2", "--seed", "5")
    ended_well(start("--out", str(older), *request))
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}

    refused = start("--out", str(older), *request, restarts=1)  # each of the two attempts
    _, complaints = refused.communicate(timeout=200)
    assert refused.returncode != 0 and complaints.count("holds an earlier run") == 2
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before

    options = ("--overwrite", "--set", "early=true", "--epochs", "3", "--seed", "5")
    # it dies before the folder is cleared
    ended_well(start("--out", str(older), *options, restarts=1))
    ended_well(start("--out", str(fresh), "--epochs", "3", "--seed", "5"))
    assert len(history(older)) == 4 and history(older) == history(fresh)


# --- one process ----------------------------------------------------------------------------------


def test_without_a_launcher_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with launched("cpu") as launch:
        assert launch.device == "cpu" and launch.launcher is None
        assert not launch.said(am.UsageError("wrong"))


def test_a_lone_worker_knows_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    with launched(None) as launch:
        assert launch.launcher is not None and launch.launcher.startswith("night ")
        assert not torch.distributed.is_initialized()
    assert this_launcher({"TORCHELASTIC_RUN_ID": "night"}) == launch.launcher
    assert this_launcher({"TORCHELASTIC_RUN_ID": "day"}) != launch.launcher
    # a script between the launcher and this process is not the launcher
    code = (
        "import os; from amortized.fit.launched import this_launcher; "
        "print(this_launcher(dict(os.environ)))"
    )
    around = {**os.environ, "TORCHELASTIC_RUN_ID": "noon", "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(command, env=around, capture_output=True, text=True, check=True).stdout
        for command in (
            [sys.executable, "-c", code],
            ["sh", "-c", f"{sys.executable} -c '{code}'; true"],
        )
    ]
    assert said[0] == said[1] and said[0].split()[2] == str(os.getpid())
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert this_launcher({"TORCHELASTIC_RUN_ID": "night"}) != launch.launcher


class Store:
    """Counts, as the store of a group does, until it is gone."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.gone = False

    def add(self, key: str, more: int) -> int:
        if self.gone:
            raise RuntimeError("gone")
        self.counts[key] = self.counts.get(key, 0) + more
        return self.counts[key]


def test_an_error_of_all_is_said_once() -> None:
    store = Store()
    first, second = Launch(None, None, store), Launch(None, None, store)
    assert not first.said(am.DataError("rows"))
    assert second.said(am.DataError("process 0: rows"))
    assert not second.said(am.UsageError("another"))
    assert second.said(WorkerError("process 0 failed: rows", told=True))
    store.gone = True
    assert not second.said(am.DataError("rows"))


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device_among("auto", {"LOCAL_RANK": "1"}) == ("cuda:1", "nccl")
    assert device_among("cuda", {"LOCAL_RANK": "0"}) == ("cuda:0", "nccl")
    assert device_among("cuda:1", {}) == ("cuda:1", "nccl")
    assert device_among(None, {}) == (None, "gloo") and chosen == [1, 0]
    with pytest.raises(am.UsageError, match="process 2 of this machine has no GPU of its own"):
        device_among("auto", {"LOCAL_RANK": "2"})


def test_only_the_first_prints(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Group:
        writes = False

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("amortized.fit.launched.current_group", Group)
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "rendezvous", lambda *a, **k: iter([(Store(), 1, 2)]))
    monkeypatch.setattr(distributed, "PrefixStore", lambda name, store: store)
    monkeypatch.setattr(distributed, "init_process_group", lambda *a, **k: None)
    with contextlib.suppress(ZeroDivisionError), launched("cpu"):
        print("silent")
        raise ZeroDivisionError
    print("heard")
    assert capsys.readouterr().out == "heard\n"
