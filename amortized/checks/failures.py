"""From what a program raised to a finding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import Distribution
from torch.distributions import constraints

from amortized.checks.data import (
    dtype_findings,
    length_findings,
    non_finite_findings,
    rows_of,
)
from amortized.checks.places import names_words, place, shortened
from amortized.checks.refusals import refusal
from amortized.checks.report import Finding
from amortized.checks.traces import broadcast_law, line_of, module_of
from amortized.errors import AmortizedError
from amortized.estimators.base import base_of
from amortized.programs.batches import Leaves
from amortized.programs.survey import Announced, Statement, Survey

_IN_PLATE = re.compile(
    r"Shape mismatch inside plate\('(.*)'\) at site (.*) dim (-\d+), (\d+) vs (\d+)"
)
_DTYPE = re.compile(
    r"same dtype|scalar type|can't be cast|not implemented for '|Found dtype|bool tensors? is not|"
    r"bias type|same type|tensor for argument #1 'indices'|used as indices must be|a bool tensor"
)
_SIZES = re.compile(
    r"size of tensor|shapes cannot be multiplied|Sizes of tensors|not broadcast|Expected .*size|"
    r"invalid for input of size|Expected .* input|Trying to create tensor|shape"
)
_DEVICE = re.compile(r"same device|device type|Expected .* on .* device")


@dataclass(frozen=True)
class Facts:
    """What helps to explain a failure."""

    leaves: Leaves
    parameter_dtype: torch.dtype | None
    lenient: Callable[[bool], Survey]
    """Surveys a side again, with the checks of distributions off."""


def failure_findings(survey: Survey, facts: Facts) -> Iterator[Finding]:
    """What a program raised while it was surveyed."""
    if survey.error is not None:
        causes = [*data_causes(survey.error, facts.leaves, facts.parameter_dtype)]
        for finding in causes or [_failure(survey.error, survey, facts)]:
            yield replace(finding, error=survey.error)


def data_causes(
    error: Exception, leaves: Leaves, parameters: torch.dtype | None
) -> Iterator[Finding]:
    """What is wrong with the data, where that explains an error."""
    text = str(error)
    if _DTYPE.search(text):
        yield from dtype_findings(leaves, parameters)
    elif re.search(r"\bnan\b", text) and isinstance(error, ValueError | AmortizedError):
        yield from non_finite_findings(leaves)
    elif _SIZES.search(text) or _IN_PLATE.search(text):
        yield from length_findings(leaves)


def _failure(error: Exception, survey: Survey, facts: Facts) -> Finding:
    text = " ".join(str(error).split())
    if isinstance(error, AmortizedError):
        return refusal(error)
    found = _IN_PLATE.search(text)
    if found:
        return _in_plate(found, broadcast_law(error), survey, facts)
    if text.startswith("Expected parameter"):
        return _invalid(error, text, survey, facts)
    site, where = _where(error, survey)
    if _DEVICE.search(text):
        return Finding(
            "error",
            "devices-differ",
            site,
            where,
            shortened(text),
            "parameters, data and constants on one device",
            "move both programs with .to(device), and make constants with x.new_zeros(...) or "
            "device=x.device",
        )
    return _raises(error, text, (site, where), facts)


def _raises(error: Exception, text: str, place_: tuple[str | None, str], facts: Facts) -> Finding:
    site, where = place_
    module = module_of(error)
    inside = "" if module is None else f" in {' '.join(repr(module).split())[:80]}"
    shapes = ""
    if _SIZES.search(text) and facts.leaves:
        parts = [f"{name} has shape {tuple(leaf.shape)}" for name, leaf in facts.leaves.items()]
        shapes = f"; {', '.join(parts[:4])}"
    return Finding(
        "error",
        "program-raises",
        site,
        where,
        f"{type(error).__name__}{inside}: {shortened(text)}{shapes}",
        "a program that runs on this batch",
        _advice(error, text),
    )


def _in_plate(found: re.Match[str], law: Any, survey: Survey, facts: Facts) -> Finding:
    plate, site, dim, size, other = found.groups()
    where = f"site {site!r} of the {survey.side} (plates: {plate!r} {size} at dim {dim})"
    if int(other) == rows_of(facts.leaves) != int(size):
        return Finding(
            "error",
            "plate-size",
            site,
            where,
            f"plate {plate!r} has {size} elements, the batch {other} rows",
            "a plate of the size of the data in it",
            f"write pyro.plate({plate!r}, len(x)); for a minibatch of a larger data set "
            f"pyro.plate({plate!r}, N, subsample_size=len(x)) or am.DataPlate",
        )
    return Finding(
        "error",
        "undeclared-batch-dim",
        site,
        where,
        f"its distribution has size {other} at dim {dim}, where plate {plate!r} has {size}"
        + ("" if law is None else f": batch shape {tuple(law.batch_shape)}"),
        "batch dims that plates declare, counted from the right",
        f"make the dims right of the plate part of the event with .to_event({_events(law, found)})"
        ", or give them plates of their own",
    )


def _events(law: Any, found: re.Match[str]) -> int:
    """How many dims ``to_event`` needs for the plate to find its own."""
    if law is None:
        return 1
    _, _, dim, size, _ = found.groups()
    shape = tuple(law.batch_shape)
    for extra in range(1, len(shape) + int(dim) + 1):
        if shape[int(dim) - extra] == int(size):
            return law.event_dim + extra
    return law.event_dim + 1


def _invalid(error: Exception, text: str, survey: Survey, facts: Facts) -> Finding:
    """A distribution that refuses its parameters: which statement, and what to do about it."""
    line = line_of(error)
    again = facts.lenient(survey.in_model)
    met = [*again.statements.values(), *([again.begun] if again.begun else [])]
    statement = next((s for s in met if _broken(s)), None)
    if statement is None:
        site, where = _where(error, survey)
    else:
        site, where = statement.name, place(statement)
        where += "" if line is None else f", {line.file} line {line.number}"
    return Finding(
        "error",
        "invalid-parameter",
        site,
        where,
        f"its distribution refuses its parameters: {shortened(text)}",
        "parameters inside their constraints",
        _start_advice(again) or _parameter_advice(text),
    )


def _start_advice(survey: Survey) -> str:
    """Parameters that start where their constraint has no room: without it they are not finite."""
    names = [a.name.replace("$$$", ".") for a in survey.announced if _outside(a)]
    if not names:
        return ""
    return (
        f"{names_words(names)} of pyro.param or PyroParam starts outside of its constraint, or on "
        "its edge: give a start inside, such as 0.1 or 1.0 for a positive one"
    )


def _outside(announced: Announced) -> bool:
    finite = announced.offered is None or bool(announced.offered.isfinite().all())
    return finite and not bool(announced.leaf.isfinite().all())


def _broken(statement: Statement) -> bool:
    """Whether the parameters of a statement's distribution are outside their constraints."""
    fn: Any = base_of(statement.fn)
    laws = [fn]
    while isinstance(getattr(laws[-1], "base_dist", None), Distribution):
        laws.append(laws[-1].base_dist)
    return any(_refused(law, name) for law in laws for name in vars(law))


def _refused(law: Any, name: str) -> bool:
    constraint = law.arg_constraints.get(name)
    if constraint is None or constraints.is_dependent(constraint):
        return False
    return not bool(constraint.check(torch.as_tensor(getattr(law, name))).all())


def _parameter_advice(text: str) -> str:
    if re.search(r"\bnan\b", text):
        return (
            "NaN comes from the data or from an earlier computation: look for division by 0, "
            "log or sqrt of negative numbers, and a column without variance"
        )
    if "Definite" in text or "Cholesky" in text:
        return (
            "give a triangular factor, scale_tril=, with a positive diagonal "
            "(constraint=constraints.lower_cholesky) instead of the matrix"
        )
    if "Simplex" in text or "Interval" in text:
        return (
            "use logits= with the unbounded output of a network, or softmax and sigmoid; for a "
            "pyro.param, constraint=constraints.simplex or unit_interval"
        )
    return (
        "use softplus or exp on what a network gives; for a pyro.param or PyroParam, "
        "constraint=constraints.positive"
    )


_ADVICE = (
    (r"Expected dim < 0", "count dims from the right: negative, dim=-1 for the last plate"),
    (r"'(float|int)' object has no attribute", "pass a tensor: torch.tensor(...)"),
    (
        r"has no attribute|is not defined|referenced before assignment",
        "make what is missing before it is read: the guide runs first, then the model, so a guide "
        "cannot read what the model stores",
    ),
    (r"cannot be zero", "give the plate at least one element"),
    (
        r"duplicate plate|collide at dim",
        "give nested plates a name and a dim each: pyro.plate(name, size, dim=-2)",
    ),
    (
        r"subsample_size does not match",
        "give the plate the same size and subsample_size in model and guide",
    ),
    (
        r"cannot handle discrete",
        "hide discrete sites from the autoguide, AutoNormal(poutine.block(model, hide=[...])), and "
        "sample them in a guide of your own",
    ),
    (
        r"floating point dtype can require",
        "give the parameter a start of floating point: torch.tensor(0.0)",
    ),
    (
        r"object is not callable",
        "sample from pyro.distributions (import pyro.distributions as dist): Pyro cannot sample "
        "those of torch.distributions; else call what is a function there",
    ),
    (
        r"Inference tensors cannot",
        "take torch.inference_mode() out of the programs: what is computed in it has no gradient",
    ),
    (
        r"index out of range in self",
        "give the embedding as many entries as there are categories: num_embeddings above the "
        "greatest index, which counts from 0",
    ),
    (
        r"torch\.Size\(\) takes",
        "pass observations by name: pyro.sample(name, distribution, obs=x)",
    ),
)


def _advice(error: Exception, text: str) -> str:
    known = next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), None)
    if known is not None:
        return known
    if isinstance(error, TypeError) and "argument" in text:
        return (
            "model and guide take the same arguments, by number and name: a tensor is passed as "
            "(x,), a tuple or list as *batch, a dict as **batch; stack rows into one tensor"
        )
    if _SIZES.search(text):
        return (
            "compare the shape of the data with what the networks expect, and the order of their "
            "layers; rows are the first dim of the data"
        )
    return "call the program alone on the batch to see the whole traceback"


def _where(error: Exception, survey: Survey) -> tuple[str | None, str]:
    """The line of the user's program that failed, and the site it was making."""
    last = next(reversed(survey.statements), None)
    after = f"after site {last!r}" if last else "before its first site"
    line = line_of(error)
    if survey.begun is not None:
        at = "" if line is None else f", {line.file} line {line.number}"
        return survey.begun.name, place(survey.begun) + at
    if line is None:
        return None, f"the {survey.side}, {after}"
    known = line.site if line.site not in survey.statements else None
    about = f"site {known!r} of the {survey.side}" if known else f"the {survey.side}, {after}"
    return known, f"{about}, {line.file} line {line.number}"
