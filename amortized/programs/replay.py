"""The messenger around the model: it takes the guide's values, and sums out what is marked."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized.errors import ProgramError
from amortized.estimators.base import base_of
from amortized.programs.handlers import (
    Context,
    deterministic,
    record_of,
    refuse_deeper,
    refuse_twice,
    take_all,
)
from amortized.programs.marginal import Marginal, marked
from amortized.programs.records import SiteRecord


class ModelHandler(Messenger):
    """Outermost around the model: latents take the guide's values, every site is recorded.

    A marked site that the guide lacks is summed out: it takes all its values.
    """

    def __init__(
        self, context: Context, values: Mapping[str, Tensor], subsamples: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.context = context
        self.values = values
        self.subsamples = dict(subsamples)
        self.records: dict[str, SiteRecord] = {}
        self.marginal = Marginal(context.layout, context.pinned)
        self._own_minibatches: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self._replay_subsample(msg)
            return
        refuse_deeper(msg, self.context.layout)
        self.marginal.enter(msg)
        if msg["is_observed"]:
            if msg["name"] in self.values:
                raise ProgramError(
                    f"site {msg['name']!r}: the guide samples it, but the model observes it; "
                    "remove it from the guide, or the obs= from the model"
                )
            return
        if msg["done"]:
            return
        if msg["name"] not in self.values:
            if not marked(msg):
                raise ProgramError(_missing(msg, self.values))
            self.marginal.sum_out(msg)
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self._own_minibatches:
                raise ProgramError(
                    f"site {msg['name']!r}: the model draws a random minibatch of plate "
                    f"{frame.name!r} that the guide, which drew this latent, does not know; put "
                    "the latent into the same plate in the guide"
                )
        msg["value"], msg["done"] = self.values[msg["name"]], True

    def _replay_subsample(self, msg: Any) -> None:
        ours = self.subsamples.get(msg["name"])
        if ours is None:
            drawn = msg["fn"]
            if msg["value"] is None and drawn.subsample_size not in (None, drawn.size):
                self._own_minibatches.add(msg["name"])
            take_all(msg)
            return
        if msg["value"] is None:
            msg["value"], msg["done"] = ours, True
        elif not _same_indices(msg["value"], ours):
            raise ProgramError(
                f"plate {msg['name']!r}: the model asks for other data (subsample=...) than the "
                "guide drew its latents for; give the guide the same subsample (autoguides: "
                "create_plates=, a function that makes the model's plates)"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[msg["name"]] = msg["value"]
            return
        dims = self.marginal.leave(msg)
        if deterministic(msg):
            return
        refuse_twice(msg["name"], self.records, "model")
        record = record_of(msg, self.context.data)
        record.open_dims = dims
        record.summed = self.marginal.sizes.get(msg["name"], 0)
        self.records[msg["name"]] = record


def _same_indices(theirs: Any, ours: Any) -> bool:
    if theirs is ours:
        return True
    theirs, ours = torch.as_tensor(theirs), torch.as_tensor(ours)
    return theirs.shape == ours.shape and bool((theirs == ours).all())


def _missing(msg: Any, values: Mapping[str, Tensor]) -> str:
    name = msg["name"]
    close = get_close_matches(name, sorted(values), 1)
    hint = f"; did you mean {close[0]!r} in the guide" if close else ""
    return (
        f"site {name!r}: the model samples it, but the guide does not (the guide has "
        f"{sorted(values)}){hint}. Give the guide a pyro.sample({name!r}, ...), or observe it"
        f"{_or_mark_it(msg['fn'])}"
    )


def _or_mark_it(fn: Any) -> str:
    if not getattr(base_of(fn), "has_enumerate_support", False):
        return ""
    return ", or let the model sum it out, infer={'enumerate': 'parallel'}"
