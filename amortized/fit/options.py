"""What a training was asked for: kept in its checkpoints, and compared when it is resumed."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from amortized.fit.callbacks import Callback, EarlyStopping, numbered
from amortized.fit.checkpoint_values import json_value
from amortized.fit.plan import Plan
from amortized.fit.step import Stepper

Options = dict[str, Any]

# What a checkpoint brings back with the state that moves; all other options are read anew.
_RESTORED: Final = ("lr", "optimizer", "scheduler", "seed")

# A loader's batches are its own affair, and those of tensors are compared before this.
_NOT_COMPARED: Final = ("batch_size", "training")

# They follow from the rates and the machine, or name what is no option.
_OF_A_GROUP: Final = frozenset(
    {"params", "name", "initial_lr", "fused", "foreach", "capturable", "differentiable"}
)
_OF_A_SCHEDULER: Final = frozenset({"base_lrs", "_last_lr"})

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
_PLAIN: Final = (bool, int, float, str, type(None))


def options_of(plan: Plan, stepper: Stepper) -> Options:
    """The options of a training by name, as JSON values.

    Those of optimizer and scheduler are what they are built with: to be called before the first
    step, when both exist.
    """
    schedule = plan.schedule
    options = {
        **plan.config,
        "data_plate": [plan.data.name, plan.data.size],
        "precision": stepper.parameters.precision,
        "gradient_clip_val": plan.gradient_clip_val,
        "kl_weight": plan.kl_weight.weight,
        "n_epochs_kl_warmup": plan.kl_weight.warmup,
        "limit_val_batches": plan.limit_val_batches,
        "check_val_every_n_epoch": plan.check_val_every_n_epoch,
        "non_finite": plan.non_finite,
        "non_finite_limit": plan.non_finite_limit,
        **_of_early_stopping(plan.callbacks),
        **_of_optimizer(stepper, with_rates=plan.config.get("lr") is None),
    }
    if schedule is not None:
        options["scheduler_interval"] = schedule.interval
        built = schedule.state_dict()["state"]
        options |= {f"scheduler({n})": v for n, v in built.items() if n not in _OF_A_SCHEDULER}
    return json_value({name: _plain(value) for name, value in options.items()}, "config")


def settled(saved: Mapping[str, Any], given: Options) -> Options:
    """The options in use after a resume; one warning names those that were changed.

    Args:
        saved: the entry ``config`` of a checkpoint's metadata.
        given: those of the call that resumes.
    """
    used, changes, restored = dict(given), [], False
    for name in given.keys() & saved.keys():
        if name.partition("(")[0] in _RESTORED:
            used[name] = saved[name]
    for name, now in given.items():  # what one of both versions does not know says nothing
        then = saved.get(name, now)
        if then == now or name in _NOT_COMPARED or (name == "seed" and now is None):
            continue
        which = "the saved one" if name.partition("(")[0] in _RESTORED else "the given one"
        restored = restored or which == "the saved one"
        changes.append(f"{name}: saved {_shown(then)}, given {_shown(now)}, {which} is used")
    if changes:
        remedy = (
            "; to train on with another lr, optimizer, scheduler or seed, start a new training: "
            "svi.load(path), then svi.fit(...) without resume_from"
        )
        warnings.warn(
            f"resumed with changed options: {'; '.join(changes)}{remedy if restored else ''}",
            stacklevel=2,
        )
    return used


def _of_early_stopping(callbacks: Iterable[Callback]) -> Options:
    found = {n: c for n, c in numbered(callbacks) if isinstance(c, EarlyStopping)}
    options: Options = {"EarlyStopping callbacks": len(found)}
    for name, stopping in found.items():
        label = name.removesuffix("1") if name == "EarlyStopping1" else name
        options |= {f"{label}({key})": value for key, value in stopping.options.items()}
    return options


def _of_optimizer(stepper: Stepper, *, with_rates: bool) -> Options:
    """By name, one value if the groups agree."""
    by_name: dict[str, dict[str, Any]] = {}
    for group in stepper.optimizer.built.param_groups:
        for key, value in group.items():
            if key not in _OF_A_GROUP and (with_rates or key != "lr"):
                by_name.setdefault(f"optimizer({key})", {})[group.get("name", "all")] = value
    return {name: _one(values) for name, values in by_name.items()}


def _one(values: Mapping[str, Any]) -> Any:
    """The value itself where all have the same."""
    different = list(map(repr, values.values()))
    return next(iter(values.values())) if len(set(different)) == 1 else dict(values)


def _shown(value: Any) -> str:
    return repr(_one(value) if isinstance(value, dict) and value else value)


def _plain(value: Any) -> Any:
    """Numbers and text as they are, functions by name and options, other things by their kind."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return _ADDRESS.sub("", value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return _ADDRESS.sub("", f"{_plain(value.func)}({', '.join(given)})")
    named = getattr(value, "__qualname__", None)
    return named if callable(value) and isinstance(named, str) else type(value).__qualname__
