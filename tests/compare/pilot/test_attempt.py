import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.checks.isolation import isolated, seed_torch
from amortized.compare.candidates import Pair
from amortized.compare.groups import trained
from amortized.compare.pilot.attempt import Attempt, Setting, clock_of
from amortized.errors import NonFiniteError
from amortized.estimators.choice import estimator_of
from tests.compare import coin


def ticking(step: float = 1e-3):
    ticks = itertools.count()
    return lambda: step * next(ticks)


def setting(**options) -> Setting:
    pair = Pair(coin.model, coin.guide, ())
    return Setting(pair, am.VariationalLoss(), **{"clock": ticking(), **options})


@pytest.mark.parametrize("name", ["score_function", "leave_one_out", "disarm"])
def test_the_variance_is_that_of_theory(name):
    at = setting()
    with isolated(coin.model, coin.guide):
        seed_torch(1)
        attempt = Attempt(at, trained(at.pair), {"b": estimator_of(name)})
        attempt.prepare(warm=False)
        attempt.draw(4000)
    noise = attempt.noise["guide"]
    assert noise.interval[0] < coin.VARIANCES[name] < noise.interval[1]
    assert float(noise.mean) == pytest.approx(coin.GRADIENT, abs=4 * noise.error**0.5)


def test_seconds_come_from_the_clock_and_count_what_is_beside():
    at = setting()
    with isolated(coin.model, coin.guide):
        known = trained(at.pair)
        first, second = (Attempt(at, known, {"b": am.DisARM()}) for _ in range(2))
        for attempt in (first, second):
            attempt.prepare(warm=False)
            attempt.draw(50)
        first.take_time()
        second.take_time(first)
    assert first.seconds == pytest.approx(1e-3 + 1.5e-4)
    assert second.seconds == pytest.approx(first.seconds)
    assert second.spread == pytest.approx(0.0, abs=1e-9)


def test_a_warm_up_moves_copies_only():
    loss = am.VariationalLoss(estimators="neural_baseline")
    loss.warm_up(coin.model, coin.guide, ())
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    at = setting(warmup_steps=5, learned=loss.estimators.by_name())
    with isolated(coin.model, coin.guide):
        attempt = Attempt(at, trained(at.pair), {"b": estimator_of("neural_baseline")})
        attempt.prepare(warm=False)
        same = {n: torch.equal(v, before[n]) for n, v in attempt.loss.state_dict().items()}
        attempt.prepare(warm=True)
        moved = {n: torch.equal(v, before[n]) for n, v in attempt.loss.state_dict().items()}
    assert all(same.values()), "a training that is under way goes on from what it has learned"
    assert not any(moved.values())
    assert all(torch.equal(v, before[n]) for n, v in loss.state_dict().items())


def test_a_gradient_that_is_not_finite_is_named():
    def model() -> None:
        pyro.sample("b", dist.Bernoulli(0.3))
        pyro.factor("f", (coin.phi() - coin.phi().detach()).abs().sqrt())

    pair = Pair(model, coin.guide, ())
    at = Setting(pair, am.VariationalLoss(), clock=ticking())
    with isolated(model, coin.guide):
        attempt = Attempt(at, trained(pair), {"b": estimator_of("leave_one_out")})
        attempt.prepare(warm=False)
        with pytest.raises(NonFiniteError, match="NaN or infinite in some of 64 draws"):
            attempt.draw(64)


def test_the_clock_is_the_processors():
    clock = clock_of([torch.zeros(())])
    assert 0 <= clock() <= clock()
