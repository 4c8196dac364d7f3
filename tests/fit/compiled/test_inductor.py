"""A compiled step agrees with its replay: the same draws, the same state, to rounding.

A compilation takes seconds: the commonest programs are compiled together, the others by `-m long`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import amortized as am
from amortized.fit.compiled.audit import agree, audit
from amortized.fit.compiled.capture import CaptureError, StepGraph, StepInputs
from amortized.fit.compiled.inductor import _with_inputs, compiled_step, norms_apart, same_bits
from amortized.fit.compiled.replay import replay_of
from tests.fit import tiny
from tests.fit.compiled.graphs import capture, step_graph

X = tiny.data(8)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch's compiler needs one of C++"
)

Pair = tuple[Any, Any, am.VariationalLoss]


class Encoder(nn.Module):
    """Batch norm and dropout before the parameters of one site."""

    def __init__(self, out: int, sample: Callable[[Tensor], Any], **layers: Any) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4) if layers.get("norm", True) else nn.Identity()
        self.layers = nn.Sequential(
            nn.Linear(1, 4), norm, nn.ReLU(), nn.Dropout(layers.get("p", 0.3)), nn.Linear(4, out)
        )
        self.sample = sample

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.sample(self.layers(x.unsqueeze(-1)))


class Model(nn.Module):
    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.draw = draw

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.draw() * self.scale, 1.0), obs=x)


def normal() -> Pair:
    guide = Encoder(2, lambda out: pyro.sample("z", dist.Normal(out[..., 0], out[..., 1].exp())))
    model = Model(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
    return model, guide, am.VariationalLoss()


def bernoulli(estimator: Any = None) -> Pair:
    guide = Encoder(1, lambda out: pyro.sample("z", dist.Bernoulli(logits=out[..., 0])))
    model = Model(lambda: pyro.sample("z", dist.Bernoulli(0.3)))
    estimator = estimator or am.ScoreFunction(am.MovingAverage())
    return model, guide, am.VariationalLoss(estimators={"z": estimator})


def categorical() -> Pair:
    guide = Encoder(3, lambda out: pyro.sample("z", dist.Categorical(logits=out)))
    model = Model(lambda: pyro.sample("z", dist.Categorical(torch.ones(3))).float())
    estimator = am.ScoreFunction(am.LeaveOneOut(), num_samples=3)
    return model, guide, am.VariationalLoss(estimators={"z": estimator})


def gamma() -> Pair:
    def sample(out: Tensor) -> Any:
        out = nn.functional.softplus(out) + 0.1
        return pyro.sample("z", dist.Gamma(out[..., 0], out[..., 1]))

    model = Model(lambda: pyro.sample("z", dist.Gamma(2.0, 1.0)))
    return model, Encoder(2, sample), am.VariationalLoss()


def several() -> Pair:
    """One compilation for most: every kind of draw, dropout, batch norm, a baseline."""

    def sample(out: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(out[..., 0], out[..., 1].exp()))
        b = pyro.sample("b", dist.Bernoulli(logits=out[..., 2] + z))
        pyro.sample("g", dist.Gamma(nn.functional.softplus(out[..., 3]) + 0.1, 1.0 + b))
        pyro.sample("c", dist.Categorical(logits=out[..., 4:7]))

    def draw() -> Tensor:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        g = pyro.sample("g", dist.Gamma(2.0, 1.0))
        return z + b * g + pyro.sample("c", dist.Categorical(torch.ones(3)))

    rules = {"b": am.ScoreFunction(am.MovingAverage()), "c": am.ScoreFunction(am.Constant(0.3))}
    return Model(draw), Encoder(7, sample), am.VariationalLoss(estimators=rules)


def captured(make: Callable[[], Pair], batch: Any = X) -> tuple[am.SVI, StepGraph, StepInputs]:
    pyro.set_rng_seed(0)
    model, guide, loss = make()
    svi = am.SVI(model, guide, loss, lr=0.1)
    for _ in range(2):
        svi.step(batch)
    graph, inputs = step_graph(svi, batch)
    return svi, graph, inputs


def check(make: Callable[[], Pair]) -> None:
    """Several steps from one state each: results, buffers, and where the generator stands."""
    svi, graph, inputs = captured(make)
    replay, compiled = replay_of(graph.module), compiled_step(graph.module, inputs.tensors)
    state = svi._stepper.parameters
    ends, largest = [], 0.0
    for step in (replay, compiled):
        start = state.snapshot()
        torch.manual_seed(3)
        found: list[Tensor] = []
        for number in range(4):
            found += step(inputs.tensors[0] + number, *inputs.tensors[1:])
            largest = max(largest, *(float(t.abs().max()) for t in found[3:]))
            with torch.no_grad():  # what an optimizer does: by reference, in place
                for leaf in inputs.leaves:
                    leaf.mul_(0.9)
            found += graph.buffers.values()
        ends.append(([t.clone() for t in found], torch.rand(3)))
        moved = state.snapshot()
        state.restore(start)
        assert any(not torch.equal(start[name], moved[name]) for name in start)
    assert torch.equal(ends[0][1], ends[1][1])
    assert agree(ends[1][0], ends[0][0], exact=False, largest=largest)
    for tensor in ends[1][0]:
        assert not tensor.requires_grad
    audit(graph, compiled, inputs, exact=False)
    memory = [t.untyped_storage().data_ptr() for t in compiled(*inputs.tensors)[3:]]
    assert len(set(memory)) == len(memory)


@needs_compiler
def test_agrees_with_the_replay() -> None:
    check(several)


LONG: dict[str, Callable[[], Pair]] = {
    "normal": normal,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "gamma": gamma,
    "a constant baseline": lambda: bernoulli(am.ScoreFunction(am.Constant(0.3))),
    "a neural baseline": lambda: bernoulli(am.ScoreFunction(am.NeuralBaseline())),
    "enumeration": lambda: bernoulli(am.Enumerate()),
}


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_every_program_agrees_with_its_replay(name: str) -> None:
    check(LONG[name])


@needs_compiler
def test_state_moves_once() -> None:
    """Compiling runs nothing, and each call moves what the graph refers to once."""
    mean, count = torch.zeros(3), torch.zeros((), dtype=torch.long)

    def step(x: Tensor) -> list[Tensor]:
        count.add_(1)
        mean.mul_(0.5).add_(x)
        return [mean * 2, torch.rand(3)]

    module = capture(step, [mean, count], [torch.ones(3)])
    before = torch.get_rng_state()
    compiled = compiled_step(module, [torch.ones(3)])
    assert torch.equal(torch.get_rng_state(), before)
    assert count.item() == 0 and not mean.any()
    torch.manual_seed(5)
    found = compiled(torch.ones(3))
    torch.manual_seed(5)
    assert torch.equal(found[1], torch.rand(3))
    assert count.item() == 1 and mean.tolist() == [1.0] * 3
    compiled(torch.ones(3))
    assert count.item() == 2 and mean.tolist() == [1.5] * 3
    with torch.no_grad():
        mean.zero_()
    assert compiled(torch.ones(3))[0].tolist() == [2.0] * 3


# --- without a compiler ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [RuntimeError("No working C++ compiler found\n  in   config.cpp.cxx"), OSError("g++: no")],
    ids=["torch's", "the system's"],
)
def test_a_compiler_that_fails_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(torch._inductor, "compile", fails)
    module = capture(lambda x: [x * 2], [], [torch.ones(3)])
    with pytest.raises(CaptureError) as found:
        compiled_step(module, [torch.ones(3)])
    sentence = str(found.value)
    assert type(error).__name__ in sentence and "g++" in sentence and "\n" not in sentence
    assert " ".join(str(error).split()) in sentence


def test_a_training_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    svi = am.SVI(tiny.local_model, tiny.param_guide, compile="inductor")
    svi.step(X)
    before = svi._stepper.parameters.snapshot()
    with pytest.raises(am.ProgramError, match=r"compile='inductor'.*C\+\+.*compile='off'"):
        for _ in range(3):
            svi.step(X)
    after = svi._stepper.parameters.snapshot()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- the graph that the compiler is given ---------------------------------------------------------


def test_what_a_graph_refers_to_becomes_inputs_once_and_in_order() -> None:
    first, second = torch.ones(3), torch.full((3,), 2.0)

    def step(x: Tensor) -> list[Tensor]:
        return [(x - first) * second, first + x, second.add_(1) * first]

    module = capture(step, [first, second], [torch.ones(3)])
    flat = _with_inputs(module)
    inputs = [n for n in flat.graph.nodes if n.op == "placeholder"]
    assert len(inputs) == 3 and not [n for n in flat.graph.nodes if n.op == "get_attr"]
    other = second.clone()
    found = flat(torch.ones(3) * 4, first, other)
    wanted = replay_of(module)(torch.ones(3) * 4)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(other, second)
    assert module.graph.find_nodes(op="get_attr")  # the first graph is as it was


@needs_compiler
def test_bernoulli_draws_are_torchs_own() -> None:
    def step(p: Tensor) -> list[Tensor]:
        return [torch.bernoulli(p), torch.bernoulli(p * 0.5) + p]

    given = torch.rand(7, 5)
    module = make_fx(step)(given)
    assert _draws(module) == ["default", "default"]
    same_bits(module)
    assert _draws(module) == ["Tensor", "Tensor"]
    options = {"fallback_random": True}
    with torch.no_grad():
        compiled = torch._inductor.compile(module, [given], options=options)
        torch.manual_seed(3)
        found = compiled(given)
        torch.manual_seed(3)
        assert all(map(torch.equal, found, step(given)))


def _draws(module: torch.fx.GraphModule) -> list[str]:
    targets = [node.target for node in module.graph.nodes]
    return [t._overloadname for t in targets if "bernoulli" in str(t)]


@pytest.mark.parametrize("order", [2.0, 1.0])
def test_norms_are_taken_one_by_one(order: float) -> None:
    def step(x: Tensor, y: Tensor) -> Tensor:
        norms = torch._foreach_norm([x, y * 3.0], order)
        return norms[1] - 2.0 * norms[0]

    given = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    module = _with_inputs(make_fx(step)(*given))
    expected = given[1].mul(3.0).norm(order) - 2.0 * given[0].norm(order)
    assert torch.allclose(module(*given), expected)
    norms_apart(module)
    assert not [node for node in module.graph.nodes if "foreach" in str(node.target)]
    assert torch.allclose(module(*given), expected)
