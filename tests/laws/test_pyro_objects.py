"""Programs written with Pyro's own classes: modules, samples in modules, autoguides, messengers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import amortized as am
from tests.laws.structures import Structure
from tests.laws.test_pyro_agreement import assert_equal

X = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)


class Regression(PyroModule):
    """Bayesian regression: weights are `PyroSample`, the noise a `PyroParam`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.noise = PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self) -> None:
        """The program."""
        mean = self.linear(X.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(mean, self.noise), obs=2.0 * X)


def local_and_global() -> None:
    """A global scale and a latent a datum."""
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.5))
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(5), scale))
        pyro.sample("x", dist.Normal(z, 0.3), obs=X)


def mixed_guide(model: Callable[..., Any]) -> AutoGuideList:
    """Two autoguides in one."""
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    return guide


GUIDES: dict[str, Callable[[Any], Any]] = {
    "AutoNormal": AutoNormal,
    "AutoDelta": AutoDelta,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoGuideList": mixed_guide,
    "AutoNormalMessenger": AutoNormalMessenger,
}


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_autoguides_equal_trace_elbo(name: str) -> None:
    """The autoguides' auxiliary sites, Deltas and plates mean the same to us."""
    guide = GUIDES[name](local_and_global)
    assert_equal(am.VariationalLoss(), Trace_ELBO(), Structure(local_and_global, guide), 1)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoDiagonalNormal", "AutoNormalMessenger"])
def test_pyro_modules_equal_trace_elbo(name: str) -> None:
    """`PyroModule`, `PyroSample`, `PyroParam`."""
    model = Regression()
    assert_equal(am.VariationalLoss(), Trace_ELBO(), Structure(model, GUIDES[name](model)), 2)


def test_autonormal_with_particles_equals_trace_elbo() -> None:
    """Particles broadcast through an autoguide."""
    guide = AutoNormal(local_and_global)
    guide()
    theirs = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    ours = am.VariationalLoss(am.ELBO(num_particles=4))
    assert_equal(ours, theirs, Structure(local_and_global, guide), 3)


def test_autoguide_that_ignores_the_model_s_minibatch_is_refused() -> None:
    """Pyro replaces the model's indices by the guide's own, silently (pyro issue 3468)."""
    everything = torch.linspace(-1.0, 1.0, 100)

    def model(index: Tensor) -> None:
        with pyro.plate("data", 100, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=everything[index])

    guide = AutoNormal(model)
    index = torch.arange(5, 10)
    guide(index)

    def random_guide(index: Tensor) -> None:
        with pyro.plate("data", 100, subsample_size=5):
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    with pytest.raises(am.ProgramError, match="plate 'data'"):
        am.VariationalLoss().loss(model, random_guide, index)


def test_nan_behind_a_mask_is_harmless() -> None:
    """Pyro gives log_prob 0 and gradient NaN there."""
    data = torch.tensor([1.0, float("nan"), 3.0])

    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=data)

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))

    am.VariationalLoss().loss_and_grads(model, guide)
    store = pyro.get_param_store()
    assert store["loc"].grad.isfinite() and store["loc"].grad != 0


def test_a_partially_observed_site_trains() -> None:
    """`obs_mask` with NaN where nothing was seen."""
    seen = torch.tensor([True, False, True])
    data = torch.tensor([1.0, float("nan"), 3.0])

    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 3):
            x = pyro.sample("x", dist.Normal(loc, 1.0), obs=data, obs_mask=seen)
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(3))

    def guide() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=~seen):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0))

    am.VariationalLoss().loss_and_grads(model, guide)
    store = pyro.get_param_store()
    assert store["loc"].grad.isfinite() and store["m"].grad.isfinite().all()
    assert store["m"].grad[1] != 0 and store["m"].grad[0] == 0
