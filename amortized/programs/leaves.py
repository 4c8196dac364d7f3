"""The leaves below a tensor: what a gradient of it would reach."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves_under(tensor: Tensor | None) -> dict[int, Tensor]:
    """Every leaf that a gradient of the tensor would reach, registered anywhere or not."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [] if tensor is None else [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        waiting += [previous for previous, _ in node.next_functions]
    return found
