"""What a run of a guide and a model leaves behind: sites, terms, and where axes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from amortized.errors import EstimatorError
from amortized.estimators.base import Draw, Estimator

Plates = frozenset[tuple[str, int]]
"""Vectorized plates, by name and dim: two sequential plates may share a dim."""

Role = Literal["likelihood", "prior", "guide", "kl", "surrogate", "folded", "factor"]

# torch tensors have at most 64 dims; leave room for event dims
LEFTMOST = -56


@dataclass(frozen=True)
class DataPlate:
    """The plate whose elements are data points, and how many data there are in all.

    Args:
        name: the plate's name; None means the sole outermost plate that holds observations.
        size: the full size of the data set. Where the program's plate declares only the
            minibatch, its sites are rescaled by ``size / B``, so that global latents count once.
        rows: the length of the minibatch.
        counted: the size is the number of rows of the data set, so that the plate must have as many
            elements as the minibatch has rows (`UsageError`). A plate without a name is always
            asked for that; name and size given together are taken at their word, as for a plate of
            visits where rows are patients.
    """

    name: str | None = None
    size: int | None = None
    rows: int | None = None
    counted: bool = False

    def found(self, name: str | None) -> DataPlate:
        """With the name that the plate has in a program."""
        return replace(self, name=name, counted=self.counted or self.name is None)


Sharing = Literal["auto", "axes", "rows"]
"""Where copies of dependent sites lie: on private dims, which multiply, or on rows of one dim."""


@dataclass(frozen=True)
class Span:
    """The rows of a site: copy 0 is row 0, the base; copy c is row ``start + c - 1``.

    ``dim`` is where the rows lie in a batch shape, ``rows`` how many there are in all.
    """

    start: int
    copies: int
    dim: int
    rows: int

    @property
    def stop(self) -> int:
        """The first row of later sites."""
        return self.start + self.copies - 1


class MoreRowsError(Exception):
    """Copies need so many rows: run again with them (internal)."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


@dataclass
class Layout:
    """Where axes lie, counted from the right of a batch shape.

    ``-1 .. -nesting`` are the plates, then one dim for the particles, then, if there are rows, one
    dim for them and one that only estimators see, then one private dim for each other site that is
    evaluated on several copies, in guide order; then, in the model, dims for the values of sites
    that are summed out.
    """

    nesting: int
    num_particles: int = 1
    axes: dict[str, int] = field(default_factory=dict)
    rows: int = 1
    """Rows of sites that are laid out in rows; 1: none is."""
    spans: dict[str, Span] = field(default_factory=dict)

    @property
    def particle_dim(self) -> int:
        """The dim of the particles."""
        return -self.nesting - 1

    @property
    def row_dim(self) -> int:
        """The dim of the rows."""
        return -self.nesting - 2

    @property
    def copy_dim(self) -> int:
        """Where an estimator finds the copies of a site that is laid out in rows."""
        return -self.nesting - 3

    @property
    def used(self) -> int:
        """The rows that are taken so far; the others still are what the base is."""
        return 1 + sum(span.copies - 1 for span in self.spans.values())

    def span(self, site: str, copies: int) -> Span:
        """Rows for a site.

        Raises:
            MoreRowsError: there are not as many.
        """
        span = Span(self.used, copies, self.row_dim, self.rows)
        if span.stop > self.rows:
            raise MoreRowsError(span.stop)
        self.spans[site] = span
        return span

    @property
    def free_dim(self) -> int:
        """The first dim left of all that are taken."""
        return self.particle_dim - 1 - len(self.axes) - (2 if self.rows > 1 else 0)

    def allocate(self, site: str) -> int:
        """A fresh private dim for a site.

        Raises:
            EstimatorError: more private dims than a tensor can have.
        """
        dim = self.free_dim
        if dim < LEFTMOST:
            raise EstimatorError(
                f"site {site!r}: more than {len(self.axes)} sites are evaluated on several copies, "
                "and a tensor has no dim left; give most of them one sample, e.g. "
                "ScoreFunction(MovingAverage()), or use particles"
            )
        self.axes[site] = dim
        return dim


# Records are made at every statement of every step: slots, and no frozen-ness that costs a call for
# each field. Nothing writes to them.
@dataclass(eq=False, slots=True)
class SiteRecord:
    """A sample statement as it was executed, and what an estimator drew there."""

    name: str
    fn: Any
    value: Tensor
    scale: Any
    mask: Any
    plates: Plates
    sizes: dict[str, tuple[int, int]]
    """name -> (size, full size) of each plate, vectorized or not, outermost first."""
    unsized: frozenset[str]
    """The plates declared without a size, which have it from this statement's shape."""
    observed: bool
    auxiliary: bool
    plate_scale: float
    """Product of full size / size over the plates: what subsampling contributes to ``scale``."""
    draw: Draw | None = None
    estimator: Estimator | None = None
    span: Span | None = None
    """The rows of its copies, if it is laid out in rows."""
    hard_log_q: Tensor | None = None
    """log q of every row, attached, with relaxed values taken for the base's; laid out in rows."""
    summed: int = 0
    """How many values of this site of the model are summed over; 0: it has one value."""
    open_dims: Mapping[int, str] = field(default_factory=dict)
    """Dims of summed-out sites that the statement may depend on, its own included, and whose."""


@dataclass(eq=False, slots=True)
class Term:
    """One summand of the objective: log p of a model site, -log q of a guide site, -KL, ...

    ``value`` has shape ``[private axes..., particles?, plates...]``, scaled and masked. Only a
    ``factor``, of which summands are made by summing sites out, has their dims too, and no scale.
    """

    name: str
    role: Role
    value: Tensor
    plates: Plates
    order: int
    """Position in the model for ``likelihood``, ``prior`` and ``factor``, else in the guide."""
    sums: tuple[str, ...] = ()
    """The sites of the model over which it is a sum."""
    latents: tuple[str, ...] = ()
    """The latents of the guide whose log p such a sum is, together, under the first one's name."""

    @property
    def in_model(self) -> bool:
        """Whether ``order`` counts model sites."""
        return self.role in ("likelihood", "prior", "factor")

    @property
    def side(self) -> str:
        """The program that it comes from, in words."""
        return "model" if self.in_model else "guide"


@dataclass(eq=False, slots=True)
class LatentSite:
    """A latent of the guide in this run, with what its cost is gathered by."""

    draw: Draw
    estimator: Estimator
    plates: Plates
    plate_scale: float
    order: int
    first_in_model: float
    """First model occurrence of this site or of any later guide site (infinite if none)."""
    span: Span | None = None
    """The rows of its copies, if it is laid out in rows."""
    hard_log_q: Tensor | None = None
    """The record's."""

    @property
    def name(self) -> str:
        """The site's name."""
        return self.draw.site.name


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that one run of the pair says about the objective."""

    terms: list[Term]
    latents: list[LatentSite]
    layout: Layout
    guide: dict[str, SiteRecord]
    model: dict[str, SiteRecord]
    subsamples: dict[str, Tensor]
    kl_notes: dict[str, str]
    direct: dict[str, Tensor] = field(default_factory=dict)
    """log q of every site at constant values, where a site has its log q frozen."""
    leaves: dict[str, Tensor] = field(default_factory=dict)
    """What the model saw of these sites instead of what was drawn: the same, cut off."""
    factors: list[Term] = field(default_factory=list)
    """log p of the model's statements that depend on summed-out sites, value by value."""
    runs: int = 1
    """How often both programs ran: more than once where copies are evaluated one by one."""

    @property
    def summed(self) -> list[SiteRecord]:
        """The sites of the model that are summed out."""
        return [record for record in self.model.values() if record.summed]
