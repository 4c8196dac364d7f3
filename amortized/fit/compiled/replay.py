"""A graph as one Python function that calls torch's kernels one after another.

What FX generates goes through ``torch.ops``, which costs more than many a kernel on small tensors.
Here the commonest calls go through torch's own bindings, constants are bound before, and autograd,
which has nothing left to do, is left out of the way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

Replay = Callable[..., list[Tensor]]

# overloads that torch's faster bindings reach by the same arguments
_BOUND: Final = {
    name: getattr(torch, name)
    for name in (
        "add addmm bmm cat div exp log log1p mean mm mul neg pow relu reciprocal rsqrt sigmoid "
        "sqrt stack sub sum t tanh unsqueeze where"
    ).split()
}
_METHODS: Final = {name: getattr(Tensor, name) for name in ("expand", "view")}


def replay_of(module: GraphModule) -> Replay:
    """A function of the graph's inputs with the graph's outputs; without gradients of its own."""
    step = _Source(module).function()

    def replay(*tensors: Tensor) -> list[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return step(*tensors)

    return replay


class _Source:
    """Python text for a graph, and the values that it names."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.bound: dict[str, Any] = {}
        self.names: dict[Node, str] = {}
        self.last: dict[Node, Node] = {}
        for node in module.graph.nodes:
            for used in node.all_input_nodes:
                self.last[used] = node

    def function(self) -> Replay:
        inputs, lines = [], []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = f"v{len(self.names)}"
                inputs.append(self.names[node])
            elif node.op == "get_attr":
                self.names[node] = self._bind(attribute_of(self.module, str(node.target)))
            elif node.op == "output":
                lines.append(f"return {self._text(node.args[0])}")
            else:
                lines.append(self._call(node))
        text = f"def step({', '.join(inputs)}):\n    " + "\n    ".join(lines)
        exec(compile(text, "<captured step>", "exec"), self.bound)
        return self.bound["step"]

    def _call(self, node: Node) -> str:
        name = self.names[node] = f"v{len(self.names)}"
        if node.target is operator.getitem:
            call = f"{self._text(node.args[0])}[{self._text(node.args[1])}]"
        else:
            given = [self._text(argument) for argument in node.args]
            given += [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
            call = f"{self._bind(_function(node.target))}({', '.join(given)})"
        dead = [self.names[n] for n in node.all_input_nodes if self._ends_at(n, node)]
        return f"{name} = {call}" + (f"; del {', '.join(dead)}" if dead else "")

    def _ends_at(self, used: Node, node: Node) -> bool:
        return self.last[used] is node and used.op == "call_function"

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            parts = "".join(f"{self._text(part)}, " for part in value)
            return f"[{parts}]" if isinstance(value, list) else f"({parts})"
        if value is None or isinstance(value, bool | int):
            return repr(value)
        return self._bind(value)

    def _bind(self, value: Any) -> str:
        name = f"c{len(self.bound)}"
        self.bound[name] = value
        return name


def attribute_of(module: GraphModule, path: str) -> Any:
    """What a ``get_attr`` node refers to."""
    held: Any = module
    for part in path.split("."):
        held = getattr(held, part)
    return held


def _function(target: Any) -> Callable[..., Any]:
    if not isinstance(target, OpOverload):
        return target
    name = target._schema.name.removeprefix("aten::")
    overload = target._overloadname  # torch's functions take numbers for tensors
    tensors = overload != "out" and not overload.startswith("Scalar")
    return (tensors and (_BOUND.get(name) or _METHODS.get(name))) or target._op


def attributes(module: GraphModule) -> Sequence[Tensor]:
    """The tensors that a graph refers to, in the order of the graph."""
    names = dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "get_attr")
    return [attribute_of(module, name) for name in names]
