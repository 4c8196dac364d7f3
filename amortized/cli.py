"""The command line: ``amortized fit PROGRAM.py --set name=value --estimator site=name``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from amortized.errors import AmortizedError, UsageError
from amortized.fit.callbacks import EarlyStopping
from amortized.fit.data import as_batches
from amortized.fit.files import build, pairs, program_file
from amortized.fit.history import History
from amortized.fit.pictures import codes, imagined, reconstructed
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
_IMAGES, _ROWS, _CODES = 10, 5, 2000


@dataclass(frozen=True)
class Request:
    """What one call of ``amortized fit`` asks for."""

    path: Path
    options: dict[str, str]
    estimators: dict[str, str]
    objective: ELBO
    out: Path | None
    epochs: int
    batch_size: int
    lr: float
    seed: int
    patience: int
    progress: bool


@app.callback()
def _root() -> None:
    # With a callback, typer keeps the name of a sole subcommand.
    return


@app.command()
def fit(
    program: Annotated[Path, typer.Argument(help="A file that defines program(**options).")],
    options: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, an option of the program.")
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="site=name, e.g. 'c=score_function'; the site may be a glob."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics and figures.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data at most.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Data points a step.")] = 128,
    *,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide a step.")] = 1,
    kl: Annotated[str, typer.Option(help="sample, or analytic where it is known.")] = "sample",
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation loss until the end; 0: never.")
    ] = 10,
    progress: Annotated[bool, typer.Option(help="Show a progress line.")] = True,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error arose.")
    ] = False,
) -> None:
    """Fit a program, print the test ELBO and the evidence bound, write figures to --out."""
    _fit(
        Request(
            path=program,
            options=pairs("--set", options or ()),
            estimators=pairs("--estimator", estimator or ()),
            objective=ELBO(num_particles, _kl(kl)),
            out=out,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            patience=patience,
            progress=progress,
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a mistake is one sentence on standard error, and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="amortized", standalone_mode=False)
    except _COMMAND_LINE_ERROR as error:
        _fail(getattr(error, "format_message", error.__str__)())
    except KeyboardInterrupt:
        _fail("interrupted")
    except Exception as error:
        if "--traceback" in given:
            raise
        known = isinstance(error, AmortizedError)
        _fail(str(error) if known else f"{type(error).__name__}: {error} (--traceback shows where)")
    else:
        sys.exit(code or 0)


def _fail(message: str) -> None:
    sentence = " ".join(message.split())
    print(f"amortized: {sentence}", file=sys.stderr)
    sys.exit(2)


def _kl(text: str) -> Literal["sample", "analytic"]:
    if text not in ("sample", "analytic"):
        raise UsageError(f"--kl {text}: expected sample or analytic")
    return "analytic" if text == "analytic" else "sample"


def _fit(request: Request) -> None:
    if request.out is not None:
        _make(request.out)
    with program_file(request.path) as function, seeded(request.seed):
        program = build(function, request.options)
        loss = VariationalLoss(request.objective, request.estimators or None)
        svi = SVI(program.model, program.guide, loss, lr=request.lr)
        print(svi.describe(_first(program.train, request.batch_size)))
        started = time.perf_counter()
        history = svi.fit(
            program.train,
            program.val,
            max_epochs=request.epochs,
            batch_size=request.batch_size,
            callbacks=_early_stopping(program, request.patience),
            progress=request.progress,
        )
        seconds = time.perf_counter() - started
        print(f"\n{history} in {seconds:.1f} s")
        metrics = _evaluate(svi, program)
        if request.out is not None:
            _write(request, request.out, history, {**metrics, "train_seconds": seconds})
            _draw(svi, program, history, request.out)
            print(f"metrics and figures are in {request.out}")


def _make(out: Path) -> None:
    """Before training, so that a folder that cannot be written costs nobody an hour."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error


def _first(data: Any, batch_size: int) -> Any:
    return next(as_batches(data, batch_size).epoch())


def _early_stopping(program: Program, patience: int) -> list[EarlyStopping]:
    return [] if program.val is None or patience == 0 else [EarlyStopping(patience=patience)]


def _evaluate(svi: SVI, program: Program) -> dict[str, float]:
    if program.test is None:
        print("the program has no test data: nothing to evaluate")
        return {}
    metrics = svi.evaluate(program.test)
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


def _write(request: Request, out: Path, history: History, metrics: dict[str, float]) -> None:
    report = {
        "program": str(request.path),
        "options": request.options,
        "estimators": request.estimators,
        "objective": repr(request.objective),
        "seed": request.seed,
        "epochs": history.epochs,
        "stopped": history.stopped,
        **metrics,
    }
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    history.write_csv(out / "history.csv")


def _draw(svi: SVI, program: Program, history: History, out: Path) -> None:
    """Writes the figures that make sense for the program."""
    # matplotlib is slow to import, and only needed here.
    import matplotlib.pyplot as plt

    # as above
    from amortized import plots

    def save(name: str) -> None:
        plt.savefig(out / name, dpi=150)
        plt.close()

    plt.close("all")
    history.plot()
    save("curves.png")
    if program.image_shape is None or program.test is None:
        return
    shape, rows = program.image_shape, _IMAGES * _ROWS
    few, some, many = (_first(program.test, size) for size in (_IMAGES, rows, _CODES))
    with svi.scope():
        pictures = reconstructed(program.model, program.guide, few, shape)
        samples = imagined(program.model, some, shape)
        points = codes(program.model, program.guide, many)
    if pictures is not None and samples is not None:
        plots.reconstructions(*pictures)
        save("reconstructions.png")
        plots.image_grid(samples, columns=_IMAGES)
        save("samples.png")
    if points is not None:
        labels = None if program.labels is None else program.labels[: len(points)]
        plots.latent_map(points, labels)
        save("latent.png")
