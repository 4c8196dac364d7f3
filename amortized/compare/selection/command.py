"""``amortized select PROGRAM.py``: the measured choice, as options ready to paste."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from amortized.compare.pilot.options import Candidates
from amortized.compare.selection.result import Selection
from amortized.compare.selection.select import select_estimators
from amortized.compare.tables import Format, plain
from amortized.errors import UsageError
from amortized.fit.command import Options, Particles, ProgramFile, Seed, Traceback, source_of
from amortized.fit.data import first_batch
from amortized.objectives.choice import objective_of


def select(
    program: ProgramFile,
    options: Options = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="name, or 'site=name'; the site may be a glob. Default: all that serve."),
    ] = None,
    *,
    budget: Annotated[float, typer.Option(help="Seconds of the pilot.")] = 30.0,
    biased: Annotated[
        bool, typer.Option("--biased", help="Biased estimators may be chosen, too.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Data points of the batch.")] = 128,
    objective: Annotated[str, typer.Option(help="elbo, iwae or renyi.")] = "elbo",
    num_particles: Particles = None,
    seed: Seed = 0,
    format: Annotated[
        str, typer.Option(help="text, markdown, latex, html, csv or json: the table alone.")
    ] = "text",
    traceback: Traceback = False,
) -> None:
    """Choose an estimator for every latent site by measuring, without training."""
    if format not in get_args(Format):
        raise UsageError(f"--format {format}: expected one of {', '.join(get_args(Format))}")
    bound = objective_of(objective, num_particles, "sample")
    source = source_of(program, options, objective=bound, seed=seed)
    wanted = candidates_of(candidate or ())
    with source.opened() as built:
        found = select_estimators(
            built.model,
            built.guide,
            first_batch(built.train, batch_size),
            wanted,
            budget_seconds=budget,
            biased=biased,
            seed=seed,
            objective=source.objective,
        )
    print(shown(found, format))


def candidates_of(texts: Sequence[str]) -> Candidates:
    """Names for all sites, or by site; None where there are none.

    Raises:
        UsageError: both kinds.

    >>> candidates_of(["disarm", "enumerate"]), candidates_of(["c=disarm", "c=enumerate"])
    (['disarm', 'enumerate'], {'c': ['disarm', 'enumerate']})
    """
    if not texts:
        return None
    named = ["=" in text for text in texts]
    if not any(named):
        return list(texts)
    if not all(named):
        raise UsageError(
            f"--candidate {texts[named.index(False)]}: others name a site; expected 'site=name' "
            "for all of them, or names alone"
        )
    found: dict[str, list[str]] = {}
    for text in texts:
        site, name = (part.strip() for part in text.split("=", 1))
        found.setdefault(site, []).append(name)
    return found


def shown(found: Selection, format: Any) -> str:
    """The table with what to paste; in other formats the table alone."""
    if format == "json":
        return json.dumps(plain({**found.to_dict(), "options": found.options}), indent=2)
    if format != "text":
        return found.table(format)
    words = " ".join(f"--estimator {shlex.quote(option)}" for option in found.options)
    return f"{found}\n\n{words}" if words else str(found)
