"""What the figures show of a fitted pair whose data points are images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from amortized.estimators.base import TorchNoise
from amortized.fit.data import batch_length
from amortized.fit.parameters import evaluation_mode
from amortized.programs.batches import as_arguments
from amortized.programs.handlers import Context, GuideHandler
from amortized.programs.modules import modules_of
from amortized.programs.records import Layout, SiteRecord
from amortized.programs.replay import ModelHandler
from amortized.programs.run import execute, run_pair, with_room

Program = Callable[..., Any]
Records = Mapping[str, SiteRecord]
T = TypeVar("T")


def posterior_run(model: Program, guide: Program, batch: Any) -> tuple[Records, Records]:
    """Sites of the guide and of the model with plain draws from the guide; no gradients."""
    args, kwargs = as_arguments(batch)

    def run(context: Context) -> tuple[Records, Records]:
        found = run_pair(model, guide, args, kwargs, context)
        return found.guide, found.model

    return _plainly(run, (model, guide))


def prior_run(model: Program, batch: Any) -> Records:
    """Sites of the model with its latents drawn from their priors; no gradients."""
    args, kwargs = as_arguments(batch)

    def run(context: Context) -> Records:
        # Without a guide to replay, the model takes that part itself.
        handler = GuideHandler(context, runs_model=True)
        drawn = execute(model, args, kwargs, handler, context)
        values = {name: r.value for name, r in drawn.records.items() if not r.observed}
        replay = ModelHandler(context, values, drawn.subsamples)
        return execute(model, args, kwargs, replay, context).records

    return _plainly(run, (model,))


def reconstructed(
    model: Program, guide: Program, batch: Any, shape: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Images and the means of p(x | z) with z from the guide, ``[B, height, width]`` each.

    None where no observed site holds images of this shape.
    """
    record = _observed_images(posterior_run(model, guide, batch)[1], shape)
    if record is None:
        return None
    return record.value.reshape(-1, *shape), _mean(record).reshape(-1, *shape)


def imagined(model: Program, batch: Any, shape: tuple[int, int]) -> Tensor | None:
    """Means of p(x | z) with z from the prior, one for each data point of ``batch``."""
    record = _observed_images(prior_run(model, batch), shape)
    return None if record is None else _mean(record).reshape(-1, *shape)


def codes(model: Program, guide: Program, batch: Any) -> Tensor | None:
    """The means of the largest continuous latent that has one value a data point, ``[B, d]``."""
    rows = batch_length(batch)
    records = posterior_run(model, guide, batch)[0].values()
    fitting = [r for r in records if not r.observed and _is_code(r, rows)]
    if not fitting:
        return None
    return _mean(max(fitting, key=lambda record: record.value.numel())).reshape(rows, -1)


def _plainly(run: Callable[[Context], T], programs: Iterable[Program]) -> T:
    """Runs in eval mode without gradients, with as many plate dims as the programs need."""
    modules = modules_of(*programs)

    def attempt(room: int) -> T:
        with evaluation_mode(*modules):
            return run(Context(Layout(room), TorchNoise()))

    return with_room(0, attempt)[0]


def _mean(record: SiteRecord) -> Tensor:
    """The mean, or the draw where the distribution does not know its mean."""
    with torch.no_grad():  # distributions compute it only now
        try:
            return record.fn.mean.detach()
        except NotImplementedError:
            return record.value.detach()


def _is_code(record: SiteRecord, rows: int) -> bool:
    per_datum = record.fn.batch_shape == (rows,) and rows > 1
    return per_datum and not record.fn.support.is_discrete


def _observed_images(records: Records, shape: tuple[int, int]) -> SiteRecord | None:
    for record in records.values():
        batch = record.fn.batch_shape.numel()
        size = batch * math.prod(shape)
        if record.observed and not record.auxiliary and batch and record.value.numel() == size:
            return record
    return None
