"""What a comparison of trainings found, as data, as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final, get_args

from amortized.compare.intervals import Mean, mean_of
from amortized.compare.tables import Sheet, Tabled
from amortized.compare.training.trial import Trial
from amortized.errors import UsageError

Against = Literal["steps", "seconds", "wall"]
Metric = Literal["elbo", "log_evidence"]


@final
@dataclass(frozen=True)
class Curve:
    """Means over the seeds of one candidate, as far as all its trials went.

    ``at`` are the steps or the mean seconds, ``means`` the numbers there with 95 % intervals.
    """

    at: list[float]
    means: list[Mean]


@final
@dataclass(frozen=True, eq=False)
class TrainingComparison(Tabled):
    """Learning curves of several candidates over several seeds.

    Attributes:
        trials: one a candidate and seed, in the order in which they were run.
        max_steps: optimizer steps of each.
        evaluations: how often a step of each candidate evaluates the model, a datum.
        held_out: whether numbers are of validation data; else the program has none, and they are
            of its training data.
        particles: of each check.
        missing: how many trials Ctrl-C left out.
    """

    trials: list[Trial]
    max_steps: int
    evaluations: dict[str, int]
    held_out: bool
    particles: int
    missing: int = 0

    @property
    def candidates(self) -> list[str]:
        """The names of the candidates, in order."""
        return list(self.evaluations)

    def of(self, candidate: str) -> list[Trial]:
        """The trials of a candidate, by seed.

        Raises:
            UsageError: there is no such candidate.
        """
        if candidate not in self.evaluations:
            raise UsageError(f"no candidate {candidate!r}: expected one of {self.candidates}")
        return sorted((t for t in self.trials if t.candidate == candidate), key=lambda t: t.seed)

    def finished(self, candidate: str) -> list[Trial]:
        """Its trials that came to their end."""
        return [trial for trial in self.of(candidate) if not trial.failure]

    def curve(self, candidate: str, metric: Metric = "elbo", against: Against = "steps") -> Curve:
        """The mean learning curve of a candidate, up to where the first of its trials failed.

        Against seconds, each check stands at the mean of its seconds.
        """
        trials = self.of(candidate)
        # as long as the shortest
        columns = list(zip(*(trial.numbers(metric) for trial in trials), strict=False))
        places = zip(*(trial.numbers(against) for trial in trials), strict=False)
        at = [math.fsum(place) / len(place) for place in places]
        return Curve(at[: len(columns)], [mean_of(column) for column in columns])

    def final(self, candidate: str, metric: Metric = "elbo") -> Mean:
        """The last number, over the trials that finished."""
        found = [trial.numbers(metric) for trial in self.finished(candidate)]
        return mean_of([numbers[-1] for numbers in found if numbers])

    @property
    def best(self) -> str | None:
        """The candidate whose final ELBO is the highest; one whose trials all finished, if any."""
        whole = [n for n in self.candidates if len(self.finished(n)) == len(self.of(n)) > 0]
        fair = whole or [name for name in self.candidates if self.finished(name)]
        values = {name: self.final(name).value for name in fair}
        found = {name: value for name, value in values.items() if math.isfinite(value)}
        return max(found, key=found.__getitem__) if found else None

    def behind(self, candidate: str, metric: Metric = "elbo") -> Mean:
        """How far the last number is below that of `best`: differences seed by seed."""
        if self.best is None:
            return mean_of([])
        ends = [
            {trial.seed: trial.numbers(metric)[-1] for trial in self.finished(name)}
            for name in (self.best, candidate)
        ]
        return mean_of([value - ends[1][s] for s, value in ends[0].items() if s in ends[1]])

    @property
    def targets(self) -> dict[int, float]:
        """By seed, the highest ELBO that every candidate reaches which gains half of the most.

        Seeds start at different levels, and their data may have another evidence, so each has a
        value of its own; all candidates share it. A seed in which nothing is gained has none.
        """
        found = {}
        for seed in sorted({trial.seed for trial in self.trials}):
            gains = {}
            for trial in self.trials:
                values = [value for value in trial.elbo if math.isfinite(value)]
                if values and not trial.failure and trial.seed == seed:
                    gains[max(values)] = max(values) - values[0]
            most = max(gains.values(), default=0.0)
            tops = [top for top, gain in gains.items() if 0 < most <= 2 * gain]
            if tops:
                found[seed] = min(tops)
        return found

    def times_to(
        self,
        candidate: str,
        target: float | Mapping[int, float] | None = None,
        against: Against = "seconds",
    ) -> dict[int, float]:
        """When the ELBO of each seed first reaches a value, between checks by a straight line.

        Args:
            candidate: its name.
            target: in nats, one for all seeds or one for each; default `targets`.
            against: ``"steps"``, ``"seconds"`` or ``"wall"``.

        Returns:
            By seed; infinity where the trial misses it.
        """
        goals = self.targets if target is None else target
        found = {}
        for trial in self.of(candidate):
            goal = goals.get(trial.seed) if isinstance(goals, Mapping) else goals
            if goal is not None:
                found[trial.seed] = _first(trial.numbers(against), trial.elbo, goal)
        return found

    def time_to(
        self,
        candidate: str,
        target: float | Mapping[int, float] | None = None,
        against: Against = "seconds",
    ) -> Mean:
        """The mean of `times_to`; ``count`` says how many trials reach the value.

        Where one misses it, the mean is unknown: it is given as infinite, and ``low`` is the mean
        with the ends of such trials in the place of times, below which it cannot be.
        """
        times = self.times_to(candidate, target, against)
        missed = [seed for seed, time in times.items() if math.isinf(time)]
        if missed:
            ends = {t.seed: t.numbers(against)[-1] for t in self.of(candidate) if t.steps}
            least = [ends.get(s, 0.0) if s in missed else time for s, time in times.items()]
            bound = math.fsum(least) / len(least)
            return Mean(math.inf, bound, math.inf, len(times) - len(missed))
        mean = mean_of(list(times.values()))
        # Student's interval does not know that nothing happens before the start
        return replace(mean, low=max(0.0, mean.low)) if mean.count > 1 else mean

    def evals(self, candidate: str) -> str:
        """Evaluations of the model a step and datum, at the end where training chose estimators."""
        found = {t.evaluations for t in self.of(candidate) if t.evaluations is not None}
        if not found:
            return str(self.evaluations[candidate])
        return str(found.pop()) if len(found) == 1 else "varies"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every trial with its curve."""
        about = {name: value for name, value in vars(self).items() if name != "trials"}
        return {**about, "trials": [asdict(trial) for trial in self.trials]}

    def records(self) -> list[dict[str, Any]]:
        """A dict a check of a trial."""
        return [
            {
                "candidate": trial.candidate,
                "seed": trial.seed,
                "step": step,
                "seconds": trial.seconds[index],
                "wall": trial.wall[index],
                "elbo": trial.elbo[index],
                "log_evidence": trial.log_evidence[index] if trial.log_evidence else math.nan,
                "failed_step": trial.failed_step,
            }
            for trial in self.trials
            for index, step in enumerate(trial.steps)
        ]

    def sheet(self) -> Sheet:
        """One row a candidate, the best one first, and those with failed trials last."""

        def rank(name: str) -> tuple[bool, float]:
            return len(self.finished(name)) < len(self.of(name)), _rank(self.final(name))

        ranked = sorted(self.candidates, key=rank)
        heads = ["candidate", "finished", "evals", "ELBO [95 %]", "behind the best [95 %]"]
        heads += ["ms a step", "steps to target", "seconds to target [95 %]"]
        return Sheet(heads, [self._cells(name) for name in ranked], ("candidate",), _LEGEND)

    def _cells(self, name: str) -> list[str]:
        trials = self.of(name)
        steps, seconds = self.time_to(name, against="steps"), self.time_to(name)
        reached = f" ({seconds.count} of {len(self.times_to(name))})"
        pace = mean_of([1e3 * t.seconds[-1] / t.steps[-1] for t in trials if t.steps[-1:] > [0]])
        return [
            name,
            f"{len(self.finished(name))} of {len(trials)}",
            self.evals(name),
            _between(self.final(name), 2),
            "best" if name == self.best else _between(self.behind(name), 2),
            "-" if not pace.count else f"{pace.value:.2f}",
            f"> {steps.low:.0f}{reached}" if math.isinf(steps.value) else _between(steps, None),
            f"> {seconds.low:.2f}{reached}" if math.isinf(seconds.value) else _between(seconds, 2),
        ]

    def notes(self) -> list[str]:
        """Units, what was held out, and which trials failed."""
        unit = "nats per data point" if all(t.per_datum for t in self.trials) else "nats in all"
        data = "validation data" if self.held_out else "the training data: there are no others"
        notes = [
            f"ELBO: {unit} of {data}, {self.particles} particles, after {self.max_steps} steps, "
            "means over seeds with 95 % intervals",
            "behind the best: differences seed by seed; seconds: of the processor, without checks",
        ]
        notes += self._notes_on_targets() + self._notes_on_choices()
        notes += [
            f"candidate {t.candidate!r}, seed {t.seed}, failed at step {t.failed_step}: {t.failure}"
            for t in self.trials
            if t.failure
        ]
        return [*notes, *([f"interrupted: {self.missing} trials are missing"] * (self.missing > 0))]

    def _notes_on_targets(self) -> list[str]:
        if not self.targets:
            return []
        low, high = min(self.targets.values()), max(self.targets.values())
        values = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        return [
            "target: of each seed, the highest ELBO that every candidate reaches which gains half "
            f"as much as the best one there: {values}"
        ]

    def _notes_on_choices(self) -> list[str]:
        """What ended with which estimators, where training chose them."""
        found: dict[tuple[str, str], list[str]] = {}
        for trial in self.trials:
            if trial.evaluations is not None:
                chosen = ", ".join(f"{site}: {own}" for site, own in trial.estimators.items())
                found.setdefault((trial.candidate, chosen), []).append(str(trial.seed))
        return [
            f"candidate {name!r} ended with {chosen} (seeds {', '.join(seeds)}); trial.notices say "
            "when it was chosen, and why"
            for (name, chosen), seeds in found.items()
        ]

    def plot(self, ax: Any = None, against: Against = "steps", metric: Metric = "elbo") -> Any:
        """Mean learning curves with 95 % bands; the ``ax`` comes back.

        Where a trial fails, the mean ends with a cross, and the others go on as thin lines.

        Args:
            ax: where to draw; default a new figure.
            against: ``"steps"``, ``"seconds"`` of the processor, or ``"wall"`` seconds.
            metric: ``"elbo"`` or ``"log_evidence"``.

        Raises:
            UsageError: another word, or nothing was measured.
        """
        for name, value, known in (("against", against, Against), ("metric", metric, Metric)):
            if value not in get_args(known):
                raise UsageError(f"plot({name}={value!r}): expected one of {get_args(known)}")
        if not any(trial.numbers(metric) for trial in self.trials):
            raise UsageError(f"plot(metric={metric!r}): none of the trials has such numbers")
        # matplotlib is slow to import
        from amortized.compare.training.figures import learning_curves

        return learning_curves(self, ax, against=against, metric=metric)


_LEGEND = (
    ("finished", "trials that came to their end, of all seeds"),
    (
        "evals",
        "evaluations of the model a step and datum; where training chose estimators, at its end, "
        "and 'varies' where seeds differ",
    ),
    ("ELBO", "at the last check, the mean over seeds with a 95 % interval (Student)"),
    ("behind the best", "how much lower, by differences seed by seed"),
    ("ms a step", "processor milliseconds, captures and compilations included, checks left out"),
    (
        "steps, seconds to target",
        "when the ELBO first reaches the target of its seed, by lines between checks, the mean "
        "over seeds; '> x (k of n)': only k of n trials reach it, and the mean would be x if the "
        "others had reached it at their ends",
    ),
)


def _first(at: Sequence[float], values: Sequence[float], goal: float) -> float:
    """Where a curve first reaches a value; infinity: nowhere."""
    reached = [value >= goal for value in values]
    if True not in reached:
        return math.inf
    index = reached.index(True)
    if index == 0:
        return at[0]
    low, high = values[index - 1], values[index]
    # a check that was not finite says nothing of where the line runs
    share = (goal - low) / (high - low) if math.isfinite(low) and high > low else 1.0
    return at[index - 1] + share * (at[index] - at[index - 1])


def _rank(mean: Mean) -> float:
    return -mean.value if math.isfinite(mean.value) else math.inf


def _between(mean: Mean, digits: int | None) -> str:
    """With the interval, or as a whole number without it."""
    if not mean.count:
        return "-"
    if digits is None:
        return f"{mean.value:.0f}"
    value = f"{mean.value:.{digits}f}"
    if not math.isfinite(mean.high - mean.low):
        return value
    return f"{value} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
