"""Data at fault: the rows for which a step or an evaluation was refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from amortized.checks.check import inspect_observations
from amortized.checks.gradients import backward_advice, first_words
from amortized.checks.report import Finding
from amortized.errors import AmortizedError, DataError, NonFiniteError, ProgramError
from amortized.fit.data import Batches
from amortized.fit.step import Stepper
from amortized.programs.run import Program

# of NaN and infinity in the data the table of a `NonFiniteError` tells
_OF_A_LOSS: Final = ("data-support",)


@contextmanager
def located(
    place: Callable[[], str],
    blame: Callable[[AmortizedError], DataError | None] = lambda error: None,
) -> Iterator[None]:
    """Errors of the programs say where training stood; `NonFiniteError` is told by its policy.

    Args:
        place: where training stands, in words.
        blame: finds the data that are at fault for an error, as `data_culprit` does.

    Raises:
        DataError: instead of the error, if data are.
        ProgramError: instead of what torch says of a gradient that the programs made impossible.
    """
    try:
        yield
    except AmortizedError as error:
        found = blame(error)
        if found is not None:
            raise DataError(f"{place()}: {found}") from error
        if not isinstance(error, NonFiniteError):
            error.args = (f"{place()}: {error.args[0]}", *error.args[1:])
        raise
    except RuntimeError as error:
        _refuse_gradient(place(), error)
        raise


@contextmanager
def blamed_on(batches: Batches, stepper: Stepper) -> Iterator[None]:
    """While test data are evaluated: what the programs refuse is looked for among them.

    Raises:
        DataError: instead of what was raised inside, naming the rows.
    """
    try:
        yield
    except ProgramError as error:
        with stepper.parameters.scope():
            found = culprit_among((stepper.model, stepper.guide), batches)
        if found is None:
            raise
        raise DataError(f"test: {found}") from error


@contextmanager
def blamed_on_batch(batch: Any, stepper: Stepper) -> Iterator[None]:
    """While a lone step is taken: what it is refused for is looked for in its batch.

    Raises:
        DataError: naming the rows, if values that the model observes are at fault.
        ProgramError: instead of what torch says of a gradient that the programs made impossible.
    """
    try:
        yield
    except AmortizedError as error:
        found = data_culprit(stepper, batch, error)
        if found is not None:
            raise found from error
        raise
    except RuntimeError as error:
        _refuse_gradient(f"step {stepper.steps + 1}", error)
        raise


def _refuse_gradient(place: str, error: RuntimeError) -> None:
    advice = backward_advice(error)
    if advice is not None:
        raise ProgramError(
            f"{place}: torch cannot take the gradient of the loss: {first_words(error)}; "
            f"expected programs whose results can be differentiated; {advice}"
        ) from error


def data_culprit(
    stepper: Stepper,
    batch: Any,
    error: AmortizedError,
    numbers: Callable[[], Sequence[int] | None] = lambda: None,
) -> DataError | None:
    """The rows of a batch that are at fault for an error, if values that the model observes are.

    Args:
        stepper: the pair.
        batch: what it ran on.
        error: what a step or an evaluation raised.
        numbers: gives those of the batch's rows in the data set, or None.
    """
    if not isinstance(error, ProgramError | NonFiniteError):
        return None
    codes = _OF_A_LOSS if isinstance(error, NonFiniteError) else None
    with stepper.parameters.scope():
        found = observed_finding((stepper.model, stepper.guide), batch, numbers(), codes)
    return None if found is None else DataError(str(found))


def observed_finding(
    programs: tuple[Program, Program],
    batch: Any,
    numbers: Sequence[int] | None,
    codes: Sequence[str] | None = None,
) -> Finding | None:
    """The first thing wrong with what the model observes in a batch; None if nothing is.

    Args:
        programs: model and guide, whose parameters are Pyro's current ones.
        batch: the data.
        numbers: of its rows in the data set; None: rows are counted in the batch.
        codes: of findings that count; None: all.
    """
    findings = inspect_observations(*programs, batch, numbers)
    bad = [f for f in findings if codes is None or f.code in codes]
    if not bad:
        return None
    counted = "" if numbers is not None else " (rows of this batch)"
    return replace(bad[0], found=f"{bad[0].found}{counted}")


def culprit_among(
    programs: tuple[Program, Program], batches: Batches, most: int | None = None
) -> Finding | None:
    """The same of the first batch of a pass in order that is at fault; None if none is.

    Args:
        programs: as above.
        batches: the data.
        most: so many batches are looked at; None: all.
    """
    for place, batch in enumerate(itertools.islice(batches.epoch(), most), 1):
        found = observed_finding(programs, batch, batches.numbers(place))
        if found is not None:
            return found
    return None
