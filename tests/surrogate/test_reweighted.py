"""Samples as data: gradients of model and guide against sums over all tuples, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.objectives.base import Objective
from tests.laws.structures import DATA, weight
from tests.reference import FixedNoise, estimate_law
from tests.surrogate.pieces import START, guide, model, normals_by_hand

pytestmark = pytest.mark.float64

THETA, PHI = ("b", "c", "w"), ("a", "e", "f")
STATES = list(product([0.0, 1.0], repeat=2))


class Table:
    """log q and log p of the four states of one data point, attached to parameters by hand."""

    def __init__(self, x: Tensor) -> None:
        self.parameters = {n: torch.tensor(v, requires_grad=True) for n, v in START.items()}
        p = self.parameters
        log_q, log_p = [], []
        for z, y in STATES:
            q = dist.Bernoulli(logits=p["a"] * x).log_prob(torch.tensor(z))
            log_q.append(q + dist.Bernoulli(logits=p["e"] * z + p["f"]).log_prob(torch.tensor(y)))
            joint = dist.Bernoulli(logits=p["c"]).log_prob(torch.tensor(y))
            joint = joint + dist.Bernoulli(logits=p["b"] * y).log_prob(torch.tensor(z))
            log_p.append(joint + dist.Normal(z * p["w"] + y * (1 - z), 1.0).log_prob(x))
        self.log_q, self.log_p = torch.stack(log_q), torch.stack(log_p)

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        leaves = list(self.parameters.values())
        found = torch.autograd.grad(
            value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return dict(zip(self.parameters, found, strict=True))

    def over_tuples(self, count: int, of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean of a gradient over all tuples of particles, which have constant masses."""
        total = torch.zeros(())
        for chosen in product(range(4), repeat=count):
            rows = list(chosen)
            mass = self.log_q[rows].sum().exp().detach()
            total = total + mass * of(self.log_p[rows], self.log_q[rows])
        return self.gradients(total)


def summed(parts: Sequence[dict[str, Tensor]], names: Sequence[str]) -> list[Tensor]:
    return [torch.stack([part[name] for part in parts]).sum() for name in sorted(names)]


def leaves(names: Sequence[str]) -> list[Tensor]:
    return [pyro.get_param_store()[name].unconstrained() for name in sorted(names)]


def mean(objective: Objective, size: int, names: Sequence[str]) -> list[Tensor]:
    """Of the gradients of minus the loss, over the estimate's own randomness."""
    loss = am.VariationalLoss(objective)
    loss.warm_up(model, guide, (size,))
    loss.eval()

    def run(tree: object) -> list[Tensor]:
        value = -loss.estimate(model, guide, (size,), {}, noise=tree).loss  # type: ignore[arg-type]
        return list(
            torch.autograd.grad(value, leaves(names), allow_unused=True, materialize_grads=True)
        )

    return estimate_law(run, noise=FixedNoise(), limit=10**6).mean


def close(found: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float = 1e-10) -> bool:
    pairs = zip(found, truth, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) < tolerance


def normalized(log_p: Tensor, log_q: Tensor, power: float = 1.0) -> Tensor:
    return (power * (log_p - log_q)).detach().softmax(0)


@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 1), (2, 2)])
def test_wake_theta_is_the_gradient_of_iwae(count: int, size: int) -> None:
    found = mean(am.ReweightedWakeSleep(count), size, THETA)
    iwae = mean(am.IWAE(count), size, THETA) if size == 1 else None
    tables = [Table(x) for x in DATA[:size]]
    truth = [t.over_tuples(count, lambda p, q: (normalized(p, q) * p).sum(0)) for t in tables]
    assert close(found, summed(truth, THETA))
    assert iwae is None or close(found, iwae)


@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 1), (2, 2)])
def test_wake_phi_weighs_scores_of_one_data_point(count: int, size: int) -> None:
    found = mean(am.ReweightedWakeSleep(count), size, PHI)
    tables = [Table(x) for x in DATA[:size]]
    truth = [t.over_tuples(count, lambda p, q: (normalized(p, q) * q).sum(0)) for t in tables]
    assert close(found, summed(truth, PHI))


def test_wake_phi_tends_to_the_forward_divergence_like_one_over_k() -> None:
    table = Table(DATA[0])
    posterior = table.log_p.detach().softmax(0)
    limit = summed([table.gradients((posterior * table.log_q).sum())], PHI)
    distances = []
    for count in (2, 4, 6):
        found = mean(am.ReweightedWakeSleep(count), 1, PHI) if count < 6 else None
        if found is None:
            by_hand = table.over_tuples(6, lambda p, q: (normalized(p, q) * q).sum(0))
            found = summed([by_hand], PHI)
        gap = torch.stack([one - other for one, other in zip(found, limit, strict=True)])
        distances.append(float(gap.norm()) * count)
    assert distances[0] == pytest.approx(distances[2], rel=0.4)
    assert distances[1] == pytest.approx(distances[2], rel=0.15)


def test_data_points_do_not_share_weights() -> None:
    """A mutant that normalizes over the minibatch gives another gradient."""
    pairs = [Table(x) for x in DATA[:2]]
    found = mean(am.ReweightedWakeSleep(2), 2, PHI)
    shared: dict[str, Tensor] | None = None
    for first in product(range(4), repeat=2):
        for second in product(range(4), repeat=2):
            rows = list(first), list(second)
            mass = torch.stack([t.log_q[r].sum() for t, r in zip(pairs, rows, strict=True)])
            log_w = torch.cat([(t.log_p - t.log_q)[r] for t, r in zip(pairs, rows, strict=True)])
            weights = 2 * log_w.detach().softmax(0)
            for table, part in zip(pairs, weights.split(2), strict=True):
                row = rows[pairs.index(table)]
                value = mass.sum().exp().detach() * (part * table.log_q[row]).sum()
                grads = table.gradients(value)
                shared = grads if shared is None else {n: shared[n] + grads[n] for n in grads}
    assert shared is not None
    assert not close(found, summed([shared], PHI), 1e-3)


def test_one_interval_is_the_elbo() -> None:
    """Exactly, in theta and phi, whatever the number of particles."""
    for count in (2, 3):
        found = mean(am.TVO(count, partition=1), 1, list(START))
        elbo = mean(am.ELBO(), 1, list(START))
        assert close(found, elbo)


def test_one_interval_is_leave_one_out_draw_by_draw_in_phi() -> None:
    """One site, since leave-one-out charges each of several sites its own downstream cost."""

    def p() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3)))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=DATA[0])

    def q() -> None:
        pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4)))

    found = []
    for loss in (
        am.VariationalLoss(am.TVO(3, partition=1)),
        am.VariationalLoss(am.ELBO(3), {"z": am.ScoreFunction(am.LeaveOneOut())}),
    ):
        loss.warm_up(p, q, ())
        pyro.set_rng_seed(4)
        value = loss.estimate(p, q, (), {}).loss
        found.append([value.detach(), *torch.autograd.grad(value, leaves(["a", "b"]))])
    assert close(*found, 1e-12)


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_the_covariance_gradient_of_every_point(side: str) -> None:
    points = [0.0, 0.3, 0.8, 1.0]
    found = mean(am.TVO(2, partition=points, side=side), 1, list(START))  # type: ignore[arg-type]

    def by_hand(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_w, total = log_p - log_q, torch.zeros(())
        for left, right in pairwise(points):
            b = left if side == "lower" else right
            weights = normalized(log_p, log_q, b)
            held = log_w.detach()
            deviation = (held - (weights * held).sum(0)) * (2.0 if b == 0 else 1.0)
            tempered = (1 - b) * log_q + b * log_p
            total = total + (right - left) * (weights * (log_w + deviation * tempered)).sum(0)
        return total

    table = Table(DATA[0])
    truth = summed([table.over_tuples(2, by_hand)], list(START))
    assert close(found, truth)


def test_bounds_close_around_the_evidence_as_points_grow() -> None:
    """Of the empirical measure of the particles, whose evidence is the mean weight, exactly."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(50, generator=generator) - 1.0
    log_q = torch.randn(50, generator=generator)
    evidence = (log_p - log_q).exp().mean().log()
    gaps = []
    for count in (1, 8, 64, 512):
        points = [i / count for i in range(count + 1)]
        lower, upper = (
            am.TVO(50, partition=points, side=side).bounds(log_p, log_q)[""]  # type: ignore[arg-type]
            for side in ("lower", "upper")
        )
        assert lower < evidence < upper
        gaps.append(float(upper - lower))
    assert gaps[1:] == pytest.approx([gap / 8 for gap in gaps[:-1]], rel=1e-9)


@pytest.mark.parametrize("objective", [am.ReweightedWakeSleep(3), am.TVO(3)])
def test_subsampling_stands_outside_the_weights(objective: Objective) -> None:
    def scaled(program: Callable[..., None]) -> Callable[[], None]:
        return lambda: poutine.scale(program, 5.0)(2)

    values = []
    for p, q, args in ((scaled(model), scaled(guide), ()), (model, guide, (2,))):
        loss = am.VariationalLoss(objective)
        loss.warm_up(p, q, args)
        pyro.set_rng_seed(2)
        estimate = loss.estimate(p, q, args, {})
        values.append([estimate.loss, *torch.autograd.grad(estimate.loss, leaves(list(START)))])
    for big, small in zip(*values, strict=True):
        assert torch.allclose(big, 5 * small, rtol=1e-12)


def test_parts_are_reported_and_add_up() -> None:
    loss = am.VariationalLoss(am.ReweightedWakeSleep(3))
    loss.warm_up(model, guide, (2,))
    estimate = loss.estimate(model, guide, (2,), {})
    assert sorted(estimate.parts) == ["guide", "model"]
    assert torch.allclose(estimate.loss, estimate.parts["guide"] + estimate.parts["model"])


def test_a_global_latent_is_weighed_over_the_whole_and_not_over_minibatches() -> None:
    def p(size: int = 2) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample_size=2):
            pyro.sample("x", dist.Normal(g * weight("w", 0.7), 1.0), obs=DATA)

    def q(size: int = 2) -> None:
        pyro.sample("g", dist.Normal(weight("a", 0.4), 0.8))

    loss = am.VariationalLoss(am.ReweightedWakeSleep(4))
    assert loss.estimate(p, q, (), {}).loss.shape == ()
    with pytest.raises(am.ProgramError, match=r"site 'x'.*plate 'data' \(2 of 10\).*biased"):
        am.VariationalLoss(am.ReweightedWakeSleep(4)).estimate(p, q, (10,), {})


def test_reparameterized_values_are_constants_too() -> None:
    """Against both losses written out, with constant weights, on the same draws."""

    def written(log_p: Tensor, log_q: Tensor) -> Tensor:
        return -(normalized(log_p, log_q) * (log_p + log_q)).sum()

    _, *gradients = normals_by_hand(am.ReweightedWakeSleep(4), written, constant=True)
    for one, other in gradients:
        assert torch.allclose(one, other, rtol=1e-11)


def test_the_guides_gradient_vanishes_on_average_where_it_is_the_posterior() -> None:
    """Wake-phi: equal weights, and a score of mean zero."""
    pyro.clear_param_store()

    def p() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3)))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=torch.tensor(1.3))

    posterior = float(torch.tensor(-0.3) + 2.0 * 1.3 - 2.0)

    def q() -> None:
        pyro.sample("z", dist.Bernoulli(logits=weight("a", posterior)))

    loss = am.VariationalLoss(am.ReweightedWakeSleep(3))
    loss.warm_up(p, q, ())

    def run(tree: object) -> list[Tensor]:
        value = loss.estimate(p, q, (), {}, noise=tree).loss  # type: ignore[arg-type]
        return list(torch.autograd.grad(value, leaves(["a"])))

    assert estimate_law(run, noise=FixedNoise()).mean[0].abs() < 1e-12


@pytest.mark.parametrize("objective", [am.ReweightedWakeSleep(), am.TVO(), am.ForwardKL()])
def test_naming_an_estimator_is_an_error_that_says_why(objective: Objective) -> None:
    with pytest.raises(am.EstimatorError, match=r"takes samples as data.*leave estimators= out"):
        am.VariationalLoss(objective, {"z": "pathwise"})

    def q() -> None:
        pyro.sample("z", dist.Bernoulli(0.3), infer={"estimator": "score_function"})

    def p() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    if objective.num_particles > 1:
        with pytest.raises(am.EstimatorError, match=r"site 'z'.*takes samples as data"):
            am.VariationalLoss(objective).warm_up(p, q, ())


def test_a_weight_of_the_kl_is_refused() -> None:
    loss = am.VariationalLoss(am.TVO(2))
    with pytest.raises(am.UsageError, match=r"kl_weight=0.5.*no KL"):
        loss.estimate(model, guide, (2,), {}, kl_weight=0.5)
