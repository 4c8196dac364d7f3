"""Graphs without gradients: when they are made anew, what they return, what a refusal says."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.errors import ProgramError
from amortized.fit.buffers import MovingBuffers
from amortized.fit.compiled.audit import audit
from amortized.fit.compiled.capture import CaptureError, StepGraph, StepInputs, StepProgram
from amortized.fit.compiled.evaluations import Evaluations
from amortized.fit.compiled.replay import replay_of
from amortized.fit.compiled.steps import COMPILE, Compile, CompiledSteps
from amortized.programs.records import DataPlate
from tests.fit import tiny

X = tiny.data(8)


def test_validation_is_never_compiled() -> None:
    modes = {asked: Evaluations(asked).mode for asked in COMPILE}
    assert modes == {"off": "off", "graph": "graph", "inductor": "graph", "auto": "auto"}


def test_graphs_are_made_anew_for_other_parts() -> None:
    evaluations, made = Evaluations("graph"), []

    def make() -> CompiledSteps:
        made.append(cast(CompiledSteps, object()))
        return made[-1]

    found = [evaluations.steps(key, make) for key in (1, 1, 2, 2, 1)]
    assert found == [made[0], made[0], made[1], made[1], made[2]]


def test_copies_and_pickles_have_none() -> None:
    evaluations = Evaluations("auto")
    evaluations.steps(1, lambda: cast(CompiledSteps, lambda: None))
    evaluations.buffers = MovingBuffers([nn.BatchNorm1d(2)])
    for other in (copy.deepcopy(evaluations), pickle.loads(pickle.dumps(evaluations))):
        assert (other.asked, other.mode) == ("auto", "auto")
        assert other._steps is None and other.buffers.copies() == []
    assert evaluations._steps is not None


def refusal(*, drifted: bool) -> CaptureError:
    error = CaptureError("the reason")
    error.drifted, error.kept = drifted, 3 if drifted else None
    return error


@pytest.mark.parametrize("asked", ["graph", "inductor", "auto"])
def test_what_was_never_replayed_is_eager_from_then_on(asked: Compile) -> None:
    evaluations = Evaluations(asked)
    assert evaluations.refuse(refusal(drifted=False), 7) == (
        f"compile={asked!r}: validation runs eagerly from epoch 7, since it cannot be captured: "
        "the reason"
    )
    assert evaluations.mode == "off"


@pytest.mark.parametrize("asked", ["graph", "inductor"])
def test_what_served_and_no_longer_does_is_an_error(asked: Compile) -> None:
    evaluations = Evaluations(asked)
    text = f"compile='{asked}': the graph of validation no longer serves: the reason; use compile="
    with pytest.raises(ProgramError, match=text):
        evaluations.refuse(refusal(drifted=True), 7)


def test_under_auto_the_numbers_in_doubt_are_named() -> None:
    evaluations = Evaluations("auto")
    sentence = evaluations.refuse(refusal(drifted=True), 7)
    assert sentence.endswith("numbers of validation may be wrong from epoch 3 to 7")
    assert evaluations.mode == "off"


class Guide(nn.Module):
    """Batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)
        )

    def forward(self, x: Tensor) -> None:
        loc, log_scale = self.layers(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def evaluation_graph(svi: am.SVI) -> tuple[StepGraph, StepInputs]:
    stepper = svi._stepper

    @contextmanager
    def around(capturing: bool) -> Iterator[None]:
        looks = "never" if capturing else "always"
        with stepper.evaluating(), pyro.validation_enabled(False), stepper.loss.looking(looks):
            yield

    program = StepProgram(
        lambda batch, data, weight: stepper.evaluated(batch, data),
        lambda estimate: None,
        around,
        gradient=False,
    )
    buffers = MovingBuffers(stepper.parameters.networks)
    inputs = StepInputs(X, stepper.optimizer.leaves(), DataPlate())
    return StepGraph(program, buffers, inputs, seen=False), inputs


def test_a_graph_without_gradients_returns_the_terms_alone() -> None:
    svi = am.SVI(tiny.local_model, Guide(), lr=0.1)
    for _ in range(3):
        svi.step(X)
    before = svi._stepper.parameters.snapshot()
    graph, inputs = evaluation_graph(svi)
    replay = replay_of(graph.module)
    assert graph.outputs.with_gradient == () and graph.gradients_of([X] * 3) == []
    audit(graph, replay, inputs, exact=True)
    torch.manual_seed(1)
    loss, _, terms = replay(*inputs.tensors)
    torch.manual_seed(1)
    estimate = svi._stepper.evaluated(X, DataPlate())
    assert terms.tolist() == [
        (value / 8).item()
        for value in (
            estimate.loss,
            estimate.elbo,
            estimate.reconstruction,
            estimate.kl,
            estimate.kl_per_site["z"],
        )
    ]
    assert loss.item() == terms[0].item()
    assert graph.outputs.names == ("loss", "elbo", "reconstruction", "kl", "kl/z")
    after = svi._stepper.parameters.snapshot()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert svi._stepper.loss.training and not terms.requires_grad
    # dropout is not drawn: one draw a datum
    draws = [n for n in graph.module.graph.nodes if "normal" in str(n.target)]
    assert len(draws) == 1 and "bernoulli" not in str(graph.module.graph)
