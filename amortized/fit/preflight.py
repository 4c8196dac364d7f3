"""What is looked at before the first step: the programs on some data, and the data themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from amortized.checks.check import inspect_pair
from amortized.checks.data import own_copy
from amortized.checks.places import names_words
from amortized.checks.report import Finding, Report
from amortized.checks.sizes import lacks_data_plate, row_parameters, size_finding
from amortized.errors import CheckWarning, DataError, ProgramError
from amortized.fit.data import Batches, batch_length, peeked, structure_of
from amortized.fit.plan import Plan
from amortized.fit.rng import preserved_rng
from amortized.fit.step import Stepper
from amortized.programs.batches import leaves_of
from amortized.programs.records import DataPlate

_SHOWN = 3
_AT_ONCE = 64
_WHOSE: Final = MappingProxyType({"val": "validation", "test": "test"})


def preflight(stepper: Stepper, plan: Plan) -> bool:
    """Checks pair and data, as far as data can be looked at without using them up.

    Returns whether the pair was checked; if not, it should be on the first batch of training.

    Raises:
        DataError: validation data of another structure, or data of either kind that are not finite,
            by row.
        AmortizedError: what else the check found.
    """
    # a name alone leaves the size of the plate to be counted
    counted = plan.data.name is not None and plan.data.size == plan.train.size
    plan = replace(plan, data=replace(plan.data, counted=counted or plan.data.counted))
    with preserved_rng():
        # copies: programs that write into a batch must not write into the data through a slice
        first = own_copy(peeked(plan.train, "train"))
        val = None if plan.val is None else own_copy(peeked(plan.val, "val"))
    if first is None:
        return False
    if val is not None and structure_of(val) != structure_of(first):
        raise DataError(
            f"val: found {structure_of(val)} where train is {structure_of(first)}; the programs "
            "take the same arguments from both: pass validation data of the same structure"
        )
    check_pair(stepper, first, plan.data)

    def report(batch: Any) -> Report:
        return report_of(stepper, batch, plan.data)

    refuse(non_finite_finding(plan.train, batch_length(first), report))
    if plan.val is not None and val is not None:
        _check_val(stepper, plan, first, val)
        refuse(non_finite_finding(plan.val, batch_length(val), report, "val"))
    _check_data_plate(stepper, plan, first)
    _check_last_batch(stepper, plan, first)
    _check_row_parameters(stepper, plan, first)
    return True


def report_of(stepper: Stepper, batch: Any, data: DataPlate) -> Report:
    """What the check finds in a pair and a batch; nothing moves."""
    data = replace(data, rows=batch_length(batch))
    with stepper.parameters.scope():
        return inspect_pair(stepper.model, stepper.guide, batch, stepper.loss, data)


def check_pair(stepper: Stepper, batch: Any, data: DataPlate) -> None:
    """Looks for mistakes in a pair and a batch; warns of what training can live with.

    Raises:
        AmortizedError: of the kind of the first mistake, naming all of them.
    """
    report = report_of(stepper, batch, data)
    report.raise_errors()
    for finding in report.warnings:
        warnings.warn(str(finding), CheckWarning, stacklevel=2)


def other_size(stepper: Stepper, first: Any, second: Any, data: DataPlate) -> Finding | None:
    """What the check finds on a second batch of another size."""
    batches = stepper.placed(first), stepper.placed(second)
    with stepper.parameters.scope():
        return size_finding(stepper.model, stepper.guide, batches, stepper.loss, data)


def _check_val(stepper: Stepper, plan: Plan, first: Any, val: Any) -> None:
    """Validation data of another shape or type, where the programs fail on them."""
    ours, theirs = kinds_of(first), kinds_of(val)
    finding = None if ours == theirs else other_size(stepper, first, val, plan.data)
    if finding is not None:
        raise DataError(
            f"val: found {theirs} where train has {ours}, and with that {finding.found}; expected "
            "data on which the programs run; pass validation data of the same shape and type"
        ) from finding.error


def kinds_of(batch: Any) -> str:
    """Shapes, without the number of rows, and types."""
    tensors = leaves_of(batch).values()
    shapes = ((", ".join(["*", *map(str, t.shape[1:])]), t.dtype) for t in tensors)
    return ", ".join(f"({shape}) {str(kind).removeprefix('torch.')}" for shape, kind in shapes)


def non_finite_finding(
    data: Batches, usual: int, report: Callable[[Any], Report], name: str = ""
) -> Finding | None:
    """NaN and infinity anywhere: only the programs know whether they are masked.

    Args:
        data: those that can be looked at are, see `Batches.non_finite_rows`.
        usual: rows of a batch.
        report: what the check finds in a batch.
        name: of the data, where they are not the training data.
    """
    rows = data.non_finite_rows()
    if not rows:
        return None
    # among others, as in a batch of training: programs may want as many rows as they get there
    few = rows[: min(_AT_ONCE, usual)]
    others = (row for row in range(data.size or 0) if row not in few)
    batch = data.rows([*few, *islice(others, usual - len(few))])
    codes = ("data-nan", "data-inf", "nan-behind-mask")
    bad = [finding for finding in report(batch).errors if finding.code in codes]
    if not bad:
        return None
    worst = next((finding for finding in bad if finding.site is not None), bad[0])
    where, whose = (f"{name}: ", f"the {_WHOSE[name]} data") if name else ("", "the data set")
    return replace(
        worst,
        where=f"{where}{worst.where}",
        found=f"NaN or infinity in {_named(rows)} of {whose}",
        expected="finite numbers",
    )


def refuse(finding: Finding | None) -> None:
    """Raise for data that are wrong.

    Raises:
        DataError: the finding as a sentence.
    """
    if finding is not None:
        raise DataError(str(finding)) from finding.error


def _check_data_plate(stepper: Stepper, plan: Plan, first: Any) -> None:
    """Without a data plate every minibatch counts as the whole data set."""
    size, rows = plan.train.size, batch_length(first)
    if size is None or rows >= size:
        return
    with stepper.parameters.scope():
        lacking = lacks_data_plate(stepper.model, stepper.guide, stepper.placed(first))
    if lacking:
        warnings.warn(
            f"no plate holds the observations, so each minibatch of {rows} rows counts as the "
            f"whole data set of {size}, and global latents are charged {-(-size // rows)} times an "
            "epoch; put the observations into pyro.plate('data', len(x)), or pass all data at once",
            CheckWarning,
            stacklevel=2,
        )


def _check_last_batch(stepper: Stepper, plan: Plan, first: Any) -> None:
    """A batch of every size that will come: the last one may be short."""
    size, rows = plan.train.size, batch_length(first)
    short = 0 if size is None else size % rows
    last = own_copy(peeked(plan.train, "train", short)) if short else None
    if last is not None:
        finding = other_size(stepper, first, last, plan.data)
        if finding is not None:
            raise ProgramError(str(finding)) from finding.error


def _check_row_parameters(stepper: Stepper, plan: Plan, first: Any) -> None:
    """Where all batches have one size, a parameter with their rows serves other rows each time."""
    size, rows = plan.train.size, batch_length(first)
    if size is None or size <= rows or size % rows or rows == 1:
        return
    with stepper.parameters.scope():
        names = row_parameters(stepper.model, stepper.guide, stepper.placed(first), rows)
    fewer = own_copy(peeked(plan.train, "train", rows - 1))
    if names and other_size(stepper, first, fewer, plan.data) is not None:
        warnings.warn(
            f"parameter {names_words(names)} has a row for each of the {rows} rows of a batch, and "
            f"the programs fail on {rows - 1}: rows of other batches of the {size} would share it; "
            "use a network of x, or parameters of all data in a plate with subsample=",
            CheckWarning,
            stacklevel=2,
        )


def _named(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'' if len(rows) == 1 else 's'} {shown}{more}"
