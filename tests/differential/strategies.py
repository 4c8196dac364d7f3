"""Drawing specs for hypothesis: legal ones only, within a budget of outcomes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from hypothesis import strategies as st

from tests.differential.programs import (
    CONTINUOUS,
    ESTIMATORS,
    FAMILIES,
    LAYOUTS,
    Site,
    Spec,
    Term,
    copy_by_copy,
    log_exact,
    log_outcomes,
    may_branch,
    may_depend,
)

# drawn more often than others, by being there more than once
WHERE = ("", "", "", "both", "model", "guide")
KINDS = (*FAMILIES, "bernoulli", "categorical", "bernoulli", "categorical")
RULES = (*ESTIMATORS, "enumerate", "loo", "enumerate", "loo")


def plate_sets(layout: str) -> list[tuple[str, ...]]:
    """The combinations of plates that one statement can be in."""
    names = tuple(LAYOUTS[layout])
    each = [(name,) for name in names]
    return [(), *each, *([names] if layout == "nested" else [])]


def subset(draw: st.DrawFn, options: list[str], at_most: int = 2) -> tuple[str, ...]:
    return tuple(name for name in options if draw(st.booleans()))[-at_most:]


@st.composite
def specs(draw: st.DrawFn, paths: int = 256) -> Spec:
    """Specs whose estimators, and whose oracle, have at most about `paths` outcomes each."""
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    particles = draw(st.sampled_from([1, 1, 2]))
    vectorize = draw(st.sampled_from([True, True, False]))
    sites: tuple[Site, ...] = ()
    left = left_exact = math.log(paths)
    for number in range(draw(st.sampled_from([1, 2, 3, 3, 4]))):
        site = _guide_site(draw, f"z{number}", layout, sites)
        site = _affordable(draw, site, sites, _Budget(left, left_exact, particles, vectorize))
        left -= log_outcomes(sites, site, particles, vectorize)
        left_exact -= log_exact(site)
        sites = (*sites, site)
    order = tuple(draw(st.permutations([s.name for s in sites if not s.auxiliary])))
    spec = Spec(
        layout=layout,
        sites=_with_model_parents(draw, sites, order),
        model_order=order,
        terms=_terms(draw, layout, sites, particles),
        num_particles=particles,
        kl=draw(st.sampled_from(["sample", "analytic"])),
        vectorize=vectorize,
        kl_weight=draw(st.sampled_from([1.0, 1.0, 0.3])),
        seed=draw(st.integers(0, 7)),
    )
    return spec if vectorize or copy_by_copy(spec) else replace(spec, vectorize=True)


def _guide_site(draw: st.DrawFn, name: str, layout: str, before: tuple[Site, ...]) -> Site:
    plates = draw(st.sampled_from(plate_sets(layout)))
    legal = [s.name for s in before if may_depend(before, s.name, plates)]
    auxiliary = draw(st.integers(0, 9)) == 9
    partial = bool(plates) and not auxiliary and draw(st.integers(0, 9)) == 9
    return Site(
        name=name,
        family=draw(st.sampled_from(KINDS)),
        plates=plates,
        guide_parents=subset(draw, legal),
        masked="" if partial else draw(st.sampled_from(WHERE)),
        scaled=draw(st.sampled_from(WHERE)),
        auxiliary=auxiliary,
        partial=partial,
    )


class _Budget(NamedTuple):
    """What is left, in log outcomes, and what it is spent on."""

    estimator: float
    oracle: float
    particles: int
    vectorize: bool


def _affordable(draw: st.DrawFn, site: Site, before: tuple[Site, ...], budget: _Budget) -> Site:
    """The site with an estimator that the budget allows; continuous if there is none."""
    if site.family in CONTINUOUS:
        return site
    if log_exact(site) > budget.oracle:
        return replace(site, family="normal")
    copies = math.prod(s.copies ** len(s.names) for s in before)
    rules = [name for name in RULES if name != "particles" or budget.particles > 1]
    options = []
    for option in (replace(site, estimator=name) for name in rules):
        cost = log_outcomes(before, option, budget.particles, budget.vectorize)
        if cost <= budget.estimator and copies * option.copies ** len(option.names) <= 64:
            options.append(option)
    return draw(st.sampled_from(options)) if options else replace(site, family="normal")


def _with_model_parents(
    draw: st.DrawFn, sites: tuple[Site, ...], order: tuple[str, ...]
) -> tuple[Site, ...]:
    found = []
    for site in sites:
        earlier = order[: order.index(site.name)] if not site.auxiliary else ()
        legal = [name for name in earlier if may_depend(sites, name, site.plates)]
        found.append(replace(site, model_parents=subset(draw, legal)))
    return tuple(found)


def _terms(
    draw: st.DrawFn, layout: str, sites: tuple[Site, ...], particles: int
) -> tuple[Term, ...]:
    terms = []
    for number in range(draw(st.integers(1, 2))):
        plates = draw(st.sampled_from(plate_sets(layout)))
        in_model = [s.name for s in sites if not s.auxiliary]
        legal = [name for name in in_model if may_depend(sites, name, plates)]
        term = Term(
            name=f"x{number}",
            kind=draw(st.sampled_from(["normal", "bernoulli", "factor"])),
            plates=plates,
            parents=subset(draw, legal, at_most=3),
            masked=draw(st.integers(0, 4)) == 4,
            scaled=draw(st.integers(0, 4)) == 4,
        )
        if term.parents and not plates and may_branch(sites, term.parents[0], particles):
            term = replace(term, kind=draw(st.sampled_from([term.kind, "branch"])))
        terms.append(term)
    return tuple(terms)
