"""Baselines: what they predict, how they learn, and that they never see their own draw."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.estimators.base import Cost, Draw, Site
from amortized.estimators.baselines import Scaled, features_of, mean_of_others, squared_score
from tests.laws.structures import EVERY
from tests.laws.test_subsets import gradient, same_when_captured
from tests.laws.test_unbiased import error, mixed_chain
from tests.reference import estimate_law

NORMAL = Site("z", dist.Normal(torch.zeros(4), torch.ones(4)))


def draw_of(site: Site = NORMAL, copies: int = 1, axis: int | None = None) -> Draw:
    return Draw(site, torch.zeros(4), copies, axis)


def test_constant() -> None:
    assert am.Constant(-90.0)(draw_of(), Cost(torch.zeros(4))).item() == -90.0


@pytest.mark.float64
def test_moving_average_follows_its_recursion() -> None:
    """Starts at zero; moves by the mean over the plate; predicts before it moves."""
    average = am.MovingAverage(decay=0.8)
    expected = 0.0
    for costs in ([1.0, 3.0], [10.0, -4.0, 6.0], [2.5]):
        cost = torch.tensor(costs)
        assert average(draw_of(), Cost(cost)).item() == pytest.approx(expected, rel=1e-12)
        average.update(cost)
        expected = 0.8 * expected + 0.2 * sum(costs) / len(costs)
    assert average.average.item() == pytest.approx(expected, rel=1e-12)
    assert average.average.shape == ()


def test_moving_average_hands_out_a_number_that_later_updates_leave_alone() -> None:
    average = am.MovingAverage(decay=0.0)
    before = average(draw_of(), Cost(torch.zeros(4)))
    average.update(torch.tensor([8.0]))
    assert before.item() == 0.0 and average.average.item() == 8.0


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_moving_average_survives_an_impossible_cost(bad: float) -> None:
    """One -inf would otherwise make every later gradient NaN."""
    average = am.MovingAverage()
    average.update(torch.tensor([2.0]))
    before = average.average.item()
    average.update(torch.tensor([bad, 1.0]))
    assert average.average.isfinite()
    average.update(torch.tensor([2.0]))
    assert average.average.item() > before


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_moving_average_wants_a_decay_below_one(decay: float) -> None:
    with pytest.raises(am.UsageError, match=r"MovingAverage\(decay=.*0 <= decay < 1"):
        am.MovingAverage(decay)


def test_moving_average_keeps_the_dtype_of_costs() -> None:
    predicted = am.MovingAverage()(draw_of(), Cost(torch.zeros(4, dtype=torch.float64)))
    assert predicted.dtype == torch.float64


@pytest.mark.parametrize("scale", [1, 100])
def test_moving_average_learns_per_datum(scale: int) -> None:
    """N / B is divided out: a tenfold data set does not change what is learned."""

    def model() -> None:
        with pyro.plate("data", 3 * scale, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 1.0 - 1e-7)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

    def guide() -> None:
        with pyro.plate("data", 3 * scale, subsample=torch.arange(3)):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 1.0 - 1e-7)))

    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.MovingAverage(decay=0.5))})
    loss.learn(loss.estimate(model, guide, (), {}))
    (state,) = loss.state_dict().values()
    expected = dist.Normal(1.0, 1.0).log_prob(torch.tensor(0.0)) / 2
    assert state.item() == pytest.approx(expected.item(), rel=1e-4)


def test_mean_of_others() -> None:
    cost = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    expected = [[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]
    assert mean_of_others(cost, -1).tolist() == expected
    assert mean_of_others(cost.T, -2).T.tolist() == expected


def test_mean_of_others_where_the_dim_is_missing_is_the_entry_itself() -> None:
    cost = torch.tensor([1.0, 2.0])
    assert mean_of_others(cost, -2) is cost


def test_leave_one_out_is_over_the_copies_if_there_are_any() -> None:
    costs = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    cost = Cost(costs, peers=torch.full((2, 2), 99.0))
    assert am.LeaveOneOut()(draw_of(copies=2, axis=-2), cost).tolist() == [[3.0, 7.0], [1.0, 5.0]]


def test_leave_one_out_is_over_particles_otherwise() -> None:
    peers = torch.tensor([2.0, 4.0])
    predicted = am.LeaveOneOut()(draw_of(), Cost(torch.tensor([4.0, 2.0]), peers))
    assert predicted.tolist() == peers.tolist()


def test_leave_one_out_of_a_constant_cost_has_no_gradient_draw_by_draw() -> None:
    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))

    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.LeaveOneOut(), num_samples=5)})
    for _ in range(3):
        loss.loss_and_grads(model, guide)
    assert pyro.get_param_store()["p"].grad.item() == pytest.approx(0.0, abs=1e-6)


def test_leave_one_out_of_a_single_draw_is_refused() -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    alone = {"z": am.ScoreFunction(am.LeaveOneOut(), num_samples=1)}
    with pytest.raises(am.EstimatorError) as error:
        am.VariationalLoss(estimators=alone).loss(program, program)
    text = str(error.value)
    assert "site 'z'" in text and "at least two draws" in text
    assert "num_samples=2" in text and "num_particles=2" in text
    am.VariationalLoss(am.ELBO(num_particles=2), alone).loss(program, program)


LAWS: dict[str, tuple[dist.Distribution, tuple[int, ...]]] = {
    "normal": (dist.Normal(torch.zeros(4), torch.ones(4)), (4, 2)),
    "one parameter broadcast": (dist.Normal(torch.zeros(4), 1.0), (4, 2)),
    "expanded": (dist.Normal(torch.zeros(4), 1.0).expand([3, 4]), (3, 4, 2)),
    "event": (dist.Normal(torch.zeros(4, 5), 1.0).to_event(1), (4, 10)),
    "masked": (dist.Normal(torch.zeros(4), 1.0).mask(False), (4, 2)),
    "categorical": (dist.Categorical(logits=torch.zeros(4, 3)), (4, 3)),
    "one-hot": (dist.OneHotCategorical(logits=torch.zeros(4, 3)), (4, 3)),
    "multivariate": (dist.MultivariateNormal(torch.zeros(4, 2), torch.eye(2)), (4, 6)),
    "binomial": (dist.Binomial(5, torch.full((4,), 0.5)), (4, 2)),
    "no parameters of its own": (
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(4, 2)), dist.Normal(torch.zeros(4, 2), 1.0)
        ),
        (4, 1),
    ),
}


@pytest.mark.parametrize("name", sorted(LAWS))
def test_features_are_one_row_a_datum(name: str) -> None:
    law, shape = LAWS[name]
    features = features_of(law)
    assert features.shape == shape and features.isfinite().all()


def test_features_are_the_parameters_without_their_graph() -> None:
    loc = torch.tensor([1.0, 2.0], requires_grad=True)
    features = features_of(dist.Normal(loc, 3.0))
    assert features.tolist() == [[1.0, 3.0], [2.0, 3.0]] and not features.requires_grad


def linear(value: float = 0.0) -> nn.Linear:
    """A network whose prediction is a known number at first."""
    network = nn.Linear(2, 1)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, value)
    return network


def test_features_are_finite_where_a_category_is_impossible() -> None:
    """Two infinities of a first layer may have opposite signs, and their sum is NaN."""
    logits = torch.tensor([[0.5, -torch.inf, -torch.inf, 0.5]])
    features = features_of(dist.Categorical(logits=logits))
    assert features.tolist()[0][1:3] == [-100.0, -100.0]
    for estimator in (am.ScoreFunction(am.NeuralBaseline()), am.RELAX()):

        def program() -> None:
            with pyro.plate("data", 1):
                pyro.sample("z", dist.Categorical(logits=pyro.param("a", logits.clone())))

        pyro.clear_param_store()
        loss = am.VariationalLoss(estimators=estimator)
        loss.loss_and_grads(program, program)
        leaves = [pyro.param("a").unconstrained(), *loss.parameters()]
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_the_network_learns_by_squared_error_and_the_site_by_the_score() -> None:
    """The two share one surrogate and no gradient."""
    logit = torch.tensor([0.4, -1.0], requires_grad=True)
    value, cost = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 7.0])
    site = Site("z", dist.Bernoulli(logits=logit), inputs=torch.eye(2))
    estimator = am.ScoreFunction(am.NeuralBaseline(linear(1.0)))
    owed = estimator.surrogate(Draw(site, value), Cost(cost))
    assert owed.tolist() == [0.0, 0.0]
    bias = next(p for n, p in estimator.named_parameters() if n.endswith("bias"))
    by_logit, by_bias = torch.autograd.grad(owed.sum(), [logit, bias])
    torch.testing.assert_close(by_logit, ((value - torch.sigmoid(logit)) * (cost - 1)).detach())
    # the objective is maximized: -(f - b)^2 has slope 2 (f - b) in b
    assert by_bias.item() == pytest.approx(2 * (2.0 + 6.0))


def test_the_input_named_at_the_site_is_the_network_s_input() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        """Keeps what it is shown."""

        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            return features.sum(-1, keepdim=True)

    weight = torch.ones(2, 3, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.3)))

    def guide() -> None:
        with pyro.plate("data", 2):
            law = dist.Bernoulli(pyro.param("p", torch.full((2,), 0.5)))
            pyro.sample("z", law, infer={"baseline_input": 2 * weight})

    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.NeuralBaseline(Spy()))})
    loss.loss_and_grads(model, guide)
    assert seen and all(s.tolist() == [[2.0] * 3] * 2 and not s.requires_grad for s in seen)
    assert weight.grad is None


def test_the_network_takes_the_program_s_dtype() -> None:
    """The default dtype is float32 here, and the program's is float64."""
    half = torch.tensor(0.5, dtype=torch.float64)

    def program() -> None:
        pyro.sample("z", dist.Bernoulli(half))

    loss = am.VariationalLoss(estimators="neural_baseline")
    assert math.isfinite(loss.loss_and_grads(program, program))
    (own,) = loss.estimators.by_site.values()
    assert {p.dtype for p in own.parameters()} == {torch.float64}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.parameters())


SCALED = {
    "best constant": Scaled,
    "average": lambda: Scaled(am.MovingAverage()),
    "leave one out": lambda: Scaled(am.LeaveOneOut()),
    "network": lambda: Scaled(am.NeuralBaseline(hidden=4)),
}


@pytest.mark.float64
@pytest.mark.parametrize("name", sorted(SCALED))
@pytest.mark.parametrize(
    "structure", ["global_site", "plate", "masked", "scaled", "chosen_minibatch", "event_dims"]
)
def test_a_scaled_baseline_is_unbiased(structure: str, name: str) -> None:
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(SCALED[name]())})
    assert error(loss, pair) < 1e-10
    (own,) = loss.estimators.by_site.values()
    assert (own.baseline.means != 0).all()


@pytest.mark.float64
@pytest.mark.parametrize("other", [am.Enumerate, am.ScoreFunction])
@pytest.mark.parametrize("place", ["z", "y"])
def test_a_scaled_baseline_beside_others(place: str, other) -> None:
    pair = mixed_chain("plain", "plain")
    estimators = dict.fromkeys(("z", "y"), other()) | {place: am.ScoreFunction(Scaled())}
    assert error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


class ScaledByNow(Scaled):
    """A mutant: the present draw decides its own coefficient."""

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        score = squared_score(draw)
        return 0.5 * cost.copies * score / score.mean()


@pytest.mark.float64
def test_a_coefficient_of_the_present_draw_is_biased() -> None:
    """The law would notice."""
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(ScaledByNow())})
    assert error(loss, EVERY["plate"]("bernoulli")) > 1e-3


@pytest.mark.float64
def test_the_best_constant_of_one_bit_leaves_no_variance() -> None:
    """It is (1 - p) f_1 + p f_0, the fixed point of the two means."""
    logit = torch.tensor(-0.7, requires_grad=True)
    p = torch.sigmoid(logit.detach())
    site, baseline = Site("z", dist.Bernoulli(logits=logit)), Scaled(decay=0.0)
    low, high = 3.0, -5.0
    draw = Draw(site, (torch.arange(1000) < 1000 * p).to(p))
    share = draw.value.mean()
    baseline.observe(draw, Cost(torch.where(draw.value == 1, high, low)))
    ones, zeros = share * (1 - p) ** 2, (1 - share) * p**2
    expected = (ones * high + zeros * low) / (ones + zeros)
    predicted = baseline(Draw(site, torch.tensor(1.0)), Cost(torch.tensor(high)))
    assert predicted.item() == pytest.approx(expected.item(), rel=1e-12)
    assert expected.item() == pytest.approx(((1 - p) * high + p * low).item(), abs=0.05)

    exact = Scaled()
    exact.means.copy_(torch.tensor([(1 - p) * high + p * low, 1.0]))
    found = []
    for value, cost in ((1.0, high), (0.0, low)):
        draw = Draw(site, torch.tensor(value))
        owed = am.ScoreFunction(exact).surrogate(draw, Cost(torch.tensor(cost)))
        found.append(torch.autograd.grad(owed, logit)[0].item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0] == pytest.approx((p * (1 - p) * (high - low)).item(), rel=1e-12)


@pytest.mark.float64
def test_a_scaled_baseline_varies_less_than_the_baseline_alone() -> None:
    """With the means at their expectations: a far too large constant is scaled back."""
    pair = EVERY["plate"]("bernoulli")

    def variance(make) -> float:
        gradient(make, pair)
        law = estimate_law(lambda tree: gradient(make, pair, tree))
        return law.variance["a"].item()

    def scaled() -> am.ScoreFunction:
        made = Scaled(am.Constant(-40.0))
        # E[f b s^2] / E[b^2 s^2] with f about -2.5
        made.means.copy_(torch.tensor([100.0, 1600.0]))
        return am.ScoreFunction(made)

    assert variance(scaled) < 0.01 * variance(lambda: am.ScoreFunction(am.Constant(-40.0)))


SCORES: dict[str, tuple[dist.Distribution, Tensor, Tensor]] = {
    "bits": (
        dist.Bernoulli(torch.tensor([[0.2, 0.7]])).to_event(1),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0.8**2 + 0.7**2]),
    ),
    "normal": (
        dist.Normal(torch.tensor([0.5]), 2.0),
        torch.tensor([[1.5], [0.5]]),
        torch.tensor([[0.25**2 + (0.125 - 0.5) ** 2], [0.25]]),
    ),
    "one-hot": (
        dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])),
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor(0.2**2 + 0.7**2 + 0.5**2),
    ),
    "count": (dist.Binomial(4, torch.tensor(0.25)), torch.tensor(3.0), torch.tensor(4.0)),
    "poisson": (dist.Poisson(torch.tensor(2.0)), torch.tensor(3.0), torch.tensor(0.25)),
    "masked": (
        dist.Poisson(torch.tensor([2.0, 2.0])).mask(torch.tensor([True, False])),
        torch.tensor([3.0, 3.0]),
        torch.tensor([0.25, 0.25]),
    ),
}


@pytest.mark.parametrize("name", sorted(SCORES))
def test_squared_scores_by_hand(name: str) -> None:
    """In logits, or in loc and scale: one number a draw."""
    law, value, expected = SCORES[name]
    torch.testing.assert_close(squared_score(Draw(Site("z", law), value)), expected)


def test_a_law_that_cannot_be_made_again_is_refused() -> None:
    flow = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()])

    def program() -> None:
        pyro.sample("width", flow)

    loss = am.VariationalLoss(estimators={"width": am.ScoreFunction(Scaled())})
    with pytest.raises(am.EstimatorError, match=r"site 'width'.*Transformed.*ScoreFunction\(\)"):
        loss.loss(program, program)


def test_scaled_leave_one_out_needs_two_draws_as_well() -> None:
    assert am.ScoreFunction(Scaled(am.LeaveOneOut())).copies(NORMAL) == 2
    assert am.ScoreFunction(Scaled()).copies(NORMAL) == 1
    alone = am.ScoreFunction(Scaled(am.LeaveOneOut()), num_samples=1)
    assert "at least two draws" in (alone.refusal(NORMAL) or "")


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_scaling_survives_an_impossible_cost(bad: float) -> None:
    baseline, draw = Scaled(am.Constant(2.0)), Draw(NORMAL, torch.zeros(4))
    baseline.observe(draw, Cost(torch.full((4,), 3.0)))
    before = baseline.means[0] / baseline.means[1]
    baseline.observe(draw, Cost(torch.tensor([bad, 1.0, 1.0, 1.0])))
    assert baseline.means[0] / baseline.means[1] == pytest.approx(before.item())
    assert before.item() == pytest.approx(1.5)


def test_the_means_and_the_inner_baseline_are_saved() -> None:
    first, second = (Scaled(am.MovingAverage()) for _ in range(2))
    draw = Draw(NORMAL, torch.ones(4))
    for cost in (3.0, -1.0):
        first.observe(draw, Cost(torch.full((4,), cost)))
    second.load_state_dict(first.state_dict())
    cost = Cost(torch.zeros(4))
    assert second(draw, cost).item() == first(draw, cost).item() != 0.0


@pytest.mark.parametrize(("baseline", "decay"), [(3.0, 0.9), (None, 1.0)])
def test_bad_calls_of_scaled(baseline, decay: float) -> None:
    with pytest.raises(am.UsageError, match=r"Scaled\((baseline=3|decay=1)"):
        Scaled(baseline, decay)


@pytest.mark.float64
@pytest.mark.parametrize("name", ["best constant", "average"])
def test_scaled_captured(name: str) -> None:
    same_when_captured(EVERY["plate"]("bernoulli"), lambda: am.ScoreFunction(SCALED[name]()))
