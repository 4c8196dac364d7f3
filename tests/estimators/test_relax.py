"""RELAX and LAX: unbiased for any network, trained on the variance alone, on every kind of site."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import amortized as am
from amortized.estimators.base import Cost, Draw, Site, TorchNoise
from amortized.estimators.relax import RELAX
from tests.estimators.test_rebar import LawOf, bits, charged, gradients, grid_of, one_hot, squares
from tests.laws.test_in_the_mean import rejected

ROW = (0.9, -0.4, 0.1)


def wild() -> nn.Module:
    """A network that is nowhere near a good control variate."""
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 1), Times(3.0))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> Tensor:
        return self.factor * value


def relax(**options: object) -> RELAX:
    """With costs behind it: its mean and spread are not those of the start."""
    estimator = RELAX(wild(), **options)
    estimator.mean.fill_(-1.7)
    estimator.square.fill_(6.0)
    return estimator


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
def test_a_bit_by_quadrature(p: float, tied: bool) -> None:
    """E (b - .45)^2 has the gradient .1 p (1 - p) in the logit."""
    grid = grid_of(p, tied)
    logits = torch.full((grid.size,), math.log(p / (1 - p)))
    found = gradients(relax(tied=tied), bits, logits, squares(0.45), grid)
    mean = (grid.weights * found).sum()
    assert mean.item() == pytest.approx(0.1 * p * (1 - p), abs=1e-10)
    assert (grid.weights * (found - mean) ** 2).sum() > 1e-3


class AsIfContinuous(RELAX):
    """A mutant: the form of LAX on a bit."""

    def draw(self, site: Site, noise) -> Draw:
        drawn = super().draw(site, noise)
        memory = {**drawn.memory, "given": drawn.memory["free"]}
        memory["turn"] = torch.zeros_like(memory["turn"])
        return Draw(site, drawn.value, memory=memory)


@pytest.mark.float64
def test_the_form_of_lax_on_a_bit_is_biased() -> None:
    grid = grid_of(0.2, False)
    found = gradients(
        AsIfContinuous(wild()), bits, torch.full((grid.size,), math.log(0.25)), squares(0.45), grid
    )
    assert abs((grid.weights * found).sum().item() - 0.016) > 1e-3


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
def test_what_the_network_follows_is_the_gradient_of_the_variance(tied: bool) -> None:
    """Against central differences, in every parameter, the temperature included."""
    p, step = 0.2, 1e-5
    estimator = RELAX(
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), tied=tied, temperature=1.0
    )
    estimator.mean.fill_(0.2)

    def variance() -> float:
        grid = grid_of(p, tied)
        logits = torch.full((grid.size,), math.log(p / (1 - p)))
        found = gradients(estimator, bits, logits, squares(0.45), grid)
        return (grid.weights * (found - (grid.weights * found).sum()) ** 2).sum().item()

    grid = grid_of(p, tied)
    logits = torch.full((grid.size,), math.log(p / (1 - p)), requires_grad=True)
    owed = charged(estimator, Site("z", bits(logits)), squares(0.45), grid)[2]
    learned = list(estimator.parameters())
    slopes = torch.autograd.grad(-(grid.weights * owed).sum(), learned, materialize_grads=True)
    assert len(learned) == 5
    for parameter, slope in zip(learned, slopes, strict=True):
        flat = parameter.data.view(-1)
        for place in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[place] += sign * step
                ends.append(variance())
                flat[place] -= sign * step
            expected = (ends[0] - ends[1]) / (2 * step)
            assert slope.reshape(-1)[place].item() == pytest.approx(expected, abs=1e-8, rel=1e-5)


def indices(logits: Tensor) -> Distribution:
    return dist.Categorical(logits=logits)


def pairs_of_indices(logits: Tensor) -> Distribution:
    return dist.Categorical(logits=torch.stack([logits, -0.5 * logits], -2)).to_event(1)


def two_bits(logits: Tensor) -> Distribution:
    return dist.Bernoulli(logits=logits[..., :2]).to_event(1)


def counts(logits: Tensor) -> Distribution:
    return dist.Binomial(3, logits=logits[..., 0])


PRICES = torch.tensor([1.0, -2.0, 3.5, 0.7], dtype=torch.float64)


def of_index(z: Tensor) -> Tensor:
    """No function of a relaxed value: it looks prices up."""
    return PRICES[z.long()]


def of_pair(z: Tensor) -> Tensor:
    return PRICES[z[..., 0].long()] * PRICES[z[..., 1].long()]


def of_one_hot(z: Tensor) -> Tensor:
    return of_index(z.argmax(-1))


FINITE = {
    "index": (indices, of_index, torch.arange(3)),
    "indices of an event": (
        pairs_of_indices,
        of_pair,
        torch.cartesian_prod(torch.arange(3), torch.arange(3)),
    ),
    "bits of an event": (
        two_bits,
        of_pair,
        torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)),
    ),
    "one-hot": (one_hot, of_one_hot, torch.eye(3)),
    "count": (counts, of_index, torch.arange(4.0)),
}


def truth(law_of: LawOf, cost, support: Tensor) -> Tensor:
    leaf = torch.tensor(ROW, dtype=torch.float64).requires_grad_()
    law = law_of(leaf.expand(len(support), 3))
    weights = law.log_prob(support.to(leaf.dtype) if support.is_floating_point() else support).exp()
    return torch.autograd.grad((weights * cost(support)).sum(), leaf)[0]


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", sorted(FINITE))
def test_finite_sites_in_the_mean(kind: str, tied: bool) -> None:
    """2 10^5 draws, a cost that no relaxed value can have."""
    law_of, cost, support = FINITE[kind]
    logits = torch.tensor(ROW).expand(200_000, 3)
    draws = gradients(relax(tied=tied), law_of, logits, cost, TorchNoise())
    expected = truth(law_of, cost, support)
    moving = draws.abs().amax(0) > 0
    assert not rejected(draws[:, moving], expected[moving])
    assert rejected(1.1 * draws[:, moving], expected[moving])
    assert torch.equal(expected[~moving], torch.zeros(int((~moving).sum())))


def normal(row: Tensor) -> Distribution:
    return dist.Normal(row[..., 0], row[..., 1].exp())


CONTINUOUS: dict[str, LawOf] = {
    "normal": normal,
    "normals of an event": lambda row: dist.Normal(row[..., :2], 0.8).to_event(1),
    "laplace": lambda row: dist.Laplace(row[..., 0], row[..., 1].exp()),
    "lognormal": lambda row: dist.LogNormal(row[..., 0], row[..., 1].exp()),
    "gamma": lambda row: dist.Gamma(row[..., 0].exp(), row[..., 1].exp()),
    "beta": lambda row: dist.Beta(row[..., 0].exp(), row[..., 1].exp()),
    "student": lambda row: dist.StudentT(20.0, row[..., 0], row[..., 1].exp()),
    "expanded": lambda row: dist.Normal(0.3, row[..., 1].exp()),
}


def wave(z: Tensor, law: Distribution) -> Tensor:
    values = (1.3 * z).sin()
    return values.sum(-1) ** 2 if law.event_shape else values


@pytest.mark.float64
@pytest.mark.parametrize("kind", sorted(CONTINUOUS))
def test_lax_and_pathwise_agree_in_the_mean(kind: str) -> None:
    """The cost is detached from the value in LAX; pathwise differentiates it."""
    law_of = CONTINUOUS[kind]
    rows = torch.tensor(ROW).expand(200_000, 3)
    leaf = rows.clone().requires_grad_()
    law = law_of(leaf)
    (theirs,) = torch.autograd.grad(wave(law.rsample(), law).sum(), leaf)
    ours = gradients(relax(), law_of, rows, lambda z: wave(z, law), TorchNoise())
    moving = theirs.abs().amax(0) > 0
    assert bool(moving.any()) and torch.equal(moving, ours.abs().amax(0) > 0)
    assert not rejected(ours[:, moving], 0.0, theirs[:, moving])
    assert rejected(-ours[:, moving], 0.0, theirs[:, moving])


@pytest.mark.float64
def test_lax_with_the_cost_itself_is_pathwise() -> None:
    """c = f: the bracket is zero, draw by draw, and the slope is the cost's."""

    class Exact(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return (1.3 * features[..., -1:]).sin()

    rows = torch.randn(50, 3)
    leaf = rows.clone().requires_grad_()
    pyro.set_rng_seed(5)
    (expected,) = torch.autograd.grad((1.3 * normal(leaf).rsample()).sin().sum(), leaf)
    pyro.set_rng_seed(5)
    found = gradients(RELAX(Exact()), normal, rows, lambda z: (1.3 * z).sin(), TorchNoise())
    torch.testing.assert_close(found, expected)


@pytest.mark.float64
@pytest.mark.parametrize("law_of", [normal, indices])
def test_training_the_network_lowers_the_variance_and_reaches_nothing_else(law_of: LawOf) -> None:
    """After training, less variance; phi's gradient is the same with and without what trains."""
    rows, cost = torch.tensor(ROW).expand(500, 3), of_index if law_of is indices else lambda z: z**2
    estimator = RELAX(hidden=16)
    first = gradients(estimator, law_of, rows, cost, TorchNoise()).var(0).sum()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for _ in range(150):
        leaf = rows.clone().requires_grad_()
        drawn, price, owed = charged(estimator, Site("z", law_of(leaf)), cost, TorchNoise())
        own = torch.autograd.grad(-owed.mean(), list(estimator.parameters()), allow_unused=True)
        for parameter, slope in zip(estimator.parameters(), own, strict=True):
            parameter.grad = slope
        optimizer.step()
        estimator.update(drawn, price)
    last = gradients(estimator, law_of, rows, cost, TorchNoise()).var(0).sum()
    assert last < 0.8 * first
    # what trains it is a function of nothing that phi or theta reach
    pyro.set_rng_seed(2)
    with_training = gradients(estimator, law_of, rows, cost, TorchNoise())
    for parameter in estimator.parameters():
        parameter.requires_grad_(False)
    pyro.set_rng_seed(2)
    assert torch.equal(gradients(estimator, law_of, rows, cost, TorchNoise()), with_training)


def test_mean_and_spread_of_costs() -> None:
    estimator = RELAX()
    site = Site("z", dist.Bernoulli(torch.full((4,), 0.5)))
    draw = Draw(site, torch.zeros(4))
    several = ([1.0, 3.0, 2.0, 2.0], [-4.0, 0.0, 1.0, 2.0])
    for costs in several:
        estimator.update(draw, Cost(torch.tensor(costs)))
    estimator.update(draw, Cost(torch.full((4,), -torch.inf)))
    assert estimator.mean.item() == pytest.approx(sum(map(sum, several)) / 8)
    assert estimator.square.item() == pytest.approx(sum(c * c for s in several for c in s) / 8)


@pytest.mark.float64
def test_beside_the_model_s_control_variate_the_level_is_not_subtracted_again() -> None:
    """REBAR's part holds the level of the cost, so the gradient does not depend on it."""
    found = []
    for level in (0.0, -500.0):
        pyro.set_rng_seed(1)
        estimator, logits = RELAX(nn.Linear(2, 1), relaxed_model=True), torch.zeros(2)
        logits.requires_grad_()
        for _ in range(2):
            law = dist.Bernoulli(logits=logits)
            draw = replace(estimator.draw(Site("z", law), TorchNoise()), axis=-2)
            cost = level + torch.sin(3.0 * draw.value)
            owed = estimator.surrogate(draw, Cost(cost.detach(), total=cost.sum()))
            estimator.update(draw, Cost(cost.detach()))
        assert owed is not None
        found.append(torch.autograd.grad(owed.sum(), logits)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_are_all_but_certain(dtype: torch.dtype, tied: bool) -> None:
    rows = torch.tensor([[80.0, 0.0, -80.0], [0.0, 0.0, -math.inf]], dtype=dtype).repeat(40, 1)
    for law_of, cost in ((indices, of_index), (one_hot, of_one_hot)):
        found = gradients(
            RELAX(tied=tied).to(dtype), law_of, rows, lambda z, f=cost: f(z).to(dtype), TorchNoise()
        )
        assert found.isfinite().all() and (found[1::2, 2] == 0).all()
    logits = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], dtype=dtype)
    estimator = RELAX(tied=tied).to(dtype)
    assert gradients(estimator, bits, logits, squares(0.3), TorchNoise()).isfinite().all()


def test_state_comes_back() -> None:
    def program() -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("a", torch.zeros(3))))

    losses = [am.VariationalLoss(estimators={"z": RELAX(hidden=4)}) for _ in range(2)]
    for loss in losses:
        loss.warm_up(program, program, ())
    losses[0].learn(losses[0].estimate(program, program, (), {}))
    losses[1].load_state_dict(losses[0].state_dict())
    assert len(losses[0].state_dict()) == 8
    for name, value in losses[1].state_dict().items():
        assert torch.equal(value, losses[0].state_dict()[name])


def test_baseline_input_is_what_the_network_sees() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features.shape)
            return features.sum(-1, keepdim=True)

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(torch.full((4, 2), 0.5)).to_event(1))

    def guide() -> None:
        logits = pyro.param("a", torch.zeros(4, 2))
        with pyro.plate("data", 4):
            infer = {"baseline_input": torch.ones(4, 5)}
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer=infer)

    am.VariationalLoss(estimators={"z": RELAX(Spy())}).loss_and_grads(model, guide)
    assert seen[-1] == (2, 4, 5 + 2)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (dist.Poisson(2.0), "Poisson has neither.*am.ScoreFunction"),
        (dist.Geometric(0.3), "Geometric has neither.*am.ScoreFunction"),
        (dist.Delta(torch.zeros(())), "deterministic.*am.Pathwise"),
        (dist.Dirichlet(torch.ones(3)), "Dirichlet has no parameters.*am.Pathwise"),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), "Multivar.*am.Pathwise"),
    ],
)
def test_sites_it_cannot_serve(law: Distribution, words: str) -> None:
    with pytest.raises(am.EstimatorError, match=f"'z'.*RELAX.*{words}"):
        am.VariationalLoss(estimators={"z": RELAX()}).loss(
            lambda: pyro.sample("z", law), lambda: pyro.sample("z", law)
        )


def test_the_model_at_relaxed_values_needs_relaxed_values() -> None:
    recipe = RELAX(relaxed_model=True)
    assert "OneHotCategorical" in str(recipe.refusal(Site("z", indices(torch.zeros(3)))))
    assert recipe.copies(Site("z", bits(torch.zeros(3)))) == 3


@pytest.mark.parametrize("network", [3, lambda features: features])
def test_a_network_is_a_module(network: object) -> None:
    with pytest.raises(am.UsageError, match=r"torch\.nn\.Module"):
        RELAX(network)


def test_repr() -> None:
    assert repr(RELAX()) == "RELAX()"
    assert repr(RELAX(nn.Linear(3, 1), tied=True)) == "RELAX(Linear, tied=True)"
