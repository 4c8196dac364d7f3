"""Shapes: events, batch dims, plates and minibatches of the two programs and the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from amortized.checks.places import (
    family,
    law_words,
    place,
    plate_words,
    shape_words,
    written_shape,
)
from amortized.checks.report import Finding
from amortized.estimators.base import base_of
from amortized.programs.records import DataPlate
from amortized.programs.survey import Frame, PlateUse, Statement, Survey


def shape_findings(
    guide: Survey, model: Survey, rows: int | None, data: DataPlate
) -> Iterator[Finding]:
    """All mistakes that show in shapes; ``rows`` is the length of the batch."""
    yield from _plates(guide, model, data)
    yield from _minibatches(guide, model)
    for name, q in guide.latents.items():
        p = model.latents.get(name)
        if p is None:
            yield from _undeclared(q, q.fn.batch_shape)
        else:
            yield from _pair(q, p)
    for name, p in model.statements.items():
        if p.observed and not p.factor:
            yield from _observation(p, rows)
        elif p.factor or name not in guide.statements:
            yield from _undeclared(p, p.fn.batch_shape)
        if p.factor:
            yield from _repeated_factor(p, rows)


def _pair(q: Statement, p: Statement) -> Iterator[Finding]:
    """A latent in both programs."""
    other_event = q.fn.event_shape != p.fn.event_shape
    if other_event:
        yield _event(q, p)
        if _same_elements(q, p):  # one mistake, which leaves a batch dim in one of them
            return
    elif _plates_matter(q, p):
        yield _plate_mismatch(q, p)
        # what a plate of the other program explains is said
        known = {**q.plates, **p.plates}
        q, p = (_within(q, known), _within(p, known))
    yield from _undeclared(q, q.fn.batch_shape)
    yield from _undeclared(p, p.fn.batch_shape)


def _same_elements(q: Statement, p: Statement) -> bool:
    """Whether values have one shape, of which other parts are the event."""
    return q.fn.batch_shape + q.fn.event_shape == p.fn.batch_shape + p.fn.event_shape


def _within(statement: Statement, plates: dict[int, Frame]) -> Statement:
    return replace(statement, frames=tuple(plates.values()))


def _plates(guide: Survey, model: Survey, data: DataPlate) -> Iterator[Finding]:
    frames = {f.name: f for s in guide.statements.values() for f in s.frames}
    seen: set[str] = set()
    for statement in model.statements.values():
        for frame in statement.frames:
            theirs = frames.get(frame.name)
            if frame.name in seen:
                continue
            seen.add(frame.name)
            # a plate without a size has -1
            sized = theirs is not None and -1 not in (theirs.size, frame.size)
            if theirs and sized and (theirs.size, theirs.full) != (frame.size, frame.full):
                shared = (x.name for x in _inside(model, frame.name) if x.name in guide.latents)
                site = next(shared, statement.name)
                yield Finding(
                    "error",
                    "plate-mismatch",
                    site,
                    f"plate {frame.name!r} around site {site!r}",
                    f"the guide has {theirs.size} of {theirs.full} elements, the model "
                    f"{frame.size} of {frame.full}",
                    "one size in both programs",
                    f"give both programs the same size: pyro.plate({frame.name!r}, {frame.full}, "
                    "subsample_size=...) or the same subsample=",
                )
            elif frame.name == data.name and data.size not in (None, frame.full, frame.size):
                if frame.full != frame.size:
                    yield Finding(
                        "warning",
                        "plate-size",
                        statement.name,
                        place(statement),
                        f"the plate stands for {frame.full} data points",
                        f"the {data.size} of the data set",
                        "give the plate the size of the data set: likelihood and latents are "
                        "weighed by it",
                    )


def _minibatches(guide: Survey, model: Survey) -> Iterator[Finding]:
    for name, ours in model.plates.items():
        theirs = guide.plates.get(name)
        if theirs is None:
            if ours.drawn:
                yield from _own_minibatch(ours, guide, model)
        elif ours.given is not None and not _same(ours.indices, theirs.indices):
            inside = [s.name for s in _inside(model, name)]
            site = next((n for n in inside if n in guide.latents), (inside or [None])[0])
            yield Finding(
                "error",
                "subsample-mismatch",
                site,
                f"plate {name!r} around site {site!r}",
                "the model asks for other rows (subsample=...) than the guide drew its latents for",
                "the same rows in both programs",
                "give the guide the same subsample= (autoguides: create_plates=, a function that "
                "makes the model's plates)",
            )


def _own_minibatch(plate: PlateUse, guide: Survey, model: Survey) -> Iterator[Finding]:
    for statement in _inside(model, plate.name):
        if statement.name in guide.latents:
            yield Finding(
                "error",
                "subsample-mismatch",
                statement.name,
                place(statement),
                f"the model draws a random minibatch of plate {plate.name!r}, and the guide, "
                "which drew this latent, does not know it",
                "the same rows in both programs",
                "put the latent into the same plate in the guide",
            )


def _inside(survey: Survey, plate: str) -> list[Statement]:
    return [s for s in survey.statements.values() if plate in {f.name for f in s.frames}]


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours.shape == theirs.shape and bool((ours == theirs).all())


def _event(q: Statement, p: Statement) -> Finding:
    advice = "give both distributions the same event shape"
    if q.fn.event_shape.numel() == p.fn.event_shape.numel() or not (
        q.fn.event_shape and p.fn.event_shape
    ):
        advice = "use .to_event(n) with the same n in both programs"
    if family(q) != family(p):
        advice += f", and a guide distribution like the model's dist.{family(p)}"
    return Finding(
        "error",
        "event-shape-mismatch",
        q.name,
        place(q),
        f"the guide's {law_words(q)} has event shape {tuple(q.fn.event_shape)}",
        f"event shape {tuple(p.fn.event_shape)}, as the model's {law_words(p)} has",
        advice,
    )


def _plates_matter(q: Statement, p: Statement) -> bool:
    """Whether model and guide put a latent into different vectorized plates of size > 1."""
    ours, theirs = (
        {(f.name, f.dim) for f in statement.plates.values() if f.size != 1} for statement in (q, p)
    )
    return ours != theirs


def _plate_mismatch(q: Statement, p: Statement) -> Finding:
    ours = ", ".join(map(plate_words, p.plates.values())) or "none"
    theirs = ", ".join(map(plate_words, q.plates.values())) or "none"
    lacking = [f for f in p.plates.values() if f.name not in {g.name for g in q.plates.values()}]
    if lacking:
        frame = lacking[0]
        advice = (
            f"put the guide's statement into pyro.plate({frame.name!r}, {frame.size}, "
            f"dim={frame.dim}) too, the same name in both programs"
        )
    elif {f.name for f in q.plates.values()} == {f.name for f in p.plates.values()}:
        advice = "give each plate the same dim in both programs: pyro.plate(name, size, dim=...)"
    else:
        advice = "put the model's statement into the same plates, or take the guide's out"
    return Finding(
        "error",
        "plate-mismatch",
        q.name,
        f"site {q.name!r}",
        f"plates in the guide: {theirs}; there it is {law_words(q)}",
        f"the model's plates, {ours}, as for its {law_words(p)}",
        advice,
    )


def _strays(statement: Statement, shape: Sequence[int]) -> list[int]:
    """Dims of size > 1 that no plate declares."""
    dims = range(-len(shape), 0)
    return [dim for dim in dims if shape[dim] != 1 and dim not in statement.plates]


def _undeclared(statement: Statement, shape: Sequence[int]) -> Iterator[Finding]:
    strays = _strays(statement, shape)
    if strays:
        event_dim = len(statement.fn.event_shape)
        yield Finding(
            "error",
            "undeclared-batch-dim",
            statement.name,
            place(statement),
            f"{law_words(statement)} has size {shape[strays[-1]]} at dim {strays[-1]}, which no "
            "plate declares",
            "a plate for every batch dim",
            "put the statement inside pyro.plate(...), or make the dim part of the event with "
            f".to_event({event_dim - min(strays) if not statement.plates else 1})",
        )


def _observation(p: Statement, rows: int | None) -> Iterator[Finding]:
    """An observed value beside its distribution."""
    if not isinstance(p.value, Tensor):
        yield Finding(
            "error",
            "data-dtype",
            p.name,
            place(p),
            f"the observed value is a {type(p.value).__name__}",
            "a tensor",
            "pass torch.as_tensor(...) as obs=",
        )
        return
    batch, event = p.fn.batch_shape, p.fn.event_shape
    value = p.value.shape
    try:
        # torch's function of this name imports sympy when it is first called: half a second
        joint = np.broadcast_shapes(tuple(value), tuple(batch + event))
    except ValueError:
        yield _unequal(p, rows)
        return
    tail = value[max(0, len(value) - len(event)) :]
    if len(tail) < len(event) or any(v not in (1, e) for v, e in zip(tail, event, strict=True)):
        yield _wrong_event(p)
        return
    shape = joint[: len(joint) - len(event)]
    own = value[: len(value) - len(event)]
    strays = _strays(p, shape)
    # a plate without a size has -1
    sized = {d: f for d, f in p.plates.items() if f.size != -1}
    wrong = next((f for d, f in sized.items() if _at(shape, d) != f.size), None)
    if wrong is not None:
        yield _plate_size(p, wrong, _at(shape, wrong.dim or 0), rows)
    elif strays and _one_hot(p):
        yield _wrong_event(p, "broadcast-observation")
    elif any(_at(own, dim) != _at(batch, dim) for dim in strays) and _grew(p, shape, own):
        yield _broadcast(p, joint)
    elif _rows_in_event(p, own, rows):
        yield _swallowed(p)
    else:
        yield from _undeclared(p, shape)


def _repeated_factor(p: Statement, rows: int | None) -> Iterator[Finding]:
    """One number in a plate of rows, such as a sum over them, which Pyro repeats at every row."""
    value = base_of(p.fn).log_factor
    for dim, frame in p.plates.items():
        shared = 1 < frame.size == rows and value.dim() >= -dim and value.stride(dim) == 0
        if shared and value.requires_grad and bool(value.any()):
            yield Finding(
                "warning",
                "broadcast-observation",
                p.name,
                place(p),
                f"the factor has one value for the whole plate {frame.name!r}, and counts once "
                f"for each of its {frame.size} elements",
                "one value for each element of the plate",
                "leave the rows in it, log_prob.sum(-1) instead of .sum(), or put it outside of "
                "the plate",
            )


def _rows_in_event(p: Statement, own: Sequence[int], rows: int | None) -> bool:
    """Whether every element of a plate is shown all rows, as one event."""
    plate = any(f.size == rows and _at(own, d) == 1 for d, f in p.plates.items())
    whole = not own and rows is not None and rows > 1 and p.value.shape[:1] == (rows,)
    return plate and whole


def _swallowed(p: Statement) -> Finding:
    own = len(p.value.shape) - 1
    return Finding(
        "error",
        "broadcast-observation",
        p.name,
        place(p),
        f"the event of {law_words(p)} holds all {p.value.shape[0]} rows of the observed value, "
        "and every element of the plate scores them all",
        "one row for each element of the plate",
        f"leave the rows to the plate: .to_event({own})" if own else "drop .to_event",
    )


def _grew(p: Statement, shape: Sequence[int], own: Sequence[int]) -> bool:
    """Whether the data are repeated along a dim, rather than a parameter shared by the data."""
    return torch.Size(shape).numel() > torch.Size(own).numel()


def _at(shape: Sequence[int], dim: int) -> int:
    return shape[dim] if len(shape) >= -dim else 1


def _broadcast(p: Statement, joint: Sequence[int]) -> Finding:
    return Finding(
        "error",
        "broadcast-observation",
        p.name,
        place(p),
        f"the observed value of shape {shape_words(p.value.shape, p)} meets {family(p)} of shape "
        f"{written_shape(p)}, and they broadcast to {shape_words(joint, p)}: every value is scored "
        "at every row",
        "equal shapes",
        "squeeze or unsqueeze one of them, such as net(z).squeeze(-1), or make the last dim an "
        "event with .to_event(1)",
    )


def _unequal(p: Statement, rows: int | None) -> Finding:
    """Shapes that do not broadcast: a plate of another size than the data, or another event."""
    own = p.value.shape[: max(0, p.value.dim() - len(p.fn.event_shape))]
    for dim, frame in p.plates.items():
        extra = _at(own, dim) not in (1, frame.size)
        if extra and frame.size not in p.value.shape:
            return _plate_size(p, frame, _at(own, dim), rows)
    return _wrong_event(p)


def _plate_size(p: Statement, frame: Frame, count: int, rows: int | None) -> Finding:
    whose = "the batch" if count == rows else "the observed value"
    if frame.full != frame.size and count == frame.full:
        advice = f"index the data with the plate: with pyro.plate({frame.name!r}, ...) as i: x[i]"
    else:
        advice = (
            f"write pyro.plate({frame.name!r}, len(x)); for a minibatch of a larger data set "
            f"pyro.plate({frame.name!r}, N, subsample_size=len(x)) or am.DataPlate"
        )
    return Finding(
        "error",
        "plate-size",
        p.name,
        place(p),
        f"plate {frame.name!r} has {frame.size} of {frame.full} elements, {whose} {count} rows",
        "a plate of the size of the data in it",
        advice,
    )


def _one_hot(p: Statement) -> bool:
    """Whether the value encodes a category along its last dim, where an index is expected."""
    if family(p) != "Categorical" or p.value.dim() == 0:
        return False
    alone = p.value.sum(-1) == 1
    return p.value.shape[-1] == base_of(p.fn).probs.shape[-1] and bool(alone.all())


def _wrong_event(p: Statement, code: str = "event-shape-mismatch") -> Finding:
    advice = f"make the last dims of data and {family(p)} equal"
    if family(p) == "OneHotCategorical":
        advice = "encode the labels: torch.nn.functional.one_hot(y, n).float(), or take Categorical"
    elif family(p) == "Categorical":
        advice = "pass indices: y.argmax(-1), or take OneHotCategorical"
    elif p.fn.event_shape != p.value.shape[-1:]:
        advice += ", and mark event dims with .to_event(n)"
    return Finding(
        "error",
        code,
        p.name,
        place(p),
        f"the observed value has shape {tuple(p.value.shape)}",
        f"the shape of {law_words(p)}, event shape {tuple(p.fn.event_shape)}",
        advice,
    )
