from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import amortized as am
from amortized.checks.calls import Calls
from amortized.checks.inventory import (
    announced_findings,
    collision_findings,
    device_findings,
    device_of,
    frozen_in,
    held_parameters,
    inventory,
    no_parameter_findings,
    remade_findings,
    strays_among,
    untrained_findings,
)
from amortized.programs.survey import survey_guide

LOSS = am.VariationalLoss()


class Owner(PyroModule):
    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.free = PyroParam(torch.tensor(value))
        self.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(self.net(torch.ones(2)).squeeze(), self.free.exp()))


def test_every_parameter_once_and_by_name() -> None:
    owner = Owner()
    frozen = frozen_in(owner)

    def guide() -> None:
        owner()
        pyro.module("net", owner.net)
        pyro.param("loc", torch.tensor(0.0))

    survey = survey_guide(guide, (), {})
    found = inventory(owner, guide, LOSS, [survey], frozen)
    assert set(found.fitted) == {
        "model.net.weight",
        "model.net.bias",
        "model.free_unconstrained",
        "loc",
    }
    assert found.network["model.net.weight"] == "model.net"
    assert (found.count, found.dtype) == (4, torch.float32)
    assert found.frozen == {id(owner.fixed)}
    assert found.idle([id(owner.net)]) >= {id(owner.fixed)}


def test_modules_that_are_announced_are_one_network() -> None:
    net = nn.Linear(2, 1)
    survey = survey_guide(lambda: pyro.module("encoder", net), (), {})
    found = inventory(print, print, LOSS, [survey], set())
    assert found.network == {"encoder.weight": "encoder", "encoder.bias": "encoder"}
    assert inventory(print, print, LOSS, [], set()).dtype is None


def test_devices() -> None:
    here, there = nn.Linear(1, 1), nn.Linear(1, 1, device="meta")
    assert list(device_findings(here, here)) == []
    (finding,) = device_findings(here, there)
    assert "cpu (model) and meta (guide)" in finding.found
    assert device_of(there, here) == torch.device("meta")
    assert device_of(print, print) is None
    pyro.param("p", torch.zeros(()))
    assert device_of(print, print) == torch.device("cpu")


def test_pyro_params_of_one_name() -> None:
    one, other = Owner(), Owner(2.0)
    assert [f.where for f in collision_findings(one, other)] == ["parameter 'free'"]
    assert list(collision_findings(one, one)) == []
    assert list(collision_findings(print, one)) == []


def announced(*statements: Any) -> list[str]:
    survey = survey_guide(lambda: [statement() for statement in statements], (), {})
    return [f.where for f in announced_findings(print, print, [survey])]


def test_announced_parameters_of_one_name() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert announced(lambda: pyro.module("net", one), lambda: pyro.module("net", one)) == []
    twice = announced(lambda: pyro.module("net", one), lambda: pyro.module("net", other))
    assert twice == ["parameter 'net.weight'", "parameter 'net.bias'"]
    pyro.clear_param_store()
    shapes = [torch.zeros(2), torch.zeros(3)]
    assert announced(*[lambda s=s: pyro.param("p", s) for s in shapes]) == ["parameter 'p'"]
    assert announced(lambda: pyro.param("q", shapes[0]), lambda: pyro.param("q")) == []


def test_another_program_s_parameters_in_the_store() -> None:
    pyro.module("net", nn.Linear(1, 1))
    mine = nn.Linear(1, 1)
    assert announced(lambda: pyro.module("net", mine)) != []
    survey = survey_guide(lambda: pyro.module("net", mine), (), {})
    assert list(announced_findings(mine, print, [survey])) == [], "am.SVI trains what it owns"


def untrained(program: Any, *used: nn.Module) -> Any:
    calls = Calls()
    with calls.recorded("guide"):
        for net in used:
            net(torch.zeros(2))
    known = inventory(print, program, LOSS, [], set())
    leaves = {id(p): p for net in used for p in net.parameters()}
    (finding,) = untrained_findings(leaves, known, calls, (print, program))
    return finding


def test_networks_that_nobody_trains_are_named_as_the_user_does() -> None:
    encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

    def closed_over() -> Any:
        return encoder

    finding = untrained(closed_over, encoder)
    assert finding.where == "network 'encoder' (Sequential) used in the guide"
    assert "pyro.module('encoder', encoder)" in finding.advice
    assert finding.found.startswith("4 of its parameters")


def test_networks_in_a_list_or_made_at_each_call() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(2, 1)]

        def forward(self) -> None: ...

    listed = Listed()
    finding = untrained(listed, listed.layers[0])
    assert "the list 'layers' of Listed" in finding.where and "nn.ModuleList" in finding.advice
    assert "outside" in untrained(print, nn.Linear(2, 1)).advice


def test_bare_tensors() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    known = inventory(print, print, LOSS, [], set())
    strays = strays_among({id(leaf): leaf}, known, [])
    (finding,) = untrained_findings(strays, known, Calls(), (print, print))
    assert "(3,)" in finding.where and "pyro.param" in finding.advice
    assert strays_among({id(leaf): leaf}, known, [leaf]) == {}


def test_nothing_to_train() -> None:
    owner = Owner()
    assert list(no_parameter_findings(inventory(owner, print, LOSS, [], set()), False)) == []
    (finding,) = no_parameter_findings(inventory(print, print, LOSS, [], {1}), False)
    assert "requires_grad_(True)" in finding.advice
    (finding,) = no_parameter_findings(inventory(print, print, LOSS, [], set()), True)
    assert "pyro.module" in finding.advice and "pyro.param" in finding.advice


def test_parameters_that_a_run_makes_anew() -> None:
    owner, net = Owner(), nn.Linear(1, 1)

    def program() -> None:
        net(torch.ones(1))

    with pyro.get_param_store().scope():
        kept = pyro.param("kept", torch.tensor(0.0))
        before = held_parameters(program, owner)
        assert list(remade_findings(before, held_parameters(program, owner))) == []
        owner.net = nn.Linear(2, 1)
        owner.free = PyroParam(torch.tensor(2.0))
        net.bias = nn.Parameter(torch.ones(1))
        (finding,) = remade_findings(before, held_parameters(program, owner))
        names = "'Linear.bias', 'guide.free', 'guide.net.bias', 'guide.net.weight'"
        assert finding.where == f"parameters {names}"
        before = held_parameters(program, owner)
        pyro.clear_param_store()
        pyro.param("kept", kept.detach())
        (finding,) = remade_findings(before, held_parameters(program, owner))
        assert finding.where == "parameter 'kept'" and finding.severity == "warning"
