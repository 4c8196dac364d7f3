import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from amortized.errors import NonFiniteError
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.step import Averager, Stepper, Terms
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate
from tests.fit import tiny

NO_SIZE = DataPlate()


def stepper(model, guide, loss: VariationalLoss | None = None, lr: float = 0.1) -> Stepper:
    optimizer = GroupedOptimizer(torch.optim.Adam, lr)
    return Stepper(model, guide, VariationalLoss() if loss is None else loss, optimizer)


def by_hand(x: torch.Tensor, m: float, size: int) -> float:
    """Loss per datum of `global_model` at m: size / B on the data, the prior once."""
    likelihood = tiny.normal_log_prob(x, m).sum() * size / len(x)
    prior = tiny.normal_log_prob(torch.tensor(m), 0.0)
    return -(likelihood + prior).item() / size


@pytest.mark.parametrize("rows", [slice(0, 2), slice(4, 5)], ids=["minibatch", "short last"])
def test_global_latents_count_once(rows: slice) -> None:
    x = tiny.data(5)[rows]
    step = stepper(tiny.global_model, tiny.point_guide(0.5))
    terms = Terms.of(step.step(x, DataPlate(None, 5)))
    assert terms.per_datum
    assert terms.values["loss"].item() == pytest.approx(by_hand(x, 0.5, 5), rel=1e-5)
    assert terms.values["elbo"].item() == pytest.approx(-by_hand(x, 0.5, 5), rel=1e-5)


def test_a_declared_size_is_believed() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample=x[:2]):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[:2])

    x = tiny.data(5)
    terms = Terms.of(stepper(model, tiny.point_guide(0.5)).step(x, NO_SIZE))
    assert terms.values["loss"].item() == pytest.approx(by_hand(x[:2], 0.5, 5), rel=1e-5)


def test_without_a_data_plate_numbers_are_totals() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    x = tiny.data(5)
    terms = Terms.of(stepper(model, tiny.point_guide(0.5)).step(x, DataPlate(None, 5)))
    assert not terms.per_datum
    assert terms.values["loss"].item() == pytest.approx(5 * by_hand(x, 0.5, 5), rel=1e-5)


def test_the_optimizer_sees_the_loss_per_datum() -> None:
    gradients = []
    for size in (5, 500):
        step = stepper(tiny.global_model, tiny.point_guide(0.5), lr=0.0)
        step.step(tiny.data(5), DataPlate(None, size))
        gradients.append(step.parameters.groups()["guide"][0].grad)
    expected = -(tiny.data(5).mean() - 0.5)
    assert gradients[1].item() == pytest.approx(expected.item() + 0.5 / 500, rel=1e-4)
    assert gradients[0].item() == pytest.approx(expected.item() + 0.5 / 5, rel=1e-4)


def test_warm_up_leaves_the_training_stream_alone() -> None:
    step = stepper(tiny.ModuleModel(), tiny.ModuleGuide())
    before = torch.get_rng_state()
    step.warm_up(tiny.data(4))
    assert torch.equal(before, torch.get_rng_state())
    assert step.optimizer.torch_optimizer is not None


def test_a_parameter_of_a_later_branch_joins_the_optimizer_at_once() -> None:
    def guide(x):
        loc = pyro.param("early", torch.zeros(()))
        if len(x) == 3:
            loc = loc + pyro.param("late", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    step = stepper(tiny.local_model, guide)
    step.step(tiny.data(4), NO_SIZE)
    assert len(step.parameters.groups()["guide"]) == 1
    step.step(tiny.data(3), NO_SIZE)
    leaves = step.parameters.groups()["guide"]
    assert len(leaves) == 2 and all(leaf.item() != 0.0 for leaf in leaves)
    (group,) = step.optimizer.built.param_groups
    assert group["name"] == "guide" and len(group["params"]) == 2


def test_a_neural_baseline_is_trained_in_its_own_group() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                logits = self.net(x.unsqueeze(-1)).squeeze(-1)
                pyro.sample("c", dist.Bernoulli(logits=logits))

    step = stepper(model, Guide(), VariationalLoss(estimators={"c": "neural_baseline"}))
    step.warm_up(tiny.data(4))
    before = [p.detach().clone() for p in step.loss.parameters()]
    for _ in range(3):
        step.step(tiny.data(4), NO_SIZE)
    after = list(step.loss.parameters())
    assert before and any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert step.optimizer.torch_optimizer is not None
    assert step.optimizer.torch_optimizer.param_groups[-1]["name"] == "estimators"


def test_a_non_finite_loss_moves_nothing_and_names_step_and_site() -> None:
    step = stepper(tiny.local_model, tiny.param_guide)
    step.step(tiny.data(4), NO_SIZE)
    before = step.parameters.snapshot()
    with pytest.raises(NonFiniteError, match=r"step 2: .*nan.*site 'x'"):
        step.step(torch.tensor([1.0, math.nan]), NO_SIZE)
    assert all(torch.equal(step.parameters.snapshot()[name], v) for name, v in before.items())


def test_terms_move_nothing_and_restore_the_mode() -> None:
    model = tiny.ModuleModel()
    step = stepper(model, tiny.ModuleGuide())
    step.warm_up(tiny.data(4))
    before = step.parameters.snapshot()
    terms = step.terms(tiny.data(4), NO_SIZE)
    assert not terms.values["loss"].requires_grad and model.training and step.loss.training
    assert all(torch.equal(step.parameters.snapshot()[name], v) for name, v in before.items())
    assert set(terms.values) == {"loss", "elbo", "reconstruction", "kl", "kl/z"}
    elbo = terms.values["reconstruction"] - terms.values["kl"]
    assert terms.values["elbo"].item() == pytest.approx(elbo.item(), abs=1e-5)


@pytest.mark.parametrize("validate", [False, True])
def test_pyro_checks_the_first_step_and_later_ones_on_demand(validate: bool) -> None:
    seen: list[bool] = []

    def model(x):
        seen.append(torch.distributions.Distribution._validate_args)
        tiny.local_model(x)

    optimizer = GroupedOptimizer(torch.optim.Adam, 0.1)
    step = Stepper(model, tiny.param_guide, VariationalLoss(), optimizer, validate=validate)
    step.step(tiny.data(4), NO_SIZE)
    assert all(seen)
    seen.clear()
    step.step(tiny.data(4), NO_SIZE)
    assert set(seen) == {validate} and torch.distributions.Distribution._validate_args


def test_averages_are_weighted_by_data_and_absent_sites_count_as_zero() -> None:
    averager = Averager()
    averager.add(Terms({"loss": torch.tensor(1.0)}, True), 3)
    averager.add(Terms({"loss": torch.tensor(5.0), "kl/z": torch.tensor(2.0)}, True), 1)
    assert averager.means() == {"loss": 2.0, "kl/z": 0.5} and averager.per_datum
    averager.add(Terms({"loss": torch.tensor(2.0)}, False), 4)
    assert not averager.per_datum
