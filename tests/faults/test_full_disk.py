"""A disk that is full or read-only ends training in one sentence, and nothing is lost."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import amortized as am
from amortized.cli import main
from amortized.errors import CheckpointError
from amortized.fit import checkpoint
from amortized.fit.callbacks import Callback, FitState
from tests.faults import training
from tests.fit.saved import names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no mounts and limits there")

AT = 13  # the step at whose end the fault comes; the next checkpoint would be that of step 14
LAST = 12
PAGE = 4096
SEVERAL = 1 << 20  # bytes of several checkpoints


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, path: Path, options: str) -> None:
        self.path, self.folder = path, path / "checkpoints"
        self._ballast = path / "ballast"
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))

    def fill(self, leave: int = 0) -> None:
        """Leaves so many pages free."""
        about = os.statvfs(self.path)
        self._ballast.write_bytes(bytes(about.f_bavail * about.f_frsize - leave * PAGE))

    def use_up_files(self, leave: int) -> None:
        """Leaves room for so many files and folders."""
        self._ballast.mkdir()
        for number in range(os.statvfs(self.path).f_favail - leave):
            (self._ballast / str(number)).touch()

    def free(self) -> None:
        """Removes what filled it."""
        if self._ballast.is_dir():
            for path in self._ballast.iterdir():
                path.unlink()
            self._ballast.rmdir()
        else:
            self._ballast.unlink()

    def writable(self, yes: bool) -> None:
        """Whether anything can be written."""
        self._mount("-o", f"remount,{'rw' if yes else 'ro'}", str(self.path))

    def unmount(self) -> None:
        """Forgets it."""
        subprocess.run(["umount", "-l", str(self.path)], check=False)

    def _mount(self, *arguments: str) -> None:
        found = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise PermissionError(found.stderr.strip())


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    disks = []

    def mount(options: str) -> Disk:
        try:
            disks.append(Disk(tmp_path / f"disk{len(disks)}", options))
        except (PermissionError, FileNotFoundError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        return disks[-1]

    yield mount
    for disk in disks:
        disk.unmount()


@pytest.fixture
def disk(mounted: Callable[[str], Disk]) -> Disk:
    return mounted(f"size={SEVERAL}")


class Then(Callback):
    """Does something at the end of a step."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do

    def on_train_batch_end(self, state: FitState) -> None:
        if state.step == AT:
            self.do()


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the training comes to where nothing goes wrong."""
    svi = training.pair()
    return training.outcome(svi, training.fit(svi, None))


def fails(folder: Path, fault: Callable[[], object], reason: str) -> None:
    """Training ends in one sentence at the fault, and the checkpoint before is the newest."""
    with pytest.raises(CheckpointError) as caught:
        training.fit(training.pair(), folder, Then(fault))
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.startswith("cannot write a checkpoint below")
    assert str(folder) in sentence and reason in sentence
    assert newest_step(folder) == LAST
    assert names(folder) == [path.name for path in checkpoint.listed(folder)]


def newest_step(folder: Path) -> int:
    """Of the newest checkpoint; none is passed over."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return checkpoint.newest(folder).metadata["step"]


def goes_on(folder: Path, expected: dict[str, Any], **options: Any) -> None:
    svi = training.pair()
    history = training.fit(svi, folder, **options)
    assert training.differing(training.outcome(svi, history), expected) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0], ids="{:.0%} of the state fits".format)
def test_a_full_disk(disk: Disk, share: float, expected: dict[str, Any]) -> None:
    def fill() -> None:
        size = (checkpoint.listed(disk.folder)[-1] / "state.pt").stat().st_size
        disk.fill(leave=math.ceil(share * size / PAGE))

    fails(disk.folder, fill, "No space left on device; free space")
    disk.free()
    goes_on(disk.folder, expected)


def test_a_disk_that_checkpoints_fill(mounted: Callable[[str], Disk]) -> None:
    disk = mounted(f"size={40 * PAGE}")
    with pytest.raises(CheckpointError, match="No space left on device"):
        training.fit(training.pair(), disk.folder)
    assert newest_step(disk.folder) > 0


@pytest.mark.parametrize("leave", [0, 1, 2])
def test_a_disk_without_room_for_more_files(
    mounted: Callable[[str], Disk], leave: int, expected: dict[str, Any]
) -> None:
    disk = mounted(f"size={SEVERAL},nr_inodes=64")
    fails(disk.folder, lambda: disk.use_up_files(leave), "No space left on device")
    disk.free()
    goes_on(disk.folder, expected)


def test_a_training_moves_from_a_full_disk(
    disk: Disk, tmp_path: Path, expected: dict[str, Any]
) -> None:
    fails(disk.folder, lambda: disk.fill(), "No space left on device")
    goes_on(tmp_path / "elsewhere", expected, resume_from=disk.folder)


def test_a_folder_that_becomes_read_only(
    disk: Disk, tmp_path: Path, expected: dict[str, Any]
) -> None:
    fails(disk.folder, lambda: disk.writable(False), "use a folder that is not read-only")
    goes_on(tmp_path / "elsewhere", expected, resume_from=disk.folder)
    disk.writable(True)
    goes_on(disk.folder, expected)


@pytest.mark.parametrize("made", [True, False], ids=["there is a folder", "there is none"])
def test_a_read_only_folder_ends_training_before_it_begins(disk: Disk, made: bool) -> None:
    if made:
        disk.folder.mkdir()
    disk.writable(False)
    svi = training.pair()
    with pytest.raises(CheckpointError) as caught:
        training.fit(svi, disk.folder)
    assert "\n" not in str(caught.value) and "Read-only file system" in str(caught.value)
    assert svi._stepper.steps == 0


def test_reading_needs_no_writing(disk: Disk, expected: dict[str, Any]) -> None:
    fails(disk.folder, lambda: disk.fill(), "No space left on device")
    disk.writable(False)
    svi = training.pair()
    history = training.fit(svi, None, resume_from=disk.folder)
    assert training.differing(training.outcome(svi, history), expected) == []
    again = training.pair()
    again.load(disk.folder, training.TRAIN[:2])
    am.load(disk.folder, am.Program(training.Model(), training.Guide(), training.TRAIN))


def test_a_limit_on_the_size_of_files(tmp_path: Path, expected: dict[str, Any]) -> None:
    """As a full disk, where nothing can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * PAGE, before[1]))

    try:
        fails(tmp_path / "run", limit, "File too large; free space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    goes_on(tmp_path / "run", expected)


PROGRAM = """
import amortized as am
from tests.faults.training import TRAIN, VAL, Guide, Model

def program():
    return am.Program(Model(), Guide(), TRAIN, VAL, VAL)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "digits.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def command(program: Path, out: Path, *more: str) -> int:
    """Runs ``amortized fit`` for two epochs; its exit code."""
    options = ["--epochs", "2", "--no-progress", "--out", str(out)]
    with pytest.raises(SystemExit) as end:
        main(["fit", str(program), *options, *more])
    assert isinstance(end.value.code, int)
    return end.value.code


def numbers(out: Path) -> dict[str, Any]:
    """What a run wrote, without times."""
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "train_seconds"}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Path:
    """Of the command line on a good disk."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command(program, out) == 0
    return out


# Room for all that comes before: each checkpoint takes 32 pages, curves.png ten, others one.
PAGES = {"config.json": 0, "a checkpoint": 20, "the second checkpoint": 50, "curves.png": 71}


@pytest.mark.parametrize("ends_at", PAGES)
def test_the_command_line_on_a_full_disk(
    capsys: pytest.CaptureFixture[str], disk: Disk, program: Path, whole_run: Path, ends_at: str
) -> None:
    disk.fill(leave=PAGES[ends_at])
    out = disk.path / "run"
    assert command(program, out) == 6
    last = ends_at if "." in ends_at else "cannot write a checkpoint below"
    assert ends_in_one_sentence(capsys, last)
    disk.free()
    begun = bool(checkpoint.listed(out / "checkpoints"))
    assert begun == (ends_at not in ("config.json", "a checkpoint"))
    assert command(program, out, *(["--resume"] if begun else [])) == 0
    assert numbers(out) == numbers(whole_run)
    assert names(out) == names(whole_run)


def test_the_command_line_on_a_read_only_disk(
    capsys: pytest.CaptureFixture[str], disk: Disk, program: Path
) -> None:
    out = disk.path / "run"
    out.mkdir()
    disk.writable(False)
    assert command(program, out) == 6
    assert ends_in_one_sentence(capsys, "Read-only file system")
    assert command(program, disk.path / "new") == 2
    assert ends_in_one_sentence(capsys, "Read-only file system")


def ends_in_one_sentence(capsys: pytest.CaptureFixture[str], part: str) -> bool:
    lines = capsys.readouterr().err.splitlines()
    return len(lines) == 1 and lines[0].startswith("amortized: ") and part in lines[0]
