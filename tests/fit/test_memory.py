from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amortized.errors import ProgramError
from amortized.fit import memory
from amortized.fit.memory import Footprint, Parts, free_bytes, is_out_of_memory, split

CPU = torch.device("cpu")


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available, in a container that is given by the test."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    (_, *new), (_, *old) = memory._GROUPS
    groups = ((tmp_path, *new), (tmp_path / "old", *old))
    monkeypatch.setattr(memory, "_GROUPS", groups)
    (tmp_path / "old").mkdir()
    return tmp_path


def test_the_machine_or_its_container_says_what_is_free(machine: Path) -> None:
    assert free_bytes(CPU) == 2**33
    files(machine, memory__max="max\n", memory__current="5\n")
    assert free_bytes(CPU) == 2**33
    files(machine, memory__max="1000\n", memory__current="600\n")
    assert free_bytes(CPU) == 400
    files(machine, memory__stat="anon 7\ninactive_file 100\nactive_file 20\n")
    assert free_bytes(CPU) == 520
    old = machine / "old"
    files(old, memory__limit_in_bytes="300\n", memory__usage_in_bytes="400\n")
    assert free_bytes(CPU) == 0


def test_where_nobody_says_nothing_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "none")
    monkeypatch.setattr(memory, "_GROUPS", ())
    assert free_bytes(CPU) is None and free_bytes(torch.device("meta")) is None


def caught(cause: Exception) -> ProgramError:
    try:
        raise ProgramError("the model failed") from cause
    except ProgramError as error:
        return error


def test_what_torch_and_numpy_raise_is_known() -> None:
    with pytest.raises(RuntimeError) as ours:
        torch.empty(2**58, dtype=torch.uint8)
    with pytest.raises(MemoryError) as theirs:
        np.empty(2**58, np.uint8)
    for error in (ours.value, theirs.value, torch.OutOfMemoryError("x")):
        assert is_out_of_memory(error) and is_out_of_memory(caught(error))
    for other in (RuntimeError("size mismatch"), ValueError("out of memory"), None):
        assert not is_out_of_memory(other)
    assert not is_out_of_memory(caught(RuntimeError("size mismatch")))


def test_new_tensors_are_counted_once_and_views_never() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.zeros(5, 8)
    with torch.no_grad(), Footprint() as footprint:
        network(x).add_(1.0).reshape(-1)[2:].expand(3, -1)
        _ = x[1:].T
    assert footprint.bytes == 4 * 5 * (16 + 16 + 4)
    with Footprint() as sparse:
        x.to_sparse()
    assert sparse.bytes >= 0


def test_a_batch_is_split_by_rows() -> None:
    batch = {"x": torch.arange(5), "y": (torch.zeros(5, 2), torch.tensor(3.0)), "flag": True}
    parts = split(batch, 2)
    assert [len(part["x"]) for part in parts] == [2, 2, 1]
    assert [part["y"][0].shape for part in parts] == [(2, 2), (2, 2), (1, 2)]
    assert all(part["y"][1] == 3.0 and part["flag"] for part in parts)
    for whole in ((torch.zeros(4), torch.zeros(3)), ()):
        assert split(whole, 2) == [whole]


def failing(limit: int, calls: list[int]):
    """Draws as many numbers as there are rows, and fails above a limit."""

    def run(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        drawn = batch + torch.rand(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return drawn

    return run


def test_parts_get_smaller_until_they_fit_and_stay_so() -> None:
    parts, calls = Parts(), []
    x = torch.arange(20.0)
    found = list(parts.of(x, failing(6, calls)))
    assert calls == [20, 10, 5, 5, 5, 5] and [rows for _, rows in found] == [5] * 4
    list(parts.of(x[:12], failing(6, calls)))
    assert calls[6:] == [5, 5, 2]
    assert torch.equal(torch.cat([values for values, _ in found]).floor(), x)


def test_a_run_that_failed_draws_nothing() -> None:
    x = torch.zeros(20)
    torch.manual_seed(1)
    found = [values for values, _ in Parts().of(x, failing(5, []))]
    torch.manual_seed(1)
    assert torch.equal(torch.cat(found), torch.cat([torch.rand(5) for _ in range(4)]))


@pytest.mark.parametrize("batch", [torch.zeros(1), (torch.zeros(2), torch.zeros(3)), ()])
def test_what_cannot_be_divided_fails(batch: object) -> None:
    def run(part: object) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(Parts().of(batch, run))


def test_other_errors_go_on_at_once() -> None:
    calls = []

    def run(batch: torch.Tensor) -> None:
        calls.append(len(batch))
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        list(Parts().of(torch.zeros(8), run))
    assert calls == [8]
