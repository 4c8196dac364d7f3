from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.compare.gradients import compare_gradients
from amortized.errors import UsageError
from tests.compare import coin

pytestmark = pytest.mark.float64


def normal_model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def normal_guide() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


def test_a_long_run_is_of_scores_and_never_of_a_candidate():
    candidates = {"score": "score_function", "path": "pathwise"}
    found = compare_gradients(normal_model, normal_guide, (), candidates, num_draws=300, seed=0)
    how = "3000 other draws of the loss with leave-one-out scores at all sites"
    assert found.how == {"the ELBO": how}
    # of the loss: loc + (loc - x)
    assert abs(float(found.references["the ELBO"]["loc"]) + 0.4) < 0.2
    assert not any(row.verdict for row in found.rows) and found.about == []
    with pytest.raises(UsageError, match="reference='exact': the gradient of the ELBO cannot"):
        compare_gradients(normal_model, normal_guide, (), candidates, reference="exact")


def jump_model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    loc = torch.where(z > 0.3, 2.0, -1.0)
    pyro.sample("x", dist.Normal(loc, 0.7), obs=torch.tensor(1.0))


def test_a_biased_pathwise_gradient_does_not_make_scores_look_biased():
    candidates = {
        "score": "score_function",
        "pairs": am.VariationalLoss(am.ELBO(2), "leave_one_out"),
        "path": "pathwise",
    }
    found = compare_gradients(jump_model, normal_guide, (), candidates, seed=0)
    assert {row.candidate: row.verdict for row in found.rows} == {
        "score": "",
        "pairs": "",
        "path": "BIASED",
    }
    said = " and ".join(found.about)
    assert "candidates 'score' and 'path' declare no bias and contradict each other" in said
    assert "candidates 'pairs' and 'path'" in said and "'score' and 'pairs'" not in said


def test_a_program_that_cannot_evaluate_copies_has_scores_all_the_same():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = 2.0 if z > 0.3 else -1.0
        pyro.sample("x", dist.Normal(loc, 0.7), obs=torch.tensor(1.0))

    found = compare_gradients(model, normal_guide, (), {"path": "pathwise"}, num_draws=200, seed=0)
    assert found.how == {"the ELBO": "2000 other draws of the loss with plain scores at all sites"}
    assert found.row("path", "guide").verdict == "BIASED"


def test_a_site_without_a_score_leaves_no_verdict():
    def guide() -> None:
        width = pyro.param("width", torch.tensor(1.0))
        pyro.sample("z", dist.Uniform(0.0, width))

    def model() -> None:
        z = pyro.sample("z", dist.Uniform(0.0, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    found = compare_gradients(model, guide, (), {"path": "pathwise"}, num_draws=60, seed=0)
    assert found.how == {
        "the ELBO": "600 other draws of candidate 'path' itself, for want of scores: no verdict"
    }
    assert found.row("path", "guide").verdict == "no reference"


def test_a_biased_candidate_is_no_reference():
    options = {"num_draws": 200, "reference": "long", "seed": 0}
    for candidates in ({"relaxed": am.Relaxed(), "score": "score_function"}, {"r": am.Relaxed()}):
        found = compare_gradients(coin.model, coin.guide, (), candidates, **options)
        how = "2000 other draws of the loss with leave-one-out scores at all sites"
        assert found.how == {"the ELBO": how}


def test_finite_sites_are_summed_out_where_others_are_left():
    found = compare_gradients(
        *coin.chain(), coin.chain_batch(), {"all": "score_function"}, num_draws=100, seed=0
    )
    how = "1000 other draws of the loss with finite sites enumerated and leave-one-out scores"
    assert found.how == {"the ELBO": how}


def test_a_random_minibatch_is_not_exact():
    def model() -> None:
        with pyro.plate("data", 4, subsample_size=2) as rows:
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(b, 1.0), obs=torch.arange(4.0)[rows])

    def guide() -> None:
        with pyro.plate("data", 4, subsample_size=2):
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.1))))

    found = compare_gradients(model, guide, (), {"sum": "enumerate"}, num_draws=50, seed=0)
    assert "500 other draws" in found.how["the ELBO"]


def test_other_bounds_have_references_of_their_own():
    candidates = {
        "elbo": "leave_one_out",
        "iwae": am.VariationalLoss(am.IWAE(2), "leave_one_out"),
    }
    found = compare_gradients(coin.model, coin.guide, (), candidates, num_draws=200, seed=0)
    assert found.how["the ELBO"] == "exact, by enumeration"
    assert "2000 other draws" in found.how["IWAE(num_particles=2)"]
    assert not any(row.flagged for row in found.rows)
    assert "candidate 'iwae' has the bound IWAE(num_particles=2)" in str(found)
