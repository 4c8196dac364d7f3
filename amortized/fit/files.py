"""Program files, and the options and estimators that a command line names."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import Parameter
from pathlib import Path
from typing import Any

from amortized.errors import UsageError
from amortized.fit.program import Program

Value = bool | int | float | str


@contextmanager
def program_file(path: Path) -> Iterator[Callable[..., Any]]:
    """The function ``program`` of a file; as for a script, its folder can be imported from.

    Raises:
        UsageError: no such file, or no such function in it.
    """
    if not path.is_file():
        raise UsageError(f"no program file {path}")
    folder, name = str(path.resolve().parent), f"_amortized_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
        function = getattr(module, "program", None)
        if not callable(function):
            raise UsageError(
                f"{path} has no function program(**options); it should return "
                "am.Program(model, guide, train, val, test)"
            )
        yield function
    finally:
        sys.path[:] = before
        sys.modules.pop(name, None)


def build(function: Callable[..., Any], options: Mapping[str, str]) -> Program:
    """Calls ``program`` with options given as text, each read by the type of its default.

    Raises:
        UsageError: an option that the function lacks, needs, or cannot take; another result.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    values: dict[str, Value] = {}
    for name, text in options.items():
        if name not in named and not takes_any:
            raise UsageError(_unknown(name, list(named)))
        default = named[name].default if name in named else None
        values[name] = read_value(name, text, default)
    missing = [n for n, p in named.items() if p.default is p.empty and n not in values]
    if missing:
        raise UsageError(f"the program needs the option {missing[0]}: --set {missing[0]}=...")
    result = function(**values)
    if not isinstance(result, Program):
        raise UsageError(f"program() returned {type(result).__name__}; expected am.Program(...)")
    return result


def read_value(name: str, text: str, default: Any) -> Value:
    """Text as the type of the default; without one, as a bool, int or float if it looks like one.

    Raises:
        UsageError: text that is no value of that type, or a default that text cannot replace.

    >>> read_value("latent_dim", "8", 2), read_value("path", "8", ""), read_value("x", "1e-3", None)
    (8, '8', 0.001)
    """
    if isinstance(default, str):
        return text
    if not isinstance(default, bool | int | float | None) and default is not Parameter.empty:
        raise UsageError(
            f"--set {name}={text}: the default of {name} is a {type(default).__name__}; expected "
            "an option of text, a number or a truth value: give program() one, and convert it there"
        )
    value = _guess(text)
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(default, float):
        fits, kind = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, kind = True, ""
    if not fits:
        raise UsageError(f"--set {name}={text}: expected {kind}")
    return float(value) if isinstance(default, float) else value


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """``name=value`` texts as a dict, in order.

    Raises:
        UsageError: a text without ``=``, or a name given twice.

    >>> pairs("--set", ["latent_dim=8", "path=a=b"])
    {'latent_dim': '8', 'path': 'a=b'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip()):
            raise UsageError(f"{option} {text}: expected name=value")
        if name.strip() in found:
            raise UsageError(f"{option} {text}: {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def _guess(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _unknown(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    has = f"its options are {', '.join(known)}" if known else "it takes none"
    return f"--set {name}: the program has no such option; {has}{hint}"
