"""A tidied graph cannot be told from the function it was captured from, and is shorter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amortized.fit.compiled.replay import replay_of
from amortized.fit.compiled.tidy import is_random, tidied, writes
from tests.fit.compiled.graphs import Function, Made, agrees, capture

aten = torch.ops.aten
X = torch.arange(6.0).reshape(2, 3) / 5 - 0.4


def calls_of(function: Function, *inputs: Tensor, state: tuple[Tensor, ...] = ()) -> list[str]:
    """The names of the calls that are left, after comparing the replay with the function."""
    module = tidied(capture(function, state, inputs))
    agrees(replay_of(module), function, state, inputs)
    return [str(n.target) for n in module.graph.nodes if n.op == "call_function"]


def number_of(name: str, calls: list[str]) -> int:
    return sum(1 for call in calls if call.startswith(f"aten.{name}."))


# --- what is shortened ---------------------------------------------------------------------------

SHORTENED: dict[str, tuple[Function, int]] = {
    "detach": (lambda x: [x.detach() * 2], 1),
    "detached twice": (lambda x: [x.detach().detach() * 2], 1),
    "alias": (lambda x: [torch.ops.aten.alias(x) * 2], 1),
    "t of t": (lambda x: [x.t().t() * 2], 1),
    "view of the same shape": (lambda x: [x.view(2, 3) * 2], 1),
    "expand to the same shape": (lambda x: [x.expand(2, 3) * 2], 1),
    "a first power": (lambda x: [torch.pow(x, 1) * 2], 1),
    "the same call": (lambda x: [x.exp() * 2 + x.exp()], 3),
    "the same call on the same calls": (lambda x: [x.exp().sum(0) + x.exp().sum(0)], 3),
    "a call that nobody uses": (lambda x: (x.exp(), [x * 2])[1], 1),
    "ones of a shape": (lambda x: [x * torch.ones_like(x).div(4)], 1),
    "zeros of a shape": (lambda x: [x + x.new_zeros(3).add(1)], 1),
    "a number in the text": (lambda x: [x * torch.tensor(0.3).exp()], 1),
    "a range": (lambda x: [x * torch.arange(3.0).neg()], 1),
    "a constant under two calls": (lambda x: [x * (c := x.new_full((3,), 2.0).exp()) + c], 2),
}


@pytest.mark.parametrize("name", SHORTENED)
def test_is_shortened(name: str) -> None:
    function, count = SHORTENED[name]
    calls = calls_of(function, X)
    assert len(calls) == count, calls


# --- what looks the same and is not --------------------------------------------------------------

KEPT: dict[str, tuple[Function, str, int]] = {
    "t once": (lambda x: [x.t() * 2], "t", 1),
    "t of another": (lambda x: [x.exp().t() + x.t()], "t", 2),
    "view of another shape": (lambda x: [x.view(3, 2) * 2], "view", 1),
    "expand to another shape": (lambda x: [x.expand(4, 2, 3) * 2], "expand", 1),
    "a transposed view": (lambda x: [x.t().contiguous().view(3, 2) * 2], "clone", 1),
    "a square": (lambda x: [torch.pow(x, 2)], "pow", 1),
    "another power": (lambda x: [torch.pow(x, 1.5) * torch.pow(x, 1)], "pow", 1),
    "a first power of integers in floats": (lambda x: [torch.pow(x.long(), 1.0) * 2], "pow", 1),
    "another number": (lambda x: [x.mul(2.0) + x.mul(3.0)], "mul", 2),
    "one and true": (lambda x: [x.long() * 1, x.bool() * True], "mul", 2),
    "a number and an integer": (lambda x: [x.long().mul(2), x.long().mul(2.0)], "mul", 2),
    "zero and minus zero": (lambda x: [1 / (x * -0.0), 1 / (x * 0.0)], "reciprocal", 2),
    "other keywords": (
        lambda x: [x.sum(0, dtype=torch.float64), x.sum(0)],
        "sum",
        2,
    ),
    "other kinds of lists": (lambda x: [x.sum(0), x.sum((0, 1)), x.sum((1, 0))], "sum", 3),
    "a large constant": (lambda x: [x.sum() * x.new_ones(5000)], "new_ones", 1),
    "equal calls of inputs": (lambda x: [x.exp() + (x + 0).exp()], "exp", 2),
}


@pytest.mark.parametrize("name", KEPT)
def test_is_kept(name: str) -> None:
    function, call, count = KEPT[name]
    calls = calls_of(function, X)
    assert number_of(call, calls) == count, calls


# --- draws ---------------------------------------------------------------------------------------

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(2, 3),
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(2, 3),
    "randint": lambda x: torch.randint(0, 7, (2, 3)),
    "randperm": lambda x: torch.randperm(3),
    "normal_": lambda x: torch.empty(2, 3).normal_(),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "multinomial": lambda x: torch.multinomial(x.exp(), 4, True),
    "poisson": lambda x: torch.poisson(x.exp()),
    "gamma": lambda x: torch._standard_gamma(x.exp()),
    "dirichlet": lambda x: torch._sample_dirichlet(x.exp()),
    "binomial": lambda x: torch.binomial(x.exp().ceil(), x.sigmoid()),
    "normal": lambda x: torch.normal(x, x.exp()),
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "relaxed": lambda x: nn.functional.gumbel_softmax(x),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_neither_shared_nor_dropped(name: str) -> None:
    draw = DRAWS[name]
    twice: Function = lambda x: [draw(x) * 1.5, draw(x) * 1.5]  # noqa: E731
    unused: Function = lambda x: (draw(x), [x * 2])[1]  # noqa: E731
    calls_of(twice, X)
    calls_of(unused, X)


def test_every_call_of_torch_with_a_generator_is_known_as_a_draw() -> None:
    """The tag that `is_random` trusts, or a write."""
    unknown = []
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        if not name.startswith("aten::") or packet.startswith("__"):
            continue
        found = getattr(getattr(aten, packet, None), overload or "default", None)
        if found is None or not any(a.name == "generator" for a in found._schema.arguments):
            continue
        if not (is_random(found) or writes(found)):
            unknown.append(name)
    assert not unknown


# --- writes --------------------------------------------------------------------------------------


def buffer(*shape: int) -> Tensor:
    return torch.linspace(0.1, 0.9, math.prod(shape)).reshape(shape)


def read_around_a_write() -> Made:
    state = buffer(3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        first = held * 2
        state.add_(x.sum())
        return [first, held * 2]

    return step, [state]


def the_same_write_twice() -> Made:
    state = buffer(3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        return [held.add_(1) * x, held.add_(1) * x]

    return step, [state]


def a_write_through_a_view() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        first = held.t().exp()
        held.view(6)[1:3].mul_(2)
        return [first, held.t().exp() + x.t()]

    return step, [state]


def a_write_to_a_part() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        upper, lower = held.unbind(0)
        first, _ = upper.exp(), lower.copy_(x[1])
        return [first, held.exp(), upper.exp(), lower.exp()]

    return step, [state]


def a_write_to_the_base_read_through_parts() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        upper, _ = held.unbind(0)
        first = upper.exp()
        held.add_(x)
        return [first, upper.exp()]

    return step, [state]


def a_write_by_index() -> Made:
    state = buffer(4)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        first = held.exp()
        held[torch.tensor([0, 2])] = x[0, :2]
        return [first, held.exp()]

    return step, [state]


def a_write_to_a_first_power() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        power = torch.pow(state, 1)
        power.add_(x)
        return [power * 2]

    return step, [state]


def a_first_power_of_what_is_written() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        power = torch.pow(held, 1)
        held.add_(x)
        return [power * 2, held * 2]

    return step, [state]


def equal_copies_one_of_which_is_written() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first, second = x.exp(), x.exp()
        first.add_(1)
        return [first * 2, second * 2]

    return step, []


def equal_copies_read_before_one_is_written() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first, second = x.exp(), x.exp()
        before = second * 3
        second.mul_(2)
        return [first * 3, before]

    return step, []


def constants_that_are_written() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        total = torch.zeros(3)
        total += x[0]
        ones = torch.ones_like(x)
        ones[0].fill_(3.0)
        number = torch.tensor([1.0, 2.0])
        number.mul_(2)
        return [total * 2, ones * x, number * 2]

    return step, []


def equal_constants_one_of_which_is_written() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first, second = x.new_zeros(3), x.new_zeros(3)
        first.copy_(x[0])
        return [first * 2, second + 1, x.new_zeros(3) + 1]

    return step, []


def copies_in_another_layout() -> Made:
    """`reshape` copies, and what it gives is not declared to be a view of the copy."""

    def step(x: Tensor) -> list[Tensor]:
        first, second = x.t().reshape(-1), x.t().reshape(-1)
        first.add_(1)
        return [first * 2, second * 2]

    return step, []


def parts_that_are_not_declared_to_share() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first = torch.unsafe_split(x.exp(), 1)[0]
        second = torch.unsafe_split(x.exp(), 1)[0]
        first.add_(1)
        return [first * 2, second * 2]

    return step, []


def a_draw_into_memory() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first, second = torch.empty_like(x), torch.empty_like(x)
        return [first.normal_() * 2, second.normal_() * 2, first * 2, second * 2]

    return step, []


def written_in_a_list() -> Made:
    state = [buffer(3), buffer(2)]

    def step(x: Tensor) -> list[Tensor]:
        held = [tensor.detach() for tensor in state]
        first = [tensor.exp() for tensor in held]
        torch._foreach_add_(held, 1.0)
        return [*first, *(tensor.exp() for tensor in held), x * 2]

    return step, state


def written_as_out() -> Made:
    state = buffer(2, 3)

    def step(x: Tensor) -> list[Tensor]:
        held = state.detach()
        turned = held.t()
        first = turned.exp()
        aten.add.out(x, x, out=held)
        return [first, turned.exp()]

    return step, [state]


def two_tensors_on_one_memory() -> Made:
    """A view that was made before the capture, as a tied or sliced buffer is."""
    state = buffer(2, 3)
    part = state[0]

    def step(x: Tensor) -> list[Tensor]:
        held = part.detach()
        first = held.exp()
        state.add_(x)
        return [first, held.exp()]

    return step, [state]


def batch_norm() -> Made:
    """Its schema does not say that it moves the running means."""
    layer = nn.BatchNorm1d(3)
    state = [*layer.parameters(), *layer.buffers()]

    def step(x: Tensor) -> list[Tensor]:
        mean = layer.running_mean
        assert mean is not None
        held = mean.detach()
        first, out = held.exp(), layer(x)
        return [first, out.detach(), held.exp()]

    return step, state


def batch_norm_for_its_means_alone() -> Made:
    layer = nn.BatchNorm1d(3)

    def step(x: Tensor) -> list[Tensor]:
        layer(x), layer(x)
        return [x * 2]

    return step, [*layer.parameters(), *layer.buffers()]


def a_moving_average() -> Made:
    """What a baseline does: compared with the value before, then moved."""
    mean, count = buffer(1), torch.zeros((), dtype=torch.long)

    def step(x: Tensor) -> list[Tensor]:
        signal = x - mean
        count.add_(1)
        mean.mul_(0.9).add_(0.1 * x.mean())
        return [signal * (x - mean), count * 1.0]

    return step, [mean, count]


def a_shape_changed_in_place() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        raised = x.detach().unsqueeze_(0)
        return [x * 2, raised * 2]

    return step, []


def the_input_is_written() -> Made:
    def step(x: Tensor) -> list[Tensor]:
        first = x.exp()
        x.detach().add_(1)
        return [first, x.exp()]

    return step, []


WRITES = [
    read_around_a_write,
    the_same_write_twice,
    a_write_through_a_view,
    a_write_to_a_part,
    a_write_to_the_base_read_through_parts,
    a_write_by_index,
    a_write_to_a_first_power,
    a_first_power_of_what_is_written,
    equal_copies_one_of_which_is_written,
    equal_copies_read_before_one_is_written,
    constants_that_are_written,
    equal_constants_one_of_which_is_written,
    copies_in_another_layout,
    parts_that_are_not_declared_to_share,
    a_draw_into_memory,
    written_in_a_list,
    written_as_out,
    two_tensors_on_one_memory,
    batch_norm,
    batch_norm_for_its_means_alone,
    a_moving_average,
    a_shape_changed_in_place,
    the_input_is_written,
]


@pytest.mark.parametrize("make", WRITES, ids=lambda make: make.__name__)
def test_what_is_written_is_left(make: Callable[[], Made]) -> None:
    function, state = make()
    # what is returned as it is would be left alone for that reason
    used: Function = lambda x: [t + n for n, t in enumerate(function(x), start=1)]  # noqa: E731
    calls_of(used, X, state=tuple(state))
    calls_of(function, X, state=tuple(state))


# --- outputs: the caller scales them in place ----------------------------------------------------

OUTPUTS: dict[str, Function] = {
    "equal": lambda x: [x.exp(), x.exp()],
    "equal under views": lambda x: [x.exp().t(), x.exp().t()],
    "equal biases": lambda x: [x.sum(0, True).view(3), x.sum(0, True).view(3)],
    "equal under an undeclared view": lambda x: [
        aten._unsafe_view(x.exp(), [6]),
        aten._unsafe_view(x.exp(), [6]),
    ],
    "equal under parts": lambda x: [x.exp().unbind(0)[0], x.exp().unbind(0)[1]],
    "a constant": lambda x: [x * 2, x.new_ones(3).div(4)],
    "a constant under a view": lambda x: [x * 2, x.new_ones(()).div(4).unsqueeze(0)],
    "a constant also used": lambda x: [x * (c := x.new_ones(3).div(4)), c.view(3, 1)],
    "a number in the text": lambda x: [x * 2, torch.tensor(0.3)],
    "a first power": lambda x: [y := x.exp(), torch.pow(y, 1)],
    "a first power under a view": lambda x: [y := x.exp(), torch.pow(y, 1).view(6)],
    "a first power of an input": lambda x: [torch.pow(x, 1).view(6), x * 2],
    "views of one": lambda x: [(y := x.exp()).view(6), y.detach()],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_share_memory_only_where_the_function_shares_it(name: str) -> None:
    calls_of(OUTPUTS[name], X)


def test_gradients_of_equal_biases_have_memory_of_their_own() -> None:
    """Two layers that are added: torch computes the same sum for each bias."""
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    leaves = [*first.parameters(), *second.parameters()]

    def step(x: Tensor) -> list[Tensor]:
        loss = (first(x) + second(x)).square().mean()
        return [g.detach() for g in torch.autograd.grad(loss, leaves)]

    calls_of(step, X)


def test_derivatives_of_a_network() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softplus())
    leaves = list(layers.parameters())

    def step(x: Tensor) -> list[Tensor]:
        loss = (layers(x) ** 2).sum() + (leaves[0] ** 2).mean()
        return [loss.detach(), *(g.detach() for g in torch.autograd.grad(loss, leaves))]

    module = capture(step, (), [X])
    before = len(module.graph.nodes)
    calls_of(step, X)
    assert len(tidied(module).graph.nodes) < before


# --- random graphs -------------------------------------------------------------------------------

Pool = list[Tensor]


def same_shape(pool: Pool, a: Tensor, j: int) -> Tensor:
    fits = [tensor for tensor in pool if tensor.shape == a.shape]
    return fits[j % len(fits)]


def write(apply: Callable[[Tensor], Tensor]) -> Callable[[Pool, Tensor, int], Tensor]:
    """In place, where torch allows it: not where elements share memory."""

    def step(pool: Pool, a: Tensor, j: int) -> Tensor:
        return a * 1 if 0 in a.stride() else apply(a)

    return step


OPERATIONS: dict[str, Callable[[Pool, Tensor, int], Tensor]] = {
    "exp": lambda pool, a, j: a.tanh().exp(),
    "tanh": lambda pool, a, j: a.tanh(),
    "double": lambda pool, a, j: a * 2.0,
    "clone": lambda pool, a, j: a.clone(),
    "power": lambda pool, a, j: torch.pow(a, 1),
    "add": lambda pool, a, j: a + 0.5 * same_shape(pool, a, j),
    "detach": lambda pool, a, j: a.detach(),
    "t": lambda pool, a, j: a.t() if a.dim() == 2 else a.unsqueeze(0),
    "flat": lambda pool, a, j: a.reshape(-1),
    "view": lambda pool, a, j: a.view(a.shape),
    "rows": lambda pool, a, j: a.reshape(2, -1) if a.numel() % 2 == 0 else a.detach(),
    "part": lambda pool, a, j: a[: max(1, a.shape[0] - 1)],
    "unbind": lambda pool, a, j: a.unbind(0)[j % a.shape[0]].reshape(-1),
    "expand": lambda pool, a, j: a.expand(2, *a.shape) if a.dim() == 1 else a.expand(a.shape),
    "sum": lambda pool, a, j: a.sum(0, True),
    "zeros": lambda pool, a, j: torch.zeros_like(a),
    "ones": lambda pool, a, j: a.new_ones(a.shape).div(3),
    "full": lambda pool, a, j: torch.full((2, 3), 0.25),
    "add_": write(lambda a: a.add_(0.125)),
    "mul_": write(lambda a: a.mul_(0.75)),
    "fill_": write(lambda a: a.fill_(0.3)),
    "normal_": write(lambda a: a.normal_()),
    "rand": lambda pool, a, j: torch.rand_like(a),
    "bernoulli": lambda pool, a, j: torch.bernoulli(a.sigmoid()),
}


def copy_(pool: Pool, a: Tensor, j: int) -> Tensor:
    return a * 1 if 0 in a.stride() else a.copy_(same_shape(pool, a, j).clone())


OPERATIONS["copy_"] = copy_
# where most mistakes would be: a pure call beside a write to what it reads
NAMES = (*OPERATIONS, "exp", "exp", "double", "clone", "detach", "flat", "add_", "add_", "copy_")


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Calls by name with the numbers of their arguments, and the numbers of the outputs."""
    calls = draw(
        st.lists(
            st.tuples(st.sampled_from(NAMES), st.integers(0, 12), st.integers(0, 12)),
            min_size=2,
            max_size=14,
        )
    )
    return calls, draw(st.lists(st.integers(0, 16), min_size=1, max_size=4))


def interpreted(
    calls: list[tuple[str, int, int]], outputs: list[int], state: Tensor
) -> Callable[[Tensor], list[Tensor]]:
    def step(x: Tensor) -> list[Tensor]:
        # the last are reached most easily, so that what was made is used
        pool = [x, state.detach()]
        for name, i, j in calls:
            pool.append(OPERATIONS[name](pool, pool[-1 - i % len(pool)], j))
        return [pool[-1 - number % len(pool)] for number in outputs]

    return step


def check_random(text: tuple[list[tuple[str, int, int]], list[int]]) -> None:
    state = buffer(2, 3)
    function = interpreted(*text, state)
    module = tidied(capture(function, [state], [X]))
    agrees(replay_of(module), function, [state], [X])


RANDOM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(RANDOM, max_examples=100)
@given(texts())
def test_random_graphs(text: tuple[list[tuple[str, int, int]], list[int]]) -> None:
    check_random(text)


@pytest.mark.long
@settings(RANDOM, max_examples=5000)
@given(texts())
def test_many_random_graphs(text: tuple[list[tuple[str, int, int]], list[int]]) -> None:
    check_random(text)
