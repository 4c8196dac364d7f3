"""MuProp: exact draw by draw where the cost is affine, hazards, and what it refuses."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

import amortized as am
from amortized.estimators.base import Cost, Draw, Site, TorchNoise
from amortized.estimators.muprop import MuProp
from tests.estimators.test_rebar import LawOf, bits, gradients, one_hot, squares
from tests.reference import OutcomeTree, estimate_law

SLOPES = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)
LOGITS = torch.tensor([0.4, -0.9, 1.6], dtype=torch.float64)


def affine(b: Tensor) -> Tensor:
    return (b * SLOPES).sum(-1) - 2.0


def joint(b: Tensor) -> Tensor:
    return (b * SLOPES).sum(-1) ** 3


def events(logits: Tensor) -> Distribution:
    return dist.Bernoulli(logits=logits).to_event(1)


def truth(law_of: LawOf, cost) -> Tensor:
    """The gradient of E cost, by enumeration."""
    leaf = LOGITS.clone().requires_grad_()
    if law_of is one_hot:
        values = torch.eye(3)
    else:
        values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    weights = law_of(leaf.expand(len(values), 3)).log_prob(values).exp()
    return torch.autograd.grad((weights * cost(values)).sum(), leaf)[0]


@pytest.mark.float64
@pytest.mark.parametrize("law_of", [events, one_hot])
def test_every_draw_is_the_gradient_of_an_affine_cost(law_of: LawOf) -> None:
    found = gradients(MuProp(), law_of, LOGITS.expand(200, 3), affine, TorchNoise())
    torch.testing.assert_close(found, truth(law_of, affine).expand(200, 3))


def after(*differences: float) -> MuProp:
    """With so many steps behind it, whose costs differed from that at the mean by these."""
    estimator = MuProp()
    site = Site("z", events(torch.zeros(1, 3)))
    for difference in differences:
        costs = torch.tensor([[-50.0 + difference], [-50.0]])
        estimator.update(Draw(site, torch.zeros(2, 1, 3), 2, axis=-2), Cost(costs))
    return estimator


@pytest.mark.float64
@pytest.mark.parametrize("law_of", [events, one_hot])
@pytest.mark.parametrize("differences", [(), (-7.0, 2.0)])
def test_a_joint_cost_in_the_mean(law_of: LawOf, differences: tuple[float, ...]) -> None:
    estimator = after(*differences)

    def run(tree: OutcomeTree) -> Tensor:
        return gradients(estimator, law_of, LOGITS.expand(1, 3), joint, tree)

    law = estimate_law(run)
    torch.testing.assert_close(law.mean[0], truth(law_of, joint), rtol=0, atol=1e-14)
    assert float(law.variance.max()) > 1e-3


@pytest.mark.float64
def test_what_the_expansion_leaves_on_average_is_taken_out() -> None:
    """A cost that is curved everywhere is never at its mean what it is on average."""

    def curved(b: Tensor) -> Tensor:
        return -30.0 * (b - 0.5).square().sum(-1)

    def variance(estimator: MuProp) -> float:
        def run(tree: OutcomeTree) -> Tensor:
            return gradients(
                estimator, events, torch.zeros(1, 3, dtype=torch.float64), curved, tree
            )

        return float(estimate_law(run).variance.sum())

    assert variance(after(-22.5)) < 1e-12 and variance(MuProp()) > 100.0


class NoOffset(MuProp):
    """A mutant: the expansion is at the mean, its slope's own gradient is forgotten."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        owed = super().surrogate(draw, cost)
        means = draw.site.law.mean
        slope = self.rows(draw, cost.slope(draw))[1].detach()
        extra = (slope * (means - means.detach())).sum(-1)
        return None if owed is None else owed - extra


@pytest.mark.float64
def test_the_mean_notices_a_forgotten_part() -> None:
    def run(tree: OutcomeTree) -> Tensor:
        return gradients(NoOffset(), events, LOGITS.expand(1, 3), joint, tree)

    assert float((estimate_law(run).mean[0] - truth(events, joint)).abs().max()) > 1e-3


@pytest.mark.float64
def test_the_entropy_is_part_of_the_expansion() -> None:
    """An affine model under the bound: log q is linear in the value too, so nothing varies."""

    def model() -> None:
        with pyro.plate("data", 40):
            z = pyro.sample("z", dist.Bernoulli(torch.full((40, 3), 0.3)).to_event(1))
            pyro.factor("x", affine(z))

    def guide() -> None:
        logits = pyro.param("a", LOGITS.expand(40, 3).clone())
        with pyro.plate("data", 40):
            pyro.sample("z", events(logits))

    loss = am.VariationalLoss(estimators={"z": MuProp()})
    loss.loss_and_grads(model, guide)
    found = pyro.get_param_store()["a"].unconstrained().grad
    assert float(found.std(0).max()) < 1e-14 and float(found.abs().min()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_are_all_but_certain(dtype: torch.dtype) -> None:
    logits = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], dtype=dtype)
    assert gradients(MuProp(), bits, logits, squares(0.3), TorchNoise()).isfinite().all()
    rows = torch.tensor([[80.0, 0.0, -80.0], [0.0, 0.0, -math.inf]], dtype=dtype)
    found = gradients(MuProp(), one_hot, rows, lambda b: (b**2).sum(-1), TorchNoise())
    assert found.dtype == dtype and found.isfinite().all()
    assert gradients(MuProp(), bits, torch.zeros(0), squares(0.3), TorchNoise()).shape == (0,)


def test_an_impossible_cost_spoils_nothing() -> None:
    def costs(b: Tensor) -> Tensor:
        return torch.where(b == 1, -torch.inf, b)

    assert gradients(MuProp(), bits, torch.zeros(20), costs, TorchNoise()).isfinite().all()


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (dist.Categorical(logits=torch.zeros(3)), "integer.*OneHotCategorical.*am.RELAX"),
        (dist.Geometric(0.3), "Geometric has no relaxed values.*am.ScoreFunction"),
    ],
)
def test_sites_it_cannot_serve(law: Distribution, words: str) -> None:
    with pytest.raises(am.EstimatorError, match=f"'z'.*MuProp.*{words}"):
        am.VariationalLoss(estimators={"z": MuProp()}).loss(
            lambda: pyro.sample("z", law), lambda: pyro.sample("z", law)
        )


def test_its_state_and_how_it_is_written() -> None:
    found = after(3.0)
    again = MuProp()
    again.load_state_dict(found.state_dict())
    assert again.mean.item() == 3.0 and repr(again) == "MuProp()"
    assert MuProp().copies(Site("z", bits(torch.zeros(2)))) == 2
