"""Which estimator a site gets and why, and what a wrong wish is told."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import amortized as am
from amortized.estimators.base import Estimator, Site
from amortized.estimators.choice import NAMES, Recipes, default_for, estimator_of

BIT = Site("z", dist.Bernoulli(0.3))
SCORE = am.ScoreFunction()


def choose(
    given: Any, site: Site = BIT, wish: Any = None, enumerate_wish: bool = False
) -> tuple[Estimator, str]:
    choice = Recipes(given).choose(site, wish, enumerate_wish)
    return choice.recipe, choice.reason


@pytest.mark.parametrize("position", [0, 1])
def test_an_exact_name_beats_a_glob_wherever_it_stands(position: int) -> None:
    items = [("z", "enumerate"), ("*", "pathwise")]
    recipe, reason = choose(dict(items if position == 0 else items[::-1]))
    assert isinstance(recipe, am.Enumerate) and reason == "mapping 'z'"


def test_the_first_glob_that_matches_wins() -> None:
    given = {"c*": "pathwise", "z?": "pathwise", "z*": "enumerate", "*": "pathwise"}
    recipe, reason = choose(given)
    assert isinstance(recipe, am.Enumerate) and reason == "mapping 'z*'"


def test_the_mapping_beats_the_site_s_own_wishes() -> None:
    recipe, _ = choose({"z": SCORE}, wish="enumerate", enumerate_wish=True)
    assert recipe is SCORE


def test_the_site_s_estimator_beats_its_pyro_enumerate_mark() -> None:
    recipe, reason = choose({"other": "pathwise"}, wish=SCORE, enumerate_wish=True)
    assert recipe is SCORE and reason == "infer['estimator'] at the site"


def test_pyro_s_enumerate_mark_beats_the_default() -> None:
    recipe, reason = choose(None, enumerate_wish=True)
    assert isinstance(recipe, am.Enumerate) and reason == "infer['enumerate'] at the site"


@pytest.mark.parametrize(
    ("site", "text", "reason"),
    [
        (Site("z", dist.Gamma(1.0, 1.0)), "Pathwise()", "default: rsample"),
        (BIT, "ScoreFunction(baseline=MovingAverage(decay=0.9))", "not reparameterizable"),
        (Site("z", dist.Bernoulli(0.3), 4, -1), "ScoreFunction(baseline=LeaveOneOut())", "particl"),
        (Site("z", dist.Delta(torch.tensor(1.0))), "Pathwise()", "deterministic"),
    ],
)
def test_the_default_of_a_distribution(site: Site, text: str, reason: str) -> None:
    choice = default_for(site)
    assert repr(choice.recipe) == text
    assert choice.reason.startswith("default") and reason in choice.reason


def test_a_glob_speaks_of_random_sites_only() -> None:
    """A Delta carries a value that was drawn before; naming it is a mistake, matching it is not."""
    delta = Site("z", dist.Delta(torch.tensor(1.0)).to_event(0))
    recipe, reason = choose("leave_one_out", delta)
    assert isinstance(recipe, am.Pathwise) and reason == "deterministic"
    assert isinstance(choose({"z": "leave_one_out"}, delta)[0], am.ScoreFunction)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_an_estimator_of_its_own(name: str) -> None:
    assert isinstance(estimator_of(name), Estimator)
    assert len({repr(estimator_of(other)) for other in NAMES}) == len(NAMES)
    assert estimator_of(name) is not estimator_of(name)


def test_an_instance_stands_for_itself() -> None:
    assert estimator_of(SCORE) is SCORE


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [("pathwize", "did you mean 'pathwise'"), ("enumerated", "did you mean 'enumerate'")],
)
def test_a_misspelled_name_gets_a_suggestion(wrong: str, suggestion: str) -> None:
    with pytest.raises(am.UsageError) as error:
        am.VariationalLoss(estimators={"z": wrong})
    text = str(error.value)
    assert repr(wrong) in text and suggestion in text and "leave_one_out" in text


def test_a_far_name_gets_the_list_only() -> None:
    with pytest.raises(am.UsageError, match=r"unknown estimator 'qqq': expected one of pathwise"):
        am.VariationalLoss(estimators="qqq")


def test_a_baseline_is_told_where_it_belongs() -> None:
    with pytest.raises(am.UsageError, match=r"am\.ScoreFunction\(am\.LeaveOneOut\(\)\)"):
        am.VariationalLoss(estimators={"z": am.LeaveOneOut()})  # type: ignore[dict-item]


@pytest.mark.parametrize("wrong", [3, dict, None])
def test_what_is_no_estimator_is_refused(wrong: Any) -> None:
    with pytest.raises(am.UsageError, match=r"is no estimator: expected e\.g\. am\.Pathwise\(\)"):
        am.VariationalLoss(estimators={"z": wrong})


def test_auto_is_the_default_until_training_measures() -> None:
    loss = am.VariationalLoss(estimators="auto")
    rows = loss.describe(two_sites, two_sites, ()).rows
    assert [row.estimator for row in rows] == [
        "ScoreFunction(baseline=LeaveOneOut())",
        "Pathwise()",
    ]
    assert [row.why for row in rows] == [
        "infer['estimator'] at the site",
        "auto, not measured: default: rsample",
    ]
    assert repr(loss) == "VariationalLoss(ELBO(num_particles=1, kl='sample'), 'auto')"


def two_sites() -> None:
    pyro.sample("cluster", dist.Categorical(torch.ones(3)), infer={"estimator": "leave_one_out"})
    pyro.sample("code", dist.Normal(0.0, 1.0))


def reasons(estimators: Any, guide: Any = two_sites) -> dict[str, tuple[str, str]]:
    loss = am.VariationalLoss(estimators=estimators)
    return {r.site: (r.estimator, r.why) for r in loss.describe(two_sites, guide, ()).rows}


def test_describe_gives_the_reasons() -> None:
    assert reasons({"co*": "score_function"}) == {
        "cluster": ("ScoreFunction(baseline=LeaveOneOut())", "infer['estimator'] at the site"),
        "code": ("ScoreFunction()", "mapping 'co*'"),
    }
    assert reasons(None)["code"] == ("Pathwise()", "default: rsample")


def test_pyro_s_config_enumerate_is_understood() -> None:
    def guide() -> None:
        pyro.sample("cluster", dist.Categorical(torch.ones(3)))
        pyro.sample("code", dist.Normal(0.0, 1.0))

    rows = reasons(None, config_enumerate(guide, "parallel"))
    assert rows["cluster"] == ("Enumerate()", "infer['enumerate'] at the site")
    assert rows["code"][0] == "Pathwise()"


@pytest.mark.parametrize(
    ("key", "suggestion"), [("clutser", "did you mean 'cluster'"), ("x*", "['cluster', 'code']")]
)
def test_a_key_that_matches_no_site_is_refused(key: str, suggestion: str) -> None:
    loss = am.VariationalLoss(estimators={"cod?": "pathwise", key: "pathwise"})
    with pytest.raises(am.EstimatorError) as error:
        loss.loss(two_sites, two_sites)
    text = str(error.value)
    assert f"estimators[{key!r}] matches no latent site" in text and suggestion in text


def test_a_wrong_wish_at_the_site_is_named_too() -> None:
    def guide() -> None:
        pyro.sample("code", dist.Normal(0.0, 1.0), infer={"estimator": "enumerate"})

    with pytest.raises(am.EstimatorError, match=r"site 'code' \(infer\['estimator'\] at the site"):
        am.VariationalLoss().loss(guide, guide)


def test_one_recipe_for_all_serves_a_guide_without_latents() -> None:
    """Nothing was misspelled: there is nothing to estimate."""

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    value = am.VariationalLoss(estimators="pathwise").loss(model, lambda: None)
    assert value == pytest.approx(-dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item())


def test_a_key_of_a_branch_not_taken_yet_is_found_by_looking_again() -> None:
    def program() -> None:
        if pyro.sample("gate", dist.Bernoulli(0.5)) > 0.5:
            pyro.sample("rare", dist.Normal(0.0, 1.0))

    for seed in range(8):
        pyro.set_rng_seed(seed)
        loss = am.VariationalLoss(estimators={"rare": "pathwise", "gate": SCORE})
        loss.loss(program, program)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (am.DisARM, r"DisARM is a class.*am\.DisARM\(\)"),
        (am.LeaveOneOut, r"class of a baseline.*am\.ScoreFunction\(am\.LeaveOneOut\(\)\)"),
    ],
)
def test_a_class_is_told_from_an_estimator(spec: Any, words: str) -> None:
    with pytest.raises(am.UsageError, match=words):
        estimator_of(spec)
