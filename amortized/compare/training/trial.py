"""One trial: a program trained with one candidate's loss under one seed, and its learning curve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch

from amortized.compare.training.beginning import (
    Beginning,
    Watched,
    batch_digest,
    data_digest,
    start_of,
)
from amortized.compare.training.checks import HeldOut
from amortized.errors import AmortizedError, NonFiniteError
from amortized.fit.arguments import LAST_SEED
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.command import Source
from amortized.fit.compiled.steps import Compile
from amortized.fit.data import as_batches, first_batch, map_tensors
from amortized.fit.files import build
from amortized.fit.optimizer import LearningRate, OptimizerFactory
from amortized.fit.program import Program
from amortized.fit.rng import seeded
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss
from amortized.objectives.elbo import ELBO
from amortized.programs.batches import aliases, as_arguments
from amortized.programs.modules import buffers_aside
from amortized.programs.records import DataPlate

_LONGEST = 300


@final
@dataclass(frozen=True)
class Plan:
    """What all trials of a comparison share."""

    program: Callable[..., Any] | Path
    options: Mapping[str, str]
    max_steps: int
    check_every: int
    batch_size: int
    lr: LearningRate
    optimizer: OptimizerFactory
    data_plate: str | None
    particles: int
    compile: Compile
    device: str | torch.device | None
    threads: int
    training: Mapping[str, Any]

    @contextmanager
    def opened(self, seed: int) -> Iterator[Program]:
        """The program, built under the seed; equal seeds give equal starts.

        Raises:
            ProgramError: what a program file raised, with the line.
            UsageError: no such file or option, or what it returns is no `Program`.
        """
        with ExitStack() as stack:
            if isinstance(self.program, Path):
                source = Source(self.program, dict(self.options), {}, ELBO(), None, seed)
                yield stack.enter_context(source.opened())
            else:
                stack.enter_context(seeded(seed))
                yield build(self.program, self.options)

    def svi(self, program: Program, loss: VariationalLoss) -> SVI:
        """The harness of one trial."""
        return SVI(
            program.model,
            program.guide,
            loss,
            lr=self.lr,
            optimizer=self.optimizer,
            data_plate=self.data_plate,
            device=self.device,
            compile=self.compile,
        )

    def first_batch(self, program: Program) -> Any:
        """Where the programs run."""
        return self.placed(first_batch(program.train, self.batch_size))

    def placed(self, batch: Any) -> Any:
        """On the device."""
        return batch if self.device is None else map_tensors(lambda t: t.to(self.device), batch)

    def held_out(self, program: Program, svi: SVI, seed: int) -> HeldOut:
        """The checks of one trial."""
        return HeldOut(
            svi,
            program.train if program.val is None else program.val,
            plate=DataPlate(self.data_plate, as_batches(program.train, self.batch_size).size),
            particles=self.particles,
            batch_size=self.batch_size,
            device=self.device,
            # other noise than training has under the same seed
            seed=LAST_SEED - seed,
        )


@final
@dataclass(frozen=True)
class Job:
    """One trial that is to come; ``place`` is its turn, from 1."""

    candidate: str
    loss: VariationalLoss
    seed: int
    place: int
    checked: bool
    """Whether an earlier trial of the candidate has looked for mistakes in the programs."""


@final
@dataclass(frozen=True)
class Trial:
    """What one trial gave: numbers at each check, the first one before training.

    ``seconds`` are those of the processor, ``wall`` those of a clock, both of training alone;
    ``elbo`` and ``log_evidence`` (empty where there is none) are nats per data point of held-out
    data, by plain particles whatever the loss. A trial that failed has a sentence and a step.

    ``start``, ``train`` and ``val`` are digests of the initial parameters and of the data, and
    ``batches`` those of batches in the order in which training met them, by pass and place.
    """

    candidate: str
    seed: int
    place: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    log_evidence: list[float] = field(default_factory=list)
    start: str = ""
    per_datum: bool = True
    failed_step: int | None = None
    failure: str = ""
    train: str = ""
    val: str = ""
    batches: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    """What training said: what ``"auto"`` chose, and when; a latent that the model ignores."""
    estimators: dict[str, str] = field(default_factory=dict)
    """By site, as they were at the end."""
    evaluations: int | None = None
    """Of the model, a step and datum, at the end; None: as at the start."""

    @property
    def beginning(self) -> Beginning:
        """What it started from."""
        return Beginning(self.start, self.train, self.val, self.elbo[0] if self.elbo else math.nan)

    def numbers(self, metric: str) -> list[float]:
        """One of its lists of numbers, by name."""
        return {
            "steps": [float(step) for step in self.steps],
            "seconds": self.seconds,
            "wall": self.wall,
            "elbo": self.elbo,
            "log_evidence": self.log_evidence,
        }[metric]


def run_trial(plan: Plan, job: Job) -> Trial | None:
    """Train; None where Ctrl-C ended it. What goes wrong after the first step is recorded.

    Raises:
        AmortizedError: what is wrong before the first step, which no other seed would heal.
    """
    with plan.opened(job.seed) as program, _threads(plan.threads):
        svi = plan.svi(program, job.loss)
        start = _prepared(svi, plan, program, job.seed)
        recorder = _Recorder(svi, plan, job, start, plan.held_out(program, svi, job.seed))
        recorder.train = Watched(as_batches(program.train, plan.batch_size), recorder.meet)
        try:
            history = svi.fit(
                recorder.train,
                max_steps=plan.max_steps,
                batch_size=plan.batch_size,
                seed=job.seed,
                callbacks=[recorder],
                check=not job.checked,
                progress=False,
                **plan.training,
            )
        except Exception as error:
            return recorder.after(error)
        if history.stopped == "interrupted":
            return None
        chosen = svi.loss.estimators.recipes.auto
        found = svi.describe(plan.first_batch(program)).model_evaluations if chosen else None
        return replace(recorder.ended(), evaluations=found)


def beginning_of(plan: Plan, job: Job) -> Beginning:
    """What a trial would start from, without training.

    Raises:
        AmortizedError: what is wrong before the first step.
    """
    with plan.opened(job.seed) as program, _threads(plan.threads):
        svi = plan.svi(program, job.loss)
        start = _prepared(svi, plan, program, job.seed)
        found = plan.held_out(program, svi, job.seed).numbers()
        return replace(start, elbo=found["elbo"])


def _prepared(svi: SVI, plan: Plan, program: Program, seed: int) -> Beginning:
    """All parameters are made, and fingerprints taken; the ELBO is not yet known."""
    batch, size = first_batch(program.train, plan.batch_size), plan.batch_size
    _declare(svi, plan.placed(batch), seed)
    val = ""
    if program.val is not None:
        with seeded(seed):
            val = data_digest(program.val, size, first_batch(program.val, size))
    return Beginning(start_of(svi), data_digest(program.train, size, batch), val, math.nan)


@final
class _Recorder(Callback):
    """Looks at the held-out data now and then, while the clocks stand still."""

    def __init__(self, svi: SVI, plan: Plan, job: Job, start: Beginning, held_out: HeldOut) -> None:
        self.svi, self.plan, self._held_out = svi, plan, held_out
        self.trial = Trial(
            job.candidate,
            job.seed,
            job.place,
            start=start.start,
            train=start.train,
            val=start.val,
        )
        self.train: Watched | None = None
        self._state: FitState | None = None
        self._began = 0.0, 0.0
        self._spent = 0.0, 0.0
        self._step = 0

    def on_fit_start(self, state: FitState) -> None:
        """The point before training, which all candidates share."""
        self._state = state
        if self.train is not None:
            self.train.listening = True
        self._look()

    def meet(self, place: str, batch: Any) -> None:
        """A batch that training is given; clocks stand still."""
        before = _now()
        self.trial.batches[place] = batch_digest(batch)
        shift = [now - then for now, then in zip(_now(), before, strict=True)]
        self._began = self._began[0] + shift[0], self._began[1] + shift[1]

    def ended(self) -> Trial:
        """With what training said, and the estimators as they are now."""
        said = [] if self._state is None else [*self._state.history.notices]
        now = self.svi.loss.estimators.by_name()
        return replace(
            self.trial, notices=said, estimators={site: repr(own) for site, own in now.items()}
        )

    def on_train_batch_end(self, state: FitState) -> None:
        """A check, when it is time."""
        self._step = state.step
        if state.step % self.plan.check_every == 0 or state.step == self.plan.max_steps:
            now = _now()
            pairs = zip(self._spent, now, self._began, strict=True)
            spent = [before + end - begin for before, end, begin in pairs]
            self._spent = spent[0], spent[1]
            self._look()

    def after(self, error: Exception) -> Trial:
        """The trial that an error ended.

        Raises:
            Exception: the error itself, if there was no step that could have caused it.
        """
        if not self._step and not isinstance(error, NonFiniteError):
            raise error
        text = " ".join(str(error.args[0] if error.args else error).split())[:_LONGEST]
        known = isinstance(error, AmortizedError)
        sentence = text if known else f"{type(error).__name__}: {text}"
        return replace(self.ended(), failed_step=self._step + 1, failure=sentence)

    def _look(self) -> None:
        found = self._held_out.numbers()
        trial, evidence = self.trial, found.get("log_evidence")
        self.trial = replace(
            trial,
            steps=[*trial.steps, self._step],
            seconds=[*trial.seconds, self._spent[0]],
            wall=[*trial.wall, self._spent[1]],
            elbo=[*trial.elbo, found["elbo"]],
            log_evidence=[] if evidence is None else [*trial.log_evidence, evidence],
            per_datum=bool(found["per_datum"]),
        )
        self._began = _now()


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _declare(svi: SVI, batch: Any, seed: int) -> None:
    """Make what programs declare as they run, before any candidate has drawn a number.

    Programs that cannot be run so are run by the first step.
    """
    args, kwargs = aliases(*as_arguments(batch))
    with seeded(seed), torch.no_grad(), buffers_aside(svi.model, svi.guide):
        for program in (svi.guide, svi.model):
            try:
                program(*args, **kwargs)
            except Exception:  # the fit says what is wrong
                return


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
