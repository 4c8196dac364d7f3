"""Estimators that a training chooses by measuring, at its beginning and again later."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, final

from amortized.compare.candidates import FAILURES, Pair
from amortized.compare.pilot.attempt import Clock, Setting, clock_of
from amortized.compare.pilot.options import name_of
from amortized.compare.pilot.outcome import Outcome
from amortized.compare.pilot.search import searched
from amortized.errors import AmortizedError, UsageError
from amortized.estimators.choice import NAMES, estimator_of
from amortized.fit.data import batch_length
from amortized.fit.plan import Plan
from amortized.fit.step import Stepper, sized
from amortized.loss import VariationalLoss
from amortized.sites import escaped

# When a training of known length chooses, as a share of its steps, and the share of its expected
# seconds that each choice may take: together a tenth.
_MOMENTS: Final = ((0.0, 0.06), (0.1, 0.02), (0.5, 0.02))
# In a shorter training later shares could not pay for a measurement: the first choice has all.
_SHORT: Final = 20_000
# Where the length is unknown, after so many steps, for as long as until the next choice.
_UNKNOWN: Final = (0, 1_000, 10_000, 100_000)
# fewer steps are not captured, so they are timed as the programs run
_CAPTURED: Final = 400
_WARMUP_STEPS: Final = 25
# At parameters that nobody has trained the gradient is so large that noise hardly counts, but it
# soon falls: what is chosen there is chosen for a tenth of its square.
_TO_COME: Final = 0.1


@final
class Selecting:
    """Measures when it is due, and switches estimators; nothing unless the loss says "auto".

    Args:
        stepper: whose estimators are chosen.
        plan: how long training will be.
        clock: of seconds; default the processor's.
    """

    def __init__(self, stepper: Stepper, plan: Plan, clock: Clock | None = None) -> None:
        self.stepper, self.plan, self.clock = stepper, plan, clock
        self.done = 0
        """How many choices were made, so that a training that is resumed makes each once."""
        self.seconds = 0.0
        """That the last choice took, by the clock on the wall."""

    def due(self, step: int) -> bool:
        """Whether to choose before the next step, so many having been taken."""
        marks = self._marks()
        if not self.stepper.loss.estimators.recipes.auto or self.done >= len(marks):
            return False
        return step >= marks[self.done][0] and not self.stepper.pending

    def choose(self, batch: Any, step: int, kl_weight: float) -> list[str]:
        """Measures on a batch, and switches; says so in sentences for the history."""
        began = time.perf_counter()
        marks = self._marks()
        while self.done < len(marks) and step >= marks[self.done][0]:
            self.done += 1
        steps = marks[self.done - 1][1]
        place = f"before step {step + 1}"
        try:
            outcome = self._measured(batch, step, steps, kl_weight)
        except FAILURES as error:
            who = "" if isinstance(error, AmortizedError) else f"{type(error).__name__}: "
            said = [f"{place}: estimators stay as they are: measuring them failed: {who}{error}"]
        else:
            said = self._switched(outcome, batch, place)
            if not step:
                self._take_over(outcome)
        self.seconds = time.perf_counter() - began
        return said

    def _take_over(self, outcome: Outcome, sites: Iterable[str] | None = None) -> None:
        """What estimators learned in the pilot: of these sites, or of all."""
        by_site = self.stepper.loss.estimators.by_site
        for site in outcome.learned if sites is None else sites:
            if site in outcome.learned:
                by_site[escaped(site)].load_state_dict(outcome.learned[site].state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does not choose again what was chosen; see `adopt` for the estimators."""
        self.done = state.get("done", 0)

    def _marks(self) -> list[tuple[float, float]]:
        """Steps at which to choose, with the number of steps whose time each may take."""
        total = self.plan.steps
        if total is not None and total < _SHORT:
            return [(_MOMENTS[0][0] * total, total * sum(part for _, part in _MOMENTS))]
        if total is not None:
            return [(share * total, part * total) for share, part in _MOMENTS]
        part, ends = _MOMENTS[0][1], _UNKNOWN[1:]
        return [(first, part * end) for first, end in zip(_UNKNOWN, ends, strict=False)]

    def _measured(self, batch: Any, step: int, steps: float, kl_weight: float) -> Outcome:
        stepper, total = self.stepper, self.plan.steps
        batch = stepper.placed(batch)
        known = stepper.loss.estimators
        with stepper.parameters.scope():
            pair = Pair(stepper.model, stepper.guide, batch)
            tensors = stepper.parameters.tensors().values()
            clock = clock_of(tensors) if self.clock is None else self.clock
            setting = Setting(
                pair,
                stepper.loss,
                clock,
                captured=stepper.compile != "off" and (total is None or total >= _CAPTURED),
                warmup_steps=_WARMUP_STEPS,
                data=sized(self.plan.data, batch_length(batch)),
                kl_weight=kl_weight,
                # before the first step nothing is
                learned=known.by_name() if step else {},
                signal=1.0 if step else _TO_COME,
            )
            return searched(setting, None, lambda seconds: seconds * steps)

    def _switched(self, outcome: Outcome, batch: Any, place: str) -> list[str]:
        """Takes over what was chosen, with what it has learned in the pilot."""
        stepper, measured = self.stepper, any(row.work is not None for row in outcome.rows)
        if not measured and self.done > 1:
            return []
        if not measured:
            several = any(len(of.admissible) > 1 for of in outcome.options.values())
            why = "the steps to come are too few to pay for it" if several else "there is no choice"
            return [f"{place}: no estimators were measured: {why}"]
        count = sum(row.seconds is not None for row in outcome.rows)
        said = [f"{place}: {count} estimators were measured in {outcome.seconds:.2g} s"]
        why = {(row.site, row.candidate): row.why for row in outcome.rows}
        before, chosen = outcome.before, outcome.chosen
        changed = {s: o.recipe for s, o in chosen.items() if o.name != before[s]}
        if not changed:
            return said
        stepper.optimizer.forget(stepper.loss.estimators.switch(changed))
        stepper.warm_up(batch, again=True)
        self._take_over(outcome, changed)
        for site in changed:
            name = chosen[site].name
            said.append(f"{place}: site {site!r}: {before[site]} -> {name}: {why[site, name]}")
        return said


def selection_of(loss: VariationalLoss, done: int = 0) -> dict[str, Any]:
    """What a checkpoint keeps of the estimators that measuring chose."""
    chosen = loss.estimators.chosen()
    return {"done": done, "estimators": {site: name_of(e) for site, e in chosen.items()}}


def adopt(stepper: Stepper, state: Mapping[str, Any]) -> None:
    """Takes the chosen estimators of a checkpoint, before the programs declare what they hold.

    Raises:
        UsageError: the file was written by a version with other estimators.
    """
    names = state.get("selection", {}).get("estimators", {})
    estimators = stepper.loss.estimators
    if not estimators.recipes.auto:
        return
    now = {site: name_of(recipe) for site, recipe in estimators.chosen().items()}
    others = {site: name for site, name in names.items() if now.get(site) != name}
    for site, name in others.items():
        if name not in NAMES:
            raise UsageError(
                f"the checkpoint has {name!r} at site {site!r}, which has no name here"
            )
    if others:
        gone = estimators.switch({site: estimator_of(name) for site, name in others.items()})
        stepper.optimizer.forget(gone)
