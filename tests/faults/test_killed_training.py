"""A training that is killed at any moments ends bit for bit where it would have without."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from amortized.errors import CheckpointError
from amortized.fit import checkpoint
from tests.faults import training
from tests.faults.nursery import Nursery
from tests.fit.saved import names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")

KILLED = -9
LONGEST = 0.35  # until a kill, in lengths of the whole training; a tenth passes in starting


@dataclass
class Tally:
    """What kills met."""

    kills: int = 0
    runs: int = 0
    doing: Counter[str] = field(default_factory=Counter)
    left_behind: int = 0
    steps: list[int] = field(default_factory=list)
    """Of the newest checkpoint at each kill."""

    def __str__(self) -> str:
        doing = ", ".join(f"{count} while {phase}" for phase, count in self.doing.most_common())
        return (
            f"{self.kills} kills in {self.runs} runs: {doing}; {self.left_behind} left a temporary "
            f"folder; steps {min(self.steps)} to {max(self.steps)}, {len({*self.steps})} different"
        )


@dataclass
class Killer:
    """Starts trainings, kills them at random moments, and starts them again until they end."""

    nursery: Nursery
    folder: Path
    moments: Callable[[], float]
    """Seconds until a kill, to be multiplied by the pace."""
    pace: float = 1.0
    """Follows a machine that others make slower or faster than when it was timed."""
    workers: int = 0
    mutant: str = ""
    tally: Tally = field(default_factory=Tally)

    def run(self, kills: int) -> list[Path]:
        """So many kills in as many runs as it takes; each run's result."""
        results = []
        while self.tally.kills < kills:
            self.tally.runs += 1
            results.append(self._to_the_end(self.folder / f"run{self.tally.runs}", kills))
        print(self.tally)
        return results

    def _to_the_end(self, root: Path, kills: int) -> Path:
        result, phases = root.with_suffix(".pt"), root.with_suffix(".phase")
        started = [str(root), str(result), str(phases), self.workers, self.mutant]
        before = self.tally.kills
        while True:
            pid = self.nursery.start("train", *started)
            if self.tally.kills == kills:
                assert self.nursery.wait(pid) == 0
                return result
            time.sleep(self.pace * self.moments())
            status = self.nursery.kill(pid)
            if status == 0:
                self.pace *= 0.7 if self.tally.kills == before else 1.0
                return result
            assert status == KILLED
            self._note(root, phases)

    def _note(self, root: Path, phases: Path) -> None:
        tally = self.tally
        tally.kills += 1
        phase = phases.read_text(encoding="ascii").strip() if phases.exists() else ""
        tally.doing[phase or "starting"] += 1
        self.pace *= 1.0 if phase in ("training", "writing", "deleting") else 1.05
        phases.unlink(missing_ok=True)
        if root.exists():
            tally.left_behind += any(name.startswith(".tmp-") for name in names(root))
            tally.steps.append(newest_step(root))


def newest_step(root: Path) -> int:
    """Of the checkpoints, each of which is whole; 0 if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [checkpoint.read(path) for path in checkpoint.listed(root)]
    return max((one.metadata["step"] for one in found), default=0)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("tests.faults.training") as nursery:
        assert nursery.wait(nursery.start("pair")) == 0  # all is imported
        yield nursery


@dataclass
class Whole:
    """A training that is not killed."""

    outcome: dict[str, Any]
    seconds: float

    def moments(self, seed: int) -> Callable[[], float]:
        """Random moments, seconds after a start."""
        generator = random.Random(seed)
        return lambda: self.seconds * generator.uniform(0, LONGEST)

    def differences(self, results: list[Path]) -> set[str]:
        """Names of what differs from it, in any of the results."""
        found = [torch.load(result, weights_only=True) for result in results]
        return {name for one in found for name in training.differing(one, self.outcome)}


def whole_training(nursery: Nursery, folder: Path, workers: int = 0) -> Whole:
    """Made here without saving anything, and timed in another process that saves."""
    svi = training.pair()
    outcome = training.outcome(svi, training.fit(svi, None, workers=workers))
    started = time.perf_counter()
    paths = [folder, folder.with_suffix(".pt"), folder.with_suffix(".phase")]
    assert nursery.wait(nursery.start("train", *map(str, paths), workers)) == 0
    whole = Whole(outcome, time.perf_counter() - started)
    assert whole.differences([paths[1]]) == set()
    return whole


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole_training(nursery, tmp_path_factory.mktemp("whole") / "run")


def test_the_training_stops_early_and_goes_back_to_its_best(whole: Whole) -> None:
    assert whole.outcome["stopped"] == "early stopped"
    assert len(whole.outcome["tensors"]["history/val_loss"]) < training.EPOCHS


def test_killed_at_random_moments(nursery: Nursery, whole: Whole, tmp_path: Path) -> None:
    killer = Killer(nursery, tmp_path, whole.moments(seed=0))
    assert whole.differences(killer.run(kills=15)) == set()


@pytest.mark.long
def test_killed_at_random_moments_200_times(nursery: Nursery, whole: Whole, tmp_path: Path) -> None:
    killer = Killer(nursery, tmp_path, whole.moments(seed=1))
    assert whole.differences(killer.run(kills=200)) == set()
    writing = killer.tally.doing["writing"] + killer.tally.doing["deleting"]
    assert writing >= 20 and killer.tally.doing["training"] >= 20
    assert killer.tally.left_behind > 0, "no kill left a checkpoint half written"


@pytest.mark.long
def test_killed_with_a_loader_that_has_workers(nursery: Nursery, tmp_path: Path) -> None:
    whole = whole_training(nursery, tmp_path / "whole", workers=1)
    killer = Killer(nursery, tmp_path, whole.moments(seed=2), workers=1)
    assert whole.differences(killer.run(kills=20)) == set()


@pytest.mark.parametrize(
    "mutant",
    [
        "",
        "forgets the optimizer",
        pytest.param("forgets the generator", marks=pytest.mark.long),
        pytest.param("forgets early stopping", marks=pytest.mark.long),
    ],
)
def test_the_comparison_can_fail(
    nursery: Nursery, whole: Whole, tmp_path: Path, mutant: str
) -> None:
    """A training that forgets a part of its state ends elsewhere."""
    result = tmp_path / "run.pt"
    paths = [str(path) for path in (tmp_path / "run", result, tmp_path / "run.phase")]
    assert nursery.wait(nursery.start("train", *paths, 0, mutant, 25)) == KILLED
    assert nursery.wait(nursery.start("train", *paths, 0, mutant)) == 0
    assert ("sha256" in whole.differences([result])) == (mutant != "")


@pytest.mark.long
def test_checkpoints_that_are_written_in_place_are_met_half_done(
    nursery: Nursery, whole: Whole, tmp_path: Path
) -> None:
    killer = Killer(nursery, tmp_path, whole.moments(seed=4), mutant="writes in place")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        killer.run(kills=60)
