"""Objectives by name."""

from __future__ import annotations

import pytest

import amortized as am
from amortized.objectives.base import Objective
from amortized.objectives.choice import objective_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("elbo", "ELBO(num_particles=1, kl='sample')"),
        ("elbo:beta=4,free_bits=0.5", repr(am.ELBO(beta=4, free_bits=0.5))),
        ("IWAE", "IWAE(num_particles=5)"),
        ("renyi: alpha=-1", "Renyi(alpha=-1, num_particles=5)"),
        ("reweighted-wake-sleep:phi=sleep", repr(am.ReweightedWakeSleep(phi="sleep"))),
        ("reweighted_wake_sleep:phi=0.5", repr(am.ReweightedWakeSleep(phi=0.5))),
        ("tvo:partition=4", repr(am.TVO(partition=4))),
        ("tvo:partition=[0, 0.2, 1],side=upper", repr(am.TVO(5, [0.0, 0.2, 1.0], "upper"))),
        ("elbo:beta={'z': 4.0, 'y': 1}", repr(am.ELBO(beta={"z": 4.0, "y": 1}))),
        ("forward_kl", "ForwardKL()"),
    ],
)
def test_names_and_arguments(text: str, found: str) -> None:
    assert repr(objective_of(text)) == found


def test_every_exported_objective_has_a_name() -> None:
    exported = [v for v in vars(am).values() if isinstance(v, type) and issubclass(v, Objective)]
    made = {type(objective_of(name)) for name in _names()}
    assert made == set(exported) - {am.Objective, am.Reweighted}


def _names() -> list[str]:
    with pytest.raises(am.UsageError) as refused:
        objective_of("none")
    listed = str(refused.value).split("expected one of ")[1].split("; did you mean")[0]
    return listed.split(", ")


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("iwea", {}, r"objective 'iwea'.*did you mean 'iwae'"),
        ("renyi:beta=2", {}, r"objective 'renyi'.*alpha.*found 'beta=2'"),
        ("iwae:5", {}, r"name=value.*found '5'"),
        ("forward_kl", {"num_particles": 3}, r"'forward_kl' has no particles"),
        ("iwae", {"kl": "analytic"}, r"'iwae' has no KL"),
        ("renyi:alpha=", {}, r"name=value.*found 'alpha='"),
        ("renyi:alpha=1)(", {}, r"name=value.*found 'alpha=1\)\('"),
        ("renyi:alpha=many", {}, r"alpha='many'"),
    ],
)
def test_mistakes(text: str, options: dict, sentence: str) -> None:
    with pytest.raises(am.UsageError, match=sentence):
        objective_of(text, **options)
