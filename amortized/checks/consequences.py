"""One finding for each cause: what follows from another finding is left out or told with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from amortized.checks.report import Finding

Findings = list[Finding]

_SHAPES = ("event-shape-mismatch", "broadcast-observation")
_SPOILED = ("data-nan", "data-inf")


def by_cause(findings: Findings) -> Findings:
    """The findings without those that another one explains."""
    steps: tuple[Callable[[Findings], Findings], ...] = (
        _poisoned,
        _spoiled_twice,
        _explained,
        _nothing_registered,
        _in_both_programs,
        _in_several_places,
    )
    for step in steps:
        findings = step(findings)
    return findings


def _poisoned(findings: Findings) -> Findings:
    """NaN that is masked where it is observed, and that nevertheless spoiled the run: an error."""
    masked = [f for f in findings if f.code == "nan-behind-mask"]
    spoiled = [f for f in findings if f.code == "data-nan" and f.site is None]
    if not (masked and spoiled):
        return findings
    kept = [f for f in findings if f not in masked and f not in spoiled]
    return kept + [
        replace(
            finding,
            severity="error",
            found=f"{finding.found}, and it reaches a network or another statement",
            expected="finite numbers wherever the mask does not reach",
            advice="fill the data for the networks: x.nan_to_num(), and keep the mask",
            error=spoiled[0].error,
        )
        for finding in masked
    ]


def _spoiled_twice(findings: Findings) -> Findings:
    """NaN in the rows of an argument that a site observes, and on which a program failed."""
    observed = {(f.code, _rows(f)): f for f in findings if f.code in _SPOILED and f.site}
    kept: Findings = []
    more: dict[int, Finding] = {}
    for finding in findings:
        here = observed.get((finding.code, _rows(finding))) if finding.site is None else None
        if here is None:
            kept.append(finding)
        else:
            also = f"{here.found}, and which another statement does not handle"
            more[id(here)] = replace(here, found=also, error=finding.error)
    return [more.get(id(finding), finding) for finding in kept]


def _rows(finding: Finding) -> str:
    return finding.found.partition(", which")[0]


def _explained(findings: Findings) -> Findings:
    """Values of another shape are outside of a support; a latent that is data is not observed."""
    misshapen = {f.site for f in findings if f.code in _SHAPES}
    missing = any(f.code == "missing-in-guide" for f in findings)
    varying = [f for f in findings if f.code == "structure-varies"]

    def follows(finding: Finding) -> bool:
        if finding.code == "data-support":
            return finding.site in misshapen
        if finding.code == "nothing-observed":
            return missing
        return finding in varying[1:]

    return [finding for finding in findings if not follows(finding)]


def _nothing_registered(findings: Findings) -> Findings:
    """Networks that nobody registered are why there is nothing to train."""
    bare = [f for f in findings if f.code == "no-parameters"]
    loose = [f for f in findings if f.code == "untrained-module"]
    if not (bare and loose):
        return findings
    named = ", ".join(f.where for f in loose)
    told = replace(bare[0], found=f"{bare[0].found}; registered nowhere: {named}")
    return [told if f is bare[0] else f for f in findings if f not in loose]


def _in_both_programs(findings: Findings) -> Findings:
    """The same mistake at the same site of guide and model, or in both calls."""
    kept: dict[object, Finding] = {}
    for finding in findings:
        parts = (finding.where, finding.found, finding.advice)
        key = (finding.severity, finding.code, finding.site, *map(_sideless, parts))
        first = kept.setdefault(key, finding)
        if _side(finding) not in ("", _side(first)) and _side(first):
            where = f"{first.where}, and likewise the {_side(finding)}"
            kept[key] = replace(first, where=where)
    return [*kept.values()]


def _side(finding: Finding) -> str:
    found = re.search(r"\b(guide|model)\b", finding.where)
    return found.group(1) if found else ""


def _sideless(text: str) -> str:
    """Words about one program as about either, and calls without their names."""
    return re.sub(r"\b(guide|model)\b", "program", re.sub(r"[\w.<>]+\(\)", "()", text))


def _in_several_places(findings: Findings) -> Findings:
    """One sentence about several arguments or parameters."""
    groups: dict[object, Findings] = {}
    for finding in findings:
        same = (finding.severity, finding.code, finding.found, finding.advice)
        groups.setdefault(same if finding.site is None else id(finding), []).append(finding)
    return [_joined(group) for group in groups.values()]


def _joined(group: Iterable[Finding]) -> Finding:
    first, *others = group
    places = dict.fromkeys(f.where for f in (first, *others))
    return replace(first, where=", ".join(places)) if others else first
