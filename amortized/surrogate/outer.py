"""The elements that have a bound of their own, and the scale outside its logarithm."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from amortized.errors import ProgramError
from amortized.programs.records import Plates, Run, SiteRecord


def shared_plates(run: Run) -> Plates:
    """The plates that hold every latent and every term: what the bound is taken for each of."""
    held = [latent.plates for latent in run.latents] + [term.plates for term in run.terms]
    return frozenset.intersection(*held) if held else frozenset()


@final
class OuterScale:
    """Which scale stands outside the logarithm; remembers by structure where scales are tensors.

    Handlers such as ``poutine.scale`` make a new tensor for every site, so tensors are compared by
    value. A captured step cannot read values: it goes by what an eager one found.
    """

    def __init__(self) -> None:
        self._common: dict[tuple[str, ...], bool] = {}

    def of(self, run: Run, shared: Plates, *, read: bool) -> tuple[Tensor | float, bool]:
        """The scale of every term and True where it is one and the same, else shared subsampling.

        A scale with a number for each element of a plate that is added up inside the logarithm is
        as many scales as it has numbers.

        Raises:
            ProgramError: a plate is subsampled that not every site is in.
        """
        records = [*run.model.values(), *(r for r in run.guide.values() if not r.observed)]
        names = {name for name, _ in shared}
        for record in records:
            _refuse_subsampled(record, names)
        scales = [record.scale for record in records]
        first = next((scale for scale in scales if isinstance(scale, Tensor)), None)
        if first is None and scales:
            first = scales[0]
        alike = first is None or self._all_equal(scales, first, (*run.guide, *run.model), read)
        if alike and _constant_outside(first, shared):
            return (1.0 if first is None else first), True
        sizes = records[0].sizes
        outer = math.prod(full / size for plate, (size, full) in sizes.items() if plate in names)
        return outer, False

    def _all_equal(
        self, scales: list[Any], first: Tensor | float, key: tuple[str, ...], read: bool
    ) -> bool:
        if not any(isinstance(scale, Tensor) for scale in scales):
            return all(scale == first for scale in scales)
        if read:
            like = torch.as_tensor(first)
            self._common[key] = all(
                isinstance(scale, Tensor) and torch.equal(scale, like) for scale in scales
            )
        return self._common.get(key, False)


def _constant_outside(scale: Any, shared: Plates) -> bool:
    if not isinstance(scale, Tensor):
        return True
    dims = {dim for _, dim in shared}
    return all(scale.shape[dim] == 1 or dim in dims for dim in range(-scale.dim(), 0))


def _refuse_subsampled(record: SiteRecord, shared: set[str]) -> None:
    for plate, (size, full) in record.sizes.items():
        if plate not in shared and full != size:
            raise ProgramError(
                f"site {record.name!r} is in the subsampled plate {plate!r} ({size} of {full}), "
                "and not every latent is: the bound stands over the whole, and weights of a "
                "minibatch inside a logarithm are biased. Use all data at once, or am.ELBO()"
            )
