"""A step as a graph: what is an input, what is held by reference, what it gives and leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import amortized as am
from amortized.fit.compiled.capture import CaptureError, StepGraph, StepInputs
from amortized.fit.compiled.replay import replay_of
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.compiled.graphs import bits, step_graph

X = tiny.data(8)
DATA = DataPlate(rows=8)


class Guide(nn.Module):
    """Batch norm and dropout; one parameter is unused, one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)
        )
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.layers(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * self.frozen, log_scale.exp()))


def made(model: Any = tiny.local_model, guide: Any = None, **options: Any) -> am.SVI:
    pyro.set_rng_seed(0)
    return am.SVI(model, Guide() if guide is None else guide, lr=0.1, **options)


def backward(svi: am.SVI, batch: Any, **weights: float) -> list[Tensor | None]:
    """The gradients that the eager step leaves at its parameters."""
    stepper = svi._stepper
    stepper.optimizer.zero_grad()
    stepper.accumulate(batch, DATA, **weights)
    return [leaf.grad for leaf in stepper.optimizer.leaves()]


def losses(mode: Any, batches: Sequence[Any], model: Any, guide: Any) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = am.SVI(model, guide, lr=0.1, compile=mode)
    return [svi.step(batch) for batch in batches]


# --- inputs ---------------------------------------------------------------------------------------


def signature(batch: Any, leaves: Sequence[Tensor] = (), **options: Any) -> Any:
    return StepInputs(batch, leaves, options.pop("data", DATA), **options).signature()


ONE = torch.zeros(4, 2)
SAME: dict[str, tuple[Any, Any]] = {
    "other values": (ONE, ONE + 1),
    "other values in a tuple": ((ONE, ONE), (ONE, ONE + 1)),
    "other weights": ({"x": ONE, "w": 0.5}, {"x": ONE + 1, "w": 0.5}),
}
OTHER: dict[str, tuple[Any, Any]] = {
    "rows": (ONE, ONE[:3]),
    "shape": (ONE, ONE.t()),
    "dtype": (ONE, ONE.double()),
    "device": (ONE, ONE.to("meta")),
    "a number": ((ONE, 0.5), (ONE, 0.25)),
    "the type of a number": ((ONE, 1), (ONE, 1.0)),
    "true": ((ONE, 1), (ONE, True)),
    "a text": ((ONE, "a"), (ONE, "b")),
    "names": ({"x": ONE}, {"y": ONE}),
    "order": ({"x": ONE, "y": ONE[:3]}, {"x": ONE[:3], "y": ONE}),
    "structure": ((ONE, ONE), ((ONE, ONE),)),
    "a list": ([ONE], (ONE,)),
    "alone or in a tuple": (ONE, (ONE,)),
    "how many": ((ONE,), (ONE, ONE)),
}


@pytest.mark.parametrize("name", SAME)
def test_batches_of_one_signature(name: str) -> None:
    assert signature(SAME[name][0]) == signature(SAME[name][1])
    assert hash(signature(SAME[name][0])) == hash(signature(SAME[name][1]))


@pytest.mark.parametrize("name", OTHER)
def test_batches_of_other_signatures(name: str) -> None:
    assert signature(OTHER[name][0]) != signature(OTHER[name][1])


def test_weights_are_inputs_and_a_weight_of_one_is_none() -> None:
    assert signature(ONE, kl_weight=0.5) == signature(ONE, kl_weight=0.25)
    assert signature(ONE, weight=3.0) == signature(ONE, weight=2.0)
    every = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)]
    assert len({signature(ONE, kl_weight=k, weight=w) for k, w in every}) == 4
    tensors = StepInputs(ONE, (), DATA, 0.5, 3.0).tensors
    assert [t.tolist() for t in tensors[1:]] == [0.5, 3.0]
    assert len(StepInputs(ONE, (), DATA).tensors) == 1


def test_frozen_parameters_and_the_data_plate_have_their_own() -> None:
    leaf = torch.ones(2, requires_grad=True)
    before = signature(ONE, [leaf])
    leaf.requires_grad_(False)
    assert signature(ONE, [leaf]) != before
    assert signature(ONE, data=DataPlate(size=10)) != signature(ONE, data=DataPlate(size=20))
    assert signature(ONE, data=DataPlate("a")) != signature(ONE, data=DataPlate("b"))


def test_long_arrays_are_told_apart() -> None:
    first, second = np.zeros(5000), np.zeros(5000)
    second[2500] = 1.0
    assert signature((ONE, first)) != signature((ONE, second))


def with_option(x: Tensor, other: Any = None) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = 0.0 if other is None else float(np.asarray(other).sum())
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def guide_with_option(x: Tensor, other: Any = None) -> None:
    tiny.param_guide(x)


@pytest.mark.parametrize(
    "batches",
    [
        [(X, 0.5)] * 4,
        [(X, 0.5 + number // 2) for number in range(8)],
        [{"x": X + number, "other": [0.5, 0.25]} for number in range(4)],
        [{"other": 2, "x": X}] * 4,
        [(X, None)] * 4,
        [{"x": X, "other": None}] * 4,
        [(X, np.eye(1, 5000, 2500)[0] * (number // 3)) for number in range(6)],
    ],
    ids=["a number", "numbers", "a dict", "in another order", "None", "None by name", "an array"],
)
def test_batches_with_more_than_tensors(batches: list[Any]) -> None:
    found = [losses(mode, batches, with_option, guide_with_option) for mode in ("off", "graph")]
    assert found[0] == found[1]


def rows_model(x: Tensor) -> None:
    flat = x.reshape(-1)  # a view where rows are contiguous, else a copy
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=flat.reshape(x.shape))


def rows_guide(x: Tensor) -> None:
    tiny.param_guide(x[:, 0])


ROWS = tiny.data(24).reshape(8, 3)
COLUMNS = ROWS.t().contiguous().t()


@pytest.mark.parametrize(
    "batches",
    [
        [ROWS, ROWS, ROWS, COLUMNS, ROWS],
        [COLUMNS, COLUMNS, COLUMNS, ROWS, COLUMNS],
        [ROWS, ROWS[::1], ROWS.clone(), tiny.data(30).reshape(10, 3)[2:]],
    ],
    ids=["by columns later", "by columns first", "parts of others"],
)
def test_batches_in_another_layout(batches: list[Tensor]) -> None:
    found = [losses(mode, batches, rows_model, rows_guide) for mode in ("off", "graph")]
    assert found[0] == found[1]


def test_weights_vary_without_another_capture() -> None:
    svi = made(guide=tiny.param_guide)
    svi.step(X)
    graph, _ = step_graph(svi, X, kl_weight=0.5, weight=0.25)
    leaves, replay = svi._stepper.optimizer.leaves(), replay_of(graph.module)
    seen = []
    for kl_weight, weight in [(0.5, 0.25), (0.1, 2.0), (0.9, 0.5)]:
        inputs = StepInputs(X, leaves, DATA, kl_weight, weight)
        for step in (replay, graph.eager):
            torch.manual_seed(1)
            seen.append([bits(value) for value in step(*inputs.tensors)])
        assert seen[-1] == seen[-2]
        torch.manual_seed(1)
        wanted = backward(svi, X, kl_weight=kl_weight, weight=weight)
        torch.manual_seed(1)
        found = replay(*inputs.tensors)[3:]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True) if b is not None)
    assert len({str(each) for each in seen}) == 3


# --- outputs --------------------------------------------------------------------------------------


def test_gives_what_the_eager_step_gives() -> None:
    svi = made()
    svi.step(X)
    graph, inputs = step_graph(svi, X)
    torch.manual_seed(1)
    loss, norm, terms, *gradients = replay_of(graph.module)(*inputs.tensors)
    other = made()
    other.step(X)
    torch.manual_seed(1)
    wanted = backward(other, X)
    present = [i for i, gradient in enumerate(wanted) if gradient is not None]
    assert list(graph.outputs.with_gradient) == present
    assert len(present) == len(wanted) - 1  # the unused one; the frozen one is not trained
    for gradient, index in zip(gradients, present, strict=True):
        expected = wanted[index]
        assert expected is not None and torch.equal(gradient, expected)
    total = torch.nn.utils.get_total_norm([g for g in wanted if g is not None])
    assert torch.equal(norm, total)
    torch.manual_seed(1)
    eager = made()
    eager.step(X)
    torch.manual_seed(1)
    found = eager._stepper.accumulate(X, DATA)
    assert graph.outputs.names == tuple(found.values)
    assert terms.tolist() == [value.item() for value in found.values.values()]
    assert loss.item() == found.values["loss"].item()
    assert graph.outputs.per_datum and graph.outputs.local == frozenset({"z"})
    first, second = svi._stepper.parameters.snapshot(), other._stepper.parameters.snapshot()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


class Layouts(nn.Module):
    """Gradients that are expanded, transposed, shared or constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 2), nn.Linear(1, 2)
        self.scalar = nn.Parameter(torch.zeros(1))
        self.vector = nn.Parameter(torch.zeros(3))
        self.columns = nn.Parameter(torch.zeros(2, 3).t())
        self.added = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> None:
        added = self.first(x.unsqueeze(-1)) + self.second(x.unsqueeze(-1))
        loc, log_scale = added.unbind(-1)
        pyro.factor("scalar", self.scalar.squeeze(0), has_rsample=False)
        pyro.factor("vector", self.vector.sum(), has_rsample=False)
        pyro.factor("columns", (self.columns + self.added).square().sum(), has_rsample=False)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def layouts_model(x: Tensor) -> None:
    tiny.local_model(x)


def test_gradients_have_memory_of_their_own_in_the_layout_of_their_parameters() -> None:
    svi = made(layouts_model, Layouts())
    svi.step(X)
    graph, inputs = step_graph(svi, X)
    replay = replay_of(graph.module)
    leaves = [inputs.leaves[index] for index in graph.outputs.with_gradient]
    for _ in range(2):
        torch.manual_seed(1)
        gradients = replay(*inputs.tensors)[3:]
        assert [g.stride() for g in gradients] == [leaf.stride() for leaf in leaves]
        places = [t.untyped_storage().data_ptr() for t in (*gradients, *leaves, X)]
        assert len(set(places)) == len(places)
        torch.manual_seed(1)
        wanted = [g for g in backward(svi, X) if g is not None]
        assert [bits(g) for g in gradients] == [bits(g) for g in wanted]
        for gradient in gradients:  # what clipping does; the next replay must not see it
            gradient.mul_(0.5)


OPTIONS: dict[str, dict[str, Any]] = {
    "clipping": {"gradient_clip_val": 0.05},
    "accumulation": {"accumulate_grad_batches": 2},
    "both": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_that_torch_computes_once_are_scaled_once(name: str) -> None:
    """Two biases that are added have the same gradient, and it is scaled in place."""
    ends = []
    for mode in ("off", "graph"):
        svi = made(layouts_model, Layouts(), compile=mode)
        options = {"max_epochs": 4, "batch_size": 8, "seed": 1, "progress": False, "check": False}
        svi.fit(tiny.data(40), **options, **OPTIONS[name])
        ends.append(svi._stepper.parameters.snapshot())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# --- state ----------------------------------------------------------------------------------------


def everything(svi: am.SVI) -> list[Any]:
    tensors = svi._stepper.parameters.snapshot()
    return [torch.get_rng_state().tolist(), *((name, bits(t)) for name, t in tensors.items())]


@pytest.mark.parametrize("seen", [True, False])
def test_a_capture_leaves_no_trace(seen: bool) -> None:
    svi = made()
    svi.step(X)
    before, gradients = everything(svi), backward_state(svi)
    graph, inputs = step_graph(svi, X)
    StepGraph(graph.program, graph.buffers, inputs, seen=seen)
    assert everything(svi) == before and backward_state(svi) == gradients


def backward_state(svi: am.SVI) -> list[Any]:
    leaves = svi._stepper.optimizer.leaves()
    return [None if leaf.grad is None else bits(leaf.grad) for leaf in leaves]


def test_a_trial_puts_everything_back() -> None:
    svi = made()
    svi.step(X)
    graph, inputs = step_graph(svi, X)
    before = everything(svi)
    for step in (graph.eager, replay_of(graph.module)):
        found, _ = graph.trial(step, inputs.tensors)
        assert everything(svi) == before
    buffers = found[3 + len(graph.outputs.with_gradient) :]
    networks = svi._stepper.parameters.networks
    held = list({id(b): b for part in networks for b in part.buffers()}.values())
    assert len(buffers) == len(held) >= 3
    assert any(not torch.equal(a, b) for a, b in zip(buffers, held, strict=True))

    def fails(*tensors: Tensor) -> list[Tensor]:
        graph.eager(*tensors)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        graph.trial(fails, inputs.tensors)
    assert everything(svi) == before


def test_serves_the_parameters_of_the_capture() -> None:
    svi = made()
    svi.step(X)
    graph, inputs = step_graph(svi, X)
    leaves = list(inputs.leaves)
    assert graph.serves(StepInputs(X, leaves, DATA))
    assert not graph.serves(StepInputs(X, leaves[:-1], DATA))
    leaves[0] = leaves[0].detach().clone().requires_grad_()
    assert not graph.serves(StepInputs(X, leaves, DATA))


def test_parameters_that_are_replaced_are_captured_anew() -> None:
    def run(mode: Any) -> list[float]:
        pyro.set_rng_seed(0)
        guide = Guide()
        svi = made(guide=guide, compile=mode)
        seen = []
        for number in range(8):
            if number == 5:
                with torch.no_grad():
                    for parameter in guide.parameters():
                        parameter.data = parameter.data.clone() * 0.5
            seen.append(svi.step(X))
        return seen

    assert run("off") == run("graph")


# --- what cannot be captured ----------------------------------------------------------------------


def with_call(call: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + call(z), 1.0), obs=x)

    return model


def branch(z: Tensor) -> float:
    return 1.0 if z.sum() > 0 else 0.0


def raises_when_captured(z: Tensor) -> float:
    if get_proxy_mode() is not None:
        raise RuntimeError("a   kernel\n  that knows no tracing" + "." * 500)
    return 0.0


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda z: z.sum().item() * 0.0, "read the value of a tensor"),
        (lambda z: float(z.detach().sum()) * 0.0, "read the value of a tensor"),
        (branch, "read the value of a tensor"),
    ],
    ids=["item", "float", "branch"],
)
def test_the_reason_is_told(call: Callable[[Tensor], Any], reason: str) -> None:
    svi = made(with_call(call), tiny.param_guide)
    svi.step(X)
    before = everything(svi)
    with pytest.raises(CaptureError, match=reason):
        step_graph(svi, X)
    assert everything(svi) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda z: z[z > 0].exp().sum(),
        lambda z: z.masked_select(z > 0).mean(),
        lambda z: 0.1 * len((z > 0).nonzero()),
        lambda z: 0.1 * torch.unique(z.round()).numel(),
    ],
    ids=["mask", "select", "nonzero", "unique"],
)
def test_shapes_that_depend_on_values_are_refused(call: Callable[[Tensor], Any]) -> None:
    svi = made(with_call(call), tiny.param_guide)
    svi.step(X)
    with pytest.raises(CaptureError):
        step_graph(svi, X)


def test_other_errors_are_quoted_in_one_short_line() -> None:
    svi = made(with_call(raises_when_captured), tiny.param_guide)
    svi.step(X)
    with pytest.raises(CaptureError) as error:
        step_graph(svi, X)
    sentence = str(error.value)
    assert sentence.startswith("RuntimeError: a kernel that knows no tracing")
    assert len(sentence) < 250 and "\n" not in sentence


def test_calls_are_counted_after_tidying() -> None:
    svi = made(guide=tiny.param_guide)
    svi.step(X)
    graph, _ = step_graph(svi, X)
    calls = [n for n in graph.module.graph.nodes if n.op == "call_function"]
    assert graph.calls == len(calls) > 10


def test_outputs_are_known_after_a_run() -> None:
    svi = made(guide=tiny.param_guide)
    svi.step(X)
    graph, inputs = step_graph(svi, X)
    fresh = functools.partial(StepGraph.__new__, StepGraph)()
    fresh._outputs = None
    with pytest.raises(CaptureError, match="did not run"):
        _ = fresh.outputs
    returned, _ = graph.trial(graph.eager, inputs.tensors)
    assert len(graph.gradients_of(returned)) == len(graph.outputs.with_gradient)
