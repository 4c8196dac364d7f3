"""500 damaged or hostile checkpoints: refused in a sentence, nothing run, the previous one used."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from amortized.errors import CheckpointError
from amortized.fit import checkpoint
from amortized.fit.checkpoint_values import checksum
from tests.faults.payloads import CALLS, WRAPPERS, calls
from tests.fit.saved import same, save, state_of

STATE, METADATA = "state.pt", "metadata.json"
GOOD, BAD = 2, 3

Spoil = Callable[[Path, random.Random, Path], None]


@dataclass(frozen=True)
class Case:
    """A way to spoil the newest of three checkpoints; `marker` is what nothing may make."""

    spoil: Spoil
    kind: str
    number: int
    used_instead: int = GOOD

    def __str__(self) -> str:
        return f"{self.kind}-{self.number}"


def seal(folder: Path, **changes: Any) -> None:
    """Checksums that match whatever the files hold now, as somebody who wants to be read would."""
    path = folder / METADATA
    metadata = json.loads(path.read_bytes())
    metadata["sha256"] = sha256(folder / STATE)
    metadata = {name: value for name, value in metadata.items() if name != "self"} | changes
    metadata["self"] = checksum(metadata)
    path.write_text(json.dumps(metadata), encoding="ascii")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return checkpoint.files.sha256(file)


# Damage


def truncate_state(folder: Path, rng: random.Random, marker: Path) -> None:
    content = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(content[: rng.randrange(len(content))])


def truncate_metadata(folder: Path, rng: random.Random, marker: Path) -> None:
    content = (folder / METADATA).read_bytes()
    (folder / METADATA).write_bytes(content[: rng.randrange(len(content))])


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for bit in rng.sample(range(8 * len(content)), rng.randint(1, 8)):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_state(folder: Path, rng: random.Random, marker: Path) -> None:
    path = folder / STATE
    path.write_bytes(flipped(path.read_bytes(), rng))


def flip_metadata(folder: Path, rng: random.Random, marker: Path) -> None:
    path = folder / METADATA
    path.write_bytes(flipped(path.read_bytes(), rng))


def flip_a_digit(folder: Path, rng: random.Random, marker: Path) -> None:
    """Still JSON, and still of the right types: only the checksum tells."""
    path = folder / METADATA
    content = bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(content) if chr(byte) in "23456789"]
    content[rng.choice(digits)] ^= 1
    path.write_bytes(bytes(content))
    json.loads(bytes(content))


def overwrite_a_block(folder: Path, rng: random.Random, marker: Path) -> None:
    """As a disk that was not synced before the power went: zeros of the right length."""
    path = folder / rng.choice([STATE, METADATA])
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) - 64)
    content[start : start + 64] = bytes(64)
    path.write_bytes(bytes(content))


def replace_by_noise(folder: Path, rng: random.Random, marker: Path) -> None:
    (folder / rng.choice([STATE, METADATA])).write_bytes(rng.randbytes(rng.randrange(5000)))


# Files that are missing, foreign, or no files


def delete(folder: Path, rng: random.Random, marker: Path) -> None:
    for name in rng.choice([[STATE], [METADATA], [STATE, METADATA]]):
        (folder / name).unlink()


def empty(folder: Path, rng: random.Random, marker: Path) -> None:
    for name in rng.choice([[STATE], [METADATA], [STATE, METADATA]]):
        (folder / name).write_bytes(b"")


def make_no_file(folder: Path, rng: random.Random, marker: Path) -> None:
    path = folder / rng.choice([STATE, METADATA])
    path.unlink()
    rng.choice([path.mkdir, lambda: path.symlink_to(path), lambda: os.mkfifo(path)])()


def take_from_another(folder: Path, rng: random.Random, marker: Path) -> None:
    name = rng.choice([STATE, METADATA])
    shutil.copy(folder.parent / f"step-{rng.choice([1, 2]):08d}" / name, folder / name)


def take_all_from_another(folder: Path, rng: random.Random, marker: Path) -> None:
    for name in (STATE, METADATA):
        shutil.copy(folder.parent / f"step-{GOOD:08d}" / name, folder / name)


def swap(folder: Path, rng: random.Random, marker: Path) -> None:
    name, other = rng.choice([STATE, METADATA]), folder.parent / f"step-{GOOD:08d}"
    (folder / name).rename(folder / "kept")
    (other / name).rename(folder / name)
    (folder / "kept").rename(other / name)


# Metadata of somebody who knows the checksums

JUNK: list[Any] = [None, -1, 0.5, "", [], {}, {"a": {}}, [[1]], float("nan"), "x" * 1000, True]
FITS = {("metrics", "{}"), ("config", "{}"), ("config", "{'a': {}}"), ("versions", "{}")}
FITS |= {("created", "''"), ("created", repr("x" * 1000))}
NAMES = ["format_version", "versions", "threads", "created", "step", "epoch", "metrics", "config"]
NAMES += ["fingerprint", "sha256"]


def mistype_metadata(folder: Path, rng: random.Random, marker: Path) -> None:
    wrong = [(name, junk) for name in NAMES for junk in JUNK if (name, repr(junk)) not in FITS]
    name, junk = rng.choice(wrong)
    seal(folder, **{name: junk})


def omit_metadata(folder: Path, rng: random.Random, marker: Path) -> None:
    metadata = json.loads((folder / METADATA).read_bytes())
    del metadata[rng.choice(NAMES)], metadata["self"]
    metadata["self"] = checksum(metadata)
    (folder / METADATA).write_text(json.dumps(metadata), encoding="ascii")


def claim_another_format(folder: Path, rng: random.Random, marker: Path) -> None:
    newest = checkpoint.FORMAT_VERSION
    seal(folder, format_version=rng.choice([0, newest + 1, newest + 2, 10**30, -1]))


def nest_metadata(folder: Path, rng: random.Random, marker: Path) -> None:
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    depth = rng.choice([500, 2000, 100_000])
    text = f'{{"format_version": 1, "config": {opening * depth}0{closing * depth}}}'
    (folder / METADATA).write_text(text, encoding="ascii")


# States of somebody who wants code to be run


def put_payload(folder: Path, rng: random.Random, marker: Path) -> None:
    put(rng.choice(list(WRAPPERS)), rng.choice(CALLS), folder, marker)


def put(wrapper: str, call: str, folder: Path, marker: Path) -> None:
    (folder / STATE).write_bytes(WRAPPERS[wrapper](calls(marker)[call]))


def put_sealed(wrapper: str, call: str) -> Spoil:
    def put_sealed_payload(folder: Path, rng: random.Random, marker: Path) -> None:
        put(wrapper, call, folder, marker)
        seal(folder)

    return put_sealed_payload


def put_sealed_other(folder: Path, rng: random.Random, marker: Path) -> None:
    """Not code, but nothing that this package writes."""
    module = torch.nn.Linear(1, 1)
    value = rng.choice([[torch.ones(1)], torch.ones(1), 3, None, {"m": module}, {"c": Counter}])
    torch.save(value, folder / STATE)
    seal(folder)


def truncate_sealed_state(folder: Path, rng: random.Random, marker: Path) -> None:
    truncate_state(folder, rng, marker)
    seal(folder)


KINDS: dict[Spoil, int] = {
    truncate_state: 66,
    truncate_metadata: 30,
    flip_state: 60,
    flip_metadata: 50,
    flip_a_digit: 20,
    overwrite_a_block: 20,
    replace_by_noise: 10,
    delete: 10,
    empty: 10,
    make_no_file: 10,
    take_from_another: 15,
    take_all_from_another: 1,
    swap: 10,
    mistype_metadata: 50,
    omit_metadata: 15,
    claim_another_format: 5,
    nest_metadata: 6,
    put_payload: 20,
    put_sealed_other: 10,
    truncate_sealed_state: 10,
}
CASES = [
    Case(spoil, spoil.__name__, number, used_instead=1 if spoil is swap else GOOD)
    for spoil, count in KINDS.items()
    for number in range(count)
]
CASES += [
    Case(put_sealed(wrapper, call), f"sealed_{wrapper}_{call}", 0)
    for wrapper in WRAPPERS
    for call in CALLS
]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("three")
    for step in (1, GOOD, BAD):
        save(root, step)
    return root


def spoiled(case: Case, three: Path, place: Path) -> Path:
    """A copy of the three; its newest differs from the original in more than layout."""
    rng = random.Random(str(case))
    before = content(three / f"step-{BAD:08d}")
    while True:
        root = place / f"{rng.randrange(10**9)}"
        shutil.copytree(three, root)
        folder = root / f"step-{BAD:08d}"
        case.spoil(folder, rng, place / "marker")
        if content(folder) != before:
            return root


def content(folder: Path) -> Any:
    """What the files say: a flipped bit may turn 1e-05 into 1E-05, which is no change."""
    if not all((folder / name).is_file() for name in (STATE, METADATA)):
        return None
    try:
        metadata: Any = json.loads((folder / METADATA).read_bytes())
        return sha256(folder / STATE), repr(metadata)
    except (ValueError, RecursionError):
        return None


def test_there_are_500() -> None:
    assert len(CASES) == 500


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_spoiled_checkpoint_is_refused(case: Case, three: Path, tmp_path: Path) -> None:
    root = spoiled(case, three, tmp_path)
    bad = root / f"step-{BAD:08d}"
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as caught:
        warnings.simplefilter("error")
        checkpoint.read(bad)
    message = str(caught.value)
    assert message.startswith(f"cannot read the checkpoint {bad}: ")
    assert message.isprintable() and len(message) < 400 + len(str(bad))

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        used = checkpoint.newest(root)
    assert used.metadata["step"] == case.used_instead
    assert same(used.state, state_of(case.used_instead))
    assert len(found) == 1 and message in str(found[0].message)
    assert str(found[0].message).isprintable()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_payloads_are_live(wrapper: str, tmp_path: Path) -> None:
    """Loaded without care, they would make the marker: that none appears means something."""
    marker, file = tmp_path / "marker", tmp_path / "file"
    for name, call in calls(marker).items():
        file.write_bytes(WRAPPERS[wrapper](call))
        if wrapper.startswith("raw"):
            pickle.loads(file.read_bytes())
        elif wrapper == "scripted":
            continue  # torch would have to be asked to run it as a program
        else:
            torch.load(file, weights_only=False)
        assert marker.exists(), name
        marker.rmdir() if marker.is_dir() else marker.unlink()
