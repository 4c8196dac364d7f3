"""Validation: the terms of held-out batches, as the programs are written or from a graph."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import pyro

from amortized.errors import CheckWarning, NonFiniteError
from amortized.estimate import Estimate
from amortized.fit.alike import refuse_totals
from amortized.fit.buffers import MovingBuffers, put_back
from amortized.fit.callbacks import FitState
from amortized.fit.compiled.capture import CaptureError, StepInputs, StepProgram
from amortized.fit.compiled.steps import CompiledSteps
from amortized.fit.culprits import data_culprit, located
from amortized.fit.data import batch_length, guarded
from amortized.fit.distributed import Group
from amortized.fit.evaluate import in_parts
from amortized.fit.memory import Parts
from amortized.fit.plan import Plan
from amortized.fit.rng import rewinding
from amortized.fit.shards import rows_in
from amortized.fit.step import Stepper, sized
from amortized.fit.terms import Averager, Terms


@final
class Validation:
    """One pass over the held-out data.

    Args:
        stepper: the pair.
        plan: its data plate, and how often it is validated.
        state: where training stands.
        parts: as much of a batch as fits into memory.
        bad: told of an estimate whose loss is not finite; may raise.
    """

    def __init__(
        self,
        stepper: Stepper,
        plan: Plan,
        state: FitState,
        parts: Parts,
        bad: Callable[[Estimate], None],
    ) -> None:
        self.stepper, self.data, self.epoch = stepper, plan.data, state.epoch
        self._parts, self._bad = parts, bad
        self._steps: CompiledSteps | None = None
        evaluations = stepper.evaluations
        if evaluations.mode != "off" and not stepper.detect_anomaly:
            self._steps = evaluations.steps(_made_for(stepper), lambda: _made(stepper))
            self._steps.to_come = to_come(plan, state.epoch, state.step)

    def terms(self, batch: Any) -> Iterator[tuple[Terms, int]]:
        """Of a batch or, where memory is short, of its parts; and their rows."""
        return in_parts(self._parts, batch, self._terms)

    def _terms(self, batch: Any) -> Terms:
        steps = self._steps
        if steps is None:
            return self._eager(batch)
        self.stepper.warm_up(batch)
        batch = self.stepper.placed(batch)
        rewind = rewinding(steps.generators)
        try:
            data = sized(self.data, batch_length(batch))
            inputs = StepInputs(batch, self.stepper.optimizer.leaves(), data)
            found = steps.find(inputs)
            replayed = steps.step(found, inputs, lambda: self.epoch)
        except CaptureError as error:
            self._refuse(error)
            return self._eager(batch)
        if replayed is None:
            buffers = self.stepper.evaluations.buffers
            before = buffers.copies()
            with steps.eagerly(found):
                terms = self._eager(batch)
            buffers.look(before)
            return terms
        if math.isfinite(replayed.loss):
            return replayed.terms
        put_back(replayed.before)
        rewind()
        return self._eager(batch)  # says where

    def _eager(self, batch: Any) -> Terms:
        estimate = self.stepper.evaluated(batch, self.data)
        if not math.isfinite(estimate.loss.item()):
            self._bad(estimate)
        return Terms.of(estimate)

    def _refuse(self, error: CaptureError) -> None:
        """Goes on eagerly.

        Raises:
            ProgramError: replays had served, and a graph was asked for.
        """
        self._steps = None
        sentence = self.stepper.evaluations.refuse(error, self.epoch)
        # where training cannot be captured either, it has said so
        if error.drifted or self.stepper.compile != "off":
            warnings.warn(sentence, CheckWarning, stacklevel=2)


def validated(
    stepper: Stepper,
    plan: Plan,
    state: FitState,
    parts: Parts,
    group: Group,
    *,
    check: Callable[[], None],
    last_good: Callable[[], str],
) -> Averager:
    """The terms of one pass over the validation data, or over this process's part of them.

    Args:
        stepper: the pair.
        plan: the data.
        state: where training stands.
        parts: as much of a batch as fits into memory.
        group: the processes that validate together.
        check: called before each batch; may raise.
        last_good: says which checkpoint is good, for an error.

    Raises:
        NonFiniteError: a loss is not finite, and training is to end where one is.
    """
    averager, done, val = Averager(), 0, plan.val
    place = f"epoch {state.epoch}, validation batch"

    def bad(estimate: Estimate) -> None:
        sentence = f"{place} {done}: check the validation data: {estimate.non_finite_report()}"
        if plan.non_finite == "raise":
            raise NonFiniteError(f"{sentence}{last_good()}", estimate.site_table())
        begin, notices = f"epoch {state.epoch}, validation", state.history.notices
        if not any(notice.startswith(begin) for notice in notices):  # one an epoch
            notices.append(sentence)

    validation = Validation(stepper, plan, state, parts, bad)
    epoch = iter(()) if val is None else guarded(val.epoch(), place)
    for batch in itertools.islice(epoch, plan.val_batches):
        done += 1
        check()
        if val is None or not rows_in(batch):
            continue
        blame = partial(data_culprit, stepper, batch, numbers=partial(val.numbers, done))
        with located(lambda: f"{place} {done}", blame):  # noqa: B023
            for terms, rows in validation.terms(batch):
                refuse_totals(terms, batch, group)
                averager.add(terms, rows)
    return averager


def _made_for(stepper: Stepper) -> Hashable:
    """Other estimators, another number of them or of parameters, another device: other graphs."""
    first = stepper.parameters.first()
    device = None if first is None else first.device
    estimators = stepper.loss.estimators
    return stepper.parameters.count(), len(estimators.by_site), estimators.switches, device


def _made(stepper: Stepper) -> CompiledSteps:
    """Captured evaluations, of which there are none yet; they outlive a pass and its data."""

    @contextmanager
    def around(capturing: bool) -> Iterator[None]:
        looks = "never" if capturing else "always"
        with stepper.evaluating(), pyro.validation_enabled(False), stepper.loss.looking(looks):
            yield

    program = StepProgram(
        lambda batch, data, kl_weight: stepper.evaluated(batch, data),
        lambda estimate: None,
        around,
        (stepper.model, stepper.guide),
        gradient=False,
    )
    networks, evaluations = stepper.parameters.networks, stepper.evaluations
    evaluations.buffers = MovingBuffers(networks)
    return CompiledSteps(evaluations.mode, program, evaluations.buffers, networks)


def to_come(plan: Plan, epoch: int, step: int) -> int | None:
    """Batches of validation that are left from the pass of an epoch on; None: nobody knows.

    Args:
        plan: of the training.
        epoch: the one that is validated, counted from 1.
        step: optimizer steps so far.
    """
    left = [] if plan.max_epochs is None else [plan.max_epochs - epoch]
    if plan.max_steps is not None and plan.train_batches is not None:
        steps = -(-plan.train_batches // plan.accumulate_grad_batches)
        left.append(-((step - plan.max_steps) // steps))
    if not left or plan.val_batches is None:
        return None
    return plan.val_batches * (1 + max(0, min(left)) // plan.check_val_every_n_epoch)
