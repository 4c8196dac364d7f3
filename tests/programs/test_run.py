"""One run of a pair: whose sites fit together, and which failures are explained."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from torch import Tensor, nn

import amortized as am
from amortized.programs.run import values_of

UNIT = dist.Normal(0.0, 1.0)


def test_a_site_of_the_guide_that_the_model_lacks_is_refused() -> None:
    def model() -> None:
        pyro.sample("code", UNIT)

    def guide() -> None:
        pyro.sample("code", UNIT)
        pyro.sample("extra", UNIT)

    with pytest.raises(am.ProgramError) as error:
        am.VariationalLoss().loss(model, guide)
    text = str(error.value)
    assert "site 'extra'" in text and "the model does not" in text
    assert "['code']" in text and "is_auxiliary" in text


class Convolution(nn.Module):
    """An image decoder that takes one batch dim and no more."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        network = nn.ConvTranspose2d(2, 1, 3)
        self.network = am.Fold(network, event_dim=3) if folded else network

    def forward(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            code = torch.full((len(x), 2, 2, 2), 0.5)
            z = pyro.sample("z", dist.Bernoulli(code).to_event(3))
            pyro.sample("x", dist.Normal(self.network(z), 1.0).to_event(3), obs=x)


def encode(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        logits = x[:, :, :2, :2].expand(-1, 2, 2, 2)
        pyro.sample("z", dist.Bernoulli(logits=logits).to_event(3))


IMAGES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
WIDE: dict[str, tuple[int, Any]] = {
    "copies": (1, am.ScoreFunction(am.LeaveOneOut(), num_samples=2)),
    "particles": (4, am.ScoreFunction()),
    "both": (2, am.ScoreFunction(num_samples=3)),
}


@pytest.mark.parametrize("name", sorted(WIDE))
def test_a_network_that_cannot_broadcast_is_explained(name: str) -> None:
    particles, estimator = WIDE[name]
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    with pytest.raises(am.ProgramError) as error:
        loss.loss(Convolution(folded=False), encode, IMAGES)
    text = str(error.value)
    assert "am.Fold(network)" in text and "vectorize=False" in text
    assert ("site 'z'" in text) == (estimator.num_samples is not None)
    assert ("particles" in text) == (particles > 1)
    assert isinstance(error.value.__cause__, RuntimeError)


@pytest.mark.parametrize("name", sorted(WIDE))
def test_it_works_with_a_fold(name: str) -> None:
    particles, estimator = WIDE[name]
    model = Convolution(folded=True)
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    loss.loss_and_grads(model, encode, IMAGES)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_failure_that_has_nothing_to_do_with_axes_is_the_user_s_own() -> None:
    """No copies, no particles: the traceback is theirs."""

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2) + torch.zeros(3), 1.0))

    with pytest.raises(RuntimeError, match="size of tensor") as error:
        am.VariationalLoss().loss(guide, guide)
    assert not isinstance(error.value, am.AmortizedError)


def test_a_program_s_own_error_class_passes() -> None:
    class OutOfCoffee(Exception):
        """Not ours."""

    def guide() -> None:
        pyro.sample("z", UNIT)
        raise OutOfCoffee

    with pytest.raises(OutOfCoffee):
        am.VariationalLoss(am.ELBO(num_particles=3)).loss(guide, guide)


def test_a_reduction_that_drops_a_plate_s_dim_is_not_blamed_on_a_plate() -> None:
    """The particles slide onto the dim that was reduced; no plate is missing."""

    def program() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", UNIT)
        pyro.sample("top", dist.Normal(z.mean(-1), 1.0))

    am.VariationalLoss().loss(program, program)
    with pytest.raises(am.ProgramError, match="site 'top'") as error:
        am.VariationalLoss(am.ELBO(num_particles=2)).loss(program, program)
    assert "keepdim=True" in str(error.value)


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
def test_a_factor_of_the_model_stays_the_model_s(kind: Any) -> None:
    """A guide messenger runs the model inside: what is observed there is not the guide's."""

    def model() -> None:
        z = pyro.sample("z", UNIT)
        pyro.factor("pull", -3.0 * (z - 2.0) ** 2)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    guide = kind(model)
    guide()
    values = []
    for loss in (am.VariationalLoss(), Trace_ELBO()):
        pyro.set_rng_seed(1)
        values.append(loss.loss(model, guide))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_what_fixes_a_run() -> None:
    def program() -> None:
        with pyro.plate("data", 10, subsample_size=2):
            pyro.sample("z", UNIT)

    run = am.VariationalLoss().estimate(program, program, (), {}).run
    values = values_of(run)
    assert values.keys() == {"data", "z"}
    assert values["z"] is run.guide["z"].value and values["data"].shape == (2,)
