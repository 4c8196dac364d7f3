"""A lone step, whose batch is this process's part of that of all where several train together."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from amortized.errors import CheckWarning, NonFiniteError
from amortized.fit.alike import refuse_totals, refuse_unshared, share_optimizer
from amortized.fit.data import batch_length
from amortized.fit.digests import digest_of
from amortized.fit.distributed import Group, current_group
from amortized.fit.reduction import Reduction
from amortized.fit.step import Stepper
from amortized.programs.records import DataPlate


def lone_step(stepper: Stepper, batch: Any, data: DataPlate) -> float:
    """One optimizer step on the rows of all processes; the loss per data point of their batch.

    Raises:
        NonFiniteError: in every process, if the loss is not finite in one.
        WorkerError: another process failed.
    """
    group = current_group()
    if group.alone:
        stepper.reduction = None
        return stepper.step(batch, data)
    rows = batch_length(batch)
    reduction = stepper.reduction
    if reduction is None or reduction.group != group:
        reduction = stepper.reduction = _started(stepper, batch, group)
    if data.size is None:  # a plate that declares its rows alone has those of all processes
        data = replace(data, size=sum(group.gathered(rows)))
    reduction.had_a_batch, reduction.loss = True, 0.0
    try:
        if rows:
            terms = stepper.accumulate(batch, data, weight=float(rows))
            refuse_totals(terms, batch, group)
            reduction.loss = float(terms.values["loss"]) * rows
    except Exception as error:
        reduction.error = error
    try:
        stepper.apply()
    except NonFiniteError as error:
        sentence = f"step {stepper.steps + 1}: {error.args[0]}"
        raise NonFiniteError(sentence, error.table) from error
    return reduction.loss


def _started(stepper: Stepper, batch: Any, group: Group) -> Reduction:
    """Parameters exist, and are those of the first process."""
    refuse_unshared(group, stepper.loss.objective)
    told = group.gathered(batch_length(batch))
    if not all(told):  # programs do not run without rows
        others = group.gathered(batch)
        batch = batch if told[group.rank] else others[told.index(max(told))]
    group.agreed(lambda: stepper.warm_up(batch))
    reduction = Reduction(group)
    reduction.start(stepper.part())
    share_optimizer(group, stepper)
    streams = group.gathered(digest_of(torch.get_rng_state()))
    if len(set(streams)) < group.size and group.writes:
        warnings.warn(
            f"some of the {group.size} processes draw the same noise: seed each with a number of "
            "its own, pyro.set_rng_seed(seed + torch.distributed.get_rank())",
            CheckWarning,
            stacklevel=2,
        )
    return reduction
