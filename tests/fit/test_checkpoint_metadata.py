from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortized.errors import CheckpointError
from amortized.fit import checkpoint_metadata
from amortized.fit.checkpoint_metadata import (
    Metadata,
    check_fields,
    check_version,
    describe,
    read_metadata,
    write_metadata,
)
from amortized.fit.checkpoint_values import checksum


def described(**changes: Any) -> Metadata:
    given: dict[str, Any] = {
        "step": 3,
        "epoch": 1,
        "metrics": {"loss": 2, "val_loss": math.nan},
        "config": {"sizes": (1, 2)},
        "parameters": {"w": torch.ones(2, 3)},
    }
    return describe(**(given | changes))


def whole(**changes: Any) -> Metadata:
    return {"format_version": 1} | described() | {"sha256": "0" * 64} | changes


def test_metadata_say_where_the_checkpoint_comes_from() -> None:
    found = described()
    assert set(found["versions"]) == {"amortized", "torch", "pyro", "python"}
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["threads"] == torch.get_num_threads()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(found["created"])
    assert 0 <= age.total_seconds() < 60
    assert (found["step"], found["epoch"], found["config"]) == (3, 1, {"sizes": [1, 2]})
    assert found["metrics"]["loss"] == 2.0 and type(found["metrics"]["loss"]) is float
    assert found["fingerprint"]["parameters"] == {"w": ["float32", [2, 3]]}


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert checkpoint_metadata._installed("no-such-package") == "unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step is -1; expected a whole number"),
        ({"step": 1.0}, "step is 1.0; expected"),
        ({"epoch": True}, "epoch is True; expected"),
        ({"metrics": {"loss": torch.ones(())}}, r"metrics\['loss'\] is of type Tensor"),
        ({"metrics": {"loss": None}}, r"metrics\['loss'\] is of type NoneType"),
        ({"metrics": {1: 1.0}}, "metrics has the key 1; expected names"),
        ({"config": {"path": Path("a")}}, r"config\['path'\] is of type pathlib"),
    ],
)
def test_what_has_no_place_in_metadata_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        described(**changes)


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(2)], ids=repr)
def test_metrics_may_be_numpy_numbers(number: Any) -> None:
    found = described(metrics={"loss": number}, config={"seed": number})
    assert type(found["metrics"]["loss"]) is float and found["metrics"]["loss"] == number
    assert type(found["config"]["seed"]) in (int, float) and found["config"]["seed"] == number


def test_infinity_and_nan_are_valid_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    metrics = {"a": math.inf, "b": -math.inf, "c": math.nan, "d": 0.5}
    write_metadata(path, whole(metrics=metrics, config={"limit": math.inf}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(path.read_text(encoding="ascii"), parse_constant=refuse)
    found = read_metadata(path, 1)
    check_fields(found)
    assert repr(found["metrics"]) == repr(metrics) and found["config"] == {"limit": "inf"}


def test_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    tricky = {"float": [0.1, 1e-320, 1e300], "text": 'é "\ud800\n', "big": 2**70}
    metadata = whole(config=tricky)
    write_metadata(path, metadata)
    again = read_metadata(path, 1)
    assert repr(again) == repr(metadata)
    check_fields(again)
    assert path.read_text(encoding="ascii").count("\n") > 10, "people read it"


def test_the_order_and_layout_of_the_file_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    write_metadata(path, whole())
    content = json.loads(path.read_text(encoding="ascii"))
    path.write_text(json.dumps(dict(reversed(content.items()))), encoding="ascii")
    assert checksum(read_metadata(path, 1)) == checksum(whole())


def edited(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="ascii"))
    path.write_text(json.dumps(content | changes), encoding="ascii")


@pytest.mark.parametrize(
    "changes", [{"step": 4}, {"self": "0" * 64}, {"self": None}, {"extra": 1}, {"created": "now"}]
)
def test_a_change_by_hand_is_found(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "metadata.json"
    write_metadata(path, whole())
    edited(path, **changes)
    with pytest.raises(CheckpointError, match="differs from its own checksum"):
        read_metadata(path, 1)


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"{}",
    b"[" * 1_000_000,
    b'{"a":' * 1_000_000,
    b'{"format_version": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"format_version": ' + b"9" * 5000 + b"}",
    b'{"format_version": 1}',
    b'{"format_version": NaN}',
    b'{"format_version": true}',
    b'{"format_version": "1"}',
    b'{"format_version": 0}',
    b'{"format_version": -1}',
    b'{"format_version": [1]}',
    b'{"format_version": "' + b"\\n" * 1000 + b'"}',
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_whatever_the_file_holds_the_error_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        read_metadata(path, 1)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and "use another checkpoint" in message


def test_a_file_of_unreasonable_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metadata.json"
    write_metadata(path, whole())
    monkeypatch.setattr(checkpoint_metadata, "_MAX_BYTES", path.stat().st_size)
    read_metadata(path, 1)
    monkeypatch.setattr(checkpoint_metadata, "_MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="has more than"):
        read_metadata(path, 1)
    with pytest.raises(CheckpointError, match=r"would have .* bytes; expected at most"):
        write_metadata(tmp_path / "other.json", whole())
    assert not (tmp_path / "other.json").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metadata\.json is missing"):
        read_metadata(tmp_path / "metadata.json", 1)
    (tmp_path / "metadata.json").mkdir()
    with pytest.raises(CheckpointError, match=r"metadata\.json is missing"):
        read_metadata(tmp_path / "metadata.json", 1)


def test_a_newer_format_is_refused_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text('{"format_version": 3, "checksums": "elsewhere"}', encoding="ascii")
    with pytest.raises(CheckpointError, match=r"version is 3; .* up to 2: upgrade amortized"):
        read_metadata(path, 2)
    check_version(2, 2)


WRONG: dict[str, list[Any]] = {
    "versions": [None, [], {"torch": 2}],
    "threads": [None, -1, 1.0, True],
    "created": [None, 0, ["2026"]],
    "step": [None, -1, 3.0, "3", True],
    "epoch": [None, -1, 0.5],
    "metrics": [None, [], {"loss": "0.1"}, {"loss": None}, {"loss": True}],
    "config": [None, [], "x"],
    "fingerprint": [
        None,
        {},
        {"parameters": {}, "hash": "0"},
        {"parameters": {"w": ["float32", 3]}, "hash": checksum({"w": ["float32", 3]})},
        {"parameters": {"w": [1, [3]]}, "hash": checksum({"w": [1, [3]]})},
        {"parameters": {"w": ["float32", [3.0]]}, "hash": checksum({"w": ["float32", [3.0]]})},
        {"parameters": {"w": ["float32"]}, "hash": checksum({"w": ["float32"]})},
        {"parameters": [], "hash": checksum([])},
    ],
    "sha256": [None, 0, "0" * 63, "G" * 64],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_an_entry_of_another_type_is_named(name: str, value: Any) -> None:
    check_fields(whole())
    with pytest.raises(CheckpointError, match=f"its metadata have .* as '{name}'; expected "):
        check_fields(whole(**{name: value}))


@pytest.mark.parametrize("name", WRONG)
def test_an_entry_that_is_missing_is_named(name: str) -> None:
    metadata = whole()
    del metadata[name]
    with pytest.raises(CheckpointError, match=f"its metadata lack '{name}'"):
        check_fields(metadata)
