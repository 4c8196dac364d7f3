"""One training step as a graph, from the guide's first draw to the norm of the gradient.

Parameters, buffers and the state of estimators enter by reference: what moves them in place is seen
by the next replay. The weights of the KL and of the batch are inputs. The optimizer's update, one
call of a fused kernel, stays outside. What a capture bakes in (Python's branches, numbers) must be
the same at every step; `audit` holds it to that.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import get_total_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from amortized.checks.isolation import generators_kept, outside_states
from amortized.estimate import Estimate
from amortized.fit.buffers import MovingBuffers, put_back
from amortized.fit.compiled.tidy import own_outputs, tidied
from amortized.fit.rng import preserved_rng, torch_state
from amortized.fit.terms import Terms
from amortized.programs.records import DataPlate


class _Tensor:
    """Stands for a tensor among the leaves of a batch; a class, so that copies are the same."""


_TENSOR: Final = _Tensor
_READS: Final = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
# what a batch may hold besides tensors: their values are part of the signature
_PLAIN: Final = (
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    np.ndarray,
    np.generic,
    torch.dtype,
    torch.device,
)
# what a graph returns before the gradients: loss, norm, terms
_LEADING: Final = 3

Evaluate = Callable[[Any, DataPlate, float | Tensor], Estimate]
"""The loss of a batch with its data plate, under a weight of the KL."""


class CaptureError(Exception):
    """A step cannot be captured, or its replay differs: the reason as a clause (internal).

    ``drifted``: replays had agreed with the programs before. ``kept`` is then the state at the last
    comparison that held, if any was kept.
    """

    drifted: bool = False
    kept: Any = None


@dataclass(frozen=True, eq=False)
class StepProgram:
    """What a step runs: the loss of a batch, what estimators learn of it, and what runs move.

    ``around`` is entered around each run, and told whether the run is being captured. ``programs``
    are the model and the guide. ``gradient``: a step of training, not of validation.
    """

    evaluate: Evaluate
    learn: Callable[[Estimate], None]
    around: Callable[[bool], AbstractContextManager[None]]
    programs: tuple[Callable[..., Any], ...] = ()
    gradient: bool = True


@final
class StepInputs:
    """What one step is given.

    ``weight`` is the share of the batch in its group of accumulated ones.

    Attributes:
        tensors: the batch's tensors, then the weights that are not one.
        others: the batch's leaves, with a mark in the place of tensors.
    """

    def __init__(
        self,
        batch: Any,
        leaves: Sequence[Tensor],
        data: DataPlate,
        kl_weight: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        self.leaves, self.data = leaves, data
        self.kl_weight, self.weight = kl_weight, weight
        self.tensors: list[Tensor] = []
        self.others: list[Any] = []
        found, self.spec = _flattened(batch)
        for leaf in found:
            if isinstance(leaf, Tensor):
                self.tensors.append(leaf)
                self.others.append(_TENSOR)
            elif isinstance(leaf, _PLAIN):
                self.others.append(leaf)
            else:
                raise CaptureError(
                    f"the batch holds a {type(leaf).__name__}, of which a capture cannot know when "
                    "it is another; pass tensors"
                )
        # a one stays a number, so that the graph has no use for it
        for moving in (kl_weight, weight):
            if moving != 1.0:
                like = next((p for p in leaves if p.is_floating_point()), torch.zeros(()))
                self.tensors.append(torch.tensor(moving, dtype=like.dtype, device=like.device))

    def signature(self) -> Hashable:
        """Equal for steps that one graph can serve, as far as inputs tell."""
        return (
            tuple([(t.shape, t.stride(), t.dtype, t.device) for t in self.tensors]),
            tuple([None if value is _TENSOR else _text(value) for value in self.others]),
            None if self.spec is None else repr(self.spec),
            tuple([leaf.requires_grad for leaf in self.leaves]),
            self.data,
            (self.kl_weight != 1.0, self.weight != 1.0),
            (torch.get_default_dtype(), _autocast_type()),
        )


def _autocast_type() -> torch.dtype | None:
    for kind in ("cuda", "cpu"):
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    return None


def _text(value: Any) -> str:
    """Equal for equal values: the text of a long array leaves its middle out."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)


def _flattened(batch: Any) -> tuple[list[Any], TreeSpec | None]:
    return ([batch], None) if isinstance(batch, Tensor) else tree_flatten(batch)


@dataclass(frozen=True)
class Outputs:
    """What a graph returns: loss, norm, the terms as one tensor, the gradients that exist."""

    names: tuple[str, ...]
    per_datum: bool
    local: frozenset[str]
    with_gradient: tuple[int, ...]


@final
class StepGraph:
    """A captured step.

    ``module`` is the graph: a function of `StepInputs.tensors` that returns ``[loss, norm, terms,
    *gradients]``, each detached, and moves buffers and the state of estimators in place.

    Args:
        program: what the step runs.
        buffers: what runs move besides the state of estimators.
        inputs: a batch of this signature.
        seen: whether such a step has run in this process.

    Raises:
        CaptureError: the step cannot be captured.
    """

    def __init__(
        self, program: StepProgram, buffers: MovingBuffers, inputs: StepInputs, *, seen: bool = True
    ) -> None:
        self.program, self.buffers = program, buffers
        self.leaves, self.data = list(inputs.leaves), inputs.data
        self._others, self._spec = inputs.others, inputs.spec
        self._varying = (inputs.kl_weight != 1.0, inputs.weight != 1.0)
        self._outputs: Outputs | None = None
        if not seen:  # what is learned of a signature at its first run
            self.trial(self.eager, inputs.tensors)
        self.module: GraphModule = tidied(self._captured(inputs.tensors))

    @property
    def calls(self) -> int:
        """How many calls of torch a replay makes."""
        return sum(1 for node in self.module.graph.nodes if node.op == "call_function")

    @property
    def outputs(self) -> Outputs:
        """What the graph returns."""
        if self._outputs is None:
            raise CaptureError("the step did not run")
        return self._outputs

    def serves(self, inputs: StepInputs) -> bool:
        """Whether the parameters are still those of the capture."""
        same = map(operator.is_, self.leaves, inputs.leaves)
        return len(self.leaves) == len(inputs.leaves) and all(same)

    def eager(self, *tensors: Tensor) -> list[Tensor]:
        """The step as the programs are written and as training takes it, with the same outputs."""
        before = outside_states(*self.program.programs)
        with self.program.around(False):
            found = self._step(self._backward, *tensors)[1]
        if outside_states(*self.program.programs) != before:
            raise CaptureError(
                "the programs draw from a generator of Python or numpy, and a captured step would "
                "repeat the same draw; use pyro.sample or torch's functions"
            )
        return found

    def _traced(self, *tensors: Tensor) -> list[Tensor]:
        self._outputs, found = self._step(self._gradients, *tensors)
        return found

    def _step(
        self, differentiate: Callable[[Tensor], dict[int, Tensor]], *tensors: Tensor
    ) -> tuple[Outputs, list[Tensor]]:
        given = iter(tensors)
        leaves = [next(given) if value is _TENSOR else value for value in self._others]
        batch = leaves[0] if self._spec is None else tree_unflatten(leaves, self._spec)
        kl_weight, share = (next(given) if varies else 1.0 for varies in self._varying)
        estimate = self.program.evaluate(batch, self.data, kl_weight)
        loss = estimate.loss / (estimate.data_size or 1)
        loss = loss * share if isinstance(share, Tensor) else loss
        gradients = differentiate(loss) if self.program.gradient else {}
        self.program.learn(estimate)
        terms = Terms.of(estimate)
        outputs = Outputs(tuple(terms.values), terms.per_datum, terms.local, tuple(gradients))
        values = [value.reshape(()) for value in terms.values.values()]
        found = list(gradients.values())
        norm = get_total_norm(found) if found else loss.new_zeros(())
        return outputs, [terms.values["loss"], norm, torch.stack(values), *found]

    def gradients_of(self, returned: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients among what `eager` or a replay returned."""
        return returned[_LEADING : _LEADING + len(self.outputs.with_gradient)]

    def trial(
        self, step: Callable[..., list[Tensor]], tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """What a step gives, and where it leaves buffers and generators; everything is put back."""
        with self._put_back():
            found = [value.detach().clone() for value in step(*tensors)]
            on_cpu, on_gpus = torch_state()
            return found + self.buffers.values(), torch.cat([on_cpu, *on_gpus])

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Around a run that leaves no trace in generators and buffers."""
        before = self.buffers.copies()
        with preserved_rng(), generators_kept(*self.program.programs):
            try:
                yield
            finally:
                put_back(before)

    def _gradients(self, loss: Tensor) -> dict[int, Tensor]:
        """By the place of the leaf, laid out as the leaf, as ``backward`` has it."""
        asked = {index: leaf for index, leaf in enumerate(self.leaves) if leaf.requires_grad}
        found = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
        gradients = {}
        for (index, leaf), gradient in zip(asked.items(), found, strict=True):
            if gradient is not None:
                if gradient.stride() != leaf.stride():
                    gradient = torch.empty_like(leaf).copy_(gradient)
                gradients[index] = gradient.detach()
        return gradients

    def _backward(self, loss: Tensor) -> dict[int, Tensor]:
        """By ``backward`` itself: hooks and reentrant functions may give others."""
        kept = [leaf.grad for leaf in self.leaves]
        try:
            for leaf in self.leaves:
                leaf.grad = None
            loss.backward()
            return {i: leaf.grad for i, leaf in enumerate(self.leaves) if leaf.grad is not None}
        finally:
            for leaf, gradient in zip(self.leaves, kept, strict=True):
                leaf.grad = gradient

    def _captured(self, tensors: Sequence[Tensor]) -> GraphModule:
        """Capturing runs the step once for real: state and generators are put back."""
        try:
            # one mode for all nodes: torch would make one for each, in half of the time
            shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
            with self._put_back(), self.program.around(True), tracing(shapes), _NoReads():
                captured = make_fx(self._traced)(*tensors)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(_reason(error)) from error
        _refuse_shapes_of_values(captured)
        own_outputs(captured, _LEADING)
        return captured


class _NoReads(TorchFunctionMode):
    """Refuses what would read values past the capture."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch in the programs."""
        if func in _READS:
            raise CaptureError(
                f"the programs read the value of a tensor (.{func.__name__}()), so their "
                "structure may depend on it"
            )
        return func(*args, **(kwargs or {}))


def _refuse_shapes_of_values(module: GraphModule) -> None:
    """A graph would keep the number of elements that a mask selected when it was captured."""
    for node in module.graph.nodes:
        target = node.target
        known = isinstance(target, OpOverload) and torch.Tag.dynamic_output_shape in target.tags
        deciding = [used for used in node.all_input_nodes if _decides(used, target)]
        if known and any(used.op != "get_attr" for used in deciding):
            raise CaptureError(
                "the programs select elements by a mask (x[mask], nonzero, unique), so that shapes "
                "depend on values; use pyro.poutine.mask, .mask() of a distribution, or torch.where"
            )


def _decides(used: Node, target: object) -> bool:
    """Whether the values of an argument give the shape of the result."""
    if target is not torch.ops.aten.index.Tensor:
        return True
    value = used.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def clause(error: Exception) -> str:
    """The kind of an error and the beginning of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "get value out of a tracing tensor" in text or "data-dependent" in text.lower():
        return (
            "the programs read the value of a tensor (.item(), if z:, an unknown number of steps), "
            "so their structure may depend on it"
        )
    return clause(error)
