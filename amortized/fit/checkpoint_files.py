"""Folders of checkpoints: their names, writing them so that a kill leaves none half done, deletion.

A folder is filled under a temporary name and renamed when all of it is on the disk; it is deleted
the other way round. So a checkpoint is there whole or not at all, whenever the writer is killed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, cast, final

from amortized.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

Keep = int | Collection[Path] | Callable[[list[Path]], Collection[Path]]

TEMPORARY: Final = ".tmp-"

_NAME: Final = re.compile(r"step-([0-9]{8,})(?:-v([0-9]+))?")
_CHUNK: Final = 1 << 20
_LOCK_ATTEMPTS: Final = 10

# Network file systems answer these for a folder; there is then nothing to be done about it.
_NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})
_NO_LOCKS: Final = _NO_FOLDER_SYNC | {errno.ENOLCK, errno.ENOSYS}

_ADVICE: Final[Mapping[int, str]] = MappingProxyType(
    dict.fromkeys([errno.ENOSPC, errno.EDQUOT, errno.EFBIG], "free space, or use another disk")
    | dict.fromkeys([errno.EROFS], "use a folder that is not read-only")
    | dict.fromkeys([errno.EACCES, errno.EPERM], "change the permissions, or use another folder")
    | dict.fromkeys([errno.ENOTDIR, errno.EEXIST], "give the path of a folder")
)


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turns what the operating system refuses into a ``CheckpointError`` of one sentence."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "see that the disk and the folder are in order")
        reason = error.strerror or type(error).__name__
        if isinstance(error.filename, str | os.PathLike):
            reason += f" ({os.path.basename(error.filename)})"
        raise CheckpointError(f"{doing}: {reason}; {advice}") from error


def folder_name(step: int, version: int = 1) -> str:
    """The name of the folder of a step.

    >>> folder_name(1234), folder_name(1234, version=2)
    ('step-00001234', 'step-00001234-v2')
    """
    return f"step-{step:08d}" + (f"-v{version}" if version > 1 else "")


def position(name: str) -> tuple[int, int] | None:
    """The step and version of a folder's name; None for other names.

    >>> position("step-00001234-v2"), position("step-7"), position("notes")
    ((1234, 2), None, None)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    step, version = int(found[1]), int(found[2] or 1)
    return (step, version) if folder_name(step, version) == name else None


def listed(root: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint folders below ``root``, oldest first: by step, then version.

    Temporary folders, links and whatever else lies there are left out. Nothing is opened: some of
    the folders may be damaged.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    with os_errors(f"cannot list the checkpoints below {root}"):
        return [Path(root, folder_name(*place)) for place in _places(root)]


def _places(root: str | os.PathLike[str]) -> list[tuple[int, int]]:
    places = (position(name) for name in _folders(root))
    return sorted(place for place in places if place is not None)


def _folders(root: str | os.PathLike[str]) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def prune(root: str | os.PathLike[str], keep: Keep, *, always: Collection[Path] = ()) -> None:
    """Deletes the checkpoints below ``root`` that are not kept, and what killed writers left.

    Each is first renamed, so that no half-deleted checkpoint can be met. What cannot be deleted
    after that is tried again by the next call.

    Args:
        root: the folder that holds the checkpoints.
        keep: that many of the newest; or the paths to keep (their names count); or a function
            that picks them out of all paths, oldest first.
        always: paths that stay whatever ``keep`` says.

    Raises:
        CheckpointError: a negative number, or a checkpoint that cannot be renamed.
    """
    found = listed(root)
    kept = {path.name for path in (*_chosen(found, keep), *always)}
    doomed = [path for path in found if path.name not in kept]
    with os_errors(f"cannot delete old checkpoints below {root}"):
        for path in doomed:
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(path, Path(root, _temporary_name()))
        if doomed:
            sync_folder(root)
        _sweep(root)


def _chosen(found: list[Path], keep: Keep) -> Collection[Path]:
    if callable(keep):
        return keep(list(found))
    if not isinstance(keep, int):
        return keep
    if keep < 0:
        raise CheckpointError(f"keep is {keep}; expected how many checkpoints to keep, from 0")
    return found[max(len(found) - keep, 0) :]


def _sweep(root: str | os.PathLike[str]) -> None:
    """Deletes temporary folders, except those that a live writer is filling."""
    for name in _folders(root):
        if name.startswith(TEMPORARY):
            folder = Path(root, name)
            with suppress(OSError), _lock(folder) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def _temporary_name() -> str:
    return f"{TEMPORARY}{secrets.token_hex(8)}"


@contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """A new folder below ``root``; whatever is still there under its name is deleted in the end."""
    for _ in range(_LOCK_ATTEMPTS):
        folder = root / _temporary_name()
        folder.mkdir()
        try:
            with _lock(folder) as held:
                if held:
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise BlockingIOError(errno.EAGAIN, "temporary folders are locked by another process")


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Holds a temporary folder; False: another process holds it, or has deleted it.

    A lock ends with its process, however that ends: what a killed writer left is free.
    """
    if sys.platform == "win32":  # folders cannot be opened there: one writer at a time
        yield True
        return
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = folder.exists()
        except (FileNotFoundError, BlockingIOError):
            held = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held = True
        yield held


def make_root(root: Path) -> None:
    """Makes the folder and those above it where they are missing, and sees them on the disk."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def publish(temporary: Path, root: Path, step: int) -> Path:
    """Renames a filled folder to the name of its step, with the next version if there is one."""
    sync_folder(temporary)
    version = 1 + max((v for s, v in _places(root) if s == step), default=0)
    while True:
        path = root / folder_name(step, version)
        try:
            os.replace(temporary, path)
            break
        except OSError:
            if not os.path.lexists(path):  # else something else has the name
                raise
        version += 1
    sync_folder(root)
    return path


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Waits until the names in a folder are on the disk, where the file system can tell."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, fill: Callable[[IO[bytes]], Any]) -> str:
    """Writes a new file and waits until it is on the disk; the sha256 of its bytes.

    Args:
        path: where; there is no such file yet.
        fill: writes the bytes, in order, to the file that it is given.
    """
    with open(path, "xb") as file:
        sink = _Sink(file)
        fill(cast(IO[bytes], sink))
        if sink.error is not None:
            raise sink.error
        file.flush()
        os.fsync(file.fileno())
    return sink.hash.hexdigest()


@final
class _Sink:
    """Writes to a file, hashes what it writes and keeps the first error of the disk.

    The error is not raised at once: torch's writer, which is C++, would meet it again when it
    tidies up, and would report the position in its buffer and not the disk.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Writes bytes, unless an earlier write failed."""
        if self.error is None:
            try:
                self.file.write(data)
            except (OSError, KeyboardInterrupt) as error:
                self.error = error
            self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed once, at the end."""


def sha256(file: IO[bytes]) -> str:
    """The sha256 of an open file from its beginning, where it is left again."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()
