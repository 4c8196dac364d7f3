from __future__ import annotations

import json
import math
from typing import Any

import matplotlib.pyplot as plt
import pytest

from amortized.compare.training.result import TrainingComparison
from amortized.compare.training.trial import Trial
from amortized.errors import UsageError


def trial(candidate: str, seed: int, elbo: list[float], place: int = 1, **changes: Any) -> Trial:
    count = len(elbo)
    return Trial(
        candidate,
        seed,
        place,
        steps=[10 * i for i in range(count)],
        seconds=[0.5 * i for i in range(count)],
        wall=[0.6 * i for i in range(count)],
        elbo=elbo,
        log_evidence=[value + 1 for value in elbo],
        **changes,
    )


def comparison(**changes: Any) -> TrainingComparison:
    trials = [
        trial("good", 0, [-9.0, -4.0, -2.0]),
        trial("good", 1, [-9.0, -5.0, -3.0]),
        trial("slow", 1, [-9.0, -7.0, -4.5]),
        trial("slow", 0, [-9.0, -8.0, -4.0]),
        trial("wild", 0, [-9.0, -3.0, -1.0]),
        trial("wild", 1, [-9.0, -6.0], failed_step=13, failure="the loss is NaN"),
    ]
    asked: dict[str, Any] = {
        "trials": trials,
        "max_steps": 20,
        "evaluations": {"good": 2, "slow": 1, "wild": 2},
        "held_out": True,
        "particles": 10,
    }
    return TrainingComparison(**{**asked, **changes})


def test_trials_are_found_by_candidate_in_the_order_of_seeds():
    found = comparison()
    assert [t.seed for t in found.of("slow")] == [0, 1]
    assert len(found.finished("wild")) == 1
    with pytest.raises(UsageError, match="no candidate 'goo': expected one of"):
        found.of("goo")


def test_curves_are_means_as_far_as_all_trials_went():
    curve = comparison().curve("good")
    assert curve.at == [0.0, 10.0, 20.0]
    assert [mean.value for mean in curve.means] == [-9.0, -4.5, -2.5]
    assert comparison().curve("good", "log_evidence", "seconds").at == [0.0, 0.5, 1.0]
    assert [mean.value for mean in comparison().curve("wild").means] == [-9.0, -4.5]


def test_the_best_is_one_whose_trials_all_finished():
    found = comparison()
    assert found.best == "good"
    assert found.final("wild").value == -1.0
    assert found.behind("slow").value == pytest.approx(1.75)
    assert found.behind("slow").count == 2
    assert found.behind("good").value == 0.0
    only = comparison(trials=[t for t in found.trials if t.candidate == "wild"])
    assert only.best == "wild"


def test_times_are_read_between_checks():
    found = comparison()
    time = found.time_to("good", -4.5, "steps")
    assert time.value == pytest.approx((9.0 + 12.5) / 2)
    assert time.count == 2
    assert found.times_to("good", {0: -4.5, 1: -5.0}, "steps") == pytest.approx({0: 9.0, 1: 10.0})
    assert found.time_to("good", -20.0).value == 0.0


def test_a_target_that_is_missed_leaves_no_mean():
    found = comparison()
    some = found.time_to("slow", -4.0, "steps")
    # one trial is there at the end, step 20, and one never
    assert (some.value, some.low, some.high, some.count) == (math.inf, 20.0, math.inf, 1)
    assert found.times_to("slow", -4.0, "steps") == {0: 20.0, 1: math.inf}
    never = found.time_to("slow", -1.0, "seconds")
    assert (never.value, never.low, never.count) == (math.inf, 1.0, 0)


def test_each_seed_has_a_target_that_every_candidate_reaches_which_learns():
    found = comparison()
    assert found.targets == {0: -4.0, 1: -4.5}
    stuck = [*found.trials, trial("stuck", 0, [-9.0, -9.0, -8.9])]
    with_stuck = comparison(trials=stuck, evaluations={**found.evaluations, "stuck": 1})
    assert with_stuck.targets == found.targets
    none = [trial("stuck", 0, [-9.0, -9.0])]
    lone = comparison(trials=none, evaluations={"stuck": 1})
    assert lone.targets == {} and lone.sheet().rows[0][-2:] == ["-", "-"]


def test_the_faster_one_is_ahead_where_seeds_start_at_different_levels():
    """One value for all seeds would be reached from the start under one seed, by anybody."""
    trials = [
        trial("fast", 0, [-100.0, -60.0, -59.0, -58.0]),
        trial("fast", 1, [-20.0, -12.0, -11.0, -10.0]),
        trial("late", 0, [-100.0, -99.0, -98.0, -60.0]),
        trial("late", 1, [-20.0, -19.0, -18.0, -12.0]),
        trial("lucky", 0, [-100.0, -99.0, -98.0, -97.0]),
        trial("lucky", 1, [-20.0, -12.0, -12.0, -12.0]),
    ]
    found = comparison(trials=trials, evaluations=dict.fromkeys(("fast", "late", "lucky"), 1))
    assert found.targets == {0: -60.0, 1: -12.0}
    steps = {name: found.time_to(name, against="steps").value for name in found.candidates}
    assert steps == pytest.approx({"fast": 10.0, "late": 30.0, "lucky": math.inf})
    cells = {row[0]: row[6:] for row in found.sheet().rows}
    assert cells["lucky"] == ["> 20 (1 of 2)", "> 1.00 (1 of 2)"]
    assert cells["fast"][0] == "10"
    assert "best one there: -60.00 to -12.00" in str(found)


def test_what_training_chose_is_shown_as_it_was_at_the_end():
    def chosen(seed: int, count: int, name: str) -> Trial:
        return trial("auto", seed, [-9.0, -4.0], evaluations=count, estimators={"b": name})

    trials = [chosen(0, 2, "DisARM()"), chosen(1, 2, "DisARM()")]
    found = comparison(trials=trials, evaluations={"auto": 1})
    assert found.sheet().rows[0][2] == found.evals("auto") == "2"
    assert "candidate 'auto' ended with b: DisARM() (seeds 0, 1); trial.notices" in str(found)
    other = comparison(trials=[*trials, chosen(2, 8, "Enumerate()")], evaluations={"auto": 1})
    assert other.sheet().rows[0][2] == "varies"
    assert "ended with b: Enumerate() (seeds 2)" in str(other)


def test_the_table_ranks_candidates_and_says_what_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "150")
    text = str(comparison())
    rows = comparison().sheet().rows
    assert [row[0] for row in rows] == ["good", "slow", "wild"]
    assert rows[2][1] == "1 of 2" and rows[0][4] == "best"
    # (8.3 + 10) / 2, the second being where the trial failed
    assert rows[1][6] == "20" and rows[2][6] == "> 9 (1 of 2)"
    assert "candidate 'wild', seed 1, failed at step 13: the loss is NaN" in text
    assert "nats per data point of validation data" in text and "interrupted" not in text
    assert "interrupted: 3 trials are missing" in str(comparison(missing=3))
    alone = comparison(held_out=False, trials=comparison().trials[:1])
    assert "training data: there are no others" in str(alone)
    assert alone.sheet().rows[0][3] == "-2.00", "one trial has no interval"


def test_numbers_that_are_not_finite_pass():
    bad = [trial("good", 0, [-9.0, math.nan, -math.inf])]
    found = comparison(trials=bad, evaluations={"good": 1})
    assert found.best is None
    str(found), found.table("markdown")
    assert json.loads(found.table("json"))["trials"][0]["elbo"] == [-9.0, None, None]


def test_records_have_a_row_a_check():
    found = comparison().records()
    assert len(found) == 17
    assert found[1] == {
        "candidate": "good",
        "seed": 0,
        "step": 10,
        "seconds": 0.5,
        "wall": 0.6,
        "elbo": -4.0,
        "log_evidence": -3.0,
        "failed_step": None,
    }
    assert comparison().table("csv").count("\n") == 18


def test_wrong_words_for_a_figure_are_refused():
    wrong: Any = "epochs"
    with pytest.raises(UsageError, match=r"plot\(against='epochs'\): expected one of"):
        comparison().plot(against=wrong)
    with pytest.raises(UsageError, match=r"plot\(metric='epochs'\)"):
        comparison().plot(metric=wrong)
    bare = [Trial("good", 0, 1, steps=[0], seconds=[0.0], wall=[0.0], elbo=[-1.0])]
    with pytest.raises(UsageError, match="none of the trials has such numbers"):
        comparison(trials=bare, evaluations={"good": 1}).plot(metric="log_evidence")
    plt.close("all")
