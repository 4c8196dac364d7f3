"""The value of the loss, term by term."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from amortized.checks.report import Finding
from amortized.estimate import Estimate
from amortized.programs.records import Term

_NAMED = 6


def loss_findings(estimate: Estimate) -> Iterator[Finding]:
    """A first loss that is NaN or infinite, with what each site contributes."""
    value = estimate.loss.item()
    if math.isfinite(value):
        return
    bad = [t for t in estimate.run.terms if not bool(t.value.isfinite().all())]
    good = [t for t in estimate.run.terms if bool(t.value.isfinite().all())]
    parts = "; ".join(map(_words, [*bad, *good][:_NAMED]))
    first = bad[0].name if bad else None
    yield Finding(
        "error",
        "non-finite-loss",
        first,
        "the loss" if first is None else f"site {first!r} of the {bad[0].side}",
        f"the loss is {value}: {parts}",
        "a finite loss at the first step",
        "use softplus instead of exp for scales and logits instead of probs; look for a rate or "
        "probability of exactly 0, as relu gives, and other values of density 0; check the data",
    )


def _words(term: Term) -> str:
    values = term.value.detach()
    wrong = ~values.isfinite()
    label = {"likelihood": "log p", "prior": "log p", "guide": "-log q", "kl": "-KL"}[term.role]
    name = f"{label}({term.name})"
    if not bool(wrong.any()):
        return f"{name} = {values.sum().item():.4g}"
    kinds = sorted({str(v) for v in values[wrong].flatten()[:1000].tolist()})
    count = int(torch.count_nonzero(wrong))
    return f"{name} = {' and '.join(kinds)} in {count} of {values.numel()} elements"
