"""Runs the model forward, observations included, and the guide on what it simulated."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from amortized.errors import ProgramError, UsageError
from amortized.estimators.as_data import AS_DATA
from amortized.estimators.base import TorchNoise, base_of
from amortized.objectives.base import Observed
from amortized.programs.batches import aliases
from amortized.programs.handlers import (
    Context,
    GuideHandler,
    deterministic,
    record_of,
    refuse_deeper,
    refuse_twice,
    take_all,
)
from amortized.programs.placement import unmasked
from amortized.programs.records import Run, SiteRecord
from amortized.programs.run import Program, execute, is_guide_messenger
from amortized.programs.study import undisturbed
from amortized.programs.terms import build_terms, latents_of, masks_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def simulated_run(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: Context,
    observed: Observed,
    *,
    compare: bool,
) -> Run:
    """The model draws everything, and log q is taken of its latents given its observations.

    Args:
        model: the program that simulates.
        guide: the program that is charged.
        args: positional arguments of both; what is observed counts for its shape alone.
        kwargs: named arguments of both.
        context: without estimators.
        observed: which argument carries which simulated site; None: the one of the same name.
        compare: whether arguments are compared with what the model observes, so that a model that
            changes them on the way is not taken for one that does not.

    Raises:
        ProgramError: the model cannot simulate, or the guide cannot be given what it simulated.
    """
    with torch.no_grad():
        drawn = execute(model, args, kwargs, SimulationHandler(context), context)
    latents = {name: r.value for name, r in drawn.records.items() if not r.observed}
    names = _names(guide, model)
    found = _carried(drawn, observed, _by_name(names, args, kwargs))
    again = _with_arguments(names, args, kwargs, found, compare=compare)
    if compare and not callable(observed):
        carriers = observed or {}
        _refuse_changed(drawn, _by_name(names, args, kwargs), carriers)
        if _tells_nothing(drawn.originals, _by_name(names, args, kwargs), carriers):
            seen = _observed_of(model, guide, again, context)
            _refuse_changed(seen, _by_name(names, *again), carriers)
    held = dict.fromkeys(latents, AS_DATA)
    fixed = replace(context, fixed={**drawn.subsamples, **latents}, drawn_by=held)
    handler = GuideHandler(fixed, runs_model=is_guide_messenger(guide))
    charged = execute(guide, *again, handler, fixed)
    return charged_run(charged, drawn.records, drawn.subsamples, fixed)


def charged_run(
    charged: GuideHandler,
    model: dict[str, SiteRecord],
    subsamples: dict[str, Tensor],
    context: Context,
) -> Run:
    """A run whose terms are those of a guide at values that it did not draw.

    Raises:
        ProgramError: the guide has a site for which there is no value.
    """
    values = context.fixed or {}
    for name, record in charged.records.items():
        if record.observed or name in values:
            continue
        if record.auxiliary:
            raise ProgramError(
                f"site {name!r}: the guide draws it for itself (auxiliary, as Pyro's autoguides "
                "do), so log q of what the model simulates is an integral over it; write a guide "
                "that samples the model's latents directly"
            )
        raise ProgramError(
            f"site {name!r}: the guide samples it, and nothing gives its value (there are values "
            f"of {sorted(values)}); name the model's latent alike, or put its values into the "
            f"batch under {name!r} where simulations are stored"
        )
    refuse_one_for_many(charged.records)
    terms, notes = build_terms(charged.records, model, context.layout, False, {})
    return Run(
        terms=terms,
        latents=latents_of(charged.records, model),
        layout=context.layout,
        guide=charged.records,
        model=model,
        subsamples=subsamples,
        kl_notes=notes,
    )


def refuse_one_for_many(guide: Mapping[str, SiteRecord]) -> None:
    """Raise where one value of a latent would be charged as one of each element of the guide's law.

    Raises:
        ProgramError: the value of a site has fewer elements than its law in the guide.
    """
    for name, record in guide.items():
        law = record.fn.batch_shape
        if record.observed or not isinstance(record.value, Tensor):
            continue
        value = record.value.shape[: record.value.dim() - len(record.fn.event_shape)]
        given = (1,) * (len(law) - len(value)) + tuple(value)
        pairs = zip(law[::-1], given[::-1], strict=False)
        if any(ours > 1 and theirs == 1 for ours, theirs in pairs):
            raise ProgramError(
                f"site {name!r}: its value has batch shape {tuple(value)}, and the guide has a law "
                f"of batch shape {tuple(law)}, so one value would be charged as that of every "
                "element; where the model draws it in a plate without a size, say the size, "
                "pyro.plate(name, len(x)); a stored set has a value for each element"
            )


def stored_values(
    guide: Program,
    model: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sites: set[str],
) -> dict[str, Tensor]:
    """The values of latents that are arguments under the names of their sites.

    Raises:
        ProgramError: a site has none.
    """
    given = _by_name(_names(guide, model), args, kwargs)
    missing = sorted(name for name in sites if not isinstance(given.get(name), Tensor))
    if missing:
        raise ProgramError(
            f"site {missing[0]!r}: a stored set of simulations has the values of all latents, and "
            f"no argument of this name is a tensor (there are {sorted(given)}); pass it in the "
            "batch, and let both programs accept it"
        )
    return {name: given[name] for name in sites}


class SimulationHandler(Messenger):
    """Outermost around the model: every site is drawn and recorded, observed ones too."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.records: dict[str, SiteRecord] = {}
        self.subsamples: dict[str, Tensor] = {}
        self.originals: dict[str, Any] = {}
        """What the observed sites were given."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            take_all(msg)
            return
        refuse_deeper(msg, self.context.layout)
        if deterministic(msg):
            return
        name = msg["name"]
        refuse_twice(name, self.records, "model")
        if type(base_of(msg["fn"])).__name__ == "Unit":
            raise ProgramError(
                f"factor {name!r}: a model with pyro.factor has a density and no way to draw from "
                "it, so it cannot simulate; write it with pyro.sample statements, or use "
                "am.ReweightedWakeSleep(phi='wake')"
            )
        if msg["is_observed"]:
            self.originals[name] = msg["value"]
            msg["is_observed"] = False
        msg["value"] = self.context.noise.sample(unmasked(msg["fn"]), site=name)
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[msg["name"]] = msg["value"]
        elif not deterministic(msg):
            record = record_of(msg, self.context.data)
            record.observed = msg["name"] in self.originals
            self.records[msg["name"]] = record


def _carried(
    drawn: SimulationHandler, observed: Observed, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What the guide is given, by the name of the argument.

    What a mask hides is as the argument has it, so that the guide sees no more than on data.

    Raises:
        UsageError: a name that is no simulated site.
    """
    sites = {name: record.value for name, record in drawn.records.items()}
    if callable(observed):
        return dict(observed(sites))
    names = {name: name for name in drawn.originals} | dict(observed or {})
    strange = sorted(set(names) - set(sites))
    if strange:
        raise UsageError(
            f"observed={observed!r}: the model has no site {strange[0]!r}; it has {sorted(sites)}"
        )
    return {
        argument: _visible(drawn.records[site], sites[site], given.get(argument))
        for site, argument in names.items()
    }


def _visible(record: SiteRecord, value: Tensor, given: Any) -> Tensor:
    """A value, and the given one behind the masks of an observation."""
    if not record.observed or not isinstance(given, Tensor) or given.shape != value.shape:
        return value
    for law, mask in masks_of(record.fn, record.mask):
        if mask is None:
            continue
        mask = torch.as_tensor(mask, device=value.device)
        mask = mask.reshape(mask.shape + (1,) * len(law.event_shape))
        value = torch.where(mask, value, given)
    return value


def _by_name(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _with_arguments(
    names: list[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    compare: bool,
) -> Arguments:
    """The arguments of both programs with what was simulated in place.

    Raises:
        UsageError: no argument of a name.
        ProgramError: what was simulated has another shape than the argument, or does not fit into
            its dtype.
    """
    positional, named = list(args), dict(kwargs)
    for name, value in found.items():
        if name not in named and name not in names:
            known = sorted({*names, *named})
            raise UsageError(
                f"site {name!r}: the model simulates it, and the guide has no argument of that "
                f"name to see it by (arguments: {known}); say which one carries it, "
                f"observed={{{name!r}: ...}}, or give a function from simulated sites to arguments"
            )
        place = names.index(name) if name in names else len(positional)
        before = positional[place] if place < len(positional) else named.get(name)
        value = _alike(name, value, before, compare=compare)
        if place < len(positional):
            positional[place] = value
        else:
            named[name] = value
    return tuple(positional), named


def _alike(name: str, value: Any, before: Any, *, compare: bool) -> Any:
    """A simulated value in the dtype of the argument that it replaces."""
    if not (isinstance(value, Tensor) and isinstance(before, Tensor)):
        return value
    if value.shape != before.shape:
        raise ProgramError(
            f"argument {name!r}: the model simulates a value of shape {tuple(value.shape)}, and "
            f"the argument that it stands for has {tuple(before.shape)}; give "
            "observed= a function from simulated sites to arguments"
        )
    found = value.to(before.dtype)
    if compare and not found.is_floating_point() and not _equal(value, found):
        raise ProgramError(
            f"argument {name!r}: the model simulates numbers that {before.dtype} cannot hold, the "
            "dtype of the argument that they stand for, so they would be cut off; pass the batch "
            "in floating point, or give observed= a function from simulated sites to arguments"
        )
    return found


def _tells_nothing(
    originals: Mapping[str, Any], given: Mapping[str, Any], observed: Mapping[str, str]
) -> bool:
    """Whether arguments are one number throughout, such as the zeros that stand for a shape.

    Then ``x / 255`` equals ``x``: that the model observes what it was given says nothing.
    """
    pairs = [(seen, given.get(observed.get(site, site))) for site, seen in originals.items()]
    return any(
        isinstance(argument, Tensor) and seen is not argument and _constant(argument)
        for seen, argument in pairs
    )


def _constant(value: Tensor) -> bool:
    return value.numel() > 0 and _equal(value, value.flatten()[0])


def _observed_of(
    model: Program, guide: Program, given: Arguments, context: Context
) -> SimulationHandler:
    """What the model observes where it is given simulations; nothing else is left of the run."""
    with undisturbed(model, guide), torch.no_grad():
        args, kwargs = aliases(*given)
        aside = replace(context, noise=TorchNoise())
        return execute(model, args, kwargs, SimulationHandler(aside), aside)


def _refuse_changed(
    drawn: SimulationHandler, given: Mapping[str, Any], observed: Mapping[str, str]
) -> None:
    """Raise where the model observes something else than the argument that carries the site."""
    for site, seen in drawn.originals.items():
        argument = given.get(observed.get(site, site))
        if seen is argument or not (isinstance(argument, Tensor) and isinstance(seen, Tensor)):
            continue
        # behind a mask anything may stand: it is neither observed nor simulated
        alike = seen.shape == argument.shape and _equal(
            _visible(drawn.records[site], seen, argument), argument
        )
        if not alike:
            raise ProgramError(
                f"site {site!r}: the model observes something else than the argument "
                f"{observed.get(site, site)!r} that carries it (it is scaled, binarized or filled "
                "on the way), so the guide would see simulations of another kind than data; do "
                "that before the programs, or give observed= a function from simulated sites to "
                "arguments"
            )


def _equal(first: Tensor, second: Tensor) -> bool:
    second = second.to(first.dtype)
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _names(guide: Program, model: Program) -> list[str]:
    """The names of the arguments, of the guide, or of the model where the guide takes any."""
    for program in (guide, model):
        called = program.forward if isinstance(program, nn.Module) else program
        kinds = inspect.signature(called).parameters.values()
        names = [k.name for k in kinds if k.kind not in (k.VAR_POSITIONAL, k.VAR_KEYWORD)]
        if names:
            return names
    return []
