"""Whether two captures of a step are one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from amortized.fit.compiled.replay import attribute_of


def same_graph(first: GraphModule, second: GraphModule) -> bool:
    """Whether the same calls are made with the same arguments, and refer to the same tensors.

    Numbers of the programs' text are compared by value; what lives outside of the graph
    (parameters, buffers, tensors that a program closes over) by identity.
    """
    ours, theirs = list(first.graph.nodes), list(second.graph.nodes)
    if _texts(ours) != _texts(theirs):
        return False
    pairs = zip(ours, theirs, strict=True)
    return all(_same_tensor(first, a, second, b) for a, b in pairs if a.op == "get_attr")


def _texts(nodes: list[Node]) -> list[tuple[str, ...]]:
    """What each node is, other nodes by their place."""
    places = {node: f"node {place}" for place, node in enumerate(nodes)}

    def placed(value: Any) -> Any:
        return places[value] if isinstance(value, Node) else value

    return [
        (
            node.op,
            "" if node.op in ("get_attr", "placeholder") else str(node.target),
            repr(map_aggregate((node.args, node.kwargs), placed)),
        )
        for node in nodes
    ]


def _same_tensor(first: GraphModule, a: Node, second: GraphModule, b: Node) -> bool:
    ours, theirs = attribute_of(first, str(a.target)), attribute_of(second, str(b.target))
    if ours is theirs:
        return True
    if not (_own(a) and _own(b) and isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return False
    alike = (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    return alike and torch.equal(ours, theirs)


def _own(node: Node) -> bool:
    """Whether a tensor was made in the capture and belongs to its graph alone."""
    copied = all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users)
    return str(node.target).startswith("_folded") or copied
