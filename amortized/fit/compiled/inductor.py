"""A captured step compiled by torch's own compiler, without dynamo and its guards."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from amortized.fit.compiled.capture import CaptureError, clause
from amortized.fit.compiled.narrow import narrowed
from amortized.fit.compiled.replay import Replay, attributes

# random numbers as eager torch draws them; that shapes are those of the capture is known before
_OPTIONS: Final = {"fallback_random": True, "size_asserts": False}


def compiled_step(module: GraphModule, tensors: list[Tensor]) -> Replay:
    """The same function of the graph's inputs, compiled; numbers differ by rounding.

    Raises:
        CaptureError: the compiler is missing or fails.
    """
    module = narrowed(module)
    state = _State(attributes(module))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch deprecates in itself is not the user's
            inputs: list[Any] = [*tensors, *state.now()]
            graph = _with_inputs(module)
            if any(value.is_cuda for value in inputs):
                same_bits(graph)
            else:
                norms_apart(graph)
            compiled: Any = torch._inductor.compile(graph, inputs, options=_OPTIONS)
    except Exception as error:
        raise CaptureError(
            f"torch's compiler failed ({clause(error)}); it needs a C++ compiler such as g++"
        ) from error

    def step(*given: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(compiled(*given, *state.now()))

    return step


@final
class _State:
    """The tensors that a graph refers to, without their history; their memory may be exchanged."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._places: list[int] = []
        self._detached: list[Tensor] = []

    def now(self) -> list[Tensor]:
        """Each on the memory that it has now."""
        places = [tensor.data_ptr() for tensor in self._tensors]
        if places != self._places:
            self._places = places
            self._detached = [tensor.detach() for tensor in self._tensors]
        return self._detached


def _with_inputs(module: GraphModule) -> GraphModule:
    """The graph with the tensors that it refers to as further inputs."""
    graph, copies = Graph(), dict[Node, Node]()
    nodes = list(module.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    inputs: dict[str, Node] = {}
    for node in nodes:
        if node.op == "get_attr":
            name = str(node.target)
            inputs[name] = inputs.get(name) or graph.placeholder(f"state{len(inputs)}")
            copies[node] = inputs[name]
    for node in nodes:
        if node.op not in ("placeholder", "get_attr"):
            copies[node] = graph.node_copy(node, lambda used: copies[used])
    for node in graph.nodes:
        node.meta = {}  # the compiler would trust what some inputs have and others lack
    return GraphModule(torch.nn.Module(), graph)


def norms_apart(module: GraphModule) -> None:
    """Has the norm of each gradient taken by itself, where the gradient is computed.

    Of all together it is one call of torch's, after everything else: on a CPU a tenth of a small
    step. A GPU is asked once rather than often.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._foreach_norm.Scalar):
        if any(one.target is not operator.getitem for one in node.users):
            continue
        tensors, *order = node.args
        for one in list(node.users):
            with graph.inserting_before(one):
                norm = torch.ops.aten.linalg_vector_norm.default
                apart = graph.call_function(norm, (tensors[one.args[1]], *order))
            one.replace_all_uses_with(apart)
            graph.erase_node(one)
        graph.erase_node(node)
    module.recompile()


def same_bits(module: GraphModule) -> None:
    """Has Bernoulli draws made by torch's own kernel.

    The compiler compares uniforms with the probability: on a CPU that gives the bits that torch
    draws, and on a GPU other ones.
    """
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.bernoulli.default:
            node.target, node.args = torch.ops.aten.bernoulli.Tensor, (node.args[0], node.args[0])
    module.recompile()
