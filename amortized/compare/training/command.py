"""One ``amortized compare``: from candidates as text to a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import typer

from amortized.compare.gradients import compare_gradients
from amortized.compare.result import GradientComparison
from amortized.compare.tables import Format
from amortized.compare.training.report import refuse_unwritable, write_report
from amortized.compare.training.result import TrainingComparison
from amortized.compare.training.training import compare_training
from amortized.errors import UsageError
from amortized.fit.command import Source
from amortized.fit.data import first_batch
from amortized.fit.files import pairs
from amortized.loss import VariationalLoss
from amortized.objectives.base import Objective

# options by name, of one kind of comparison alone
_OF_GRADIENTS: Final = ("num_draws", "budget", "warmup_steps", "reference", "parameter")
_OF_TRAINING: Final = ("seeds", "max_steps", "check_every", "lr", "workers", "folder")


def refuse_other_kind(context: typer.Context, *, train: bool) -> None:
    """Options that would do nothing.

    Raises:
        UsageError: one was given that belongs to the other kind of comparison.
    """
    for name in _OF_GRADIENTS if train else _OF_TRAINING:
        source = context.get_parameter_source(name)
        if source is None or source.name == "DEFAULT":
            continue
        option = f"--{name.replace('_', '-')}"
        if train:
            raise UsageError(
                f"{option}: it is about measuring gradients, and --train trains instead; leave out "
                "one of the two"
            )
        raise UsageError(
            f"{option}: it is about training, and without --train gradients are measured; add "
            f"--train, or leave {option} out"
        )


@dataclass(frozen=True)
class Comparison:
    """What one call of ``amortized compare`` asks for."""

    source: Source
    """The program; its estimators are not looked at."""
    candidates: Sequence[str]
    report: Path | None
    format: str
    gradients: dict[str, Any]
    """Options that go to `compare_gradients`; its batch has ``batch_size`` data points."""
    batch_size: int
    training: dict[str, Any] | None
    """Options that go to `compare_training`; None: gradients are compared."""

    @property
    def asked(self) -> dict[str, Any]:
        """What a report says of it."""
        source = self.source
        options = self.gradients if self.training is None else self.training
        about: dict[str, Any] = {"program": source.path.name}
        if source.options:
            about["options"] = ", ".join(f"{n}={value}" for n, value in source.options.items())
        about |= {"candidates": "; ".join(self.candidates), "objective": repr(source.objective)}
        about |= {"batch size": self.batch_size, "seed": source.seed}
        rest = {n.replace("_", " "): v for n, v in options.items() if n != "progress" and v}
        return {**about, **rest}


def run(request: Comparison) -> str | None:
    """Does it and prints the table; returns how it was interrupted, if it was.

    Raises:
        AmortizedError: a wrong call, or what the comparison raises.
    """
    if request.format not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise UsageError(f"--format {request.format}: expected one of {known}")
    if request.report is not None:
        refuse_unwritable(request.report)
    losses = losses_of(request.candidates, request.source.objective)
    found: GradientComparison | TrainingComparison
    if request.training is None:
        found = _gradients(request, losses)
    else:
        found = _training(request, losses, request.training)
    print(found if request.format == "text" else found.table(request.format))  # pyright: ignore
    if request.report is not None:
        title = f"{request.source.path.name}: {', '.join(losses)}"
        write_report(request.report, found, title, request.asked)
    missing = found.missing if isinstance(found, TrainingComparison) else 0
    if not missing:
        return None
    folder = (request.training or {}).get("folder")
    goes_on = f"the same call with --folder {folder} goes on" if folder else "--folder keeps them"
    return f"interrupted: {missing} trials are missing; {goes_on}"


def losses_of(candidates: Sequence[str], objective: Objective) -> dict[str, VariationalLoss]:
    """Candidates by name: ``c=disarm``, ``c=disarm, z=pathwise``, ``name: c=disarm``, ``disarm``.

    Raises:
        UsageError: none, two of one name, or something else.

    >>> from amortized.objectives.elbo import ELBO
    >>> losses_of(["c=disarm", "both: c=arm, z=pathwise"], ELBO())["both"]
    VariationalLoss(ELBO(num_particles=1, kl='sample'), {'c': ARM(), 'z': Pathwise()})
    """
    if not candidates:
        raise UsageError(
            "--estimator: there is nothing to compare; expected one for each candidate, such as "
            "--estimator 'c=leave_one_out' --estimator 'c=disarm'"
        )
    found: dict[str, VariationalLoss] = {}
    for text in candidates:
        name, colon, rest = text.partition(":")
        if not colon or "=" in name:
            name, rest = text, text
        name, rest = name.strip(), rest.strip()
        if not name or not rest:
            raise UsageError(
                f"--estimator {text!r}: expected 'site=estimator', several of them with commas "
                "between, or 'name: site=estimator'"
            )
        if name in found:
            raise UsageError(f"--estimator {text!r}: there are two candidates {name!r}")
        found[name] = VariationalLoss(objective, _estimators(rest))
    return found


def _estimators(text: str) -> Any:
    """A mapping by site, or one estimator for all sites."""
    return pairs("--estimator", text.split(",")) if "=" in text else text


def _gradients(request: Comparison, losses: dict[str, VariationalLoss]) -> GradientComparison:
    with request.source.opened() as program:
        batch = first_batch(program.train, request.batch_size)
        return compare_gradients(
            program.model,
            program.guide,
            batch,
            losses,
            seed=request.source.seed,
            **request.gradients,
        )


def _training(
    request: Comparison, losses: dict[str, VariationalLoss], options: dict[str, Any]
) -> TrainingComparison:
    source = request.source
    first, count = source.seed, options["seeds"]
    seeds = range(first, first + count) if type(count) is int and count > 0 else count
    given = {**options, "seeds": seeds, "options": source.options}
    return compare_training(source.path, losses, batch_size=request.batch_size, **given)
