"""Antithetic pairs by hand: exact variances, what is averaged out, extreme logits, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import final

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.antithetic import ARM, DisARM, bit_logits, stick_logits
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, TorchNoise
from tests.laws.cells import Given, Middles
from tests.reference import Law, OutcomeTree, estimate_law

pytestmark = pytest.mark.float64

BOTH = [ARM, DisARM]
CostOf = Callable[[Tensor], Tensor]


def constant(uniform: float) -> Given:
    """A noise source whose uniforms are all the same."""
    return Given(torch.tensor(uniform, dtype=torch.float64))


def drawn(estimator: Estimator, law: dist.Distribution, noise: Noise) -> Draw:
    """A draw with the axis of its copies where the caller would place it."""
    draw = estimator.draw(Site("z", law), noise)
    return replace(draw, axis=-1 - len(law.batch_shape))


def gradient(
    estimator: Estimator, law: dist.Distribution, leaf: Tensor, cost: CostOf, noise: Noise
) -> tuple[Draw, Tensor]:
    """One draw and its gradient of the mean of the cost."""
    draw = drawn(estimator, law, noise)
    owed = estimator.surrogate(draw, Cost(cost(draw.value)))
    assert owed is not None and not owed.any()
    return draw, torch.autograd.grad(owed.sum(), leaf)[0]


# --- exact variances -----------------------------------------------------------------------------

# target, probability, gradient, variances of leave-one-out with two samples, ARM, DisARM
TABLE = [
    (0.45, 0.5, 2.500e-2, 6.250000e-4, 2.083333e-4, 0.0),
    (0.45, 0.2, 1.600e-2, 5.440000e-4, 3.973333e-4, 3.840000e-4),
    (0.45, 0.05, 4.750e-3, 2.149375e-4, 2.032708e-4, 2.030625e-4),
    (0.49, 0.5, 5.000e-3, 2.500000e-5, 8.333333e-6, 0.0),
    (0.49, 0.2, 3.200e-3, 2.176000e-5, 1.589333e-5, 1.536000e-5),
    (0.49, 0.05, 9.500e-4, 8.597500e-6, 8.130833e-6, 8.122500e-6),
    (0.499, 0.5, 5.000e-4, 2.500000e-7, 8.333333e-8, 0.0),
    (0.499, 0.2, 3.200e-4, 2.176000e-7, 1.589333e-7, 1.536000e-7),
    (0.499, 0.05, 9.500e-5, 8.597500e-8, 8.130833e-8, 8.122500e-8),
]


def toy(estimator: Estimator, target: float, p: float) -> Law:
    """Mean and variance of the gradient of E (b - t)^2 in the logit, through the whole loss."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit").detach()))
        pyro.factor("square", (z - target) ** 2)

    def guide() -> None:
        logit = pyro.param("logit", torch.tensor(math.log(p) - math.log1p(-p)))
        pyro.sample("z", dist.Bernoulli(logits=logit))

    pyro.clear_param_store()
    loss = am.VariationalLoss(estimators={"z": estimator})
    loss.warm_up(model, guide, ())

    def run(tree: OutcomeTree) -> Tensor:
        bound = -loss.estimate(model, guide, (), {}, noise=tree).loss
        return torch.autograd.grad(bound, pyro.param("logit"))[0]

    return estimate_law(run)


@pytest.mark.parametrize(("target", "p", "slope", "loo", "arm", "disarm"), TABLE)
def test_exact_variances_of_one_bit(
    target: float, p: float, slope: float, loo: float, arm: float, disarm: float
) -> None:
    difference, m = 1 - 2 * target, min(p, 1 - p)
    closed = {
        "arm": difference**2 * (2 / 3) * (1 / 8 - (0.5 - m) ** 3) - slope**2,
        "disarm": m * (1 - m) ** 2 * difference**2 * (0.5 - m),
        "loo": 0.5 * p * (1 - p) * difference**2 - slope**2,
    }
    laws = {
        "arm": (toy(ARM(), target, p), arm),
        "disarm": (toy(DisARM(), target, p), disarm),
        "loo": (toy(am.ScoreFunction(am.LeaveOneOut()), target, p), loo),
    }
    for name, (law, published) in laws.items():
        assert law.mean.item() == pytest.approx(slope, abs=1e-15)
        assert law.variance.item() == pytest.approx(closed[name], abs=1e-16)
        assert law.variance.item() == pytest.approx(published, rel=1e-6, abs=1e-16)


@pytest.mark.parametrize("p", [0.5, 0.3, 0.05, 0.9, 0.999])
def test_of_one_bit_disarm_varies_no_more_than_arm_and_leave_one_out(p: float) -> None:
    """The distance to leave-one-out is D^2 m^2 (1 - m) / 2."""
    m, difference = min(p, 1 - p), 1 - 2 * 0.2
    disarm = toy(DisARM(), 0.2, p).variance.item()
    loo = toy(am.ScoreFunction(am.LeaveOneOut()), 0.2, p).variance.item()
    assert loo - disarm == pytest.approx(0.5 * difference**2 * m**2 * (1 - m), abs=1e-15)
    assert loo > disarm
    assert toy(ARM(), 0.2, p).variance.item() > disarm


# --- what is averaged out ------------------------------------------------------------------------

LOGITS = [0.7, -1.3, 0.2]


def joint(value: Tensor) -> Tensor:
    """A cost of three bits that is no sum over them."""
    a, b, c = value.unbind(-1)
    return 3 * a * b - 2 * b * c + a + 0.7 * a * b * c - c


def by_outcome(
    estimator: Estimator, law_of: Callable[[Tensor], dist.Distribution], cost: CostOf
) -> dict[tuple[float, ...], tuple[float, Tensor]]:
    """For each pair of values its probability and the mean gradient of the estimator given it."""
    found: dict[tuple[float, ...], tuple[float, Tensor]] = {}
    tree = OutcomeTree()
    for path in tree.paths():
        leaf = torch.tensor(LOGITS, requires_grad=True)
        draw, slope = gradient(estimator, law_of(leaf), leaf, cost, Middles(tree))
        key = tuple(draw.value.flatten().tolist())
        mass, total = found.get(key, (0.0, torch.zeros(3)))
        found[key] = mass + path.probability, total + path.probability * slope
    return {key: (mass, total / mass) for key, (mass, total) in found.items()}


def test_disarm_is_the_expectation_of_arm_given_both_draws() -> None:
    """For every outcome of three bits and their twins under a joint cost."""

    def law(leaf: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=leaf).to_event(1)

    arm, disarm = by_outcome(ARM(), law, joint), by_outcome(DisARM(), law, joint)
    assert arm.keys() == disarm.keys()
    assert len(arm) == 27
    for key, (mass, slope) in arm.items():
        assert disarm[key][0] == pytest.approx(mass, abs=1e-15)
        torch.testing.assert_close(disarm[key][1], slope, atol=1e-13, rtol=0)


class Plain(DisARM):
    """Stick-breaking with the coefficient of every bit, seen or not."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        """Bits as `DisARM` draws them, each with its own coefficient."""
        logits = stick_logits(site.law)
        seen = Replayed(noise)
        draw = super().draw(site, seen)
        level = torch.logit(seen.last)
        signs = (level < logits).double() - (-level < logits).double()
        kappa = (signs * torch.sigmoid(logits.abs())).detach()
        score = (kappa * (logits - logits.detach())).sum(-1)
        return replace(draw, memory={"score": score})


@final
class Replayed:
    """A noise source that remembers its last uniforms."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.last = noise, torch.zeros(())

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        """Those of the source."""
        self.last = self.noise.uniform(shape, like, site=site)
        return self.last


def test_unseen_bits_of_categories_are_averaged_out() -> None:
    """Given both categories, of two elements under a joint cost, the mean of the plain version."""

    def law(leaf: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=torch.stack([leaf, -leaf])).to_event(1)

    def cost(value: Tensor) -> Tensor:
        return torch.tensor([[3.0, -1.0, 0.5], [0.2, 2.0, -4.0], [1.0, 1.5, 0.0]])[
            value[..., 0], value[..., 1]
        ]

    plain, ours = by_outcome(Plain(), law, cost), by_outcome(DisARM(), law, cost)
    assert plain.keys() == ours.keys()
    for key, (mass, slope) in plain.items():
        assert ours[key][0] == pytest.approx(mass, abs=1e-15)
        torch.testing.assert_close(ours[key][1], slope, atol=1e-12, rtol=0)


LAWS: dict[str, Callable[[Tensor], dist.Distribution]] = {
    "bits": lambda leaf: dist.Bernoulli(logits=leaf).to_event(1),
    "bits by probabilities": lambda leaf: dist.Bernoulli(torch.sigmoid(leaf)).to_event(1),
    "categories": lambda leaf: dist.Categorical(logits=leaf),
    "categories by probabilities": lambda leaf: dist.Categorical(torch.sigmoid(leaf)),
    "one-hot": lambda leaf: dist.OneHotCategorical(logits=leaf),
}


@pytest.mark.parametrize("name", sorted(LAWS))
def test_both_copies_have_the_law_of_the_site(name: str) -> None:
    law = LAWS[name](torch.tensor(LOGITS))
    values = torch.stack([v for v in am.Enumerate().draw(Site("z", law), TorchNoise()).value])

    def run(tree: OutcomeTree) -> Tensor:
        value = DisARM().draw(Site("z", law), tree).value
        equal = value.unsqueeze(1) == values
        return (equal.all(-1) if equal.dim() > 2 else equal).to(torch.float64)

    mean = estimate_law(run).mean
    torch.testing.assert_close(mean[0], law.log_prob(values).exp(), atol=1e-14, rtol=0)
    torch.testing.assert_close(mean[1], mean[0], atol=1e-14, rtol=0)


# --- invariants ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(ARM, "bits"), *((DisARM, name) for name in sorted(LAWS))],
)
def test_a_constant_added_to_the_cost_changes_no_draw(
    estimator: type[Estimator], name: str
) -> None:
    for seed in range(20):
        slopes = []
        for constant in (0.0, 1024.0):
            pyro.set_rng_seed(seed)
            leaf = torch.tensor(LOGITS, requires_grad=True)
            law = LAWS[name](leaf)

            def cost(value: Tensor, constant: float = constant) -> Tensor:
                total = value.reshape(2, -1).double() @ torch.arange(1.0, 1 + value[0].numel())
                return constant + total

            slopes.append(gradient(estimator(), law, leaf, cost, TorchNoise())[1])
        torch.testing.assert_close(slopes[0], slopes[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(ARM, "bits"), *((DisARM, name) for name in sorted(LAWS))],
)
def test_zero_at_the_exact_posterior_in_every_draw(estimator: type[Estimator], name: str) -> None:
    """Prior and guide agree, nothing is observed: every value costs the same."""

    def model() -> None:
        pyro.sample("z", LAWS[name](torch.tensor(LOGITS)))

    def guide() -> None:
        pyro.sample("z", LAWS[name](pyro.param("a", torch.tensor(LOGITS))))

    loss = am.VariationalLoss(estimators={"z": estimator()})
    for _ in range(20):
        assert loss.loss_and_grads(model, guide) == pytest.approx(0.0, abs=1e-14)
        assert pyro.param("a").grad.abs().max() < 1e-13


def test_the_coefficients_have_mean_zero() -> None:
    """Whatever both draws cost, if they cost the same in the mean."""
    for estimator, name in [(ARM, "bits"), *((DisARM, name) for name in LAWS)]:

        def run(tree: OutcomeTree, make: type[Estimator] = estimator, name: str = name) -> Tensor:
            leaf = torch.tensor(LOGITS, requires_grad=True)
            draw = drawn(make(), LAWS[name](leaf), tree)
            return torch.autograd.grad(draw.memory["score"].sum(), leaf)[0]

        assert estimate_law(run).mean.abs().max() < 1e-14


# --- extremes ------------------------------------------------------------------------------------

FAR = [80.0, -80.0, 40.0, -40.0, math.inf, -math.inf, 0.0]
NEAR = [0.0, 1.0, 1e-30, 1 - 1e-30, 1e-40, 1e-8, 0.5]
EXTREMES: dict[str, tuple[list[float], Callable[[Tensor], dist.Distribution]]] = {
    "logits of bits": (FAR, lambda leaf: dist.Bernoulli(logits=leaf).to_event(1)),
    "probabilities of bits": (NEAR, lambda leaf: dist.Bernoulli(leaf).to_event(1)),
    "logits of categories": ([80.0, -80.0, 0.0], lambda leaf: dist.Categorical(logits=leaf)),
    "impossible categories": (
        [0.3, -math.inf, 1.0, -math.inf, -math.inf],
        lambda leaf: dist.Categorical(logits=leaf),
    ),
    "impossible one-hot": (
        [-math.inf, -math.inf, 1.0, -0.3],
        lambda leaf: dist.OneHotCategorical(logits=leaf),
    ),
    "probabilities of categories": (
        [0.0, 1e-30, 0.4, 0.6, 0.0],
        lambda leaf: dist.Categorical(leaf),
    ),
    "one sure category": ([0.0, 1.0, 0.0], lambda leaf: dist.OneHotCategorical(leaf)),
}
UNIFORMS = [0.0, 1e-300, 1e-30, 1e-9, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(EXTREMES))
def test_extreme_laws_give_finite_gradients(name: str, dtype: torch.dtype) -> None:
    given, law_of = EXTREMES[name]

    def cost(value: Tensor) -> Tensor:
        numbers = value.reshape(2, -1).to(dtype)
        return numbers @ torch.arange(1, 1 + numbers.shape[1], dtype=dtype)

    for estimator, uniform in product(BOTH if "bits" in name else [DisARM], UNIFORMS):
        leaf = torch.tensor(given, dtype=dtype, requires_grad=True)
        draw, slope = gradient(estimator(), law_of(leaf), leaf, cost, constant(uniform))
        assert slope.isfinite().all() and slope.dtype == dtype
        assert draw.value.dtype in (dtype, torch.int64)


@pytest.mark.parametrize("uniform", UNIFORMS)
def test_what_is_impossible_is_never_drawn(uniform: float) -> None:
    for dtype in (torch.float32, torch.float64):
        probs = torch.tensor([0.0, 1.0], dtype=dtype)
        bits = drawn(ARM(), dist.Bernoulli(probs).to_event(1), constant(uniform)).value
        assert bits.tolist() == [[0.0, 1.0]] * 2
        probs = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0], dtype=dtype)
        for law in (dist.Categorical(probs), dist.Categorical(logits=probs.log())):
            assert set(drawn(DisARM(), law, constant(uniform)).value.tolist()) <= {1, 3}


@pytest.mark.parametrize("logit", [12.0, 16.0])
def test_twins_near_a_sure_bit_are_told_apart_in_float32(logit: float) -> None:
    """1 - p is below the rounding unit of 1, and u alone decides which twin is the rare one."""
    law = dist.Bernoulli(logits=torch.tensor(-logit, dtype=torch.float32))
    rare = constant(float(torch.sigmoid(torch.tensor(-logit - 0.5, dtype=torch.float64))))
    assert drawn(DisARM(), law, rare).value.tolist() == [1.0, 0.0]
    law = dist.Bernoulli(logits=torch.tensor(logit, dtype=torch.float32))
    assert drawn(DisARM(), law, rare).value.tolist() == [1.0, 0.0]


def test_an_infinite_cost_spoils_nothing() -> None:
    for estimator in BOTH:
        leaf = torch.tensor([0.4, 0.1], requires_grad=True)
        law = dist.Bernoulli(logits=leaf)
        draw = drawn(estimator(), law, constant(0.3))
        owed = estimator().surrogate(draw, Cost(torch.tensor([[-math.inf, 1.0], [0.0, 2.0]])))
        slope = torch.autograd.grad(owed.sum(), leaf)[0]
        assert owed.tolist() == [[0.0, 0.0]]
        assert slope[0] == 0 and slope[1] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(LAWS))
def test_one_element_and_empty_batches(name: str, dtype: torch.dtype) -> None:
    for size in (0, 1):
        leaf = torch.tensor(LOGITS, dtype=dtype).expand(size, 3).clone().requires_grad_()
        with pyro.validation_enabled(size > 0):  # torch cannot check what is empty
            draw = drawn(DisARM(), LAWS[name](leaf), TorchNoise())
        costs = torch.tensor([[1.0], [3.0]], dtype=dtype).expand(2, size)
        owed = DisARM().surrogate(draw, Cost(costs))
        (slope,) = torch.autograd.grad(owed.sum(), leaf)
        assert slope.shape == (size, 3) and slope.dtype == dtype
        assert owed.shape == (1, size) and slope.isfinite().all()


def test_a_single_category() -> None:
    leaf = torch.tensor([0.7], requires_grad=True)
    draw, slope = gradient(
        DisARM(), dist.Categorical(logits=leaf), leaf, lambda v: v.double(), TorchNoise()
    )
    assert draw.value.tolist() == [0, 0] and slope.tolist() == [0.0]


def test_frequencies_of_torchs_uniforms() -> None:
    """In float32, both copies, within five standard errors."""
    count = 200_000
    for p in (0.5, 0.1, 0.999):
        law = dist.Bernoulli(torch.tensor(p, dtype=torch.float32)).expand([count])
        bits = DisARM().draw(Site("z", law), TorchNoise()).value.mean(-1)
        assert (bits - p).abs().max() < 5 * math.sqrt(p * (1 - p) / count)


# --- shapes, refusals ----------------------------------------------------------------------------

SHAPES: dict[str, dist.Distribution] = {
    "bit": dist.Bernoulli(torch.tensor(0.3)),
    "plates": dist.Bernoulli(torch.full((4, 3), 0.3)),
    "event": dist.Bernoulli(torch.full((4, 3, 2), 0.3)).to_event(2),
    "expanded": dist.Bernoulli(torch.tensor(0.3)).expand([4]),
    "categories": dist.Categorical(torch.ones(4, 5)),
    "event of categories": dist.Categorical(torch.ones(4, 3, 5)).to_event(1),
    "one-hot": dist.OneHotCategorical(torch.ones(4, 5)),
    "event of one-hot": dist.OneHotCategorical(torch.ones(4, 3, 5)).to_event(1),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes(name: str) -> None:
    law = SHAPES[name]
    draw = drawn(DisARM(), law, TorchNoise())
    assert DisARM().copies(draw.site) == draw.copies == 2
    assert draw.value.shape == (2, *law.batch_shape, *law.event_shape)
    assert draw.value.dtype == law.sample().dtype
    assert not draw.value.requires_grad
    owed = DisARM().surrogate(draw, Cost(draw.log_prob))
    assert owed.shape == (1, *law.batch_shape)


REFUSED: dict[str, tuple[type[Estimator], dist.Distribution, str]] = {
    "arm, categories": (ARM, dist.Categorical(torch.ones(3)), "Categorical has categories; use am"),
    "arm, counts": (ARM, dist.Poisson(torch.tensor(2.0)), r"Poisson is no Bernoulli.*LeaveOneOut"),
    "arm, reals": (ARM, dist.Normal(0.0, 1.0), r"Normal is no Bernoulli; use am\.Pathwise\(\)"),
    "disarm, counts": (
        DisARM,
        dist.Binomial(3, torch.tensor(0.2)),
        r"Binomial has neither \(am\.Enumerate\(\).*LeaveOneOut",
    ),
    "disarm, reals": (DisARM, dist.Normal(0.0, 1.0), r"Normal has neither.*am\.Pathwise\(\)"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_cause_and_remedy(name: str) -> None:
    estimator, law, sentence = REFUSED[name]

    def program() -> None:
        pyro.sample("count", law)

    with pytest.raises(am.EstimatorError, match=rf"site 'count'.*{sentence}"):
        am.VariationalLoss(estimators={"count": estimator()}).loss(program, program)


def test_repr_is_what_one_would_type() -> None:
    assert [repr(ARM()), repr(DisARM())] == ["ARM()", "DisARM()"]
    assert not ARM().state_dict() and not DisARM().state_dict()


def test_logits_are_finite_and_exact() -> None:
    assert bit_logits(dist.Bernoulli(logits=torch.tensor([0.3, -80.0]))).tolist() == [0.3, -80.0]
    p = torch.tensor([0.2, 0.3, 0.5])
    expected = torch.tensor([0.2 / 0.8, 0.3 / 0.5]).log()
    for law in (dist.Categorical(p), dist.Categorical(logits=p.log() + 7.0)):
        torch.testing.assert_close(stick_logits(law), expected)
    for given in (
        dist.Bernoulli(torch.tensor([0.0, 1.0])),
        dist.Bernoulli(logits=torch.tensor([-math.inf, math.inf])),
    ):
        logits = bit_logits(given)
        assert logits.isfinite().all() and logits[0] == -logits[1]
