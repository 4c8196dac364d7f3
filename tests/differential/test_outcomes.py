"""The tree of outcomes: it visits everything once, and gives the moments that theory knows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from tests.reference import (
    FixedNoise,
    OutcomeTree,
    TooManyOutcomes,
    estimate_law,
    exact,
    exact_gradients,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def leaf(value):
    return torch.tensor(value, requires_grad=True)


def test_tree_visits_every_element_of_a_plate():
    p, seen = torch.tensor([0.2, 0.7]), {}
    tree = OutcomeTree()
    for path in tree.paths():
        z = tree.sample(dist.Bernoulli(p), (2,), site="z")
        seen[tuple(z.flatten().tolist())] = path.probability
    assert len(seen) == 16
    for bits, probability in seen.items():
        z = torch.tensor(bits).reshape(2, 2)
        expected = dist.Bernoulli(p).log_prob(z).sum().exp()
        assert probability == pytest.approx(float(expected), rel=1e-14)


def test_tree_follows_branches_and_skips_the_impossible():
    def run(tree):
        z = tree.sample(dist.Categorical(logits=torch.tensor([0.25, 0.0, 0.75]).log()), site="z")
        if z == 2:
            return z + 10 * tree.sample(dist.Bernoulli(0.5), site="b")
        return z.double()

    law = estimate_law(run)
    assert law.paths == 3
    assert float(law.mean) == pytest.approx(0.75 * 7)
    assert float(law.variance) == pytest.approx(0.75 * (4 + 144) / 2 - (0.75 * 7) ** 2)


def test_tree_says_what_is_wrong():
    lengths = iter([2, 1])

    def forgetful(tree):
        return sum(tree.sample(dist.Bernoulli(0.5), site="z") for _ in range(next(lengths)))

    with pytest.raises(RuntimeError, match="drew less"):
        estimate_law(forgetful)
    with pytest.raises(TooManyOutcomes):
        estimate_law(lambda tree: tree.sample(dist.Bernoulli(torch.full((9,), 0.5))), limit=100)
    with pytest.raises(TypeError, match="'z'"):
        estimate_law(lambda tree: tree.sample(dist.Poisson(1.0), site="z"))


@pytest.mark.parametrize("logit", [0.0, 0.4, -3.0])
def test_uniform_numbers_are_integrated_exactly_between_the_kinks(logit):
    """A cubic in u with jumps where antithetic bits jump, of two uniforms at once."""
    p = torch.sigmoid(torch.tensor(logit))

    def run(tree):
        u, v = tree.uniform((2,), torch.tensor(logit), site="z")
        return (u < p) * u**3 + (v > 1 - p) * v * u

    truth = p**4 / 4 + (1 - (1 - p) ** 2) / 2 * 0.5
    assert torch.allclose(estimate_law(run).mean, truth, rtol=1e-12)


def two_bits(phi, b):
    """A cost that does not factorize."""
    return (b[..., 0] + 0.7 * b[..., 1] - 1.3) ** 2 + 0.4 * b[..., 0] * b[..., 1] - 0.1 * phi.sum()


def reinforce(phi, samples, baseline):
    def run(tree):
        fn = dist.Bernoulli(logits=phi).to_event(1)
        b = tree.sample(fn, (samples,), site="b")
        cost = two_bits(phi, b)
        signal = (cost - baseline(cost)).detach()
        surrogate = (fn.log_prob(b) * signal + cost).mean()
        return {"value": cost.mean(), "gradient": torch.autograd.grad(surrogate, phi)[0]}

    return run


BASELINES = {
    "none": lambda cost: torch.zeros_like(cost),
    "leave one out": lambda cost: (cost.sum() - cost) / (len(cost) - 1),
    "mean of all": lambda cost: cost.mean(),
}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("samples", [2, 3])
def test_law_of_reinforce(name, samples):
    phi = leaf([0.4, -0.8])
    bits = dist.Bernoulli(logits=phi.detach()).expand([2]).enumerate_support()
    bits = torch.cartesian_prod(bits[:, 0], bits[:, 0])
    weights = dist.Bernoulli(logits=phi).to_event(1).log_prob(bits).exp()
    value = (weights * two_bits(phi, bits)).sum()
    (gradient,) = torch.autograd.grad(value, phi)
    law = estimate_law(reinforce(phi, samples, BASELINES[name]))
    assert law.paths == 4**samples
    torch.testing.assert_close(law.mean["value"], value.detach(), **EXACT)
    score_part = gradient + 0.1
    if name == "mean of all":  # known to be biased by exactly this factor
        gradient = score_part * (samples - 1) / samples - 0.1
    torch.testing.assert_close(law.mean["gradient"], gradient, **EXACT)


def test_variances_of_the_one_bit_toy():
    """(b - .45)^2, probability .2: the closed-form variances of REINFORCE and leave-one-out."""
    phi = leaf(math.log(0.2 / 0.8))

    def run(samples):
        def estimate(tree):
            fn = dist.Bernoulli(logits=phi)
            b = tree.sample(fn, (samples,), site="b")
            cost = (b - 0.45) ** 2
            baseline = (cost.sum() - cost) / (samples - 1) if samples > 1 else 0.0
            return torch.autograd.grad((fn.log_prob(b) * (cost - baseline)).mean(), phi)[0]

        return estimate_law(estimate)

    one, two = run(1), run(2)
    assert float(one.mean) == pytest.approx(0.016)
    assert float(two.mean) == pytest.approx(0.016)
    assert float(one.variance) == pytest.approx(1.2769e-2)
    assert float(two.variance) == pytest.approx(5.44e-4)


def test_law_agrees_with_exact_given_the_same_noise():
    """REINFORCE on two copies of b, pathwise z after it: the two halves of the oracle agree."""
    logit, loc = leaf(0.3), leaf(-0.4)

    def model():
        b = pyro.sample("b", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(b, 1.0))
        pyro.factor("f", torch.sin(z + b))

    def guide():
        b = pyro.sample("b", dist.Bernoulli(logits=logit))
        pyro.sample("z", dist.Normal(loc * (1 + b), 0.8))

    noise = FixedNoise(seed=0)
    value = exact(model, guide, noise=noise)
    expected = exact_gradients(model, guide, [logit, loc], noise=noise)

    def run(tree):
        fn = dist.Bernoulli(logits=logit)
        b = tree.sample(fn, (2,), site="b")
        then = dist.Normal(loc * (1 + b), 0.8)
        z = tree.rsample(then, site="z")
        cost = math.log(0.5) + dist.Normal(b, 1.0).log_prob(z) + torch.sin(z + b) - then.log_prob(z)
        cost = cost - fn.log_prob(b).detach()
        signal = (cost - cost.flip(0)).detach()
        surrogate = (cost + fn.log_prob(b) * signal).mean()
        return [cost.mean(), *torch.autograd.grad(surrogate, [logit, loc])]

    law = estimate_law(run, noise=noise)
    torch.testing.assert_close(law.mean, [value.detach(), *expected], **EXACT)
