"""Epochs: training, validation, callbacks, and every way in which they end."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, final

from amortized.errors import AmortizedError, DataError, NonFiniteError
from amortized.fit import checkpoint
from amortized.fit.callbacks import FitState, numbered
from amortized.fit.collapse import collapse_notices
from amortized.fit.culprits import data_culprit, located
from amortized.fit.data import batch_length, guarded
from amortized.fit.history import History
from amortized.fit.interrupts import Interrupted, Interrupts
from amortized.fit.joint import Joint
from amortized.fit.memory import Parts
from amortized.fit.options import options_of, settled
from amortized.fit.plan import Plan
from amortized.fit.preflight import check_pair, preflight
from amortized.fit.progress import Reporter, reporter
from amortized.fit.recovery import recovery_of
from amortized.fit.resume import Moment, only_looking, resumed
from amortized.fit.rng import restore_rng, seeded
from amortized.fit.selecting import Selecting
from amortized.fit.shards import first_batch, rows_in, whole
from amortized.fit.step import Stepper
from amortized.fit.validation import validated


@final
class Loop:
    """One call of ``fit``."""

    def __init__(self, stepper: Stepper, plan: Plan) -> None:
        self.stepper, self.plan = stepper, plan
        self.history = History(plan.max_epochs)
        self._interrupts = Interrupts()
        self._joint = Joint(stepper, self._interrupts)
        self.state = FitState(
            stepper.parameters,
            self.history,
            steps_before=stepper.steps,
            training=stepper.parameters.training,
            save=self._save,
            once=self._joint.once,
        )
        self._selecting = Selecting(stepper, plan)
        self._recovery = recovery_of(plan.non_finite, plan.non_finite_limit, stepper, plan.schedule)
        self._moment = Moment(self._recovery)
        self._named = numbered(plan.callbacks)
        self._parts = Parts()
        self._ready = False
        stepper.detect_anomaly = plan.detect_anomaly
        self._checked = plan.resume_from is not None

    def run(self) -> History:
        """Trains to the end of the plan, to a callback's stop, or to a signal."""
        shuffle, self._moment.val_seed = self._joint.seeds()
        self._moment.shuffle.manual_seed(shuffle)
        self._joint.refuse_other_data(self.plan)
        self._resume()
        if self.plan.check and not self._checked:
            self._checked = self._joint.agreed(lambda: preflight(self.stepper, self.plan))
        progress = self.plan.progress and self._joint.group.writes
        report = reporter(progress, self.plan.max_epochs, self.plan.steps, self.state.step)
        self.stepper.to_come = self.plan.to_come(self.state.step)
        try:
            with self._interrupts, self._failures():
                self._call("on_fit_start")
                self._moment.load_callbacks(self.plan.callbacks, self.state)
                for hook, callback in self._moment.telling.left(self._named):
                    getattr(callback, hook)(self.state)
                while not self._finished():
                    self._epoch(report)
            self._call("on_fit_end")
        finally:
            report.close(self.history)
            self.stepper.discard()
            self._joint.close()
            self.stepper.to_come = None
            self.stepper.detect_anomaly = False
        return self.history

    def _resume(self) -> None:
        """Puts everything where a checkpoint left it; callbacks follow when they have started."""
        if self.plan.resume_from is None:
            return
        path = self.plan.resume_from
        found = self._joint.once(lambda: checkpoint.read(path))
        given = self._joint.agreed(lambda: resumed(found, self.stepper, self.plan))
        self.state.resumed_from = found.path
        moment = found.state["moment"]
        own = self._joint.own(moment.get("processes", ()), self.stepper.steps)
        self._moment.load_state_dict({**moment, **own}, self.state, self.plan)
        self._selecting.load_state_dict(found.state.get("selection", {}))
        self._moment.last_saved = found.path
        self._moment.keep_callbacks(found.state)
        self._moment.options = settled(found.metadata["config"], given)
        self.history.load_state_dict(found.state["history"])
        self.state.steps_before = self.stepper.steps - self.state.step
        self.stepper.parameters.training = self.state.training

    def _finished(self) -> bool:
        state, plan = self.state, self.plan
        if self._moment.mid_epoch:
            return False
        if state.stop is not None:
            self.history.stopped = state.stop
            return True
        return _reached(state.epoch, plan.max_epochs) or _reached(state.step, plan.max_steps)

    def _epoch(self, report: Reporter) -> None:
        moment, state = self._moment, self.state
        if not moment.mid_epoch:
            state.epoch, state.batch, moment.announced = state.epoch + 1, 0, True
            self._tell("on_train_epoch_start")
            moment.start_epoch(self.plan.train, self.plan.val)
            self._recovery.epoch_start()
        moment.start_clock()
        self._train(report)
        validation = self._validate()
        metrics = self._record(validation)
        moment.mid_epoch = False
        if self.plan.schedule is not None:
            watched = "train_loss" if self.plan.val is None else "val_loss"
            self.plan.schedule.after_epoch(metrics.get(watched, math.nan))
        report.epoch(self.history)
        self._tell("on_train_epoch_end")
        self._joint.agree(state)
        self._interrupts.check()

    def _train(self, report: Reporter) -> None:
        plan, state = self.plan, self.state
        if _reached(state.step, plan.max_steps):  # resumed just there
            return
        for batch in self._batches():
            state.batch += 1
            whole_group = state.batch % plan.accumulate_grad_batches == 0
            self._step(batch, apply=whole_group or state.batch == plan.train_batches)
            report.batch(state.epoch, rows_in(batch), state.step)
            if state.whole:
                self._interrupts.check()
            if _reached(state.step, plan.max_steps) or self._joint.over:
                return
        if self.stepper.pending:  # the last group of an epoch whose length nobody knew
            self._apply()

    def _batches(self) -> Iterator[Any]:
        """The batches that are left of this epoch."""
        moment, state, plan = self._moment, self.state, self.plan
        done, again = state.batch, moment.resumed
        if again:
            moment.rewind(plan.train, plan.val)
        batches = guarded(plan.train.epoch(moment.shuffle), f"epoch {state.epoch}, batch")
        batches = self._joint.batches(batches)
        for _ in itertools.islice(batches, done):
            pass
        if again:
            restore_rng(moment.rng)
            moment.resumed = False
        left = None if plan.train_batches is None else plan.train_batches - done
        return itertools.islice(batches, left)

    def _step(self, batch: Any, *, apply: bool) -> None:
        """One batch, and an optimizer step if the group is complete."""
        state, plan = self.state, self.plan
        if not self._ready:
            self._joint.agreed(lambda: self._declare(batch))
            self._get_ready()
        weight = plan.kl_weight(step=state.step, epochs=self._epochs_done())
        self._moment.weigh(weight)
        if self._selecting.due(state.step):
            self._select(batch, weight)
        state.whole = False
        try:
            place = "" if plan.accumulate_grad_batches == 1 else f"batch {state.batch}: "
            self._joint.attempt(batch, lambda: self._accumulate(batch, weight), place)
        except NonFiniteError as error:
            self._recover(error)
            apply = apply and self.stepper.pending
        if apply:
            self._apply()
        state.whole = apply or (self._joint.group.alone and not self.stepper.pending)

    def _accumulate(self, batch: Any, weight: float) -> None:
        plan, rows = self.plan, batch_length(batch)
        # in a group, and among processes, every data point counts the same
        lone = plan.accumulate_grad_batches == 1 and self._joint.group.alone
        with located(self._place, partial(self._culprit, batch)):
            terms = self.stepper.accumulate(batch, plan.data, weight, 1.0 if lone else float(rows))
        self._joint.add(self._moment.averager, terms, rows)

    def _select(self, batch: Any, weight: float) -> None:
        """Other estimators, if they are better; that is not counted as training."""
        self.history.notices += self._selecting.choose(batch, self.state.step, weight)
        self._moment.leave_out(self._selecting.seconds)
        self._recovery.restart()

    def _culprit(self, batch: Any, error: AmortizedError) -> DataError | None:
        """The rows at fault; a policy may go on where a loss is not finite."""
        if isinstance(error, NonFiniteError) and self.plan.non_finite != "raise":
            return None

        def numbers() -> list[int] | None:
            batch = self.state.batch  # 0 before the first one
            return self.plan.train.numbers(batch, self._moment.order()) if batch else None

        return data_culprit(self.stepper, batch, error, numbers)

    def _declare(self, batch: Any) -> None:
        """What must wait for a batch: checks, and parameters that programs declare."""
        plan = self.plan
        if not self._joint.group.alone:
            batch = first_batch(plan.train, batch, self._moment.order())
        if plan.check and not self._checked:
            check_pair(self.stepper, batch, plan.data)
        with located(self._place, partial(self._culprit, batch)):
            self.stepper.warm_up(batch)

    def _get_ready(self) -> None:
        """What must wait for parameters."""
        plan = self.plan
        self._joint.start()
        if plan.schedule is not None:
            plan.schedule.attach(self.stepper.optimizer.built)
        self._recovery.begin()
        self._moment.options = self._moment.options or options_of(plan, self.stepper)
        self._ready = self._checked = True

    def _apply(self) -> None:
        norm = None
        try:
            norm = self._joint.apply(self.plan.gradient_clip_val, self._moment.averager)
        except NonFiniteError as error:
            self._recover(error)
        if norm is None:
            self.state.whole = True
            return
        self._moment.add_norm(norm)
        self.state.step += 1
        if self.plan.schedule is not None:
            self.plan.schedule.after_step()
        self._recovery.after_step()
        self.state.whole = True
        self._tell("on_train_batch_end")

    def _recover(self, error: NonFiniteError) -> None:
        sentence = f"{self._place()}: {error.args[0]}{self._last_good()}"
        self._recovery.recover(NonFiniteError(sentence, error.table))

    def _place(self) -> str:
        state = self.state
        return f"epoch {state.epoch}, batch {state.batch}, step {state.step + 1}"

    def _last_good(self) -> str:
        last = self._moment.last_saved
        return "" if last is None else f" (the last good checkpoint is {last})"

    def _epochs_done(self) -> float:
        """Epochs so far, the one under way as a fraction where its length is known."""
        batches = self.plan.train_batches
        done = self.state.epoch - 1
        return done if batches is None else done + (self.state.batch - 1) / batches

    def _validate(self) -> dict[str, float]:
        plan, state = self.plan, self.state
        keys = ("loss", "elbo", "reconstruction", "kl")
        if plan.val is None:
            return {}
        if state.epoch % plan.check_val_every_n_epoch:
            return dict.fromkeys((f"val_{key}" for key in keys), math.nan)
        group = self._joint.group
        one_pass = partial(validated, self.stepper, plan, state, self._parts, group)
        watched = {"check": self._interrupts.check, "last_good": self._last_good}
        # The same noise at every epoch: differences between epochs are then the parameters' alone,
        # and the training stream does not move.
        with seeded(self._joint.own_seed(self._moment.val_seed)):
            averager = self._joint.agreed(partial(one_pass, **watched))
        means = self._joint.merged(averager).means()
        self._tell("on_validation_epoch_end")
        return {f"val_{key}": means[key] for key in keys if key in means}

    def _record(self, validation: dict[str, float]) -> dict[str, float]:
        moment, averager = self._moment, self._joint.merged(self._moment.averager)
        means = averager.means()
        if means:
            renamed = {f"train_{k}": means.pop(k) for k in ("loss", "elbo") if k in means}
            means = {**renamed, **means}
        self.history.per_datum = averager.per_datum
        rates = self.stepper.optimizer.rates()
        same = len(set(rates.values())) == 1
        metrics = {
            **means,
            **validation,
            **moment.grad_norm(),
            **({"lr": next(iter(rates.values()))} if same else _prefixed("lr/", rates)),
            **({} if moment.always_one() else {"kl_weight": moment.kl_weight}),
            **self._recovery.counts,
            "epoch_time": self._joint.group.first(moment.elapsed),
        }
        self.history.record(metrics)
        self.history.notices += collapse_notices(
            self.history, averager.local, self.state.epoch, moment.kl_weight
        )
        self.history.notices = self._joint.notices(self.history.notices)
        return metrics

    def _save(self, folder: Path) -> Path:
        """Writes a checkpoint of this very moment."""
        if not self._moment.options:  # before the first batch: nothing has been declared
            with only_looking(self.plan.train):
                self._joint.agreed(lambda: self._declare(next(whole(self.plan.train).epoch())))
                self._get_ready()
        averagers = self._joint.gathered(self._moment.averager)
        own = self._moment.own_state(self.plan, self._joint.own_part(averagers))
        state = self._moment.state_dict(self.stepper, self.state, self.plan, self._selecting.done)
        state["moment"] |= self._joint.together(own, averagers)
        path = self._joint.once(
            lambda: checkpoint.write(
                folder,
                state,
                step=self.stepper.steps,
                epoch=self.state.epoch,
                metrics={} if self._moment.mid_epoch else _finite(self.history.last()),
                config={**self._moment.options, "training": self.state.training},
                parameters=self.stepper.parameters.tensors(),
            )
        )
        self._moment.last_saved = path
        return path

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Signals end training and keep what was learned; errors go on after the callbacks."""
        try:
            yield
        except (KeyboardInterrupt, Interrupted) as interrupt:
            self._end(interrupt)
        except (Exception, SystemExit) as error:
            self._joint.leave(self.state)
            if self._interrupts.received is not None and isinstance(error, DataError):
                # a signal also ends the workers of a loader
                self._end(Interrupted(self._interrupts.received))
                return
            for failure in self._after_error(error):
                warnings.warn(f"{failure}; training had ended with {error!r}", stacklevel=2)
            raise

    def _end(self, interrupt: BaseException) -> None:
        """Saves first, then counts the epoch that was cut short."""
        if not isinstance(interrupt, Interrupted):
            self._joint.leave(self.state)
        failures = self._after_error(interrupt)
        if self._moment.mid_epoch and self._joint.merged(self._moment.averager).weight:
            self._record({})
        self.history.stopped = "interrupted"
        if failures:  # what was learned is in memory, and not where it was to be saved
            raise failures[0]
        if isinstance(interrupt, Interrupted) and interrupt.terminates:
            self.history.stopped = "terminated"
            sys.exit(128 + interrupt.number)

    def _after_error(self, error: BaseException) -> list[Exception]:
        """Every callback hears of it; what fails there must not hide it, and is returned."""
        failures: list[Exception] = []
        for callback in self.plan.callbacks:
            try:
                callback.on_exception(self.state, error)
            except Exception as failure:
                failures.append(failure)
        return failures

    def _call(self, hook: str) -> None:
        self._joint.tell(partial(getattr(c, hook), self.state) for c in self.plan.callbacks)

    def _tell(self, hook: str) -> None:
        """The same; one of them may end training, or save, before the others have heard of it."""
        others = self._moment.telling.others(hook, self._named)
        calls = (partial(getattr(callback, hook), self.state) for callback in others)
        self._joint.tell(calls, at_once=hook != "on_train_batch_end")


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in values.items()}


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value == value}
