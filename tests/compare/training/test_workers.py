from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import amortized as am
from amortized.compare.training.trial import Trial
from amortized.compare.training.workers import run_trials
from tests.compare.training.programs import bits, job, plan

ROOT = Path(__file__).parents[3]


def jobs(count: int = 3) -> list:
    return [job(seed=seed, place=seed + 1) for seed in range(count)]


def test_trials_are_run_in_order():
    found: list[Trial] = []
    assert run_trials(plan(), jobs(), 1, found.append) is False
    assert [trial.seed for trial in found] == [0, 1, 2]


def test_processes_find_the_same_numbers():
    alone: list[Trial] = []
    side_by_side: list[Trial] = []
    run_trials(plan(), jobs(2), 1, alone.append)
    assert run_trials(plan(), jobs(2), 2, side_by_side.append) is False
    side_by_side.sort(key=lambda trial: trial.place)
    assert [t.elbo for t in side_by_side] == [t.elbo for t in alone]
    assert [t.start for t in side_by_side] == [t.start for t in alone]


def test_what_cannot_be_sent_is_refused_before_any_process_starts():
    with pytest.raises(am.UsageError, match=r"workers=2: .* leave workers out"):
        run_trials(plan(lambda: bits()), jobs(), 2, lambda trial: None)


def test_ctrl_c_keeps_what_was_finished():
    found: list[Trial] = []

    def stop(trial: Trial) -> None:
        found.append(trial)
        raise KeyboardInterrupt

    assert run_trials(plan(), jobs(), 1, stop) is True
    assert len(found) == 1


SCRIPT = textwrap.dedent(
    """
    import os, sys, time
    import amortized as am
    from tests.compare.training.programs import bits

    def slow():
        program = bits()
        print("child", os.getpid(), flush=True)
        time.sleep(SECONDS)
        return program

    if __name__ == "__main__":
        losses = {"a": "leave_one_out", "b": "disarm"}
        options = dict(max_steps=4, seeds=2, batch_size=10, progress=False, num_particles=2)
        am.compare_training(slow, losses, workers=2, **options)
    """
)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_no_process_outlives_the_comparison(number: signal.Signals, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("SECONDS", "60 if os.getppid() != START else 0"))
    text = script.read_text().replace("START", str(os.getpid()))
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        # the first line is the parent's own look at the candidates
        children = [int(parent.stdout.readline().split()[1]) for _ in range(3)][1:]
        parent.send_signal(number)
        parent.wait(30)
        deadline = time.monotonic() + 20
        while any(map(_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(_alive, children))


@pytest.mark.long
def test_a_process_that_dies_is_one_sentence(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.replace("time.sleep(SECONDS)", f"os.getppid() != {os.getpid()} and os._exit(9)")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, env=environment, text=True, check=False
    )
    assert "workers=2: one of the processes died" in found.stderr.splitlines()[-1]
