from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

import amortized as am
from amortized.compare.candidates import THE_ELBO, Ours, Pair, Pyros, as_candidate, flat, naming
from amortized.errors import NonFiniteError, UsageError
from tests.compare import coin


def test_what_is_a_candidate():
    loss = am.VariationalLoss(am.IWAE(3))
    made = as_candidate("a", loss)
    assert isinstance(made, Ours)
    assert made.loss is not loss
    assert made.target == "IWAE(num_particles=3)"
    for spec in (None, "disarm", {"b": "disarm"}, am.DisARM()):
        assert as_candidate("a", spec).target == THE_ELBO
    for pyros in (pyro.infer.TraceGraph_ELBO(), pyro.infer.JitTrace_ELBO()):
        made = as_candidate("a", pyros)
        assert isinstance(made, Pyros)
        assert made.target == THE_ELBO
    assert as_candidate("a", pyro.infer.TraceTMC_ELBO()).target != THE_ELBO
    with pytest.raises(UsageError, match=r"candidate 'a': found \['disarm'\]"):
        as_candidate("a", ["disarm"])


def test_bias_is_what_the_estimators_declare():
    pair = Pair(coin.model, coin.guide, ())
    for spec, biased in ((am.Relaxed(), True), ("disarm", False), (None, False)):
        made = as_candidate("a", spec)
        made.prepare(pair, 0)
        assert bool(made.bias) == biased


def test_a_baseline_of_pyros_stays_where_it_is_between_draws():
    def guide() -> None:
        options = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("b", pyro.distributions.Bernoulli(logits=coin.phi()), infer=options)

    pair = Pair(coin.model, guide, ())
    made = as_candidate("a", pyro.infer.TraceGraph_ELBO())
    made.prepare(pair, 3)
    name = "__baseline_avg_downstream_cost_b"
    before = pyro.param(name).item()
    leaf = pyro.get_param_store()._params["phi"]
    leaf.grad = torch.tensor(7.0)
    draws = [made.gradient(pair, [leaf]) for _ in range(20)]
    assert pyro.param(name).item() == before != 0
    assert leaf.grad.item() == 7.0
    # two values of b, and one baseline
    assert len(torch.cat(draws).unique()) == 2


def test_own_state_moves_in_the_warm_up_only():
    pair = Pair(coin.model, coin.guide, ())
    made = as_candidate("a", "moving_average")
    made.prepare(pair, 0)
    state = {k: v.clone() for k, v in made.loss.state_dict().items()}
    leaf = pyro.get_param_store()._params["phi"]
    made.gradient(pair, [leaf])
    assert all(torch.equal(v, state[k]) for k, v in made.loss.state_dict().items())
    made.prepare(pair, 1)
    assert not all(torch.equal(v, state[k]) for k, v in made.loss.state_dict().items())
    assert leaf.grad is None


def test_missing_gradients_are_zero():
    leaves = [torch.ones(2), torch.ones(1, 1)]
    assert flat([None, torch.full((1, 1), 2.0)], leaves).tolist() == [0.0, 0.0, 2.0]


def test_errors_keep_their_class_and_get_a_name():
    with pytest.raises(NonFiniteError, match="candidate 'a': bad"), naming("candidate 'a'"):
        raise NonFiniteError("bad")


@pytest.mark.parametrize("name", [1, None, ("a", "b")])
def test_a_name_that_is_no_text_is_refused(name: Any):
    with pytest.raises(am.UsageError, match=r"candidates: found .* as a name; expected text"):
        as_candidate(name, "disarm")
