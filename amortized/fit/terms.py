"""The terms of a bound per data point, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from amortized.estimate import Estimate


@final
class Terms:
    """The terms of one batch in nats, detached: per data point, or totals without a data plate.

    ``names`` are ``loss``, ``elbo``, ``reconstruction``, ``kl`` and ``kl/<site>``, and
    ``loss_model``, ``loss_guide`` where these are not one loss; a run that is not on data has no
    ELBO. ``local`` names
    the latents that each data point has for itself. ``stacked`` are the values in one tensor, where
    a captured step has it.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        per_datum: bool,
        local: frozenset[str] = frozenset(),
    ) -> None:
        self.names, self.per_datum, self.local = tuple(values), per_datum, local
        self.stacked: Tensor | None = None
        self._values: Mapping[str, Tensor] | None = values

    @classmethod
    def from_stack(
        cls, names: tuple[str, ...], stacked: Tensor, per_datum: bool, local: frozenset[str]
    ) -> Terms:
        """Of the values in the order of the names."""
        terms = cls({}, per_datum, local)
        terms.names, terms.stacked, terms._values = names, stacked, None
        return terms

    @classmethod
    def of(cls, estimate: Estimate) -> Terms:
        """Of an estimate in Pyro's scale: divided by the full size of its data plate."""
        size = estimate.data_size or 1
        values = {"loss": estimate.loss.detach()}
        if estimate.on_data:
            values |= {
                "elbo": estimate.elbo,
                "reconstruction": estimate.reconstruction,
                "kl": estimate.kl,
                **{f"kl/{name}": value for name, value in estimate.kl_per_site.items()},
            }
        values |= {f"loss_{whose}": part.detach() for whose, part in estimate.parts.items()}
        plate, guide = estimate.data_plate, estimate.run.guide
        local = frozenset(name for name, record in guide.items() if plate in record.sizes)
        scaled = {name: value / size for name, value in values.items()}
        return cls(scaled, estimate.data_size is not None, local)

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Each as a scalar, by its name."""
        if self._values is None:
            stacked = () if self.stacked is None else self.stacked.unbind()
            self._values = dict(zip(self.names, stacked, strict=True))
        return self._values


def loss_of(estimate: Estimate) -> Tensor:
    """The loss among the `Terms` of an estimate, alone."""
    return estimate.loss.detach() / (estimate.data_size or 1)


@final
class Averager:
    """The mean of terms over the batches of an epoch, weighted by data points."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._stack: tuple[tuple[str, ...], Tensor] | None = None
        """Totals that are in one tensor, under their names."""
        self.weight = 0
        self.per_datum = True
        self.local: frozenset[str] = frozenset()

    @classmethod
    def of(cls, states: Iterable[Mapping[str, Any]]) -> Averager:
        """The sums of several processes together."""
        found = cls()
        for state in states:
            found.weight += state["weight"]
            found.per_datum = found.per_datum and state["per_datum"]
            found.local |= frozenset(state["local"])
            for name, total in state["totals"].items():
                found._add(name, total)
        return found

    def add(self, terms: Terms, weight: int) -> None:
        """Takes in the terms of a batch of ``weight`` data points."""
        self.weight += weight
        self.per_datum = self.per_datum and terms.per_datum
        self.local |= terms.local
        if terms.stacked is not None and terms.stacked.device.type != "mps":
            self._add_stack(terms.names, terms.stacked, weight)
            return
        for name, value in terms.values.items():
            # in float64, where the device has it: single precision loses an epoch of 10^5 batches
            value = value if value.device.type == "mps" else value.double()
            self._add(name, value * weight)

    def _add(self, name: str, value: Tensor) -> None:
        self._unstack()
        total = self._totals.get(name)
        self._totals[name] = value if total is None else total + value

    def _add_stack(self, names: tuple[str, ...], stacked: Tensor, weight: int) -> None:
        """The same sums in the same order, in one call."""
        value = stacked.double() * weight
        if self._stack is None or self._stack[0] != names:
            self._unstack()
            nothing = torch.zeros_like(value[0])
            totals = [self._totals.pop(name, nothing) for name in names]
            self._stack = names, torch.stack(totals)
        self._stack[1].add_(value)

    def _unstack(self) -> None:
        if self._stack is not None:
            self._totals |= dict(zip(self._stack[0], self._stack[1].clone().unbind(), strict=True))
        self._stack = None

    def means(self) -> dict[str, float]:
        """As Python floats; a site that some batches lack counts as zero there."""
        self._unstack()
        return {name: float(total) / self.weight for name, total in self._totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        self._unstack()
        about = {"weight": self.weight, "per_datum": self.per_datum, "local": sorted(self.local)}
        return {**about, "totals": dict(self._totals)}

    def on_cpu(self) -> dict[str, Any]:
        """The same for another process."""
        state = self.state_dict()
        return {**state, "totals": {name: total.cpu() for name, total in state["totals"].items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from sums."""
        self.weight, self.per_datum = state["weight"], state["per_datum"]
        self.local, self._totals = frozenset(state["local"]), dict(state["totals"])
        self._stack = None
