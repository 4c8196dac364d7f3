"""Draws of a gradient: many at once from a recording of one evaluation, or one by one.

A recording is the list of torch calls that one evaluation makes. It is run for many draws at once,
each with random numbers of its own, where it provably repeats the evaluation: the recording made
under one generator state must give the same numbers as the programs under others. Where it does
not, or torch cannot run it so, each draw runs the programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from amortized.checks.isolation import outside_states, seed_torch, torch_generators

# elements of all intermediate results of the draws that run at once
_AT_ONCE = 2**23
_ONE_BY_ONE = 64
_AUDITS = 3
_READS: Final = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class _NotRecordedError(Exception):
    """One evaluation does not stand for others: the reason as a clause (internal)."""


@final
class Sampler:
    """Draws of a gradient.

    Args:
        gradient: one evaluation, shape ``[P]``, from torch's generator.
        programs: whose other generators must not move.

    Attributes:
        reason: why draws are evaluated one by one; empty: they are not.
    """

    def __init__(self, gradient: Callable[[], Tensor], programs: tuple[Any, ...] = ()) -> None:
        self.gradient, self.programs = gradient, programs
        self.reason = ""
        self._graph: GraphModule | None = None
        self._at_once = 1
        try:
            self._graph = self._recorded()
        except _NotRecordedError as error:
            self.reason = str(error)

    def chunks(self, count: int) -> Iterator[Tensor]:
        """So many draws, in chunks of shape ``[m, P]``."""
        while count > 0:
            if self._graph is None:
                found = torch.stack([self.gradient() for _ in range(min(_ONE_BY_ONE, count))])
            else:
                found = self._together(self._graph, min(self._at_once, count))
            count -= len(found)
            yield found

    def seconds(self) -> float:
        """The time of one evaluation by the programs."""
        began = time.perf_counter()
        self.gradient()
        return time.perf_counter() - began

    def _recorded(self) -> GraphModule:
        before = outside_states(*self.programs)
        if torch_generators(*self.programs):
            raise _NotRecordedError("the programs draw from generators of their own")
        try:
            # one mode for all nodes: torch would make one for each, in half of the time
            shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
            with tracing(shapes), _NoReads():
                graph = make_fx(lambda zero: self.gradient())(torch.zeros(()))
            _spread_noise(graph)
            for _ in range(_AUDITS):
                self._audit(graph)
            if self._together(graph, 2).shape != (2, graph(torch.zeros(())).numel()):
                raise _NotRecordedError("torch cannot run them together")
        except _NotRecordedError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise _NotRecordedError(reason) from error
        if outside_states(*self.programs) != before:
            raise _NotRecordedError("the programs draw from a generator of Python or numpy")
        self._at_once = max(1, _AT_ONCE // max(1, _elements(graph)))
        return graph

    def _audit(self, graph: GraphModule) -> None:
        """The recording and the programs under one new state of the generator."""
        seed = int(torch.randint(2**62, ()))
        seed_torch(seed)
        expected = self.gradient()
        state = torch.get_rng_state()
        seed_torch(seed)
        found = graph(torch.zeros(()))
        same = torch.equal(found.nan_to_num(), expected.nan_to_num())
        if not same or not torch.equal(state, torch.get_rng_state()):
            raise _NotRecordedError("the programs do something else at another draw")

    @staticmethod
    def _together(graph: GraphModule, count: int) -> Tensor:
        run = torch.func.vmap(graph, randomness="different")
        return run(torch.zeros(count))


def _spread_noise(graph: GraphModule) -> None:
    """Give every draw its own memory where noise is written in place.

    The graph's input, one zero a draw, is added to what is about to be overwritten.
    """
    nodes = list(graph.graph.nodes)
    zero = next(node for node in nodes if node.op == "placeholder")
    for place, node in enumerate(nodes):
        if not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            continue
        if torch.Tag.nondeterministic_seeded not in node.target.tags:
            continue
        written = node.args[0]
        if not _fresh(written) or any(user in nodes[:place] for user in written.users):
            raise _NotRecordedError("noise is written into a tensor that has other uses")
        with graph.graph.inserting_before(node):
            own = graph.graph.call_function(torch.ops.aten.add.Tensor, (written, zero))
        for later in nodes[place:]:
            later.replace_input_with(written, own)
    graph.recompile()


class _NoReads(TorchFunctionMode):
    """Refuses what would read values past the recording."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch in the programs."""
        if func in _READS:
            raise _NotRecordedError("the programs read the value of a tensor")
        return func(*args, **(kwargs or {}))


def _fresh(node: Node) -> bool:
    """Whether a tensor is made by this call, and is no part of another one."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    views = any(result.alias_info is not None for result in node.target._schema.returns)
    return not views and node.meta["val"].is_floating_point()


def _elements(graph: GraphModule) -> int:
    """Of all intermediate results of one evaluation."""
    values = (node.meta.get("val") for node in graph.graph.nodes)
    return sum(value.numel() for value in values if isinstance(value, Tensor))
