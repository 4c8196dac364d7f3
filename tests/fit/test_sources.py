import itertools
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from amortized.errors import CheckWarning, DataError
from amortized.fit import sources
from amortized.fit.sources import InMemory, Mapped, Picked, as_rows, is_mapped, non_finite


def mapped(folder: Path, array: np.ndarray, mode: str = "r") -> np.memmap:
    path = folder / f"array{len(list(folder.iterdir()))}"
    array.tofile(path)
    return np.memmap(path, array.dtype, mode, shape=array.shape)


NUMBERS = np.arange(60.0).reshape(20, 3)
ROWS = torch.tensor([7, 0, 19, 7, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    "dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", "g", "<i8", ">i4", "u1", "<u2", "?"]
)
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "memory"])
def test_every_number_comes_as_numpy_has_it(dtype: str, in_file: bool, tmp_path: Path) -> None:
    array = NUMBERS.astype(dtype)
    rows = as_rows(mapped(tmp_path, array) if in_file else array, {})
    assert type(rows) is (Mapped if in_file else InMemory)
    assert (rows.length, rows.width) == (20, 3)
    expected = torch.tensor(array.astype(np.float64)).to(rows.span(0, 1).dtype)
    assert torch.equal(rows.span(4, 9), expected[4:9])
    assert torch.equal(rows.select(ROWS), expected[ROWS.long()])
    kinds = {"f": torch.float32, "b": torch.bool}
    assert rows.select(ROWS).dtype == kinds.get(array.dtype.kind, rows.span(0, 1).dtype)


@pytest.mark.parametrize("picked", [False, True])
def test_a_batch_in_memory_can_be_written_to(picked: bool) -> None:
    tensor = torch.tensor(NUMBERS)
    rows = Picked(InMemory(tensor), range(20)) if picked else InMemory(tensor)
    batch = rows.batch(4, 9)
    assert torch.equal(batch, rows.span(4, 9))
    batch.zero_()
    assert torch.equal(tensor, torch.tensor(NUMBERS))


def test_a_batch_of_a_file_can_be_written_to(tmp_path: Path) -> None:
    for mode in ("r", "r+"):
        array = mapped(tmp_path, NUMBERS.astype(np.float32), mode)
        rows = Mapped(array)
        for batch in (rows.span(0, 4), rows.select(ROWS)):
            batch.zero_()
        assert np.array_equal(array, NUMBERS)


def test_views_of_a_file_are_known(tmp_path: Path) -> None:
    array = mapped(tmp_path, NUMBERS)
    with array.filename.open("rb") as file:  # type: ignore[union-attr]
        own = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float64)
    for view in (array, array[3:], np.asarray(array).T, np.asarray(array)[:, :1], own):
        assert is_mapped(view)
    assert not is_mapped(np.array(array)) and not is_mapped(NUMBERS[2:])


def test_picked_rows_are_those_of_the_array() -> None:
    rows = Picked(InMemory(torch.from_numpy(NUMBERS)), [5, 2, 8])
    assert rows.length == 3
    assert torch.equal(rows.span(1, 3)[:, 0], torch.tensor([6.0, 24.0]).double())
    assert torch.equal(rows.select(torch.tensor([2, 0]))[:, 0], torch.tensor([24.0, 15.0]).double())


@pytest.mark.parametrize("in_file", [True, False], ids=["file", "memory"])
def test_what_is_not_finite_is_found_by_row(
    in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_AT_ONCE", 9)
    array = NUMBERS.astype(np.float32)
    array[4, 1], array[19, 2] = np.nan, -np.inf
    rows = as_rows(mapped(tmp_path, array) if in_file else array, {})
    assert list(non_finite(rows)) == [4, 19]
    assert list(non_finite(as_rows(np.arange(3), {}))) == []


def test_a_sum_that_overflows_is_no_infinity() -> None:
    assert list(non_finite(InMemory(torch.full((20, 3), 60_000.0, dtype=torch.float16)))) == []


def test_of_a_large_file_a_part_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_AT_ONCE", 10)
    monkeypatch.setattr(sources, "_OF_A_FILE", 50)
    array = np.full((1000, 1), np.nan, np.float32)
    searched = list(non_finite(Mapped(mapped(tmp_path, array))))
    assert len(searched) == 50 and (searched[0], searched[-1]) == (0, 999)
    assert max(b - a for a, b in itertools.pairwise(searched)) < 300
    assert len(list(non_finite(InMemory(torch.from_numpy(array))))) == 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a"]), r"data: found an array of <U1.*give every category a number"),
        (np.zeros(3, "c8"), r"found an array of complex64.*pass .real and .imag"),
        (np.zeros(3, "M8[D]"), r"found an array of datetime64\[D\].*pass a number"),
        (np.zeros(3, [("x", "f4"), ("y", "i4")]), r"pass its fields.*\('x', 'y'\)"),
        (np.array(1.0), "data is a single number"),
        ({"x": [np.zeros(3), object()]}, r"data\['x'\]\[1\]: found object"),
        (iter([1]), "an iterator is used up"),
    ],
)
def test_mistakes_are_named(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_rows(data, {})


def test_a_mask_of_numpy_s_is_not_lost() -> None:
    with pytest.raises(DataError, match=r"data\['x'\]: found a masked array.*obs_mask"):
        as_rows({"x": np.ma.masked_array(NUMBERS, NUMBERS > 3)}, {})


def test_sparse_tensors_have_no_rows() -> None:
    with pytest.raises(DataError, match=r"data: found a sparse_coo tensor.*to_dense\(\)"):
        as_rows(torch.eye(3).to_sparse(), {})


def test_data_come_without_their_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    with pytest.warns(CheckWarning, match=r"data\[0\]: it requires a gradient"):
        rows = as_rows((torch.eye(3) * weight,), {})[0]
    assert not rows.batch(0, 2).requires_grad and not rows.select(ROWS[:0]).requires_grad
