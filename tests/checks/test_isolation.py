from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import amortized as am
from amortized.checks.isolation import isolated, seed_torch
from tests.checks.wrong import CASES, X, guide, model


def generators() -> tuple[Any, ...]:
    numbers = np.random.get_state(legacy=True)[1]
    return random.getstate(), numbers.tolist(), torch.get_rng_state().tolist()


class Programs(nn.Module):
    """Everything that a run could move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(1), nn.Linear(1, 1)
        self.calls, self.seen = 0, []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        self.seen.append(float(self.count))
        self.count += 1
        random.random()
        np.random.rand()
        loc = self.net(self.norm(x.unsqueeze(-1))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))


def test_a_check_leaves_no_trace() -> None:
    programs = Programs()
    weights = {name: value.clone() for name, value in programs.state_dict().items()}
    before = generators()
    assert am.check(model, programs, X).ok
    assert generators() == before
    assert (programs.calls, programs.seen) == (0, [])
    after = programs.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert all(p.grad is None for p in programs.parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", ["switching", "seeded", "detached", "root", "one name"])
def test_no_trace_where_there_are_findings(name: str) -> None:
    case = CASES[name]()
    before = generators()
    case.report()
    assert generators() == before and len(pyro.get_param_store()) == 0


def test_an_autoguide_is_as_new() -> None:
    autoguide = AutoNormal(model)
    before = generators()
    assert am.check(model, autoguide, X).parameters == 2
    assert generators() == before
    assert list(autoguide.parameters()) == [] and autoguide.prototype_trace is None
    assert am.check(model, autoguide, X).ok, "it can be checked again"


def test_frozen_parameters_stay_frozen() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.fixed = nn.Parameter(torch.tensor(0.5), requires_grad=False)
            self.free = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.fixed * self.free * x, 1.0))

    own = Guide()
    report = am.check(model, own, X)
    assert report.findings == [] and report.parameters == 1
    assert not own.fixed.requires_grad


def test_pyro_s_store_is_read_and_not_written() -> None:
    slope = pyro.param("slope", torch.tensor(2.0))
    leaf = slope.unconstrained()
    seen: list[float] = []

    def reading(x: Tensor) -> None:
        guide(x)
        seen.append(float(pyro.param("slope")))
        pyro.param("new", torch.tensor(1.0))

    am.check(model, reading, X)
    assert set(seen) == {2.0}
    store = pyro.get_param_store()
    assert list(store) == ["slope"] and store._params["slope"] is leaf


def test_attributes_of_callable_objects_come_back() -> None:
    class Guide:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: Tensor) -> None:
            self.calls += 1
            guide(x)

    own = Guide()
    am.check(model, own, X)
    am.check(model, own.__call__, X)
    assert own.calls == 0


def test_warnings_of_the_programs_are_left_to_training() -> None:
    def loud(x: Tensor) -> None:
        warnings.warn("loud", stacklevel=1)
        guide(x)

    assert am.check(model, loud, X).ok  # warnings are errors in this suite


def test_everything_comes_back_after_an_error() -> None:
    programs, before = Programs(), generators()
    with pytest.raises(KeyboardInterrupt), isolated(programs):
        seed_torch(5)
        programs.calls = 7
        pyro.param("p", torch.tensor(1.0))
        raise KeyboardInterrupt
    assert programs.calls == 0 and generators() == before and len(pyro.get_param_store()) == 0


def test_the_state_of_estimators_stays() -> None:
    loss = am.VariationalLoss(estimators={"z": "moving_average"})
    loss.warm_up(model, guide, X)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    am.check(model, guide, X, loss=loss)
    assert state and all(torch.equal(loss.state_dict()[name], v) for name, v in state.items())


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.net, self.own = nn.Linear(1, 1), own

    def forward(self, x: Tensor) -> None:
        rand(self.own)
        guide(x)


def rand(own: Any) -> None:
    if isinstance(own, torch.Generator):
        torch.rand(3, generator=own)
    else:
        own.random() if hasattr(own, "random") else own.rand()


def state_of(own: Any) -> str:
    if isinstance(own, torch.Generator):
        return str(own.get_state().tolist())
    if isinstance(own, random.Random):
        return str(own.getstate())
    held = own.bit_generator.state if isinstance(own, np.random.Generator) else own.get_state()
    return str(held)


OWN = {
    "torch": lambda: torch.Generator().manual_seed(1),
    "numpy": lambda: np.random.default_rng(1),
    "old numpy": lambda: np.random.RandomState(1),
    "python": lambda: random.Random(1),
}


def closing_over(own: Any) -> Any:
    def program(x: Tensor) -> None:
        rand(own)
        guide(x)

    return program


def in_a_container(own: Any) -> Any:
    held = {"all": [own]}

    def program(x: Tensor) -> None:
        rand(held["all"][0])
        guide(x)

    return program


class Holder:
    def __init__(self, own: Any) -> None:
        self.own = [own]

    def __call__(self, x: Tensor) -> None:
        rand(self.own[0])
        guide(x)


def bound(own: Any) -> Any:
    return Holder(own).__call__


def as_an_argument(own: Any) -> Any:
    return partial(lambda noise, x: (rand(noise), guide(x))[1], own)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize(
    "hold", [Noisy, closing_over, in_a_container, as_an_argument, Holder, bound]
)
def test_generators_of_the_programs_own_stay(kind: str, hold: Any) -> None:
    own = OWN[kind]()
    program, before = hold(own), state_of(own)
    am.check(model, program, X)
    assert state_of(own) == before
    program(X)
    assert state_of(own) != before
    pyro.clear_param_store()
