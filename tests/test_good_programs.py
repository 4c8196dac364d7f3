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


@pytest.mark.parametrize("name", PAIRS)
def test_it_trains_in_silence(name: str) -> None:
    history = (pair := made(name)).svi().fit(pair.batch, max_steps=3, progress=False)
    assert all(math.isfinite(loss) for loss in history["train_loss"])


@pytest.mark.parametrize("name", PAIRS)
def test_a_check_before_training_changes_nothing(name: str) -> None:
    losses = []
    for checked in (False, True):
        pair = made(name)
        if checked:
            am.check(pair.model, pair.guide, pair.batch, loss=pair.loss)
        history = pair.svi().fit(pair.batch, max_steps=2, seed=1, progress=False)
        losses.append(history["train_loss"])
    assert losses[0] == losses[1]
