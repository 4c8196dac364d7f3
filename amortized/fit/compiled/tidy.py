"""A captured graph with fewer calls and the same numbers, bit for bit.

Autograd leaves much behind that costs a call and changes no number: detached aliases, a transpose
of a transpose, the same square computed twice, zeros and ones made anew at every step. On small
networks a call costs more than what it computes.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

aten = torch.ops.aten

_SAME_VALUE: Final = (aten.detach.default, aten.alias.default)
_SAME_IF_SAME_SHAPE: Final = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
# they share memory with their argument, and their schemas do not say so
_UNDECLARED_VIEWS: Final = (
    aten._unsafe_view,
    aten.unsafe_chunk,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
)
# batch norms move them, and their schemas do not say so
_RUNNING: Final = ("running_mean", "running_var")
# shape and dtype of an argument count, its values do not
_FROM_SHAPE: Final = (
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
)
# constants are kept for good: none that a step would rather make and forget
_LARGEST_CONSTANT: Final = 4096


def tidied(module: GraphModule) -> GraphModule:
    """The same graph, shorter; ``module`` is changed.

    What any call writes to, what the caller may write to (the outputs), and what shares memory with
    these is left as it is.
    """
    graph = module.graph
    touched = written(module)
    drop_dead(graph)
    _drop_aliases(graph, touched)
    _fold_constants(module, touched)
    _share(graph, touched)
    drop_dead(graph)
    module.recompile()
    return module


def own_outputs(module: GraphModule, first: int) -> None:
    """Copies outputs, from one on, that share memory with something else: callers scale them."""
    graph = module.graph
    output = next(iter(reversed(graph.nodes)))
    taken: set[Node] = set()
    returned = list(output.args[0])
    for place, node in enumerate(returned):
        base = node
        while _is_view(base):
            base = base.args[0]
        if place >= first and (base.op != "call_function" or base in taken):
            with graph.inserting_before(output):
                returned[place] = graph.call_function(aten.clone.default, (node,))
                returned[place].meta = dict(node.meta)
        taken.add(base)
    output.args = (returned,)


def is_random(target: object) -> bool:
    """Whether a call draws from a generator."""
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def writes(target: object) -> bool:
    """Whether a call changes one of its arguments."""
    if not isinstance(target, OpOverload):
        return False
    return target._schema.is_mutable or any(
        _is_written(a, target) for a in target._schema.arguments
    )


def _is_written(argument: Any, target: OpOverload) -> bool:
    """Whether a call changes an argument of its schema."""
    if argument.name in _RUNNING and "backward" not in target._schema.name:
        return True
    return argument.alias_info is not None and argument.alias_info.is_write


def _pure(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    known = isinstance(node.target, OpOverload)
    return known and not writes(node.target) and not is_random(node.target)


def drop_dead(graph: Graph) -> None:
    """Removes what nobody uses; draws stay, since generators move by them."""
    for node in reversed(list(graph.nodes)):
        unused = not node.users and (_pure(node) or node.op == "get_attr")
        if unused:
            graph.erase_node(node)


def written(module: GraphModule) -> set[Node]:
    """Nodes that share memory with an output, or with something that a call writes to."""
    graph = module.graph
    base: dict[Node, Node] = {}
    for node in graph.nodes:
        base[node] = base[node.args[0]] if _is_view(node) else node
    owners: dict[Any, set[Node]] = {}
    for node, of in base.items():
        # two references to one attribute are one memory, and so may two attributes be
        key = _memory(module, of) if of.op == "get_attr" else of
        owners.setdefault(key, set()).add(node)
    sharing = {node: nodes for nodes in owners.values() for node in nodes}
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "output":
            for argument in node.all_input_nodes:
                found |= sharing[argument]
        elif writes(node.target):
            for argument in _written_arguments(node):
                found |= sharing[argument] | sharing[node]
        elif not isinstance(node.target, OpOverload) and node.op == "call_function":
            if node.target is not operator.getitem:  # unknown: it may write to anything
                for argument in node.all_input_nodes:
                    found |= sharing[argument]
    return found


def _memory(module: GraphModule, node: Node) -> Hashable:
    held = getattr(module, str(node.target))
    place = held.untyped_storage().data_ptr() if isinstance(held, Tensor) else node.target
    return "attribute", place


def _written_arguments(node: Node) -> list[Node]:
    target: Any = node.target
    found: list[Node] = []

    def take(argument: Any) -> Any:
        map_aggregate(argument, lambda a: found.append(a) if isinstance(a, Node) else None)

    for position, declared in enumerate(target._schema.arguments):
        if _is_written(declared, target):
            if position < len(node.args):
                take(node.args[position])
            elif declared.name in node.kwargs:
                take(node.kwargs[declared.name])
    return found


def _is_view(node: Node) -> bool:
    """Whether a result may share the memory of the first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    if target.overloadpacket in _UNDECLARED_VIEWS:
        return True
    return any(result.alias_info is not None for result in target._schema.returns)


def _drop_aliases(graph: Graph, written: set[Node]) -> None:
    if any(_reshapes(node.target) for node in graph.nodes):  # an alias then has its own shape
        return
    for node in list(graph.nodes):
        source = _same_memory(node) or _first_power(node, written)
        if source is not None:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _reshapes(target: object) -> bool:
    return isinstance(target, OpOverload) and torch.Tag.inplace_view in target.tags


def _same_memory(node: Node) -> Node | None:
    """An earlier node that is the same tensor by another name."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    source = node.args[0]
    if node.target in _SAME_VALUE:
        return source
    if node.target in _SAME_IF_SAME_SHAPE and _layout(node) == _layout(source) is not None:
        return source
    if node.target is aten.t.default and source.target is aten.t.default:
        first = source.args[0]
        return first if isinstance(first, Node) else None
    return None


def _first_power(node: Node, written: set[Node]) -> Node | None:
    """The base of a first power, the derivative of a square: it is the same number."""
    if node.target is not aten.pow.Tensor_Scalar or node.args[1] != 1:
        return None
    source: Any = node.args[0]
    known = _layout(node) == _layout(source) is not None
    return source if known and not {node, source} & written else None


def _layout(node: Node) -> Hashable:
    known = node.meta.get("val")
    return (known.shape, known.stride(), known.dtype) if isinstance(known, Tensor) else None


def _fold_constants(module: GraphModule, written: set[Node]) -> None:
    """What depends on no input, parameter or draw is computed once."""
    graph, values = module.graph, dict[Node, Tensor]()
    for node in list(graph.nodes):
        if not _pure(node) or node in written:
            continue
        value = _constant(module, node, values)
        if value is not None and value.numel() <= _LARGEST_CONSTANT:
            values[node] = value
    for number, (node, value) in enumerate(values.items()):
        if all(user in values for user in node.users):
            continue
        name = f"_folded{number}"
        module.register_buffer(name, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
    drop_dead(graph)


def _constant(module: GraphModule, node: Node, values: dict[Node, Tensor]) -> Tensor | None:
    target: Any = node.target
    if target is aten.lift_fresh_copy.default:  # a number of the program's text
        attribute: Any = node.args[0]
        held = isinstance(attribute, Node) and attribute.op == "get_attr"
        return getattr(module, str(attribute.target)).clone() if held else None
    if not isinstance(target, OpOverload) or "empty" in target._schema.name:
        return None
    if target in _FROM_SHAPE:
        return _from_shape(node)
    if any(argument not in values for argument in node.all_input_nodes):
        return None
    args, kwargs = map_aggregate(
        (node.args, node.kwargs), lambda a: values[a] if isinstance(a, Node) else a
    )
    with torch.no_grad():
        value = target(*args, **kwargs)
    return value if isinstance(value, Tensor) else None


def _from_shape(node: Node) -> Tensor | None:
    like: Any = node.args[0]
    known = like.meta.get("val") if isinstance(like, Node) else None
    if not isinstance(known, Tensor):
        return None
    stand_in = torch.empty_strided(
        known.shape, known.stride(), dtype=known.dtype, device=known.device
    )
    target: Any = node.target
    return target(stand_in, *node.args[1:], **node.kwargs)


def _share(graph: Graph, written: set[Node]) -> None:
    """The same call with the same arguments is made once."""
    first: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        if not _pure(node) or "empty" in str(node.target):
            continue
        if written.intersection((node, *node.all_input_nodes)):
            continue
        key = (node.target, _hashable(node.args), _hashable(sorted(node.kwargs.items())))
        earlier = first.setdefault(key, node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(_hashable(part) for part in value))
    if isinstance(value, Node):
        return value
    return type(value).__name__, repr(value)
