from __future__ import annotations

import dataclasses

import pytest

from amortized.compare.training.kept import DamagedError, read_trial
from amortized.compare.training.trial import Trial

TRIAL = Trial(
    "one", 3, 1, steps=[0, 6], seconds=[0.0, 0.5], wall=[0.0, 0.6], elbo=[-2.0, -1.0], start="ab"
)


def test_a_trial_comes_back_with_numbers_that_are_not_finite():
    held = {**vars(TRIAL), "elbo": ["-inf", -1]}
    assert read_trial(held, "one", 3, 6) == dataclasses.replace(TRIAL, elbo=[-float("inf"), -1])


@pytest.mark.parametrize("seed", [True, 2, "3"])
def test_another_trial_is_not_taken_for_it(seed: int):
    with pytest.raises(DamagedError, match="its trial has seed"):
        read_trial({**vars(TRIAL), "seed": seed}, "one", 3, 6)


def test_evidence_is_there_at_each_check_or_not_at_all():
    held = dict(vars(TRIAL))
    assert read_trial({**held, "log_evidence": [-1.0, 0.0]}, "one", 3, 6).log_evidence
    with pytest.raises(DamagedError, match="log_evidence has 1 numbers"):
        read_trial({**held, "log_evidence": [-1.0]}, "one", 3, 6)
