"""An audit tells a difference from rounding, and leaves everything as it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.fit.compiled.audit import agree, audit, is_due
from amortized.fit.compiled.capture import CaptureError, StepGraph, StepInputs
from amortized.fit.compiled.replay import replay_of
from tests.fit import tiny
from tests.fit.compiled.graphs import step_graph

NAN, INF = math.nan, math.inf


def test_comparisons_become_rare_and_never_end() -> None:
    due = [n for n in range(10_001) if is_due(n)]
    assert due == [0, 1, 10, 100, *range(1000, 10_001, 1000)]


# --- the tolerance --------------------------------------------------------------------------------


def results(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    """Loss, norm, terms and gradients of a small network, computed in a precision."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, y = randn(64, 20), randn(64, 3)
    leaves = [randn(20, 30), randn(30), randn(30, 3), randn(3)]
    for leaf in leaves:
        leaf.requires_grad_()
    hidden = torch.tanh(x @ leaves[0] / 5 + leaves[1])
    loss = scale * (hidden @ leaves[2] + leaves[3] - y).square().mean()
    gradients = torch.autograd.grad(loss, leaves)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    found = [loss.detach(), norm, torch.stack([loss, -loss]).detach(), *gradients]
    return [value.to(torch.float32) for value in found]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_passes(scale: float) -> None:
    """Single against double precision: more rounding than any order of summation brings."""
    for seed in range(200):
        ours, theirs = results(torch.float32, seed, scale), results(torch.float64, seed, scale)
        assert agree(ours, theirs, exact=False), seed
        assert not agree(ours, theirs, exact=True), seed


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0, 2.0])
def test_a_small_change_of_one_result_does_not(which: int, factor: float) -> None:
    for seed in range(5):
        ours, theirs = results(torch.float32, seed), results(torch.float32, seed)
        ours[which] = ours[which] * factor
        assert not agree(ours, theirs, exact=False), (seed, which)
        assert not agree(ours, theirs, exact=True)


def test_two_results_exchanged_do_not_pass() -> None:
    ours = results(torch.float32, 0)
    ours[4], other = ours[4].flip(0), ours
    assert not agree(other, results(torch.float32, 0), exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_equal_passes(exact: bool) -> None:
    assert agree(results(torch.float32, 0), results(torch.float32, 0), exact=exact)
    odd = [torch.tensor([NAN, INF, -INF, 0.0]), torch.tensor([]), torch.tensor(3)]
    assert agree(odd, [value.clone() for value in odd], exact=exact)
    assert agree([], [], exact=exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([NAN, 1.0], [1.0, NAN]),
        ([NAN, 1.0], [0.0, 1.0]),
        ([0.0, 1.0], [NAN, 1.0]),
        ([INF, 1.0], [3e38, 1.0]),
        ([0.0, 1.0], [-INF, 1.0]),
    ],
)
def test_what_is_not_finite_must_be_the_same(
    ours: list[float], theirs: list[float], exact: bool
) -> None:
    assert not agree([torch.tensor(ours)], [torch.tensor(theirs)], exact=exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(INF, -INF), (NAN, INF), (-INF, NAN)])
def test_there_are_three_kinds_of_numbers_that_are_not_finite(
    ours: float, theirs: float, exact: bool
) -> None:
    assert not agree([torch.tensor([ours, 1.0])], [torch.tensor([theirs, 1.0])], exact=exact)


def test_what_is_finite_is_compared_beside_what_is_not() -> None:
    theirs = torch.tensor([NAN, 1.0, INF])
    assert agree([torch.tensor([NAN, 1.0 + 1e-7, INF])], [theirs], exact=False)
    assert not agree([torch.tensor([NAN, 1.01, INF])], [theirs], exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_shapes_and_numbers_of_results_count(exact: bool) -> None:
    one = torch.ones(2)
    assert not agree([one.reshape(1, 2)], [one], exact=exact)
    assert not agree([one, one], [one], exact=exact)
    assert not agree([one], [one, one], exact=exact)


@pytest.mark.parametrize("exact", [True, False])
def test_integers_are_compared_exactly(exact: bool) -> None:
    """A counter that was moved twice, beside a large loss."""
    loss = torch.tensor(1e9)
    assert not agree([loss, torch.tensor(7)], [loss, torch.tensor(8)], exact=exact)
    assert agree([loss, torch.tensor(7)], [loss, torch.tensor(7)], exact=exact)
    assert not agree([torch.tensor([True])], [torch.tensor([False])], exact=exact)


def test_what_cancels_may_differ_by_the_rounding_of_what_went_into_it() -> None:
    large, nothing = torch.tensor([1000.0]), torch.tensor([3e-5, 0.0])
    expected = [large, torch.zeros(2)]
    assert agree([large, nothing], expected, exact=False, largest=1000.0)
    assert not agree([large, nothing], expected, exact=False)
    assert not agree([large, nothing + 1.0], expected, exact=False, largest=1000.0)


def test_precision_sets_the_tolerance() -> None:
    ours, theirs = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 * (1 + 1e-5)])
    assert agree([ours], [theirs], exact=False)
    assert not agree([ours.double()], [theirs.double()], exact=False)


# --- a graph and its programs ---------------------------------------------------------------------


class Guide(nn.Module):
    """Dropout draws, and batch norm moves its means."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)
        )

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.layers(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def captured(
    model: Any = tiny.local_model, guide: Any = None
) -> tuple[StepGraph, StepInputs, am.SVI]:
    svi = am.SVI(model, Guide() if guide is None else guide, lr=0.1)
    svi.step(tiny.data(8))
    graph, inputs = step_graph(svi, tiny.data(8))
    return graph, inputs, svi


Step = Callable[..., list[Tensor]]
Mutant = Callable[[Step, StepGraph], Step]


def scaled(which: int, factor: float) -> Mutant:
    def mutant(step: Step, graph: StepGraph) -> Step:
        def changed(*tensors: Tensor) -> list[Tensor]:
            found = step(*tensors)
            found[which] = found[which] * factor
            return found

        return changed

    return mutant


def buffer_moved_twice(step: Step, graph: StepGraph) -> Step:
    def changed(*tensors: Tensor) -> list[Tensor]:
        step(*tensors)
        return step(*tensors)

    return changed


def other_draws(step: Step, graph: StepGraph) -> Step:
    def changed(*tensors: Tensor) -> list[Tensor]:
        torch.rand(1000)
        return step(*tensors)

    return changed


def buffer_left(step: Step, graph: StepGraph) -> Step:
    def changed(*tensors: Tensor) -> list[Tensor]:
        before = graph.buffers.copies()
        found = step(*tensors)
        for module, name, _, _, value in before:
            if value is not None and name == "num_batches_tracked":
                module._buffers[name].copy_(value)  # type: ignore[union-attr]
        return found

    return changed


MUTANTS: dict[str, Mutant] = {
    "the loss": scaled(0, 1.001),
    "the norm": scaled(1, 1.001),
    "a term": scaled(2, 0.99),
    "a gradient": scaled(7, 1.001),
    "the last gradient": scaled(8, 0.999),
    "no gradient": scaled(7, 0.0),
    "a buffer that moved twice": buffer_moved_twice,
    "a counter that did not move": buffer_left,
    "other draws": other_draws,
}


@pytest.mark.parametrize("exact", [True, False])
def test_a_replay_passes(exact: bool) -> None:
    graph, inputs, _ = captured()
    audit(graph, replay_of(graph.module), inputs, exact=exact)
    audit(graph, graph.module, inputs, exact=exact)
    audit(graph, graph.eager, inputs, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_replay_that_differs_does_not(name: str, exact: bool) -> None:
    graph, inputs, _ = captured()
    changed = MUTANTS[name](replay_of(graph.module), graph)
    with pytest.raises(CaptureError, match=r"differs? from the eager step"):
        audit(graph, changed, inputs, exact=exact)


def everything(svi: am.SVI) -> list[bytes]:
    stepper = svi._stepper
    tensors = list(stepper.parameters.snapshot().values())
    found = [t.numpy().tobytes() for t in tensors]
    return [*found, *(str(leaf.grad).encode() for leaf in stepper.optimizer.leaves())]


@pytest.mark.parametrize("name", ["as it is", *MUTANTS])
def test_everything_is_put_back(name: str) -> None:
    graph, inputs, svi = captured()
    replay = replay_of(graph.module)
    changed = replay if name == "as it is" else MUTANTS[name](replay, graph)
    before, torch_before = everything(svi), torch.get_rng_state()
    try:
        audit(graph, changed, inputs, exact=True)
    except CaptureError:
        assert name != "as it is"
    else:
        assert torch.equal(torch.get_rng_state(), torch_before)
    assert everything(svi) == before


def test_the_generator_is_where_it_was_after_several_trials() -> None:
    """A compiled step may fall on the other side of a threshold once: that is no other run."""
    graph, inputs, _ = captured()
    replay, calls = replay_of(graph.module), [0]

    def once(*tensors: Tensor) -> list[Tensor]:
        calls[0] += 1
        found = replay(*tensors)
        return [value * 2 for value in found] if calls[0] == 1 else found

    before = torch.get_rng_state()
    audit(graph, once, inputs, exact=False)
    assert calls[0] == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_replay_is_tried_once_and_a_compiled_step_three_times() -> None:
    graph, inputs, _ = captured()
    replay, calls = replay_of(graph.module), [0]

    def wrong(*tensors: Tensor) -> list[Tensor]:
        calls[0] += 1
        return [value * 2 for value in replay(*tensors)]

    counts = []
    for exact in (True, False):
        calls[0] = 0
        with pytest.raises(CaptureError):
            audit(graph, wrong, inputs, exact=exact)
        counts.append(calls[0])
    assert counts == [1, 3]


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: random.gauss(0.0, 1.0), np.random.rand, lambda: np.random.randn()],
    ids=["random", "gauss", "numpy", "numpy's normal"],
)
def test_draws_of_other_generators_are_refused(draw: Callable[[], float]) -> None:
    def model(x: Tensor) -> None:
        draw()
        tiny.local_model(x)

    graph, inputs, _ = captured(model)
    with pytest.raises(CaptureError, match="generator of Python or numpy"):
        audit(graph, replay_of(graph.module), inputs, exact=True)


def changing(change: Callable[[], float]) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + change(), 1.0), obs=x)

    return model


@pytest.mark.parametrize("exact", [True, False])
def test_a_number_that_changed_since_the_capture_is_found(exact: bool) -> None:
    held = [0.5]
    graph, inputs, _ = captured(changing(lambda: held[0]))
    audit(graph, replay_of(graph.module), inputs, exact=exact)
    held[0] = 0.501 if exact else 0.55
    with pytest.raises(CaptureError, match=r"differs? from the eager step"):
        audit(graph, replay_of(graph.module), inputs, exact=exact)


def test_gradients_count_beside_a_large_loss() -> None:
    """Some hundred nats for each data point, as of an image, near the end of a training."""
    loss, theirs = torch.tensor(500.0), torch.tensor([1e-3, 2e-3])
    assert not agree([loss, theirs * 2], [loss, theirs], exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_dtypes_count(exact: bool) -> None:
    one = torch.ones(2)
    assert not agree([one.double()], [one], exact=exact)
