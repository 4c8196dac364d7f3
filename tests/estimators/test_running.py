"""Running moments: known after one step, held by rate 0; and states of older networks."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized as am
from amortized.estimators.base import Cost, Draw, Site
from amortized.estimators.choice import NAMES, estimator_of
from amortized.estimators.running import Running, applied, complete, network_or_default

Law = type[dist.Bernoulli] | type[dist.OneHotCategorical]


class Level(Running):
    def __init__(self) -> None:
        super().__init__()
        self.make_running()


@pytest.mark.float64
def test_all_costs_count_alike_at_first_and_later_the_newer_ones_more() -> None:
    level, costs = Level(), torch.linspace(-300.0, -100.0, 30)
    for number, cost in enumerate(costs, start=1):
        level.follow(cost)
        if number <= 10:
            assert level.mean.item() == pytest.approx(costs[:number].mean().item())
            expected = costs[:number].var(unbiased=False).clamp(min=1e-6).sqrt()
            assert level.spread().item() == pytest.approx(expected.item())
    expected = costs[:10].mean()
    for cost in costs[10:]:
        expected = 0.9 * expected + 0.1 * cost
    assert level.mean.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_an_impossible_cost_leaves_no_trace(bad: float) -> None:
    """The square of 1e30 is infinite in float32."""
    level = Level()
    level.follow(torch.tensor([2.0, 4.0]))
    before = {name: value.clone() for name, value in level.state_dict().items()}
    level.follow(torch.tensor([bad, 1.0]))
    assert all(torch.equal(before[n], value) for n, value in level.state_dict().items())


def test_rate_zero_holds() -> None:
    level = Level()
    level.rate.zero_()
    level.follow(torch.tensor([5.0]))
    assert (level.mean.item(), level.square.item(), level.rate.item()) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("theirs", [torch.float32, torch.float64])
def test_a_network_is_asked_in_its_own_dtype(own: torch.dtype, theirs: torch.dtype) -> None:
    network = nn.Linear(3, 1).to(own)
    found = applied(network, torch.ones(5, 3, dtype=theirs))
    assert found.dtype == theirs and found.shape == (5,)


@pytest.mark.parametrize("made", [am.NeuralBaseline, am.RELAX])
@pytest.mark.parametrize("hidden", [0, -3, 2.0, True, "64"])
def test_a_hidden_layer_has_a_width(made: Any, hidden: Any) -> None:
    with pytest.raises(am.UsageError, match=rf"{made.__name__}\(hidden=.*expected an int, at lea"):
        made(hidden=hidden)


def test_a_network_that_was_given_is_taken_even_if_it_is_empty() -> None:
    """An empty Sequential is false in Python's eyes."""
    empty = nn.Sequential()
    assert network_or_default("RELAX", empty, 8) is empty


class Pair(nn.Module):
    """One bit and what is seen of it."""

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law = law
        self.prior, self.free = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 3))

    def model(self) -> None:
        self._draw(self.prior, True)

    def guide(self) -> None:
        self._draw(self.free, False)

    def _draw(self, logits: torch.Tensor, observe: bool) -> None:
        with pyro.plate("data", 2):
            law = self.law(logits=logits)
            z = pyro.sample("z", law if law.event_shape else law.to_event(1))
            if observe:
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.ones(2).to(logits))


def served() -> list[tuple[str, Law]]:
    laws = (dist.Bernoulli, dist.OneHotCategorical)
    sites = {law: Site("z", law(logits=torch.zeros(2, 3))) for law in laws}
    return [(n, k) for n in NAMES for k, site in sites.items() if not estimator_of(n).refusal(site)]


@pytest.mark.parametrize(("name", "law"), served())
def test_a_program_may_be_moved_to_another_dtype_after_a_step(name: str, law: Law) -> None:
    pair = Pair(law)
    loss = am.VariationalLoss(estimators=name)
    loss.loss_and_grads(pair.model, pair.guide)
    for move in (pair.double, loss.double, loss.float):
        move()
        for parameter in pair.parameters():
            parameter.grad = None
        loss.loss_and_grads(pair.model, pair.guide)
        for parameter in pair.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()


def predicted(estimator: am.ScoreFunction) -> float:
    site = Site("z", dist.Bernoulli(torch.tensor([0.5])), inputs=torch.ones(1, 2))
    baseline = estimator.baseline
    assert baseline is not None
    return baseline(Draw(site, torch.zeros(1)), Cost(torch.zeros(1))).item()


def test_a_baseline_of_an_older_state_says_what_it_said() -> None:
    """Its network had learned the level; an offset would count it twice."""
    network = nn.Linear(2, 1)
    made = am.ScoreFunction(am.NeuralBaseline(network))
    start = "loss.estimators.by_site.site:z."
    old = {f"{start}{name}": value for name, value in made.state_dict().items() if "net" in name}
    assert len(old) == 2
    complete(old)
    made.load_state_dict({name.removeprefix(start): value for name, value in old.items()})
    said = predicted(made)
    made.update(Draw(Site("z", dist.Bernoulli(0.5)), torch.zeros(1)), Cost(torch.ones(1) * 70))
    assert predicted(made) == said
    assert said == pytest.approx(network(torch.ones(2)).item())


def test_older_moments_of_relax_go_on_as_they_did() -> None:
    old = {f"by_site.site:z.{n}": torch.tensor(2.0) for n in ("log_temperature", "mean", "square")}
    complete(old)
    assert old.pop("by_site.site:z.rate").item() == pytest.approx(0.1)
    assert len(old) == 3


def test_nothing_is_added_to_a_state_that_is_complete_or_of_others() -> None:
    network = am.ScoreFunction(am.NeuralBaseline(nn.Linear(2, 1))).state_dict()
    mine = {f"by_site.site:z.{name}": value for name, value in network.items()}
    other = {"guide.network.weight": torch.ones(1), "by_site.site:z.log_temperature": torch.ones(1)}
    for state in (mine, other):
        before = dict(state)
        complete(state)
        assert state == before


def test_an_older_state_of_a_loss_is_taken() -> None:
    pair = Pair(dist.Bernoulli)
    losses = [am.VariationalLoss(estimators="neural_baseline") for _ in range(2)]
    for loss in losses:
        loss.warm_up(pair.model, pair.guide, ())
    old = losses[0].state_dict()
    for key in [key for key in old if key.endswith(("mean", "square", "rate"))]:
        del old[key]
    losses[1].load_state_dict(old)
    assert losses[1].state_dict()["estimators.by_site.site:z.baseline.rate"].item() == 0.0
