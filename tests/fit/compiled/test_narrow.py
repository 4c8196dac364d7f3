"""A narrowed graph gives the same numbers, and multiplies no zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import amortized as am
from amortized.fit.compiled.narrow import Rows, narrowed, through_view
from amortized.fit.compiled.tidy import tidied
from tests.fit.compiled.graphs import Function, capture, step_graph

pytestmark = pytest.mark.float64

WEIGHT = torch.linspace(-1.0, 2.0, 20, dtype=torch.float64).reshape(4, 5)
X = torch.linspace(0.3, 2.9, 3 * 2 * 5, dtype=torch.float64).reshape(3, 2, 5)


def flops(step: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = list(step(*inputs))
    return found, counter.get_total_flops()


def before_and_after(function: Function, *inputs: Tensor) -> tuple[int, int]:
    """How many operations both take, after comparing what they return."""
    module = tidied(capture(function, (), inputs))
    expected, before = flops(module, inputs)
    found, after = flops(narrowed(module), inputs)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    return before, after


def first_copy(x: Tensor) -> Tensor:
    """Ones on the first of three copies, as the gradient of what only it has."""
    return x.new_zeros(3, 1, 1).add(torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1))


def weight_gradient(x: Tensor) -> list[Tensor]:
    owed = x.sigmoid() * -first_copy(x).expand(3, 2, 5)
    rows = owed.reshape(6, 5)
    return [rows.t() @ x.reshape(6, 5), rows.sum(0)]


def through_two_layers(x: Tensor) -> list[Tensor]:
    owed = (x.sigmoid() * first_copy(x).expand(3, 2, 5)).reshape(6, 5)
    hidden = x.reshape(6, 5) @ WEIGHT.t()
    below = (owed @ WEIGHT.t()) * (1 - hidden.tanh() ** 2)
    return [below.t() @ x.reshape(6, 5), owed.t() @ hidden.tanh()]


def slopes_of_two(x: Tensor) -> list[Tensor]:
    slope = ((x.reshape(6, 5) @ WEIGHT.t()) @ WEIGHT).reshape(3, 2, 5) * 2 + x
    _, second, third = slope.split(1, 0)
    return [second * third]


def zeros_on_the_right(x: Tensor) -> list[Tensor]:
    owed = (x * first_copy(x)).reshape(6, 5)
    return [x.reshape(6, 5).t() @ owed, (x * first_copy(x)).sum()]


SAVED: dict[str, tuple[Function, float]] = {
    "a weight's gradient": (weight_gradient, 1 / 3),
    "two layers": (through_two_layers, 1 / 2),
    "slopes of two copies of three": (slopes_of_two, 2 / 3),
    "zeros on the right": (zeros_on_the_right, 1 / 3),
}


@pytest.mark.parametrize("name", SAVED)
def test_rows_of_zeros_are_left_out(name: str) -> None:
    function, share = SAVED[name]
    before, after = before_and_after(function, X)
    assert after == pytest.approx(share * before, rel=0.1)


def changed_between(x: Tensor) -> list[Tensor]:
    """What stands at the rows is another number when the product is taken."""
    held = x.clone()
    owed = (held * first_copy(x)).reshape(6, 5)
    held.add_(1.0)
    return [owed.t() @ x.reshape(6, 5), held.sum()]


def zeros_in_between(x: Tensor) -> list[Tensor]:
    some = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1)
    return [(x * some).reshape(6, 5).t() @ x.reshape(6, 5)]


def not_the_leading_dim(x: Tensor) -> list[Tensor]:
    """Rows that are no rows once two dims are one."""
    some = torch.tensor([1.0, 0.0]).reshape(1, 2, 1)
    return [(x * some).reshape(6, 5).t() @ x.reshape(6, 5)]


def all_of_a_split(x: Tensor) -> list[Tensor]:
    first, second, third = (x.reshape(6, 5) @ WEIGHT.t()).reshape(3, 2, 4).split(1, 0)
    return [first * third + second]


def an_added_number(x: Tensor) -> list[Tensor]:
    return [(x * first_copy(x) + 1.0).reshape(6, 5).t() @ x.reshape(6, 5)]


@pytest.mark.parametrize(
    "function",
    [
        changed_between,
        zeros_in_between,
        not_the_leading_dim,
        all_of_a_split,
        an_added_number,
    ],
)
def test_what_is_needed_is_kept(function: Function) -> None:
    before, after = before_and_after(function, X)
    assert after == before


def test_two_splits_share_no_call_in_the_wrong_order() -> None:
    def function(x: Tensor) -> list[Tensor]:
        both = (x.reshape(6, 5) @ WEIGHT.t()).reshape(3, 2, 4)
        early = both.exp().split(1, 0)[2]
        late = both.sigmoid().split(1, 0)[2]
        return [early, late]

    before_and_after(function, X)


def test_an_infinite_product_with_zero_is_zero() -> None:
    """The one difference: where eager torch has NaN."""
    module = tidied(capture(weight_gradient, (), [X]))
    spoilt = X.clone()
    spoilt[2] = math.inf
    assert module(spoilt)[0].isnan().any()
    found = narrowed(module)(spoilt)
    torch.testing.assert_close(found[0], module(X)[0])


SHAPES = [(3, 1, 4), (3, 2, 2), (12,), (1, 12), (6, 2), (2, 6), (3, 4), (1, 3, 1, 4), (4, 3)]


@given(
    st.sampled_from(SHAPES),
    st.sampled_from(SHAPES),
    st.integers(0, 3),
    st.integers(0, 12),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_rows_of_a_view(
    shape: tuple[int, ...], other: tuple[int, ...], dim: int, start: int, data: st.DataObject
) -> None:
    """Marked in one shape and looked for in the other."""
    dim %= len(shape)
    start %= shape[dim]
    stop = data.draw(st.integers(start + 1, shape[dim]))
    marked = torch.zeros(shape).index_fill(dim, torch.arange(start, stop), 1.0).reshape(other)
    found = through_view(shape, Rows(dim, start, stop), other)
    if found is not None:
        rows = torch.arange(found.start, found.stop)
        assert torch.equal(marked, torch.zeros(other).index_fill(found.dim, rows, 1.0))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=self.layer(x)).to_event(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 5), nn.Sigmoid(), nn.Linear(5, 6))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.full((len(x), 8), 0.4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.layers(b)).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("estimator", "saves"),
    [("rebar", True), ("muprop", True), ("disarm", False), ("leave_one_out", False)],
)
def test_a_step_whose_base_alone_has_gradients(estimator: str, saves: bool) -> None:
    """Loss, terms and gradients of the whole step, and fewer operations where there were zeros."""
    torch.manual_seed(0)
    x = (torch.rand(7, 6) > 0.5).double()
    svi = am.SVI(Decoder(), Encoder(), am.VariationalLoss(estimators=estimator))
    graph, inputs = step_graph(svi, x)
    results = []
    for module in (graph.module, narrowed(graph.module)):
        counted: list[int] = []

        def step(
            *given: Tensor, module: Any = module, counted: list[int] = counted
        ) -> list[Tensor]:
            found, number = flops(module, given)
            counted.append(number)
            return found

        found, _ = graph.trial(step, inputs.tensors)
        results.append((found, counted[0]))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert (results[1][1] < 0.9 * results[0][1]) == saves
    assert saves or results[1][1] == results[0][1]
