"""Which estimators may be tried at a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, final

from amortized.errors import UsageError
from amortized.estimators.base import Estimator, Site
from amortized.estimators.choice import NAMES, Spec, estimator_of

# Those that are simpler come first: they are measured first, and take a tie.
_ORDER: Final = (
    "pathwise",
    "enumerate",
    "moving_average",
    "leave_one_out",
    "disarm",
    "measure_valued",
    "muprop",
    "sum_and_sample",
    "unordered_set",
    "rebar",
    "neural_baseline",
    "relax",
    "doubly_reparameterized",
)
# Never better than another one: ARM's pairs are DisARM's before averaging, and a score function
# without a baseline differs from that with a moving average at its first steps only.
_LEFT_OUT: Final = ("arm", "score_function")
# Where a site is reparameterized, scores are measured on request only: they hardly ever win, and
# would take the time of a pilot from the other sites.
_OF_REPARAMETERIZED: Final = ("pathwise", "measure_valued", "doubly_reparameterized")

Candidates = Sequence[Spec] | Mapping[str, Sequence[Spec]] | None
"""What may be tried: at all sites, or by site name or glob; None: every one with a name."""


@final
@dataclass(frozen=True)
class Option:
    """An estimator at a site: its name, and why it is not to be tried; empty: it is."""

    name: str
    recipe: Estimator
    refusal: str = ""
    bias: str = ""
    learns: bool = False
    """It has a state of its own, which must be warm before its variance says anything."""


@final
@dataclass(frozen=True, eq=False)
class SiteOptions:
    """What may be tried at a site, the simplest first; ``start`` is what is in use, and one of it.

    ``fixed`` says why nothing may be tried; empty: it may.
    """

    site: Site
    options: list[Option]
    start: Option
    fixed: str = ""

    @property
    def admissible(self) -> list[Option]:
        """Those without a refusal."""
        return [] if self.fixed else [option for option in self.options if not option.refusal]

    @property
    def unopposed(self) -> str:
        """Why nothing is measured beside what is in use; empty: something may be."""
        if len(self.admissible) > 1:
            return ""
        offered = len(self.options) > 1
        return "no candidate " + ("serves" if offered else "was offered for") + " this site"


def options_at(
    site: Site, own: Estimator, asked: Candidates, *, biased: bool, weighted: bool, reason: str
) -> SiteOptions:
    """What may be tried at a site: what is in use, whatever is asked, and the candidates.

    Args:
        site: the latent.
        own: the estimator in use, which others have to beat; it may be biased.
        asked: the candidates of the caller.
        biased: whether a candidate may be biased.
        weighted: whether the objective weights draws by each other.
        reason: why the site has that one: a wish of the program fixes it.

    Raises:
        UsageError: an unknown estimator.
    """
    start = _option(name_of(own), own, site, biased=True, weighted=weighted)
    specs = _specs(site, asked)
    if reason.startswith("infer["):
        why = f"the program asks for {start.name}: {reason}"
        names = () if asked is None else (name for name in specs if name != start.name)
        others = [Option(name, estimator_of(specs[name]), why) for name in names]
        return SiteOptions(site, others, start, f"the program asks for it: {reason}")
    options = [
        start
        if name == start.name
        else _option(name, estimator_of(spec), site, biased=biased, weighted=weighted)
        for name, spec in specs.items()
    ]
    return SiteOptions(site, options if start in options else [start, *options], start)


def name_of(recipe: Estimator) -> str:
    """The name of an estimator that has one, else how it is written.

    >>> name_of(estimator_of("leave_one_out"))
    'leave_one_out'
    """
    text = repr(recipe)
    return next((name for name in NAMES if repr(estimator_of(name)) == text), text)


def listed(asked: Candidates) -> Candidates:
    """Candidates that may be gone through several times: a generator is not."""
    if isinstance(asked, Mapping):
        return {pattern: _list(specs) for pattern, specs in asked.items()}
    return None if asked is None else _list(asked)


def _list(specs: Any) -> Any:
    if isinstance(specs, str | Estimator) or not isinstance(specs, Iterable):
        return specs
    return list(specs)


def refuse_candidates(asked: Candidates, sites: Iterable[str]) -> None:
    """Raise for what is no list of estimators, and for a key that matches no site.

    Raises:
        UsageError: naming it.
    """
    if asked is None:
        return
    lists = asked if isinstance(asked, Mapping) else {"*": asked}
    names = list(sites)
    if not lists:
        raise UsageError(
            f"candidates={asked!r}: expected lists of estimators or their names by site, such as "
            "{'z': ['leave_one_out', 'disarm']}, or None for all that serve"
        )
    for pattern, specs in lists.items():
        if isinstance(specs, str | Estimator) or not isinstance(specs, Iterable) or not specs:
            raise UsageError(
                f"candidates: found {specs!r} for {pattern!r}; expected a list of estimators or "
                "their names, such as ['leave_one_out', 'disarm']"
            )
        for spec in specs:
            estimator_of(spec)
        if not any(pattern == name or fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"candidates[{pattern!r}] matches no random latent site of the guide, which has "
                f"{names}"
            )


def _specs(site: Site, asked: Candidates) -> dict[str, Spec]:
    """The candidates for a site, each once, by name; the simplest first where nobody asked."""
    if isinstance(asked, Mapping):
        found = asked.get(site.name)
        if found is None:
            keys = (key for key in asked if fnmatchcase(site.name, key))
            found = next((asked[key] for key in keys), ())
        asked = found
    if asked is not None:
        return {name_of(estimator_of(spec)): spec for spec in asked}
    others = [name for name in NAMES if name not in _ORDER and name not in _LEFT_OUT]
    names = [*_ORDER, *others]
    if site.law.has_rsample:
        names = [name for name in names if name in _OF_REPARAMETERIZED]
    return {name: name for name in names}


def _option(name: str, recipe: Estimator, site: Site, *, biased: bool, weighted: bool) -> Option:
    refusal = recipe.refusal(site) or ""
    bias = recipe.bias_of(site, weighted=weighted)
    if bias and not biased and not refusal:
        refusal = f"biased: {bias}; biased=True has it measured"
    # a buffer with an underscore is a table, and no state
    moved = (n for n, _ in recipe.named_buffers() if not n.rpartition(".")[2].startswith("_"))
    learns = next(recipe.parameters(), None) is not None or next(moved, None) is not None
    return Option(name, recipe, refusal, bias, learns)
