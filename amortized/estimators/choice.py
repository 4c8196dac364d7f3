"""Which estimator a site gets: mapping, then the site's own wish, then the default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from amortized.errors import EstimatorError, UsageError
from amortized.estimators.antithetic import ARM, DisARM
from amortized.estimators.base import Estimator, Site
from amortized.estimators.baselines import Baseline, LeaveOneOut, MovingAverage, NeuralBaseline
from amortized.estimators.enumeration import Enumerate
from amortized.estimators.measure_valued import MeasureValued
from amortized.estimators.muprop import MuProp
from amortized.estimators.pathwise import DoublyReparameterized, Pathwise
from amortized.estimators.rebar import REBAR
from amortized.estimators.relax import RELAX
from amortized.estimators.relaxed import Relaxed
from amortized.estimators.score_function import ScoreFunction
from amortized.estimators.straight_through import StraightThrough
from amortized.estimators.subsets import SumAndSample, UnorderedSet

Spec = Estimator | str
"""An estimator, or the name of a common one."""

_BY_NAME: Final[Mapping[str, Callable[[], Estimator]]] = {
    "pathwise": Pathwise,
    "doubly_reparameterized": DoublyReparameterized,
    "score_function": ScoreFunction,
    "moving_average": lambda: ScoreFunction(MovingAverage()),
    "leave_one_out": lambda: ScoreFunction(LeaveOneOut()),
    "neural_baseline": lambda: ScoreFunction(NeuralBaseline()),
    "enumerate": Enumerate,
    "arm": ARM,
    "disarm": DisARM,
    "relaxed": Relaxed,
    "straight_through": StraightThrough,
    "rebar": REBAR,
    "relax": RELAX,
    "muprop": MuProp,
    "measure_valued": MeasureValued,
    "sum_and_sample": SumAndSample,
    "unordered_set": UnorderedSet,
}
NAMES: Final = tuple(_BY_NAME)
"""The names of common estimators."""


@dataclass(frozen=True)
class Choice:
    """A recipe for a site and the reason why the site gets it."""

    recipe: Estimator
    reason: str


def estimator_of(spec: Spec) -> Estimator:
    """An estimator from an instance or one of `NAMES`.

    Raises:
        UsageError: an unknown name, or neither a string nor an estimator.

    >>> estimator_of("leave_one_out")
    ScoreFunction(baseline=LeaveOneOut())
    """
    if isinstance(spec, Estimator):
        return spec
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]()
    raise UsageError(_unknown(spec))


def _unknown(spec: object) -> str:
    if isinstance(spec, str):
        close = get_close_matches(spec, NAMES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown estimator {spec!r}: expected one of {', '.join(NAMES)}{hint}"
    if isinstance(spec, type) and issubclass(spec, Estimator):
        return f"{spec.__name__} is a class, and an estimator is one of it: am.{spec.__name__}()"
    if isinstance(spec, type) and issubclass(spec, Baseline):
        return (
            f"{spec.__name__} is the class of a baseline: the estimator with it is "
            f"am.ScoreFunction(am.{spec.__name__}())"
        )
    if isinstance(spec, Baseline):
        return f"{spec!r} is a baseline: the estimator with it is am.ScoreFunction(am.{spec!r})"
    return f"{spec!r} is no estimator: expected e.g. am.Pathwise() or one of {', '.join(NAMES)}"


class Recipes:
    """The estimators asked for from outside, by exact name or glob, in order."""

    def __init__(self, given: Mapping[str, Spec] | Spec | None) -> None:
        self.auto = given == "auto"
        """Whether `amortized.SVI` chooses by measuring, and may choose again."""
        given = None if self.auto else given
        self.for_all = given is not None and not isinstance(given, Mapping)
        table = given if isinstance(given, Mapping) else {} if given is None else {"*": given}
        self.by_pattern = {pattern: estimator_of(spec) for pattern, spec in table.items()}

    def choose(self, site: Site, wish: Spec | None, enumerate_wish: bool) -> Choice:
        """The recipe for a site: mapping (exact, then glob), site, default."""
        found = self._match(site)
        if found is not None:
            return found
        if wish is not None:
            return Choice(estimator_of(wish), "infer['estimator'] at the site")
        if enumerate_wish:
            return Choice(Enumerate(), "infer['enumerate'] at the site")
        found = default_for(site)
        return Choice(found.recipe, f"auto, not measured: {found.reason}") if self.auto else found

    def _match(self, site: Site) -> Choice | None:
        if site.name in self.by_pattern:
            reason = "auto: measured in training" if self.auto else f"mapping {site.name!r}"
            return Choice(self.by_pattern[site.name], reason)
        for pattern, recipe in self.by_pattern.items():
            if pattern != site.name and fnmatchcase(site.name, pattern):
                # a glob speaks of random sites; a Delta only carries a value that was drawn before
                if site.family == "Delta":
                    return Choice(Pathwise(), "deterministic")
                return Choice(recipe, f"mapping {pattern!r}")
        return None

    def unmatched(self, names: set[str]) -> list[str]:
        """The keys that match none of the site names."""
        if self.for_all:
            return []
        return [
            pattern
            for pattern in self.by_pattern
            if pattern not in names and not any(fnmatchcase(n, pattern) for n in names)
        ]

    def refuse_unmatched(self, names: set[str]) -> None:
        """Raise for a key that matches no latent site.

        Raises:
            EstimatorError: naming the key, the sites, and the closest match.
        """
        wrong = self.unmatched(names)
        if not wrong:
            return
        close = get_close_matches(wrong[0], sorted(names), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise EstimatorError(
            f"estimators[{wrong[0]!r}] matches no latent site of the guide, which has "
            f"{sorted(names)}{hint}"
        )


def default_for(site: Site) -> Choice:
    """The library's default: pathwise where it exists, else a score function with a baseline.

    The choice needs no extra model run and works under control flow on the value; naming an
    estimator is better wherever more is known.
    """
    if site.family == "Delta":
        return Choice(Pathwise(), "default: deterministic")
    if site.law.has_rsample:
        return Choice(Pathwise(), "default: rsample")
    if site.num_particles > 1:
        return Choice(ScoreFunction(LeaveOneOut()), "default: not reparameterizable, particles")
    return Choice(ScoreFunction(MovingAverage()), "default: not reparameterizable")
