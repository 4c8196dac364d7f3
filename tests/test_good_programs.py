"""Correct programs get no finding, train without a warning, and have a finite loss."""

from __future__ import annotations

import math

import pyro
import pytest

import amortized as am
from tests.catalogue import Pair, entries

PAIRS = entries("good_programs", "program")


def made(name: str) -> Pair:
    """The entry's pair, the same at each call."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return PAIRS[name].program()


def test_the_catalogue_is_large() -> None:
    assert len(PAIRS) >= 25


@pytest.mark.parametrize("name", PAIRS)
def test_the_check_finds_nothing(name: str) -> None:
    pair = made(name)
    report = am.check(pair.model, pair.guide, pair.batch, loss=pair.loss)
    assert report.ok, str(report)
    assert [*report.errors, *report.warnings] == [], str(report)


def losses(pair: Pair) -> list[float]:
    """Of three steps."""
    return pair.svi().fit(pair.batch, max_steps=3, seed=1, progress=False)["train_loss"]


@pytest.mark.parametrize("name", PAIRS)
def test_it_trains_in_silence_and_a_check_before_changes_nothing(name: str) -> None:
    plain = losses(made(name))
    assert all(math.isfinite(loss) for loss in plain)
    pair = made(name)
    am.check(pair.model, pair.guide, pair.batch, loss=pair.loss)
    assert losses(pair) == plain
