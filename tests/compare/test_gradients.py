from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.stats import kstest
from torch import Tensor, nn

import amortized as am
from amortized.compare.bias import bias_of
from amortized.compare.candidates import Ours, Pair
from amortized.compare.draws import Sampler
from amortized.compare.gradients import compare_gradients, product_interval
from amortized.compare.groups import trained
from amortized.compare.measure import LEAST_DRAWS, Timed, measure
from amortized.compare.moments import GroupSums, block_sums
from amortized.errors import EstimatorError, NonFiniteError, ProgramError, UsageError
from tests.compare import coin
from tests.laws.belief_network import Network

pytestmark = pytest.mark.float64
RUNS, DRAWS = 200, 1000


def repeated(estimator: object) -> list[GroupSums]:
    """Many comparisons' worth of draws of one estimator on the coin."""
    pair = Pair(coin.model, coin.guide, ())
    known = trained(pair)
    loss = Ours(am.VariationalLoss(estimators=estimator))
    sampler = measure(loss, pair, known, 50).sampler
    assert sampler.reason == ""
    draws = torch.cat([*sampler.chunks(RUNS * DRAWS)]).reshape(RUNS, DRAWS, 1)
    column = torch.tensor([0])
    return [GroupSums(block_sums([run], DRAWS, [column]), column, 0) for run in draws]


def exactly(value: float) -> GroupSums:
    column = torch.tensor([0])
    blocks = block_sums([torch.full((3, 1), value)], 3, [column])
    return GroupSums(replace(blocks, noiseless=True), column, 0)


def test_intervals_cover_the_exact_variances_and_p_values_are_uniform():
    covered = 0
    for name, exact in coin.VARIANCES.items():
        runs = repeated(name)
        intervals = [run.variance_interval(seed) for seed, run in enumerate(runs)]
        covered += sum(low <= exact <= high for low, high in intervals)
        p_values = [bias_of(run, exactly(coin.GRADIENT)).p_value for run in runs]
        assert kstest(p_values, "uniform").pvalue > 0.01, name
        assert sum(p < 0.01 for p in p_values) <= 8, name
    assert 0.93 <= covered / (RUNS * len(coin.VARIANCES)) <= 0.97


@pytest.mark.parametrize("estimator", [am.Relaxed(), coin.Broken()], ids=["relaxed", "broken"])
def test_biases_are_flagged_every_time(estimator: object):
    for run in repeated(estimator):
        assert bias_of(run, exactly(coin.GRADIENT)).p_value < 1e-4  # z = 3.9


def test_a_whole_comparison_on_the_coin():
    names = {name: name for name in coin.VARIANCES}
    candidates = {**names, "relaxed": am.Relaxed(), "broken": coin.Broken(), "sum": "enumerate"}
    found = compare_gradients(coin.model, coin.guide, (), candidates, seed=3)
    assert found.how == {"the ELBO": "exact, by enumeration"}
    assert found.groups == ["guide"]
    assert float(found.references["the ELBO"]["phi"]) == pytest.approx(coin.GRADIENT, rel=1e-12)
    for name, exact in coin.VARIANCES.items():
        row = found.row(name, "guide")
        assert row.variance == pytest.approx(exact, rel=0.2)
        assert row.work == pytest.approx(row.variance * row.seconds)
        assert row.snr == pytest.approx(abs(coin.GRADIENT) / exact**0.5, rel=0.5)
        assert row.verdict == ""
    assert found.row("relaxed", "guide").verdict == "biased, as declared"
    assert found.row("broken", "guide").verdict == "BIASED"
    summed = found.row("sum", "guide")
    assert (summed.variance, summed.work, summed.p_value) == (0.0, 0.0, 1.0)
    assert [found.row(n, "guide").model_evaluations for n in ("score_function", "disarm")] == [1, 2]


@pytest.mark.parametrize("reference", ["exact", "long"])
def test_an_outcome_that_is_never_met_leaves_no_verdict_and_no_best(reference: str):
    model, guide = coin.rare(1e-6)
    names = {"score": "score_function", "pairs": "leave_one_out", "sum": "enumerate"}
    found = compare_gradients(model, guide, (), names, num_draws=200, reference=reference, seed=0)
    for name in ("score", "pairs"):
        row = found.row(name, "guide")
        assert row.verdict == "too few draws" and not row.flagged
        assert row.variance_interval == (0.0, math.inf)
        assert math.isnan(row.work) and math.isnan(row.snr) and math.isnan(row.p_value)
    # nothing is drawn for it
    summed = found.row("sum", "guide")
    assert (summed.variance, summed.variance_interval, summed.work) == (0.0, (0.0, 0.0), 0.0)
    assert summed.snr == math.inf and not summed.flagged
    assert "unknown" in str(found) and "nan" not in str(found)


@pytest.mark.long
def test_whole_comparisons_cover_and_do_not_cry_wolf():
    covered, flagged, runs = 0, 0, 300
    names = {name: name for name in coin.VARIANCES}
    for seed in range(runs):
        found = compare_gradients(coin.model, coin.guide, (), names, seed=seed)
        for row in found.rows:
            low, high = row.variance_interval
            covered += low <= coin.VARIANCES[row.candidate] <= high
        flagged += any(row.flagged for row in found.rows)
    assert 0.93 <= covered / (runs * len(names)) <= 0.97
    assert flagged <= 8  # 3 are expected at most


def test_the_belief_network_against_its_enumerated_gradient():
    network = Network()
    batch = (network.images, torch.ones(5))
    candidates = {
        "disarm": "disarm",
        "leave_one_out": "leave_one_out",
        "broken": coin.Broken(),
        "pyro": pyro.infer.Trace_ELBO(),
    }
    found = compare_gradients(
        network.model, network.guide, batch, candidates, num_draws=400, parameters="V", seed=0
    )
    exact = found.references["the ELBO"]
    for name, norm in network.norms.items():
        assert float(exact[name].norm()) == pytest.approx(5 * norm, rel=1e-8)
    some = -5 * torch.tensor(network.some_of_v)
    torch.testing.assert_close(exact["V"][0, 10:13], some, rtol=1e-7, atol=1e-8)
    assert found.groups == ["model", "guide", "parameter V"]
    for name in ("disarm", "leave_one_out", "pyro"):
        assert not any(found.row(name, group).flagged for group in found.groups), name
    assert found.row("broken", "guide").flagged
    assert not found.row("broken", "model").flagged
    pyros, ours = found.row("pyro", "guide"), found.row("disarm", "guide")
    assert ours.variance_interval[1] < pyros.variance_interval[0]


def test_pyros_losses_agree_in_the_mean_where_nothing_is_exact():
    model, guide = coin.chain()
    candidates = {
        "ours": {"c": "enumerate"},
        "score": "score_function",
        "trace": pyro.infer.Trace_ELBO(),
        "graph": pyro.infer.TraceGraph_ELBO(),
    }
    batch = coin.chain_batch()
    found = compare_gradients(model, guide, batch, candidates, num_draws=200, seed=0)
    assert "2000 other draws" in found.how["the ELBO"]
    assert found.sampling["ours"] == found.sampling["score"] == ""
    assert found.groups == ["model", "guide", "site z", "site c"]
    assert not any(row.flagged for row in found.rows)


def test_a_bound_of_pyros_own_is_compared_with_itself():
    candidates = {"renyi": pyro.infer.RenyiELBO(alpha=0.5, num_particles=2)}
    found = compare_gradients(coin.model, coin.guide, (), candidates, num_draws=50, seed=0)
    target = "RenyiELBO(alpha=0.5, num_particles=2)"
    how = "500 other draws of candidate 'renyi' itself, for want of scores: no verdict"
    assert found.how == {target: how}
    assert found.row("renyi", "guide").verdict == "no reference"


def test_a_seed_gives_the_same_numbers_and_another_one_others():
    def run(seed: int | None) -> Tensor:
        found = compare_gradients(coin.model, coin.guide, (), {"a": "disarm"}, seed=seed)
        return found.means["a"]["phi"]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(None), run(None))  # the generator stays where it is


class Normed(nn.Module):
    """Batch norm in an encoder: a buffer that every run moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.line = nn.BatchNorm1d(2), nn.Linear(2, 1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.3))
            pyro.sample(
                "x", dist.Normal(b.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x
            )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.line(self.norm(x)).squeeze(-1)
            pyro.sample("b", dist.Bernoulli(logits=logits))


def test_nothing_is_disturbed():
    guide, batch = Normed(), coin.chain_batch()
    loss = am.VariationalLoss(estimators="neural_baseline")
    loss.warm_up(guide.model, guide, batch)
    guide.line.weight.grad = torch.ones(1, 2)
    pyro.param("mine", torch.tensor(1.0))
    before = {k: v.clone() for k, v in {**guide.state_dict(), **loss.state_dict()}.items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    candidates = {"neural": loss, "mean": "moving_average", "pyro": pyro.infer.Trace_ELBO()}
    compare_gradients(guide.model, guide, batch, candidates, num_draws=50, warmup_steps=5, seed=1)
    after = {**guide.state_dict(), **loss.state_dict()}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.equal(guide.line.weight.grad, torch.ones(1, 2))
    assert guide.line.bias.grad is None
    assert all(p.grad is None for p in loss.parameters())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert guide.training


def test_a_warm_up_moves_what_estimators_remember_and_nothing_else():
    def run(steps: int) -> float:
        candidates = {"mean": am.ScoreFunction(am.MovingAverage()), "neural": "neural_baseline"}
        found = compare_gradients(
            coin.model, coin.guide, (), candidates, warmup_steps=steps, num_draws=500, seed=0
        )
        exact = found.references["the ELBO"]["phi"]
        assert float(exact) == pytest.approx(coin.GRADIENT, rel=1e-12)
        return found.row("mean", "guide").variance

    # with the mean cost as a baseline: 5.76e-4
    assert run(0) > 1e-2
    assert run(500) < 2e-3


def test_a_fitted_pair_is_measured_at_its_own_parameters():
    pyro.param("phi", torch.tensor(3.0))
    svi = am.SVI(coin.model, coin.guide, am.VariationalLoss(estimators="enumerate"), lr=1e-2)
    svi.step(())
    found = compare_gradients(
        svi.model, svi.guide, (), {"a": "disarm"}, parameters=["phi"], num_draws=100
    )
    assert found.groups == ["guide", "parameter phi"]
    assert pyro.param("phi").item() == 3.0
    assert float(found.references["the ELBO"]["phi"]) == pytest.approx(coin.GRADIENT, rel=0.1)


def test_errors_name_the_candidate():
    def run(**candidates: object) -> None:
        compare_gradients(coin.model, coin.guide, (), candidates)

    with pytest.raises(UsageError, match=r"candidate 'b': unknown estimator 'disram'.*'disarm'"):
        run(a="disarm", b="disram")
    with pytest.raises(EstimatorError, match=r"candidate 'b': estimators\['z'\] matches no"):
        run(a="disarm", b={"z": "disarm"})
    with pytest.raises(EstimatorError, match=r"candidate 'b': site 'b'.*asks for Pathwise"):
        run(b="pathwise")
    with pytest.raises(UsageError, match=r"candidate 'b': found 3; expected a loss"):
        run(b=3)

    class Failing(pyro.infer.Trace_ELBO):
        def loss_and_grads(self, *args: object, **kwargs: object) -> float:
            raise NotImplementedError("no such thing")

    with pytest.raises(EstimatorError, match=r"candidate 'b': its gradient cannot.*no such thing"):
        run(b=Failing())


def test_a_gradient_that_is_not_finite_names_candidate_and_parameter():
    def roots() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(z > 0, z.sqrt(), 0.0))

    def normal() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(NonFiniteError, match=r"candidate 'a': the gradient of 'loc' is NaN or inf"):
        compare_gradients(roots, normal, (), {"a": None})

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.factor("f", torch.where(b > 0, torch.log(b - b), b))

    with pytest.raises(NonFiniteError, match=r"the reference: the gradient of 'phi' is NaN or inf"):
        compare_gradients(model, coin.guide, (), {"a": am.ScoreFunction()})


@pytest.mark.parametrize("spec", ["auto", am.VariationalLoss(estimators="auto")])
def test_a_choice_is_no_candidate(spec: Any):
    with pytest.raises(
        UsageError, match=r"candidate 'a': estimators='auto' is a choice.*choose fi"
    ):
        compare_gradients(coin.model, coin.guide, (), {"a": spec})


def test_wrong_arguments_are_refused():
    def run(candidates: object = None, **options: object) -> None:
        given = {"a": "disarm"} if candidates is None else candidates
        compare_gradients(coin.model, coin.guide, (), given, **options)

    for wrong in ({}, ["disarm"]):
        with pytest.raises(UsageError, match="expected a dict of losses or estimators by name"):
            run(wrong)
    with pytest.raises(UsageError, match="num_draws=10: expected an int, at least 50"):
        run(num_draws=10)
    with pytest.raises(UsageError, match="warmup_steps=-1"):
        run(warmup_steps=-1)
    with pytest.raises(UsageError, match="reference='enumerate': expected 'auto'"):
        run(reference="enumerate")
    with pytest.raises(UsageError, match="seed='x'"):
        run(seed="x")
    with pytest.raises(UsageError, match=r"parameters=\[1\]"):
        run(parameters=[1])
    with pytest.raises(UsageError, match=r"'phy' matches none of .*did you mean 'phi'"):
        run(parameters="phy")
    with pytest.raises(ProgramError, match=r"the model raised TypeError: .*0 positional"):
        compare_gradients(coin.model, coin.chain()[1], coin.chain_batch(), {"a": "disarm"})


def long(**options: Any) -> am.GradientComparison:
    return am.compare_gradients(
        coin.model,
        coin.guide,
        (),
        {"disarm": "disarm", "Pyro": Trace_ELBO()},
        reference="long",
        seed=0,
        **options,
    )


def test_a_budget_shortens_what_would_last_longer_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(Sampler, "pace", lambda self: 1e-3)
    found = long(num_draws=100_000, budget_seconds=1.0)
    assert LEAST_DRAWS < found.num_draws <= 250, "half of it, for two candidates"
    draws = int(found.how["the ELBO"].split()[0])
    assert found.num_draws <= draws <= 10 * found.num_draws and draws < 1000
    assert "as many draws as 1.0 s allow, of 100000 asked for" in str(found)
    again = long(num_draws=found.num_draws)
    for name, means in found.means.items():
        assert torch.equal(means["phi"], again.means[name]["phi"]), "the same draws"
    assert again.about == [] and again.how["the ELBO"].startswith(f"{10 * found.num_draws} ")


def test_a_budget_that_lasts_changes_nothing() -> None:
    found, free = (long(num_draws=60, budget_seconds=b) for b in (100.0, None))
    assert found.about == [] and found.how == free.how
    assert torch.equal(found.references["the ELBO"]["phi"], free.references["the ELBO"]["phi"])


def test_a_budget_keeps_the_least_that_intervals_need(monkeypatch) -> None:
    monkeypatch.setattr(Sampler, "pace", lambda self: 10.0)
    found = long(budget_seconds=0.5)
    assert found.num_draws == LEAST_DRAWS and found.how["the ELBO"].startswith("50 other")


def test_the_interval_of_the_work_has_the_error_of_the_seconds() -> None:
    whole = product_interval((2.0, 1.0, 4.0), Timed(1.0, (1.0, 1.0)))
    assert whole == pytest.approx((1.0, 4.0))
    wider = product_interval((2.0, 1.0, 4.0), Timed(1.0, (0.5, 2.0)))
    assert wider == pytest.approx((2 * 0.5**2**0.5, 2 * 2**2**0.5))
    assert product_interval((2.0, 1.0, math.inf), Timed(1.0, (0.5, 2.0)))[1] == math.inf
    assert product_interval((0.0, 0.0, 0.0), Timed(1.0, (0.5, 2.0))) == (0.0, 0.0)


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, "1"])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(am.UsageError, match=r"budget_seconds=.*: expected seconds above 0, or"):
        long(budget_seconds=budget)
