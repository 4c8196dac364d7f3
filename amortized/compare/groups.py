"""The parameters of a pair, by name, and the groups that are measured together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final, final

import torch
from torch import Tensor, nn

from amortized.checks.inventory import frozen_in
from amortized.compare.candidates import Pair
from amortized.compare.moments import BlockSums, GroupSums
from amortized.errors import AmortizedError, ProgramError, UsageError
from amortized.programs.leaves import leaves_under
from amortized.programs.run import is_guide_messenger
from amortized.programs.survey import Survey, survey_guide, survey_model

SIDES: Final = ("model", "guide")


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Elements of the flat gradient that are measured together."""

    name: str
    columns: Tensor


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """The leaves that training would move, by name, and groups of them."""

    leaves: dict[str, Tensor]
    groups: list[Group]

    def sums(self, blocks: BlockSums) -> list[GroupSums]:
        """Of each group."""
        return [GroupSums(blocks, g.columns, index) for index, g in enumerate(self.groups)]

    def name_at(self, column: int) -> str:
        """The leaf that an element of the flat gradient belongs to."""
        ends = itertools.accumulate(leaf.numel() for leaf in self.leaves.values())
        return next(name for name, end in zip(self.leaves, ends, strict=True) if column < end)

    def by_name(self, row: Tensor) -> dict[str, Tensor]:
        """A flat gradient as tensors of the leaves' shapes."""
        parts = row.split([leaf.numel() for leaf in self.leaves.values()])
        named = zip(self.leaves.items(), parts, strict=True)
        return {name: part.reshape(leaf.shape) for (name, leaf), part in named}


def trained(pair: Pair, asked: Sequence[str] = ()) -> Trained:
    """Find them by running the programs once more; ``asked`` are names of parameters, or globs.

    Raises:
        ProgramError: a program fails.
        UsageError: there is no parameter, or a name matches none.
    """
    frozen = frozen_in(pair.model, pair.guide)
    guide, model = _surveys(pair)
    sides: dict[str, str] = {}
    leaves: dict[str, Tensor] = {}
    taken = set(frozen)
    for side, name, leaf in _candidates(pair, guide, model):
        if id(leaf) not in taken and leaf.requires_grad:
            taken.add(id(leaf))
            leaves[name], sides[name] = leaf, side
    if not leaves:
        raise UsageError(
            "model and guide: they have no parameter whose gradient could be measured; expected at "
            "least one pyro.param, nn.Parameter or network"
        )
    owners = {
        "model": {id(leaf) for name, leaf in leaves.items() if sides[name] == "model"},
        "guide": {id(leaf) for name, leaf in leaves.items() if sides[name] == "guide"},
    }
    parts = {side: ids for side, ids in owners.items() if ids}
    shares = _shares(guide, owners["guide"])
    parts |= {f"site {site}": ids for site, ids in shares.items() if ids != owners["guide"]}
    parts |= {f"parameter {name}": {id(leaves[name])} for name in _matching(asked, list(leaves))}
    return Trained(leaves, [Group(name, _columns(leaves, ids)) for name, ids in parts.items()])


def _surveys(pair: Pair) -> tuple[Survey, Survey]:
    """Both programs on values that carry no gradient."""
    first = survey_guide(pair.guide, pair.args, pair.kwargs)
    values = {name: v.detach() for name, v in first.values.items() if isinstance(v, Tensor)}
    guide = survey_guide(pair.guide, pair.args, pair.kwargs, values)
    model = survey_model(pair.model, pair.args, pair.kwargs, guide)
    for survey in (guide, model):
        if isinstance(survey.error, AmortizedError):
            raise survey.error
        if survey.error is not None:
            text = " ".join(str(survey.error).split())[:300]
            raise ProgramError(
                f"the {survey.side} raised {type(survey.error).__name__}: {text}; expected "
                "programs that run on the batch; am.check(model, guide, batch) says more"
            ) from survey.error
    return guide, model


def _candidates(pair: Pair, guide: Survey, model: Survey) -> Iterator[tuple[str, str, Tensor]]:
    """Side, name and leaf: those of modules first, which the store announces again."""
    for side, program in (("model", pair.model), ("guide", pair.guide)):
        if isinstance(program, nn.Module):
            for name, parameter in program.named_parameters():
                yield side, f"{side}.{name}", parameter
    # a guide messenger runs the model, and keeps its own parameters as a module
    owner = "model" if is_guide_messenger(pair.guide) else "guide"
    for side, survey in ((owner, guide), ("model", model)):
        for announced in survey.announced:
            yield side, announced.name.replace("$$$", "."), announced.leaf


def _shares(guide: Survey, owned: set[int]) -> dict[str, set[int]]:
    """The guide's parameters that enter the law of one site, and of no other one."""
    reached: dict[str, set[int]] = {}
    for name, statement in guide.latents.items():
        if isinstance(statement.value, Tensor) and not statement.factor:
            density = statement.fn.log_prob(statement.value)
            reached[name] = set(leaves_under(density)) & owned
    shares = {}
    for name, ids in reached.items():
        others = set().union(*(theirs for other, theirs in reached.items() if other != name))
        if ids - others:
            shares[name] = ids - others
    return shares


def _matching(asked: Sequence[str], names: list[str]) -> list[str]:
    """The names that were asked for, each once, in their own order."""
    for pattern in asked:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"parameters={list(asked)!r}: {pattern!r} matches none of {names}{hint}"
            )
    return [n for n in names if any(n == p or fnmatchcase(n, p) for p in asked)]


def _columns(leaves: dict[str, Tensor], ids: set[int]) -> Tensor:
    flags = [torch.full((leaf.numel(),), id(leaf) in ids) for leaf in leaves.values()]
    return torch.cat(flags).nonzero().squeeze(1)
