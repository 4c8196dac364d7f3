"""Whether a pair does the same when everything random is the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amortized.checks.isolation import seed_torch
from amortized.checks.places import place
from amortized.checks.report import Finding
from amortized.checks.supports import support_range
from amortized.estimators.base import base_of
from amortized.programs.records import Run
from amortized.programs.study import outside_generators
from amortized.programs.survey import Statement, Survey

Pair = tuple[Survey, Survey]
Written = tuple[str, str]
"""The side that writes, and the name of the site or of the data that it writes into."""

# a coin of the program's own shows two faces in so many runs, except in 3 % of all cases
_LOOKS = 4


@dataclass(frozen=True)
class _Change:
    site: str
    where: str
    comes_and_goes: bool

    @property
    def what(self) -> str:
        """In words."""
        return (
            "it comes and goes from run to run"
            if self.comes_and_goes
            else "its value or density changes from run to run"
        )


def structure_findings(first: Pair, survey: Callable[..., Pair], seed: int) -> Iterator[Finding]:
    """Run the pair again on the latents of the first survey: then everything must be the same.

    If numbers were drawn outside of sample statements, a few more runs show what they decide.
    """
    values = {**first[1].values, **first[0].values}
    outer = outside_generators()
    seed_torch(seed)
    inner = torch.get_rng_state()
    second = survey(values)
    by_torch = not torch.equal(inner, torch.get_rng_state())
    by_others = outer != outside_generators()
    if not (by_torch or by_others or _changes(first, second)):
        return
    # the first run may have set things up: the next one must repeat the second
    seed_torch(seed)
    changes = _changes(second, survey(values))
    who = "something hidden decides"
    if by_others:
        # noise from numpy on the data is a matter of taste; sites that it switches are not
        changes = [change for change in changes if change.comes_and_goes]
        who = "Python's or numpy's random numbers decide"
    if not changes and (by_torch or by_others):
        for look in range(1, _LOOKS + 1):
            seed_torch(seed + look)
            changes += [c for c in _changes(second, survey(values)) if c.comes_and_goes]
        who = who if by_others else "torch's random numbers decide, outside of sample statements"
    if changes:
        yield _varies(changes, who)


@contextmanager
def writes(
    side: str, given: Mapping[str, Tensor], drawn: Mapping[str, Tensor], found: dict[Written, bool]
) -> Iterator[None]:
    """Enters into ``found`` what a run of a program writes into: data, or (True) drawn values."""
    watched = [
        ((side, name), tensor, tensors is drawn)
        for tensors in (given, drawn)
        for name, tensor in tensors.items()
        if not tensor.is_inference()  # torch does not count writes into these
    ]
    before = [tensor._version for _, tensor, _ in watched]
    yield
    for (key, tensor, is_drawn), version in zip(watched, before, strict=True):
        if tensor._version != version:
            found[key] = is_drawn


def written_findings(found: Mapping[Written, bool]) -> Iterator[Finding]:
    """Data or draws that a program changes in place: everyone after it sees other numbers."""
    for (side, name), drawn in found.items():
        yield Finding(
            "warning",
            "structure-varies",
            name if drawn else None,
            f"site {name!r} of the {side}" if drawn else f"the {side}",
            "it writes into the value that the guide drew, and all densities are taken at what it "
            "wrote"
            if drawn
            else f"it writes into its argument {name}, which changes again at every run",
            "programs that leave their arguments and the values of sites as they are",
            "make a new tensor: z = 2 * z instead of z *= 2, x = x.nan_to_num() instead of "
            "x.nan_to_num_()",
        )


def noise_findings(run: Run, guide: Survey) -> Iterator[Finding]:
    """Draws that are the same in two runs whose generators stood elsewhere."""
    for name, record in run.guide.items():
        before = guide.latents.get(name)
        if before is None or record.observed or not _random(before):
            continue
        if record.value.shape == before.value.shape and torch.equal(record.value, before.value):
            yield Finding(
                "warning",
                "fixed-noise",
                name,
                place(before),
                "two runs drew the very same value, although the generator stood elsewhere",
                "fresh noise in every run",
                "take pyro.set_rng_seed and torch.manual_seed out of the programs, and pass "
                "seed= to fit",
            )


def _random(statement: Statement) -> bool:
    """Whether two draws are never equal: a continuous law of positive width."""
    fn = base_of(statement.fn)
    found = support_range(fn)
    return (
        fn.has_rsample
        and type(fn).__name__ != "Delta"
        and found is not None
        and not found.whole
        and "StraightThrough" not in type(fn).__name__
    )


def branch_findings(
    ran: Collection[str], first: Pair, again: Callable[[], Pair]
) -> Iterator[Finding]:
    """Sites of another run that are not those of the survey: with its values fixed, once more.

    A branch on a latent gives the same sites when the values are the same, hidden state does not.
    """
    if set(ran) == _names(first):
        return
    guide, model = again()
    now = _names((guide, model))
    if guide.error is not None or model.error is not None or now == set(ran):
        return
    name = sorted(now ^ set(ran))[0]
    known = next((s.statements[name] for s in (*first, guide, model) if name in s.statements), None)
    where = f"site {name!r}" if known is None else place(known)
    yield _varies([_Change(name, where, True)], "something hidden decides")


def _names(pair: Pair) -> set[str]:
    return {name for survey in pair for name in survey.statements}


def _varies(changes: list[_Change], who: str) -> Finding:
    first = changes[0]
    others = {change.site for change in changes} - {first.site}
    more = f" (and {len(others)} more sites)" if others else ""
    return Finding(
        "warning",
        "structure-varies",
        first.site,
        first.where,
        f"{first.what}{more}, though data, parameters and latents are the same: {who}",
        "programs that are functions of their inputs, parameters and sample statements",
        "pass what changes (a step, a switch) as an argument, and draw random choices with "
        "pyro.sample",
    )


def _changes(first: Pair, second: Pair) -> list[_Change]:
    """Everything that differs between two runs."""
    found = []
    for one, two in zip(first, second, strict=True):
        for name in dict.fromkeys([*one.statements, *two.statements]):
            ours, theirs = one.statements.get(name), two.statements.get(name)
            here = ours or theirs
            if here is None:
                continue
            if ours is None or theirs is None:
                found.append(_Change(name, place(here), True))
            elif not _same(ours, theirs):
                found.append(_Change(name, place(here), False))
    return found


def _same(ours: Statement, theirs: Statement) -> bool:
    return _close(ours.value, theirs.value) and _close(_density(ours), _density(theirs))


def _density(statement: Statement) -> Tensor | None:
    try:
        with torch.no_grad():
            return statement.fn.log_prob(statement.value) * statement.scale
    except Exception:  # whatever is wrong there is another finding
        return None


def _close(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return True
    if a.shape != b.shape:
        return False
    # sums may be taken in another order by another thread
    ours, theirs = (t.detach().double().cpu().numpy() for t in (a, b))
    return bool(np.allclose(ours, theirs, 1e-4, 1e-5, equal_nan=True))
