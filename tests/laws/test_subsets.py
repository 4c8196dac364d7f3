"""Sum-and-sample and the unordered set: exact in the mean, whatever the subset.

All subsets and their orders are visited, each weighted by its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, TorchNoise
from amortized.estimators.subsets import SumAndSample, UnorderedSet, _Subset
from tests.laws.structures import DATA, EVERY, Structure, weight
from tests.laws.test_unbiased import error, leaves
from tests.reference import OutcomeTree, estimate_law

Make = Callable[[], Estimator]

SUBSETS: dict[str, Make] = {
    "sum and sample": SumAndSample,
    "sum three": lambda: SumAndSample(size=3),
    "no baseline": lambda: SumAndSample(baseline=False),
    "two": UnorderedSet,
    "three": lambda: UnorderedSet(size=3),
    "three, no baseline": lambda: UnorderedSet(size=3, baseline=False),
    "all": lambda: UnorderedSet(size=4),
}
LAWS = {
    "categorical": lambda logits: dist.Categorical(logits=logits),
    "probabilities": lambda logits: dist.Categorical(probs=logits.softmax(-1)),
    "one-hot": lambda logits: dist.OneHotCategorical(logits=logits),
}


def worth(z: Tensor) -> Tensor:
    """An arbitrary number for each category, as an index or one-hot."""
    numbers = weight("w", [0.7, -0.2, 1.1, -0.5])
    return numbers[z] if z.dtype == torch.long else (z * numbers).sum(-1)


def four(kind: str = "categorical", size: int = 1, around: Callable[[], object] | None = None):
    """One latent of four values a datum; ``around`` makes the handler around both programs."""
    law, handler = LAWS[kind], around or nullcontext

    def model() -> None:
        with pyro.plate("data", size), handler():
            z = pyro.sample("z", law(weight("b", [-0.3, 0.2, 0.5, 0.0]).expand(size, 4)))
            pyro.sample("x", dist.Normal(worth(z), 1.0), obs=DATA[:size])

    def guide() -> None:
        with pyro.plate("data", size), handler():
            logits = weight("a", [0.4, -0.6, 0.1, 0.9]) * DATA[:size, None]
            pyro.sample("z", law(logits))

    return Structure(model, guide)


def minibatch() -> Structure:
    """Two data of ten."""
    index, everything = torch.tensor([7, 2]), torch.linspace(-1.0, 2.0, 10)

    def model() -> None:
        with pyro.plate("data", 10, subsample=index):
            z = pyro.sample("z", dist.Categorical(logits=weight("b", [-0.3, 0.2, 0.5, 0.0])))
            pyro.sample("x", dist.Normal(worth(z), 1.0), obs=everything[index])

    def guide() -> None:
        with pyro.plate("data", 10, subsample=index):
            logits = weight("a", [0.4, -0.6, 0.1, 0.9]) * everything[index][:, None]
            pyro.sample("z", dist.Categorical(logits=logits))

    return Structure(model, guide)


def two_bits() -> Structure:
    """A joint support of four, and a cost that does not factorize."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", [-0.3, 0.5])).to_event(1))
        mean = (z * weight("w", [0.7, -0.2])).sum(-1) + z.prod(-1)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[0])

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=weight("a", [0.4, -0.6])).to_event(1))

    return Structure(model, guide)


STRUCTURES: dict[str, Callable[[], Structure]] = {
    "global": lambda: EVERY["global_site"]("bernoulli"),
    "categorical": lambda: four(),
    "probabilities": lambda: four("probabilities"),
    "one-hot": lambda: four("one-hot"),
    "scaled": lambda: four(around=lambda: poutine.scale(scale=0.3)),
    "two bits": two_bits,
}
LARGER: dict[str, Callable[[], Structure]] = {
    "plate": lambda: four(size=2),
    "masked": lambda: four(size=2, around=lambda: poutine.mask(mask=torch.tensor([True, False]))),
    "minibatch": minibatch,
}


@pytest.mark.parametrize("estimator", sorted(SUBSETS))
@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_exact_in_the_mean(structure: str, estimator: str) -> None:
    pair = STRUCTURES[structure]()
    assert error(am.VariationalLoss(estimators={"z": SUBSETS[estimator]()}), pair) < 1e-10


@pytest.mark.parametrize(
    ("structure", "estimator"), [*product(LARGER, ["sum and sample"]), ("plate", "two")]
)
def test_exact_for_two_data(structure: str, estimator: str) -> None:
    pair = LARGER[structure]()
    assert error(am.VariationalLoss(estimators={"z": SUBSETS[estimator]()}), pair) < 1e-10


@pytest.mark.parametrize("estimator", ["sum and sample", "two"])
@pytest.mark.parametrize("structure", ["nested_plates", "sequential_plates", "auxiliary", "plate"])
def test_bits_in_other_structures(structure: str, estimator: str) -> None:
    """Two values: both estimators then sum the site out."""
    pair = EVERY[structure]("bernoulli")
    assert error(am.VariationalLoss(estimators={"z": SUBSETS[estimator]()}), pair) < 1e-10


@pytest.mark.parametrize("estimator", ["sum and sample", "two", "three"])
def test_copy_by_copy(estimator: str) -> None:
    loss = am.VariationalLoss(estimators={"z": SUBSETS[estimator]()}, vectorize=False)
    assert error(loss, four()) < 1e-10


@pytest.mark.parametrize("estimator", ["sum and sample", "two"])
def test_two_particles(estimator: str) -> None:
    loss = am.VariationalLoss(am.ELBO(num_particles=2), {"z": SUBSETS[estimator]()})
    assert error(loss, four()) < 1e-10


OTHERS: dict[str, Make] = {
    "plain": am.ScoreFunction,
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "enumerate": am.Enumerate,
    "pathwise": am.Pathwise,
}
FEW: dict[str, Make] = {"sum and sample": SumAndSample, "two": UnorderedSet}


def chain(first: str, second: str) -> Structure:
    """z -> y in the guide, y -> z in the model. Subsets are of three values, the rest are bits."""

    def law(name: str, loc: Tensor) -> dist.Distribution:
        if name == "pathwise":
            return dist.Normal(loc, 0.8)
        if name in OTHERS:
            return dist.Bernoulli(logits=loc)
        slopes = torch.tensor([0.3, -0.8, 0.5])
        return dist.Categorical(logits=loc.unsqueeze(-1) * slopes)

    def model() -> None:
        with pyro.plate("data", 1):
            y = pyro.sample("y", law(second, weight("c", 0.2).expand(1)))
            z = pyro.sample("z", law(first, weight("b", -0.3) * y))
            mean = (z - 0.5) ** 2 * weight("w", 0.7) + y
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:1])

    def guide() -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", law(first, weight("a", 0.4) * DATA[:1]))
            pyro.sample("y", law(second, weight("e", 0.3) * z + weight("f", 0.1)))

    return Structure(model, guide, ("z", "y"))


# pairs of draws with pairs of draws are many outcomes, and sum-and-sample meets them too
MANY = {("two", "leave one out"), ("leave one out", "two")}
CHAINS = sorted({*product(FEW, {**OTHERS, **FEW}), *product(OTHERS, FEW)} - MANY)


@pytest.mark.parametrize(("first", "second"), CHAINS)
def test_upstream_and_downstream_of_others(first: str, second: str) -> None:
    every = {**OTHERS, **FEW}
    estimators = {"z": every[first](), "y": every[second]()}
    assert error(am.VariationalLoss(estimators=estimators), chain(first, second)) < 1e-10


class WrongSet(_Subset):
    """A family for mutants of the indices or weights."""

    label = "mutant"

    def __init__(self) -> None:
        super().__init__(2, smallest=1, largest=4, baseline=True)
        self.right = self.make()

    def make(self) -> Estimator:
        return UnorderedSet()

    def copies(self, site: Site) -> int:
        return self.right.copies(site)

    def pick(self, site: Site, noise: Noise, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.spoil(*self.right.pick(site, noise, log_q))

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        raise NotImplementedError


class EqualWeights(WrongSet):
    """As if the draws were independent."""

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        return index, torch.full_like(weights, 0.5), others


class SharedMean(WrongSet):
    """One baseline for all, the value itself: it depends on the draw."""

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        return index, weights, weights.unsqueeze(-2)


class PlainMean(WrongSet):
    """q normalized over S as the weights: forgets how S came about."""

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        q = torch.diagonal(others, dim1=-2, dim2=-1)
        return index, q / q.sum(-1, keepdim=True), others


class ForgottenRest(WrongSet):
    """Sum and sample with the draw not weighted by the mass outside."""

    def make(self) -> Estimator:
        return SumAndSample(size=2)

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        return index, torch.cat([weights[..., :-1], torch.ones_like(weights[..., -1:])], -1), others


class SampledBaseline(ForgottenRest):
    """The mean over S and the draw."""

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        return index, weights, weights.unsqueeze(-2)


class NoScore(WrongSet):
    """The weights are right and owe nothing."""

    def spoil(self, index: Tensor, weights: Tensor, others: Tensor):
        return index, weights, others

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        return None


MUTANTS = [EqualWeights, SharedMean, PlainMean, ForgottenRest, SampledBaseline, NoScore]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(mutant: Make) -> None:
    assert error(am.VariationalLoss(estimators={"z": mutant()}), four()) > 1e-3


def test_the_set_has_the_law_of_draws_without_return() -> None:
    """p(S) for k = 2 is p_a p_b (1 / (1 - p_a) + 1 / (1 - p_b))."""
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    site, found = Site("z", dist.Categorical(probs=p)), {}
    tree = OutcomeTree()
    for path in tree.paths():
        value = UnorderedSet().draw(site, tree).value
        key = tuple(sorted(value.tolist()))
        found[key] = found.get(key, 0.0) + path.probability
    for (a, b), mass in found.items():
        expected = p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))
        assert mass == pytest.approx(expected.item(), rel=1e-12)
    assert len(found) == 6


def test_the_ratios_are_those_of_the_orders() -> None:
    """R and the baseline's weights against sums over all orders of S."""
    p = torch.tensor([0.1, 0.3, 0.15, 0.25, 0.2])
    site = Site("z", dist.Categorical(probs=p))
    draw = UnorderedSet(size=3).draw(site, TorchNoise())
    chosen = draw.value.tolist()

    def first(values: list[int], without: list[int]) -> float:
        """The probability that draws without return give these values first, in any order."""
        if not values:
            return 1.0
        left = 1 - sum(p[w].item() for w in without)
        return sum(
            p[v].item() / left * first([o for o in values if o != v], [*without, v]) for v in values
        )

    def rest(*taken: int) -> list[int]:
        return [v for v in chosen if v not in taken]

    for i, a in enumerate(chosen):
        ratio = first(rest(a), [a]) / first(chosen, [])
        assert draw.memory["weights"][i].item() == pytest.approx(p[a].item() * ratio, rel=1e-12)
        for j, c in enumerate(chosen):
            ratio = first(rest(a, c), [a, c]) / first(rest(a), [a]) if a != c else 1.0
            expected = p[c].item() * ratio
            assert draw.memory["others"][i, j].item() == pytest.approx(expected, rel=1e-12)


def gradient(make: Make, pair: Structure, noise: Noise | None = None) -> dict[str, Tensor]:
    """One estimate of the gradient of the bound."""
    loss = am.VariationalLoss(estimators={"z": make()})
    value = loss.estimate(pair.model, pair.guide, (), {}, noise=noise).loss
    params = leaves()
    grads = torch.autograd.grad(-value, list(params.values()), allow_unused=True)
    return {n: g for n, g in zip(params, grads, strict=True) if g is not None}


def moments(make: Make, pair: Structure) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Mean and variance of the gradient over the estimator's randomness."""
    gradient(make, pair)
    law = estimate_law(lambda tree: gradient(make, pair, tree))
    return law.mean, law.variance


KNOWN: dict[str, Make] = {
    "all": SUBSETS["all"],
    "four of four": lambda: SumAndSample(size=4),
    "one is left": lambda: SumAndSample(size=3),
    "without baseline": lambda: UnorderedSet(size=4, baseline=False),
}


@pytest.mark.parametrize("estimator", sorted(KNOWN))
def test_no_variance_where_nothing_is_left_to_chance(estimator: str) -> None:
    pair = four()
    exact = gradient(am.Enumerate, pair)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        found = gradient(KNOWN[estimator], pair)
        assert all((found[name] - exact[name]).abs().max() < 1e-14 for name in exact)


@pytest.mark.parametrize("size", [1, 2])
def test_never_more_variance_than_the_score_function(size: int) -> None:
    """Rao-Blackwell, parameter by parameter of the guide."""
    pair = four()
    _, ours = moments(lambda: SumAndSample(size=size, baseline=False), pair)
    _, plain = moments(am.ScoreFunction, pair)
    assert (ours["a"] < plain["a"]).all()


def posterior() -> Structure:
    """The guide is the prior, and nothing is observed: the cost is constant."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=weight("a", [0.4, -0.6, 0.1, 0.9]).detach()))
        pyro.factor("constant", 0.0 * z - 7.0)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=weight("a", [0.4, -0.6, 0.1, 0.9])))

    return Structure(model, guide)


@pytest.mark.parametrize("estimator", ["sum and sample", "two", "three", "all"])
def test_no_gradient_at_the_posterior(estimator: str) -> None:
    """Draw by draw."""
    pair = posterior()
    for seed in range(10):
        pyro.set_rng_seed(seed)
        found = gradient(SUBSETS[estimator], pair)
        assert found["a"].abs().max() < 1e-15


def test_without_the_baseline_there_is_one() -> None:
    """What the test above measures."""
    pair = posterior()
    pyro.set_rng_seed(1)
    assert gradient(lambda: UnorderedSet(baseline=False), pair)["a"].abs().max() > 1e-3


def trained(pair: Structure, make: Make, compile: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of five steps, and what they moved."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = am.VariationalLoss(estimators={"z": make()})
    svi = am.SVI(pair.model, pair.guide, loss, lr=0.1, compile=compile)
    losses = [svi.step(()) for _ in range(5)]
    return losses, svi._stepper.parameters.snapshot()


def same_when_captured(pair: Structure, make: Make) -> None:
    losses, moved = trained(pair, make, "off")
    found, captured = trained(pair, make, "graph")
    assert found == losses and captured.keys() == moved.keys()
    assert all(torch.equal(tensor, captured[name]) for name, tensor in moved.items())


@pytest.mark.parametrize("estimator", ["sum and sample", "three", "all"])
@pytest.mark.parametrize("structure", ["one-hot", "two bits"])
def test_captured(structure: str, estimator: str) -> None:
    same_when_captured(STRUCTURES[structure](), SUBSETS[estimator])
