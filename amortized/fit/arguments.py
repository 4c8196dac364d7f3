"""Arguments of a call: names that it knows, and values of the right kind."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from amortized.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
Choice = TypeVar("Choice", bound=str)

_OF_SVI: Final = ("loss", "lr", "optimizer", "data_plate", "validate", "compile", "precision")
# numpy's global generator takes no other
LAST_SEED: Final = 2**32 - 1


def known_names(function: Function) -> Function:
    """The function, which refuses a keyword that it lacks and suggests the closest one.

    Raises:
        UsageError: when it is called with one.

    >>> @known_names
    ... def fit(train, *, max_epochs=1): ...
    >>> try: fit((), epochs=3)
    ... except UsageError as error: print(error)
    fit(epochs=...): it has no such argument; did you mean max_epochs?
    """
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    qualified = function.__qualname__.split(".")
    who = qualified[-2] if qualified[-1] == "__init__" else qualified[-1]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - names:
            raise UsageError(f"{who}({name}=...): it has no such argument{_hint(who, name, names)}")
        return function(*args, **kwargs)

    return cast(Function, checked)


def _hint(who: str, name: str, names: list[str]) -> str:
    if name in _OF_SVI and who != "SVI":
        return f"; {name} is one of am.SVI(...)"
    close = get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names)}"


def _said(name: str, value: Any, of: str) -> str:
    return f"{of}({name}={value!r})" if of else f"{name}={value!r}"


def refuse_no_count(
    name: str, value: Any, least: int = 1, *, or_none: bool = False, of: str = ""
) -> None:
    """Refuse what counts nothing; numpy's integers do.

    Args:
        name: of the argument.
        value: its value.
        least: from where on it is right.
        or_none: whether None is right too.
        of: the class whose argument it is, where that is not clear.

    Raises:
        UsageError: naming the argument.

    >>> refuse_no_count("batch_size", 128)
    >>> refuse_no_count("patience", None, or_none=True)
    """
    if value is None and or_none:
        return
    end = ", or None" if or_none else ""
    if not isinstance(value, Integral) or isinstance(value, bool):
        sentence = f"{_said(name, value, of)}: expected a whole number, at least {least}{end}"
        raise UsageError(sentence)
    if value < least:
        raise UsageError(f"{_said(name, int(value), of)}: expected at least {least}{end}")


def refuse_no_number(name: str, value: Any, expected: str = "a number", *, of: str = "") -> None:
    """Refuse what is no number.

    Raises:
        UsageError: naming the argument.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{_said(name, value, of)}: expected {expected}")


def one_of(name: str, value: Any, choices: Sequence[Choice]) -> Choice:
    """The choice that was asked for.

    Raises:
        UsageError: it is none of them.

    >>> one_of("kind", "b", ("a", "b"))
    'b'
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise UsageError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def refuse_uncallable(name: str, function: Callable[..., Any], given: str) -> None:
    """Refuse a function that cannot be called with one argument.

    Args:
        name: of the argument that it is.
        function: what was passed.
        given: what it is called with, in words.

    Raises:
        UsageError: naming the argument.

    >>> refuse_uncallable("kl_weight", lambda step: 1.0, "the step")
    """
    try:
        inspect.signature(function).bind(0)
    except TypeError as error:
        raise UsageError(
            f"{name}: it is called with {given}, and {_plain_name(function)} cannot be: {error}"
        ) from error
    except ValueError:  # of a function written in C nobody knows
        return


def _plain_name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def refuse_no_seed(value: Any) -> None:
    """Refuse what is no seed of every generator; None is.

    Raises:
        UsageError: saying which numbers are.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (whole and 0 <= int(value) <= LAST_SEED):
        raise UsageError(
            f"seed={value!r}: expected a whole number from 0 to {LAST_SEED}, or None for the "
            "global generators"
        )


def path_of(name: str, value: Any, *, of: str = "") -> Path:
    """A path from text or a path.

    Raises:
        UsageError: naming the argument.
    """
    if not isinstance(value, str | os.PathLike):
        sentence = f"{_said(name, value, of)}: expected the path of a folder, as text or a Path"
        raise UsageError(sentence)
    return Path(value)
