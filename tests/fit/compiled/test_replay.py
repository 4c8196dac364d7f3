"""A replay makes the calls of its graph: the same overloads, the same bits."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

import amortized as am
from amortized.fit.compiled.replay import _BOUND, _METHODS, _function, attributes, replay_of
from tests.fit.compiled.graphs import Function, agrees, capture, step_graph
from tests.laws.structures import EVERY

aten = torch.ops.aten
X = torch.arange(6.0).reshape(2, 3) / 5 - 0.4
Y = torch.arange(6.0).reshape(2, 3) / 3 + 0.2
LONG, INF, NAN = torch.long, math.inf, math.nan


class Dispatched(TorchDispatchMode):
    """Notes which overloads torch comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def dispatched(step: Function, inputs: Sequence[Tensor]) -> list[str]:
    torch.manual_seed(0)
    with torch.no_grad(), Dispatched() as log:
        step(*[t.clone() for t in inputs])
    return [name for name in log.names if name != "aten.clone.default"]


def check(module: GraphModule, inputs: Sequence[Tensor]) -> None:
    replay = replay_of(module)
    agrees(replay, module, attributes(module), inputs)
    assert dispatched(replay, inputs) == dispatched(module, inputs)


CALLS: dict[str, Function] = {
    "add": lambda x, y: [x + y, x + 2, 2 + x, x.long() + 1.5, x.long() + True],
    "add with alpha": lambda x, y: [torch.add(x, y, alpha=3), torch.add(x, 2, alpha=0.5)],
    "sub": lambda x, y: [x - y, x - 2, 2 - x, torch.sub(x, y, alpha=2)],
    "mul": lambda x, y: [x * y, x * 2, x * 0.1, x.long() * 2.5, x.double() * 0.1, x.half() * 0.1],
    "mul by a tensor that is a number": lambda x, y: [x * y.sum(), x.half() * y.sum()],
    "mul by what is not finite": lambda x, y: [x * INF, x * -INF, x * NAN, x * -0.0],
    "large integers": lambda x, y: [x.long() * 2**40, x.long() + 2**62],
    "div": lambda x, y: [x / y, x / 3, 3 / y, x.long() / 2],
    "div with rounding": lambda x, y: [
        torch.div(x, y, rounding_mode="floor"),
        torch.div(x, 0.3, rounding_mode="trunc"),
        torch.div(x.long(), 2, rounding_mode="floor"),
    ],
    "scalar overloads": lambda x, y: [
        aten.mul.Scalar(x, 2),
        aten.add.Scalar(x, 2, 3),
        aten.sub.Scalar(x, 2, 3),
        aten.div.Scalar(x, 2),
        aten.div.Scalar_mode(x, 0.3, rounding_mode="floor"),
        aten.rsub.Scalar(x, 2, 3),
        aten.pow.Scalar(2, x),
        aten.mul.Scalar(x.long(), 2.5),
    ],
    "pow": lambda x, y: [x**2, x**-1, y**0.5, y**y, 2**y, x.long() ** 3, x.long() ** 2.0],
    "sum": lambda x, y: [x.sum(), x.sum(0), x.sum((0, 1), True), x.sum(-1, keepdim=True)],
    "sum with a dtype": lambda x, y: [
        x.sum(dtype=torch.float64),
        x.sum(0, dtype=torch.float64),
        (x > 0).sum(),
        (x > 0).sum(0),
        (x > 0).sum(0, dtype=torch.int32),
    ],
    "mean": lambda x, y: [x.mean(), x.mean(0), x.mean((0, 1), True), x.mean(0, dtype=torch.double)],
    "where": lambda x, y: [
        torch.where(x > 0, x, y),
        torch.where(x > 0, x, 0.0),
        torch.where(x > 0, 1, y),
        torch.where(x > 0, 1.0, 0.5),
        torch.where(x > 0, 1, 0),
        torch.where(x > 0, x, NAN),
        torch.where(x > 0, x.long(), 0.5),
    ],
    "where by index": lambda x, y: [*torch.where(torch.ones(2, 2, dtype=torch.bool))],
    "matrices": lambda x, y: [
        x.t() @ y,
        torch.bmm(x.unsqueeze(0), y.t().unsqueeze(0)),
        torch.addmm(x[:, :2], x, y.t(), beta=0.5, alpha=2),
        nn.functional.linear(x, y, y[:, 0]),
    ],
    "of one argument": lambda x, y: [
        *(f(y) for f in (torch.exp, torch.log, torch.log1p, torch.neg, torch.relu, torch.sigmoid)),
        *(f(y) for f in (torch.reciprocal, torch.rsqrt, torch.sqrt, torch.tanh, torch.t)),
    ],
    "of integers": lambda x, y: [f(y.long() + 1) for f in (torch.exp, torch.sqrt, torch.sigmoid)],
    "cat and stack": lambda x, y: [torch.cat([x, y]), torch.cat((x, y), 1), torch.stack([x, y], 2)],
    "shapes": lambda x, y: [
        x.view(3, 2),
        x.view(-1),
        x.view(torch.int32),
        x.expand(4, 2, 3) + 0,
        x.expand(4, -1, -1) + 0,
        x.unsqueeze(-1),
        x.t().reshape(2, 3),
        x.permute(1, 0),
    ],
    "dtypes and devices": lambda x, y: [
        x.to(torch.float64),
        x.new_zeros(2, dtype=LONG),
        torch.ones(3, dtype=torch.half, device="cpu"),
        torch.full((2,), INF),
        torch.full((2,), True),
        torch.arange(0.5, 2.0, 0.5),
        x.clone(memory_format=torch.contiguous_format),
    ],
    "numbers": lambda x, y: [
        x.clamp(-INF, 0.1),
        x.clamp(min=0.1),
        x.clamp(max=NAN),
        x.masked_fill(x > 0, -INF),
        nn.functional.softplus(x),
        nn.functional.leaky_relu(x, 0.3),
        torch.logsumexp(x, -1),
        x.norm(2, 0),
        x.norm(INF),
    ],
    "parts": lambda x, y: [
        x[0],
        x[:, 1:],
        x[..., None, -1],
        *x.unbind(1),
        *x.chunk(2, 1),
        x[torch.tensor([1, 0])],
        x[:, torch.tensor([1, 0]), None],
        *x.max(0),
        *torch.var_mean(x, 0),
        x.gather(1, torch.zeros(2, 1, dtype=LONG)),
    ],
    "in place": lambda x, y: [
        x.clone().add_(1),
        x.clone().mul_(y),
        x.clone().index_put_((torch.tensor([0]),), y[0], True),
        torch.zeros(3).copy_(x[0]),
        x.clone().index_add_(0, torch.tensor([1]), y[:1], alpha=2),
    ],
    "lists with None": lambda x, y: [aten.index_put(x, [None, torch.tensor([2])], y[:, :1])],
    "draws": lambda x, y: [
        torch.rand(2, 3),
        torch.randn_like(x),
        torch.bernoulli(y.sigmoid()),
        torch.empty(3).uniform_(-2, 0.5),
        torch.multinomial(y, 2, True),
        torch._standard_gamma(y),
    ],
    "layers": lambda x, y: [
        nn.functional.layer_norm(x, (3,)),
        nn.functional.batch_norm(x, None, None, training=True),
        nn.functional.conv1d(x.unsqueeze(0), y.unsqueeze(-1)[:, :2], padding=1),
        nn.functional.embedding(torch.tensor([[0, 1], [1, 1]]), x),
        nn.functional.dropout(x, 0.25),
        nn.functional.scaled_dot_product_attention(x[None], y[None], y[None]),
    ],
    "special functions": lambda x, y: [
        torch.lgamma(y),
        torch.digamma(y),
        torch.linalg.cholesky(y @ y.t() + torch.eye(2)),
        torch.special.xlogy(x, y),
        torch.cumsum(x, 0),
        x.log_softmax(-1),
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    function = CALLS[name]
    module = capture(function, (), [X, Y])
    check(module, [X, Y])
    agrees(replay_of(module), function, (), [X, Y])


def test_every_faster_binding_is_met_above() -> None:
    """Each name of the table stands for a packet of aten, and `test_calls` goes through it."""
    met: dict[str, bool] = {}
    for function in CALLS.values():
        for node in capture(function, (), [X, Y]).graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                faster = _function(node.target) is not node.target._op
                packet = str(node.target).split(".")[1]
                met[packet] = met.get(packet, False) or faster
    assert sorted(name for name, faster in met.items() if faster) == sorted([*_BOUND, *_METHODS])


def test_scalar_and_out_overloads_keep_their_own_binding() -> None:
    """Torch's Python functions would take the first for another overload."""
    assert _function(aten.mul.Scalar) is aten.mul.Scalar._op
    assert _function(aten.add.Scalar) is aten.add.Scalar._op
    assert _function(aten.add.out) is aten.add.out._op
    assert _function(aten.add.Tensor) is torch.add
    assert _function(aten.view.default) is Tensor.view


def test_nothing_is_recorded_for_gradients() -> None:
    layer = nn.Linear(3, 2)
    module = capture(lambda x: [layer(x), layer.weight * 2, x.t() * 2], (), [X])
    replay = replay_of(module)
    asking = X.clone().requires_grad_()
    for tensor in replay(asking):
        assert not tensor.requires_grad and tensor.grad_fn is None


def test_buffers_are_seen_to_move() -> None:
    """Versions count: what moves is told by them."""
    state = torch.zeros(3)
    replay = replay_of(capture(lambda x: [state.add_(x[0]) * 2], [state], [X]))
    before = state._version
    replay(X)
    assert state._version > before


def test_parameters_enter_by_reference() -> None:
    layer = nn.Linear(3, 2)
    replay = replay_of(capture(lambda x: [layer(x)], (), [X]))
    with torch.no_grad():
        layer.weight.mul_(3)
        assert torch.equal(replay(X)[0], layer(X))


def test_tensors_are_let_go_where_they_were_used_last() -> None:
    """A chain of forty results never holds all of them at once."""
    references: list[Any] = []
    alive: list[int] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            references.append(weakref.ref(found))
            alive.append(sum(1 for reference in references if reference() is not None))
            return found

    def chain(x: Tensor) -> list[Tensor]:
        for _ in range(20):
            x = x.exp().neg()
        return [x]

    replay = replay_of(capture(chain, (), [X]))
    with Counted():
        replay(X)
    assert len(alive) == 40
    assert max(alive) < 10


def graph_of(build: Callable[[Graph], object]) -> GraphModule:
    graph = Graph()
    graph.output(build(graph))
    return GraphModule(nn.Module(), graph)


def twice(x: Tensor, by: float) -> Tensor:
    return x * by


def test_arguments_of_every_kind() -> None:
    """What a tracer may leave in a graph: nested lists, keywords, None, getitem of getitem."""

    def build(graph: Graph) -> object:
        x, y = graph.placeholder("x"), graph.placeholder("y")
        split = graph.call_function(aten.split.Tensor, (x, 1), {"dim": 1})
        first = graph.call_function(operator.getitem, (split, 0))
        last = graph.call_function(operator.getitem, (split, -1))
        joined = graph.call_function(aten.cat.default, ([first, last, y], 1))
        by_name = graph.call_function(aten.add.Tensor, (joined,), {"other": joined, "alpha": 2})
        index = [None, graph.call_function(aten.arange.default, (1,))]
        put = graph.call_function(aten.index_put.default, (x, index, first), {"accumulate": True})
        clamped = graph.call_function(aten.clamp.default, (x, None, 0.1))
        unused = graph.call_function(aten.exp.default, (x,))
        assert unused
        return [by_name, put, clamped, x]

    check(graph_of(build), [X, Y])


def test_outputs_may_be_nested_or_none() -> None:
    def build(graph: Graph) -> object:
        x = graph.placeholder("x")
        twice = graph.call_function(aten.mul.Tensor, (x, 2))
        return [twice, (x, [twice]), None]

    module = graph_of(build)
    found, wanted = replay_of(module)(X), module(X)
    assert torch.equal(found[0], wanted[0]) and found[2] is None
    assert torch.equal(found[1][1][0], wanted[1][1][0])


def test_a_function_that_is_not_of_torch_is_called_as_it_is() -> None:
    def build(graph: Graph) -> object:
        x = graph.placeholder("x")
        return [graph.call_function(twice, (x,), {"by": 2.5})]

    check(graph_of(build), [X])


def test_attributes_are_named_once_in_order() -> None:
    first, second = nn.Parameter(X.clone()), Y.clone()
    module = capture(lambda x: [second + first, second * first * x], (), [X])
    assert [id(t) for t in attributes(module)] == [id(second), id(first)]
    nested = nn.Module()
    nested.inner = nn.Module()
    nested.inner.held = X.clone()
    graph = Graph()
    x = graph.placeholder("x")
    held = graph.get_attr("inner.held")
    graph.output([graph.call_function(aten.add.Tensor, (x, held))])
    deep = GraphModule(nested, graph)
    assert torch.equal(replay_of(deep)(X)[0], X + X)
    assert torch.equal(attributes(deep)[0], X)


RULES = {"score": am.ScoreFunction, "enumerate": am.Enumerate}


@pytest.mark.float64
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"control_flow", "python_loop"}))
def test_steps_of_every_structure(structure: str, rule: str) -> None:
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators={name: RULES[rule]() for name in pair.latents})
    svi = am.SVI(pair.model, pair.guide, loss)
    pyro.set_rng_seed(0)
    try:
        graph, inputs = step_graph(svi, ())
    except am.AmortizedError:
        pytest.skip("not served: see the laws")
    check(graph.module, inputs.tensors)
