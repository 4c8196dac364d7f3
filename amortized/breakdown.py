"""Where numbers stop being finite: one row a site, and the first one in order of execution."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amortized.estimators.base import base_of, parameters_of
from amortized.programs.records import Run, SiteRecord, Term

# a narrower table has a letter a line
_LEAST = 40


def site_table(run: Run) -> str:
    """A plain table of every term of a run: its sum, and the range of the site's value."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("site", "program", "log-probability", "non-finite", "value from", "to"):
        left = head in ("site", "program")
        table.add_column(head, justify="left" if left else "right", overflow="fold")
    for term in (*run.terms, *run.factors):
        record = _record(run, term)
        low, high = _range(record.value) if record is not None else ("", "")
        bad = int((~term.value.isfinite()).sum())
        shown = f"{bad} of {term.value.numel()}" if bad else ""
        sign = -1.0 if term.role == "guide" else 1.0
        total = f"{sign * term.value.sum().item() + 0.0:.6g}"  # no minus before a zero
        role = "KL" if term.role == "kl" else f"sum in {term.side}" if term.sums else term.side
        table.add_row(term.name, role, total, shown, low, high)
    return plain_text(table, 100)


def terminal_width(most: int) -> int:
    """The columns of the terminal, or of ``COLUMNS``; ``most`` where there is none."""
    return max(_LEAST, min(most, shutil.get_terminal_size((most, 24)).columns))


def plain_text(table: Table, width: int) -> str:
    """A table as lines without colours and without trailing or empty space."""
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def first_non_finite(run: Run) -> str | None:
    """Where the first non-finite number stands, guide before model; None if there is none."""
    for program, records in (("guide", run.guide), ("model", run.model)):
        in_model = program == "model"
        parts = [t for t in run.terms if t.in_model == in_model]
        terms = {t.name: t for t in parts if not t.sums}
        terms |= {t.name: _possible(t) for t in run.factors if in_model}
        for name, record in records.items():
            what = next(_complaints(record, terms.get(name)), None)
            if what is not None:
                return f"site {name!r} of the {program}: {what}"
        for term in parts:
            bad = ~term.value.isfinite()
            if term.sums and bool(bad.any()):
                what = f"the sum over its values is {_example(term.value, bad)}"
                return f"site {term.sums[0]!r} of the {program}: {what}"
    return None


def _possible(factor: Term) -> Term:
    """A factor without what is impossible: values of probability 0 are left out of a sum."""
    value = factor.value
    return replace(factor, value=value.masked_fill(value == -torch.inf, 0.0))


def _complaints(record: SiteRecord, term: Term | None) -> Iterator[str]:
    """What is wrong at a site whose term is not finite; what a mask hides is no trouble."""
    if term is None or not bool((bad := ~term.value.isfinite()).any()):
        return
    for parameter in parameters_of(record.fn):
        # infinity is a legal parameter: the logits of an impossible category
        if bool((nan := parameter.isnan()).any()):
            yield f"a parameter of its {_family(record)} is {_example(parameter, nan)}"
    value, events = record.value, tuple(range(-len(record.fn.event_shape), 0))
    strange = ~value.isfinite()
    at = strange.any(events) if events else strange
    if bool((at & bad).any()):
        kind = "observed value" if record.observed else "value"
        yield f"its {kind} is {_example(value, strange)}"
    yield f"its log-probability is {_example(term.value, bad)}"


def _example(value: Tensor, bad: Tensor) -> str:
    found = value.detach()[bad]
    return f"{found[0].item()} in {found.numel()} of {value.numel()} places"


def _family(record: SiteRecord) -> str:
    return type(base_of(record.fn)).__name__


def _record(run: Run, term: Term) -> SiteRecord | None:
    return (run.model if term.in_model else run.guide).get(term.name)


def _range(value: Tensor) -> tuple[str, str]:
    if value.numel() == 0 or value.is_complex():
        return "", ""
    with torch.no_grad():
        number = value.detach().to(torch.float64)
        return f"{number.min().item():.4g}", f"{number.max().item():.4g}"
