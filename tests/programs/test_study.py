"""What a probe learns, and that it leaves nothing behind."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn

import amortized as am
from amortized.estimators.base import TorchNoise
from amortized.programs.records import DataPlate, Layout
from amortized.programs.study import identity, picked, probe, undisturbed

UNIT = dist.Normal(0.0, 1.0)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_generators_are_put_back() -> None:
    pyro.set_rng_seed(3)
    expected = draws()
    pyro.set_rng_seed(3)
    with undisturbed():
        draws()
    assert draws() == expected


def test_also_when_the_program_fails() -> None:
    net = nn.BatchNorm1d(2)
    pyro.set_rng_seed(3)
    expected = draws()
    pyro.set_rng_seed(3)
    with pytest.raises(ZeroDivisionError), undisturbed(net):
        draws()
        net(torch.randn(4, 2))
        raise ZeroDivisionError
    assert draws() == expected
    assert net.num_batches_tracked == 0 and net.running_mean.tolist() == [0.0, 0.0]


class Pair(nn.Module):
    """A pair of methods with batch norm, the commonest way to write a VAE in Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = self.norm(z.reshape(-1, 1)).reshape(z.shape)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def model(self, x: Tensor) -> None:
        self.forward(x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def ways_to_hold(module: Pair) -> dict[str, Any]:
    """The same program as users hold it."""

    class Holder:
        """An object that is no module and has one."""

        def __init__(self) -> None:
            self.pair = module

        def model(self, x: Tensor) -> None:
            self.pair(x)

    def closure(x: Tensor) -> None:
        module(x)

    return {
        "module": module,
        "method": module.model,
        "closure": closure,
        "lambda": lambda x: module(x),
        "partial": partial(lambda m, x: m(x), module),
        "holder's method": Holder().model,
        "scaled method": poutine.scale(module.model, scale=0.5),
        "scaled closure": poutine.scale(closure, scale=0.5),
    }


WAYS = sorted(ways_to_hold(Pair()))


@pytest.mark.parametrize("way", WAYS)
def test_warming_up_leaves_buffers_and_generators_alone(way: str) -> None:
    module = Pair()
    model = ways_to_hold(module)[way]
    pyro.set_rng_seed(3)
    expected = draws()
    pyro.set_rng_seed(3)
    am.VariationalLoss().warm_up(model, guide, torch.randn(6, generator=torch.Generator()))
    assert draws() == expected
    assert module.norm.num_batches_tracked == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_step_moves_buffers_once(way: str) -> None:
    module = Pair()
    model = ways_to_hold(module)[way]
    am.VariationalLoss().loss_and_grads(model, guide, torch.randn(6))
    assert module.norm.num_batches_tracked == 1


def test_parameters_made_by_the_probe_are_not_the_first_draws() -> None:
    """The probe puts the generator back, so the first step must not repeat its numbers."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    def fresh() -> None:
        start = pyro.param("start", lambda: torch.randn(4))
        pyro.sample("z", dist.Normal(start, 1.0).to_event(1))

    run = am.VariationalLoss().estimate(model, fresh, (), {}).run
    start = pyro.get_param_store()["start"]
    noise = run.guide["z"].value - start
    assert (noise - start).abs().max() > 1e-3


def test_equal_seeds_make_equal_parameters() -> None:
    def program() -> None:
        start = pyro.param("start", lambda: torch.randn(4))
        pyro.sample("z", dist.Normal(start, 1.0).to_event(1))

    starts = []
    for seed in (1, 1, 2):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        am.VariationalLoss().loss(program, program)
        starts.append(pyro.get_param_store()["start"].tolist())
    assert starts[0] == starts[1] != starts[2]


def study_of(model: Any, wanted: str | None = None) -> Any:
    plate = DataPlate(wanted)
    return probe(model, lambda: None, (), {}, plate, nesting=0, noise=TorchNoise())


def observe(name: str, *plates: tuple[str, int, int]) -> None:
    """One observation inside the plates (name, size, dim), outermost first."""
    if not plates:
        pyro.sample(name, UNIT, obs=torch.tensor(0.0))
        return
    (plate, size, dim), *rest = plates
    with pyro.plate(plate, size, dim=dim):
        observe(name, *rest)


ROWS, COLUMNS = ("rows", 2, -2), ("columns", 3, -1)


@pytest.mark.parametrize(
    ("model", "name", "nesting"),
    [
        (lambda: observe("x", COLUMNS), "columns", 1),
        (lambda: observe("x", ROWS, COLUMNS), "rows", 2),
        (lambda: observe("x", ("deep", 2, -4)), "deep", 4),
        (lambda: observe("x"), None, 0),
        (lambda: [observe("x", COLUMNS), observe("y", ("other", 2, -1))], None, 1),
        (lambda: [observe("x", COLUMNS), observe("y")], "columns", 1),
    ],
)
def test_the_data_plate_is_the_sole_outermost_one_observed(
    model: Any, name: str | None, nesting: int
) -> None:
    study = study_of(model)
    assert study.data.name == name and study.nesting == nesting


def test_factors_and_latents_hold_no_data() -> None:
    def model() -> None:
        with pyro.plate("groups", 2):
            pyro.factor("penalty", torch.zeros(2))
        observe("x", COLUMNS)

    assert study_of(model).data.name == "columns"


def test_a_reparameterized_latent_holds_no_data() -> None:
    """Pyro leaves it behind as an observed Delta."""

    def model() -> None:
        with pyro.plate("groups", 2):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
        observe("x", COLUMNS)

    def program() -> None:
        with pyro.plate("groups", 2):
            pyro.sample("z_decentered", dist.Normal(torch.zeros(2), 1.0))

    decentered = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})
    estimate = am.VariationalLoss().estimate(decentered, program, (), {})
    assert estimate.data_plate == "columns" and estimate.data_size == 3


def test_the_data_plate_that_is_asked_for() -> None:
    study = study_of(lambda: observe("x", ROWS, COLUMNS), "columns")
    assert study.data.name == "columns"
    with pytest.raises(am.UsageError, match=r"data_plate='dta'.*\['columns', 'rows'\]"):
        study_of(lambda: observe("x", ROWS, COLUMNS), "dta")
    with pytest.raises(am.UsageError, match="no plates"):
        study_of(lambda: observe("x"), "data")


def test_a_bound_method_is_the_same_program_at_each_access() -> None:
    one, other = Pair(), Pair()
    assert identity(one.model) == identity(one.model) != identity(other.model)
    assert identity(one.model) != identity(one.forward)
    assert identity(one) == identity(one) != identity(other)


def test_one_copy_of_a_value() -> None:
    """Dims left of the plates go at the index asked for, else at 0; event dims stay."""
    value = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    layout = Layout(nesting=1)
    assert torch.equal(picked(value, layout, 1, {-3: 1, -2: 2}), value[1, 2])
    assert torch.equal(picked(value, layout, 1, {-2: 2}), value[0, 2])
    assert torch.equal(picked(value[:1], layout, 1, {-3: 1}), value[0, 0])
    assert torch.equal(picked(value, Layout(nesting=4), 0, {-3: 1}), value)
