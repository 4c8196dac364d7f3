"""What the figures show of a fitted pair whose data points are images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from amortized.estimators.base import TorchNoise
from amortized.fit.data import batch_length
from amortized.fit.parameters import evaluation_mode
from amortized.programs.batches import as_arguments
from amortized.programs.handlers import Context, DeeperPlatesError
from amortized.programs.records import Layout, Run, SiteRecord
from amortized.programs.run import run_pair

Program = Callable[..., Any]


def plain_run(model: Program, guide: Program, batch: Any) -> Run:
    """One plain draw of every latent from the guide, replayed in the model; no gradients."""
    args, kwargs = as_arguments(batch)
    modules = [program for program in (model, guide) if isinstance(program, nn.Module)]
    nesting = 0
    while True:
        context = Context(Layout(nesting), TorchNoise())
        try:
            with evaluation_mode(*modules):
                return run_pair(model, guide, args, kwargs, context)
        except DeeperPlatesError as deeper:
            nesting = deeper.nesting


def reconstructed(
    model: Program, guide: Program, batch: Any, shape: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Images and the means of p(x | z) with z from the guide, ``[B, height, width]`` each.

    None where no observed site holds images of this shape.
    """
    record = _observed_images(plain_run(model, guide, batch).model, shape)
    if record is None:
        return None
    return record.value.reshape(-1, *shape), record.fn.mean.reshape(-1, *shape)


def imagined(model: Program, batch: Any, shape: tuple[int, int]) -> Tensor | None:
    """Means of p(x | z) with z from the prior, one for each data point of ``batch``."""
    # A model that guides itself draws its latents from their priors.
    record = _observed_images(plain_run(model, model, batch).model, shape)
    return None if record is None else record.fn.mean.reshape(-1, *shape)


def codes(model: Program, guide: Program, batch: Any) -> Tensor | None:
    """The means of the largest continuous latent that has one value a data point, ``[B, d]``."""
    rows = batch_length(batch)
    records = plain_run(model, guide, batch).guide.values()
    fitting = [r for r in records if not r.observed and _is_code(r, rows)]
    if not fitting:
        return None
    largest = max(fitting, key=lambda record: record.value.numel())
    return largest.fn.mean.reshape(rows, -1)


def _is_code(record: SiteRecord, rows: int) -> bool:
    per_datum = record.fn.batch_shape == (rows,) and rows > 1
    return per_datum and not record.fn.support.is_discrete


def _observed_images(records: Mapping[str, SiteRecord], shape: tuple[int, int]) -> Any:
    for record in records.values():
        batch = record.fn.batch_shape.numel()
        size = batch * math.prod(shape)
        if record.observed and not record.auxiliary and batch and record.value.numel() == size:
            return record
    return None
