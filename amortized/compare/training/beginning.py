"""What a trial really starts from and meets, as digests that trials can be compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import pyro
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amortized.compare.training.identity import digest_of, made_of
from amortized.fit.data import Batches, TensorBatches, as_batches
from amortized.fit.digests import digest_of_batch
from amortized.fit.optimizer import GroupedOptimizer, LearningRate, OptimizerFactory
from amortized.fit.parameters import GROUPS
from amortized.fit.svi import SVI
from amortized.programs.modules import modules_of

# of data in memory, in their order; of a loader it is one
_LOOKED_AT: Final = 64
# batches of a pass, and passes: an order that goes wrong does so at once, or at the next pass
_BATCHES: Final = 16
_PASSES: Final = 4
# of an ELBO, between processors
_ROUNDING: Final = 1e-4


@final
@dataclass(frozen=True)
class Beginning:
    """Digests of the initial parameters and of the data, and the ELBO before training."""

    start: str
    train: str
    val: str
    elbo: float

    def differs(self, other: Beginning) -> tuple[str, Any, Any] | None:
        """In what, first; the ELBO may differ by rounding."""
        words = {"train": "the training data", "val": "the validation data"}
        words["start"] = "the initial parameters"
        for name, word in words.items():
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                return word, one, two
        both_nan = math.isnan(self.elbo) and math.isnan(other.elbo)
        near = math.isclose(self.elbo, other.elbo, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        return None if both_nan or near else ("the ELBO before training", self.elbo, other.elbo)


def start_of(svi: SVI) -> str:
    """Of all parameters and buffers of model and guide."""
    found: list[Any] = []
    with svi.scope():
        stored = dict(pyro.get_param_store().named_parameters())
    for name in sorted(stored):
        found += [name, stored[name]]
    for module in modules_of(svi.model.program, svi.guide.program):
        for own in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            for name, value in own:
                found += [name, "lazy" if is_lazy(value) else value]
    return digest_of(*found)


def data_digest(data: Any, batch_size: int, first: Any) -> str:
    """Of data in their own order: of those in memory many batches, of others the first one."""
    batches = as_batches(data, batch_size)
    if not isinstance(batches, TensorBatches):
        return digest_of(batches.size, batch_digest(first))
    found = zip(batches.epoch(), range(_LOOKED_AT), strict=False)
    return digest_of(batches.size, *(batch_digest(batch) for batch, _ in found))


def batch_digest(batch: Any) -> str:
    """Of the tensors of a batch, by name."""
    return digest_of(digest_of_batch(batch))


def optimizer_of(factory: OptimizerFactory, lr: LearningRate) -> Any:
    """What a factory makes of parameter groups: its class and the options of each group."""
    optimizer = GroupedOptimizer(factory, lr)
    leaves: dict[str, list[Tensor]] = {name: [nn.Parameter(torch.zeros(1))] for name in GROUPS}
    try:
        optimizer.sync(leaves)
    except Exception:  # training says what is wrong with it
        return None
    built = optimizer.built
    groups = [{n: v for n, v in g.items() if n != "params"} for g in built.param_groups]
    return {"class": type(built).__name__, "groups": [made_of(group) for group in groups]}


@final
class Watched(Batches):
    """The batches of a training as they are, the first ones of its passes with a digest."""

    def __init__(self, whole: Batches, tell: Callable[[str, Any], None]) -> None:
        """Calls ``tell`` with ``"pass/batch"``, from 1, and the batch, once `listening`."""
        self._whole, self._tell, self._passes = whole, tell, 0
        self.size, self.num_batches = whole.size, whole.num_batches
        self.listening = False

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """The same batches."""
        if not self.listening:
            yield from self._whole.epoch(generator)
            return
        self._passes += 1
        turn = self._passes
        for number, batch in enumerate(self._whole.epoch(generator), 1):
            if turn <= _PASSES and number <= _BATCHES:
                self._tell(f"{turn}/{number}", batch)
            yield batch

    def rows_asked(self) -> int | None:
        """As they are."""
        return self._whole.rows_asked()

    def generators(self) -> list[torch.Generator]:
        """As they are."""
        return self._whole.generators()

    def peek(self, rows: int | None = None) -> Any:
        """As they are."""
        return self._whole.peek(rows)

    def non_finite_rows(self) -> list[int]:
        """As they are."""
        return self._whole.non_finite_rows()

    def rows(self, numbers: list[int]) -> Any:
        """As they are."""
        return self._whole.rows(numbers)

    def numbers(self, batch: int, generator: torch.Generator | None = None) -> list[int] | None:
        """As they are."""
        return self._whole.numbers(batch, generator)


def first_other(one: Mapping[str, str], two: Mapping[str, str]) -> str | None:
    """Where two trainings first met other batches, as far as both went."""
    return next((place for place, found in one.items() if two.get(place, found) != found), None)
