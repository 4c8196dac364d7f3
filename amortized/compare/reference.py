"""What means are compared with: the exact gradient by enumeration, or a long run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final

import torch

from amortized.compare.candidates import FAILURES, THE_ELBO, Candidate, Ours, Pair, naming
from amortized.compare.draws import noise_states
from amortized.compare.groups import Trained
from amortized.compare.measure import (
    LEAST_DRAWS,
    Measured,
    drawn_again,
    measure,
    pace_of,
    refuse_non_finite,
)
from amortized.compare.moments import BlockSums, block_sums
from amortized.errors import AmortizedError, NonFiniteError, UsageError
from amortized.estimators.base import Estimator, Site
from amortized.estimators.baselines import LeaveOneOut
from amortized.estimators.enumeration import Enumerate
from amortized.estimators.score_function import ScoreFunction
from amortized.loss import VariationalLoss
from amortized.objectives.base import Objective
from amortized.objectives.elbo import ELBO

ReferenceKind = Literal["auto", "exact", "long"]

_EXACT: Final = "exact, by enumeration"
# how much longer a long run is than that of a candidate
LONGER: Final = 10
# values of all finite sites together: beyond that a long run is the cheaper reference
_MOST_VALUES = 4096
# a number of draws, which are all the same
_SAME = 2


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """A mean gradient, and how it was found; an exact one has no variance.

    ``judges``: it is right by construction, so that what is far from it is biased. The mean of a
    candidate's own draws is not: a biased candidate would make the others look so.
    """

    blocks: BlockSums
    how: str
    judges: bool = True

    @property
    def exact(self) -> bool:
        """Whether it has no error."""
        return self.how == _EXACT


def reference_of(
    target: str,
    measured: Mapping[str, Measured],
    pair: Pair,
    known: Trained,
    kind: ReferenceKind,
    *,
    until: float | None = None,
) -> Reference:
    """The gradient of one bound; a long run is shorter where it would last longer than ``until``.

    Raises:
        UsageError: an exact one was asked for, and there is none.
        NonFiniteError: it is NaN or infinite.
    """
    those = {name: m for name, m in measured.items() if m.candidate.target == target}
    why = ""
    if kind != "long":
        try:
            with naming("the reference"):
                summed = _summed_out(pair, [m.candidate for m in those.values()])
                exact = None if summed is None else _exact(summed, pair, known)
                if exact is not None:
                    return Reference(exact, _EXACT)
            why = "there are no finite latents, others beside them, or too many values"
        except NonFiniteError:
            raise
        except AmortizedError as error:
            why = str(error)
    if kind == "exact":
        raise UsageError(
            f"reference='exact': the gradient of {target} cannot be had by enumeration ({why}); "
            "leave the argument out for a long run"
        )
    return _long_run(those, pair, known, summed=kind != "long", until=until)


def _summed_out(pair: Pair, candidates: Sequence[Candidate]) -> Candidate | None:
    """The loss with every finite site enumerated; None where none is, or they are too many."""
    sites = _sites(pair, candidates)
    like = _like(candidates)
    chosen = {} if sites is None or like is None else _enumerable(sites, like.objective)
    if like is None or not chosen:
        return None
    found = Ours(like.with_estimators(chosen))
    found.prepare(pair, 0)
    return found


def _like(candidates: Sequence[Candidate]) -> VariationalLoss | None:
    """A loss of ours with their objective; the ELBO is Pyro's too."""
    ours = [c.loss for c in candidates if isinstance(c, Ours)]
    if candidates[0].target != THE_ELBO:
        return ours[0] if ours else None
    if not ours:
        return VariationalLoss(ELBO())
    return VariationalLoss(ELBO(), vectorize=ours[0].vectorize, layout=ours[0].layout)


def _sites(pair: Pair, candidates: Sequence[Candidate]) -> list[Site] | None:
    """The random latents; None where the bound is none of ours."""
    like = _like(candidates)
    if like is None or not like.objective.site_estimators:
        return None
    look = like.with_estimators({})
    with torch.no_grad():
        run = look.estimate(pair.model, pair.guide, pair.args, pair.kwargs).run
    sites = (latent.draw.site for latent in run.latents if latent.name in look.estimators.reasons)
    return [site for site in sites if site.family != "Delta"]


def _enumerable(sites: Sequence[Site], objective: Objective) -> dict[str, Estimator]:
    """Enumeration for every finite site, if all their values together are not too many."""
    recipe, values = Enumerate(), 1
    chosen: dict[str, Estimator] = {}
    for site in sites:
        if recipe.refusal(site) is None:
            chosen[site.name] = recipe
            values *= recipe.copies(site)
    runs = 1 if objective.additive else objective.num_particles
    return chosen if values**runs <= _MOST_VALUES else {}


def _exact(summed: Candidate, pair: Pair, known: Trained) -> BlockSums | None:
    """Its gradient, if it asks no generator for noise."""
    leaves = list(known.leaves.values())
    before = noise_states(pair.model, pair.guide)
    draws = torch.stack([summed.gradient(pair, leaves) for _ in range(_SAME)])
    moved = noise_states(pair.model, pair.guide) != before
    if moved or not torch.equal(draws.nan_to_num()[0], draws.nan_to_num()[1]):
        return None
    found = block_sums([draws], _SAME, [group.columns for group in known.groups])
    refuse_non_finite(found, known)
    return replace(found, noiseless=True)


def _long_run(
    measured: Mapping[str, Measured],
    pair: Pair,
    known: Trained,
    *,
    summed: bool,
    until: float | None,
) -> Reference:
    """Many draws of a loss that is right by construction; without one, of a candidate."""
    with naming("the reference"):
        made = _by_construction(pair, [m.candidate for m in measured.values()], known, summed)
    judges = made is not None
    if made is None:
        fair = {n: m for n, m in measured.items() if not m.candidate.bias} or measured
        name, best = min(fair.items(), key=lambda item: item[1].variance(known))
        made = best, f"candidate {name!r} itself, for want of scores: no verdict"
    best, how = made
    draws = next(iter(measured.values())).blocks.count
    count = LONGER * draws
    if until is not None:
        pace = pace_of(best.candidate, best.sampler)
        count = max(draws, min(count, int((until - time.perf_counter()) / pace)))
    with naming("the reference"):
        return Reference(drawn_again(best, known, count), f"{count} other draws of {how}", judges)


def _by_construction(
    pair: Pair, candidates: Sequence[Candidate], known: Trained, summed: bool
) -> tuple[Measured, str] | None:
    """A loss with scores and enumeration alone, which are right whatever the programs compute.

    A pathwise gradient is right only where the cost is smooth, which nobody can see from outside.
    None: the bound is not ours, or a site has no score.
    """
    like, sites = _like(candidates), _sites(pair, candidates)
    if like is None or sites is None:
        return None
    names = [site.name for site in sites]
    pairs: dict[str, Estimator] = {name: ScoreFunction(LeaveOneOut()) for name in names}
    finite = _enumerable(sites, like.objective) if summed else {}
    tries: list[tuple[dict[str, Estimator], str]] = [
        ({**pairs, **finite}, "the loss with finite sites enumerated and leave-one-out scores"),
        (pairs, "the loss with leave-one-out scores at all sites"),
        # for programs that cannot evaluate several copies
        (dict.fromkeys(names, ScoreFunction()), "the loss with plain scores at all sites"),
    ]
    for chosen, how in tries if finite else tries[1:]:
        try:
            return measure(Ours(like.with_estimators(chosen)), pair, known, LEAST_DRAWS), how
        except FAILURES:
            continue
    return None
