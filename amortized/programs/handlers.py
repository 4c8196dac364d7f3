"""The messenger around the guide, which lets estimators draw its latents; what a run needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized.errors import EstimatorError, NonFiniteError, ProgramError, UsageError
from amortized.estimators.base import Draw, Estimator, Noise, Site, base_of, parameters_of
from amortized.estimators.pathwise import Pathwise
from amortized.estimators.score_function import ScoreFunction
from amortized.programs import rows
from amortized.programs.indices import all_indices
from amortized.programs.placement import (
    evaluations,
    per_particle,
    place,
    refuse_too_many,
    unmasked,
)
from amortized.programs.records import DataPlate, Layout, Sharing, SiteRecord, Span

# copies of dependent sites multiply: beyond this, those that may lie in rows do
_ROWS_BEYOND = 64

# what a run without estimators (a probe, importance weights, a replay) records: a plain value
_PLAIN = Pathwise()
# a factor in a guide with has_rsample=False: the log probability of a draw made by hand
_SCORE = ScoreFunction()


class Again(Estimator):
    """A value that an estimator drew, held: its density is what that estimator takes it for."""

    attached = True

    def __init__(self, drawn_by: Estimator) -> None:
        super().__init__()
        self._drawn_by = (drawn_by,)  # no part of this module

    def draw(self, site: Site, noise: Noise) -> Draw:
        """Nothing is drawn.

        Raises:
            EstimatorError: always.
        """
        raise EstimatorError(f"site {site.name!r}: a held value is not drawn")

    def density(self, law: Any, value: Tensor) -> Tensor:
        """As the estimator that drew the value takes it."""
        return self._drawn_by[0].density(law, value)

    def log_q(self, draw: Draw) -> Tensor:
        """The same of the guide's law."""
        return self.density(draw.site.law, draw.value)

    def __repr__(self) -> str:
        """As the estimator that drew the value."""
        return repr(self._drawn_by[0])


@dataclass(eq=False, slots=True)
class _Drawn:
    """What stands at a latent: the draw as its estimator sees it, and the value of the program."""

    draw: Draw
    estimator: Estimator
    value: Tensor
    span: Span | None = None


class DeeperPlatesError(Exception):
    """Plates nest deeper than the layout assumed: run again with more room (internal)."""

    def __init__(self, nesting: int) -> None:
        super().__init__(nesting)
        self.nesting = nesting


@dataclass(frozen=True)
class Context:
    """What a run needs besides the programs.

    ``choose`` gives a site its estimator; None means one plain draw of every site (probes,
    importance weights). ``fixed`` gives values instead of draws (replays), and ``drawn_by`` the
    estimators that drew them, who know the density of values that are relaxed. ``script`` decides
    which copy of a site a sequential run sees.
    """

    layout: Layout
    noise: Noise
    choose: Callable[[Site, Mapping[str, Any]], Estimator] | None = None
    data: DataPlate = DataPlate()
    fixed: Mapping[str, Tensor] | None = None
    drawn_by: Mapping[str, Estimator] = field(default_factory=dict)
    script: Callable[[Site, Estimator, Noise], Draw] | None = None
    sharing: Sharing = "axes"
    leaves: bool = False
    """Whether the model sees constants of sites whose log q is frozen, to take slopes in them."""
    pinned: Mapping[str, int] | None = None
    """The place in its support of the one value that a summed-out site of the model takes."""
    reads: bool = True
    """Whether values of tensors may be read to compare scales: not while a step is captured."""


class GuideHandler(Messenger):
    """Outermost around the guide: every latent is drawn by its estimator and recorded.

    With ``runs_model`` (a guide messenger) the model runs inside the guide, and what is observed
    there is the model's.
    """

    def __init__(self, context: Context, runs_model: bool = False) -> None:
        super().__init__()
        self.context = context
        self.runs_model = runs_model
        self.records: dict[str, SiteRecord] = {}
        self.subsamples: dict[str, Tensor] = {}
        self._drawn: dict[str, _Drawn] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            if self.context.fixed is not None and msg["value"] is None:
                msg["value"] = self.context.fixed.get(msg["name"])
                msg["done"] = msg["value"] is not None
            take_all(msg)
            return
        refuse_deeper(msg, self.context.layout)
        if msg["is_observed"]:
            return
        name = msg["name"]
        refuse_twice(name, self.records, "guide")
        fixed = self.context.fixed
        law = unmasked(msg["fn"])
        if fixed is not None and name in fixed:
            known = self.context.drawn_by.get(name)
            estimator = _PLAIN if known is None else Again(known)
            drawn = _as_it_is(Draw(Site(name, law), fixed[name]), estimator)
        elif msg["done"]:
            drawn = _as_it_is(Draw(Site(name, law), msg["value"]), _PLAIN)
        else:
            try:
                drawn = self._draw(name, law, msg)
            except (RuntimeError, ValueError) as error:
                _refuse_nan(name, law, error)
                raise
        self._drawn[name] = drawn
        msg["value"], msg["done"] = drawn.value, True

    def _draw(self, name: str, law: Any, msg: Any) -> _Drawn:
        context, layout = self.context, self.context.layout
        infer: Mapping[str, Any] = msg["infer"] or {}
        several = layout.num_particles > 1
        dim = layout.particle_dim if several else None
        inputs = infer.get("baseline_input")
        site = Site(name, law, layout.num_particles, dim, inputs, context.reads)
        estimator = _PLAIN if context.choose is None else context.choose(site, infer)
        if several and estimator.per_particle:
            site = replace(site, law=per_particle(law, layout))
        if context.choose is None:
            draw_from = context.noise.rsample if law.has_rsample else context.noise.sample
            return _as_it_is(Draw(site, draw_from(site.law, site=name)), estimator)
        if context.script is not None:
            return _as_it_is(context.script(site, estimator, context.noise), estimator)
        copies = estimator.copies(site)
        refuse_too_many(site, copies, layout, in_rows=self._in_rows(site, copies, estimator))
        draw = estimator.draw(site, context.noise)
        wide = self._open(msg, estimator)
        if draw.copies > 1 and self._in_rows(site, draw.copies, estimator):
            placed, value, span = rows.lay_out(draw, layout, wide)
            return _Drawn(placed, estimator, value, span)
        if draw.copies > 1:
            draw = place(draw, layout, wide)
        return _as_it_is(rows.shared_draw(draw, layout), estimator)

    def _in_rows(self, site: Site, copies: int, estimator: Estimator) -> bool:
        """Whether the copies of a site go to the rows of the shared dim."""
        layout, sharing = self.context.layout, self.context.sharing
        if copies == 1 or sharing == "axes" or not rows.serves(estimator):
            return False
        many = evaluations(site, copies, layout) > _ROWS_BEYOND
        return sharing == "rows" or layout.rows > 1 or many

    def _open(self, msg: Any, estimator: Estimator) -> dict[int, int]:
        """Dims and sizes of earlier sites' copies over which slopes must be told apart.

        A site that is summed out in plates that this one lacks is folded before this one.
        """
        if not estimator.differentiates_cost:
            return {}
        plates = {(frame.name, frame.dim) for frame in msg["cond_indep_stack"] if frame.vectorized}
        found = {}
        for name, dim in self.context.layout.axes.items():
            earlier = self._drawn[name]
            if earlier.estimator.joint_copies or self.records[name].plates <= plates:
                found[dim] = earlier.draw.copies
        return found

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[msg["name"]] = msg["value"]
        elif msg["is_observed"]:
            self._record_observed(msg)
        else:
            drawn = self._drawn[msg["name"]]
            record = record_of(msg, self.context.data, drawn.draw, drawn.estimator)
            record.span = drawn.span
            self.records[msg["name"]] = record

    def _record_observed(self, msg: Any) -> None:
        if self.runs_model or deterministic(msg):
            return
        if type(base_of(msg["fn"])).__name__ != "Unit":
            raise ProgramError(
                f"site {msg['name']!r}: the guide observes it; observations belong to the model, "
                "take obs= out of the guide"
            )
        draw, estimator = factor_of(msg)
        self.records[msg["name"]] = record_of(msg, self.context.data, draw, estimator)


def _as_it_is(draw: Draw, estimator: Estimator) -> _Drawn:
    """The program sees what the estimator sees."""
    return _Drawn(draw, estimator, draw.value)


def _refuse_nan(name: str, law: Any, error: Exception) -> None:
    """Some distributions fail at a draw when their parameters are NaN: say so."""
    bad = [parameter for parameter in parameters_of(law) if bool(parameter.isnan().any())]
    if bad:
        family, count = type(base_of(law)).__name__, int(bad[0].isnan().sum())
        raise NonFiniteError(
            f"site {name!r} of the guide: a parameter of its {family} is nan in {count} of "
            f"{bad[0].numel()} places, so no value can be drawn; lower the learning rate, clip "
            "gradients (gradient_clip_val), or check the data"
        ) from error


def take_all(msg: Any) -> None:
    """The indices of a plate that is not subsampled; others are Pyro's to draw."""
    if msg["value"] is None and not msg["done"]:
        indices = all_indices(msg["fn"])
        if indices is not None:
            msg["value"], msg["done"] = indices, True


def deterministic(msg: Any) -> bool:
    """Whether a statement is a ``pyro.deterministic``."""
    return bool((msg["infer"] or {}).get("_deterministic", False))


def refuse_deeper(msg: Any, layout: Layout) -> None:
    """Raise where a statement is in more plates than the layout has room for."""
    depth = max((-f.dim for f in msg["cond_indep_stack"] if f.dim is not None), default=0)
    if depth > layout.nesting:
        raise DeeperPlatesError(depth)


def refuse_twice(name: str, records: Mapping[str, SiteRecord], program: str) -> None:
    """Raise where a program has had a site of this name."""
    if name in records:
        raise ProgramError(
            f"site {name!r}: the {program} samples it twice; give every site its own name"
        )


def factor_of(msg: Any) -> tuple[Draw, Estimator]:
    """A ``pyro.factor`` in a guide: a term of log q, or the score of what was drawn by hand."""
    differentiable = vars(base_of(msg["fn"])).get("has_rsample")
    if differentiable is None:
        raise ProgramError(
            f"factor {msg['name']!r} in the guide: say whether it belongs to a draw that is "
            "differentiable in the parameters, pyro.factor(..., has_rsample=True), or is the log "
            "probability of one that is not, has_rsample=False"
        )
    site = Site(msg["name"], unmasked(msg["fn"]))
    return Draw(site, msg["value"]), _PLAIN if differentiable else _SCORE


def _size_at(msg: Any, dim: int | None) -> int:
    """The size of a plate that was declared without one: what the statement has there."""
    event = len(msg["fn"].event_shape)
    value = msg["value"].shape[: max(0, msg["value"].dim() - event)]
    shapes = (msg["fn"].batch_shape, value)
    return max([1, *(shape[dim] for shape in shapes if dim is not None and len(shape) >= -dim)])


def record_of(
    msg: Any, data: DataPlate, draw: Draw | None = None, estimator: Estimator | None = None
) -> SiteRecord:
    """The record of a finished sample statement."""
    scale, plate_scale = msg["scale"], 1.0
    sizes: dict[str, tuple[int, int]] = {}
    unsized = frozenset(frame.name for frame in msg["cond_indep_stack"] if frame.size < 0)
    for frame in msg["cond_indep_stack"]:
        size = frame.size if frame.size >= 0 else _size_at(msg, frame.dim)
        full = frame.full_size if frame.full_size is not None and frame.size >= 0 else size
        # of the minibatch, or drawn from it: otherwise the plate knows the data set
        declared = full == size or full == data.rows
        if data.size is not None and frame.name == data.name and declared:
            if full == size and data.counted and data.rows not in (None, size):
                raise UsageError(
                    f"plate {frame.name!r} was taken for the data plate, but it has {size} "
                    f"elements and the minibatch {data.rows} rows; name the plate whose elements "
                    "are rows, am.SVI(..., data_plate=...), or say how many elements this one has "
                    f"for all data: data_plate=am.DataPlate({frame.name!r}, N)"
                )
            scale = scale * (data.size / full)
            full = data.size
        sizes[frame.name] = (size, full)
        plate_scale = plate_scale * (full / size)
    return SiteRecord(
        name=msg["name"],
        fn=msg["fn"],
        value=msg["value"],
        scale=scale,
        mask=msg["mask"],
        plates=frozenset((f.name, f.dim) for f in msg["cond_indep_stack"] if f.dim is not None),
        sizes=sizes,
        unsized=unsized,
        observed=msg["is_observed"],
        auxiliary=bool((msg["infer"] or {}).get("is_auxiliary", False)),
        plate_scale=plate_scale,
        draw=draw,
        estimator=estimator,
    )
