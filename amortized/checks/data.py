"""Data: what is wrong with a batch by itself, and with what the model observes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from amortized.checks.places import family, place, range_words, rows_words
from amortized.checks.report import Finding
from amortized.checks.supports import (
    Range,
    outside_elements,
    support_range,
    support_words,
    unchecked,
)
from amortized.programs.batches import Leaves
from amortized.programs.survey import Statement, Survey
from amortized.programs.terms import masks_of

CASTS = {torch.float32: "float()", torch.float64: "double()", torch.float16: "half()"}


_NON_FINITE_ADVICE = {
    "data-nan": "drop these rows, fill them in, or observe the rest only: pyro.sample(..., "
    "obs=x.nan_to_num(), obs_mask=~x.isnan()) or poutine.mask",
    "data-inf": "look for log(0), a division by 0 or an overflow where the data are made, and drop "
    "or clip these rows",
}


def as_batch(batch: Any, device: torch.device | None) -> Any:
    """The batch as `fit` would hand it on: numpy arrays as tensors, tensors on the device."""
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        floating = torch.get_default_dtype() if batch.dtype.kind == "f" else None
        return torch.tensor(batch, dtype=floating, device=device)
    if isinstance(batch, Tensor):
        return batch if device is None or batch.device == device else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: as_batch(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = tuple(as_batch(value, device) for value in batch)
        # a named tuple, such as a PackedSequence, stays what it is
        return batch if all(a is b for a, b in zip(moved, batch, strict=True)) else moved
    return batch


def own_copy(batch: Any) -> Any:
    """The batch with memory of its own, so that programs that write into it change the copy."""
    if type(batch) is Tensor and not batch.requires_grad:
        return batch.clone()
    if isinstance(batch, Mapping):
        return {key: own_copy(value) for key, value in batch.items()}
    return type(batch)(map(own_copy, batch)) if type(batch) in (tuple, list) else batch


def rows_of(leaves: Leaves) -> int | None:
    """The number of data points: the length of the first tensor that has one."""
    return next((leaf.shape[0] for leaf in leaves.values() if leaf.dim()), None)


def empty_findings(leaves: Leaves) -> Iterator[Finding]:
    """Tensors without elements: no program can run on them."""
    for name, leaf in leaves.items():
        if leaf.numel() == 0:
            yield Finding(
                "error",
                "data-empty",
                None,
                name,
                f"it has shape {tuple(leaf.shape)} and no element",
                "at least one data point",
                "look where the data are read, filtered or split",
            )


def length_findings(leaves: Leaves) -> Iterator[Finding]:
    """Tensors with different numbers of rows."""
    lengths = {name: leaf.shape[0] for name, leaf in leaves.items() if leaf.dim()}
    if len(set(lengths.values())) > 1:
        yield Finding(
            "error",
            "data-lengths",
            None,
            "the batch",
            "different lengths: "
            + ", ".join(f"{name} has {n} rows" for name, n in lengths.items()),
            "the first dim of every tensor to count the same data points",
            "align the tensors, or hand what is no data to the programs by closure",
        )


def non_finite_findings(leaves: Leaves) -> Iterator[Finding]:
    """NaN and infinity in a batch that the programs could not digest."""
    for name, leaf in leaves.items():
        if not leaf.is_floating_point():
            continue
        for code, bad in (("data-nan", leaf.isnan()), ("data-inf", leaf.isinf())):
            if bool(bad.any()):
                yield _non_finite(code, name, None, _rows(bad), "the programs do not handle")


def _non_finite(code: str, where: str, site: str | None, rows: list[int], how: str) -> Finding:
    what = "NaN" if code == "data-nan" else "an infinite value"
    return Finding(
        "error",
        code,
        site,
        where,
        f"{what} in {rows_words(rows) if rows else 'its value'}, which {how}",
        "finite numbers",
        _NON_FINITE_ADVICE[code],
    )


def dtype_findings(leaves: Leaves, parameters: torch.dtype | None) -> Iterator[Finding]:
    """Data of another type than the parameters, where a program failed for it."""
    wanted = parameters or torch.get_default_dtype()
    for name, leaf in leaves.items():
        if leaf.dtype != wanted:
            yield Finding(
                "error",
                "data-dtype",
                None,
                name,
                f"{_short(leaf.dtype)} data beside {_short(wanted)} parameters",
                f"{_short(wanted)}",
                "pass x.real and x.imag"
                if leaf.is_complex()
                else f"convert the data: x.{CASTS.get(wanted, f'to(torch.{_short(wanted)})')}",
            )


def wide_findings(leaves: Leaves, parameters: torch.dtype | None) -> Iterator[Finding]:
    """float64 data beside narrower parameters that nothing refused: slow, and no gain."""
    if parameters is None:
        return
    for name, leaf in leaves.items():
        if leaf.is_floating_point() and leaf.dtype != parameters:
            yield Finding(
                "note",
                "data-dtype",
                None,
                name,
                f"{_short(leaf.dtype)} data beside {_short(parameters)} parameters: the "
                "programs ran, in mixed precision",
                f"{_short(parameters)}",
                f"convert the data once: x.to(torch.{_short(parameters)})",
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Rows:
    """Names the rows of what a model observes."""

    model: Survey
    numbers: Sequence[int] | None

    def of(self, p: Statement, bad: Tensor) -> list[int]:
        """Row numbers in the data plate, or along the first dim."""
        if bad.dim() == 0:
            return []
        batch = bad.dim() - len(p.fn.event_shape)
        dims = [dim for dim in p.plates if -dim <= batch]
        if not dims:
            return self._named(_rows(bad), len(bad))
        # the outermost plate holds the data
        outer = next(f for f in p.frames if f.dim in dims)
        axis = batch + (outer.dim or 0)
        found = _rows(bad.movedim(axis, 0))
        use = self.model.plates.get(outer.name)
        if use is not None and use.indices is not None and len(use.indices) < use.size:
            indices = use.indices.tolist()
            return sorted(indices[row] for row in found if row < len(indices))
        return self._named(found, bad.shape[axis])

    def _named(self, rows: list[int], length: int) -> list[int]:
        if self.numbers is None or len(self.numbers) != length:
            return rows
        return sorted(self.numbers[row] for row in rows)


def observation_findings(model: Survey, numbers: Sequence[int] | None = None) -> Iterator[Finding]:
    """Observed values that are not finite, or that their likelihood cannot give.

    Args:
        model: on a batch.
        numbers: of the batch's rows in the data set; None: rows are counted in the batch.
    """
    rows = _Rows(model, numbers)
    for statement in model.statements.values():
        if statement.observed and not statement.factor and isinstance(statement.value, Tensor):
            try:
                shown = _visible(statement)
            except RuntimeError:  # shapes that do not broadcast are another finding
                continue
            yield from _observed(statement, statement.value, shown, rows)


def _observed(p: Statement, value: Tensor, shown: Tensor, rows: _Rows) -> Iterator[Finding]:
    shown = shown.expand(value.shape)
    masks = masks_of(p.fn, p.mask)  # a mask of False alone is meant so
    if any(isinstance(mask, Tensor) for _, mask in masks) and not bool(shown.any()):
        yield _all_masked(p)
    if value.is_floating_point():
        nan, inf = value.isnan(), value.isinf()
        if bool((nan & shown).any()):
            yield _non_finite("data-nan", place(p), p.name, rows.of(p, nan & shown), "it observes")
            return
        if bool((nan & ~shown).any()):
            yield _behind_mask(p, rows.of(p, nan))
        if bool((inf & shown).any()):
            yield _non_finite("data-inf", place(p), p.name, rows.of(p, inf & shown), "it observes")
            return
    elif _continuous(p):
        yield _whole_numbers(p)
    yield from _outside(p, value, shown, rows)


def _all_masked(p: Statement) -> Finding:
    return Finding(
        "note",
        "nothing-observed",
        p.name,
        place(p),
        "every value of this batch is behind the mask, so it teaches nothing",
        "values that count, in this batch or another",
        "nothing to do if other batches have some; else look at the mask: True means that a value "
        "counts",
    )


def _behind_mask(p: Statement, rows: list[int]) -> Finding:
    return Finding(
        "note",
        "nan-behind-mask",
        p.name,
        place(p),
        f"NaN behind the mask in {rows_words(rows) if rows else 'its value'}",
        "nothing else: masked observations are replaced before their density is asked for",
        "nothing to do, unless a network sees these values too",
    )


def _continuous(p: Statement) -> bool:
    found = support_range(p.fn)
    return isinstance(found, Range) and not found.whole


def _whole_numbers(p: Statement) -> Finding:
    return Finding(
        "warning",
        "data-dtype",
        p.name,
        place(p),
        f"{_short(p.value.dtype)} observations under {family(p)}, a continuous distribution",
        "floating-point observations, or a distribution of counts or categories",
        "convert the data with x.float(), or take Poisson, Binomial or Categorical",
    )


def _outside(p: Statement, value: Tensor, shown: Tensor, known: _Rows) -> Iterator[Finding]:
    if unchecked(p.fn):
        return
    outside = _impossible(p, value)
    if outside is None or outside.shape != value.shape[: outside.dim()]:
        return
    wide = outside.reshape(outside.shape + (1,) * (value.dim() - outside.dim()))
    bad = wide.expand(value.shape) & shown
    if not bool(bad.any()):
        return
    rows = known.of(p, bad)
    yield Finding(
        "error",
        "data-support",
        p.name,
        place(p),
        f"{rows_words(rows) if rows else 'the observed value'} outside the support of "
        f"{family(p)}: {range_words(value[bad])}",
        support_words(p.fn),
        _support_advice(p, value),
    )


def _impossible(p: Statement, value: Tensor) -> Tensor | None:
    """Outside the support, or on its edge where the density is 0 or infinite."""
    outside = outside_elements(p.fn, value)
    found = support_range(p.fn)
    if outside is None or found is None or found.whole or outside.shape != value.shape:
        return outside
    edge = (value == found.low) | (value == found.high)
    if not bool(edge.any()):
        return outside
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            density = p.fn.log_prob(value)
        wide = ~density.isfinite().reshape(density.shape + (1,) * len(p.fn.event_shape))
        return outside | (edge & wide)
    except (ValueError, RuntimeError):  # shapes are another finding
        return outside


def _support_advice(p: Statement, value: Tensor) -> str:
    law = family(p)
    low, high = float(value.min()), float(value.max())
    if law == "Bernoulli" and 0 <= low and high <= 1:
        return (
            "binarize the data, (x > 0.5).float(); grey values in a Bernoulli are no likelihood, "
            "but are let through with dist.Bernoulli(..., validate_args=False)"
        )
    if law == "Bernoulli" and 0 <= low and high <= 255:
        return "scale and binarize the data: (x / 255 > 0.5).float()"
    if support_words(p.fn).startswith("probabilities"):
        return "divide each row by its sum: x / x.sum(-1, keepdim=True)"
    if law in ("Categorical", "OrderedLogistic"):
        return f"number the categories from 0: the least label is {low:g}, the greatest {high:g}"
    if law == "Multinomial":
        return (
            "give total_count= the greatest sum of counts in a row, int(x.sum(-1).max()), and no "
            "counts below 0"
        )
    if law == "Bernoulli":
        return "code the two outcomes as 0 and 1"
    if law == "Binomial":
        return "compare the counts with total_count: successes are among the trials"
    return (
        "clean the data, mask missing values that are coded as numbers (obs_mask=), or take a "
        f"likelihood that allows these; {law} wants {_wants(p)}"
    )


def _wants(p: Statement) -> str:
    found = support_range(p.fn)
    if found is not None and found.low == 0 and not found.whole and found.high == float("inf"):
        return "positive numbers"
    return support_words(p.fn)


def _visible(statement: Statement) -> Tensor:
    """Which elements of an observed value count, broadcastable to the value."""
    visible = torch.ones(statement.value.shape, dtype=torch.bool, device=statement.value.device)
    for law, mask in masks_of(statement.fn, statement.mask):
        if isinstance(mask, Tensor):
            wide = mask.reshape(mask.shape + (1,) * len(law.event_shape))
            # a value shared by several rows counts if one of them shows it
            while wide.dim() > visible.dim():
                wide = wide.any(0)
            visible = visible & wide
        elif mask is False:
            visible = torch.zeros_like(visible)
    return visible


def _rows(bad: Tensor) -> list[int]:
    if bad.dim() == 0:
        return []
    return bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist()
