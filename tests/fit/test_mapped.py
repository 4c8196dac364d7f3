import json
from pathlib import Path

import numpy as np
import pytest
import torch

from amortized.errors import DataError
from amortized.fit.data import as_batches
from amortized.fit.mapped import open_safetensors
from amortized.fit.sources import is_mapped

ROWS = 2**18
WIDTH = 2**18


def write(path: Path, arrays: dict[str, np.ndarray], **header: object) -> Path:
    entries, at = dict(header), 0
    names = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float16": "F16"}
    for name, array in arrays.items():
        end = at + array.nbytes
        kind = names[str(array.dtype)]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_arrays_are_mapped_with_their_values(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.arange(2),
        "seen": np.array([True, False]),
        "one": np.array(3, np.uint8),
        "none": np.zeros((0, 3), np.float16),
    }
    found = open_safetensors(write(tmp_path / "a", arrays, __metadata__={"by": "hand"}))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
        assert found[name].shape == array.shape
    assert is_mapped(found["x"]) and not found["x"].flags.writeable


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_what_the_package_writes_is_read_and_its_handles_are_data(
    framework: str, tmp_path: Path
) -> None:
    package = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "train.safetensors"
    arrays = {"x": np.random.default_rng(0).normal(size=(9, 4)), "y": np.arange(9)}
    numpy.save_file(arrays, path)
    found = open_safetensors(path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    with package.safe_open(path, framework=framework) as handle:
        for data in (handle, {"x": handle.get_slice("x"), "y": handle.get_slice("y")}):
            if framework == "np":
                with pytest.raises(DataError, match=r"opened for numpy.*am.open_safetensors"):
                    as_batches(data)
            else:
                batch = next(as_batches(data, 5).epoch())
                assert torch.equal(batch["x"], torch.tensor(arrays["x"][:5]))


def test_a_file_larger_than_memory_is_passed_over(tmp_path: Path) -> None:
    size = 4 * ROWS * WIDTH
    entry = {"x": {"dtype": "F32", "shape": [ROWS, WIDTH], "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    batches = as_batches(open_safetensors(path), 2)
    batch = next(batches.epoch(torch.Generator().manual_seed(0)))
    assert batches.size == ROWS and batch["x"].shape == (2, WIDTH)


def short(path: Path) -> None:
    path.write_bytes(write(path, {"x": np.zeros((4, 4), np.float32)}).read_bytes()[:-1])


def other_kind(path: Path) -> None:
    entry = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
    write(path, {}, x=entry)


def other_shape(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}
    write(path, {"y": np.zeros(8, np.float32)}, x=entry)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (short, r"'x' ends at byte \d+, and the file has \d+: it was cut short"),
        (other_kind, r"'x' holds BF16, which numpy has no type for.*write it as F32"),
        (other_shape, r"its header is not that of a safetensors file.*'x' of shape \(3,\)"),
        (lambda path: path.write_bytes(b"\x05"), "its header is not that of a safetensors file"),
        (lambda path: path.write_bytes(b"numpy" * 99), "its header is not"),
        (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"), "its header is not"),
        (lambda path: None, "it cannot be read.*No such file"),
    ],
    ids=["short", "kind", "shape", "tiny", "other", "list", "missing"],
)
def test_mistakes_are_named(spoil, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    spoil(path)
    with pytest.raises(DataError, match=message):
        open_safetensors(path)
