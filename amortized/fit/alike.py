"""What must be alike in processes that train together: compared, and refused where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from amortized.errors import DataError, ProgramError, UsageError
from amortized.fit.data import Batches, TensorBatches
from amortized.fit.digests import digest_of, digest_of_batch
from amortized.fit.distributed import Group
from amortized.fit.shards import ShardedBatches
from amortized.fit.step import Stepper
from amortized.fit.terms import Terms
from amortized.objectives.base import Objective
from amortized.programs.batches import leaves_of

# sums of parameters, which processors of several kinds round in their own ways
_APART: Final = 1e-4

_KINDS: Final = {
    "NoneType": "nothing",
    "TensorBatches": "tensors",
    "DatasetBatches": "a Dataset",
    "LoaderBatches": "a DataLoader",
}

Sums = dict[str, tuple[float, float]]
"""Of each parameter: the sum, and that of absolute values."""


def refuse_other_data(group: Group, name: str, batches: Batches | None) -> None:
    """Raise where the processes were not given the same data, of which each takes its part.

    Sizes are compared, and of tensors the first, the middle and the last row.

    Raises:
        DataError: saying what differs; in every process.
    """
    if group.alone:
        return
    about = group.agreed(lambda: _about(batches))  # a file may not be readable here
    for what, ours, theirs, rank in _differences(group.gathered(about)):
        raise DataError(
            f"{name}: {what} {_shown(ours)} in process 0 and {_shown(theirs)} in process {rank}; "
            "each takes its part of the same rows, so give every process all of them, split and "
            "shuffled under one seed; where each has a shard of its own, pass a DataLoader of it, "
            "and the number of all data: SVI(..., data_plate=am.DataPlate(name, N))"
        )


def refuse_other_kinds(group: Group, **data: Batches | None) -> None:
    """Raise where data are there in one process only, or of another kind.

    Raises:
        DataError: naming which.
    """
    if group.alone:
        return
    kinds = {name: type(batches).__name__ for name, batches in data.items()}
    told = group.gathered({name: _KINDS.get(kind, kind) for name, kind in kinds.items()})
    for name, ours, theirs, rank in _differences(told):
        raise DataError(
            f"{name}: {ours} in process 0 and {theirs} in process {rank}; give every process the "
            "same data"
        )


def refuse_other_callbacks(group: Group, saving: Sequence[str]) -> None:
    """Raise where not all processes take part in checkpoints.

    Raises:
        UsageError: naming the callbacks.
    """
    told = group.gathered({"callbacks": ", ".join(saving) or "no ModelCheckpoint"})
    for what, ours, theirs, rank in _differences(told):
        raise UsageError(
            f"{what}: {ours} in process 0 and {theirs} in process {rank}; every process takes part "
            "in a checkpoint, and the first one writes: pass the same in all"
        )


def refuse_unshared(group: Group, objective: Objective) -> None:
    """Raise for an objective that is no sum over the rows of a batch.

    Raises:
        UsageError: free bits, whose floor is on the mean KL of all rows together.
    """
    if not group.alone and not objective.sums_over_rows:
        raise UsageError(
            f"{objective!r} among {group.size} processes: the floor of free_bits= acts on the mean "
            "KL of all rows of a batch, and each process has a part of them; use beta= or "
            "kl_weight= (a warm-up), or train in one process"
        )


def refuse_totals(terms: Terms, batch: Any, group: Group) -> None:
    """Raise where numbers of a part of the rows are no estimate of those of all.

    Raises:
        ProgramError: no plate says which part it is.
    """
    if not group.alone and not terms.per_datum and leaves_of(batch):
        raise ProgramError(
            f"no plate holds the observations, so the rows of each of {group.size} processes would "
            "count as the whole data set; put them into pyro.plate('data', len(x)), or use "
            "one process"
        )


def share_optimizer(group: Group, stepper: Stepper) -> None:
    """Gives every process the optimizer's state of the first.

    Raises:
        UsageError: options, the number of steps or the kind of state differ.
    """
    if group.alone:
        return
    about, state = _about_optimizer(stepper)
    for what, ours, theirs, rank in _differences(group.gathered(about)):
        raise UsageError(
            f"{what}: {_shown(ours)} in process 0 and {_shown(theirs)} in process {rank}; expected "
            "the same optimizer and options, and the same steps so far, in every process"
        )
    group.copy_first(state)


def sums_of(tensors: Mapping[str, Tensor]) -> Sums:
    """What tells parameters apart that have drifted.

    >>> sums_of({"w": torch.tensor([1.0, -3.0])})
    {'w': (-2.0, 4.0)}
    """
    held = (tensor.detach() for tensor in tensors.values() if tensor.numel())
    found = [(torch.view_as_real(t) if t.is_complex() else t).double() for t in held]
    if not found:
        return {}
    sums = torch.stack([torch.stack([t.sum(), t.abs().sum()]) for t in found]).tolist()
    names = (name for name, tensor in tensors.items() if tensor.numel())
    return {name: (total, size) for name, (total, size) in zip(names, sums, strict=True)}


def refuse_drift(told: Sequence[Sums], epoch: int) -> None:
    """Raise where parameters are no longer the same.

    Raises:
        ProgramError: naming the first.
    """
    for rank, sums in enumerate(told):
        for name, (total, size) in told[0].items():
            other, _ = sums.get(name, (math.nan, 0.0))
            both = math.isfinite(total) or math.isfinite(other)
            if both and not abs(total - other) <= _APART * size:
                raise ProgramError(
                    f"parameter {name!r}: after epoch {epoch} it is no longer the same in "
                    f"processes 0 and {rank} (its sum is {total:.6g} and {other:.6g}): something "
                    "besides the shared step moves it, such as a callback, or a rate or a schedule "
                    "that differs; do the same in every process"
                )


def _about(batches: Batches | None) -> dict[str, Any]:
    """What must be the same of data that each process was given."""
    if not isinstance(batches, ShardedBatches):
        return {"the kind of data is": type(batches).__name__}
    whole, size = batches.whole, batches.size or 0
    found: dict[str, Any] = {"the number of rows is": size}
    found["the number of batches is"] = batches.num_batches
    if isinstance(whole, TensorBatches) and size:
        for row in sorted({0, size // 2, size - 1}):
            found[f"the digest of row {row} is"] = digest_of_batch(whole.rows([row]))
    return found


def _differences(told: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, Any, int]]:
    """What another process has in another way: its name, both values, and which process."""
    for rank, theirs in enumerate(told):
        for what, ours in told[0].items():
            if theirs.get(what) != ours:
                yield what, ours, theirs.get(what), rank


def _shown(value: Any) -> str:
    """A digest is cut short."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _about_optimizer(stepper: Stepper) -> tuple[dict[str, Any], list[Tensor]]:
    built = stepper.optimizer.built
    found: dict[str, Any] = {"steps": stepper.steps, "optimizer": type(built).__name__}
    for number, group in enumerate(built.param_groups):
        name = group.get("name", number)
        options = {key: value for key, value in group.items() if key not in ("params", "name")}
        found |= {f"{key} of {name}": _plain(value) for key, value in options.items()}
    state: list[Tensor] = []
    kinds: list[str] = []
    for leaf in stepper.optimizer.leaves():
        for key, value in sorted(built.state.get(leaf, {}).items()):
            tensor = isinstance(value, Tensor)
            state += [value] if tensor else []
            kinds.append(f"{key} {tuple(value.shape) if tensor else _plain(value)}")
    found["entries of the optimizer's state"] = len(kinds)
    found["the optimizer's state"] = digest_of(*kinds)
    return found, state


def _plain(value: Any) -> str:
    """As text: values, and of objects only the kind, as their text may hold an address."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_plain, value))})"
    plain = value is None or isinstance(value, bool | int | float | complex | str)
    return repr(value) if plain else type(value).__name__
