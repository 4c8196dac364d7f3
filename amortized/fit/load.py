"""Reads a fitted pair back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from amortized.errors import CheckpointError, UsageError
from amortized.fit import checkpoint
from amortized.fit.arguments import known_names
from amortized.fit.checkpoint import Checkpoint, listed
from amortized.fit.data import first_batch
from amortized.fit.folder import CHECKPOINTS
from amortized.fit.program import Program
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss

Pair = tuple[Callable[..., Any], Callable[..., Any]]


@known_names
def load(
    path: str | os.PathLike[str],
    program: Program | Pair,
    *,
    loss: VariationalLoss | None = None,
    batch: Any = None,
    which: Literal["last", "best"] = "last",
    monitor: str = "val_loss",
    mode: Literal["min", "max"] = "min",
    device: str | torch.device | None = None,
) -> SVI:
    """A fitted pair from a checkpoint: ``svi.model`` and ``svi.guide`` have its parameters.

    The programs come from the caller, and the file gives numbers only: nothing in it is run. For
    ``pyro.infer.Predictive`` and `SVI.evaluate`; to go on with an interrupted training, use
    ``fit(resume_from=path)``.

    Args:
        path: a checkpoint, a folder of them, or the folder that ``amortized fit --out`` wrote.
        program: what a program file returns, or ``(model, guide)``.
        loss: the loss it was trained with; then the estimators' state is read too.
        batch: one batch, so that programs can declare what they make on their first run; by
            default the first one of ``program.train``.
        which: of a folder, the newest checkpoint or the best.
        monitor: the metric that says which is the best.
        mode: ``"min"`` where smaller is better.
        device: where the pair is moved; files from a GPU open anywhere.

    Raises:
        CheckpointError: no good checkpoint, or one of another program, named by parameter.
        UsageError: neither a program nor a pair.

    >>> import pyro, pyro.distributions as dist, tempfile
    >>> def model(x):
    ...     loc = pyro.param("loc", torch.tensor(0.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    >>> def guide(x): pass
    >>> x, svi = torch.ones(3), SVI(model, guide, lr=0.1)
    >>> loss = svi.step(x)
    >>> path = svi.save(tempfile.mkdtemp())
    >>> load(path, (model, guide), batch=x).params()
    {'loc': tensor(0.1000)}
    """
    model, guide = _pair(program)
    found = _chosen(_checkpoints(Path(path)), which, monitor, mode)
    svi = SVI(model, guide, loss, device=device)
    first = batch
    if first is None and isinstance(program, Program):
        first = first_batch(program.train)
    svi.load(found, first, estimators=loss is not None)
    return svi


def _pair(program: Program | Pair) -> Pair:
    if isinstance(program, Program):
        return program.model, program.guide
    if isinstance(program, tuple) and len(program) == 2 and all(map(callable, program)):
        return program
    raise UsageError(
        f"program: found {type(program).__name__}; expected am.Program(...) or (model, guide)"
    )


def _checkpoints(path: Path) -> Path:
    """Of a run's folder, the one inside that holds its checkpoints."""
    inside = path / CHECKPOINTS
    return inside if not listed(path) and listed(inside) else path


def _chosen(path: Path, which: str, monitor: str, mode: str) -> Checkpoint:
    if which not in ("last", "best"):
        raise UsageError(f"which={which!r}: expected 'last' or 'best'")
    if mode not in ("min", "max"):
        raise UsageError(f"mode={mode!r}: expected 'min' or 'max'")
    if which == "last":
        return checkpoint.read(path)
    for folder in _ranked(path, monitor, 1.0 if mode == "min" else -1.0):
        with suppress(CheckpointError):  # a damaged one is not the best
            return checkpoint.read(folder)
    raise CheckpointError(
        f"{path}: no checkpoint records {monitor!r}, so none is the best; pass "
        "which='last', or monitor= another key of the history"
    )


def _ranked(root: Path, monitor: str, sign: float) -> list[Path]:
    """The best first, of equals the earliest."""
    scores: dict[Path, float] = {}
    for folder in listed(root):
        with suppress(CheckpointError):
            value = sign * checkpoint.about(folder)["metrics"].get(monitor, math.nan)
            scores |= {} if math.isnan(value) else {folder: value}
    return sorted(scores, key=scores.__getitem__)
