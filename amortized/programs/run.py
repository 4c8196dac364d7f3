"""One run of a guide and its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from amortized.errors import AmortizedError, ProgramError
from amortized.programs.elimination import eliminated
from amortized.programs.frozen import direct_terms, leaves_of_frozen
from amortized.programs.handlers import Context, DeeperPlatesError, GuideHandler
from amortized.programs.records import DataPlate, Run, SiteRecord
from amortized.programs.replay import ModelHandler
from amortized.programs.terms import build_terms, latents_of

Program = Callable[..., Any]
T = TypeVar("T")


class Recorder(Protocol):
    """A messenger that keeps what it saw of each site."""

    records: dict[str, SiteRecord]


H = TypeVar("H", bound=Recorder)


def run_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: Context,
    closed_form: bool = False,
) -> Run:
    """Run the guide, replay its values in the model, and collect the terms.

    Raises:
        ProgramError: names, plates or shapes of the two programs do not fit.
    """
    handler = GuideHandler(context, runs_model=is_guide_messenger(guide))
    drawn = execute(guide, args, kwargs, handler, context)
    latent = {name: r.value for name, r in drawn.records.items() if not r.observed}
    leaves = leaves_of_frozen(drawn) if context.leaves else {}
    latent |= leaves
    indices = {**(context.fixed or {}), **drawn.subsamples}
    replayed = execute(model, args, kwargs, ModelHandler(context, latent, indices), context)
    _refuse_strangers(drawn.records, replayed.records)
    _refuse_other_sizes(drawn.records, replayed.records)
    _refuse_other_data_plates(drawn.records, replayed.records, context.data)
    direct = direct_terms(
        guide, lambda again: execute(guide, args, kwargs, again, context), drawn, leaves
    )
    taken = {} if leaves else direct
    parts, notes = build_terms(drawn.records, replayed.records, context.layout, closed_form, taken)
    terms, sums = eliminated(parts, replayed.records, context.layout, context.reads)
    return Run(
        terms=terms,
        latents=latents_of(drawn.records, replayed.records),
        layout=context.layout,
        guide=drawn.records,
        model=replayed.records,
        subsamples={**drawn.subsamples, **replayed.subsamples},
        kl_notes=notes | sums,
        direct=direct,
        leaves=leaves,
        factors=[t for t in parts if t.role == "factor"],
    )


def execute(
    program: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    handler: H,
    context: Context,
) -> H:
    """Run a program under a handler; explain errors that private axes cause."""
    try:
        with cast(AbstractContextManager[Any], handler):
            program(*args, **kwargs)
    except (AmortizedError, DeeperPlatesError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        model = handler if isinstance(handler, ModelHandler) else None
        hint = _axes_hint(error, context, model) or _parameter_hint(error, list(handler.records))
        if hint is None:
            raise
        raise ProgramError(hint) from error
    return handler


def with_room(nesting: int, attempt: Callable[[int], T]) -> tuple[T, int]:
    """What ``attempt(nesting)`` gives, tried again with more plate dims where plates nest deeper.

    Also the nesting that was enough.
    """
    while True:
        try:
            return attempt(nesting), nesting
        except DeeperPlatesError as deeper:
            nesting = deeper.nesting


def _axes_hint(error: Exception, context: Context, model: ModelHandler | None) -> str | None:
    """A sentence about extra left dims, if the run had any."""
    layout = context.layout
    summed = {} if model is None else model.marginal.places
    if not layout.axes and layout.num_particles == 1 and layout.rows == 1 and not summed:
        return None
    causes = [f"site {name!r} (its copies at dim {dim})" for name, dim in layout.axes.items()]
    if layout.rows > 1:
        causes.append(f"{layout.rows} rows of copies (at dim {layout.row_dim})")
    if layout.num_particles > 1:
        causes.append(f"{layout.num_particles} particles (at dim {layout.particle_dim})")
    causes += [f"site {name!r} (summed out, at dim {dim})" for name, dim in summed.items()]
    side = "guide" if model is None else "model"
    return (
        f"the {side} failed while {' and '.join(causes)} gave its values extra dims on the left: "
        f"{type(error).__name__}: {error}. Programs must broadcast over left dims: wrap networks "
        "that cannot in am.Fold(network), look up what depends on a latent as Vindex(t)[..., i], "
        "branch on values only at single-sample sites, or evaluate copy by copy with "
        "VariationalLoss(..., vectorize=False)"
    )


def _parameter_hint(error: Exception, before: list[str]) -> str | None:
    """A sentence about a distribution that refuses its parameters, if it was that."""
    reason = " ".join(str(error).split())
    if not isinstance(error, ValueError) or not reason.startswith("Expected parameter"):
        return None
    place = f"after site {before[-1]!r}" if before else "before its first sample statement"
    return (
        f"a distribution {place} got parameters that it refuses: {reason[:300]}. Use softplus or "
        "exp for scales, softmax or logits for probabilities; NaN here usually means a learning "
        "rate that is too high"
    )


def _refuse_strangers(guide: Mapping[str, SiteRecord], model: Mapping[str, SiteRecord]) -> None:
    """Raise for a guide site that the model does not have."""
    for name, record in guide.items():
        if name not in model and not record.auxiliary and not record.observed:
            raise ProgramError(
                f"site {name!r}: the guide samples it, but the model does not (the model has "
                f"{sorted(model)}); mend the name, or mark it infer={{'is_auxiliary': True}}"
            )


def _refuse_other_sizes(guide: Mapping[str, SiteRecord], model: Mapping[str, SiteRecord]) -> None:
    """Raise for a plate that has one size in the guide and another in the model."""
    sizes = {plate: size for record in guide.values() for plate, size in _sized(record).items()}
    for record in model.values():
        for plate, size in _sized(record).items():
            if sizes.get(plate, size) != size:
                raise ProgramError(
                    f"plate {plate!r}: the guide has {sizes[plate][0]} of {sizes[plate][1]} "
                    f"elements, the model {size[0]} of {size[1]}; give both the same size and "
                    "subsample_size"
                )


def _sized(record: SiteRecord) -> dict[str, tuple[int, int]]:
    return {plate: size for plate, size in record.sizes.items() if plate not in record.unsized}


def _refuse_other_data_plates(
    guide: Mapping[str, SiteRecord], model: Mapping[str, SiteRecord], data: DataPlate
) -> None:
    """Raise where rescaling to the size of the data set would reach one program only."""
    if data.size is None or data.name is None:
        return
    for name in guide.keys() & model.keys():
        if (data.name in guide[name].sizes) != (data.name in model[name].sizes):
            raise ProgramError(
                f"site {name!r}: it is in the data plate {data.name!r} in only one of model and "
                f"guide (model: {list(model[name].sizes)}, guide: {list(guide[name].sizes)}), so a "
                "minibatch cannot be scaled to the data set; use the same plate name in both"
            )


def is_guide_messenger(guide: object) -> bool:
    """Whether the guide is one of Pyro's guide messengers, which run the model inside."""
    return isinstance(guide, GuideMessenger)


def values_of(run: Run) -> dict[str, Tensor]:
    """Everything that fixes a run: latent values and plate indices, by name."""
    latent = {name: r.value for name, r in run.guide.items() if not r.observed}
    return {**run.subsamples, **latent}
