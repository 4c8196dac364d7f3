"""Antithetic pairs: the mean of value and gradients over the uniforms is exact; mutants' is not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimators import antithetic
from amortized.estimators.antithetic import ARM, DisARM
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from tests.laws.belief_network import Network, row_gradients
from tests.laws.cells import Given, Middles, cells
from tests.laws.structures import DATA, EVERY, Structure, weight
from tests.laws.test_captured import compare
from tests.laws.test_in_the_mean import rejected
from tests.laws.test_unbiased import error, leaves, mixed_chain, same_for_all, warmed
from tests.reference import FixedNoise, OutcomeTree, estimate_law, exact, exact_gradients

Make = Callable[[], Estimator]

ANTITHETIC: dict[str, Make] = {"arm": ARM, "disarm": DisARM}
OTHERS: dict[str, Make] = {
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "enumerate": am.Enumerate,
    "pathwise": am.Pathwise,
}
MIXED = {**ANTITHETIC, **OTHERS}


def law_error(loss: am.VariationalLoss, pair: Structure) -> float:
    """The largest error of the mean value and the mean gradients, relative to the gradient."""
    noise = FixedNoise(seed=5)
    warmed(loss, pair)
    params = leaves()
    gradients = exact_gradients(pair.model, pair.guide, params, noise=noise)
    truth = [exact(pair.model, pair.guide, noise=noise), *gradients.values()]

    def run(tree: OutcomeTree) -> list[Tensor]:
        bound = -loss.estimate(pair.model, pair.guide, (), {}, noise=Middles(tree)).loss
        wanted = list(params.values())
        found = torch.autograd.grad(bound, wanted, allow_unused=True, materialize_grads=True)
        return [bound, *found]

    mean = estimate_law(run, noise=noise).mean
    size = max(float(g.abs().max()) for g in truth[1:])
    assert size > 1e-3
    return max(float((m - t).detach().abs().max()) for m, t in zip(mean, truth, strict=True)) / size


BRANCHING = ("control_flow", "buffer_write")


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"subsampled", *BRANCHING}))
def test_every_structure(structure: str, estimator: str) -> None:
    pair = EVERY[structure]("bernoulli")
    estimators = same_for_all(pair, ANTITHETIC[estimator])
    if structure == "chain":
        estimators = {"z": ANTITHETIC[estimator](), "y": am.Enumerate()}
    assert law_error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", ["global_site", "plate", "masked"])
def test_the_tree_of_the_laws(structure: str, estimator: str) -> None:
    """The quadrature that all families share, six nodes a uniform."""
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators=same_for_all(pair, ANTITHETIC[estimator]))
    assert error(loss, pair) < 1e-10


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", BRANCHING)
def test_two_copies_are_refused_where_a_value_is_read(structure: str, estimator: str) -> None:
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators=same_for_all(pair, ANTITHETIC[estimator]))
    with pytest.raises(am.ProgramError, match="'z'"):
        warmed(loss, pair)


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", [*BRANCHING, "plate", "event_dims", "auxiliary"])
def test_copy_by_copy(structure: str, estimator: str) -> None:
    pair = EVERY[structure]("bernoulli")
    estimators = same_for_all(pair, ANTITHETIC[estimator])
    assert law_error(am.VariationalLoss(estimators=estimators, vectorize=False), pair) < 1e-10


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", ["global_site", "plate", "scaled"])
def test_two_particles(structure: str, estimator: str) -> None:
    pair = EVERY[structure]("bernoulli")
    estimators = same_for_all(pair, ANTITHETIC[estimator])
    assert law_error(am.VariationalLoss(am.ELBO(num_particles=2), estimators), pair) < 1e-10


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
def test_closed_forms(estimator: str) -> None:
    """The site's own two terms integrated out: the cost is what is left."""
    pair = EVERY["plate"]("bernoulli")
    estimators = same_for_all(pair, ANTITHETIC[estimator])
    assert law_error(am.VariationalLoss(am.ELBO(kl="analytic"), estimators), pair) < 1e-10


@pytest.mark.parametrize(
    ("first", "second"),
    sorted(pair for pair in product(MIXED, MIXED) if {*pair} & {*ANTITHETIC}),
)
def test_every_ordered_pair_on_a_dependent_chain(first: str, second: str) -> None:
    kinds = ["pathwise" if name == "pathwise" else "leave one out" for name in (first, second)]
    pair = mixed_chain(*kinds)
    estimators = {"z": MIXED[first](), "y": MIXED[second]()}
    assert law_error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


# --- categories, and laws given by probabilities -------------------------------------------------


def categories(kind: str, logits: Tensor) -> Any:
    """A law over as many categories as there are logits, in each of its parametrizations."""
    if kind == "categorical":
        return dist.Categorical(logits=logits)
    if kind == "categorical by probabilities":
        return dist.Categorical(probs=torch.sigmoid(logits) + 0.1)
    if kind == "one-hot":
        return dist.OneHotCategorical(logits=logits)
    return dist.OneHotCategorical(probs=torch.sigmoid(logits) + 0.1)


KINDS = ("categorical", "categorical by probabilities", "one-hot", "one-hot by probabilities")
OPTIONS = ("plain", "masked", "scaled")


def weighed(kind: str, z: Tensor, weights: Tensor) -> Tensor:
    """A number for each category."""
    return (z * weights).sum(-1) if kind.startswith("one-hot") else weights[z]


def categorical_plate(kind: str, option: str = "plain") -> Structure:
    """One of three categories a datum."""
    handlers = {
        "plain": poutine.scale(scale=1.0),
        "masked": poutine.mask(mask=torch.tensor([True, False])),
        "scaled": poutine.scale(scale=0.3),
    }

    def model() -> None:
        with pyro.plate("data", 2):
            with handlers[option]:
                logits = weight("b", [0.1, -0.3, 0.5]).expand(2, 3)
                z = pyro.sample("z", categories(kind, logits))
            mean = weighed(kind, z, weight("w", [0.7, -0.2, 1.1]))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2), handlers[option]:
            logits = weight("a", [0.4, -0.6, 0.2]) * DATA.unsqueeze(-1)
            pyro.sample("z", categories(kind, logits))

    return Structure(model, guide)


def categorical_event(kind: str) -> Structure:
    """Two categories of three in one event, whose cost is no sum over them."""

    def model() -> None:
        z = pyro.sample(
            "z", categories(kind, weight("b", [0.1, -0.3, 0.5]).expand(2, 3)).to_event(1)
        )
        mean = weighed(kind, z, weight("w", [0.7, -0.2, 1.1])).prod(-1)
        pyro.sample("x", dist.Normal(mean, 0.5), obs=DATA[1])

    def guide() -> None:
        logits = weight("a", [[0.4, -0.6, 0.2], [1.0, 0.3, -0.5]])
        pyro.sample("z", categories(kind, logits).to_event(1))

    return Structure(model, guide)


def categorical_chain(kind: str, upper: int = 3, lower: int = 2) -> Structure:
    """z -> y in the guide, y -> z in the model, with so many categories."""
    table = [[0.4, -0.6, 0.2], [1.0, 0.3, -0.5], [-0.2, 0.0, 0.7]]

    def row(name: str, given: Tensor, rows: int, columns: int) -> Tensor:
        entries = weight(name, [line[:columns] for line in table[:rows]])
        return given @ entries if kind.startswith("one-hot") else entries[given]

    def model() -> None:
        y = pyro.sample("y", categories(kind, weight("c", [0.1, -0.3, 0.5][:lower])))
        z = pyro.sample("z", categories(kind, -row("b", y, lower, upper)))
        mean = weighed(kind, z, weight("w", [0.7, -0.2, 1.1][:upper]))
        mean = mean * (1 + weighed(kind, y, torch.tensor([0.3, -1.2, 0.8])[:lower]))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[0])

    def guide() -> None:
        z = pyro.sample("z", categories(kind, weight("a", [0.4, -0.6, 0.2][:upper])))
        pyro.sample("y", categories(kind, row("e", z, upper, lower)))

    return Structure(model, guide, ("z", "y"))


@pytest.mark.parametrize("kind", KINDS)
def test_categories_in_a_plate(kind: str) -> None:
    loss = am.VariationalLoss(estimators={"z": DisARM()})
    assert law_error(loss, categorical_plate(kind)) < 1e-10


@pytest.mark.parametrize("option", ["masked", "scaled"])
def test_categories_masked_and_scaled(option: str) -> None:
    loss = am.VariationalLoss(estimators={"z": DisARM()})
    assert law_error(loss, categorical_plate("categorical", option)) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_categories_in_an_event_with_a_joint_cost(kind: str) -> None:
    loss = am.VariationalLoss(estimators={"z": DisARM()})
    assert law_error(loss, categorical_event(kind)) < 1e-10


def test_categories_copy_by_copy() -> None:
    loss = am.VariationalLoss(estimators={"z": DisARM()}, vectorize=False)
    assert law_error(loss, categorical_event("categorical")) < 1e-10


@pytest.mark.parametrize(
    ("first", "second", "sizes"),
    [
        ("disarm", "disarm", (3, 2)),
        ("disarm", "enumerate", (3, 3)),
        ("enumerate", "disarm", (2, 3)),
        ("disarm", "leave one out", (3, 2)),
        ("leave one out", "disarm", (2, 2)),
    ],
)
def test_categories_on_a_dependent_chain(first: str, second: str, sizes: tuple[int, int]) -> None:
    kind = "one-hot" if first == second else "categorical"
    loss = am.VariationalLoss(estimators={"z": MIXED[first](), "y": MIXED[second]()})
    assert law_error(loss, categorical_chain(kind, *sizes)) < 1e-10


def bits_by_probabilities() -> Structure:
    """Two bits in one event, given by probabilities, one of them close to zero."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
        pyro.sample("x", dist.Normal((z * weight("w", [0.7, 1.1])).prod(-1), 0.5), obs=DATA[0])

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(probs=weight("a", [0.35, 1e-4])).to_event(1))

    return Structure(model, guide)


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
def test_the_chain_rule_from_logits_to_probabilities(estimator: str) -> None:
    loss = am.VariationalLoss(estimators={"z": ANTITHETIC[estimator]()})
    assert law_error(loss, bits_by_probabilities()) < 1e-10


# --- mutants -------------------------------------------------------------------------------------


class Unweighed(DisARM):
    """A mutant: the sign alone, without sigmoid(|logit|)."""

    def coefficient(self, bits: Tensor, twin: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
        return 0.5 * (bits - twin)


class Uncentred(ARM):
    """A mutant: 1 - u, half of whose variation is gone."""

    def coefficient(self, bits: Tensor, twin: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
        return 1 - uniform


class Probability(DisARM):
    """A mutant: the gradient in the logits is taken for that in the probabilities."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        p = torch.sigmoid(antithetic.bit_logits(site.law))
        ratio = drawn.memory["score"] * 0 + (p - p.detach())
        return Draw(
            site, drawn.value, 2, memory={"score": ratio * (drawn.value[0] - drawn.value[1])}
        )


class Joint(DisARM):
    """A mutant: one coefficient for the whole event."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        score = draw.memory["score"].sum(-1, keepdim=True).expand_as(draw.memory["score"])
        drawn = Draw(draw.site, draw.value, 2, draw.axis, {"score": score})
        return super().surrogate(drawn, cost)


class Complement(DisARM):
    """A mutant: the twin is the other bit, which has not the site's law."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        value = torch.stack([drawn.value[0], 1 - drawn.value[0]])
        return Draw(site, value, 2, memory=drawn.memory)


def two_uniforms(logits: Tensor, noise: Noise, site: str) -> tuple[Tensor, Tensor, Tensor]:
    """A mutant of `antithetic.twins`: the twin has a uniform of its own."""
    uniforms = [noise.uniform(tuple(logits.shape), logits, site=site) for _ in range(2)]
    bits = [(torch.logit(u) < logits).to(logits.dtype) for u in uniforms]
    return bits[0], bits[1], uniforms[0]


MUTANTS: dict[str, Make] = {
    "unweighed": Unweighed,
    "uncentred": Uncentred,
    "of the probability": Probability,
    "joint coefficient": Joint,
    "complement": Complement,
}


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_fail(mutant: str) -> None:
    structure = "event_dims" if mutant == "joint coefficient" else "plate"
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators=same_for_all(pair, MUTANTS[mutant]))
    assert law_error(loss, pair) > 1e-3


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
def test_a_twin_with_its_own_uniform_fails(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(antithetic, "twins", two_uniforms)
    loss = am.VariationalLoss(estimators={"z": ANTITHETIC[estimator]()})
    assert law_error(loss, EVERY["global_site"]("bernoulli")) > 1e-3


def only_the_split(*given: Tensor) -> Tensor:
    """A mutant of the coefficients: nothing behind the earlier category."""
    _, _, first, second, logits = given
    place = torch.arange(logits.shape[-1])
    split = (place == torch.minimum(first, second).unsqueeze(-1)) & (first != second).unsqueeze(-1)
    sign = torch.where(first < second, 1.0, -1.0).unsqueeze(-1)
    return sign * split * torch.sigmoid(logits.abs())


def unseen_bits(*given: Tensor) -> Tensor:
    """A mutant of the coefficients: the scores of the bits behind the earlier category's own."""
    bits, twin, *rest = given
    return STICKS(twin, bits, *rest)


STICKS = antithetic._stick_coefficients


@pytest.mark.parametrize("mutant", [only_the_split, unseen_bits])
def test_mutants_of_the_categories_fail(
    mutant: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(antithetic, "_stick_coefficients", mutant)
    loss = am.VariationalLoss(estimators={"z": DisARM()})
    assert law_error(loss, categorical_plate("categorical")) > 1e-3


# --- captured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
@pytest.mark.parametrize("structure", ["event_dims", "chain", "subsampled"])
def test_captured_steps(structure: str, estimator: str) -> None:
    compare(structure, "bernoulli", ANTITHETIC[estimator])


@pytest.mark.parametrize("kind", ["categorical", "one-hot by probabilities"])
def test_captured_steps_of_categories(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVERY, "categorical_chain", categorical_chain)
    compare("categorical_chain", kind, DisARM)


# --- a sigmoid belief network --------------------------------------------------------------------


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
def test_a_sigmoid_belief_network_by_all_cells_of_its_uniforms(estimator: str) -> None:
    """81 cells of four uniforms for each image, a weighted plate: one run is the expectation."""
    network = Network()
    middles, widths = cells(network.logits())
    index = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(81, 1, 4, 1).expand(81, 5, 4, 1)
    uniforms = middles.expand(81, 5, 4, 3).gather(-1, index).reshape(405, 4)
    weights = widths.expand(81, 5, 4, 3).gather(-1, index).reshape(405, 4).prod(-1) / 5
    args = (network.images.repeat(81, 1), weights)
    loss = am.VariationalLoss(estimators={"z": ANTITHETIC[estimator]()})
    loss.warm_up(network.model, network.guide, args)
    estimate = loss.estimate(network.model, network.guide, args, {}, noise=Given(uniforms))
    estimate.loss.backward()
    store = pyro.get_param_store()
    assert estimate.loss.item() == pytest.approx(-network.elbo, abs=1e-9)
    for name, norm in network.norms.items():
        assert store[name].grad.norm().item() == pytest.approx(norm, abs=1e-9)
    some = -store["V"].grad[0, 10:13]
    torch.testing.assert_close(some, torch.tensor(network.some_of_v), atol=1e-9, rtol=0)


@pytest.mark.parametrize("estimator", sorted(ANTITHETIC))
def test_a_sigmoid_belief_network_by_sampling(estimator: str) -> None:
    """torch's own uniforms, against the enumerated gradient; a tenth less is noticed."""
    network = Network()
    truth = row_gradients(network, am.Enumerate(), 1)[0]
    draws = row_gradients(network, ANTITHETIC[estimator](), 4000)
    assert not rejected(draws, truth)
    assert rejected(0.9 * draws, truth)
    assert rejected(row_gradients(network, Unweighed(), 4000), truth)
