"""A captured graph that computes no rows which are zero, and none which nobody reads.

An estimator of several copies may owe theta's gradient to one of them, and ask for the slope of
others. Autograd differentiates all copies at once: it fills gradients up with zeros and multiplies
these on. Here zeros are found in the constants of the graph, followed through elementwise calls,
views and products of matrices, and left out where they end: in a sum or a product over them. What
is split off and not used is left out in the same way, from the end to the front.

Sums then have other lengths, so that numbers differ by rounding: for compiled steps. Where eager
torch multiplies zero by infinity, the product is 0 here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from amortized.fit.compiled.replay import attribute_of
from amortized.fit.compiled.tidy import drop_dead, written

aten = torch.ops.aten

# a result of zero where the first argument is zero, and for a product the second
_ZERO_FROM_FIRST: Final = (
    aten.neg.default,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
)
_ELEMENTWISE: Final = (
    *_ZERO_FROM_FIRST,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.sigmoid.default,
    aten.exp.default,
)


@dataclass(frozen=True)
class Rows:
    """A part of one dim, counted from the left."""

    dim: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """How many."""
        return self.stop - self.start

    def along(self, dims: int) -> Rows:
        """With so many dims more on the left."""
        return Rows(self.dim + dims, self.start, self.stop)


def narrowed(module: GraphModule) -> GraphModule:
    """Another graph on the same tensors, with fewer rows."""
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    found = GraphModule(module, graph)
    _Narrowing(found).run()
    drop_dead(found.graph)
    found.recompile()
    return found


class _Opaque(Exception):
    """A tensor that is changed in place: when it is read matters."""


@final
class _Narrowing:
    def __init__(self, module: GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.written = written(module)
        self.shapes = {node: _shape(node) for node in self.graph.nodes}
        self.rows: dict[Node, Rows] = {}
        """Where a tensor is not zero."""
        self._cut: dict[tuple[Node, Rows], Node] = {}

    def run(self) -> None:
        """From the front, the ends of zeros; from the end, what is split off and not used."""
        for node in list(self.graph.nodes):
            rows = self._known(node)
            if rows is not None:
                self.rows[node] = rows
            else:
                self._try(self._end, node)
        drop_dead(self.graph)
        for node in reversed(list(self.graph.nodes)):
            if node.target is aten.split.Tensor:
                self._cut.clear()  # what was made for a later one comes too late
                self._try(self._shorter, node)

    def _try(self, rewrite: Any, node: Node) -> None:
        with self.graph.inserting_before(node):
            try:
                rewrite(node)
            except _Opaque:  # what was made so far has no use, and is dropped
                return

    # where zeros are

    def _known(self, node: Node) -> Rows | None:
        if node.op == "get_attr" and node not in self.written:
            return self._constant(node)
        shape = self.shapes.get(node)
        if node.op != "call_function" or shape is None or node in self.written or node.kwargs:
            return None
        of = [a for a in node.args if isinstance(a, Node)]
        if node.target in _ZERO_FROM_FIRST:
            either = of if node.target is aten.mul.Tensor else of[:1]
            return next((found for a in either if (found := self._aligned(a, shape))), None)
        if node.target is aten.expand.default:
            return self._aligned(of[0], shape)
        known = self.rows.get(of[0]) if of else None
        if node.target is aten.view.default and known is not None:
            return through_view(self.shapes[of[0]] or (), known, shape)
        if node.target is aten.t.default and known is not None:
            return Rows(1 - known.dim, known.start, known.stop)
        if node.target is aten.mm.default:
            right = self.rows.get(of[1])
            if known is not None and known.dim == 0:
                return known
            return right if right is not None and right.dim == 1 else None
        return None

    def _constant(self, node: Node) -> Rows | None:
        """Of a folded constant, which no step changes."""
        if not str(node.target).startswith("_folded"):
            return None
        value = attribute_of(self.module, str(node.target))
        if not value.dtype.is_floating_point or value.numel() < 2:
            return None
        for dim, size in enumerate(value.shape):
            others = [d for d in range(value.dim()) if d != dim]
            some = (value != 0).any(others) if others else value != 0
            (places,) = some.nonzero(as_tuple=True)
            if 0 < len(places) and int(places[-1] - places[0]) + 1 < size:
                return Rows(dim, int(places[0]), int(places[-1]) + 1)
        return None

    def _aligned(self, node: Node, shape: Sequence[int]) -> Rows | None:
        """The rows of an argument as those of what it is broadcast to."""
        own, known = self.shapes.get(node), self.rows.get(node)
        if own is None or known is None:
            return None
        found = known.along(len(shape) - len(own))
        return found if shape[found.dim] == own[known.dim] else None

    # where zeros end

    def _end(self, node: Node) -> None:
        """A sum, or a product of matrices, over rows of which some are zero."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return
        known = self.rows.get(source)
        if node.target is aten.sum.default and known is not None:
            node.args = (self.cut(source, known), *node.args[1:])
        elif node.target is aten.sum.dim_IntList and known is not None:
            shape: Any = self.shapes[source]
            summed: Any = node.args[1]
            if known.dim in [dim % len(shape) for dim in summed]:
                node.args = (self.cut(source, known), *node.args[1:])
        elif node.target is aten.mm.default:
            left, right = source, node.args[1]
            inner = known if known is not None and known.dim == 1 else None
            other = self.rows.get(right) if isinstance(right, Node) else None
            if inner is None and other is not None and other.dim == 0:
                inner = Rows(1, other.start, other.stop)
            if inner is not None and isinstance(right, Node):
                below = Rows(0, inner.start, inner.stop)
                node.args = (self.cut(left, inner), self.cut(right, below))

    def _shorter(self, node: Node) -> None:
        """A split of which only parts that lie together are used."""
        source: Any = node.args[0]
        size, dim = node.args[1], node.args[2] if len(node.args) > 2 else 0
        shape = self.shapes.get(source)
        users = [user for user in node.users if user.target is operator.getitem]
        if shape is None or not isinstance(size, int) or len(users) != len(node.users) or not users:
            return
        place = int(dim) % len(shape)  # type: ignore[call-overload]
        used = [int(user.args[1]) for user in users]  # type: ignore[arg-type]
        start, stop = min(used) * size, min((max(used) + 1) * size, shape[place])
        if stop - start == shape[place]:
            return
        node.args = (self.cut(source, Rows(place, start, stop), alone=True), *node.args[1:])
        for user, index in zip(users, used, strict=True):
            user.args = (node, index - min(used))

    # what is left

    def cut(self, node: Node, rows: Rows, *, alone: bool = False) -> Node:
        """These rows of a tensor; computed from rows alone where that is known to save work.

        Args:
            node: the tensor.
            rows: of it.
            alone: nobody else needs the others, as far as it has one user.
        """
        shape = self.shapes.get(node)
        if node in self.written or shape is None:
            raise _Opaque
        if rows.start == 0 and rows.stop == shape[rows.dim]:
            return node
        if (node, rows) not in self._cut:
            saves = self.rows.get(node) == rows or (alone and len(node.users) == 1)
            made = self._again(node, rows, shape, alone) if saves else None
            if made is None:
                made = self._call(aten.slice.Tensor, node, rows.dim, rows.start, rows.stop)
            self.shapes[made] = (*shape[: rows.dim], rows.count, *shape[rows.dim + 1 :])
            self._cut[node, rows] = made
        return self._cut[node, rows]

    def _again(self, node: Node, rows: Rows, shape: Sequence[int], alone: bool) -> Node | None:
        if node.op != "call_function" or node.kwargs:
            return None
        first: Any = node.args[0]
        size = [*shape[: rows.dim], rows.count, *shape[rows.dim + 1 :]]
        if node.target in _ELEMENTWISE:
            args = [self._part(a, rows, shape, alone) for a in node.args]
            return self._call(node.target, *args)
        if node.target is aten.expand.default:
            return self._call(node.target, self._part(first, rows, shape, alone), size)
        if node.target is aten.view.default:
            before = through_view(shape, rows, self.shapes.get(first) or ())
            if before is None:
                return None
            return self._call(node.target, self.cut(first, before, alone=alone), size)
        if node.target is aten.t.default:
            turned = Rows(1 - rows.dim, rows.start, rows.stop)
            return self._call(node.target, self.cut(first, turned, alone=alone))
        if node.target is aten.mm.default:
            second: Any = node.args[1]
            if rows.dim == 0:
                return self._call(node.target, self.cut(first, rows, alone=alone), second)
            return self._call(node.target, first, self.cut(second, rows, alone=alone))
        return None

    def _part(self, argument: Any, rows: Rows, shape: Sequence[int], alone: bool) -> Any:
        """The rows of an argument that is broadcast to a shape."""
        if not isinstance(argument, Node):
            return argument
        own = self.shapes.get(argument)
        if own is None or argument in self.written:
            raise _Opaque
        dim = rows.dim - (len(shape) - len(own))
        if dim < 0 or own[dim] == 1:
            return argument
        return self.cut(argument, Rows(dim, rows.start, rows.stop), alone=alone)

    def _call(self, target: Any, *args: Any) -> Node:
        return self.graph.call_function(target, args)


def through_view(shape: Sequence[int], rows: Rows, other: Sequence[int]) -> Rows | None:
    """The rows of a tensor in a view of it, where they are rows of one dim.

    >>> through_view((3, 1, 24, 200), Rows(0, 0, 1), (72, 200))
    Rows(dim=0, start=0, stop=24)
    >>> through_view((72, 200), Rows(0, 24, 72), (3, 1, 24, 200))
    Rows(dim=0, start=1, stop=3)
    """
    if math.prod(shape[: rows.dim]) != 1:
        return None
    dim = next((d for d, size in enumerate(other) if size != 1), None)
    if dim is None:
        return None
    before, after = math.prod(shape[rows.dim + 1 :]), math.prod(other[dim + 1 :])
    start, stop = rows.start * before, rows.stop * before
    if not after or start % after or stop % after:
        return None
    return Rows(dim, start // after, stop // after)


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
