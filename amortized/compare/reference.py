"""What means are compared with: the exact gradient by enumeration, or a long run."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import torch

from amortized.checks.isolation import outside_states, torch_generators
from amortized.compare.candidates import THE_ELBO, Candidate, Ours, Pair, naming
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
from amortized.estimators.base import Estimator
from amortized.estimators.enumeration import Enumerate
from amortized.loss import VariationalLoss
from amortized.objectives.base import Objective
from amortized.objectives.elbo import ELBO

ReferenceKind = Literal["auto", "exact", "long"]

# how much longer a long run is than that of a candidate
LONGER: Final = 10
# values of all finite sites together: beyond that a long run is the cheaper reference
_MOST_VALUES = 4096
# a number of draws, which are all the same
_SAME = 2


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """A mean gradient, and how it was found; an exact one has no variance."""

    blocks: BlockSums
    how: str


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
    summed, why = None, ""
    if kind != "long":
        try:
            with naming("the reference"):
                summed = _summed_out(pair, [m.candidate for m in those.values()])
                exact = None if summed is None else _exact(summed, pair, known)
                if exact is not None:
                    return Reference(exact, "exact, by enumeration")
            why = "there are no finite latents, others beside them, or too many values"
        except NonFiniteError:
            raise
        except AmortizedError as error:
            summed, why = None, str(error)
    if kind == "exact":
        raise UsageError(
            f"reference='exact': the gradient of {target} cannot be had by enumeration ({why}); "
            "leave the argument out for a long run"
        )
    return _long_run(those, summed, pair, known, until)


def _summed_out(pair: Pair, candidates: Sequence[Candidate]) -> Candidate | None:
    """The loss with every finite site enumerated; None where none is, or they are too many."""
    objective = _objective(candidates)
    if objective is None:
        return None
    look = VariationalLoss(objective)
    with torch.no_grad():
        run = look.estimate(pair.model, pair.guide, pair.args, pair.kwargs).run
    recipe, values = Enumerate(), 1
    chosen: dict[str, Estimator] = {}
    for latent in run.latents:
        site = latent.draw.site
        if latent.name in look.estimators.reasons and recipe.refusal(site) is None:
            chosen[latent.name] = recipe
            values *= recipe.copies(site)
    runs = 1 if objective.additive else objective.num_particles
    if not chosen or values**runs > _MOST_VALUES:
        return None
    found = Ours(VariationalLoss(objective, chosen))
    found.prepare(pair, 0)
    return found


def _objective(candidates: Sequence[Candidate]) -> Objective | None:
    """What our losses call it; the ELBO is Pyro's too."""
    ours = [c.loss.objective for c in candidates if isinstance(c, Ours)]
    if candidates[0].target == THE_ELBO:
        return ELBO()
    return ours[0] if ours else None


def _exact(summed: Candidate, pair: Pair, known: Trained) -> BlockSums | None:
    """Its gradient, if it asks no generator for noise."""
    leaves = list(known.leaves.values())
    before = _noise(pair)
    draws = torch.stack([summed.gradient(pair, leaves) for _ in range(_SAME)])
    if _noise(pair) != before or not torch.equal(draws.nan_to_num()[0], draws.nan_to_num()[1]):
        return None
    found = block_sums([draws], _SAME, [group.columns for group in known.groups])
    refuse_non_finite(found, known)
    return found


def _noise(pair: Pair) -> Hashable:
    """Where all generators stand."""
    programs = (pair.model, pair.guide)
    own = [g.get_state().numpy().tobytes() for g in torch_generators(*programs)]
    return torch.get_rng_state().numpy().tobytes(), *own, outside_states(*programs)


def _long_run(
    measured: Mapping[str, Measured],
    summed: Candidate | None,
    pair: Pair,
    known: Trained,
    until: float | None,
) -> Reference:
    """New draws of the best candidate, several times as many."""
    fair = {f"candidate {n!r}": m for n, m in measured.items() if not m.candidate.bias}
    if summed is not None and not summed.bias:
        with naming("the reference"):
            fair["the loss with finite sites enumerated"] = measure(
                summed, pair, known, LEAST_DRAWS
            )
    objective = _objective([m.candidate for m in measured.values()])
    if not fair and objective is not None:
        with naming("the reference"):
            fair["the default estimators"] = measure(
                Ours(VariationalLoss(objective)), pair, known, LEAST_DRAWS
            )
    name, best = min(fair.items(), key=lambda item: item[1].variance(known))
    draws = next(iter(measured.values())).blocks.count
    count = LONGER * draws
    if until is not None:
        pace = pace_of(best.candidate, best.sampler)
        count = max(draws, min(count, int((until - time.perf_counter()) / pace)))
    with naming(name):
        return Reference(drawn_again(best, known, count), f"{count} other draws of {name}")
