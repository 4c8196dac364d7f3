"""The densities of surveyed statements: who fails there, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyro
import torch
from torch import Tensor

from amortized.checks.data import CASTS
from amortized.checks.places import place, shortened
from amortized.checks.report import Finding
from amortized.programs.leaves import leaves_under
from amortized.programs.records import Run
from amortized.programs.survey import Statement, Survey


def log_density(surveys: Sequence[Survey]) -> Tensor | None:
    """Everything that surveys say of the parameters, as one scalar; only its graph matters."""
    parts = []
    with pyro.validation_enabled(False), torch.enable_grad():
        for survey in surveys:
            for statement in survey.statements.values():
                try:
                    part = statement.fn.log_prob(statement.value)
                except Exception:  # whatever is wrong there is another finding
                    continue
                if part.requires_grad:
                    parts.append(part.double().sum())
    return torch.stack(parts).sum() if parts else None


def leaves_of_programs(run: Run) -> dict[int, Tensor]:
    """The leaves that the densities of a run depend on, without those that estimators draw.

    Some estimators differentiate the cost at their draws, or networks of their own at constants:
    leaves under the loss that no program has made.
    """
    made = {id(leaf) for leaf in run.leaves.values()}
    for latent in run.latents:
        if not latent.estimator.attached:  # its draws are constants to the parameters
            made |= {id(latent.draw.value), *leaves_under(latent.draw.value)}
    found: dict[int, Tensor] = {}
    parts = [term.value for term in run.terms]
    with pyro.validation_enabled(False), torch.enable_grad():
        for record in (*run.guide.values(), *run.model.values()):
            try:
                parts.append(record.fn.log_prob(record.value))
            except Exception:  # no density at a relaxed value: the terms have it
                continue
    for part in parts:
        found |= leaves_under(part)
    return {key: leaf for key, leaf in found.items() if key not in made}


def density_findings(surveys: Sequence[Survey], dtype: torch.dtype | None) -> Iterator[Finding]:
    """Statements whose distribution fails on its value."""
    for survey in surveys:
        for statement in survey.statements.values():
            try:
                with torch.no_grad():
                    statement.fn.log_prob(statement.value)
            except Exception as error:  # any failure is what is looked for
                yield _fails(statement, error, dtype or torch.get_default_dtype())


def _fails(statement: Statement, error: Exception, dtype: torch.dtype) -> Finding:
    value = statement.value
    text = " ".join(str(error).split())
    if isinstance(value, Tensor) and statement.observed and value.dtype != dtype:
        name = str(value.dtype).removeprefix("torch.")
        return Finding(
            "error",
            "data-dtype",
            statement.name,
            place(statement),
            f"{name} observations, on which the density fails: {shortened(text, 160)}",
            str(dtype).removeprefix("torch."),
            f"convert the data: x.{CASTS.get(dtype, f'to({dtype})')}",
            error,
        )
    return Finding(
        "error",
        "program-raises",
        statement.name,
        place(statement),
        f"its density fails on a value of shape {tuple(getattr(value, 'shape', ()))}: "
        f"{type(error).__name__}: {shortened(text)}",
        "a distribution that can score its value",
        "look for another shape, another type or another support than the distribution's",
        error,
    )
