"""Latents that a term depends on where their pathwise gradient cannot follow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from amortized.checks.isolation import seed_torch
from amortized.checks.places import names_words
from amortized.checks.report import Finding
from amortized.checks.traces import is_ours
from amortized.errors import AmortizedError
from amortized.estimate import Estimate
from amortized.estimators.base import Estimator, TorchNoise, base_of
from amortized.programs.handlers import Context
from amortized.programs.leaves import leaves_under
from amortized.programs.records import LatentSite, SiteRecord
from amortized.programs.replay import ModelHandler
from amortized.programs.run import Program, execute, values_of
from amortized.programs.study import undisturbed
from amortized.programs.terms import model_terms

# runs in which groups of latents are drawn anew, and as many for the members of a group
_PROBES = 4
_MEMBERS = 8
# how far towards another draw: little enough to step over few thresholds, and far above rounding
_STEP = 1e-3

Values = Mapping[str, Tensor]


def detached_findings(
    model: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], estimate: Estimate, seed: int
) -> Iterator[Finding]:
    """Latents whose estimator follows slopes, and that a term depends on without a gradient.

    A term has no path to a draw, and another draw, everything else being equal, changes the term.
    """
    latents = {latent.name: latent for latent in estimate.run.latents if _learns(latent, estimate)}
    if not latents:
        return
    replays = _Replays(model, args, kwargs, estimate, seed)
    try:
        paths = _paths(replays, latents)
    except Exception as error:  # a program that refuses leaves as values: nothing is known
        _raise_ours(error)
        return
    with torch.no_grad():
        for name, terms in sorted(_deaf(replays, paths, latents).items()):
            smooth = _smooth(replays, latents[name], terms)
            record, heard = replays.run.guide[name], paths.hears(name)
            if latents[name].estimator.differentiates_cost:
                yield _slopeless(record, latents[name].estimator, terms)
            else:
                yield _finding(record, terms, smooth, heard)


def _raise_ours(error: Exception) -> None:
    """A mistake of this package's own is no answer of a program."""
    if isinstance(error, AmortizedError | TypeError) and is_ours(error):
        raise error


def _learns(latent: LatentSite, estimate: Estimate) -> bool:
    """Whether a gradient should come to a latent through its value."""
    record = estimate.run.guide[latent.name]
    attached = latent.estimator.attached and latent.draw.axis is None
    return (
        (attached or latent.estimator.differentiates_cost)
        and not record.observed
        and latent.name in estimate.run.model
        and record.value.requires_grad
    )


@final
class _Replays:
    """The terms of the model on given values, everything else being equal."""

    def __init__(
        self,
        model: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        estimate: Estimate,
        seed: int,
    ) -> None:
        self.model, self.args, self.kwargs, self.seed = model, args, kwargs, seed
        self.run = estimate.run
        self.context = Context(self.run.layout, TorchNoise(), data=estimate.data)
        self.drawn_by = {latent.name: latent.estimator for latent in self.run.latents}
        self.values = {name: value.detach() for name, value in values_of(self.run).items()}
        self.first: dict[str, Tensor] = {}

    def terms(self, values: Values) -> dict[str, Tensor]:
        """The terms by name, in order; these values instead of those of the run."""
        seed_torch(self.seed)
        with undisturbed(self.model), pyro.validation_enabled(False):
            handler = ModelHandler(self.context, {**self.values, **values}, self.run.subsamples)
            records = execute(self.model, self.args, self.kwargs, handler, self.context).records
            terms = model_terms(records, self.context.layout, self.drawn_by)
        return {term.name: term.value for term in terms}

    def changed(self, values: Values) -> set[str]:
        """The terms that have another value then; none if the model cannot run."""
        try:
            now = self.terms(values)
        except Exception as error:  # other values may be impossible
            _raise_ours(error)
            return set()
        return {name for name, value in now.items() if _differs(value, self.first.get(name))}


@dataclass(frozen=True)
class _Paths:
    """For each term of the model, the latents before it with and without a path to it."""

    heard: dict[str, set[str]]
    deaf: dict[str, set[str]]

    def hears(self, name: str) -> list[str]:
        """The terms with a path to a latent."""
        return [term for term, names in self.heard.items() if name in names]


def _paths(replays: _Replays, latents: Collection[str]) -> _Paths:
    leaves = {name: replays.values[name].clone().requires_grad_() for name in latents}
    with torch.enable_grad():
        # programs may write into a value, but not into a leaf
        terms = replays.terms({name: leaf.clone() for name, leaf in leaves.items()})
    replays.first = {name: value.detach() for name, value in terms.items()}
    heard: dict[str, set[str]] = {}
    deaf: dict[str, set[str]] = {}
    before: list[str] = []
    for term, value in terms.items():
        reached = leaves_under(value)
        heard[term] = {name for name in before if id(leaves[name]) in reached}
        deaf[term] = {*before} - heard[term]
        before += [term] if term in leaves else []
    return _Paths(heard, deaf)


def _deaf(
    replays: _Replays, paths: _Paths, latents: Mapping[str, LatentSite]
) -> dict[str, list[str]]:
    """The terms that depend on a latent to which they have no path, by latent."""
    others = {name: _other(replays, latent) for name, latent in latents.items()}
    left = {term: {*names} for term, names in paths.deaf.items() if names}
    found: dict[str, set[str]] = {}
    for _ in range(_PROBES):
        if not left:
            break
        # latents that one term is deaf to, together: what else hears none of them is asked too;
        # what is observed matters most
        observed = [t for t in left if replays.run.model[t].observed]
        group = {*left[max(observed or left, key=lambda t: len(left[t]))]}
        asked = [t for t in left if t not in group and not paths.heard[t] & group]
        changed = replays.changed({name: others[name] for name in group}).intersection(asked)
        for name in sorted(group)[:_MEMBERS] if changed else ():
            own = changed if len(group) == 1 else changed & replays.changed({name: others[name]})
            found.setdefault(name, set()).update(t for t in own if name in paths.deaf[t])
        left = {t: n - group if t in asked else n for t, n in left.items()}
        left = {t: n for t, n in left.items() if n}
    # what changes by itself says nothing
    unsteady = replays.changed({}) if any(found.values()) else set()
    steady = {name: sorted(terms - unsteady) for name, terms in found.items()}
    return {name: terms for name, terms in steady.items() if terms}


def _other(replays: _Replays, latent: LatentSite) -> Tensor:
    """Another value that the guide, or for a point the model, might give."""
    value = replays.values[latent.name]
    if latent.estimator.differentiates_cost:  # bits, one-hot vectors, and relaxed ones
        return value.roll(1, -1) if "OneHot" in latent.draw.site.family else 1.0 - value
    seed_torch(replays.seed ^ 2)
    with torch.no_grad():
        drawn = latent.draw.site.law.sample()
        if not torch.equal(drawn, value):
            return drawn
        try:
            onto = biject_to(replays.run.model[latent.name].fn.support)
            free = onto.inv(value)
            return onto(free + 0.1 * (1.0 + free.abs()) * torch.randn_like(free))
        except Exception:  # a support without a transform
            return 0.9 * value


def _smooth(replays: _Replays, latent: LatentSite, terms: Iterable[str]) -> bool:
    """Whether a term moves in proportion to a small step of a latent, or only in jumps."""
    if "StraightThrough" in latent.draw.site.family:
        return False
    value = replays.values[latent.name]
    step = _STEP * (_other(replays, latent) - value)
    try:
        ahead, back = (replays.terms({latent.name: value + s}) for s in (step, -step))
    except Exception as error:  # a small step changes what the program does
        _raise_ours(error)
        return False
    return any(_in_proportion(*(t[name] for t in (back, replays.first, ahead))) for name in terms)


def _in_proportion(back: Tensor, here: Tensor, ahead: Tensor) -> bool:
    one, two = (ahead - here).double(), (here - back).double()
    known = one.isfinite() & two.isfinite()
    one, two = one[known], two[known]
    moved = one.abs().sum() + two.abs().sum()
    return bool(moved > 0 and (one - two).abs().sum() <= 0.25 * moved)


def _differs(now: Tensor, then: Tensor | None) -> bool:
    if then is None or now.shape != then.shape:
        return False
    return not torch.allclose(now.detach(), then, 1e-5, 1e-6, equal_nan=True)


def _slopeless(latent: SiteRecord, estimator: Estimator, terms: list[str]) -> Finding:
    """Of an estimator whose control variate is the model's slope at relaxed values."""
    name, who = latent.name, names_words(terms)
    return Finding(
        "warning",
        "detached-latent",
        name,
        _place(latent),
        f"{who} of the model {_depends(terms)} on its value, but {estimator!r} finds no slope "
        "there, on which its control variate rests",
        estimator.needs,
        "take out comparisons, indices, rounding and .detach() between "
        f"{name!r} and {who}, or give {name!r} am.DisARM(), am.ScoreFunction() or am.RELAX(), "
        "which take no slope of the model",
    )


def _place(latent: SiteRecord) -> str:
    plates = ", ".join(f"{plate!r} {size}" for plate, (size, _) in latent.sizes.items())
    return f"site {latent.name!r} of the model" + (f" (plates: {plates})" if plates else "")


def _depends(terms: list[str]) -> str:
    return "depend" if len(terms) > 1 else "depends"


def _finding(latent: SiteRecord, terms: list[str], smooth: bool, heard: list[str]) -> Finding:
    name, who = latent.name, names_words(terms)
    depends = _depends(terms)
    loss = (
        f"; only {names_words(heard)} can tell the guide about it"
        if heard
        else ": the guide would learn from its prior alone"
    )
    if smooth:
        found = f"{who} of the model {depends} on its value, but no gradient leads back to it{loss}"
        advice = (
            f"take out the .detach(), .item(), .tolist(), .numpy() or torch.no_grad() between "
            f"{name!r} and {who}"
        )
    else:
        found = f"{who} of the model {depends} on its value in jumps, without a gradient{loss}"
        advice = "a comparison, an index or rounding has no gradient: make the dependence smooth"
    if type(base_of(latent.fn)).__name__ != "Delta":  # a point has no score
        advice += f", or give {name!r} am.ScoreFunction()"
    return Finding(
        "error" if smooth and not heard else "warning",
        "detached-latent",
        name,
        _place(latent),
        found,
        "a gradient from every term that depends on a draw under am.Pathwise()",
        advice,
    )
