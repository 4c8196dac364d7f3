"""A second batch of another size, as the last one of an epoch often is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from amortized.checks.data import rows_of
from amortized.checks.isolation import isolated
from amortized.checks.places import shortened
from amortized.checks.report import Finding
from amortized.loss import VariationalLoss
from amortized.programs.batches import aliases, as_arguments, leaves_of
from amortized.programs.records import DataPlate
from amortized.programs.run import Program
from amortized.programs.survey import survey_guide, survey_model


def size_finding(
    model: Program,
    guide: Program,
    batches: tuple[Any, Any],
    loss: VariationalLoss,
    data: DataPlate = DataPlate(),
) -> Finding | None:
    """What goes wrong on a second batch, with the parameters that the first one made.

    The pair was found right on the first. Nothing is left behind.
    """
    loss = copy.deepcopy(loss)
    # copies and particles were compared on the first batch
    with isolated(model, guide), torch.no_grad(), loss.looking("never"):
        for number, batch in enumerate(batches):
            args, kwargs = aliases(*as_arguments(batch))
            rows = rows_of(leaves_of(batch))
            try:
                loss.estimate(model, guide, args, kwargs, data=replace(data, rows=rows))
            except Exception as error:
                if number == 0:
                    return None
                first, second = (rows_of(leaves_of(batch)) for batch in batches)
                return _finding(first, second, error)
    return None


def lacks_data_plate(model: Program, guide: Program, batch: Any) -> bool:
    """Whether the model observes something, and no plate holds what it observes."""
    args, kwargs = aliases(*as_arguments(batch))
    with isolated(model, guide), torch.no_grad():
        run = survey_model(model, args, kwargs, survey_guide(guide, args, kwargs))
    observed = [s for s in run.statements.values() if s.observed]
    return bool(observed) and not any(s.frames for s in observed)


def row_parameters(model: Program, guide: Program, batch: Any, rows: int) -> list[str]:
    """The names of ``pyro.param`` statements whose parameters have a dim of so many rows."""
    args, kwargs = aliases(*as_arguments(batch))
    with isolated(model, guide), torch.no_grad():
        drawn = survey_guide(guide, args, kwargs)
        pair = drawn, survey_model(model, args, kwargs, drawn)
    announced = [a for survey in pair for a in survey.announced if "$$$" not in a.name]
    return list(dict.fromkeys(a.name for a in announced if rows in a.leaf.shape))


def _finding(first: int | None, second: int | None, error: Exception) -> Finding:
    return Finding(
        "error",
        "batch-size",
        None,
        f"a batch of {second} rows, after one of {first}",
        shortened(f"it fails: {type(error).__name__}: {error}"),
        "programs that take batches of every size: the last one of an epoch may be short",
        "give nothing the size of a minibatch: plates of len(x), and no pyro.param with a row for "
        "each row of the batch (use a network of x, or parameters of all data in a plate with "
        "subsample=)",
        error,
    )
