import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amortized.compare.pilot.attempt import GroupNoise
from amortized.compare.pilot.ranking import Signals, Work, best, shares


def noise(variance: float, mean: float, count: int = 1000) -> GroupNoise:
    return GroupNoise(variance, (0.8 * variance, 1.2 * variance), torch.tensor([mean]), count)


def attempt(*, seconds: float = 1.0, biased: bool = False, **groups: GroupNoise) -> Any:
    return SimpleNamespace(noise=groups, seconds=seconds, spread=0.0, biased=biased)


def work(value: float, spread: float = 0.01) -> Work:
    return Work(value, spread)


def test_work_is_seconds_times_the_root_of_one_plus_noise_averaged_over_groups():
    signals = Signals()
    exact = attempt(model=noise(0.0, 2.0), guide=noise(0.0, 1.0))
    noisy = attempt(seconds=2.0, model=noise(4.0, 0.0), guide=noise(3.0, 9.0))
    for one in (noisy, exact):
        signals.add(one)
    assert signals.work(exact).value == pytest.approx(1.0)
    # the signal is that of the least noisy means: 4 and 1
    assert signals.work(noisy).value == pytest.approx(2.0 * (2**0.5 + 4**0.5) / 2)
    high, low = 2.2**0.5 + 4.6**0.5, 1.8**0.5 + 3.4**0.5
    assert signals.work(noisy).spread == pytest.approx(math.log(high / low) / 2)


def test_for_steps_to_come_a_share_of_the_signal_counts():
    exact, noisy = attempt(guide=noise(0.0, 2.0)), attempt(guide=noise(0.08, 0.0))
    for share, steps in ((1.0, 1.02**0.5), (0.01, 3.0**0.5)):
        signals = Signals(share)
        for one in (noisy, exact):
            signals.add(one)
        assert signals.work(noisy).value == pytest.approx(steps)
        assert signals.nearly_noiseless(exact)
        # at most 5 % may be won
        assert signals.nearly_noiseless(noisy) == (share == 1.0)


@pytest.mark.parametrize("first", [True, False])
def test_a_biased_mean_is_no_reference_where_there_is_another(first):
    signals = Signals()
    exact = attempt(biased=True, guide=noise(0.0, 5.0))
    fair = attempt(guide=noise(10.0, 1.0))
    for one in (exact, fair) if first else (fair, exact):
        signals.add(one)
    assert signals.means["guide"] is fair.noise["guide"]
    assert signals.steps(exact)[0] > 3.0


def test_the_error_of_a_mean_is_no_signal():
    assert noise(10.0, 0.05, 1000).signal == pytest.approx(0.01)
    assert noise(10.0, 2.0, 1000).signal == pytest.approx(3.99)


def test_a_group_without_any_gradient_says_nothing():
    signals = Signals()
    still = attempt(model=noise(0.0, 0.0), guide=noise(1.0, 1.0))
    signals.add(still)
    assert signals.work(still).value == pytest.approx((1 + 1 / (1 - 1e-3)) ** 0.5)


def unseen(mean: float) -> GroupNoise:
    return GroupNoise(0.0, (0.0, math.inf), torch.tensor([mean]), 32, unseen=True)


def test_where_no_noise_was_met_nothing_is_known():
    signals = Signals()
    blind, fair = attempt(guide=unseen(0.1)), attempt(guide=noise(1.0, 0.5))
    for one in (blind, fair):
        signals.add(one)
    assert signals.means["guide"] is fair.noise["guide"]
    assert not signals.nearly_noiseless(blind) and signals.work(blind).spread == math.inf
    assert best([signals.work(fair), signals.work(blind)]) == 0
    assert best([signals.work(blind), signals.work(fair)]) == 0


def test_a_group_that_no_mapping_moves_stands_in_nobodys_way():
    signals = Signals()
    one = attempt(model=unseen(0.3), guide=noise(4.0, 1.0))
    other = attempt(model=unseen(0.3), guide=noise(0.1, 1.0))
    signals.add(one)
    assert signals.work(one).spread == math.inf, "one mapping alone says nothing"
    signals.add(other)
    assert best([signals.work(one), signals.work(other)]) == 1


def test_a_bias_counts_as_noise():
    signals = Signals()
    fair = attempt(guide=noise(0.1, 1.0))
    wrong = attempt(guide=noise(0.0, 3.0), biased=True)
    for one in (fair, wrong):
        signals.add(one)
    assert signals.means["guide"] is fair.noise["guide"]
    assert signals.steps(wrong)[0] == pytest.approx(5.0**0.5, rel=1e-3)


def test_only_what_is_clearly_better_replaces_the_first():
    assert best([work(1.0), work(0.97)]) == 0, "a gain below 5 % is none"
    assert best([work(1.0), work(0.7)]) == 1
    assert best([work(1.0), work(0.7, spread=0.5)]) == 0, "within its interval"
    assert best([work(1.0, spread=0.5), work(0.7)]) == 0


def test_of_equals_the_simpler_is_taken():
    assert best([work(1.0), work(0.52), work(0.5)]) == 1
    assert best([work(1.0), work(0.7), work(0.5)]) == 2


def test_sites_in_order_of_their_own_noise():
    signals = Signals()
    groups = {"guide": noise(5.0, 1.0), "site a": noise(1.0, 1.0), "site b": noise(9.0, 1.0)}
    signals.add(attempt(**groups))
    assert shares(groups, signals, ["a", "b", "c"]) == ["b", "c", "a"]
