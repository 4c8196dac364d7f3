"""From the errors that this package raises on purpose to findings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from amortized.checks.calls import Calls
from amortized.checks.report import Finding
from amortized.checks.traces import line_of, module_of
from amortized.errors import AmortizedError, EstimatorError, NonFiniteError, UsageError


@dataclass(frozen=True)
class _Kind:
    pattern: str
    code: str
    expected: str


# The sentences of this package's errors, by what they are about; the first that matches counts.
_KINDS = (
    _Kind(r"mixes the (copies|particles)", "erased-axes", "every copy treated alone"),
    _Kind(r"exists only when .* run together", "structure-varies", "the same sites in every copy"),
    _Kind(r"shifts copies and particles", "erased-axes", "plate dims that stay where they are"),
    _Kind(r"must be declared", "undeclared-batch-dim", "a plate for every batch dim"),
    _Kind(r"in the guide: say whether", "guide-factor", "has_rsample=True or False"),
    _Kind(r"marks it for enumeration", "enumeration-not-happening", "a guide site"),
    _Kind(
        r"random minibatch of plate|asks for other data",
        "subsample-mismatch",
        "the same rows in both programs",
    ),
    _Kind(
        r"function of its inputs", "structure-varies", "the same sites whenever values are the same"
    ),
    _Kind(r"was taken for the data plate", "plate-size", "a plate of the size of the minibatch"),
    _Kind(r"in only one of model and guide", "plate-mismatch", "one data plate in both programs"),
    _Kind(r"elements, the model \d+ of", "plate-mismatch", "one size in both programs"),
    _Kind(r"data_plate=", "data-plate", "a plate that holds sites of the model"),
    _Kind(
        r"parameters that it refuses|refuses a value",
        "invalid-parameter",
        "values that are allowed",
    ),
    _Kind(r"matches no latent site", "estimator-key", "keys that name latent sites of the guide"),
    _Kind(
        r"is evaluated for all elements of plate",
        "estimator-unsupported",
        "an estimator that can serve the site",
    ),
)
_SUBJECT = re.compile(
    r"^((?:step \d+: )?(?:(?:site|plate|factor) '[^']*'(?: (?:of|in) the (?:model|guide))?|"
    r"estimators\['[^']*'\]|data_plate='[^']*'|[\w.]+\([^)]*\)))(?: \([^)]*\))?[:,]? +"
)


def refusal(error: Exception) -> Finding:
    """An error of this package as a finding."""
    text = " ".join(str(error).split())
    kind = next((k for k in _KINDS if re.search(k.pattern, text)), None)
    code = _code(error) if kind is None else kind.code
    subject = _SUBJECT.match(text)
    named = re.search(r"(?:site|factor) '([^']*)'", text)
    found, advice = split(text[subject.end() :] if subject else text)
    return Finding(
        "error",
        code,
        named.group(1) if named else None,
        subject.group(1) if subject else "the pair",
        found,
        "programs, loss and data that fit each other" if kind is None else kind.expected,
        advice or "mend what the sentence names",
    )


def _code(error: Exception) -> str:
    if isinstance(error, NonFiniteError):
        return "non-finite-loss"
    if isinstance(error, EstimatorError):
        return "estimator-unsupported"
    return "objective" if isinstance(error, UsageError) else "program-raises"


def split(sentence: str) -> tuple[str, str]:
    """What was found, and what to do: the part after the first semicolon or full stop.

    >>> split("Poisson has no finite support; use am.ScoreFunction()")
    ('Poisson has no finite support', 'use am.ScoreFunction()')
    """
    cuts = [m for m in re.finditer(r"; |\. (?=[A-Z])", sentence)]
    if not cuts:
        return sentence, ""
    return sentence[: cuts[0].start()], sentence[cuts[0].end() :]


def left_dim_failure(error: Exception, suspects: Sequence[nn.Module], calls: Calls) -> Finding:
    """A program that fails, or mixes copies, only while there are extra left dims."""
    text = " ".join(str(error).split())
    if not isinstance(error, AmortizedError):
        text = f"{type(error).__name__}: {text}"
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    raised = module_of(cause)
    kinds = sorted({type(m).__name__ for m in suspects})
    if kinds:
        what = f"{', '.join(kinds)}{'' if raised is None else _inside(raised, kinds)}"
        side = calls.sides.get(id(suspects[0])) or _side(text)
        return _left_dims(text, what, side)
    line = line_of(cause)
    at = "" if line is None else f", {line.file} line {line.number}"
    found, _ = split(text)
    return Finding(
        "error",
        "program-raises",
        None,
        f"the {_side(text)}{at}",
        found,
        "programs that broadcast over extra dims on the left",
        "expand what is combined with a latent to its shape, reduce over negative dims, branch on "
        "values (if, .item()) only at sites of one sample and one particle, wrap networks for one "
        "batch dim in am.Fold(network), or evaluate copy by copy with "
        "VariationalLoss(..., vectorize=False)",
    )


def _left_dims(text: str, what: str, side: str) -> Finding:
    named = re.match(r"site '([^']*)' of the", text)
    where = f"{what} in the {side}"
    if named:
        where += f", at site {named.group(1)!r}"
    return Finding(
        "error",
        "module-left-dims",
        named.group(1) if named else None,
        where,
        split(text)[0],
        "networks that treat dims left of the batch alike, as Linear does",
        "wrap the network in am.Fold(network, event_dim), or evaluate copy by copy with "
        "VariationalLoss(..., vectorize=False)",
    )


def _inside(raised: nn.Module, kinds: list[str]) -> str:
    name = type(raised).__name__
    return "" if name in kinds else f" (before {name})"


def _side(text: str) -> str:
    found = re.search(r"\bthe (model|guide)\b", text)
    return found.group(1) if found else "program"
