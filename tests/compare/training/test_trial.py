from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.compare.training.trial import Job, Trial, beginning_of, run_trial
from tests.compare.training.programs import bits, job, level, level_guide, overflowing, plan


def trial(*args: Any, **kwargs: Any) -> Trial:
    found = run_trial(*args, **kwargs)
    assert found is not None
    return found


def test_checks_are_made_at_the_start_now_and_then_and_at_the_end():
    found = trial(plan(max_steps=7, check_every=3), job())
    assert found.steps == [0, 3, 6, 7]
    assert found.seconds[0] == found.wall[0] == 0.0
    assert found.seconds == sorted(found.seconds) and found.wall == sorted(found.wall)
    assert len(found.elbo) == len(found.log_evidence) == 4
    assert all(a <= b for a, b in zip(found.elbo, found.log_evidence, strict=True))
    assert not found.failure and found.failed_step is None


def test_candidates_share_the_start_the_checks_and_the_data(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[Tensor]] = []

    def watched() -> am.Program:
        made, met = bits(), []
        seen.append(met)

        def model(x: Tensor) -> None:
            if torch.is_grad_enabled():
                met.append(x.clone())
            made.model(x)

        return am.Program(model, made.guide, train=made.train, val=made.val)

    one, other = (trial(plan(watched), job(e)) for e in ("leave_one_out", "disarm"))
    assert one.start == other.start != trial(plan(watched), job(seed=1)).start
    assert one.elbo[0] == other.elbo[0]
    assert one.elbo[-1] != other.elbo[-1]
    steps = [[x.tolist() for x in met[-6:]] for met in seen[:2]]
    assert steps[0] == steps[1]
    assert steps[0][0] != steps[0][2]


def test_equal_seeds_repeat_a_trial_and_others_do_not():
    one, again, other = trial(plan(), job()), trial(plan(), job()), trial(plan(), job(seed=1))
    assert one.elbo == again.elbo != other.elbo


def test_what_programs_declare_as_they_run_is_equal_too():
    """Values are drawn at the first run, before which candidates draw different amounts."""
    pair = [trial(plan(level), job({"z": e})) for e in ("pathwise", "leave_one_out")]
    assert pair[0].start == pair[1].start
    assert pair[0].elbo[0] == pair[1].elbo[0]
    assert pair[0].log_evidence == []
    assert len(pyro.get_param_store()) == 0


def test_checks_are_the_elbo_whatever_the_loss():
    """Global latents: an importance-weighted bound would be higher than the ELBO."""
    jobs = [
        Job("one", am.VariationalLoss(objective), 0, 1, True)
        for objective in (am.ELBO(1), am.IWAE(20))
    ]
    first = [trial(plan(level, particles=50, batch_size=12), one).elbo[0] for one in jobs]
    assert first[0] == first[1]


def test_training_takes_no_time_from_checks():
    """A check of many particles takes longer than all steps."""
    few, many = trial(plan(), job()), trial(plan(particles=20_000, check_every=1), job())
    assert len(many.seconds) == 7
    assert many.seconds[-1] < 20 * few.seconds[-1] + 0.5


def test_what_diverges_is_recorded_with_its_step():
    found = trial(plan(overflowing, max_steps=60, check_every=5), job({"z": "pathwise"}))
    assert found.failed_step is not None and 5 < found.failed_step < 60
    assert "step" in found.failure and len(found.failure) <= 300
    assert found.steps[-1] < found.failed_step
    assert len(found.steps) == len(found.elbo) == len(found.seconds)
    assert all(map(math.isfinite, found.elbo))


def test_what_is_wrong_from_the_start_is_an_error():
    def program() -> am.Program:
        def model(x: Tensor) -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            raise RuntimeError("no such file")

        return am.Program(model, level_guide, train=torch.zeros(4))

    with pytest.raises((RuntimeError, am.ProgramError), match="no such file"):
        run_trial(plan(program), job({"z": "pathwise"}))


def test_what_auto_chose_is_kept():
    found = trial(plan(max_steps=3000, check_every=3000, compile="auto"), job("auto"))
    assert any("estimators were measured" in notice for notice in found.notices)
    assert set(found.estimators) == {"b"}
    assert found.evaluations is not None and found.evaluations >= 1
    given = trial(plan(), job("disarm"))
    assert given.estimators == {"b": "DisARM()"} and given.evaluations is None


def test_a_beginning_is_that_of_the_trial_and_is_seen_without_training():
    for program, one in ((bits, job()), (level, job({"z": "pathwise"}))):
        found = beginning_of(plan(program), one)
        assert found == trial(plan(program), one).beginning


def test_ctrl_c_leaves_nothing():
    def interrupting() -> am.Program:
        made = bits()

        def model(x: Tensor) -> None:
            if torch.is_grad_enabled() and threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            made.model(x)

        return am.Program(model, made.guide, train=made.train, val=made.val)

    try:
        found = run_trial(plan(interrupting), job())
    except KeyboardInterrupt:  # before training, or twice
        found = None
    assert found is None


def test_a_file_is_a_program_too(tmp_path: Path):
    path = tmp_path / "some.py"
    path.write_text(
        "from tests.compare.training.programs import bits\n"
        "def program(size: int = 3):\n    return bits(size)\n"
    )
    with plan(path, options={"size": "5"}).opened(0) as program:
        assert len(program.train) == 20
    assert trial(plan(path), job()).elbo == trial(plan(), job()).elbo
    with pytest.raises(am.UsageError, match="no program file"), plan(tmp_path / "no.py").opened(0):
        pass


def test_nothing_of_torch_is_left_changed():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    trial(plan(threads=2), job())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_found_by_name():
    found = Trial("a", 0, 1, steps=[0, 2], seconds=[0.0, 1.0], elbo=[-3.0, -2.0])
    assert found.numbers("steps") == [0.0, 2.0]
    assert found.numbers("elbo") == [-3.0, -2.0]
    assert found.numbers("log_evidence") == []
