"""Trials out of files: what is no trial of this comparison is told from what is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, final

from amortized.compare.training.trial import Trial
from amortized.fit.checkpoint_values import number_of

_CURVES: Final = ("seconds", "wall", "elbo", "log_evidence")
_TEXTS: Final = ("candidate", "failure", "start", "train", "val")


@final
class DamagedError(Exception):
    """What is wrong with a file, in words that stand in brackets."""


def read_trial(held: Any, candidate: str, seed: int, max_steps: Any) -> Trial:
    """The trial of a candidate and a seed.

    Raises:
        DamagedError: something is missing, of another kind, or of another trial.
    """
    if not isinstance(held, Mapping):
        raise DamagedError(f"its trial is {_kind(held)}; expected an object")
    names = {field.name for field in fields(Trial)}
    other = sorted(names ^ held.keys())
    if other:
        raise DamagedError(f"its trial lacks {other[0]}, or it should not be there")
    for name, asked in (("candidate", candidate), ("seed", seed)):
        if held[name] != asked or type(held[name]) is not type(asked):
            raise DamagedError(f"its trial has {name} {held[name]!r}; expected {asked!r}")
    for name in _TEXTS:
        _refuse(not isinstance(held[name], str), name, held[name], "text")
    steps = held["steps"]
    curves = {name: _numbers(name, held[name]) for name in _CURVES}
    _refuse_steps(steps, max_steps, held["failure"])
    for name, values in curves.items():
        if len(values) != len(steps) and (name != "log_evidence" or values):
            raise DamagedError(f"{name} has {len(values)} numbers, and steps has {len(steps)}")
    _refuse_rest(held)
    return Trial(**{**held, **curves})


def _refuse_steps(steps: Any, max_steps: Any, failure: str) -> None:
    whole = isinstance(steps, list) and all(type(step) is int for step in steps)
    ordered = whole and steps[:1] == [0] and steps == sorted(set(steps))
    _refuse(not ordered, "steps", steps, "whole numbers that grow from 0")
    if not failure and steps[-1] != max_steps:
        raise DamagedError(f"its last step is {steps[-1]}; expected {max_steps}")


def _refuse_rest(held: Mapping[str, Any]) -> None:
    """What is shown, and what others are compared with."""
    for name in ("batches", "estimators"):
        fine = isinstance(held[name], dict) and all(isinstance(v, str) for v in held[name].values())
        _refuse(not fine, name, held[name], "an object of texts")
    notices = held["notices"]
    fine = isinstance(notices, list) and all(isinstance(notice, str) for notice in notices)
    _refuse(not fine, "notices", notices, "a list of texts")
    for name in ("failed_step", "evaluations"):
        _refuse(type(held[name]) not in (int, type(None)), name, held[name], "a whole number")
    _refuse(type(held["place"]) is not int, "place", held["place"], "a whole number")
    _refuse(type(held["per_datum"]) is not bool, "per_datum", held["per_datum"], "true or false")


def _numbers(name: str, values: Any) -> list[float]:
    _refuse(not isinstance(values, list), name, values, "a list of numbers")
    found = [number_of(value) for value in values]
    for value in found:
        _refuse(type(value) not in (int, float), name, value, "numbers")
    return found


def _refuse(wrong: bool, name: str, found: Any, expected: str) -> None:
    if wrong:
        raise DamagedError(f"{name}: found {_kind(found)}; expected {expected}")


def _kind(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
