"""One copy of a recipe for every site, with its own state, under its own name."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators.base import Site
from amortized.sites import SiteEstimators, escaped


def bits(*names: str) -> Any:
    def program() -> None:
        for place, name in enumerate(names):
            z = pyro.sample(name, dist.Bernoulli(torch.tensor(0.5)))
            pyro.factor(f"bonus of {name}", z * 0.0 + 10.0 * (place + 1))

    return program


def guide_of(*names: str) -> Any:
    return lambda: [pyro.sample(name, dist.Bernoulli(torch.tensor(0.5))) for name in names]


def averages(loss: am.VariationalLoss) -> dict[str, float]:
    return {key: value.item() for key, value in loss.state_dict().items()}


def test_every_site_that_a_glob_matches_learns_for_itself() -> None:
    """The first site is charged 30 (its own bonus and the later one's), the second 20."""
    recipe = am.ScoreFunction(am.MovingAverage(decay=0.5))
    loss = am.VariationalLoss(estimators={"z*": recipe})
    loss.learn(loss.estimate(bits("z1", "z2"), guide_of("z1", "z2"), (), {}))
    assert sorted(averages(loss).values()) == pytest.approx([10.0, 15.0])
    assert recipe.baseline is not None
    assert recipe.baseline.state_dict()["average"].item() == 0.0, "the recipe itself never learns"


NAMES = ["linear.weight", "linear_weight", "keys", "a b/c", "50%", "forward", "z%2Eq", "z.q"]


def test_any_site_name_is_a_key() -> None:
    """Dots, method names of a dict, and names that an escape could confuse."""
    assert len({escaped(name) for name in NAMES}) == len(NAMES)
    loss = am.VariationalLoss(estimators="moving_average")
    loss.estimate(bits(*NAMES), guide_of(*NAMES), (), {})
    assert len(averages(loss)) == len(NAMES)


def test_state_makes_a_round_trip() -> None:
    programs = bits("layer.z", "y"), guide_of("layer.z", "y")
    first, second = (am.VariationalLoss(estimators="moving_average") for _ in range(2))
    for _ in range(3):
        first.learn(first.estimate(*programs, (), {}))
    second.warm_up(*programs, ())
    assert averages(second) != averages(first)
    second.load_state_dict(first.state_dict())
    assert averages(second) == averages(first)
    second.learn(second.estimate(*programs, (), {}))
    first.learn(first.estimate(*programs, (), {}))
    assert averages(second) == averages(first)


def test_a_network_makes_a_round_trip() -> None:
    programs = bits("z"), guide_of("z")
    first, second = (am.VariationalLoss(estimators="neural_baseline") for _ in range(2))
    for seed, loss in enumerate((first, second)):
        pyro.set_rng_seed(seed)
        loss.warm_up(*programs, ())
    names = [name for name, _ in first.named_parameters()]
    assert names == [name for name, _ in second.named_parameters()] and len(names) == 4
    assert not all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_site_met_in_eval_mode_starts_in_eval_mode() -> None:
    loss = am.VariationalLoss(estimators="moving_average").eval()
    loss.estimate(bits("z"), guide_of("z"), (), {})
    assert not any(module.training for module in loss.modules())


def test_a_site_keeps_its_estimator_in_every_call() -> None:
    sites = SiteEstimators({"z": "moving_average"})
    site = Site("z", dist.Bernoulli(0.3))
    assert sites.choose(site, {}) is sites.choose(site, {})
    assert sites.choose(site, {}) is not sites.choose(Site("y", dist.Bernoulli(0.3)), {})


@pytest.mark.parametrize("event", [False, True])
def test_a_site_that_changes_its_distribution_is_refused(event: bool) -> None:
    """An average of one law's costs says nothing of another's; nor can it be enumerated."""

    def program(law: dist.Distribution) -> None:
        pyro.sample("z", law.expand_by([2]).to_event(1) if event else law)

    loss = am.VariationalLoss(estimators="enumerate")
    loss.loss(program, program, dist.Bernoulli(0.5))
    with pytest.raises(am.EstimatorError) as error:
        loss.loss(program, program, dist.Poisson(2.0))
    text = str(error.value)
    assert "site 'z'" in text and "Bernoulli" in text and "Poisson" in text


def test_a_site_may_change_its_wrapping() -> None:
    """Masks, event dims and expansions are not another law."""

    def program(law: dist.Distribution) -> None:
        pyro.sample("z", law)

    loss = am.VariationalLoss(estimators="moving_average")
    bit = dist.Bernoulli(torch.tensor(0.5))
    for law in (bit, bit.mask(False), bit.expand_by([2]).to_event(1), bit):
        loss.loss(program, program, law)


def test_a_refusal_names_site_reason_and_recipe() -> None:
    def program() -> None:
        pyro.sample("count", dist.Poisson(2.0), infer={"enumerate": "parallel"})

    with pytest.raises(am.EstimatorError) as error:
        am.VariationalLoss().loss(program, program)
    text = str(error.value)
    assert "site 'count' (infer['enumerate'] at the site) asks for Enumerate()" in text


def test_state_of_sites_not_met_yet_is_refused_with_the_remedy() -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    loss = am.VariationalLoss(estimators="moving_average")
    loss.warm_up(program, program, ())
    fresh = am.VariationalLoss(estimators="moving_average")
    with pytest.raises(am.UsageError, match="warm_up"):
        fresh.load_state_dict(loss.state_dict())
    fresh.warm_up(program, program, ())
    fresh.load_state_dict(loss.state_dict())


@pytest.mark.parametrize(
    "estimator", [am.ScoreFunction(), am.RELAX(), am.DoublyReparameterized()], ids=repr
)
@pytest.mark.parametrize("moves", [True, False])
def test_a_support_that_moves_with_the_parameters_has_no_score(
    estimator: am.Estimator, moves: bool
) -> None:
    """Where q is zero the density jumps, and the jump is no part of the score."""

    def guide() -> None:
        upper = pyro.param("upper", torch.tensor(1.5), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Uniform(0.0, upper if moves else upper.detach()))

    def model() -> None:
        pyro.sample("z", dist.Uniform(0.0, 3.0))

    loss = am.VariationalLoss(estimators={"z": estimator})
    loss.warm_up(model, guide, ())
    if not moves:
        assert loss.differentiable_loss(model, guide).isfinite()
        return
    with pytest.raises(am.EstimatorError, match=r"site 'z'.*Uniform moves.*am\.Pathwise"):
        loss.differentiable_loss(model, guide)
    pathwise = am.VariationalLoss(estimators={"z": am.Pathwise()})
    assert pathwise.differentiable_loss(model, guide).requires_grad


@pytest.mark.parametrize("vectorize", [True, False])
def test_annealing_goes_by_steps_behind_a_branch_too(vectorize: bool) -> None:
    """`deep` is reached by one copy of `top` only, and copy by copy that is not the first."""

    def model() -> None:
        top = pyro.sample("top", dist.Bernoulli(0.5))
        if not vectorize and top.item() == 1.0:
            pyro.sample("deep", dist.Bernoulli(0.5))

    estimators = {"top": "enumerate", "deep": am.Relaxed(1.0, end=0.1, steps=10)}
    loss = am.VariationalLoss(estimators=estimators, vectorize=vectorize)
    if vectorize:
        guide = guide_of("top", "deep")
        for _ in range(3):
            loss.loss_and_grads(guide, guide)
    else:
        for _ in range(3):
            loss.loss_and_grads(model, model)
    assert loss.state_dict()["estimators.by_site.site:deep.taken"].item() == 3
