"""All data of a program, for the command line: looked at before training, or when it failed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pyro
import torch
from torch import Tensor

from amortized.checks.check import inspect_pair
from amortized.checks.data import as_batch, own_copy
from amortized.checks.inventory import device_of
from amortized.checks.isolation import isolated
from amortized.checks.report import Finding, Report
from amortized.errors import DataError, ProgramError
from amortized.fit.culprits import culprit_among
from amortized.fit.data import as_batches, first_batch
from amortized.fit.parameters import evaluation_mode
from amortized.fit.preflight import kinds_of, non_finite_finding, refuse
from amortized.fit.program import Program
from amortized.fit.rng import seeded
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss
from amortized.programs.batches import as_arguments
from amortized.programs.survey import survey_guide, survey_model

_ROWS: Final = 128
# A pass over 60,000 rows, in a second or two.
_BATCHES: Final = 500


def try_test(svi: SVI, batch: Any, test: Any) -> None:
    """Refuse test data of another shape than a batch of training data, if the programs fail on it.

    Raises:
        DataError: saying what differs, and how the programs fail.
    """
    if test is None:
        return
    first = first_batch(test)
    ours, theirs = kinds_of(batch), kinds_of(first)
    if ours == theirs:
        return
    with svi.scope():
        device = device_of(svi.model, svi.guide)
    args, kwargs = as_arguments(as_batch(first, device))
    try:
        with seeded(0), evaluation_mode(svi.guide, svi.model), pyro.validation_enabled(False):
            for program in (svi.guide, svi.model):
                program(*args, **kwargs)
    except Exception as error:
        raise DataError(
            f"test: found {theirs} where train has {ours}, and the programs fail on it: "
            f"{type(error).__name__}: {error}; expected data on which they run; pass test data of "
            "the same shape and type"
        ) from error


def refuse_image_shape(svi: SVI, batch: Any, shape: Any) -> None:
    """Refuse an ``image_shape`` that the data points of no observed site have.

    Raises:
        ProgramError: saying which numbers of pixels there are.
    """
    if shape is None:
        return
    sides = shape if isinstance(shape, tuple | list) else ()
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ProgramError(
            f"image_shape={shape!r}: expected (height, width), two whole numbers, or None where "
            "data points are no images"
        )
    sizes = _observed_sizes(svi, batch)
    if math.prod(shape) not in sizes.values():
        found = ", ".join(f"site {name!r} has {size}" for name, size in sizes.items())
        raise ProgramError(
            f"image_shape={tuple(shape)}: found {found or 'no observed site'}; expected an "
            f"observed site of {math.prod(shape)} numbers a data point; give the height and width "
            "of one image, or None"
        )


def _observed_sizes(svi: SVI, batch: Any) -> dict[str, int]:
    """How many numbers a data point of each observed site has."""
    programs = svi.model.program, svi.guide.program
    with svi.scope(), isolated(*programs), torch.no_grad():
        args, kwargs = as_arguments(own_copy(as_batch(batch, device_of(*programs))))
        seen = survey_model(programs[0], args, kwargs, survey_guide(programs[1], args, kwargs))
    return {
        name: s.value.numel() // max(1, s.fn.batch_shape.numel())
        for name, s in seen.statements.items()
        if s.observed and not s.auxiliary and isinstance(s.value, Tensor)
    }


def refuse_test(svi: SVI, test: Any) -> None:
    """Refuse test data with NaN or infinity that the programs do not mask.

    Raises:
        DataError: naming the rows.
    """
    if test is not None:
        with svi.scope():
            refuse(_non_finite(Program(svi.model.program, svi.guide.program, ()), test, svi.loss))


def refuse_culprit(svi: SVI, test: Any) -> None:
    """After an evaluation without a finite number: refuse test data that the likelihood excludes.

    Raises:
        DataError: naming the rows.
    """
    with svi.scope():
        found = culprit_among((svi.model.program, svi.guide.program), as_batches(test))
    if found is not None:
        raise DataError(f"test: {found}")


def data_findings(
    program: Program, loss: VariationalLoss, batch_size: int = _ROWS
) -> Iterator[Finding]:
    """What is wrong with all data of a program that can be looked at without using them up.

    Of each kind of data the first mistake: NaN and infinity anywhere, then, in so many batches at
    most, values that the likelihood excludes.
    """
    for name, data in (("", program.train), ("val", program.val), ("test", program.test)):
        if data is None:
            continue
        found = _non_finite(program, data, loss, name, batch_size)
        batches = as_batches(data, batch_size)
        if found is None and batches.numbers(1) is not None:
            found = culprit_among((program.model, program.guide), batches, _BATCHES)
            found = replace(found, where=f"{name}: {found.where}") if found and name else found
        if found is not None:
            yield found


def _non_finite(
    program: Program, data: Any, loss: VariationalLoss, name: str = "test", rows: int = _ROWS
) -> Finding | None:
    def report(batch: Any) -> Report:
        return inspect_pair(program.model, program.guide, batch, loss)

    batches = as_batches(data, rows)
    return non_finite_finding(batches, min(rows, batches.size or 1), report, name)
