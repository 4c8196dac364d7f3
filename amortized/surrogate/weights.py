"""How often the terms of each latent count: KL warm-up, beta by site, free bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, final

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.objectives.base import Objective
from amortized.programs.records import Run, Term
from amortized.surrogate.totals import expectation

Weight = float | Tensor


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """Of every latent's terms, and of some latents' besides; terms of observations count once."""

    everywhere: Weight = 1.0
    by_site: Mapping[str, Weight] = field(default_factory=dict)

    @property
    def trivial(self) -> bool:
        """Whether every term counts once, as far as is known without reading tensors."""
        known = not isinstance(self.everywhere, Tensor) and self.everywhere == 1.0
        return known and not self.by_site

    def weighed(self, terms: list[Term]) -> list[Term]:
        """The terms with their weights."""
        if self.trivial:
            return list(terms)
        return [t if t.role == "likelihood" else self._weighed(t) for t in terms]

    def _weighed(self, term: Term) -> Term:
        weight = self.everywhere
        if term.name in self.by_site:
            weight = weight * self.by_site[term.name]
        return replace(term, value=term.value * weight)


EVEN: Final = Weights()


def weights_of(
    run: Run, objective: Objective, kl_weight: Weight, size: int, step: Tensor
) -> tuple[Weights, Tensor | None]:
    """The weights of a run's terms, and what closed sites are charged instead of their KL.

    A site whose KL is below its free bits is closed: its terms count zero times, and the constant
    is charged in their place, so that the bound's gradient is that of ``max(free, KL)``.

    Args:
        run: whose terms say what each KL is, for free bits.
        objective: says beta and free bits by site.
        kl_weight: of all latents, as in warm-up.
        size: the data points that the terms stand for, since free bits are per data point.
        step: how many steps were taken, for schedules.

    Raises:
        UsageError: sites whose prior is one sum over a site of the model are to be told apart.
    """
    by_site: dict[str, Weight] = {}
    charged: Tensor | None = None
    parts = [t for t in run.terms if t.role != "likelihood"]
    for term in parts:
        _refuse_joint(term, objective)
    for name in dict.fromkeys(term.name for term in parts):
        weight, free = objective.beta_of(name, step), objective.free_bits_of(name)
        if free:
            kl = -torch.stack([expectation(t, run) for t in parts if t.name == name]).sum()
            closed = (kl <= free * size).to(kl.dtype)
            owed = kl_weight * weight * closed * free * size
            charged = owed if charged is None else charged + owed
            weight = weight * (1.0 - closed)
        if isinstance(weight, Tensor) or weight != 1.0:
            by_site[name] = weight
    return Weights(kl_weight, by_site), charged


def _refuse_joint(term: Term, objective: Objective) -> None:
    """A sum over a site of the model may be the prior of several latents together."""
    if len(term.latents) < 2:
        return
    free = any(objective.free_bits_of(name) for name in term.latents)
    if free or not objective.same_beta(term.latents):
        names = " and ".join(map(repr, term.latents))
        raise UsageError(
            f"{objective!r}: the prior of the sites {names} is one sum over "
            f"{', '.join(map(repr, term.sums))} of the model, so their KLs cannot be told apart; "
            "give them the same beta= and no free_bits=, or sample that site in the guide"
        )
