"""Programs on which captured steps were once silently wrong: equal to eager steps, or refused."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

import amortized as am
from amortized.errors import ProgramError, UsageError
from tests.fit import tiny

X = tiny.data(8)


class Model(nn.Module):
    """x ~ N(z w + shift(x), 1)."""

    def __init__(self, shift: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))
        self.shift = shift or (lambda x: 0.0)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * self.w + self.shift(x), 1.0), obs=x)


def taken(
    model: nn.Module, mode: Any, count: int = 14, before: Callable[[int], Any] | None = None
) -> list[float]:
    pyro.set_rng_seed(0)
    svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
    losses = []
    for number in range(count):
        if before is not None:
            before(number)
        losses.append(svi.step(X))
    return losses


def refused(make: Callable[[], nn.Module], reason: str, count: int = 14) -> None:
    with pytest.raises(ProgramError, match=reason):
        taken(make(), "graph", count)


def test_hooks_that_run_after_a_gradient_was_added() -> None:
    def make() -> nn.Module:
        model = Model()
        model.w.register_post_accumulate_grad_hook(halve)
        return model

    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    refused(make, "differs from the eager step.*hooks")


@pytest.mark.filterwarnings("ignore")
def test_reentrant_checkpoints() -> None:
    def make() -> nn.Module:
        network = nn.Linear(1, 1)

        def shift(x: Tensor) -> Tensor:
            rows = x.clone().unsqueeze(-1).requires_grad_()
            return checkpoint.checkpoint(network, rows, use_reentrant=True).squeeze(-1)

        model = Model(shift)
        model.network = network
        return model

    refused(make, "cannot be captured")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.Random(0).random,
        lambda: np.random.default_rng(0).random,
        lambda: np.random.RandomState(0).rand,
    ],
    ids=["random", "numpy", "legacy"],
)
def test_generators_of_the_programs_own(draw: Callable[[], Any]) -> None:
    def make() -> nn.Module:
        model = Model()
        model.own = draw().__self__
        name = "rand" if isinstance(model.own, np.random.RandomState) else "random"
        model.shift = lambda x: float(getattr(model.own, name)())
        return model

    refused(make, "generator of Python or numpy")


def test_a_counter_whose_threshold_is_far() -> None:
    def make() -> nn.Module:
        model = Model()
        model.calls = 0

        def shift(x: Tensor) -> float:
            model.calls += 1
            return float(model.calls > 1200)

        model.shift = shift
        return model

    refused(make, r"change .*calls while they run")


@pytest.mark.parametrize(
    "read",
    [lambda x: max(x.tolist()), lambda x: float(x.numpy().max()), lambda x: np.asarray(x).max()],
    ids=["tolist", "numpy", "asarray"],
)
def test_values_that_are_read_past_the_capture(read: Callable[[Tensor], float]) -> None:
    refused(lambda: Model(lambda x: 5.0 if read(x.detach()) > 50.0 else 0.0), "read the value")


def test_a_value_that_matters_is_looked_at_however_often_it_changes() -> None:
    def run(mode: str) -> list[float]:
        model = Model()
        model.phase = 0
        model.shift = lambda x: float(model.phase)
        return taken(model, mode, 60, lambda number: setattr(model, "phase", number % 2))

    assert run("off") == run("graph")


@pytest.mark.parametrize("what", ["module", "list", "private dict", "attribute", "parameter"])
def test_places_that_are_looked_at(what: str) -> None:
    def run(mode: str) -> list[float]:
        model = Model()
        model.act, model.sch, model._cfg = nn.Tanh(), [0.0], {"b": 0.0}
        model.shift = lambda x: (
            model.act(x) + model.sch[-1] + model._cfg["b"] + getattr(model, "extra", 0.0)
        )

        def before(number: int) -> None:
            if number != 7:
                return
            if what == "module":
                model.act = nn.Softplus()
            elif what == "list":
                model.sch.append(1.0)
            elif what == "private dict":
                model._cfg["b"] = 1.0
            elif what == "attribute":
                model.extra = 1.0
            else:
                state = {k: v.detach().clone() + 1 for k, v in model.state_dict().items()}
                model.load_state_dict(state)

        return taken(model, mode, 14, before)

    assert run("off") == run("graph")


def test_a_batch_of_objects_is_refused() -> None:
    class Rows:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __repr__(self) -> str:
            return "Rows"

    def model(x: Tensor, other: Any) -> None:
        tiny.local_model(x + other.rows)

    def guide(x: Tensor, other: Any) -> None:
        tiny.param_guide(x)

    svi = am.SVI(model, guide, compile="graph")
    with pytest.raises(ProgramError, match="the batch holds a Rows"):
        for number in range(3):
            svi.step((X, Rows(X * number)))


@pytest.mark.parametrize(
    "shift",
    [lambda x: forked(), lambda x: (torch.manual_seed(7), 0.0)[1]],
    ids=["fork", "seed"],
)
def test_where_generators_are_left_counts(shift: Callable[[Tensor], Any]) -> None:
    refused(lambda: Model(shift), "differs from the eager step")


def forked() -> Tensor:
    with torch.random.fork_rng():
        return torch.randn(())


def test_a_gradient_that_is_a_buffer_is_not_scaled_in_place() -> None:
    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor, gradient: Tensor) -> Tensor:
            ctx.save_for_backward(gradient)
            return w.clone()

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> Any:
            return ctx.saved_tensors[0], None

    def run(mode: str) -> tuple[Any, float]:
        model = Model()
        model.register_buffer("c", torch.tensor(2.0))
        model.shift = lambda x: Given.apply(model.w, model.c)
        pyro.set_rng_seed(0)
        svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
        options = {"batch_size": 8, "seed": 0, "progress": False, "gradient_clip_val": 0.5}
        history = svi.fit(tiny.data(40), max_epochs=3, **options)
        return history["train_loss"], float(model.c)

    assert run("off") == run("graph")
    assert run("graph")[1] == 2.0


def test_pyros_checks_at_every_step_are_not_given_up() -> None:
    with pytest.raises(UsageError, match="validate=True with compile='graph'"):
        am.SVI(Model(), tiny.param_guide, validate=True, compile="graph")
    assert am.SVI(Model(), tiny.param_guide, validate=True)._stepper.compile == "off"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_the_kl_have_the_precision_of_the_program(dtype: torch.dtype) -> None:
    def run(mode: str) -> Any:
        pyro.set_rng_seed(0)
        model = Model().to(dtype)

        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", torch.zeros((), dtype=dtype))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, torch.ones((), dtype=dtype)))

        svi = am.SVI(model, guide, lr=0.05, compile=mode)
        options = {"batch_size": 8, "seed": 0, "progress": False, "n_epochs_kl_warmup": 3}
        return svi.fit(tiny.data(40).to(dtype), max_epochs=4, **options)["train_loss"]

    assert run("off") == run("graph")


def test_autocast_has_graphs_of_its_own() -> None:
    def run(mode: str) -> list[float]:
        network = nn.Linear(1, 1)
        model = Model(lambda x: network(x.unsqueeze(-1)).squeeze(-1).float())
        model.network = network
        pyro.set_rng_seed(0)
        torch.nn.init.constant_(network.weight, 0.3)
        torch.nn.init.constant_(network.bias, 0.1)
        svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
        losses = []
        for number in range(12):
            with torch.autocast("cpu", torch.bfloat16, enabled=number // 3 % 2 == 1):
                losses.append(svi.step(X))
        return losses

    assert run("off") == run("graph")


def test_copies_go_on_with_their_own_parameters() -> None:
    svi = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide(), lr=0.05, compile="graph")
    for _ in range(4):
        svi.step(X)
    for other in (copy.deepcopy(svi), pickle.loads(pickle.dumps(svi))):
        torch.manual_seed(3)
        expected = [svi_step(copy.deepcopy(other), "off") for _ in range(1)]
        torch.manual_seed(3)
        assert [svi_step(other, "graph")] == expected


def svi_step(svi: am.SVI, mode: Any) -> list[float]:
    svi._stepper.compile = mode
    return [svi.step(X) for _ in range(4)]


def test_a_compilation_that_fails_leaves_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no g++")

    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_STEPS", 1)
    monkeypatch.setattr("amortized.fit.compiled.choice._COMPILE_ONCE", 0.0)
    monkeypatch.setattr("amortized.fit.compiled.choice._COMPILE_CALL", 0.0)
    monkeypatch.setattr("amortized.fit.compiled.steps._LOOK", 2)
    monkeypatch.setattr("torch._inductor.compile", fails)
    with pytest.warns(am.CheckWarning, match="replayed, and not compiled.*no g") as caught:
        losses = taken(Model(), "auto")
    assert len(caught) == 1
    assert losses == taken(Model(), "off")
    with pytest.raises(ProgramError, match=r"compiler failed.*compile='off'"):
        taken(Model(), "inductor")


def test_a_batch_that_is_refused_is_refused_once() -> None:
    """A draw of the program's own generator may be infinite."""

    def run(mode: str) -> Any:
        own = torch.Generator().manual_seed(1)
        model = Model()

        def shift(x: Tensor) -> Tensor:
            return torch.where(torch.rand((), generator=own) < 0.2, torch.inf, 0.0)

        model.shift = shift
        pyro.set_rng_seed(0)
        svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
        options = {"batch_size": 8, "seed": 0, "progress": False, "check": False}
        history = svi.fit(tiny.data(80), max_epochs=3, non_finite="skip", **options)
        return history["train_loss"], model.w.item()

    assert run("off") == run("graph")
