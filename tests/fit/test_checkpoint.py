"""Checkpoints are written whole, read without running code, and older ones stay readable.

The stored files below ``checkpoints/`` are what earlier formats look like. Each was made once, when
its format was the current one, by::

    python -c "from tests.fit.test_checkpoint import store; store('version-1')"
"""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from amortized.errors import CheckpointError
from amortized.fit import checkpoint
from amortized.fit import checkpoint_files as files
from amortized.fit.checkpoint import about, listed, migrate, newest, prune, read, write
from amortized.fit.checkpoint_metadata import write_metadata
from tests.fit.saved import names, same, save, state_of

STORED = Path(__file__).parent / "checkpoints"


def flip(path: Path, byte: int = -40) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(bytes(content))


# Round trip


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "runs" / "vae", 3)
    assert path == tmp_path / "runs" / "vae" / "step-00000003"
    assert names(path) == ["metadata.json", "state.pt"] and names(path.parent) == [path.name]
    for found in (read(path), read(str(path)), read(path.parent), newest(path.parent)):
        assert found.path == path and same(found.state, state_of(3))
        about = found.metadata
        assert (about["format_version"], about["step"], about["epoch"]) == (4, 3, 1)
        assert about["metrics"] == {"val_loss": 0.125}
        assert about["config"] == {"lr": 1e-3, "hidden": [64, 8], "name": "vae"}
        assert about["fingerprint"]["parameters"]["decoder.weight"] == ["float32", [6, 4]]


def test_large_tensors_and_many_of_them(tmp_path: Path) -> None:
    state = {"large": torch.randn(700_000), "many": [torch.tensor(i) for i in range(2000)]}
    assert same(read(save(tmp_path, 1, state=state)).state, state)


def test_any_mapping_is_a_state_and_is_left_alone(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    state = MappingProxyType({"w": weight, "net": torch.nn.Linear(2, 1).state_dict()})
    found = read(save(tmp_path, 1, state=state)).state
    assert type(found) is dict and type(found["net"]) is OrderedDict
    assert torch.equal(found["w"], weight) and weight.requires_grad


def test_writing_moves_no_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    read(save(tmp_path, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert save(Path("runs"), 1) == Path("runs", "step-00000001")
    assert save(Path("."), 1) == Path("step-00000001")
    assert read("runs").path == Path("runs", "step-00000001")


def test_steps_versions_and_the_newest(tmp_path: Path) -> None:
    for step in (10, 9, 10, 2):
        save(tmp_path, step)
    expected = ["step-00000002", "step-00000009", "step-00000010", "step-00000010-v2"]
    assert [path.name for path in listed(tmp_path)] == expected
    assert newest(tmp_path).path.name == "step-00000010-v2"
    assert newest(tmp_path).metadata["step"] == 10


def test_a_checkpoint_can_be_copied_and_renamed(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    path.rename(tmp_path / "best")
    assert same(read(tmp_path / "best").state, state_of(3))
    (tmp_path / "link").symlink_to(tmp_path / "best", target_is_directory=True)
    assert same(read(tmp_path / "link").state, state_of(3))
    (tmp_path / "best").rename(tmp_path / "step-00000004")
    with pytest.raises(CheckpointError, match="metadata are of step 3, not of the step in its"):
        read(tmp_path / "step-00000004")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_go_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    value = torch.randn(5, device="cuda")
    path = save(tmp_path, 1, state={"x": value, "view": value[1:3]})
    assert read(path).state["x"].device.type == "cpu"
    assert torch.equal(read(path, "cuda").state["x"], value)
    assert torch.equal(read(tmp_path, torch.device("cuda:0")).state["view"], value[1:3])


# Keeping some


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (None, [1, 2, 3, 4]),
        (2, [3, 4]),
        (0, [4]),
        ({Path("step-00000001")}, [1, 4]),
        (lambda found: found[:2], [1, 2, 4]),
    ],
)
def test_write_keeps_what_is_asked_for_and_the_new_one(
    tmp_path: Path, keep: checkpoint.Keep | None, left: list[int]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / ".tmp-of-a-killed-writer").mkdir()
    save(tmp_path, 4, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_the_new_one_stays_also_when_later_steps_exist(tmp_path: Path) -> None:
    for step in (7, 8):
        save(tmp_path, step)
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-00000005", "step-00000008"]
    prune(tmp_path, 1)
    assert names(tmp_path) == ["step-00000008"]


# What is refused


def test_unsafe_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for changes, place in [
        ({"state": {"optimizer": {"x": {1}}}}, r"state\['optimizer'\]\['x'\] is of type set"),
        ({"config": {"x": Path("a")}}, r"config\['x'\] is of type pathlib"),
        ({"metrics": {"x": "1"}}, r"metrics\['x'\] is of type str"),
        ({"step": -1}, "step is -1"),
    ]:
        with pytest.raises(CheckpointError, match=place):
            save(root, changes.pop("step", 1), **changes)
    assert not root.exists()


def test_what_torch_cannot_save_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    value = torch.ones(2)
    with pytest.raises(CheckpointError, match="the state cannot be saved: RuntimeError: Cannot"):
        save(tmp_path, 2, state={"x": value, "y": value.view(torch.int32)})
    assert names(tmp_path) == ["step-00000001"]


def test_paths_that_hold_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*missing: there is nothing of that"):
        read(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot read .*file: there is a file of that name"):
        read(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"state.pt: there is a file .*give its path"):
        read(save(tmp_path / "runs", 1) / "state.pt")
    (tmp_path / "empty").mkdir()
    for function in (read, newest):
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read below .*empty; expe"):
            function(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint can be read below"):
        newest(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="cannot list the checkpoints below"):
        newest(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read("nul\0byte")


def test_a_file_in_the_place_of_the_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"cannot write .*give the path of a folder"):
            save(root, 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", 3.5])
def test_a_device_that_is_not_there_damages_no_checkpoint(tmp_path: Path, device: Any) -> None:
    save(tmp_path, 1)
    for function in (read, newest):
        with pytest.raises(CheckpointError, match="cannot put tensors on ") as caught:
            function(tmp_path, device)
        assert "step-" not in str(caught.value)


# Damaged checkpoints; tests/faults has many more


def test_each_damaged_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for name, reason in [
        ("state.pt", "state.pt differs from its checksum in metadata.json"),
        ("metadata.json", "metadata.json differs from its own checksum"),
    ]:
        content = (path / name).read_bytes()
        place = content.find(b'"python": "3') + 12 if name == "metadata.json" else -40
        flip(path / name, place)
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value).startswith(f"cannot read the checkpoint {path}: {reason}")
        (path / name).write_bytes(content)
        assert read(path).path == path
        (path / name).unlink()
        with pytest.raises(CheckpointError, match=rf"step-00000001: {name} is missing"):
            read(path)
        (path / name).write_bytes(content)


def test_newest_skips_damaged_ones_with_one_warning(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    for step in range(3, 8):
        flip(tmp_path / f"step-{step:08d}" / "state.pt")
    with pytest.warns(UserWarning) as caught:
        found = newest(tmp_path)
    assert found.path.name == "step-00000002" and same(found.state, state_of(2))
    (warning,) = caught
    message = str(warning.message)
    assert all(f"step-0000000{step}: state.pt differs" in message for step in (5, 6, 7))
    assert message.endswith("; and 2 more; using step-00000002 instead") and "\n" not in message
    assert warning.filename == __file__
    for step in (1, 2):
        flip(tmp_path / f"step-{step:08d}" / "metadata.json")
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="no checkpoint can be re"):
        newest(tmp_path)


def test_checkpoints_that_vanish_meanwhile_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    read_state, raced = checkpoint._read_state, []

    def slow(*args: Any) -> Any:
        if not raced:  # another process writes the next one while this one is being read
            raced.append(save(tmp_path, 2, keep=1))
        return read_state(*args)

    monkeypatch.setattr(checkpoint, "_read_state", slow)
    assert newest(tmp_path).path == raced[0]


def test_a_link_in_the_place_of_a_file_is_followed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.pt").rename(tmp_path / "store")
    (path / "state.pt").symlink_to(tmp_path / "store")
    assert same(read(path).state, state_of(1))
    (tmp_path / "store").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt is missing"):
        read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_reading_waits_for_no_pipe(tmp_path: Path) -> None:
    for name in ("state.pt", "metadata.json"):
        path = save(tmp_path, 1)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            read(path)


def sealed(path: Path, content: bytes) -> None:
    """Puts other bytes in the place of the state, with checksums that match."""
    (path / "state.pt").write_bytes(content)
    with open(path / "state.pt", "rb") as file:
        metadata = read(save(path.parent / "other", 1)).metadata | {"sha256": files.sha256(file)}
    (path / "metadata.json").unlink()
    write_metadata(path / "metadata.json", metadata)


def test_what_is_no_dict_is_refused_though_its_checksums_match(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    sealed(path, (tmp_path / "list.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"state\.pt holds a list; expected a dict"):
        read(path)
    for content in (b"", b"PK\x03\x04", pickle.dumps({"x": 1})):
        sealed(path, content)
        with pytest.raises(CheckpointError, match=r"state\.pt (is no file of|cannot be loaded)"):
            read(path)


def test_code_is_refused_though_its_checksums_match(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"x": torch.ones(1), "y": os.getcwd}, tmp_path / "code.pt")
    sealed(path, (tmp_path / "code.pt").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert "holds more than tensors and plain values" in message and "posix.getcwd" in message
    assert "weights_only" not in message, "no advice to run it after all"


def test_what_is_loaded_are_the_bytes_that_were_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = save(tmp_path, 1), save(tmp_path, 2)
    sha256 = files.sha256

    def replaced_after(file: Any) -> str:
        digest = sha256(file)
        os.replace(other / "state.pt", path / "state.pt")
        return digest

    monkeypatch.setattr(files, "sha256", replaced_after)
    assert same(read(path).state, state_of(1))


# Errors of the system


def counted(function: Callable[..., Any], error: BaseException, fail_at: int) -> Callable[..., Any]:
    """A function that fails in one of its calls."""
    calls = 0

    def counts(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise error
        return function(*args, **options)

    return counts


SITES: list[tuple[Any, str, range]] = [
    (os, "fsync", range(1, 5)),  # two files, their folder, the root
    (os, "open", range(1, 4)),  # the lock, the folder, the root
    (os, "mkdir", range(2, 3)),  # the first finds that the root is there
    (os, "replace", range(1, 2)),
    (builtins, "open", range(1, 3)),
]
NUMBERS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("module", "name", "fail_at"),
    [(module, name, call) for module, name, calls in SITES for call in calls],
)
def test_a_failing_disk_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    module: Any,
    name: str,
    fail_at: int,
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    error = OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, counted(getattr(module, name), error, fail_at))
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, 3, keep=1)
    message = str(caught.value)
    assert message.startswith(f"cannot write a checkpoint below {tmp_path}: {os.strerror(number)}")
    assert "; " in message and "\n" not in message
    assert [path.name for path in listed(tmp_path)][:2] == ["step-00000001", "step-00000002"]
    assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]
    found = newest(tmp_path)
    assert same(found.state, state_of(found.metadata["step"]))
    assert found.metadata["step"] == 2 or (name, fail_at) in {("fsync", 4), ("open", 3)}
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_interrupt_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, counted(getattr(os, name), KeyboardInterrupt(), 1))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("fail_at", [2, 3])
def test_old_checkpoints_that_cannot_be_deleted_are_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        patch.setattr(os, "replace", counted(os.replace, error, fail_at))
        with pytest.raises(CheckpointError, match="cannot delete old checkpoints below"):
            save(tmp_path, 3, keep=1)
    assert newest(tmp_path).metadata["step"] == 3
    for path in listed(tmp_path):
        read(path)
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("limit", [0, 1, 500, 4096, 100_000, 2_000_000])
def test_a_disk_that_is_really_full(tmp_path: Path, limit: int) -> None:
    import resource

    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(CheckpointError, match="File too large; free space") as caught:
            save(tmp_path, 2, state={"x": [torch.zeros(400_000), torch.zeros(400_000)]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__ is not None and names(tmp_path) == ["step-00000001"]
    assert same(newest(tmp_path).state, state_of(1))


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Permissions do not hinder a superuser, so it is `open` that refuses."""
    opened = builtins.open

    def refuses(file: Any, *args: Any, **options: Any) -> Any:
        if isinstance(file, Path) and file.parts[-2:] == ("step-00000002", name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(builtins, "open", refuses)


@pytest.mark.parametrize("name", ["state.pt", "metadata.json"])
def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    unreadable(monkeypatch, name)
    reason = rf"step-00000002: a file cannot be read: Permission denied \({name}\); change the per"
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=reason):
        assert newest(tmp_path).path.name == "step-00000001"


def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    refuses = counted(os.scandir, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), 1)
    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(CheckpointError, match=r"cannot list .*Permission denied; change the perm"):
        newest(tmp_path)


# Formats


def store(root: str) -> None:
    """Writes a checkpoint of the current format, to be kept for later versions' tests."""
    weight = torch.tensor([[0.5, -1.25, 3.0], [-0.0, 1e-30, 7.0]])
    state = {
        "parameters": {"decoder.weight": weight, "scale": torch.tensor(2.5, dtype=torch.float64)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.001, "betas": (0.9, 0.99)},
        "buffers": OrderedDict(count=torch.tensor([1, 2**40]), mask=torch.tensor([True, False])),
        "epoch_order": [2, 0, 1],
        "note": "naïve",
        "nothing": None,
    }
    write(
        root,
        state,
        step=3,
        epoch=1,
        metrics={"train_loss": 0.75, "val_loss": float("inf")},
        config={"lr": 0.001, "hidden": [64, 8], "name": "vae"},
        parameters=state["parameters"],
    )


@pytest.mark.parametrize("version", range(1, checkpoint.FORMAT_VERSION + 1))
def test_files_of_every_format_are_read(version: int) -> None:
    found = read(STORED / f"version-{version}" / "step-00000003")
    state, about = found.state, found.metadata
    assert list(state) == ["parameters", "optimizer", "buffers", "epoch_order", "note", "nothing"]
    weight = state["parameters"]["decoder.weight"]
    assert same(weight, torch.tensor([[0.5, -1.25, 3.0], [-0.0, 1e-30, 7.0]]))
    assert same(state["parameters"]["scale"], torch.tensor(2.5, dtype=torch.float64))
    assert same(state["optimizer"]["state"], {0: {"step": torch.tensor(3.0)}})
    assert (state["optimizer"]["lr"], state["optimizer"]["betas"]) == (0.001, (0.9, 0.99))
    assert type(state["buffers"]) is OrderedDict
    assert state["buffers"]["count"].tolist() == [1, 1099511627776]
    assert same(state["buffers"]["mask"], torch.tensor([True, False]))
    assert (state["epoch_order"], state["note"], state["nothing"]) == ([2, 0, 1], "naïve", None)
    assert about["format_version"] == checkpoint.FORMAT_VERSION
    assert (about["step"], about["epoch"]) == (3, 1)
    assert about["metrics"] == {"train_loss": 0.75, "val_loss": float("inf")}
    assert about["config"] == {"lr": 0.001, "hidden": [64, 8], "name": "vae"}
    assert about["fingerprint"]["parameters"] == {
        "decoder.weight": ["float32", [2, 3]],
        "scale": ["float64", []],
    }
    parameters = state["parameters"] | {"decoder.weight": torch.zeros(4, 3)}
    assert checkpoint.differences(about["fingerprint"], parameters) == [
        "decoder.weight: the file has (2, 3), the program (4, 3)"
    ]


@pytest.mark.parametrize("version", range(1, checkpoint.FORMAT_VERSION + 1))
def test_the_metadata_of_every_format_are_read_alone(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = STORED / f"version-{version}" / "step-00000003"
    expected = read(path).metadata
    for name in ("_read_state", "_opened_state"):
        monkeypatch.setattr(checkpoint, name, None)
    assert about(path) == expected


def test_a_damaged_state_is_seen_if_asked(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert about(path, whole=True) == read(path).metadata
    (path / "state.pt").write_bytes(b"")
    assert about(path)["step"] == 1
    with pytest.raises(
        CheckpointError, match=r"step-00000001: state\.pt differs from its checksum"
    ):
        about(path, whole=True)
    (path / "metadata.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000001: metadata\.json holds no dict"):
        about(path)
    with pytest.raises(CheckpointError, match=r"step-00000002: metadata\.json is missing"):
        about(tmp_path / "step-00000002")


def rename(state: checkpoint.State, metadata: Any) -> tuple[checkpoint.State, Any]:
    return {"networks": state["parameters"]}, metadata | {"config": {"from": 1}}


def count(state: checkpoint.State, metadata: Any) -> tuple[checkpoint.State, Any]:
    return state | {"count": len(state["networks"])}, metadata


def test_migrations_are_applied_in_order() -> None:
    before = {"format_version": 1, "step": 3, "config": {}}
    state, metadata = migrate({"parameters": {"w": 1}}, before, {2: count, 1: rename}, target=3)
    assert state == {"networks": {"w": 1}, "count": 1}
    assert metadata == {"format_version": 3, "step": 3, "config": {"from": 1}}
    assert before["format_version"] == 1
    assert migrate({"a": 1}, metadata, {}, target=3) == ({"a": 1}, metadata)


def test_migrations_that_cannot_be_done_are_errors() -> None:
    with pytest.raises(CheckpointError, match="version is 1, which is not read any more; expect"):
        migrate({}, {"format_version": 1}, {2: count}, target=3)
    with pytest.raises(CheckpointError, match=r"brought to 2 \(KeyError: 'parameters'\)"):
        migrate({}, {"format_version": 1}, {1: rename}, target=2)
    with pytest.raises(CheckpointError, match=r"version is 3; .* up to 2: upgrade amortized"):
        migrate({}, {"format_version": 3}, {1: rename}, target=2)


def test_a_stored_file_passes_through_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    path = STORED / "version-1" / "step-00000003"
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    monkeypatch.setattr(checkpoint, "_MIGRATIONS", {1: rename, 2: count})
    found = read(path)
    assert found.metadata["format_version"] == 3 and found.metadata["config"] == {"from": 1}
    assert set(found.state["networks"]) == {"decoder.weight", "scale"}
    assert found.state["count"] == 2


def test_a_training_of_version_1_does_not_say_how_many_rows_a_batch_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 1)
        path = save(tmp_path, 1, state={"moment": {"identity": {"batches": 6}}})
    identity = read(path).state["moment"]["identity"]
    unknown = dict.fromkeys(("rows a batch", "learning-rate schedules"), checkpoint.UNKNOWN)
    assert identity == {**unknown, "batches": 6}


def test_a_neural_baseline_of_version_3_had_no_running_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the parameters, and in every moment that training could go back to."""
    start = "loss.estimators.by_site.site:z.baseline."
    old = {f"{start}network.weight": torch.ones(1, 2, dtype=torch.float64)}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 3)
        path = save(
            tmp_path, 1, state={"parameters": old, "moment": {"kept": [{"parameters": old}]}}
        )
    state = read(path).state
    for found in (state["parameters"], state["moment"]["kept"][0]["parameters"]):
        numbers = {n.removeprefix(start): v for n, v in found.items() if n not in old}
        assert numbers == {"mean": 0.0, "square": 1.0, "rate": 0.0}
        assert all(value.dtype == torch.float64 for value in numbers.values())


def test_metadata_are_checked_after_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 5)
    monkeypatch.setattr(checkpoint, "_MIGRATIONS", {4: lambda s, m: (s, {"format_version": 4})})
    with pytest.raises(CheckpointError, match="its metadata lack 'versions'"):
        read(path)


def test_a_newer_format_is_refused_by_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 5)
        newer = save(tmp_path, 2)
        assert read(newer).metadata["format_version"] == 5
    message = r"its format version is 5; this version of amortized reads versions up to 4: upgrade"
    for reader in (read, about):
        with pytest.raises(CheckpointError, match=message):
            reader(newer)
    with pytest.warns(UserWarning, match=message):
        assert newest(tmp_path).metadata["step"] == 1
