"""The check of a pair before training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch.utils.data import DataLoader, Dataset

from amortized.checks.data import as_batch, empty_findings, observation_findings, own_copy
from amortized.checks.examination import Examination
from amortized.checks.inventory import collision_findings, device_findings, device_of, frozen_in
from amortized.checks.isolation import isolated
from amortized.checks.report import Finding, Report
from amortized.errors import UsageError
from amortized.loss import VariationalLoss
from amortized.programs.batches import as_arguments, leaves_of
from amortized.programs.records import DataPlate
from amortized.programs.run import Program
from amortized.programs.survey import survey_guide, survey_model


def check(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    loss: VariationalLoss | None = None,
    data_plate: str | DataPlate | None = None,
) -> Report:
    """Look for mistakes in a model, its guide, a batch of data and a loss, before training.

    Runs the pair about five times, and with copies or particles, which are compared one by one, up
    to ten times more for each such axis. It leaves no trace: generators, buffers, parameters,
    Pyro's store and the state of estimators stay as they are.

    Args:
        model: the generative program.
        guide: the program of the approximate posterior, with the same arguments.
        batch: a tensor is passed as ``(x,)``, a tuple as ``*batch``, a dict as ``**batch``.
        loss: the objective and its estimators; by default ``VariationalLoss()``.
        data_plate: the plate whose elements are data points, as for `amortized.SVI`.

    Raises:
        UsageError: model or guide cannot be called, or the batch is a whole loader.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     pyro.sample("zz", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    >>> [finding.code for finding in check(model, guide, torch.tensor(1.0)).errors]
    ['missing-in-guide']
    """
    for name, program in (("model", model), ("guide", guide)):
        refuse_no_program(name, program)
    if isinstance(batch, DataLoader | Dataset):
        raise UsageError(
            f"batch: found a {type(batch).__name__}; expected one batch of it, such as "
            "next(iter(loader)), or the rows data[:100]"
        )
    if not isinstance(loss, VariationalLoss | None):
        return Report([_no_loss(loss)])
    data = data_plate if isinstance(data_plate, DataPlate) else DataPlate(data_plate)
    return inspect_pair(model, guide, batch, VariationalLoss() if loss is None else loss, data)


def inspect_pair(
    model: Program,
    guide: Program,
    batch: Any,
    loss: VariationalLoss,
    data: DataPlate = DataPlate(),
) -> Report:
    """As `check`, of a pair of programs and a loss."""
    devices = [*device_findings(model, guide)]
    if devices:
        return Report.of(devices, 0, 0)
    placed = as_batch(batch, device_of(model, guide))
    empty = [*empty_findings(leaves_of(placed))]
    if empty:
        return Report.of(empty, 0, 0)
    frozen, known = frozen_in(model, guide), [*collision_findings(model, guide)]
    # a copy: estimators and what a loss remembers of a pair are made at its first run, and numbers
    # drawn at that run decide where training starts
    own = copy.deepcopy(loss)
    with isolated(model, guide):
        return Examination(model, guide, placed, own, data, frozen=frozen, known=known).report()


def inspect_observations(
    model: Program, guide: Program, batch: Any, numbers: Sequence[int] | None = None
) -> list[Finding]:
    """What is wrong with the values that a model observes, wherever its run ends.

    Args:
        model: the generative program.
        guide: its guide.
        batch: the data.
        numbers: of the batch's rows in the data set; None: rows are counted in the batch.
    """
    args, kwargs = as_arguments(own_copy(as_batch(batch, device_of(model, guide))))
    with isolated(model, guide), torch.no_grad():
        seen = survey_model(model, args, kwargs, survey_guide(guide, args, kwargs))
        found = [*observation_findings(seen, numbers)]
    return [finding for finding in found if finding.severity == "error"]


def refuse_no_program(name: str, program: Any) -> None:
    """Refuse what is no Pyro program, classes and losses among them.

    Raises:
        UsageError: saying what was found.
    """
    if isinstance(program, type):
        raise UsageError(
            f"{name}: found the class {program.__name__}; expected a Pyro program, an instance "
            f"such as {program.__name__}({'model' if name == 'guide' else ''})"
        )
    if not callable(program) or isinstance(program, PyroELBO):
        raise UsageError(
            f"{name}: found {type(program).__name__}; expected a Pyro program, as in "
            "am.SVI(model, guide, loss)"
        )


def _no_loss(loss: object) -> Finding:
    return Finding(
        "error",
        "objective",
        None,
        "loss",
        f"it is a {type(loss).__name__}",
        "am.VariationalLoss(objective, estimators)",
        "pass am.VariationalLoss(am.ELBO(), {...}); Pyro's own losses go with pyro.infer.SVI",
    )
