import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.compare.pilot.options import name_of, options_at, refuse_candidates
from amortized.estimators.base import Site
from amortized.estimators.choice import NAMES, default_for, estimator_of

BIT = Site("b", dist.Bernoulli(torch.full((2,), 0.5)))
CODE = Site("z", dist.Normal(torch.zeros(2), 1.0))


def options(site, asked=None, own=None, *, biased=False, weighted=False, reason="default"):
    own = default_for(site).recipe if own is None else own
    return options_at(site, own, asked, biased=biased, weighted=weighted, reason=reason)


def test_what_serves_a_bit_is_what_estimators_declare():
    found = options(BIT)
    by_name = {option.name: option for option in found.options}
    assert set(by_name) == set(NAMES) - {"arm", "score_function"}
    for name, option in by_name.items():
        refusal = estimator_of(name).refusal(BIT)
        assert option.refusal == refusal if refusal else True
        assert (option.refusal == "") == (not refusal and not option.recipe.bias)
    assert found.start.name == "moving_average"
    assert {o.name for o in found.admissible if o.learns} >= {"moving_average", "rebar", "relax"}
    assert not by_name["enumerate"].learns and not by_name["unordered_set"].learns


def test_biased_ones_are_left_out_unless_asked_for_and_then_say_so():
    refused = {o.name: o.refusal for o in options(BIT).options if o.bias}
    assert refused.keys() == {"relaxed", "straight_through"}
    assert all(why.startswith("biased: ") for why in refused.values())
    served = {o.name: o.bias for o in options(BIT, biased=True).admissible}
    assert served["relaxed"] and served["straight_through"] and not served["disarm"]


def test_a_reparameterized_site_is_not_tried_with_scores():
    assert [o.name for o in options(CODE).options] == [
        "pathwise",
        "measure_valued",
        "doubly_reparameterized",
    ]
    assert options(CODE).start.name == "pathwise"


def test_candidates_for_all_sites_by_name_and_by_glob():
    asked = {"b": ["disarm", am.ScoreFunction(am.Constant(-3.0))], "*": ["enumerate"]}
    names = [o.name for o in options(BIT, asked).options]
    assert names == ["moving_average", "disarm", "ScoreFunction(baseline=Constant(-3.0))"]
    names = [o.name for o in options(CODE, ["enumerate", "pathwise"]).admissible]
    assert names == ["pathwise"]


def test_what_is_in_use_is_always_among_the_options():
    found = options(BIT, ["leave_one_out", "enumerate"])
    assert [o.name for o in found.admissible] == ["moving_average", "leave_one_out", "enumerate"]
    assert found.start.name == "moving_average"
    found = options(BIT, ["leave_one_out", "disarm"], am.DisARM())
    assert [o.name for o in found.admissible] == ["leave_one_out", "disarm"]
    assert found.start.name == "disarm"


def test_what_is_in_use_may_be_biased_and_says_so():
    found = options(BIT, ["leave_one_out", "straight_through"], am.StraightThrough())
    assert [o.name for o in found.admissible] == ["leave_one_out", "straight_through"]
    assert found.start.name == "straight_through" and found.start.bias
    assert [o.name for o in options(BIT, ["straight_through"]).admissible] == ["moving_average"]


@pytest.mark.parametrize("asked", [{"b": ["disarm"]}, {"*": ["enumerate"]}])
def test_a_site_that_no_candidate_serves_keeps_what_is_in_use(asked):
    found = options(CODE, asked)
    assert found.fixed == "" and [o.name for o in found.admissible] == ["pathwise"]
    refused = {o.name: o.refusal for o in found.options if o.refusal}
    assert refused.keys() == ({"enumerate"} if "*" in asked else set())
    assert all("no finite support" in why for why in refused.values())


def test_a_wish_of_the_program_stands():
    found = options(BIT, reason="infer['estimator'] at the site")
    assert found.admissible == []
    assert found.fixed == "the program asks for it: infer['estimator'] at the site"
    assert found.options == [], "nobody asked for another one"


def test_what_is_asked_for_beside_a_wish_of_the_program_is_refused_by_name():
    found = options(BIT, ["disarm", "moving_average"], reason="infer['estimator'] at the site")
    assert found.admissible == []
    (option,) = found.options
    assert (option.name, option.refusal) == (
        "disarm",
        "the program asks for moving_average: infer['estimator'] at the site",
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_with_a_name_is_found_by_it(name):
    assert name_of(estimator_of(name)) == name


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ("disarm", r"found 'disarm' for '\*'; expected a list of estimators"),
        ({"b": "disarm"}, r"found 'disarm' for 'b'"),
        ([], "expected a list"),
        (["dsarm"], "unknown estimator 'dsarm'"),
        (
            {"x*": ["disarm"]},
            r"candidates\['x\*'\] matches no random latent .*, which has \['b'\]",
        ),
    ],
)
def test_what_is_no_list_of_candidates_is_refused(asked, match):
    with pytest.raises(am.UsageError, match=match):
        refuse_candidates(asked, ["b"])
