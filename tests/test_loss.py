"""The loss as a drop-in: its four faces agree, its state moves in training, its networks learn."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am

X = torch.tensor([0.5, -1.0, 2.0, 0.3])


class Encoder(nn.Module):
    """A guide with one weight a datum's feature."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("data", len(x)):
            logits = self.net(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("c", dist.Bernoulli(logits=logits))
            pyro.sample("z", dist.Normal(logits, 0.5))


class Decoder(nn.Module):
    """A model with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.full((len(x),), 0.4)))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.weight * z + 2.0 * c, 1.0), obs=x)


def pair() -> tuple[Decoder, Encoder]:
    pyro.set_rng_seed(0)
    return Decoder(), Encoder()


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
    for module in modules:
        module.zero_grad()
    return found


RECIPES: dict[str, Any] = {
    "default": None,
    "moving average": {"c": "moving_average"},
    "copies": {"c": am.ScoreFunction(am.LeaveOneOut(), num_samples=3)},
    "enumerated": {"c": "enumerate"},
    "network": {"c": "neural_baseline"},
}


@pytest.mark.parametrize("kl", ["sample", "analytic"])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_four_faces_of_one_number(name: str, particles: int, kl: Any) -> None:
    """`loss`, `loss_and_grads`, `differentiable_loss`, and the module, from one seed."""
    model, guide = pair()
    loss = am.VariationalLoss(am.ELBO(particles, kl), RECIPES[name]).eval()
    loss.warm_up(model, guide, X)
    module = loss(model, guide)
    values, slopes = [], []

    def record(value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            value.backward()
            value = value.item()
        values.append(value)
        slopes.append(gradients(model, guide))

    calls: list[Callable[[], float | Tensor]] = [
        lambda: loss.loss_and_grads(model, guide, X),
        lambda: loss.differentiable_loss(model, guide, X),
        lambda: module(X),
        lambda: loss.estimate(model, guide, (X,), {}).loss,
        lambda: loss.differentiable_loss(model, guide, x=X),
    ]
    for call in calls:
        pyro.set_rng_seed(3)
        record(call())
    pyro.set_rng_seed(3)
    assert loss.loss(model, guide, X) == pytest.approx(values[0])
    assert values == pytest.approx([values[0]] * len(calls))
    assert len(slopes[0]) == 3 and all(g.abs().sum() > 0 for g in slopes[0])
    for other in slopes[1:]:
        torch.testing.assert_close(other, slopes[0])


def test_loss_leaves_no_gradient_and_returns_a_float() -> None:
    model, guide = pair()
    value = am.VariationalLoss().loss(model, guide, X)
    assert isinstance(value, float) and gradients(model, guide) == []


def test_gradients_add_up_until_they_are_cleared() -> None:
    model, guide = pair()
    loss = am.VariationalLoss(estimators={"c": "enumerate", "z": am.ScoreFunction(am.Constant())})
    for _ in range(2):
        pyro.set_rng_seed(3)
        loss.loss_and_grads(model, guide, X)
    twice = gradients(model, guide)
    pyro.set_rng_seed(3)
    loss.loss_and_grads(model, guide, X)
    once = gradients(model, guide)
    torch.testing.assert_close(twice, [2 * g for g in once])


def average_after(act: Callable[[am.VariationalLoss, Decoder, Encoder], Any]) -> float:
    """The moving average of c after an action, having been 0."""
    model, guide = pair()
    loss = am.VariationalLoss(estimators={"c": "moving_average"})
    loss.warm_up(model, guide, X)
    act(loss, model, guide)
    return loss.state_dict()["estimators.by_site.site:c.baseline.average"].item()


MOVES: dict[str, Callable[[am.VariationalLoss, Decoder, Encoder], Any]] = {
    "loss_and_grads": lambda loss, m, g: loss.loss_and_grads(m, g, X),
    "differentiable_loss": lambda loss, m, g: loss.differentiable_loss(m, g, X),
    "module": lambda loss, m, g: loss(m, g)(X),
}
STAYS: dict[str, Callable[[am.VariationalLoss, Decoder, Encoder], Any]] = {
    "warm_up": lambda loss, m, g: None,
    "loss": lambda loss, m, g: loss.loss(m, g, X),
    "no_grad": lambda loss, m, g: torch.no_grad()(loss.differentiable_loss)(m, g, X),
    "eval": lambda loss, m, g: loss.eval().loss_and_grads(m, g, X),
    "module in eval": lambda loss, m, g: loss(m, g).eval()(X),
    "describe": lambda loss, m, g: loss.describe(m, g, X),
    "log_weights": lambda loss, m, g: loss.log_weights(m, g, (X,), {}, num_particles=2),
}


@pytest.mark.parametrize("name", sorted(MOVES))
def test_state_moves_in_training(name: str) -> None:
    assert average_after(MOVES[name]) != 0.0


@pytest.mark.parametrize("name", sorted(STAYS))
def test_and_only_in_training(name: str) -> None:
    assert average_after(STAYS[name]) == 0.0


def fit_error(loss: am.VariationalLoss, model: nn.Module, guide: nn.Module) -> float:
    """How far the network's predictions are from the costs: its own squared error."""
    shown: list[float] = []
    with torch.no_grad():
        for seed in range(20):
            pyro.set_rng_seed(seed)
            run = loss.estimate(model, guide, (X,), {}).run
            (latent,) = (x for x in run.latents if x.name == "c")
            law = latent.draw.site.law
            baseline = loss.get_submodule("estimators.by_site.site:c.baseline")
            features = torch.stack([law.logits], -1)
            predicted = baseline.network(features).squeeze(-1)
            terms = {t.name + t.role: t.value for t in run.terms}
            cost = terms["xlikelihood"] + terms["cprior"] + terms["cguide"]
            shown.append(((cost - predicted) ** 2).mean().item())
    return sum(shown) / len(shown)


def learned(train: Callable[[am.VariationalLoss, Any, Any], Any]) -> tuple[float, float]:
    """The error before and after training the network on programs that stand still."""
    model, guide = (program.eval().requires_grad_(False) for program in pair())
    loss = am.VariationalLoss(estimators={"c": am.ScoreFunction(am.NeuralBaseline(hidden=8))})
    loss.warm_up(model, guide, X)
    # without a running level, which would take most of the costs: the network is to learn it
    loss.get_buffer("estimators.by_site.site:c.baseline.rate").zero_()
    before = fit_error(loss, model, guide)
    train(loss, model, guide)
    return before, fit_error(loss, model, guide)


def test_the_network_learns_under_pyro_svi() -> None:
    def train(loss: am.VariationalLoss, model: Decoder, guide: Encoder) -> None:
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
        for _ in range(150):
            svi.step(X)

    before, after = learned(train)
    assert after < 0.6 * before


def test_the_network_learns_under_a_torch_optimizer() -> None:
    def train(loss: am.VariationalLoss, model: Decoder, guide: Encoder) -> None:
        module = loss(model, guide)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
        for _ in range(150):
            optimizer.zero_grad()
            module(X).backward()
            optimizer.step()

    before, after = learned(train)
    assert after < 0.6 * before


def test_the_module_lists_the_network_only_after_warming_up() -> None:
    model, guide = pair()
    loss = am.VariationalLoss(estimators={"c": "neural_baseline"})
    module = loss(model, guide)
    cold = {name for name, _ in module.named_parameters()}
    loss.warm_up(model, guide, X)
    made = {name for name, _ in module.named_parameters()} - cold
    assert len(made) == 4 and all(name.startswith("elbo.estimators.") for name in made)


def test_a_network_made_too_late_is_warned_of() -> None:
    model, guide = pair()
    loss = am.VariationalLoss(estimators={"c": "neural_baseline"})
    with pytest.warns(UserWarning, match=r"parameters of their own.*loss\.warm_up\(model, guide"):
        loss(model, guide)(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(model, guide)(X)


@pytest.mark.parametrize("estimator", ["moving_average", "enumerate"])
def test_estimators_without_parameters_come_without_a_warning(estimator: str) -> None:
    model, guide = pair()
    am.VariationalLoss(estimators={"c": estimator})(model, guide)(X)


def test_two_losses_with_networks_train_side_by_side_under_pyro() -> None:
    """Pyro's store is global: under one name the second network would never be trained."""
    losses = [am.VariationalLoss(estimators={"c": "neural_baseline"}) for _ in range(3)]
    model, guide = pair()
    states = []
    for loss in losses:
        loss.warm_up(model, guide, X)
        states.append(copy.deepcopy(loss.state_dict()))
    for loss in losses:
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss).step(X)
    for loss, before in zip(losses, states, strict=True):
        assert all(not torch.equal(p, before[name]) for name, p in loss.named_parameters())
    ours = [p for loss in losses for p in loss.parameters()]
    stored = {id(p) for name, p in pyro.get_param_store().items() if "amortized" in name}
    assert {id(p) for p in ours} == stored


def test_a_loss_without_networks_leaves_the_store_alone() -> None:
    model, guide = pair()
    am.VariationalLoss(estimators={"c": "moving_average"}).loss_and_grads(model, guide, X)
    assert not any("amortized" in name for name in pyro.get_param_store())


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_loss_of_its_own(clone: Any) -> None:
    model, guide = pair()
    loss = am.VariationalLoss(am.ELBO(2), {"c": am.ScoreFunction(am.MovingAverage())})
    loss.loss_and_grads(model, guide, X)
    other = clone(loss)
    assert repr(other) == repr(loss)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    assert before and all(torch.equal(other.state_dict()[k], v) for k, v in before.items())
    values = []
    for each in (loss, other):
        pyro.set_rng_seed(3)
        values.append(each.loss(model, guide, X))
    assert values[0] == values[1]
    other.loss_and_grads(model, guide, X)
    assert all(torch.equal(loss.state_dict()[k], v) for k, v in before.items())


def test_a_non_finite_loss_is_reported_with_its_site() -> None:
    def trap(x: Tensor) -> None:
        pyro.factor("trap", torch.tensor(-float("inf")))

    with pytest.warns(UserWarning, match=r"loss is inf.*site 'trap' of the model.*learning rate"):
        value = am.VariationalLoss().loss_and_grads(trap, lambda x: None, X)
    assert value == float("inf")


def test_warming_up_costs_no_randomness_and_is_idempotent() -> None:
    model, guide = pair()
    loss = am.VariationalLoss(estimators={"c": "neural_baseline"})
    pyro.set_rng_seed(3)
    expected = torch.rand(3)
    for _ in range(2):
        pyro.set_rng_seed(3)
        loss.warm_up(model, guide, X)
        assert torch.equal(torch.rand(3), expected)
    assert gradients(model, guide) == []


def test_a_warmed_loss_draws_what_a_cold_one_draws() -> None:
    values = []
    for warm in (False, True):
        model, guide = pair()
        loss = am.VariationalLoss(estimators={"c": "moving_average"})
        if warm:
            loss.warm_up(model, guide, X)
        pyro.set_rng_seed(3)
        values.append(loss.loss_and_grads(model, guide, X))
    assert values[0] == values[1]


@pytest.mark.parametrize("batch", [X, (X,), [X], {"x": X}])
def test_our_own_methods_take_one_batch_object(batch: Any) -> None:
    model, guide = pair()
    loss = am.VariationalLoss()
    loss.warm_up(model, guide, batch)
    assert [row.site for row in loss.describe(model, guide, batch).rows] == ["c", "z"]


def test_repr_is_one_line() -> None:
    loss = am.VariationalLoss(am.ELBO(2), {"z": "pathwise"})
    text = "VariationalLoss(ELBO(num_particles=2, kl='sample'), {'z': Pathwise()})"
    assert repr(loss) == text


@pytest.mark.float64
@pytest.mark.parametrize("size", [1, 2])
def test_training_finds_the_posterior_of_a_bit(size: int) -> None:
    """Two hundred steps of the default estimator on a bit with a known posterior."""

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((size,), 0.5)))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=torch.full((size,), 1.7))

    def guide() -> None:
        logit = pyro.param("logit", torch.zeros(size))
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), am.VariationalLoss())
    for _ in range(300):
        svi.step()
    # the log-odds are 2 (x - 1)
    assert pyro.get_param_store()["logit"].tolist() == pytest.approx([1.4] * size, abs=0.4)


def test_a_key_may_name_a_site_that_this_batch_observes() -> None:
    """Semi-supervised programs: labels are observed in some batches and latent in others."""

    def model(y: Tensor | None) -> None:
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), obs=y)

    def guide(y: Tensor | None) -> None:
        if y is None:
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.6)))

    loss = am.VariationalLoss(estimators={"y": am.Enumerate()})
    labelled = loss.loss(model, guide, torch.tensor(1.0))
    assert labelled == pytest.approx(-math.log(0.3))
    unlabelled = loss.loss(model, guide, None)
    assert unlabelled == pytest.approx(0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7))
    with pytest.raises(am.EstimatorError, match=r"\['why'\] matches no latent site"):
        am.VariationalLoss(estimators={"why": "enumerate"}).loss(model, guide, torch.tensor(1.0))


def test_rows_are_asked_for_under_a_sum_of_terms_only() -> None:
    """Elsewhere they would be left out without a word."""
    with pytest.raises(am.UsageError, match=r"layout='rows' under IWAE.*leave layout out"):
        am.VariationalLoss(am.IWAE(num_particles=3), "disarm", layout="rows")
    am.VariationalLoss(am.IWAE(num_particles=3), "disarm", layout="axes")
