"""What may depend on what: the order in which latents are folded, and their downstream terms.

A site on one copy leaves no trace in shapes, so its downstream cost is decided by execution order
and plates: guide terms at or after it, and model terms at or after the first model occurrence of it
or of any later guide site. Tags on tensors would be lost at ``.item()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amortized.programs.records import LatentSite, Term


def folding_order(latents: list[LatentSite]) -> Iterator[LatentSite]:
    """Last to first, except that a site summed out goes before later sites outside its plates.

    Such a later site would sum the plate while every element still stands at the same copy. If
    none of the sites left depends on the copies, the expectations may be taken in either order.
    """
    # a pathwise site owes nothing and has nothing to average: it stands in nobody's way
    waiting = [s for s in latents if s.draw.axis is not None or not s.estimator.attached]
    if all(latent.draw.axis is None or latent.estimator.joint_copies for latent in waiting):
        yield from reversed(waiting)
        return
    while waiting:
        early = next((e for e in waiting[:-1] if _may_go_first(e, waiting)), None)
        latent = early or waiting[-1]
        waiting.remove(latent)
        yield latent


def _may_go_first(latent: LatentSite, waiting: list[LatentSite]) -> bool:
    axis = latent.draw.axis
    if axis is None or latent.estimator.joint_copies:
        return False
    others = [other for other in waiting if other is not latent]
    later = [other for other in others if other.order > latent.order]
    outside = any(not latent.plates <= other.plates for other in later)
    return outside and not any(depends(other, axis) for other in others)


def depends(latent: LatentSite, axis: int) -> bool:
    """Whether a site was drawn anew for each copy on an axis."""
    shape = latent.draw.site.law.batch_shape
    return len(shape) >= -axis and shape[axis] > 1


@dataclass(frozen=True)
class Leak:
    """Where the elements of a plate stop being apart: a later latent outside the plate.

    It may depend on all elements, and so may every term from there on, in the plate or not.
    """

    plate: tuple[str, int]
    guide_order: int
    model_order: float

    def reaches(self, term: Term) -> bool:
        """Whether a term may come after the latent."""
        return term.order >= (self.model_order if term.in_model else self.guide_order)


def leaks_of(latent: LatentSite, latents: list[LatentSite], by_shape: bool = True) -> list[Leak]:
    """The leaks of a site's plates. Copies show in shapes who depends on them; else order does."""
    axis = latent.draw.axis if by_shape else None
    found = []
    for later in latents:
        if later.order <= latent.order or latent.plates <= later.plates:
            continue
        if axis is None or depends(later, axis):
            for plate in latent.plates - later.plates:
                found.append(Leak(plate, later.order, later.first_in_model))
    return found


def downstream(term: Term, latent: LatentSite) -> bool:
    """Whether a term can depend on a site that has no private dim."""
    return position(term) >= (latent.first_in_model if term.in_model else latent.order)


def position(term: Term) -> int:
    """Where a term stands in its program, as seen by the sites that it may depend on.

    A KL is downstream of earlier sites only: the pair's own two terms are integrated out, and an
    earlier site's KL cannot depend on a later one, the condition under which it was taken.
    """
    return term.order - 1 if term.role == "kl" else term.order
