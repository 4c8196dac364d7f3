"""What DistributedDataParallel would leave out is found by name."""

from __future__ import annotations

import pyro
import pytest
import torch
import torch.distributed as dist

import amortized as am
from amortized.programs.registered import unregistered
from tests.fit import tiny


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("two_processes")
def test_a_functional_parameter_is_refused_among_several_processes() -> None:
    module = am.VariationalLoss()(tiny.local_model, tiny.param_guide)
    with pytest.raises(am.ProgramError, match="parameter 'scale', 'slope' is registered in no"):
        module(tiny.data(6))


@pytest.mark.usefixtures("two_processes")
def test_registered_parameters_are_taken() -> None:
    module = am.VariationalLoss()(tiny.ModuleModel(), tiny.ModuleGuide())
    module(tiny.data(6)).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_alone_any_parameter_will_do() -> None:
    am.VariationalLoss()(tiny.local_model, tiny.param_guide)(tiny.data(6)).backward()


def test_what_a_loss_does_not_depend_on_is_no_matter() -> None:
    pyro.param("idle", torch.tensor(1.0))
    used = pyro.param(
        "used", torch.tensor(1.0), constraint=torch.distributions.constraints.positive
    )
    assert unregistered(2 * used, []) == ["used"]
    assert unregistered(torch.tensor(1.0), []) == []
