"""One optimizer step."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, final

import pyro
import torch
from torch import Tensor

from amortized.errors import CheckWarning, NonFiniteError, ProgramError
from amortized.estimate import Estimate, LogWeights
from amortized.fit.anomaly import named_gradients, watched_backward
from amortized.fit.buffers import Copy, MovingBuffers, put_back
from amortized.fit.compiled.capture import CaptureError, StepInputs, StepProgram
from amortized.fit.compiled.evaluations import Evaluations
from amortized.fit.compiled.steps import Compile, CompiledSteps, Replayed
from amortized.fit.data import batch_length, map_tensors
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.parameters import Parameters, evaluation_mode
from amortized.fit.precision import Precision
from amortized.fit.reduction import Part, Reduction
from amortized.fit.rng import rewinding, side_stream
from amortized.fit.terms import Terms, loss_of
from amortized.loss import VariationalLoss
from amortized.programs.batches import as_arguments
from amortized.programs.records import DataPlate


@final
class Stepper:
    """A pair, its loss, its parameters and its optimizer: everything that one step moves.

    `accumulate` adds the gradient of a batch, `apply` moves the parameters by the weighted mean of
    what was added. A loss or a gradient that is not finite moves nothing.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: VariationalLoss,
        optimizer: GroupedOptimizer,
        *,
        validate: bool = False,
        compile: Compile = "off",
        precision: Precision = "float32",
    ) -> None:
        self.model, self.guide, self.loss = model, guide, loss
        self.optimizer = optimizer
        self.parameters = Parameters(model, guide, loss, precision)
        self.validate = validate
        self.compile: Compile = compile
        self.detect_anomaly, self.steps = False, 0
        self.evaluations = Evaluations(compile)
        self.to_come: int | None = None
        """Batches that this training will still take, if known: ``compile="auto"`` goes by it."""
        self._count, self._validated = -1, False
        self._asked: torch.device | None = None
        self._first: Tensor | None = None
        self._added = 0.0
        self.reduction: Reduction | None = None
        """With the other processes, where there are any: then gradients are weighted with rows."""
        self._compiled: CompiledSteps | None = None
        self._known_of_steps: dict[str, Any] = {}
        self._norm: Tensor | None = None
        self._buffers = MovingBuffers([])
        self._estimators = -1
        self._before_group: list[Copy] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles capture anew: a graph refers to these very parameters."""
        known = self._known_of_steps if self._compiled is None else self._compiled.state_dict()
        return {**vars(self), "_compiled": None, "_known_of_steps": known, "reduction": None}

    def warm_up(self, batch: Any, *, again: bool = False) -> None:
        """Runs the pair once, so that every parameter exists; the global stream does not move."""
        if self._count >= 0 and not again:
            return
        batch = self.placed(batch)
        with self.parameters.scope(), side_stream():
            self.loss.warm_up(self.model, self.guide, batch)
            if self._asked is not None:  # what the programs have declared follows
                self.parameters.to(self._asked)
        self._sync(batch)

    def accumulate(
        self, batch: Any, data: DataPlate, kl_weight: float = 1.0, weight: float = 1.0
    ) -> Terms:
        """Adds ``weight`` times the gradient of the loss per data point; estimators learn from it.

        Raises:
            NonFiniteError: the loss is NaN or infinite; nothing has moved.
            ProgramError: the step was to be captured, and cannot be.
        """
        found = self._added_up(batch, data, kl_weight, weight)
        return found.terms if isinstance(found, Replayed) else Terms.of(found)

    def _added_up(
        self, batch: Any, data: DataPlate, kl_weight: float = 1.0, weight: float = 1.0
    ) -> Estimate | Replayed:
        self.warm_up(batch)
        batch = self.placed(batch)
        data = sized(data, batch_length(batch))
        if self.compile != "off" and not self.detect_anomaly:
            return self._accumulated_by_graph(batch, data, kl_weight, weight)
        return self._accumulated(batch, data, kl_weight, weight)

    def _accumulated(
        self, batch: Any, data: DataPlate, kl_weight: float, weight: float
    ) -> Estimate:
        """The same, as the programs are written."""
        if len(self.loss.estimators.by_site) != self._estimators:  # a branch reached another latent
            self._watch_buffers()
        with self.parameters.scope(), self._validation():
            with self._buffers.kept_on(NonFiniteError) as before:
                estimate = self._estimate(batch, data, kl_weight)
                if not math.isfinite(estimate.loss.item()):
                    raise NonFiniteError(estimate.non_finite_report(), estimate.site_table())
                if self.parameters.count() != self._count:
                    self._sync(batch)
                self._norm = None
                if self._added == 0:
                    self.optimizer.zero_grad()
                loss = estimate.loss / (estimate.data_size or 1)
                loss = loss if weight == 1.0 else loss * weight
                if self.detect_anomaly:
                    watched_backward(loss, estimate, self.optimizer.leaves())
                else:
                    # without ``inputs=``, which reentrant checkpoints silently take for no gradient
                    loss.backward()
            self.loss.learn(estimate)
        self._buffers.look(before)
        self._before_group = before if self._added == 0 else self._before_group
        self._added += weight
        self._validated = True
        return estimate

    def _accumulated_by_graph(
        self, batch: Any, data: DataPlate, kl_weight: float, weight: float
    ) -> Estimate | Replayed:
        """The same, from a graph where there is one."""
        steps = self._steps()
        steps.to_come = self.to_come
        self.to_come = None if self.to_come is None else self.to_come - 1
        rewind = rewinding(steps.generators)
        try:
            inputs = StepInputs(batch, self.optimizer.leaves(), data, kl_weight, weight)
            found = steps.find(inputs)
            replayed = steps.step(found, inputs, self._copied if self.compile == "auto" else None)
        except CaptureError as error:
            self._refuse_capture(error)
            return self._accumulated(batch, data, kl_weight, weight)
        if replayed is None:
            with steps.eagerly(found):
                return self._accumulated(batch, data, kl_weight, weight)
        if not math.isfinite(replayed.loss):
            put_back(replayed.before)
            rewind()
            return self._accumulated(batch, data, kl_weight, weight)  # says where
        self._take(replayed, weight)
        return replayed

    def _take(self, replayed: Replayed, weight: float) -> None:
        """Adds the gradients of a replay to those of its group."""
        leaves, first = self.optimizer.leaves(), self._added == 0
        if first:
            self._before_group = replayed.before
            if len(replayed.gradients) < len(leaves):
                self.optimizer.zero_grad()
        self._norm = replayed.norm if first else None
        for index, gradient in replayed.gradients:
            before = None if first else leaves[index].grad
            leaves[index].grad = gradient if before is None else before + gradient
        self._added += weight

    def _refuse_capture(self, error: CaptureError) -> None:
        """Ends training, or goes on eagerly: from the last state that was compared, if need be.

        Raises:
            ProgramError: a graph was asked for, or other processes would not go back too.
        """
        if self.compile != "auto" or (error.drifted and self.reduction is not None):
            when = "no longer serves" if error.drifted else "cannot be captured"
            raise ProgramError(
                f"compile={self.compile!r}: the step {when}: {error}; use compile='off'"
            ) from error
        self.compile, back = "off", ""
        if error.drifted and error.kept is not None:
            steps, kept = error.kept
            self._restore(kept)
            back = f"; parameters are again those after step {steps}, which were right"
        warnings.warn(
            f"compile='auto': training goes on eagerly from step {self.steps + 1}, since the step "
            f"cannot be captured: {error}{back}",
            CheckWarning,
            stacklevel=2,
        )

    def _copied(self) -> tuple[int, dict[str, Any]]:
        """The state of now, and after which step that is."""
        return self.steps, copy.deepcopy(self._learned())

    def _steps(self) -> CompiledSteps:
        """The captured steps; made anew, with what is known of them, for more modules."""
        if self._compiled is None:
            pair = (self.model, self.guide)
            program = StepProgram(self._estimate, self.loss.learn, self._around, pair)
            networks = self.parameters.networks
            self._compiled = CompiledSteps(self.compile, program, self._buffers, networks)
            self._compiled.load_state_dict(self._known_of_steps)
        return self._compiled

    @contextmanager
    def _around(self, capturing: bool) -> Iterator[None]:
        looks = "never" if capturing else "always"
        with self.parameters.scope(), pyro.validation_enabled(False), self.loss.looking(looks):
            yield

    def _estimate(self, batch: Any, data: DataPlate, kl_weight: float | Tensor = 1.0) -> Estimate:
        args, kwargs = as_arguments(batch)
        return self.loss.estimate(
            self.model, self.guide, args, kwargs, data=data, kl_weight=kl_weight
        )

    def apply(self, clip: float | None = None) -> float:
        """Moves the parameters by the mean of what was added, of a norm of ``clip`` at most.

        Returns the norm of the gradient of model and guide before it was clipped.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; nothing has moved since the last step.
        """
        if self.reduction is not None and not self._add_together(self.reduction):
            return math.nan
        leaves, total = self.optimizer.leaves(), self._norm
        if total is None or self._added != 1.0:
            gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
            if self._added != 1.0:
                for gradient in gradients:
                    gradient.div_(self._added)
            total = torch.nn.utils.get_total_norm(gradients)
        self._added, self._norm = 0, None
        norm = total.item()
        if not math.isfinite(norm):
            report = named_gradients(leaves, self.parameters.names())
            self.optimizer.zero_grad()
            put_back(self._before_group)
            raise NonFiniteError(f"the norm of the gradient is {norm}: {report}")
        norm = self.optimizer.clip(clip, total)
        self.optimizer.step()
        self.steps += 1
        return norm

    def part(self) -> Part:
        """What this process brings to the others."""
        leaves = self.optimizer.leaves()
        return Part(leaves, self.parameters.tensors, self._buffers, self._added)

    def _add_together(self, reduction: Reduction) -> bool:
        """Gradients and buffers of all processes; False where none had a batch."""
        if self._added == 0:
            self._before_group = self._buffers.copies()
        self._norm = None
        try:
            self._added = reduction.reduce(self.part())
        except Exception:
            self.optimizer.zero_grad()
            put_back(self._before_group)
            self._added = 0
            raise
        return self._added > 0

    def step(self, batch: Any, data: DataPlate) -> float:
        """One optimizer step on the loss per data point of one batch, which is returned.

        Raises:
            NonFiniteError: the loss or its gradient is NaN or infinite; the parameters stay.
        """
        try:
            loss = _loss(self._added_up(batch, data))
            self.apply()
        except NonFiniteError as error:
            sentence = f"step {self.steps + 1}: {error.args[0]}"
            raise NonFiniteError(sentence, error.table) from error
        return loss

    @property
    def pending(self) -> bool:
        """Whether gradients were added and not applied."""
        return self._added > 0

    def discard(self) -> None:
        """Forgets gradients that were added and not applied."""
        self._added = 0

    def evaluated(self, batch: Any, data: DataPlate) -> Estimate:
        """The estimate of a batch in eval mode and without gradients; nothing moves."""
        self.warm_up(batch)
        with self.evaluating():
            return self._estimate(self.placed(batch), sized(data, batch_length(batch)))

    def log_weights(self, batch: Any, data: DataPlate, num_particles: int) -> LogWeights:
        """Plain draws of a batch: to be called while `evaluating`."""
        args, kwargs = as_arguments(self.placed(batch))
        data = sized(data, batch_length(batch))
        return self.loss.log_weights(
            self.model, self.guide, args, kwargs, num_particles=num_particles, data=data
        )

    def to(self, device: torch.device) -> None:
        """Moves parameters, buffers and optimizer state; batches follow."""
        with self.parameters.scope():
            self.parameters.to(device)
        self.optimizer.follow()
        self._compiled = None
        self._asked, self._first = device, None

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers, estimators and optimizer, by name; the tensors are not copied."""
        if self._compiled is not None:
            self._known_of_steps = self._compiled.state_dict()
        return {**self._learned(), "steps": self.steps, "compiled": self._known_of_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; every parameter must exist (see `warm_up`)."""
        self._restore(state)
        self.steps = state["steps"]
        self._known_of_steps, self._compiled = state.get("compiled", {}), None

    def _learned(self) -> dict[str, Any]:
        tensors = {name: tensor.detach() for name, tensor in self.parameters.tensors().items()}
        return {
            "parameters": tensors,
            "optimizer": self.optimizer.state_dict(self.parameters.names()),
        }

    def _restore(self, learned: dict[str, Any]) -> None:
        self.parameters.restore(learned["parameters"])
        self.optimizer.load_state_dict(learned["optimizer"], self.parameters.names())
        self.discard()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The private store, eval mode, no gradients, no validation."""
        with self.parameters.scope(), evaluation_mode(*self.parameters.networks):
            with self._validation():
                yield

    def placed(self, batch: Any) -> Any:
        """The batch on the device of the parameters; before there are any, on that asked for."""
        if self._first is None:
            self._first = self.parameters.first()
        device = self._asked if self._first is None else self._first.device
        if device is None:
            return batch
        return map_tensors(lambda t: t if t.device == device else t.to(device), batch)

    @contextmanager
    def _validation(self) -> Iterator[None]:
        # A distribution checks its arguments when they are used, so the whole step is inside.
        if self.validate or not (self.steps or self._validated):
            yield
        else:
            with pyro.validation_enabled(False):
                yield

    def _watch_buffers(self) -> None:
        self._buffers = MovingBuffers(self.parameters.networks)
        self._estimators = len(self.loss.estimators.by_site)
        if self._compiled is not None:
            self._known_of_steps, self._compiled = self._compiled.state_dict(), None

    def _sync(self, batch: Any) -> None:
        """Hands new parameters to the optimizer: at warm-up, and when a branch declares more."""
        self.parameters.attribute(*as_arguments(batch))
        self._count = self.parameters.count()
        self.optimizer.sync(self.parameters.groups())
        self._watch_buffers()


@lru_cache(maxsize=64)
def sized(data: DataPlate, rows: int) -> DataPlate:
    """The data plate of a batch of so many rows."""
    return replace(data, rows=rows)


def _loss(found: Estimate | Replayed) -> float:
    return found.loss if isinstance(found, Replayed) else loss_of(found).item()
