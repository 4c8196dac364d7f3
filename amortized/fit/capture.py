"""A training step as a graph: captured once for each signature of a batch, then replayed.

The graph holds what the eager step does, from the guide's first draw to the last gradient, and what
estimators learn. Parameters, buffers and estimators' state enter by reference: what moves them in
place is seen by the next replay. The optimizer stays outside. What a capture bakes in (Python's
branches, numbers, generators) must be the same at every step, so replays are compared with the
eager step from the same generator state: at the start and now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from amortized.estimate import Estimate
from amortized.fit.buffers import Copy, MovingBuffers, put_back
from amortized.fit.rng import restore_torch, torch_state
from amortized.fit.terms import Terms
from amortized.programs.records import DataPlate
from amortized.programs.study import outside_generators

Evaluate = Callable[[Any, DataPlate, float | Tensor], Estimate]
"""The loss of a batch with its data plate, under a weight of the KL, in training mode."""


class CaptureError(Exception):
    """A step cannot be captured, or its replay differs: the reason as a clause (internal)."""


Scalars = tuple[float, float]
"""The weight of the KL, and that of the batch in its group."""

# replays between two comparisons with the eager step
_AUDIT_EVERY: Final = 1000


@dataclass(eq=False)
class _Outputs:
    """What a graph returns: the terms as one tensor, then the gradients that exist."""

    names: tuple[str, ...] = ()
    per_datum: bool = True
    local: frozenset[str] = frozenset()
    with_gradient: tuple[int, ...] = ()


@final
class StepGraphs:
    """The captured steps of a pair, one for each signature; made at the second step of each.

    Args:
        evaluate: the loss of a batch.
        learn: moves the state of estimators by an estimate.
        modules: every module whose mode and buffers take part.
    """

    def __init__(
        self, evaluate: Evaluate, learn: Callable[[Estimate], None], modules: Sequence[nn.Module]
    ) -> None:
        self.evaluate, self.learn = evaluate, learn
        self.modules = {id(m): m for module in modules for m in module.modules()}.values()
        self.buffers = MovingBuffers(modules)
        self._met: dict[Hashable, _StepGraph | None] = {}

    def step(
        self,
        batch: Any,
        kl_weight: float,
        leaves: Sequence[Tensor],
        data: DataPlate,
        weight: float = 1.0,
    ) -> tuple[Terms, list[Copy]] | None:
        """Replays the step on a batch: adds to ``.grad``, and estimators learn.

        Returns the terms, and the buffers as they were; None where the step has to be eager: at
        the first one of a signature.

        Raises:
            CaptureError: the step cannot be captured, or a replay differs from the eager step.
        """
        inputs, spec = tree_flatten(batch)
        key = self._key(inputs, spec, leaves, (data, kl_weight != 1.0, weight != 1.0))
        if key not in self._met:
            self._met[key] = None
            return None
        graph = self._met[key]
        if graph is None:
            scalars = (kl_weight, weight)
            graph = _StepGraph(self, inputs, spec, scalars, leaves, data=data)
            self._met[key] = graph
        return graph.replay(inputs, (kl_weight, weight))

    def _key(
        self, inputs: Sequence[Any], spec: TreeSpec, leaves: Sequence[Tensor], about: Hashable
    ) -> Hashable:
        kinds = tuple(
            (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else repr(value)
            for value in inputs
        )
        modes = tuple(module.training for module in self.modules)
        trained = tuple((id(leaf), leaf.requires_grad) for leaf in leaves)
        return kinds, repr(spec), modes, trained, about


@final
class _StepGraph:
    """One captured step."""

    def __init__(
        self,
        owner: StepGraphs,
        inputs: Sequence[Any],
        spec: TreeSpec,
        scalars: Scalars,
        leaves: Sequence[Tensor],
        *,
        data: DataPlate,
    ) -> None:
        self.owner, self.spec, self.leaves, self.data = owner, spec, leaves, data
        self.fixed = [None if isinstance(value, Tensor) else value for value in inputs]
        self.outputs = _Outputs()
        self.replays = 0
        # a one stays a number, so that the graph has no use for it
        self.varying = tuple(scalar != 1.0 for scalar in scalars)
        tensors = self._tensors(inputs, scalars)
        self.graph = self._captured(tensors)

    def replay(self, inputs: Sequence[Any], scalars: Scalars) -> tuple[Terms, list[Copy]]:
        """Runs the graph, or compares it with the eager step when it is time."""
        tensors = self._tensors(inputs, scalars)
        if self.replays % _AUDIT_EVERY == 0:
            self._audit(tensors)
        self.replays += 1
        before = self.owner.buffers.copies()
        values, *gradients = self._run(self.graph, tensors)
        for index, gradient in zip(self.outputs.with_gradient, gradients, strict=True):
            leaf = self.leaves[index]
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        terms = dict(zip(self.outputs.names, values.unbind(), strict=True))
        return Terms(terms, self.outputs.per_datum, self.outputs.local), before

    def _tensors(self, inputs: Sequence[Any], scalars: Scalars) -> list[Tensor]:
        found = [value for value in inputs if isinstance(value, Tensor)]
        moving = zip(scalars, self.varying, strict=True)
        return found + [torch.tensor(scalar) for scalar, varies in moving if varies]

    def _eager(self, *tensors: Tensor) -> list[Tensor]:
        """The step as it is: terms, then gradients."""
        given = iter(tensors)
        leaves = [next(given) if value is None else value for value in self.fixed]
        kl_weight, share = (next(given) if varies else 1.0 for varies in self.varying)
        estimate = self.owner.evaluate(tree_unflatten(leaves, self.spec), self.data, kl_weight)
        loss = estimate.loss / (estimate.data_size or 1)
        loss = loss * share if isinstance(share, Tensor) else loss
        asked = [leaf for leaf in self.leaves if leaf.requires_grad]
        some = torch.autograd.grad(loss, asked, allow_unused=True)
        of = {id(leaf): gradient for leaf, gradient in zip(asked, some, strict=True)}
        gradients = [of.get(id(leaf)) for leaf in self.leaves]
        self.owner.learn(estimate)
        terms = Terms.of(estimate)
        self.outputs = _Outputs(
            tuple(terms.values),
            terms.per_datum,
            terms.local,
            tuple(index for index, gradient in enumerate(gradients) if gradient is not None),
        )
        found = [gradient for gradient in gradients if gradient is not None]
        return [torch.stack([value.reshape(()) for value in terms.values.values()]), *found]

    def _run(self, step: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
        # the backward pass is part of a graph
        with torch.set_grad_enabled(not isinstance(step, GraphModule)):
            return list(step(*tensors))

    def _captured(self, tensors: Sequence[Tensor]) -> GraphModule:
        """Capturing runs the step once for real: state and generators are put back."""
        state, before = torch_state(), self.owner.buffers.copies()
        try:
            return make_fx(self._eager)(*tensors)
        except Exception as error:
            raise CaptureError(_reason(error)) from error
        finally:
            restore_torch(state)
            put_back(before)

    def _audit(self, tensors: Sequence[Tensor]) -> None:
        """The eager step and a replay from one generator state, and everything put back."""
        before = outside_generators()
        eager = self._trial(self._eager, tensors)
        if outside_generators() != before:
            raise CaptureError(
                "the programs draw from Python's or numpy's generator, and a captured step would "
                "repeat the same draw; use pyro.sample or torch's functions"
            )
        replayed = self._trial(self.graph, tensors)
        for ours, theirs in zip(replayed, eager, strict=True):
            if not torch.equal(ours, theirs) and not _both_nan(ours, theirs):
                raise CaptureError(
                    "its replay differs from the eager step from the same generator state: the "
                    "programs depend on something that a capture holds fixed, such as a Python "
                    "counter, a number that is annealed, or state that is no buffer"
                )

    def _trial(self, step: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
        state, before = torch_state(), self.owner.buffers.copies()
        try:
            found = [value.clone() for value in self._run(step, tensors)]
            return found + self.owner.buffers.values()
        finally:
            restore_torch(state)
            put_back(before)


def _both_nan(ours: Tensor, theirs: Tensor) -> bool:
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return bool(same.all())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "get value out of a tracing tensor" in text or "data-dependent" in text.lower():
        return (
            "the programs read the value of a tensor (.item(), if z:, a loop over pyro.plate), so "
            "their structure may depend on it"
        )
    return f"{type(error).__name__}: {text[:200]}"
