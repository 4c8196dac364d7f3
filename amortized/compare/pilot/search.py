"""The search for a mapping: one site after the other, the others as they were chosen so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, final

import torch

from amortized.checks.isolation import isolated
from amortized.compare.candidates import FAILURES
from amortized.compare.groups import SIDES, Trained, trained
from amortized.compare.pilot.attempt import Attempt, Setting
from amortized.compare.pilot.options import (
    Candidates,
    Option,
    listed,
    options_at,
    refuse_candidates,
)
from amortized.compare.pilot.outcome import Outcome, Row, Verdict
from amortized.compare.pilot.ranking import Signals, Work, best, shares
from amortized.errors import AmortizedError
from amortized.estimators.base import Estimator
from amortized.sites import escaped

Budget = float | Callable[[float], float]
"""Seconds, or a function of the seconds of a step that says so."""

# draws of a mapping; and so many times as many, up to a limit, where two cannot be told apart
_DRAWS: Final = 32
_MORE: Final = 4
_MOST_DRAWS: Final = 512
# the time that one attempt takes, with some to spare, in that of the longest so far
_ONE: Final = 1.1
# steps are so many times faster where they are captured, at least, so the budget is smaller
_CAPTURED: Final = 2.0
# Beyond so many copies of values a step takes several times as long, and so does measuring it:
# that comes last, if there is time.
_MANY: Final = 4
# so many copies take at least as long to measure as one
_SIDE_BY_SIDE: Final = 16
# an interval up to so many times as large is worth showing
_WIDE: Final = 100.0
# the logarithm of an interval without an end
_LARGE: Final = 100.0
_SWEEPS: Final = 2
# what a first attempt takes, in evaluations by the programs as they are written
_OF_AN_ATTEMPT: Final = 30
_MOST_BYTES: Final = 2**30  # of all intermediate results of one step


def searched(
    setting: Setting,
    candidates: Candidates,
    budget: Budget,
    *,
    biased: bool = False,
) -> Outcome:
    """Look for the mapping with the least work; programs, generators and losses stay as they are.

    Args:
        setting: the programs on a batch, and how they are trained. The estimators of its loss are
            those in use.
        candidates: what may be tried beside them.
        budget: seconds of the pilot.
        biased: whether biased candidates may be.

    Raises:
        AmortizedError: the programs fail with the estimators in use.
        UsageError: candidates that are none.
    """
    began = setting.clock()
    with isolated(setting.pair.model, setting.pair.guide):
        outcome = _found_sites(setting, listed(candidates), biased=biased)
        outcome.before = {site: option.name for site, option in outcome.chosen.items()}
        search = _Search(setting, trained(setting.pair), outcome, budget)
        search.run()
    outcome.rows.sort(key=lambda row: list(outcome.options).index(row.site))
    outcome.seconds = setting.clock() - began
    return outcome


def _found_sites(setting: Setting, candidates: Candidates, *, biased: bool) -> Outcome:
    """The random sites of the guide, and what each may have."""
    pair, recipes = setting.pair, setting.loss.estimators.recipes
    given = recipes.by_pattern
    look = setting.loss.with_estimators(given["*"] if recipes.for_all else given)
    with torch.no_grad():
        run = look.estimate(pair.model, pair.guide, pair.args, pair.kwargs, data=setting.data).run
    reasons, own = look.estimators.reasons, look.estimators.by_name()
    found = {
        latent.name: latent.draw.site
        for latent in run.latents
        if latent.name in reasons and latent.draw.site.family != "Delta"
    }
    refuse_candidates(candidates, found)
    weighted = not look.objective.additive
    options = {
        name: options_at(
            site, own[name], candidates, biased=biased, weighted=weighted, reason=reasons[name]
        )
        for name, site in found.items()
    }
    return Outcome(options, {name: of.start for name, of in options.items()})


@final
class _Search:
    """Coordinate descent over sites."""

    def __init__(self, setting: Setting, known: Trained, outcome: Outcome, budget: Budget) -> None:
        self.setting, self.known, self.outcome = setting, known, outcome
        self.signals = Signals(setting.signal)
        self._began = setting.clock()
        self._budget = budget if isinstance(budget, int | float) else math.inf
        self._of_a_step = None if isinstance(budget, int | float) else budget
        self._until, self._longest = math.inf, 0.0
        self._rows: dict[tuple[str, str], Row] = {}

    def run(self) -> None:
        """Measure as long as the budget lasts."""
        outcome = self.outcome
        sites = [name for name, of in outcome.options.items() if len(of.admissible) > 1]
        self._declare()
        if sites and self._budget > 0:
            incumbent = self._incumbent()
            if incumbent is not None:
                last = self._descend(incumbent, sites)
                by_site = last.loss.estimators.by_site
                modules = {site: by_site[escaped(site)] for site in outcome.chosen}
                outcome.learned = {s: m for s, m in modules.items() if isinstance(m, Estimator)}
        self._conclude()
        outcome.rows = list(self._rows.values())

    def _descend(self, incumbent: Attempt, sites: list[str]) -> Attempt:
        """First one estimator at all sites of the score, then one site after the other.

        A second time if a choice may have changed others.
        """
        options = self.outcome.options
        alike = [site for site in sites if not options[site].site.law.has_rsample]
        if len(alike) > 1:
            self._allow(0.5)
            incumbent = self._choose(alike, incumbent)
        for sweep in range(_SWEEPS):
            changed = False
            order = shares(incumbent.noise, self.signals, sites)
            for place, site in enumerate(order):
                # what the first site leaves must do for the others, too
                self._allow(1.0 if sweep else 1 / (len(order) - place))
                found = self._choose([site], incumbent)
                changed = changed or found is not incumbent
                incumbent = found
            if not changed or len(sites) == 1 or sweep == _SWEEPS - 1 or not self._has_time():
                break
        return incumbent

    def _declare(self) -> None:
        """A row for every candidate, measured or not."""
        for site, of in self.outcome.options.items():
            if of.fixed:
                name = of.start.name
                self._rows[site, name] = Row(site, name, "fixed", of.fixed, of.start.bias)
            for option in of.options:
                verdict: Verdict = "refused" if option.refusal else "not measured"
                why = option.refusal or "the budget ended before it"
                row = Row(site, option.name, verdict, why, option.bias)
                self._rows.setdefault((site, option.name), row)

    def _incumbent(self) -> Attempt | None:
        """The mapping at the beginning; None where there is no time for it and one more."""
        attempt = Attempt(self.setting, self.known, self._recipes({}))
        warm = any(
            option.learns and site not in self.setting.learned
            for site, option in self.outcome.chosen.items()
        )
        attempt.prepare(warm=False)
        one = attempt.eager
        if self._of_a_step is not None:
            self._budget = self._of_a_step(one / _CAPTURED if self.setting.captured else one)
        if not self._has_time(2 * _OF_AN_ATTEMPT * one):
            return None
        if warm:
            attempt.prepare(warm=True)
        began = self.setting.clock()
        attempt.draw(_DRAWS)
        attempt.take_time()
        if self._of_a_step is not None:
            self._budget = self._of_a_step(attempt.seconds)
        self._longest = self.setting.clock() - began
        self.signals.add(attempt)
        if attempt.reason and self.setting.captured:
            self.outcome.notes.append(
                f"seconds are those of the programs as they are written: {attempt.reason}"
            )
        return attempt

    def _choose(self, sites: Sequence[str], incumbent: Attempt) -> Attempt:
        """Measure what these sites may have, one estimator for all of them, and take the best."""
        outcome = self.outcome
        now = {site: outcome.chosen[site] for site in sites}
        moves, tried = [now], [incumbent]
        enough = self.signals.nearly_noiseless(incumbent)
        for move in self._moves(sites):
            if enough and self._growth(move)[1] >= 1:
                why = "the estimator in use has hardly any noise, and this one evaluates no less"
                self._fail(move, "not measured", why)
            elif self._has_time(self._longest * max(1.0, self._growth(move)[1] / _SIDE_BY_SIDE)):
                attempt = self._attempt(move, incumbent, tried)
                if attempt is not None:
                    moves.append(move)
                    tried.append(attempt)
        works = self._refined(tried)
        place = best(works)
        for move, attempt, work in zip(moves, tried, works, strict=True):
            for site, option in move.items():
                self._note(self._row(site, option, attempt, (work, works[0])))
        if place:
            for site, option in moves[place].items():
                if option.name != now[site].name:
                    self._mark(site, option.name, "chosen")
                    why = f"clearly more work than {option.name}"
                    self._mark(site, now[site].name, "worse", why)
            outcome.chosen |= moves[place]
        return tried[place]

    def _moves(self, sites: Sequence[str]) -> list[dict[str, Option]]:
        """Each estimator that serves all these sites, and that not all of them have.

        The simplest comes first, those with many copies last.
        """
        chosen, options = self.outcome.chosen, self.outcome.options
        served = [{o.name: o for o in options[site].admissible} for site in sites]
        names = [name for name in served[0] if all(name in others for others in served)]
        moves = [{site: of[name] for site, of in zip(sites, served, strict=True)} for name in names]
        moves.sort(key=lambda move: self._growth(move)[0] > _MANY)
        return [m for m in moves if any(o.name != chosen[site].name for site, o in m.items())]

    def _note(self, row: Row) -> None:
        """A row that was measured; why a site's estimator was chosen earlier still stands."""
        before = self._rows[row.site, row.candidate]
        if row.verdict == "kept" and before.verdict == "chosen":
            row = replace(row, verdict="chosen", why=before.why)
        self._rows[row.site, row.candidate] = row

    def _mark(self, site: str, name: str, verdict: Verdict, why: str | None = None) -> None:
        row = self._rows[site, name]
        self._rows[site, name] = replace(row, verdict=verdict, why=row.why if why is None else why)

    def _attempt(
        self, move: Mapping[str, Option], incumbent: Attempt, tried: Sequence[Attempt]
    ) -> Attempt | None:
        """One candidate; what fails is recorded, and what cannot win is not measured further."""
        began = self.setting.clock()
        try:
            attempt = Attempt(self.setting, self.known, self._recipes(move))
            why = self._too_large(move, incumbent)
            if why:
                self._fail(move, "refused", why)
                return None
            attempt.prepare(warm=any(option.learns for option in move.values()))
            longer = attempt.eager / incumbent.eager
            spent = self.setting.clock() - began
            if longer > 1 and not self._has_time(self._longest * longer - spent):
                why = f"the budget ended before it: a step takes about {longer:.2g} times as long"
                self._fail(move, "not measured", why)
                return None
            attempt.take_time(incumbent)
            works = (self.signals.work(one) for one in tried)
            # an estimate without noise would have its seconds as work, and others have more
            if min(works, key=lambda work: work.value).clearly_less(
                Work(attempt.seconds, attempt.spread)
            ):
                why = (
                    f"a step of {1e3 * attempt.seconds:.3g} ms would be too long without any noise"
                )
                self._fail(move, "worse", why, attempt.seconds)
                return None
            attempt.draw(_DRAWS)
        except FAILURES as error:
            text = " ".join(str(error).split())[:300]
            who = "" if isinstance(error, AmortizedError) else f"{type(error).__name__}: "
            self._fail(move, "failed", f"{who}{text}")
            return None
        self.signals.add(attempt)
        self._longest = max(self._longest, self.setting.clock() - began)
        return attempt

    def _fail(
        self, move: Mapping[str, Option], verdict: Verdict, why: str, seconds: float | None = None
    ) -> None:
        """Of one site it is said; of several at once each is still to be tried alone."""
        if len(move) == 1:
            for site, option in move.items():
                row = self._rows[site, option.name]
                if row.work is None:  # what was measured beside other mappings still stands
                    row = replace(row, verdict=verdict, why=why, seconds=seconds)
                self._rows[site, option.name] = row

    def _too_large(self, move: Mapping[str, Option], incumbent: Attempt) -> str:
        """Why a candidate is not even tried: the memory of its copies."""
        copies, growth = self._growth(move)
        size = 4 * (incumbent.elements or 0) * growth
        if size <= _MOST_BYTES:
            return ""
        return f"it evaluates {copies} values, and a step would take about {size / 1e9:.1f} GB"

    def _growth(self, move: Mapping[str, Option]) -> tuple[int, float]:
        """How many copies of values a step evaluates, and how many times as many as before."""
        copies, growth = 1, 1.0
        for site, option in move.items():
            of = self.outcome.options[site].site
            copies *= option.recipe.copies(of)
            growth *= option.recipe.copies(of) / max(1, self.outcome.chosen[site].recipe.copies(of))
        return copies, growth

    def _refined(self, tried: Sequence[Attempt]) -> list[Work]:
        """Their work; with more draws as long as the best is not the one that would be taken."""
        works = [self.signals.work(attempt) for attempt in tried]
        while True:
            least = min(range(len(works)), key=lambda i: works[i].value)
            taken = best(works)
            wanted = [] if taken == least else [tried[least], tried[taken]]
            wanted += [a for a, w in zip(tried, works, strict=True) if math.isinf(w.spread)]
            again = [one for one in dict.fromkeys(wanted) if one.draws < _MOST_DRAWS]
            needed = sum(_MORE * one.draw_seconds for one in again)
            if not again or not self._has_time(needed):
                break
            for attempt in again:
                attempt.draw(_MORE * attempt.draws)
                if attempt is not tried[0]:
                    attempt.take_time(tried[0])
                self.signals.add(attempt)
            works = [self.signals.work(attempt) for attempt in tried]
        return works

    def _row(self, site: str, option: Option, attempt: Attempt, place: tuple[Work, Work]) -> Row:
        """One that was measured, beside the one that was in use."""
        work, before = place
        parts = [attempt.noise[side] for side in SIDES if side in attempt.noise]
        reach = math.exp(min(_LARGE, math.hypot(work.spread, before.spread)))
        ratio = work.value / before.value
        name = self.outcome.chosen[site].name
        between = f"[{ratio / reach:.2g}, {ratio * reach:.2g}]" if reach < _WIDE else "[unknown]"
        why = f"{ratio:.2g} {between} of the work of {name}"
        if math.isinf(work.spread):
            why = f"unknown: all {attempt.draws} draws are equal, so what varies was not met"
        elif math.isinf(before.spread):
            why = f"unknown: of {name} all draws are equal, so what varies was not met"
        elif work is before:
            why = "in use, and no candidate was clearly better"
        worse = before.clearly_less(work)
        return Row(
            site,
            option.name,
            "kept" if work is before else "worse" if worse else "tied",
            why,
            option.bias,
            variance=sum(part.variance for part in parts),
            variance_interval=(
                sum(part.interval[0] for part in parts),
                sum(part.interval[1] for part in parts),
            ),
            seconds=attempt.seconds,
            steps=self.signals.steps(attempt)[0],
            work=work.value,
            draws=attempt.draws,
        )

    def _conclude(self) -> None:
        """What each site has in the end."""
        for (site, name), row in self._rows.items():
            chosen = self.outcome.chosen[site].name == name
            if chosen and row.verdict not in ("chosen", "fixed"):
                why = row.why
                if row.verdict != "kept":
                    ended = "the budget ended before anything was measured"
                    why = f"in use, and {self.outcome.options[site].unopposed or ended}"
                self._rows[site, name] = replace(row, verdict="kept", why=why)
            elif not chosen and row.verdict in ("chosen", "kept"):
                self._rows[site, name] = replace(row, verdict="worse")

    def _recipes(self, other: Mapping[str, Option]) -> dict[str, Estimator]:
        fixed = self.outcome.options
        chosen = {**self.outcome.chosen, **other}
        return {site: o.recipe for site, o in chosen.items() if not fixed[site].fixed}

    def _has_time(self, needed: float = 0.0) -> bool:
        return self._spent() + needed < min(self._until, self._budget)

    def _allow(self, share: float) -> None:
        """So much of what is left of the budget may be used next, and at least for one attempt."""
        now = self._spent()
        self._until = now + max(share * (self._budget - now), _ONE * self._longest)

    def _spent(self) -> float:
        return self.setting.clock() - self._began
