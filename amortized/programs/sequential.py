"""Copy by copy: the slow way to run a pair, for programs that cannot broadcast or that branch.

Every latent is a node. A run follows a script: the nodes and copies chosen so far, then new nodes
at their first copy. Each further copy of a new node is explored by running the pair again with that
copy chosen, so the runs form a tree whose branches may visit different sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from amortized.errors import ProgramError
from amortized.estimators.base import Draw, Estimator, Noise, Site
from amortized.programs.handlers import Context
from amortized.programs.placement import place
from amortized.programs.records import LatentSite, Layout, Run
from amortized.programs.run import run_pair

Program = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Node:
    """A latent as it was drawn once, for all paths that pass through it."""

    drawn: Draw
    estimator: Estimator
    nesting: int

    @property
    def name(self) -> str:
        """The site's name."""
        return self.drawn.site.name

    @property
    def placed(self) -> Draw:
        """The draw with its copies on the private dim, as an estimator's surrogate expects it."""
        if self.drawn.copies == 1:
            return self.drawn
        # every path took its values from what was drawn: there slopes are found
        return place(replace(self.drawn, root=self.drawn.value), Layout(self.nesting))

    def copy(self, index: int) -> Draw:
        """One copy, without any extra dim."""
        if self.drawn.copies == 1:
            return self.drawn
        return replace(self.drawn, value=self.drawn.value[index], copies=1, copy=index)


@dataclass(frozen=True, eq=False)
class Tree:
    """A run, or a node with one subtree for each of its copies."""

    run: Run
    """The run along the first copies."""
    node: Node | None = None
    branches: list[Tree] = field(default_factory=list)

    def nodes(self) -> Iterator[Node]:
        """The nodes along the first copies, in guide order."""
        if self.node is not None:
            yield self.node
            yield from self.branches[0].nodes()

    def runs(self) -> Iterator[Run]:
        """Every run of the tree."""
        if self.node is None:
            yield self.run
        for branch in self.branches:
            yield from branch.runs()

    def first_in_model(self, name: str) -> float:
        """The first model site that a latent or any later one can reach, over all paths."""
        if self.node is None:
            return self.latent(name).first_in_model
        return min(branch.first_in_model(name) for branch in self.branches)

    def latent(self, name: str) -> LatentSite:
        """The record of a latent in the run along the first copies."""
        return next(latent for latent in self.run.latents if latent.name == name)


class Script:
    """Supplies the draws of one path: chosen copies first, then fresh nodes at their first copy."""

    def __init__(self, prefix: list[tuple[Node, int]], nesting: int) -> None:
        self.prefix = prefix
        self.nesting = nesting
        self.path: list[tuple[Node, int]] = []

    def draw(self, site: Site, estimator: Estimator, noise: Noise) -> Draw:
        """The value of the next latent on the path.

        Raises:
            ProgramError: the guide does something else on equal values.
        """
        position = len(self.path)
        if position < len(self.prefix):
            node, copy = self.prefix[position]
            if node.name != site.name:
                raise ProgramError(
                    f"site {site.name!r}: with the same earlier values the guide sampled "
                    f"{node.name!r} here before; a program must be a function of its inputs and "
                    "its sample statements"
                )
        else:
            node, copy = Node(estimator.draw(site, noise), estimator, self.nesting), 0
        self.path.append((node, copy))
        return node.copy(copy)


def explore(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: Context,
    closed_form: bool,
) -> Tree:
    """All paths through the copies of a guide's latents, each run on its own."""

    def follow(prefix: list[tuple[Node, int]], fixed: Mapping[str, Any] | None) -> Tree:
        script = Script(prefix, context.layout.nesting)
        own = replace(
            context, layout=Layout(context.layout.nesting), fixed=fixed, script=script.draw
        )
        run = run_pair(model, guide, args, kwargs, own, closed_form)
        tree, path = Tree(run), script.path
        for depth in reversed(range(len(prefix), len(path))):
            node = path[depth][0]
            others = [
                follow([*path[:depth], (node, copy)], run.subsamples)
                for copy in range(1, node.drawn.copies)
            ]
            tree = Tree(run, node, [tree, *others])
        return tree

    return follow([], None)
