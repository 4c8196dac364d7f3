import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.checks.isolation import isolated, seed_torch
from amortized.compare.candidates import Pair
from amortized.compare.pilot.attempt import Setting
from amortized.compare.pilot.search import searched
from tests.compare import coin


def ticking(step: float = 1e-3):
    ticks = itertools.count()
    return lambda: step * next(ticks)


def look(pair: Pair, candidates=None, budget=math.inf, *, seed: int = 0, in_use=None, **options):
    setting = Setting(pair, am.VariationalLoss(None, in_use), clock=ticking(), warmup_steps=2)
    with isolated(pair.model, pair.guide):
        seed_torch(seed)
        return searched(setting, candidates, budget, **options)


def two() -> Pair:
    """A bit in the guide above a category, the category with much the noisier gradient."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        c = pyro.sample("c", dist.Categorical(torch.ones(3)))
        pyro.factor("f", 0.1 * b + torch.tensor([0.0, 3.0, -3.0])[c])

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_logit", torch.tensor(0.3))))
        pyro.sample("c", dist.Categorical(logits=pyro.param("c_logits", torch.zeros(3))))

    return Pair(model, guide, ())


def coin_pair() -> Pair:
    return Pair(coin.model, coin.guide, ())


@pytest.mark.parametrize("seed", range(3))
def test_at_equal_seconds_the_least_variance_wins(seed):
    names = ["score_function", "leave_one_out", "disarm"]
    found = look(coin_pair(), names, seed=seed)
    assert min(names, key=coin.VARIANCES.__getitem__) == found.chosen["b"].name == "disarm"


def test_enumeration_wins_where_all_is_enumerable():
    found = look(two(), ["moving_average", "leave_one_out", "enumerate"])
    assert {site: o.name for site, o in found.chosen.items()} == dict.fromkeys("bc", "enumerate")
    verdicts = {(r.site, r.candidate): r.verdict for r in found.rows}
    assert verdicts["b", "enumerate"] == verdicts["c", "enumerate"] == "chosen"
    assert [r.site for r in found.rows] == ["b"] * 3 + ["c"] * 3
    assert found.learned.keys() == {"b", "c"}


def test_without_a_budget_all_stays_as_it_is():
    found = look(coin_pair(), budget=0.0)
    assert found.chosen["b"].name == "moving_average"
    verdicts = {row.candidate: row.verdict for row in found.rows}
    assert verdicts["moving_average"] == "kept" and verdicts["enumerate"] == "not measured"
    assert all(row.work is None for row in found.rows)


def test_the_budget_ends_the_pilot_and_what_is_known_decides():
    whole = look(coin_pair(), ["moving_average", "disarm", "leave_one_out", "arm"])
    assert all(row.work is not None for row in whole.rows)
    part = look(coin_pair(), ["moving_average", "disarm", "leave_one_out", "arm"], budget=0.14)
    measured = [row.candidate for row in part.rows if row.work is not None]
    assert 1 < len(measured) < 4 and measured == [r.candidate for r in part.rows[: len(measured)]]
    assert part.rows[-1].why == "the budget ended before it"


def test_a_budget_may_depend_on_the_seconds_of_a_step():
    asked = []

    def budget(seconds: float) -> float:
        asked.append(seconds)
        return 50 * seconds

    found = look(coin_pair(), budget=budget)
    assert asked == [pytest.approx(1.15e-3 / 2)], "too little for two candidates"
    assert all(row.work is None for row in found.rows)


def test_a_candidate_that_fails_is_recorded_with_its_sentence():
    class Failing(am.DisARM):
        def surrogate(self, draw, cost):
            raise RuntimeError("no  such\nthing")

        def __repr__(self):
            return "Failing()"

    found = look(coin_pair(), ["moving_average", Failing(), "leave_one_out"])
    row = found.rows[1]
    assert (row.candidate, row.verdict, row.why) == (
        "Failing()",
        "failed",
        "RuntimeError: no such thing",
    )
    assert found.rows[2].work is not None


def test_biased_candidates_are_measured_on_request_only():
    names = ["moving_average", "straight_through"]
    pair = Pair(_smooth, coin.guide, ())
    refused = look(pair, names)
    assert refused.chosen["b"].name == "moving_average"
    assert [r.verdict for r in refused.rows] == ["kept", "refused"]
    allowed = look(pair, names, biased=True)
    assert allowed.rows[1].work is not None and allowed.rows[1].bias


def _smooth() -> None:
    b = pyro.sample("b", dist.Bernoulli(logits=coin.phi().detach()))
    pyro.factor("f", (b - coin.T) ** 2)


def test_a_program_that_asks_for_an_estimator_gets_it():
    def guide() -> None:
        logits = coin.phi()
        pyro.sample("b", dist.Bernoulli(logits=logits), infer={"estimator": "disarm"})

    found = look(Pair(coin.model, guide, ()))
    (row,) = found.rows
    assert (row.candidate, row.verdict) == ("disarm", "fixed")


def test_what_is_in_use_is_what_others_have_to_beat():
    found = look(coin_pair(), ["score_function", "disarm"], in_use={"b": "disarm"})
    assert found.before == {"b": "disarm"} and found.chosen["b"].name == "disarm"
    verdicts = {row.candidate: row.verdict for row in found.rows}
    assert verdicts == {"score_function": "worse", "disarm": "kept"}


def test_the_default_is_in_use_where_a_loss_names_none_and_is_measured():
    found = look(coin_pair(), ["score_function", "disarm"])
    assert found.before == {"b": "moving_average"} and found.chosen["b"].name == "disarm"
    rows = {row.candidate: row for row in found.rows}
    assert rows.keys() == {"moving_average", "score_function", "disarm"}
    assert all(row.work is not None for row in rows.values())
    assert rows["disarm"].why.endswith("of the work of moving_average")


def test_what_is_in_use_is_kept_where_no_candidate_is_better():
    found = look(coin_pair(), ["score_function"], in_use={"b": "enumerate"})
    assert found.chosen["b"].name == "enumerate"
    rows = {row.candidate: row for row in found.rows}
    assert (rows["enumerate"].verdict, rows["score_function"].verdict) == ("kept", "worse")
    assert rows["enumerate"].why == "in use, and no candidate was clearly better"


def test_a_biased_one_in_use_is_compared_with_the_means_of_those_without_a_bias():
    pair = Pair(_smooth, coin.guide, ())
    found = look(pair, ["enumerate"], in_use={"b": "straight_through"})
    rows = {row.candidate: row for row in found.rows}
    assert rows["straight_through"].bias and rows["straight_through"].work is not None
    # its variance is small, its squared bias is not
    assert rows["straight_through"].steps > 2.0 and found.chosen["b"].name == "enumerate"


@pytest.mark.parametrize(
    ("candidates", "budget", "why"),
    [
        ({"b": ["enumerate"]}, math.inf, "in use, and no candidate was offered for this site"),
        (["enumerate"], math.inf, "in use, and no candidate serves this site"),
        (["leave_one_out"], 0.0, "in use, and the budget ended before anything was measured"),
    ],
)
def test_why_a_site_keeps_what_nothing_was_measured_beside(candidates, budget, why):
    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.factor("f", b * pyro.sample("z", dist.Normal(0.0, 1.0)))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=coin.phi()))
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    found = look(Pair(model, guide, ()), candidates, budget)
    rows = {row.candidate: row for row in found.rows if row.site == "z"}
    assert (rows["pathwise"].verdict, rows["pathwise"].why) == ("kept", why)
    if candidates == ["enumerate"]:
        assert rows["enumerate"].verdict == "refused"
        assert "no finite support" in rows["enumerate"].why


def test_what_has_no_noise_is_not_compared_with_what_evaluates_as_much():
    names = ["moving_average", "leave_one_out", "enumerate"]
    found = look(coin_pair(), names, in_use={"b": "enumerate"})
    rows = {row.candidate: row for row in found.rows}
    # one copy in the place of two may take less time
    assert rows["moving_average"].work is not None
    assert rows["leave_one_out"].work is None
    assert rows["leave_one_out"].why.endswith("hardly any noise, and this one evaluates no less")


@pytest.mark.parametrize("start", ["score_function", "leave_one_out"])
def test_what_is_rare_is_no_lack_of_noise(start):
    pair = Pair(*coin.rare(1e-5), ())
    found = look(pair, ["disarm", "leave_one_out", "score_function", "enumerate"], in_use=start)
    rows = {row.candidate: row for row in found.rows}
    assert found.chosen["b"].name == start, "nothing is known"
    for name in ("leave_one_out", "score_function"):
        assert "all 512 draws are equal" in rows[name].why, "more were made before giving up"
        assert rows[name].variance_interval == (0.0, math.inf)
    assert not any("hardly any noise" in row.why for row in found.rows)


def test_candidates_may_come_from_a_generator():
    names = ["leave_one_out", "enumerate"]
    for asked in ((name for name in names), {"b": (name for name in names)}):
        found = look(coin_pair(), asked)
        assert {row.candidate for row in found.rows} == {"moving_average", *names}
    for empty in (iter(()), {"b": iter(())}, {}, []):
        with pytest.raises(am.UsageError, match="candidates"):
            look(coin_pair(), empty)


class Slow(am.DisARM):
    """Moves a clock by a second at each evaluation."""

    now = 0.0

    def surrogate(self, draw, cost):
        Slow.now += 1.0
        return super().surrogate(draw, cost)

    def __repr__(self) -> str:
        return "Slow()"


def slowly(budget: float):
    """Ticks of a millisecond, and the seconds of `Slow`."""
    ticks = itertools.count()
    pair = coin_pair()
    setting = Setting(
        pair,
        am.VariationalLoss(),
        clock=lambda: Slow.now + 1e-3 * next(ticks),
        captured=False,
        warmup_steps=2,
    )
    with isolated(pair.model, pair.guide):
        seed_torch(0)
        found = searched(setting, ["leave_one_out", Slow(), "disarm"], budget)
    return {row.candidate: row for row in found.rows}


def test_a_step_longer_than_the_work_of_another_is_not_drawn_from():
    slow = slowly(math.inf)["Slow()"]
    assert (slow.verdict, slow.draws, slow.variance) == ("worse", 0, None)
    assert slow.seconds == pytest.approx(1.0, rel=0.1)
    assert slow.why == "a step of 1e+03 ms would be too long without any noise"


def test_a_candidate_that_the_budget_does_not_last_for_leaves_it_to_others():
    rows = slowly(20.0)
    assert rows["Slow()"].verdict == "not measured" and rows["Slow()"].seconds is None
    assert "a step takes about" in rows["Slow()"].why
    assert rows["disarm"].work is not None


def test_many_copies_are_measured_last():
    def model() -> None:
        c = pyro.sample("c", dist.Categorical(torch.ones(8)))
        pyro.factor("f", torch.arange(8.0)[c])

    def guide() -> None:
        pyro.sample("c", dist.Categorical(logits=pyro.param("logits", torch.zeros(8))))

    pair = Pair(model, guide, ())
    names = ["moving_average", "enumerate", "leave_one_out"]
    assert all(row.work is not None for row in look(pair, names).rows)
    rows = {row.candidate: row for row in look(pair, names, budget=0.12).rows}
    assert rows["leave_one_out"].work is not None and rows["enumerate"].work is None


def test_nothing_is_disturbed():
    pair = Pair(*coin.chain(), coin.chain_batch())
    pyro.get_param_store()["phi"] = torch.tensor(0.25)
    state = torch.get_rng_state()
    look(pair, {"c": ["leave_one_out", "neural_baseline"]})
    assert torch.equal(state, torch.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["phi"]
