"""What a checkpoint may hold: plain values, JSON, and the fingerprint of the parameters."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from amortized.errors import CheckpointError

_NUMBERS: Final = (type(None), bool, int, float, str)
_NON_FINITE: Final = ("inf", "-inf", "nan")
_LEAVES: Final = (*_NUMBERS, complex, torch.Size, torch.dtype, torch.device)
_SEQUENCES: Final = (list, tuple)
_MAPPINGS: Final = (dict, OrderedDict, Counter)

# A longer number is pickled in a way that weights_only=True does not read.
_MAX_INT_BYTES: Final = 255


def storable(value: Any, where: str = "state") -> Any:
    """A copy of a nested value that is loaded without running code, bit for bit.

    Tensors are detached and stay on their device; one that is a view of a larger storage is
    copied, so that the rest of the storage is not saved with it.

    Raises:
        CheckpointError: a value of a type that ``torch.load(weights_only=True)`` refuses; the
            message names its place.

    >>> storable({"lr": 0.1, "betas": (0.9, 0.999)})
    {'lr': 0.1, 'betas': (0.9, 0.999)}
    >>> storable({"optimizer": {"x": {1, 2}}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    amortized.errors.CheckpointError: state['optimizer']['x'] is of type set; a checkpoint holds ...
    """
    try:
        return _storable(value, where)
    except RecursionError:
        raise CheckpointError(
            f"{where} is nested too deeply or contains itself; a checkpoint holds a tree of dicts, "
            "lists and tuples: flatten it"
        ) from None


def _storable(value: Any, where: str) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    kind = type(value)
    if isinstance(value, Tensor):
        return _stored_tensor(value, where)
    if kind is int and value.bit_length() // 8 >= _MAX_INT_BYTES:
        raise CheckpointError(
            f"{where} is an integer of {value.bit_length()} bits; a checkpoint holds less than "
            f"{8 * _MAX_INT_BYTES}: save it as text"
        )
    if kind in _LEAVES:
        return value
    if kind in _SEQUENCES:
        return kind([_storable(item, f"{where}[{i}]") for i, item in enumerate(value)])
    if kind in _MAPPINGS:
        return _stored_mapping(value, where)
    raise _refused(
        where,
        value,
        "a checkpoint holds tensors, numbers, strings, None, dicts, lists and tuples",
    )


def _stored_mapping(value: Any, where: str) -> Any:
    copy = type(value)()
    for key, item in value.items():
        if type(key) not in _NUMBERS:
            raise _refused(f"a key of {where}", key, "keys are strings or numbers")
        copy[_storable(key, f"a key of {where}")] = _storable(item, f"{where}[{key!r}]")
    if type(value) is OrderedDict:  # the versions of the layers ride on a module's state dict
        for name, item in vars(value).items():
            setattr(copy, name, _storable(item, f"{where}.{name}"))
    return copy


def _stored_tensor(value: Tensor, where: str) -> Tensor:
    if type(value) not in (Tensor, Parameter):
        raise _refused(where, value, "a checkpoint holds plain tensors")
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        raise CheckpointError(
            f"{where} is a {value.layout} tensor of {value.dtype} on {value.device}; a checkpoint "
            "holds dense tensors that have data: convert it"
        )
    plain = value.detach().resolve_conj().resolve_neg()
    if plain.untyped_storage().nbytes() > plain.numel() * plain.element_size():
        plain = plain.clone()
    return plain


def json_value(value: Any, where: str) -> Any:
    """A nested value as JSON gives it back: tuples become lists, infinity and NaN their names.

    Raises:
        CheckpointError: what JSON cannot hold; the message names its place.

    >>> json_value({"sizes": (64, 8), "lr": 0.001, "limit": float("inf")}, "config")
    {'sizes': [64, 8], 'lr': 0.001, 'limit': 'inf'}
    """
    try:
        return _json_value(value, where)
    except RecursionError:
        raise CheckpointError(
            f"{where} is nested too deeply or contains itself; it is written as JSON: flatten it"
        ) from None


def _json_value(value: Any, where: str) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) in _NUMBERS:
        infinite = type(value) is float and not math.isfinite(value)
        return str(value) if infinite else value  # JSON has no number for it
    if type(value) in _SEQUENCES:
        return [_json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) in _MAPPINGS:
        for key in value:
            if type(key) is not str:
                raise _refused(f"a key of {where}", key, "it is written as JSON: keys are strings")
        return {key: _json_value(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise _refused(where, value, "it is written as JSON: numbers, strings, None, dicts and lists")


def number_of(value: Any) -> Any:
    """Infinity and NaN from the names that `json_value` gave them; anything else as it is.

    >>> number_of("-inf"), number_of(2.5)
    (-inf, 2.5)
    """
    return float(value) if type(value) is str and value in _NON_FINITE else value


def _refused(where: str, value: Any, expected: str) -> CheckpointError:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return CheckpointError(f"{where} is of type {name}; {expected}: convert it or leave it out")


def brief(found: object, length: int = 120) -> str:
    """The first sentence of an error, or the beginning of a text, on one line.

    >>> brief(ValueError("wrong sign. Please see the manual"))
    'ValueError: wrong sign'
    """
    line = " ".join(str(found).split()).split(". ")[0]
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    if isinstance(found, BaseException):
        return f"{type(found).__name__}: {line}" if line else type(found).__name__
    return line


def canonical(value: Any) -> bytes:
    """The one way of writing a JSON value that checksums are taken of.

    >>> canonical({"b": 1, "a": [0.5, None]})
    b'{"a":[0.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def checksum(value: Any) -> str:
    """The sha256 of a JSON value, the same whatever the order of its keys and its layout."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint(parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Names, dtypes and shapes of parameters, and one hash of them all.

    >>> fingerprint({"w": torch.zeros(2, 3)})["parameters"]
    {'w': ['float32', [2, 3]]}
    """
    table = {name: [_dtype(p), list(p.shape)] for name, p in parameters.items()}
    return {"parameters": table, "hash": checksum(table)}


def differences(
    fingerprint_of_file: Mapping[str, Any], parameters_now: Mapping[str, Tensor]
) -> list[str]:
    """How the parameters of a program differ from those in a file: one sentence each.

    Args:
        fingerprint_of_file: the entry ``fingerprint`` of a checkpoint's metadata.
        parameters_now: the parameters of the program, by name.

    >>> differences(fingerprint({"w": torch.zeros(2, 3)}), {"w": torch.zeros(4, 3)})
    ['w: the file has (2, 3), the program (4, 3)']
    """
    before: Mapping[str, Any] = fingerprint_of_file["parameters"]
    sentences: list[str] = []
    for name, parameter in parameters_now.items():
        shape, dtype = tuple(parameter.shape), _dtype(parameter)
        if name not in before:
            sentences.append(f"{name}: the file has no such parameter, the program has {shape}")
            continue
        old_dtype, old_shape = before[name][0], tuple(before[name][1])
        if old_shape != shape:
            sentences.append(f"{name}: the file has {old_shape}, the program {shape}")
        if old_dtype != dtype:
            sentences.append(f"{name}: the file has {old_dtype}, the program {dtype}")
    for name, (_, old_shape) in before.items():
        if name not in parameters_now:
            shape = tuple(old_shape)
            sentences.append(f"{name}: the file has {shape}, the program has no such parameter")
    return sentences


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
