"""What stands at a site whose sample is data."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators.as_data import AsData, as_data
from amortized.estimators.base import Site, TorchNoise


def test_the_value_is_constant_and_its_log_q_is_not() -> None:
    loc = torch.tensor(0.3, requires_grad=True)
    draw = AsData().draw(Site("z", dist.Normal(loc, 1.0)), TorchNoise())
    assert not draw.value.requires_grad
    (score,) = torch.autograd.grad(AsData().log_q(draw), loc)
    assert score.item() == pytest.approx(draw.value.item() - 0.3)


def test_every_site_gets_it_unless_its_program_names_an_estimator() -> None:
    site = Site("z", dist.Bernoulli(0.3))
    assert repr(as_data(site, {"enumerate": "parallel"})) == "none: samples are data"
    with pytest.raises(am.EstimatorError, match=r"site 'z'.*'disarm'.*samples as data"):
        as_data(site, {"estimator": "disarm"})


def test_a_point_mass_that_moves_has_no_log_q_to_learn_from() -> None:
    loc = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(am.EstimatorError, match=r"site 'z'.*Delta.*no density"):
        as_data(Site("z", dist.Delta(loc)), {})
    as_data(Site("z", dist.Delta(loc.detach())), {})
    with torch.no_grad():
        as_data(Site("z", dist.Delta(loc)), {})
