"""`select_estimators`: which estimator for which site, by measuring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from amortized.checks.isolation import isolated, seed_torch
from amortized.compare.candidates import Pair
from amortized.compare.groups import trained
from amortized.compare.pilot.attempt import Clock, Setting, clock_of
from amortized.compare.pilot.options import Candidates
from amortized.compare.pilot.outcome import Outcome, Row
from amortized.compare.pilot.search import searched
from amortized.compare.selection.result import Selection
from amortized.errors import EstimatorError, UsageError
from amortized.loss import VariationalLoss
from amortized.objectives.base import Objective
from amortized.programs.records import DataPlate
from amortized.programs.run import Program

_FIRST: Final[Mapping[str, int]] = {"chosen": 0, "kept": 0, "fixed": 0}


def select_estimators(
    model: Program,
    guide: Program,
    batch: Any,
    candidates: Candidates = None,
    *,
    budget_seconds: float = 10.0,
    biased: bool = False,
    seed: int | None = None,
    objective: Objective | VariationalLoss | None = None,
    captured: bool = True,
    warmup_steps: int = 50,
    data_plate: str | DataPlate | None = None,
    clock: Clock | None = None,
) -> Selection:
    r"""Choose an estimator for every latent site by measuring at the present parameters.

    What is in use, the mapping of the given loss or else the library's default, is measured at each
    site beside the candidates, and stays where none of them is clearly better. First one estimator
    is tried at all sites that are not reparameterized. Then one site after the other, that with the
    noisiest gradient first, gets its candidates tried while the others stay as they were chosen so
    far; a second round follows where the first one changed something. What is compared is the work

    .. math::
        \text{seconds} \times \sqrt{1 + \frac{\operatorname{tr}\operatorname{Cov} g}
            {\lVert E\, g\rVert^2}},

    the root averaged over the groups of parameters of `compare_gradients`: what Adam needs for the
    same progress. Another estimator replaces that in use only where its 95 % interval says that it
    is better, by more than 5 %; of several that cannot be told apart, the simplest is taken.

    Nothing is disturbed: parameters, buffers, generators, Pyro's store and losses stay as they are.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: what both are called with: a tensor, a tuple or a dict; as large as in training.
        candidates: estimators or names, for all sites, or by site name or glob; default all that
            have a name and serve the site. A site that none is offered for keeps what is in use.
        budget_seconds: of the pilot, processor seconds on a CPU. What is measured by then decides;
            0 gives what is in use.
        biased: whether biased candidates may be chosen.
        seed: of all draws; default one that follows from the state of torch's generator.
        objective: the bound, or a loss whose objective, options and estimators are taken; default
            ``ELBO()``.
        captured: steps are timed as `SVI` replays them; False: as the programs run, with
            ``compile="off"`` or under Pyro's own SVI.
        warmup_steps: so many steps what estimators learn is trained first, with model and guide
            fixed.
        data_plate: as in `SVI`.
        clock: a function without arguments that gives seconds; default the processor's time.

    Raises:
        UsageError: a wrong argument.
        EstimatorError: the objective takes samples as data.
        ProgramError: the programs fail on the batch.
        NonFiniteError: the gradient of what is in use is not finite.

    >>> import amortized as am, pyro, pyro.distributions as dist, torch
    >>> def model(): pyro.factor("f", (pyro.sample("b", dist.Bernoulli(0.3)) - 0.45) ** 2)
    >>> def guide(): pyro.sample("b", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(-.9))))
    >>> chosen = select_estimators(model, guide, (), ["score_function", "enumerate"], seed=0)
    >>> list(chosen), sorted(row.candidate for row in chosen.rows)
    (['b'], ['enumerate', 'moving_average', 'score_function'])
    >>> loss = am.VariationalLoss(estimators=chosen)
    """
    _refuse(budget_seconds, warmup_steps, seed)
    given = data_plate if isinstance(data_plate, DataPlate | None) else DataPlate(data_plate)
    pair = Pair(model, guide, batch)
    with isolated(model, guide):
        leaves = trained(pair).leaves.values()
        setting = Setting(
            pair,
            _prototype(objective),
            clock_of(leaves) if clock is None else clock,
            captured=captured,
            warmup_steps=warmup_steps,
            data=given,
        )
        if seed is not None:
            seed_torch(seed)
        outcome = searched(setting, candidates, budget_seconds, biased=biased)
    return _selection(outcome, setting)


def _prototype(objective: Objective | VariationalLoss | None) -> VariationalLoss:
    loss = objective if isinstance(objective, VariationalLoss) else VariationalLoss(objective)
    if not loss.objective.site_estimators:
        raise EstimatorError(
            f"{loss.objective!r} takes samples as data, so no gradient of a sample is estimated at "
            "any site, and there is nothing to choose; use am.ELBO(), am.IWAE() or am.Renyi()"
        )
    return loss


def _refuse(budget_seconds: object, warmup_steps: object, seed: object) -> None:
    number = type(budget_seconds) in (int, float)
    if not number or math.isnan(float(str(budget_seconds))) or float(str(budget_seconds)) < 0:
        raise UsageError(f"budget_seconds={budget_seconds!r}: expected seconds, at least 0")
    if type(warmup_steps) is not int or warmup_steps < 0:
        raise UsageError(f"warmup_steps={warmup_steps!r}: expected an int, at least 0")
    if seed is not None and type(seed) is not int:
        raise UsageError(f"seed={seed!r}: expected an int or None")


def _selection(outcome: Outcome, setting: Setting) -> Selection:
    chosen = {s: o for s, o in outcome.chosen.items() if not outcome.options[s].fixed}
    about = [
        # a note says it where no capture could be made
        *(() if outcome.notes else (f"seconds of one step {_timed(setting)}",)),
        *outcome.notes,
    ]
    learns = [f"{row.candidate} at {row.site!r}" for row in outcome.rows if _learns(row, outcome)]
    if learns:
        about.append(f"what {', '.join(learns)} learned took {setting.warmup_steps} steps only")
    rows = sorted(outcome.rows, key=lambda row: _place(row, outcome))
    return Selection(
        estimators={site: option.recipe for site, option in chosen.items()},
        names={site: option.name for site, option in chosen.items()},
        rows=rows,
        pilot_seconds=outcome.seconds,
        about=about,
    )


def _timed(setting: Setting) -> str:
    return "as a capture replays it" if setting.captured else "as the programs run"


def _place(row: Row, outcome: Outcome) -> tuple[int, int, float]:
    """By site; the chosen one first, then by work, then those that were not measured."""
    site = list(outcome.options).index(row.site)
    return site, _FIRST.get(row.verdict, 1), math.inf if row.work is None else row.work


def _learns(row: Row, outcome: Outcome) -> bool:
    options = outcome.options[row.site].options
    return row.work is not None and any(o.learns and o.name == row.candidate for o in options)
