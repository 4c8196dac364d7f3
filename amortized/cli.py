"""The command line: ``amortized fit PROGRAM.py`` and ``amortized check PROGRAM.py``."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch.utils.data import DataLoader

from amortized.checks.check import check as check_pair
from amortized.checks.report import CODES
from amortized.errors import (
    AmortizedError,
    CheckpointError,
    CheckWarning,
    DataError,
    EstimatorError,
    NonFiniteError,
    ProgramError,
    UsageError,
)
from amortized.fit.callbacks import Callback, EarlyStopping
from amortized.fit.data import first_batch
from amortized.fit.figures import write_figures
from amortized.fit.files import build, pairs, program_file
from amortized.fit.folder import METRICS, RunFolder, write_json
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.program import Program
from amortized.fit.rng import seeded
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss
from amortized.objectives.elbo import ELBO

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Amortized variational inference on Pyro."
)
# typer wraps its own copy of click or the installed one; BadParameter, UsageError, ClickException
# are the line of descent in both.
_COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.mro()[2]
# the first that fits decides
_EXIT_CODES = (
    (DataError, 4),
    (UsageError, 2),
    (ProgramError, 3),
    (EstimatorError, 3),
    (NonFiniteError, 5),
    (CheckpointError, 6),
)


@dataclass(frozen=True)
class Source:
    """The program that a command is about, with the loss that is asked for."""

    path: Path
    options: dict[str, str]
    estimators: dict[str, str]
    objective: ELBO
    batch_size: int | None
    seed: int

    @property
    def loss(self) -> VariationalLoss:
        """The objective with its estimators."""
        return VariationalLoss(self.objective, self.estimators or None)

    @contextmanager
    def opened(self) -> Iterator[Program]:
        """The program, built under the seed."""
        with program_file(self.path) as function, seeded(self.seed):
            yield build(function, self.options)


@dataclass(frozen=True)
class Request:
    """What one call of ``amortized fit`` asks for."""

    source: Source
    out: Path | None
    resume: bool
    overwrite: bool
    lr: float
    patience: int
    training: dict[str, Any]
    """Options that go to `SVI.fit` as they are."""

    @property
    def config(self) -> dict[str, Any]:
        """All of it as plain values; what may change on resuming is in `FREE`."""
        source, plain = self.source, dict(self.training)
        return {
            "program": str(source.path),
            "options": source.options,
            "estimators": source.estimators,
            "objective": repr(source.objective),
            "batch_size": source.batch_size,
            "seed": source.seed,
            "lr": self.lr,
            "patience": self.patience,
            **plain,
        }


# On resuming, training may be longer, elsewhere, or look different.
FREE = ("program", "max_epochs", "max_steps", "progress", "device", "check", "detect_anomaly")

_SET = Annotated[
    list[str] | None, typer.Option("--set", help="name=value, an option of the program.")
]
_ESTIMATOR = Annotated[
    list[str] | None,
    typer.Option(help="site=name, e.g. 'c=score_function'; the site may be a glob."),
]
_TRACEBACK = Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")]
_PROGRAM = Annotated[Path, typer.Argument(help="A file that defines program(**options).")]


@app.callback()
def _root() -> None:
    # With a callback, typer keeps the name of a sole subcommand.
    return


@app.command()
def fit(
    program: _PROGRAM,
    options: _SET = None,
    estimator: _ESTIMATOR = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics, figures and checkpoints.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data at most.")] = 100,
    batch_size: Annotated[
        int | None, typer.Option(help="Data points a step, 128 if not given; not for a DataLoader.")
    ] = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out as if never interrupted.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in a folder that holds a run.")
    ] = False,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide a step.")] = 1,
    kl: Annotated[str, typer.Option(help="sample, or analytic where it is known.")] = "sample",
    kl_warmup: Annotated[
        int | None, typer.Option(help="Epochs over which the KL's weight grows from 0 to 1.")
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation loss until the end; 0: never.")
    ] = 10,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches that make one step.")] = 1,
    non_finite: Annotated[
        str, typer.Option(help="At a loss that is not finite: raise, skip or rollback.")
    ] = "raise",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    trial: Annotated[
        bool, typer.Option("--fast-dev-run", help="One batch only, to see whether all works.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Look for mistakes before the first step.")] = True,
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Name the site of a NaN gradient (slow).")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress line.")] = True,
    traceback: _TRACEBACK = False,
) -> None:
    """Fit a program, print the test ELBO and the evidence bound, write figures to --out."""
    source = _source(program, options, estimator, objective=ELBO(num_particles, _kl(kl)), seed=seed)
    training = {
        "max_epochs": epochs,
        "max_steps": max_steps,
        "gradient_clip_val": clip,
        "accumulate_grad_batches": accumulate,
        "n_epochs_kl_warmup": kl_warmup,
        "non_finite": non_finite,
        "device": device,
        "fast_dev_run": trial,
        "check": check,
        "detect_anomaly": detect_anomaly,
        "progress": progress,
    }
    _fit(
        Request(
            source=replace(source, batch_size=batch_size),
            out=None if trial else out,
            resume=resume,
            overwrite=overwrite,
            lr=lr,
            patience=patience,
            training=training,
        )
    )


@app.command()
def check(
    program: _PROGRAM,
    options: _SET = None,
    estimator: _ESTIMATOR = None,
    *,
    batch_size: Annotated[int, typer.Option(help="Data points of the batch to check.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide a step.")] = 1,
    kl: Annotated[str, typer.Option(help="sample, or analytic where it is known.")] = "sample",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    traceback: _TRACEBACK = False,
) -> None:
    """Look for mistakes in a program and a batch of its data, without training."""
    source = _source(program, options, estimator, objective=ELBO(num_particles, _kl(kl)), seed=seed)
    with source.opened() as built:
        batch = first_batch(built.train, batch_size)
        report = check_pair(built.model, built.guide, batch, loss=source.loss)
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    worst = report.errors or (report.warnings if strict else [])
    if worst:
        raise typer.Exit(exit_code(CODES[worst[0].code]("")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    A mistake is one sentence on standard error. Exit codes: 0 done, 1 an unexpected error, 2 a
    wrong call, 3 a mistake in the program or an estimator that cannot serve it, 4 data, 5 numbers
    that are not finite, 6 files and checkpoints, 130 interrupted, 143 terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="amortized", standalone_mode=False)
    except _COMMAND_LINE_ERROR as error:
        _fail(" ".join(getattr(error, "format_message", error.__str__)().split()), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if "--traceback" in given:
            raise
        if isinstance(error, AmortizedError):
            _fail(str(error.args[0]), exit_code(error), getattr(error, "table", ""))
        sentence = " ".join(str(error).split())
        _fail(f"{type(error).__name__}: {sentence} (--traceback shows where)", 1)
    else:
        sys.exit(code or 0)


def exit_code(error: AmortizedError) -> int:
    """The exit code for an error, which scripts can tell apart.

    >>> exit_code(UsageError("")), exit_code(NonFiniteError("", ""))
    (2, 5)
    """
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return 1


def _fail(message: str, code: int, table: str = "") -> None:
    for sentence in message.splitlines():
        print(f"amortized: {' '.join(sentence.split())}", file=sys.stderr)
    if table:
        print(f"\n{table}", file=sys.stderr)
    sys.exit(code)


def _source(
    path: Path,
    options: list[str] | None,
    estimator: list[str] | None,
    *,
    objective: ELBO,
    seed: int,
) -> Source:
    return Source(
        path=path,
        options=pairs("--set", options or ()),
        estimators=pairs("--estimator", estimator or ()),
        objective=objective,
        batch_size=None,
        seed=seed,
    )


def _kl(text: str) -> Literal["sample", "analytic"]:
    if text not in ("sample", "analytic"):
        raise UsageError(f"--kl {text}: expected sample or analytic")
    return "analytic" if text == "analytic" else "sample"


def _fit(request: Request) -> None:
    folder = None if request.out is None else RunFolder(request.out, request.config)
    try:
        _run(request, folder)
    finally:
        if folder is not None:
            folder.remove_if_empty()


def _run(request: Request, folder: RunFolder | None) -> None:
    source = request.source
    if request.overwrite and request.resume:
        raise UsageError("--resume and --overwrite: go on with the run or start again, not both")
    if folder is not None:
        if not request.overwrite:
            folder.refuse_another_run(request.resume, FREE)
    elif request.resume:
        raise UsageError("--resume: say which run to go on with, --out FOLDER")
    with source.opened() as program:
        svi = SVI(program.model, program.guide, source.loss, lr=request.lr)
        batch_size = _batch_size(program, source.batch_size)
        first = first_batch(program.train, batch_size)
        if request.training["check"]:
            _check(program, first, source.loss)
        print(svi.describe(first))
        if folder is not None and request.overwrite:  # all else was found right
            folder.forget()
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckWarning)  # printed above
            history = svi.fit(
                program.train,
                program.val,
                batch_size=batch_size,
                seed=source.seed,
                callbacks=[*_early_stopping(program, request.patience), *_writers(folder)],
                resume_from=folder.checkpoints if folder is not None and request.resume else None,
                **request.training,
            )
        seconds = time.perf_counter() - started
        print(f"\n{history} in {seconds:.1f} s")
        for notice in history.notices:
            print(f"notice: {notice}")
        if history.stopped == "interrupted":
            hint = "" if folder is None else f"; --resume --out {folder.path} goes on"
            _fail(f"interrupted after {history.epochs} epochs{hint}", 130)
        metrics = _evaluate(svi, program, source.seed)
        if folder is not None:
            report = {**request.config, "epochs": history.epochs, "stopped": history.stopped}
            report |= {**metrics, "train_seconds": seconds}
            write_json(folder.path / METRICS, report)
            write_figures(svi, program, history, folder.path)
            print(f"metrics, figures and checkpoints are in {folder.path}")


def _batch_size(program: Program, asked: int | None) -> int:
    if asked is not None and isinstance(program.train, DataLoader):
        raise UsageError(
            f"--batch-size {asked}: the program's train is a DataLoader, which has its own; leave "
            "the option out"
        )
    return 128 if asked is None else asked


def _check(program: Program, batch: Any, loss: VariationalLoss) -> None:
    """Errors end the command; warnings are lines of their own."""
    report = check_pair(program.model, program.guide, batch, loss=loss)
    report.raise_errors()
    for finding in report.warnings:
        print(f"warning: {finding}", file=sys.stderr)


def _writers(folder: RunFolder | None) -> list[Callback]:
    return [] if folder is None else [folder, ModelCheckpoint(folder.checkpoints)]


def _early_stopping(program: Program, patience: int) -> list[EarlyStopping]:
    return [] if program.val is None or patience == 0 else [EarlyStopping(patience=patience)]


def _evaluate(svi: SVI, program: Program, seed: int) -> dict[str, float]:
    if program.test is None:
        print("the program has no test data: nothing to evaluate")
        return {}
    metrics = svi.evaluate(program.test, seed=seed)
    unit = "nats per data point" if metrics["per_datum"] else "nats in all: there is no data plate"
    print(
        f"test ELBO      {metrics['elbo']:10.3f} {unit} "
        f"(reconstruction {metrics['reconstruction']:.3f} - KL {metrics['kl']:.3f})"
    )
    if "log_evidence" in metrics:
        print(
            f"test evidence  {metrics['log_evidence']:10.3f} {unit}, or more "
            f"(importance-weighted bound of log p(x), {metrics['num_particles']:.0f} draws)"
        )
    return {f"test_{name}": value for name, value in metrics.items()}
