"""Every wrong program is named by `am.check`, and stopped or warned of by `fit` at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pyro
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

import amortized as am
from tests.catalogue import Expected, Pair, entries, words

PAIRS = entries("bad_programs", "program")
CALLS = entries("bad_programs", "call")


def made(entry: ModuleType) -> Pair:
    """The entry's pair, the same at each call."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return entry.program()


@contextmanager
def steps_counted() -> Iterator[list[int]]:
    """Counts the steps of all optimizers."""
    taken: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        yield taken
    finally:
        handle.remove()


def test_the_catalogue_is_large() -> None:
    assert len(PAIRS) + len(CALLS) >= 60


@pytest.mark.parametrize("name", PAIRS)
def test_the_check_finds_it(name: str) -> None:
    expected: Expected = PAIRS[name].EXPECTED
    pair = made(PAIRS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = am.check(pair.model, pair.guide, pair.batch, loss=pair.loss)
    found = [finding for finding in report.findings if finding.code == expected.code]
    assert found, f"no finding {expected.code!r}:\n{report}"
    lacking = [expected.missing_from(finding) for finding in found]
    assert [] in lacking, f"{lacking} missing:\n{report}"
    codes = [finding.code for finding in (*report.errors, *report.warnings)]
    assert {*codes} <= {expected.code, *expected.also}, f"unrelated:\n{report}"
    assert len(codes) - len({*codes}) < expected.places, f"said more than once:\n{report}"


@pytest.mark.parametrize("name", PAIRS)
def test_fit_stops_or_warns(name: str) -> None:
    expected: Expected = PAIRS[name].EXPECTED
    pair = made(PAIRS[name])
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught, steps_counted() as steps:
        warnings.simplefilter("always")
        try:
            pair.svi().fit(pair.batch, max_steps=1, progress=False)
        except am.AmortizedError as error:
            said.append(str(error))
    if expected.severity == "warning":
        said += [str(warning.message) for warning in caught]
    assert any(expected.is_named_in(sentence) for sentence in said), said
    assert expected.severity == "warning" or not steps, "the parameters moved"


@pytest.mark.parametrize("name", CALLS)
def test_the_call_is_refused(name: str) -> None:
    entry = CALLS[name]
    with steps_counted() as steps, pytest.raises(entry.EXPECTED.error) as caught:
        entry.call()
    lacking = [word for word in words(entry.EXPECTED.words) if word not in str(caught.value)]
    assert lacking == [], str(caught.value)
    assert len(steps) <= 1, f"only after {len(steps)} steps: {caught.value}"
