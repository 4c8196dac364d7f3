"""One ``amortized fit``: from a program file to the table, the training, the numbers and files."""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, final

import pyro
import typer
from torch.utils.data import DataLoader

from amortized.errors import (
    AmortizedError,
    CheckWarning,
    NonFiniteError,
    ProgramError,
    UsageError,
)
from amortized.fit.arguments import LAST_SEED
from amortized.fit.callbacks import Callback, EarlyStopping, FitState
from amortized.fit.data import first_batch
from amortized.fit.distributed import current_group
from amortized.fit.figures import write_figures
from amortized.fit.files import build, pairs, program_file
from amortized.fit.folder import CHECKPOINTS, METRICS, RunFolder, write_json
from amortized.fit.history import History
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.precision import Precision
from amortized.fit.program import Program
from amortized.fit.program_data import refuse_culprit, refuse_image_shape, refuse_test, try_test
from amortized.fit.rng import seeded
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss
from amortized.objectives.base import Objective

ProgramFile = Annotated[Path, typer.Argument(help="A file that defines program(**options).")]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="name=value, an option of the program.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Particles = Annotated[
    int | None, typer.Option(help="Draws from the guide a step: 1, or 5 for other bounds.")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")]


@dataclass(frozen=True)
class Source:
    """The program that a command is about, with the loss that is asked for."""

    path: Path
    options: dict[str, str]
    estimators: dict[str, str]
    objective: Objective
    batch_size: int | None
    seed: int

    @property
    def loss(self) -> VariationalLoss:
        """The objective with its estimators."""
        return VariationalLoss(self.objective, self.estimators or None)

    @contextmanager
    def opened(self) -> Iterator[Program]:
        """The program, built under the seed.

        Raises:
            ProgramError: what the file or its function raised, with the line.
        """
        with ExitStack() as stack:
            with _faults_in(self.path):
                stack.enter_context(seeded(self.seed))  # a file may draw where it is read
                function = stack.enter_context(program_file(self.path))
                pyro.set_rng_seed(self.seed)
                program = build(function, self.options)
            yield program


def source_of(
    path: Path,
    options: Sequence[str] | None,
    estimator: Sequence[str] | None = None,
    *,
    objective: Objective,
    seed: int,
    batch_size: int | None = None,
) -> Source:
    """From options of the command line, ``name=value`` each.

    Raises:
        UsageError: another form, or a seed out of range.
    """
    if not 0 <= seed <= LAST_SEED:
        raise UsageError(f"--seed {seed}: expected a whole number from 0 to {LAST_SEED}")
    return Source(
        path=path,
        options=pairs("--set", options or ()),
        estimators=pairs("--estimator", estimator or ()),
        objective=objective,
        batch_size=batch_size,
        seed=seed,
    )


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
    precision: Precision = "float32"

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
            "precision": self.precision,
            **plain,
        }


# On resuming, training may be longer, elsewhere, or look different.
FREE = ("program", "max_epochs", "max_steps", "progress", "device", "check", "detect_anomaly")


@contextmanager
def _faults_in(path: Path) -> Iterator[None]:
    """Whatever a file raises while it is read is a mistake in the program."""
    try:
        yield
    except AmortizedError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, SyntaxError) and error.filename:
            file, line = error.filename, error.lineno
            text = f"{type(error).__name__}: {error.msg}"
        else:
            file, line = _line_of(error, path)
        at = "" if line is None else f" line {line}"
        raise ProgramError(f"{Path(file).name}{at}: {text}") from error


def _line_of(error: Exception, path: Path) -> tuple[str, int | None]:
    """The innermost line in the program's folder."""
    folder = path.resolve().parent
    steps = traceback.extract_tb(error.__traceback__)
    here = [step for step in steps if Path(step.filename).resolve().parent == folder]
    return (here[-1].filename, here[-1].lineno) if here else (str(path), None)


@final
class _Opening(Callback):
    """When everything was found right: the table of sites, and nothing left of an earlier run."""

    def __init__(
        self, svi: SVI, batch: Any, program: Program, overwritten: RunFolder | None, *, check: bool
    ) -> None:
        self.svi, self.batch, self.program, self.overwritten = svi, batch, program, overwritten
        self.check = check

    def on_fit_start(self, state: FitState) -> None:
        state.once(self._looked)  # what one finds wrong ends all, and nothing is written
        if self.overwritten is not None:
            self.overwritten.forget()

    def _looked(self) -> None:
        try:
            print(self.svi.describe(self.batch))
        except Exception:  # a program that was not checked: the first step says where it fails
            print("the table of sites is left out: the programs fail on the first batch")
        else:
            try_test(self.svi, self.batch, self.program.test)
            refuse_image_shape(self.svi, self.batch, self.program.image_shape)
            if self.check:
                refuse_test(self.svi, self.program.test)


def run(request: Request, *, launcher: str | None = None) -> str | None:
    """Does it, printing as it goes; returns how training was interrupted, if it was.

    Args:
        request: what is asked for.
        launcher: names who started this process, and starts all anew after one has died: a run
            that the same launcher began goes on from its last checkpoint.

    Raises:
        AmortizedError: a wrong call, or what `SVI.fit` raises.
    """
    group = current_group()
    out = request.out if group.writes else None
    launchers = sorted({name for name in group.gathered(launcher) if name is not None})
    folder = group.agreed(
        lambda: None if out is None else RunFolder(out, request.config, launchers)
    )
    try:
        resume = group.once(lambda: _resumes(request, folder))
        overwrite = request.overwrite and not resume
        request = replace(request, resume=resume, overwrite=overwrite)
        with request.source.opened() as program, _check_warnings_printed(group.writes):
            return _run(request, program, folder)
    finally:
        if folder is not None:
            folder.remove_if_empty()


def _resumes(request: Request, folder: RunFolder | None) -> bool:
    """Whether a run in the folder is to go on: asked for, or begun by the same launcher."""
    if folder is not None and folder.begun_by(folder.launchers):
        request = replace(request, resume=True, overwrite=False)
    _refuse_clashes(request, folder)
    return request.resume


def _refuse_clashes(request: Request, folder: RunFolder | None) -> None:
    if request.overwrite and request.resume:
        raise UsageError("--resume and --overwrite: go on with the run or start again, not both")
    if folder is not None:
        if not request.overwrite:
            folder.refuse_another_run(request.resume, FREE)
    elif request.resume:
        raise UsageError("--resume: say which run to go on with, --out FOLDER")


@contextmanager
def _check_warnings_printed(prints: bool = True) -> Iterator[None]:
    """What the check warns of, as lines of their own, unless another process prints them."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if issubclass(category, CheckWarning):
                print(f"warning: {message}", file=sys.stderr if prints else sys.stdout)
            else:
                shown(message, category, *where)

        warnings.simplefilter("always", CheckWarning)
        warnings.showwarning = show
        yield


def _run(request: Request, program: Program, folder: RunFolder | None) -> str | None:
    source = request.source
    pair = program.model, program.guide
    svi = SVI(*pair, source.loss, lr=request.lr, precision=request.precision)
    batch_size = _batch_size(program, source.batch_size)
    first = first_batch(program.train, batch_size)
    overwritten = folder if request.overwrite else None
    checked = bool(request.training.get("check", True))
    checkpoints = None if request.out is None else request.out / CHECKPOINTS
    opening = _Opening(svi, first, program, overwritten, check=checked)
    stopping, writers = _early_stopping(program, request.patience), _writers(folder, checkpoints)
    history = svi.fit(
        program.train,
        program.val,
        batch_size=batch_size,
        seed=source.seed,
        callbacks=[opening, *stopping, *writers],
        resume_from=checkpoints if request.resume else None,
        **request.training,
    )
    print(f"\n{history} in {history.train_seconds:.1f} s")
    for notice in history.notices:
        print(f"notice: {notice}")
    if history.stopped == "interrupted":
        hint = "" if folder is None else f"; --resume --out {folder.path} goes on"
        return f"interrupted after {history.epochs} epochs{hint}"
    metrics = _evaluate(svi, program, source.seed)
    if folder is not None:
        _write(folder, request, history, metrics)
        write_figures(svi, program, history, folder.path)
        print(f"metrics, figures and checkpoints are in {folder.path}")
    elbo = metrics.get("test_elbo", 0.0)
    if not math.isfinite(elbo):
        refuse_culprit(svi, program.test)
        raise NonFiniteError(
            f"test: the ELBO is {elbo}; expected a finite number; look for missing values in the "
            "test data, and for observations that the likelihood excludes"
        )
    return None


def _write(
    folder: RunFolder, request: Request, history: History, metrics: dict[str, float]
) -> None:
    report = {**request.config, "epochs": history.epochs, "stopped": history.stopped}
    report |= {**metrics, "train_seconds": history.train_seconds}
    write_json(folder.path / METRICS, report)


def _batch_size(program: Program, asked: int | None) -> int:
    if asked is not None and isinstance(program.train, DataLoader):
        raise UsageError(
            f"--batch-size {asked}: the program's train is a DataLoader, which has its own; leave "
            "the option out"
        )
    return 128 if asked is None else asked


def _writers(folder: RunFolder | None, checkpoints: Path | None) -> list[Callback]:
    """Every process takes part in a checkpoint; the first has the folder, and writes."""
    kept: list[Callback] = [] if checkpoints is None else [ModelCheckpoint(checkpoints)]
    return kept if folder is None else [folder, *kept]


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
