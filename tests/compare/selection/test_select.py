import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from tests.compare import coin


def test_the_mapping_is_what_a_loss_takes():
    found = am.select_estimators(coin.model, coin.guide, (), ["leave_one_out", "enumerate"], seed=0)
    assert dict(found) == {"b": found["b"]} and len(found) == 1
    loss = am.VariationalLoss(estimators=found)
    (row,) = loss.describe(coin.model, coin.guide, ()).rows
    assert row.estimator == repr(found["b"]) == repr(am.Enumerate())
    assert found.options == ["b=enumerate"]


def test_several_data_and_sites_by_the_processors_time():
    model, guide = coin.chain()
    loss = am.VariationalLoss(estimators={"c": "score_function"})
    found = am.select_estimators(
        model, guide, coin.chain_batch(), {"c": ["enumerate"]}, seed=0, objective=loss
    )
    assert found.names.keys() == {"c", "z"} and found.names["z"] == "pathwise"
    assert found.reasons["z"] == "in use, and no candidate was offered for this site"
    assert found.row("c", found.names["c"]).verdict in ("chosen", "kept")
    assert all(row.work is not None for row in found.rows if row.site == "c")
    assert found.pilot_seconds > 0


def test_the_seconds_are_said_once():
    def guide() -> None:
        logits = coin.phi() if float(torch.rand(())) < 2 else -coin.phi()
        pyro.sample("b", dist.Bernoulli(logits=logits))

    found = am.select_estimators(coin.model, guide, (), ["disarm"], seed=0)
    said = [line for line in found.about if line.startswith("seconds")]
    assert len(said) == 1 and "as they are written" in said[0]


def test_a_bound_of_several_weights():
    found = am.select_estimators(
        coin.model,
        coin.guide,
        (),
        ["score_function", "leave_one_out", "enumerate"],
        seed=0,
        objective=am.IWAE(2),
    )
    assert found["b"] is not None and found.row("b", "leave_one_out").work is not None


def test_the_options_of_a_loss_are_kept():
    loss = am.VariationalLoss(am.ELBO(2), "disarm", vectorize=False)
    found = am.select_estimators(
        coin.model, coin.guide, (), ["leave_one_out", "enumerate"], seed=0, objective=loss
    )
    assert found.names["b"] in ("disarm", "leave_one_out", "enumerate")
    assert found.row("b", "disarm").work is not None, "it is what the loss has"


def test_a_site_that_nothing_was_offered_for_keeps_what_the_loss_has():
    model, guide = coin.chain()
    loss = am.VariationalLoss(estimators={"z": "measure_valued"})
    found = am.select_estimators(
        model, guide, coin.chain_batch(), {"c": ["enumerate"]}, seed=0, objective=loss
    )
    assert found.names["z"] == "measure_valued"


def test_one_seed_one_result():
    ticks = itertools.count()
    runs = [
        am.select_estimators(
            coin.model, coin.guide, (), ["disarm", "arm"], seed=3, clock=lambda: 1e-3 * next(ticks)
        )
        for _ in range(2)
    ]
    first, second = ([row.variance for row in run.rows] for run in runs)
    assert first == second and None not in first


def test_a_program_without_a_choice():
    def guide() -> None:
        pyro.sample("b", dist.Delta(pyro.param("loc", torch.tensor(0.5))))

    def model() -> None:
        pyro.sample("b", dist.Normal(0.0, 1.0))

    found = am.select_estimators(model, guide, ())
    assert dict(found) == {} and found.rows == []
    assert "nothing to choose: the guide has no latent site that is random" in str(found)
    assert "chosen" not in str(found)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"budget_seconds": -1.0}, am.UsageError, "budget_seconds=-1.0: expected seconds"),
        ({"budget_seconds": "1"}, am.UsageError, "budget_seconds='1'"),
        ({"warmup_steps": 0.5}, am.UsageError, "warmup_steps=0.5: expected an int"),
        ({"seed": "1"}, am.UsageError, "seed='1': expected an int or None"),
        ({"candidates": ["nobody"]}, am.UsageError, "unknown estimator 'nobody'"),
        ({"objective": am.ReweightedWakeSleep()}, am.EstimatorError, "takes samples as data"),
    ],
)
def test_a_wrong_argument_is_named(options, kind, match):
    with pytest.raises(kind, match=match):
        am.select_estimators(coin.model, coin.guide, (), **options)
