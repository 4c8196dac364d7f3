from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amortized.errors import CheckpointError
from amortized.fit import checkpoint_files as files
from tests.fit.saved import names

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be opened there")


def folders(root: Path, *wanted: str) -> None:
    for name in wanted:
        (root / name).mkdir(parents=True)
        (root / name / "content").write_text(name, encoding="utf-8")


def failing(number: int, function: Callable[..., Any] = os.fsync) -> Callable[..., Any]:
    def fails(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("step-00000000", (0, 1)),
        ("step-00001234", (1234, 1)),
        ("step-00001234-v2", (1234, 2)),
        ("step-00001234-v10", (1234, 10)),
        ("step-1234567890", (1234567890, 1)),
    ],
)
def test_names_say_step_and_version(name: str, place: tuple[int, int]) -> None:
    assert files.position(name) == place
    assert files.folder_name(*place) == name


@pytest.mark.parametrize(
    "name",
    [
        "step-1",
        "step-000000001",
        "step-00000001-v1",
        "step-00000001-v02",
        "step-00000001-v",
        "step-00000001-v2-v3",
        "step--0000001",
        "step-0000000１",
        "step-00000001\n",
        "Step-00000001",
        ".tmp-step-00000001",
        "best",
        "",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    assert files.position(name) is None


def test_listed_is_oldest_first_and_ignores_the_rest(tmp_path: Path) -> None:
    mine = ["step-00000002", "step-00000010", "step-00000010-v2", "step-00000010-v10"]
    mine += ["step-00000011", "step-123456789"]
    folders(tmp_path, *reversed(mine))
    folders(tmp_path, ".tmp-0", "best", "step-7")
    (tmp_path / "step-00000099").write_text("a file", encoding="utf-8")
    (tmp_path / "step-00000098").symlink_to(tmp_path / "best", target_is_directory=True)
    assert files.listed(tmp_path) == [tmp_path / name for name in mine]
    assert files.listed(str(tmp_path)) == files.listed(tmp_path)


def test_nothing_is_listed_below_what_is_not_there(tmp_path: Path) -> None:
    assert files.listed(tmp_path / "no" / "such") == []
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot list .*Not a directory .*path of a folder"):
        files.listed(tmp_path / "file")


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (0, []),
        (1, [4]),
        (2, [3, 4]),
        (9, [1, 2, 3, 4]),
        ({Path("step-00000002"), Path("elsewhere", "step-00000003")}, [2, 3]),
        ([], []),
        (lambda found: found[::2], [1, 3]),
    ],
)
def test_prune_keeps_what_is_asked_for(tmp_path: Path, keep: files.Keep, left: list[int]) -> None:
    folders(tmp_path, *(files.folder_name(step) for step in (1, 2, 3, 4)), "best")
    files.prune(tmp_path, keep)
    assert names(tmp_path) == ["best", *(files.folder_name(step) for step in left)]


def test_prune_always_keeps_some(tmp_path: Path) -> None:
    folders(tmp_path, *(files.folder_name(step) for step in (1, 2, 3)))
    files.prune(tmp_path, 1, always=[tmp_path / "step-00000001"])
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    with pytest.raises(CheckpointError, match="keep is -1; expected how many"):
        files.prune(tmp_path, -1)
    assert len(files.listed(tmp_path)) == 2


def test_prune_sweeps_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    folders(tmp_path, ".tmp-old", ".tmp-0123456789abcdef", ".hidden", "step-00000001")
    (tmp_path / ".tmp-file").touch()
    (tmp_path / ".tmp-link").symlink_to(tmp_path / ".hidden", target_is_directory=True)
    files.prune(tmp_path, 1)
    assert names(tmp_path) == [".hidden", ".tmp-file", ".tmp-link", "step-00000001"]
    assert names(tmp_path / ".hidden") == ["content"]
    files.prune(tmp_path / "missing", 1)
    assert not (tmp_path / "missing").exists()


@posix_only
def test_prune_leaves_the_folder_of_a_live_writer(tmp_path: Path) -> None:
    with files.temporary_folder(tmp_path) as folder:
        files.prune(tmp_path, 0)
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


@posix_only
def test_a_writer_whose_folder_is_swept_at_once_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = files._lock, []

    def late(folder: Path) -> Any:
        if not swept:
            swept.append(folder)
            monkeypatch.setattr(files, "_lock", lock)
            files.prune(tmp_path, 0)
        return lock(folder)

    monkeypatch.setattr(files, "_lock", late)
    with files.temporary_folder(tmp_path) as folder:
        assert swept and folder != swept[0] and names(tmp_path) == [folder.name]


@posix_only
def test_folders_that_stay_locked_end_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.fcntl, "flock", failing(errno.EWOULDBLOCK))
    with (
        pytest.raises(BlockingIOError, match="locked by another"),
        files.temporary_folder(tmp_path),
    ):
        pass
    assert names(tmp_path) == []


@posix_only
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.ENOTSUP, errno.EINVAL])
def test_file_systems_without_locks_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folders(tmp_path, ".tmp-old")
    monkeypatch.setattr(files.fcntl, "flock", failing(number))
    with files.temporary_folder(tmp_path) as folder:
        assert folder.is_dir()
    files.prune(tmp_path, 0)
    assert names(tmp_path) == []


def test_a_temporary_folder_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.temporary_folder(tmp_path) as folder:
        folders(folder, "inner")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def published(root: Path, step: int) -> Path:
    with files.temporary_folder(root) as folder:
        (folder / "content").touch()
        return files.publish(folder, root, step)


def test_a_name_that_is_taken_gets_a_version(tmp_path: Path) -> None:
    assert [published(tmp_path, 3).name for _ in range(3)] == [
        "step-00000003",
        "step-00000003-v2",
        "step-00000003-v3",
    ]
    files.prune(tmp_path, [tmp_path / "step-00000003-v2"])
    assert published(tmp_path, 3).name == "step-00000003-v3"  # newer than what is there
    (tmp_path / "step-00000005").touch()
    (tmp_path / "step-00000005-v2").symlink_to(tmp_path / "nowhere")
    assert published(tmp_path, 5).name == "step-00000005-v3"
    assert (tmp_path / "step-00000005").is_file()


def test_two_writers_that_choose_one_name_both_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def raced(source: Path, target: Path) -> None:
        if target.name == "step-00000003":  # the other writer is faster
            folders(tmp_path, "step-00000003")
        replace(source, target)

    monkeypatch.setattr(os, "replace", raced)
    assert published(tmp_path, 3).name == "step-00000003-v2"
    assert names(tmp_path) == ["step-00000003", "step-00000003-v2"]
    assert (tmp_path / "step-00000003" / "content").read_text(encoding="utf-8") == "step-00000003"


def test_prune_is_not_troubled_by_a_faster_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, "step-00000001", "step-00000002")
    monkeypatch.setattr(os, "replace", failing(errno.ENOENT))
    files.prune(tmp_path, 0)


@posix_only
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_file_systems_that_cannot_sync_folders_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    assert published(tmp_path, 3).is_dir()


@posix_only
def test_files_and_folders_are_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        order.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        order.append(f"rename {source.name} {target.name}")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name descriptors")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    root = tmp_path / "a" / "b"
    files.make_root(root)
    assert order == ["sync a", f"sync {tmp_path.name}"]
    order.clear()
    with files.temporary_folder(root) as folder:
        files.write_file(folder / "state.pt", lambda file: file.write(b"1"))
        files.publish(folder, root, 1)
    new = folder.name
    assert order == ["sync state.pt", f"sync {new}", f"rename {new} step-00000001", "sync b"]
    order.clear()
    files.prune(root, 0)
    assert order[0].startswith("rename step-00000001 .tmp-") and order[1:] == ["sync b"]


def test_written_files_are_hashed(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)

    def fill(file: Any) -> None:
        file.write(content[:10])
        file.write(memoryview(content)[10:])

    digest = files.write_file(tmp_path / "x", fill)
    assert (tmp_path / "x").read_bytes() == content
    assert digest == hashlib.sha256(content).hexdigest()
    with open(tmp_path / "x", "rb") as file:
        file.read(5)
        assert files.sha256(file) == digest and file.read(1) == content[:1]
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "x", fill)


def test_a_failed_write_is_raised_in_the_end(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "full")

    sink = files._Sink(Full())  # type: ignore[arg-type]
    assert sink.write(b"abc") == 3 and sink.write(b"d") == 1
    assert sink.error is not None and sink.error.errno == errno.ENOSPC
    digest = sink.hash.hexdigest()
    with pytest.raises(OSError, match="full"):
        files.write_file(tmp_path / "x", lambda file: setattr(file, "error", sink.error))
    assert sink.hash.hexdigest() == digest


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free space"),
        (errno.EROFS, "Read-only file system; use a folder that is not read-only"),
        (errno.EACCES, "Permission denied; change the permissions"),
        (errno.EIO, "see that the disk"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(CheckpointError) as caught, files.os_errors("cannot write a"):
        failing(number)()
    assert str(caught.value).startswith("cannot write a: ") and advice in str(caught.value)
    with (
        pytest.raises(CheckpointError, match=r"^doing: TimeoutError; see"),
        files.os_errors("doing"),
    ):
        raise TimeoutError
    with pytest.raises(CheckpointError, match=r"No such file or directory \(b\); see"):
        with files.os_errors("reading"):
            open("no/such/a/b", encoding="utf-8")
    with pytest.raises(KeyError), files.os_errors("doing"):
        raise KeyError
