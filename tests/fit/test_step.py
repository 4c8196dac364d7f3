import copy
import math
import weakref
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import amortized as am
from amortized.errors import NonFiniteError
from amortized.estimate import Estimate
from amortized.estimators.baselines import MovingAverage
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.step import Stepper
from amortized.fit.terms import Terms
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.harness import Stream

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
    terms = step.accumulate(x, DataPlate(None, 5))
    assert terms.per_datum
    assert terms.values["loss"].item() == pytest.approx(by_hand(x, 0.5, 5), rel=1e-5)
    assert terms.values["elbo"].item() == pytest.approx(-by_hand(x, 0.5, 5), rel=1e-5)


@pytest.mark.parametrize("compile", ["off", "graph", "inductor"])
def test_the_loss_of_a_step_is_that_among_its_terms(compile: Any) -> None:
    """To the last bit, though a step alone leaves the other terms out."""

    def taken(alone: bool) -> list[Any]:
        seed(0)
        optimizer = GroupedOptimizer(torch.optim.Adam, 0.1)
        step = Stepper(tiny.ModuleModel(), tiny.ModuleGuide(), VariationalLoss(), optimizer)
        step.compile, data = compile, DataPlate(None, 7)
        losses: list[Any] = []
        for _ in range(8):
            if alone:
                losses.append(step.step(tiny.data(5), data))
            else:
                losses.append(step.accumulate(tiny.data(5), data).values["loss"].item())
                step.apply()
        return losses + [leaf.tolist() for leaf in step.optimizer.leaves()]

    assert taken(True) == taken(False)


def test_a_step_alone_computes_no_terms_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the programs left behind is gone when the optimizer moves."""
    step, alive = stepper(tiny.ModuleModel(), tiny.ModuleGuide()), []
    step.warm_up(tiny.data(4))
    known, found = step.loss.estimate, []

    def estimate(*args: Any, **kwargs: Any) -> Any:
        made = known(*args, **kwargs)
        found.append(weakref.ref(made))
        return made

    monkeypatch.setattr(step.loss, "estimate", estimate)
    monkeypatch.setattr(step.optimizer, "step", lambda: alive.append(found[-1]() is not None))
    monkeypatch.setattr(Estimate, "kl", property(lambda estimate: pytest.fail("not asked for")))
    step.step(tiny.data(4), NO_SIZE)
    assert alive == [False]


def test_a_declared_size_is_believed() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample=x[:2]):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[:2])

    x = tiny.data(5)
    loss = stepper(model, tiny.point_guide(0.5)).step(x, NO_SIZE)
    assert loss == pytest.approx(by_hand(x[:2], 0.5, 5), rel=1e-5)


def test_without_a_data_plate_numbers_are_totals() -> None:
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    x = tiny.data(5)
    terms = stepper(model, tiny.point_guide(0.5)).accumulate(x, DataPlate(None, 5))
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
    terms = Terms.of(step.evaluated(tiny.data(4), NO_SIZE))
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


# Groups of batches


def after(*groups: list[torch.Tensor], optimizer=torch.optim.Adam) -> Stepper:
    """A pair without noise after one step for each group of batches."""
    grouped = GroupedOptimizer(optimizer, 0.1)
    guide = tiny.point_guide(0.5)
    step = Stepper(tiny.global_model, guide, VariationalLoss(), grouped)
    for group in groups:
        for batch in group:
            step.accumulate(batch, DataPlate("data", 40))
            assert step.pending
        step.apply()
        assert not step.pending
    return step


def place(step: Stepper) -> float:
    return step.parameters.tensors()["store.m_loc"].item()


@pytest.mark.float64
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_group_is_one_batch_of_the_joint_size(optimizer) -> None:
    x = tiny.data(40)
    batches = list(x.split(8))
    apart = after(batches[:3], batches[3:], optimizer=optimizer)
    joint = after([x[:24]], [x[24:]], optimizer=optimizer)
    assert place(apart) == pytest.approx(place(joint), rel=1e-13)
    assert apart.steps == joint.steps == 2
    assert place(apart) != pytest.approx(place(after(batches, optimizer=optimizer)), rel=1e-3)


def grouped(data, groups: int, **options) -> tuple[float, int, list[float]]:
    """Parameter, steps and gradient norms of a training without noise."""
    svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=0.1)
    options = {"progress": False, "check": False, "max_epochs": 2, **options}
    history = svi.fit(data, accumulate_grad_batches=groups, **options)
    return svi.params()["m_loc"].item(), svi._stepper.steps, history["grad_norm"]


@pytest.mark.float64
def test_an_epoch_of_groups_is_one_of_larger_batches() -> None:
    """Also with a group that is short at the end: 5 batches in groups of 2."""
    x = tiny.data(40)
    small, large = DataLoader(x, 8), DataLoader(x, 16)
    (place, steps, norms), (expected, _, larger) = grouped(small, 2), grouped(large, 1)
    assert steps == 6 and place == pytest.approx(expected, rel=1e-13)
    assert norms == pytest.approx(larger, rel=1e-13)
    (place, steps, norms), (expected, _, larger) = grouped(small, 9), grouped(DataLoader(x, 40), 1)
    assert steps == 2 and place == pytest.approx(expected, rel=1e-13)
    assert norms == pytest.approx(larger, rel=1e-12)
    assert grouped(small, 2, max_steps=4)[1] == 4


@pytest.mark.float64
@pytest.mark.parametrize("groups", [1, 2, 5, 9])
def test_the_length_of_the_data_need_not_be_known(groups: int) -> None:
    x = tiny.data(40)
    plate = {"data_plate": am.DataPlate("data", 40)}
    found = []
    for data in (DataLoader(x, 8), DataLoader(Stream(x), 8)):
        svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=0.1, **plate)
        options = {"progress": False, "check": False, "max_epochs": 2}
        svi.fit(data, accumulate_grad_batches=groups, **options)
        found.append((svi.params()["m_loc"].item(), svi._stepper.steps))
    assert found[0] == found[1] and found[0][1] == 2 * -(-5 // groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_estimators_learn_once_a_batch(monkeypatch, groups: int) -> None:
    """From training alone: not from validation, and not from a step of several batches."""
    seen: list[float] = []
    real = MovingAverage.update

    def update(self, cost) -> None:
        seen.append(cost.mean().item())
        real(self, cost)

    monkeypatch.setattr(MovingAverage, "update", update)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=pyro.param("logit", torch.zeros(())) * x))

    svi = am.SVI(model, guide, VariationalLoss(estimators="moving_average"))
    options = {"progress": False, "check": False, "max_epochs": 1, "batch_size": 8}
    svi.fit(tiny.data(40), tiny.data(16), accumulate_grad_batches=groups, **options)
    average = 0.0
    for cost in seen:
        average = 0.9 * average + 0.1 * cost
    (found,) = (b for n, b in svi._stepper.parameters.tensors().items() if n.endswith("average"))
    assert len(seen) == 5 and found.item() == pytest.approx(average, rel=1e-5)


# Clipping


class Two(nn.Module):
    """Two parameters whose gradients differ much in size: x | a, b ~ N(30 a + b, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            loc = 30 * self.a.sum() + self.b + shift
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def moved(clip: float | None) -> tuple[torch.Tensor, float]:
    """How far one step with rate 1 moves everything, and the norm that is reported."""
    model = Two()
    svi = am.SVI(model, lambda x: None, lr=1.0, optimizer=torch.optim.SGD)
    options = {"progress": False, "check": False, "max_steps": 1, "batch_size": 40}
    history = svi.fit(tiny.data(40) + 5, gradient_clip_val=clip, **options)
    tensors = svi._stepper.parameters.tensors()
    assert set(tensors) == {"model.a", "model.b", "store.shift"}
    return torch.cat([t.detach().reshape(-1) for t in tensors.values()]), history["grad_norm"][0]


@pytest.mark.float64
def test_clipping_is_of_the_norm_of_the_whole_gradient() -> None:
    """Over modules and store, elements and groups; the direction stays."""
    whole, norm = moved(None)
    assert norm == pytest.approx(whole.norm().item(), rel=1e-12) and norm > 100
    for clip in (0.5, 20.0):
        short, reported = moved(clip)
        assert reported == pytest.approx(norm, rel=1e-12), "the norm is that before clipping"
        assert short.norm().item() == pytest.approx(clip, rel=1e-6)
        assert torch.allclose(short / short.norm(), whole / whole.norm(), rtol=1e-9)
    assert torch.allclose(moved(1e9)[0], whole, rtol=1e-12)


@pytest.mark.float64
def test_the_mean_of_a_group_is_clipped_and_not_its_parts() -> None:
    x = tiny.data(40)
    apart, joint = after(), after()
    for batch in x.split(8):
        apart.accumulate(batch, DataPlate("data", 40))
    joint.accumulate(x, DataPlate("data", 40))
    norms = [step.apply(0.01) for step in (apart, joint)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12) and norms[0] > 0.01
    assert place(apart) == pytest.approx(place(joint), rel=1e-12)


# The state


def test_a_state_brings_everything_back() -> None:
    step = stepper(tiny.ModuleModel(), tiny.ModuleGuide())
    for _ in range(3):
        step.step(tiny.data(4), NO_SIZE)
    state = copy.deepcopy(step.state_dict())
    ahead = [step.step(tiny.data(4), NO_SIZE) for _ in range(2) if not seed(1)]
    step.accumulate(tiny.data(4), NO_SIZE)
    step.load_state_dict(state)
    assert step.steps == 3 and not step.pending
    assert [step.step(tiny.data(4), NO_SIZE) for _ in range(2) if not seed(1)] == ahead


def seed(number: int) -> None:
    pyro.set_rng_seed(number)


def test_a_second_batch_is_not_checked_by_pyro_again() -> None:
    """Also before the first step is taken: a NaN is then a NaN, and no mistake of the program."""
    step = stepper(tiny.local_model, tiny.param_guide)
    step.accumulate(tiny.data(4), NO_SIZE)
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        step.accumulate(torch.full((4,), math.nan), NO_SIZE)
    assert step.pending


def test_a_distribution_that_cannot_draw_from_nan_is_named() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = pyro.param("logit", torch.zeros(())) * x
            pyro.sample("c", dist.Bernoulli(logits=logits))

    step = stepper(model, guide)
    step.step(tiny.data(4), NO_SIZE)
    bad = torch.tensor([0.0, math.nan, 1.0, math.nan])
    message = r"step 2: site 'c' of the guide: a parameter of its Bernoulli is nan in 2 of 4"
    with pytest.raises(NonFiniteError, match=message):
        step.step(bad, NO_SIZE)


class Checkpointed(nn.Module):
    """Bits whose logits a checkpointed network gives."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.decoder = nn.Linear(3, 6)
        self.reentrant = reentrant

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=torch.zeros(3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(b)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        x = x.clone().requires_grad_()  # a reentrant checkpoint has no gradient without
        if self.reentrant is None:
            logits = self.encoder(x)
        else:
            logits = checkpoint(self.encoder, x, use_reentrant=self.reentrant)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))


@pytest.mark.parametrize("estimator", ["disarm", "rebar", "relax", "muprop", "relaxed"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_in_a_guide_have_the_same_gradient(estimator: str, reentrant: bool) -> None:
    def gradients(kind: bool | None) -> list[torch.Tensor]:
        torch.manual_seed(1)
        pair = Checkpointed(kind)
        loss = am.VariationalLoss(estimators={"b": estimator})
        svi = am.SVI(pair.model, pair.guide, loss, compile="off")
        pyro.set_rng_seed(5)
        svi.step((torch.rand(5, 6) < 0.5).float())
        return [p.grad for p in pair.parameters() if p.grad is not None]

    ours, plain = gradients(reentrant), gradients(None)
    assert len(ours) == len(plain) == 6
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, plain, strict=True))
