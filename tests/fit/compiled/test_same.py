"""Two captures are one graph if they make the same calls on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from amortized.fit.compiled.same import same_graph
from amortized.fit.compiled.tidy import tidied

WEIGHT, OTHER = torch.ones(3), torch.ones(3)


def graph(step: Callable[..., Any], size: int = 3) -> Any:
    return tidied(make_fx(lambda x: step(x))(torch.ones(size)))


def plain(x: Tensor, number: Any = 2.0, weight: Tensor = WEIGHT) -> Tensor:
    return (x * weight).clamp(max=number) + torch.tensor(number)


def test_the_same_program_gives_the_same_graph() -> None:
    assert same_graph(graph(plain), graph(plain))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: plain(x, 3.0),
        lambda x: plain(x, 2),
        lambda x: plain(x, weight=OTHER),
        lambda x: plain(x) + 1,
        lambda x: x * WEIGHT,
        lambda x: (WEIGHT * x).clamp(max=2.0) + torch.tensor(2.0),
        lambda x: (x * WEIGHT).clamp(max=2.0) + torch.tensor(2.0, dtype=torch.float64),
    ],
    ids=["number", "kind", "tensor", "longer", "shorter", "order", "dtype"],
)
def test_a_difference_is_seen(other: Callable[[Tensor], Tensor]) -> None:
    assert not same_graph(graph(plain), graph(other))


def test_numbers_in_tensors_count() -> None:
    def with_number(number: float) -> Any:
        return graph(lambda x: x + torch.tensor(number))

    assert same_graph(with_number(0.5), with_number(0.5))
    assert not same_graph(with_number(0.5), with_number(0.25))
