"""A writer that is killed at any moment leaves whole checkpoints, and the next one goes on."""

from __future__ import annotations

import random
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from amortized.fit import checkpoint
from tests.faults.nursery import Nursery
from tests.faults.writer import KEEP, SIZE
from tests.fit.saved import names, same, save, state_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")

KILLED = -9


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("tests.faults.writer") as nursery:
        yield nursery


def whole(root: Path, size: int) -> int:
    """Every checkpoint is whole and holds what was written for its step; the newest step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in checkpoint.listed(root):
            found = checkpoint.read(path)
            assert same(found.state, state_of(found.metadata["step"], size)), path
        return checkpoint.newest(root).metadata["step"]


def killed_at_random(nursery: Nursery, root: Path, times: int, seed: int) -> None:
    moments = random.Random(seed)
    done = root.with_suffix(".done")
    done.touch()
    reached = left_behind = rounds = 0
    # a writer on a busy machine gets little done before it is killed: then there are more of them
    while rounds < times or (min(reached - times, left_behind) <= 0 and rounds < 10 * times):
        rounds += 1
        before = len(checkpoint.listed(root)) if root.exists() else 0
        pid = nursery.start("write_forever", str(root), str(done))
        time.sleep(moments.uniform(0, 0.3))
        assert nursery.kill(pid) == KILLED
        noted = [int(line) for line in done.read_text(encoding="ascii").splitlines()]
        if not checkpoint.listed(root):
            assert not noted
            continue
        step = whole(root, SIZE)
        assert step >= max([reached, *noted]), "a checkpoint that was written is lost"
        assert noted == sorted(set(noted))
        # each writer may be killed between its first checkpoint and the deletion of an old one
        assert len(checkpoint.listed(root)) <= max(KEEP, before) + 1
        left_behind += any(name.startswith(".tmp-") for name in names(root))
        reached = step
    assert reached > times, "writing did not go on"
    assert left_behind > 0, "no kill came while a checkpoint was being written"
    save(root, reached + 1, SIZE, keep=KEEP)
    assert names(root) == [f"step-{step:08d}" for step in range(reached + 2 - KEEP, reached + 2)]


def test_killed_at_random_moments(nursery: Nursery, tmp_path: Path) -> None:
    killed_at_random(nursery, tmp_path / "run", times=40, seed=0)


@pytest.mark.long
def test_killed_at_random_moments_200_times(nursery: Nursery, tmp_path: Path) -> None:
    killed_at_random(nursery, tmp_path / "run", times=200, seed=1)


def test_two_writers_in_one_folder_do_not_disturb_each_other(
    nursery: Nursery, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    files = [tmp_path / name for name in ("first", "second")]
    for _ in range(4):
        pids = [nursery.start("write_forever", str(root), str(file)) for file in files]
        time.sleep(0.5)
        assert [nursery.kill(pid) for pid in pids] == [KILLED, KILLED], "one ended with an error"
        whole(root, SIZE)
    assert all(len(file.read_text(encoding="ascii").splitlines()) > 4 for file in files)
    save(root, 10**6, SIZE, keep=1)
    assert names(root) == ["step-01000000"]


def killed_at_line(nursery: Nursery, root: Path, line: int) -> bool:
    """Whether a writer, which also has something to delete, had so many lines."""
    for step in (1, 2, 3):
        save(root, step)
    shutil.copytree(root / "step-00000001", root / ".tmp-stale")
    status = nursery.wait(nursery.start("write_until_line", str(root), 4, line))
    step = whole(root, 6)
    there = [checkpoint.read(path).metadata["step"] for path in checkpoint.listed(root)]
    assert there in ([1, 2, 3], [1, 2, 3, 4], [2, 3, 4]) and step == there[-1]
    save(root, 5, keep=KEEP)
    assert names(root) == [path.name for path in checkpoint.listed(root)]
    assert whole(root, 6) == 5
    if status == 0:
        assert there == [2, 3, 4]
        return False
    assert status == KILLED
    return True


def every_line(nursery: Nursery, root: Path, start: int, stride: int) -> int:
    line = start
    while killed_at_line(nursery, root / str(line), line):
        line += stride
    return line


def test_killed_at_every_eleventh_line(nursery: Nursery, tmp_path: Path) -> None:
    assert every_line(nursery, tmp_path, start=1, stride=11) > 200


@pytest.mark.long
def test_killed_at_every_line(nursery: Nursery, tmp_path: Path) -> None:
    assert every_line(nursery, tmp_path, start=1, stride=1) > 200
