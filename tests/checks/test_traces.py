from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from amortized.checks.traces import broadcast_law, is_ours, line_of, module_of
from amortized.programs.survey import survey_guide


def raised(program: Callable[..., Any]) -> Exception:
    error = survey_guide(program, (), {}).error
    assert error is not None
    return error


def test_the_line_and_the_statement() -> None:
    def program() -> None:
        scale = torch.tensor(-1.0)
        pyro.sample(
            "z",
            dist.Normal(0.0, scale),
        )

    line = line_of(raised(program))
    assert line is not None
    assert (line.file, line.site) == ("test_traces.py", "z")


def test_a_distribution_made_before_its_statement() -> None:
    def program() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        law = dist.Normal(0.0, -1.0)
        pyro.sample(name="b", fn=law)

    line = line_of(raised(program))
    assert line is not None and line.site == "b"


def test_a_failure_that_belongs_to_no_statement() -> None:
    def program() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        raise RuntimeError("late")

    line = line_of(raised(program))
    assert line is not None and line.site is None
    assert line_of(RuntimeError("never raised")) is None


def test_the_innermost_module() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 5))
    assert module_of(raised(lambda: net(torch.zeros(2)))) is net[1]
    assert module_of(raised(lambda: 1 / 0)) is None


def test_what_a_plate_could_not_broadcast() -> None:
    def program() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    assert broadcast_law(raised(program)).batch_shape == (4,)
    assert broadcast_law(raised(lambda: 1 / 0)) is None


def test_whose_error_it_is() -> None:
    def divided() -> None:
        raise TypeError("mine")

    errors = []
    for call in (divided, lambda: line_of(3), lambda: dist.Normal(0.0, -1.0)):  # pyright: ignore
        try:
            call()
        except Exception as error:
            errors.append(is_ours(error))
    assert errors == [False, True, False]
