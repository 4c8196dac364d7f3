"""`compare_training`: learning curves of several candidates, over steps and over seconds."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyro
import torch
from torch.utils.data import DataLoader, RandomSampler

from amortized.checks.isolation import isolated
from amortized.compare.candidates import CandidateSpec, Ours, as_candidate, naming
from amortized.compare.training.beginning import first_other
from amortized.compare.training.folder import Results
from amortized.compare.training.result import TrainingComparison
from amortized.compare.training.trial import Job, Plan, Trial
from amortized.compare.training.workers import run_trials
from amortized.errors import UsageError
from amortized.fit.arguments import LAST_SEED, known_names, path_of, refuse_no_count
from amortized.fit.compiled.steps import Compile
from amortized.fit.optimizer import DEFAULT_LR, LearningRate, OptimizerFactory
from amortized.fit.program import Program
from amortized.loss import VariationalLoss

# checks of a trial, where nobody said how many
_CHECKS: Final = 20
# of SVI.fit, what a candidate may be trained with; the rest is the comparison's own
TRAINING: Final = (
    "scheduler",
    "scheduler_interval",
    "gradient_clip_val",
    "accumulate_grad_batches",
    "kl_weight",
    "n_epochs_kl_warmup",
    "limit_train_batches",
    "detect_anomaly",
    "non_finite",
    "non_finite_limit",
)


@known_names
def compare_training(
    program: Callable[..., Program] | str | Path,
    candidates: Mapping[str, CandidateSpec],
    *,
    max_steps: int,
    seeds: int | Sequence[int] = 5,
    options: Mapping[str, Any] | None = None,
    check_every: int | None = None,
    num_particles: int = 10,
    batch_size: int = 128,
    lr: LearningRate = DEFAULT_LR,
    optimizer: OptimizerFactory = torch.optim.Adam,
    data_plate: str | None = None,
    compile: Compile = "auto",
    device: str | torch.device | None = None,
    training: Mapping[str, Any] | None = None,
    workers: int = 1,
    threads: int = 1,
    folder: str | Path | None = None,
    progress: bool = True,
) -> TrainingComparison:
    """Train a program with several losses, each under several seeds, and compare held-out bounds.

    Under one seed all candidates start from the same parameters and meet the data in the same
    order; each check has the same noise for all of them. A check is the ELBO of the validation data
    by plain particles, in nats per data point, whatever the candidate's own bound is.

    Trials take turns: all candidates under the first seed, then all under the second in another
    order. One that fails after its first step is recorded with the step and the sentence. Ctrl-C
    ends the comparison and keeps what is finished.

    Args:
        program: ``program(**options)`` that returns a `Program`, built anew for each trial under
            its seed; or the path of a file that defines one.
        candidates: by name: a `VariationalLoss`, a mapping of estimators by site, or one estimator
            (or its name) for all sites.
        max_steps: optimizer steps of each trial.
        seeds: so many from 0, or these.
        options: of ``program``; text is read by the type of the default.
        check_every: steps between two checks; default a twentieth of all steps.
        num_particles: of a check.
        batch_size: as in `SVI.fit`, like ``lr``, ``optimizer``, ``data_plate``, ``compile`` and
            ``device`` of `SVI`.
        lr: learning rates.
        optimizer: called with parameter groups.
        data_plate: the plate of data points.
        compile: what may be captured or compiled; that counts as training.
        device: where to train; on a GPU compare ``wall``, since the processor only waits.
        training: further arguments of `SVI.fit`, such as ``gradient_clip_val``.
        workers: so many trials side by side, each in a process of its own.
        threads: of torch in each trial.
        folder: keep one file a trial there; a call with the same folder runs only what is missing.
            Nothing is written without it.
        progress: a line on standard error for each trial.

    Returns:
        `TrainingComparison`.

    Raises:
        UsageError: a wrong argument, trials of another kind in the folder, a program that does not
            start alike under one seed, a loader in an order of its own.
        ProgramError: the program is wrong.
        EstimatorError: a candidate cannot serve the program.
        KeyboardInterrupt: Ctrl-C before the first trial was finished.

    >>> import amortized as am, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x): pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
    >>> def program(): return am.Program(model, guide, train=torch.full((64,), 3.0))
    >>> losses = {"pathwise": "pathwise", "score": "score_function"}
    >>> found = compare_training(
    ...     program, losses, max_steps=40, seeds=2, lr=0.1, num_particles=2, progress=False)
    >>> found.best, [trial.candidate for trial in found.trials]
    ('pathwise', ['pathwise', 'score', 'score', 'pathwise'])
    """
    _refuse_counts(max_steps, num_particles, workers, threads)
    refuse_no_count("check_every", check_every, or_none=True)
    plan = Plan(
        program=_program(program),
        options={name: str(value) for name, value in (options or {}).items()},
        max_steps=max_steps,
        check_every=check_every or max(1, max_steps // _CHECKS),
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        data_plate=data_plate,
        particles=num_particles,
        compile=compile,
        device=device,
        threads=threads,
        training=_training(training),
    )
    losses = _losses(candidates)
    numbers = _seeds(seeds)
    results = Results(None if folder is None else path_of("folder", folder), plan)
    with plan.opened(numbers[0]) as built:
        evaluations = _admitted(plan, built, losses)
        held_out = built.val is not None
    jobs = _turns(losses, numbers)
    done = _run(plan, jobs, results, workers, progress)
    if not done:
        raise KeyboardInterrupt
    return TrainingComparison(
        trials=sorted(done, key=lambda trial: trial.place),
        max_steps=max_steps,
        evaluations=evaluations,
        held_out=held_out,
        particles=num_particles,
        missing=len(jobs) - len(done),
    )


def _run(
    plan: Plan, jobs: Sequence[Job], results: Results, workers: int, progress: bool
) -> list[Trial]:
    """All trials that there are in the end, those of the folder first."""
    done: list[Trial] = []
    starts: dict[int, Trial] = {}
    by_place = {job.place: job for job in jobs}

    def keep(trial: Trial) -> None:
        _refuse_other_start(starts.setdefault(trial.seed, trial), trial)
        _refuse_other_order([t for t in done if t.seed == trial.seed], trial)
        done.append(trial)

    def finish(trial: Trial) -> None:
        keep(trial)
        results.write(by_place[trial.place], trial)
        if progress:
            print(_line(trial, len(done), len(jobs)), file=sys.stderr)

    left = []
    for job in jobs:
        trial = results.read(job)
        if trial is None:
            left.append(job)
        else:
            keep(replace(trial, place=job.place))
    run_trials(plan, left, workers, finish)
    return done


def _line(trial: Trial, number: int, total: int) -> str:
    name = f"{number}/{total} {trial.candidate}, seed {trial.seed}"
    if trial.failure:
        return f"{name}: failed at step {trial.failed_step}: {trial.failure}"
    last = f"ELBO {trial.elbo[-1]:.3f} after {trial.steps[-1]} steps"
    return f"{name}: {last}, {trial.seconds[-1]:.1f} processor seconds"


def _refuse_other_start(first: Trial, trial: Trial) -> None:
    if first.start and trial.start and first.start != trial.start:
        raise UsageError(
            f"program: with seed {trial.seed}, candidate {trial.candidate!r} started from other "
            f"parameters than {first.candidate!r}; expected equal starts; build networks and "
            "their first values inside of program(), from torch's generator, which is seeded"
        )


def _refuse_other_order(others: Sequence[Trial], trial: Trial) -> None:
    """Any two of one seed meet the same batches, as far as both went."""
    for other in others:
        place = first_other(other.batches, trial.batches)
        if place is None:
            continue
        epoch, batch = place.split("/")
        outlives = place == "1/1"
        cause = (
            "its order comes from a generator that outlives a trial; make the DataLoader and its "
            "generator inside of program(), such as generator=torch.Generator().manual_seed(0)"
            if outlives
            else "a Dataset or a sampler draws from torch's global generator, which candidates "
            "move by different amounts; make items depend on their index alone (noise belongs "
            "into the model), and give samplers a generator, made inside of program()"
        )
        raise UsageError(
            f"program: with seed {trial.seed}, candidate {trial.candidate!r} met other training "
            f"data than {other.candidate!r} from epoch {epoch}, batch {batch} on; expected the "
            f"same for all: most likely {cause}; or return tensors"
        )


def _turns(losses: Mapping[str, VariationalLoss], seeds: Sequence[int]) -> list[Job]:
    """All candidates under each seed, every time in another order."""
    names, jobs = list(losses), []
    for turn, seed in enumerate(seeds):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            jobs.append(Job(name, losses[name], seed, len(jobs) + 1, checked=turn > 0))
    return jobs


def _admitted(
    plan: Plan, program: Program, losses: Mapping[str, VariationalLoss]
) -> dict[str, int]:
    """How often each candidate evaluates the model in a step; mistakes show before any training."""
    _refuse_loader(program.train)
    batch, found = plan.first_batch(program), {}
    for name, loss in losses.items():
        with naming(f"candidate {name!r}"), isolated(program.model, program.guide):
            # a store of its own: what the programs declare must not stay in Pyro's
            with pyro.get_param_store().scope():
                svi = plan.svi(program, loss)
                found[name] = svi.describe(batch).model_evaluations
    return found


def _refuse_loader(train: Any) -> None:
    if not isinstance(train, DataLoader):
        return
    samplers = [train.sampler, getattr(train.batch_sampler, "sampler", None)]
    shuffles = any(isinstance(s, RandomSampler) and s.generator is None for s in samplers)
    if shuffles and train.generator is None:
        raise UsageError(
            "program: its train is a DataLoader that shuffles by torch's global generator, which "
            "candidates move by different amounts; expected one order for all of them; make the "
            "loader inside of program(), with generator=torch.Generator().manual_seed(0) made "
            "there too, or return tensors"
        )


def _program(program: object) -> Callable[..., Any] | Path:
    if isinstance(program, str | os.PathLike):
        return Path(program)
    if not callable(program):
        raise UsageError(
            f"program: found {type(program).__name__}; expected a function program(**options) that "
            "returns am.Program(model, guide, train, val), or the path of a file that defines one"
        )
    if isinstance(program, Program) or inspect.isclass(program):
        raise UsageError("program: found a class or a built program; expected a function")
    return program


def _losses(candidates: object) -> dict[str, VariationalLoss]:
    if not isinstance(candidates, Mapping) or not candidates:
        raise UsageError(
            f"candidates={candidates!r}: expected a dict of losses or estimators by name, such as "
            "{'disarm': 'disarm', 'pairs': am.VariationalLoss(am.ELBO(2))}"
        )
    losses = {}
    for name, spec in candidates.items():
        made = as_candidate(name, spec)
        if not isinstance(made, Ours):
            raise UsageError(
                f"candidate {name!r}: found {type(spec).__name__}; Pyro's losses are compared by "
                "am.compare_gradients; its default for discrete sites is am.ScoreFunction(), "
                "which can be trained here"
            )
        losses[name] = made.loss
    return losses


def _seeds(seeds: object) -> list[int]:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        found = list(seeds)
    else:
        refuse_no_count("seeds", seeds)
        found = list(range(int(seeds)))  # pyright: ignore[reportArgumentType]
    fine = all(type(seed) is int and 0 <= seed <= LAST_SEED for seed in found)
    if not found or not fine or len(set(found)) < len(found):
        raise UsageError(
            f"seeds={seeds!r}: expected how many, or different whole numbers from 0 to {LAST_SEED}"
        )
    return found


def _training(training: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(training or {})
    for name in found:
        if name not in TRAINING:
            raise UsageError(
                f"training={{{name!r}: ...}}: expected arguments of SVI.fit among "
                f"{', '.join(TRAINING)}"
            )
    return found


def _refuse_counts(max_steps: int, num_particles: int, workers: int, threads: int) -> None:
    counts = {"max_steps": max_steps, "num_particles": num_particles}
    for name, value in {**counts, "workers": workers, "threads": threads}.items():
        refuse_no_count(name, value)
