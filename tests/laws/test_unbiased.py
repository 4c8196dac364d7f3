"""Every estimator's mean gradient, over its own randomness, is the exact gradient; mutants' is not.

Nothing is sampled: the estimator runs once per joint outcome of what it draws, and the oracle once
per joint outcome of the guide. Continuous sites see the same fixed noise in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pyro
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from tests.laws.structures import DATA, EVERY, Structure, law_of, weight
from tests.reference import FixedNoise, OutcomeTree, estimate_law, exact_gradients

Make = Callable[[], Estimator]

SCORE: dict[str, Make] = {
    "plain": am.ScoreFunction,
    "two samples": lambda: am.ScoreFunction(num_samples=2),
    "constant": lambda: am.ScoreFunction(am.Constant(-3.0)),
    "moving average": lambda: am.ScoreFunction(am.MovingAverage()),
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "neural": lambda: am.ScoreFunction(am.NeuralBaseline()),
}
DISCRETE: dict[str, Make] = {**SCORE, "enumerate": am.Enumerate}
PATHWISE: dict[str, Make] = {"pathwise": am.Pathwise}

# evaluating all elements of a plate at one copy, or branching on a value, is refused elsewhere
SINGLE_ONLY = ("control_flow", "buffer_write")
ONE_DRAW = ("plain", "constant", "moving average", "neural")


def leaves() -> dict[str, Tensor]:
    """The parameters of the programs in the global store."""
    store = pyro.get_param_store()
    return {name: store[name].unconstrained() for name in store if "$$$" not in name}


def warmed(loss: am.VariationalLoss, pair: Structure) -> am.VariationalLoss:
    """The loss with its state moved away from the start, then held still."""
    loss.warm_up(pair.model, pair.guide, ())
    pyro.set_rng_seed(7)
    for _ in range(2):
        loss.learn(loss.estimate(pair.model, pair.guide, (), {}))
    return loss.eval()


def mean_gradient(
    loss: am.VariationalLoss, pair: Structure, noise: FixedNoise
) -> dict[str, Tensor]:
    """The mean of the gradient of the bound over the estimator's own randomness."""
    params = leaves()

    def run(tree: OutcomeTree) -> list[Tensor]:
        value = loss.estimate(pair.model, pair.guide, (), {}, noise=tree).loss
        return list(
            torch.autograd.grad(
                -value, list(params.values()), allow_unused=True, materialize_grads=True
            )
        )

    return dict(zip(params, estimate_law(run, noise=noise).mean, strict=True))


def true_gradient(pair: Structure, noise: FixedNoise) -> dict[str, Tensor]:
    """The exact gradient of the bound."""
    return exact_gradients(pair.model, pair.guide, leaves(), noise=noise)


def error(loss: am.VariationalLoss, pair: Structure) -> float:
    """The largest error of the mean gradient, relative to the gradient's size."""
    noise = FixedNoise(seed=5)
    warmed(loss, pair)
    truth, mean = true_gradient(pair, noise), mean_gradient(loss, pair, noise)
    size = max(float(g.abs().max()) for g in truth.values())
    assert size > 1e-3
    return max(float((mean[name] - truth[name]).abs().max()) for name in truth) / size


def same_for_all(pair: Structure, make: Make) -> Mapping[str, Estimator]:
    """One recipe for all named latents."""
    return {name: make() for name in pair.latents}


def countable(structure: str, pair: Structure, make: Make) -> Mapping[str, Estimator]:
    """The recipe for all latents, where the outcomes of several samples can still be listed."""
    if structure == "chain" and make().copies(Site("z", torch.distributions.Bernoulli(0.5))) > 1:
        return {"z": make(), "y": am.Enumerate()}
    return same_for_all(pair, make)


@pytest.mark.parametrize("estimator", sorted(DISCRETE))
@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"subsampled"}))
def test_every_estimator_in_every_structure(structure: str, estimator: str) -> None:
    """Bernoulli latents."""
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators=countable(structure, pair, DISCRETE[estimator]))
    if structure in SINGLE_ONLY and estimator not in ONE_DRAW:
        with pytest.raises(am.ProgramError, match="'z'"):
            warmed(loss, pair)
        return
    assert error(loss, pair) < 1e-10


@pytest.mark.parametrize("estimator", ["plain", "leave one out", "enumerate", "moving average"])
@pytest.mark.parametrize("structure", ["global_site", "plate", "nested_plates", "masked", "scaled"])
def test_two_particles(structure: str, estimator: str) -> None:
    """Particles share an axis; leave-one-out is over them."""
    pair = EVERY[structure]("bernoulli")
    estimators = same_for_all(pair, DISCRETE[estimator])
    assert error(am.VariationalLoss(am.ELBO(num_particles=2), estimators), pair) < 1e-10


def mixed_chain(first: str, second: str) -> Structure:
    """z -> y in the guide, y -> z in the model: every term depends on both.

    Two sites with two samples each draw 3 bits a datum and copy: one datum keeps that countable.
    """
    size = 1 if {first, second} <= {"two samples", "leave one out"} else 2
    kinds = {"pathwise": "normal"}
    z_law, y_law = law_of(kinds.get(first, "bernoulli")), law_of(kinds.get(second, "bernoulli"))

    def model() -> None:
        with pyro.plate("data", size):
            y = pyro.sample("y", y_law(weight("c", 0.2).expand(size)))
            z = pyro.sample("z", z_law(weight("b", -0.3) * y))
            pyro.sample(
                "x", pyro.distributions.Normal(z * weight("w", 0.7) + y, 1.0), obs=DATA[:size]
            )

    def guide() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", z_law(weight("a", 0.4) * DATA[:size]))
            pyro.sample("y", y_law(weight("e", 0.3) * z + weight("f", 0.1)))

    return Structure(model, guide, ("z", "y"))


PAIRS = {**PATHWISE, **DISCRETE}


@pytest.mark.parametrize(("first", "second"), sorted(product(PAIRS, PAIRS)))
def test_every_ordered_pair_on_a_dependent_chain(first: str, second: str) -> None:
    """Upstream and downstream, all of pathwise, score with each baseline, enumerate."""
    pair = mixed_chain(first, second)
    estimators = {"z": PAIRS[first](), "y": PAIRS[second]()}
    assert error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


class Zero(Estimator):
    """A mutant: draws, and owes nothing."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        return Draw(site, noise.sample(site.law, site=site.name))


class HalfCost(am.ScoreFunction):
    """A mutant: forgets a part of the cost."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        return super().surrogate(draw, Cost(0.9 * cost.copies))


class OwnBaseline(am.LeaveOneOut):
    """A mutant: the mean includes the draw itself."""

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        return cost.copies.mean(draw.axis or 0, keepdim=True)


class UpdatedFirst(am.MovingAverage):
    """A mutant: the average is updated before it is used."""

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        return 0.9 * self.average + 0.1 * cost.copies


class DetachedWeights(am.Enumerate):
    """A mutant: the probabilities carry no gradient."""

    def weights(self, draw: Draw) -> Tensor:
        return super().weights(draw).detach()


MUTANTS: dict[str, Make] = {
    "zero": Zero,
    "drops a cost": HalfCost,
    "own draw in the baseline": lambda: am.ScoreFunction(OwnBaseline(), num_samples=2),
    "updated before use": lambda: am.ScoreFunction(UpdatedFirst()),
    "detached weights": DetachedWeights,
}


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
@pytest.mark.parametrize("structure", ["global_site", "plate", "nested_plates", "chain"])
def test_mutants_fail(structure: str, mutant: str) -> None:
    """The law would notice."""
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators=countable(structure, pair, MUTANTS[mutant]))
    assert error(loss, pair) > 1e-3


@pytest.mark.parametrize("estimator", ["plain", "leave one out", "enumerate", "moving average"])
@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"subsampled", "event_dims"}))
def test_copy_by_copy(structure: str, estimator: str) -> None:
    """The sequential executor, which also serves branches on a value."""
    pair = EVERY[structure]("bernoulli")
    estimators = countable(structure, pair, DISCRETE[estimator])
    loss = am.VariationalLoss(estimators=estimators, vectorize=False)
    if (structure, estimator) == ("sequential_plates", "enumerate"):
        # without private dims, order is all there is: the second plate may depend on the first
        with pytest.raises(am.ProgramError, match="plate 'first'"):
            error(loss, pair)
        return
    assert error(loss, pair) < 1e-10


@pytest.mark.parametrize("second", ["plain", "leave one out", "enumerate"])
@pytest.mark.parametrize("first", ["plain", "leave one out", "enumerate"])
def test_copy_by_copy_with_other_sites_in_each_branch(first: str, second: str) -> None:
    """A guide and a model whose sites depend on a value: the copies of one site differ in kind."""
    law = law_of("bernoulli")

    def model() -> None:
        z = pyro.sample("z", law(torch.tensor(0.2)))
        if z.item() > 0.5:
            y = pyro.sample("y", law(weight("c", -0.4)))
            pyro.sample("x", pyro.distributions.Normal(weight("w", 2.0) + y, 1.0), obs=DATA[0])
        else:
            pyro.sample("x", pyro.distributions.Normal(weight("v", -1.0), 1.0), obs=DATA[0])

    def guide() -> None:
        z = pyro.sample("z", law(weight("a", 0.4)))
        if z.item() > 0.5:
            pyro.sample("y", law(weight("e", 0.3)))

    pair = Structure(model, guide, ("z", "y"))
    estimators = {"z": DISCRETE[first](), "y": DISCRETE[second]()}
    assert error(am.VariationalLoss(estimators=estimators, vectorize=False), pair) < 1e-10
