"""The site table: which estimator each latent gets, why, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from amortized.breakdown import plain_text, terminal_width
from amortized.estimators.base import Site
from amortized.objectives.base import Objective
from amortized.programs.records import DataPlate, LatentSite, Run, SiteRecord
from amortized.programs.study import size_of
from amortized.surrogate.outer import shared_plates


@dataclass(frozen=True)
class SiteRow:
    """One latent site of the guide, or one that is summed out in the model."""

    site: str
    distribution: str
    estimator: str
    why: str
    copies: int
    plates: str
    kl: str
    in_rows: bool = False
    """Whether the copies lie in rows, which add up over sites, or on a dim of their own."""
    bias: str = ""
    """Why the estimate is biased; empty: it is not."""


@dataclass(frozen=True)
class Description:
    """One row a latent site, and the evaluations that one step costs; printed as a table.

    Sites that are summed out in the model come after those of the guide.
    """

    rows: list[SiteRow]
    objective: str
    model_evaluations: int
    guide_evaluations: int
    data: str

    def __str__(self) -> str:
        """The table as plain text, as wide as the terminal, 120 columns at most."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        heads = ("site", "distribution", "estimator", "why", "copies", "plates", "KL")
        for head in heads:
            justify = "right" if head == "copies" else "left"
            table.add_column(head, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(
                row.site,
                row.distribution,
                row.estimator,
                row.why,
                f"{row.copies} in rows" if row.in_rows else str(row.copies),
                row.plates,
                row.kl,
            )
        biased = [f"site {row.site!r} is biased: {row.bias}\n" for row in self.rows if row.bias]
        return (
            f"{plain_text(table, terminal_width(120))}\n\n{''.join(biased)}"
            f"objective {self.objective} · {self.data} · one step evaluates the "
            f"guide {self.guide_evaluations} and the model {self.model_evaluations} times a datum"
        )


def describe_run(
    run: Run, objective: Objective, reasons: Mapping[str, str], data: DataPlate
) -> Description:
    """The description of a finished run."""
    rows = [_row(latent, run, objective, reasons) for latent in run.latents]
    rows += [_summed_row(record) for record in run.summed]
    size = size_of(run.model, data.name)
    named = (
        "no data plate: numbers are totals"
        if size is None
        else f"data plate {data.name!r} of {size}"
    )
    return Description(
        rows=rows,
        objective=_bounded(run, objective),
        model_evaluations=_evaluations(run, in_model=True),
        guide_evaluations=_evaluations(run, in_model=False),
        data=named,
    )


def _bounded(run: Run, objective: Objective) -> str:
    """The objective, and what a bound that is no sum is taken for each of."""
    if objective.additive or not objective.weighs_particles:
        return repr(objective)
    names = sorted(name for name, _ in shared_plates(run))
    if names:
        return f"{objective!r} for each element of {', '.join(map(repr, names))}"
    return f"{objective!r} of the whole: a latent or a term is in no plate of the others"


def _row(latent: LatentSite, run: Run, objective: Objective, reasons: Mapping[str, str]) -> SiteRow:
    plates = ", ".join(run.guide[latent.name].sizes) or "-"
    return SiteRow(
        site=latent.name,
        distribution=latent.draw.site.family,
        estimator=repr(latent.estimator),
        why=reasons.get(latent.name, _unasked(objective)),
        copies=latent.draw.copies,
        plates=plates,
        kl=run.kl_notes.get(latent.name, _how(latent)),
        in_rows=latent.span is not None,
        bias=latent.estimator.bias,
    )


def _summed_row(record: SiteRecord) -> SiteRow:
    """A site of the model that the guide lacks: exact, and without a KL of its own."""
    return SiteRow(
        site=record.name,
        distribution=Site(record.name, record.fn).family,
        estimator="summed out in the model",
        why="marked there",
        copies=record.summed,
        plates=", ".join(record.sizes) or "-",
        kl="-",
    )


def _unasked(objective: Objective) -> str:
    """Why a site is as it is where no estimator was chosen for it."""
    return "fixed by the guide" if objective.site_estimators else "the objective"


def _how(latent: LatentSite) -> str:
    """Attached weights are those of all values; others are of a part of the support."""
    estimator = latent.estimator
    if latent.draw.axis is None or estimator.joint_copies or estimator.base_only:
        return "sampled"
    return "summed out" if estimator.attached else "a weighted part of the support"


def _evaluations(run: Run, in_model: bool) -> int:
    """The largest number of left-dim elements of a term: how often its statement is evaluated."""
    counts = [1]
    for term in (*run.terms, *run.factors):
        if term.in_model == in_model:
            left = term.value.shape[: max(0, term.value.dim() - run.layout.nesting)]
            counts.append(left.numel())
    return run.runs * max(counts)
