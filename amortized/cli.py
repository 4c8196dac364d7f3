"""The command line: ``amortized fit``, ``check`` and ``compare`` with a ``PROGRAM.py``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from amortized.checks.check import check as check_pair
from amortized.checks.report import CODES, Report
from amortized.compare.selection import command as selecting
from amortized.compare.training import command as comparing
from amortized.errors import (
    AmortizedError,
    CheckpointError,
    DataError,
    EstimatorError,
    NonFiniteError,
    ProgramError,
    UsageError,
    WorkerError,
)
from amortized.fit.command import (
    Options,
    Particles,
    ProgramFile,
    Request,
    Seed,
    Traceback,
    run,
    source_of,
)
from amortized.fit.data import first_batch
from amortized.fit.distributed import current_group
from amortized.fit.launched import launched
from amortized.fit.precision import precision_of
from amortized.fit.program_data import data_findings
from amortized.objectives.choice import objective_of

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Amortized variational inference on Pyro."
)
# typer wraps its own copy of click or the installed one; BadParameter, UsageError, ClickException
# are the line of descent in both.
_COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.mro()[2]
_INTERRUPTED = 130
_OPTIONS = (
    ("max_epochs", "--epochs"),
    ("max_steps", "--max-steps"),
    ("batch_size", "--batch-size"),
    ("num_particles", "--num-particles"),
    ("gradient_clip_val", "--clip"),
    ("accumulate_grad_batches", "--accumulate"),
    ("n_epochs_kl_warmup", "--kl-warmup"),
    ("non_finite", "--non-finite"),
    ("detect_anomaly", "--detect-anomaly"),
)
# as plain words they may mean something else
_AMBIGUOUS = (
    *(("lr", "--lr"), ("device", "--device"), ("seed", "--seed"), ("seeds", "--seeds")),
    *(("workers", "--workers"), ("folder", "--folder"), ("parameters", "--parameter")),
    *(
        ("num_draws", "--num-draws"),
        ("budget_seconds", "--budget"),
        ("warmup_steps", "--warmup-steps"),
    ),
    *(("check_every", "--check-every"), ("reference", "--reference")),
)
# the first that fits decides
_EXIT_CODES = (
    (DataError, 4),
    (UsageError, 2),
    (ProgramError, 3),
    (EstimatorError, 3),
    (NonFiniteError, 5),
    (CheckpointError, 6),
    (WorkerError, 7),
)


_ESTIMATOR = Annotated[
    list[str] | None,
    typer.Option(help="site=name, e.g. 'c=score_function'; the site may be a glob."),
]
_OBJECTIVE = Annotated[
    str,
    typer.Option(
        help="elbo, iwae, renyi, reweighted_wake_sleep, tvo or forward_kl; with arguments as in "
        "'renyi:alpha=0.5'."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"amortized {metadata.version('amortized')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    # With a callback, typer keeps the name of a sole subcommand.
    return


@app.command()
def fit(
    program: ProgramFile,
    options: Options = None,
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
    seed: Seed = 0,
    objective: _OBJECTIVE = "elbo",
    num_particles: Particles = None,
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
    precision: Annotated[
        str, typer.Option(help="Of the networks' layers: float32 or bf16-mixed.")
    ] = "float32",
    trial: Annotated[
        bool, typer.Option("--fast-dev-run", help="One batch only, to see whether all works.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Look for mistakes before the first step.")] = True,
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Name the site of a NaN gradient (slow).")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress line.")] = True,
    traceback: Traceback = False,
) -> None:
    """Fit a program, print the test ELBO and the evidence bound, write figures to --out."""
    bound = objective_of(objective, num_particles, _kl(kl))
    source = source_of(program, options, estimator, objective=bound, seed=seed)
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
            precision=precision_of(precision),
        )
    )


@app.command()
def check(
    program: ProgramFile,
    options: Options = None,
    estimator: _ESTIMATOR = None,
    *,
    batch_size: Annotated[int, typer.Option(help="Data points of the batch to check.")] = 128,
    seed: Seed = 0,
    objective: _OBJECTIVE = "elbo",
    num_particles: Particles = None,
    kl: Annotated[str, typer.Option(help="sample, or analytic where it is known.")] = "sample",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    traceback: Traceback = False,
) -> None:
    """Look for mistakes in a program and in its data, without training."""
    bound = objective_of(objective, num_particles, _kl(kl))
    source = source_of(program, options, estimator, objective=bound, seed=seed)
    with source.opened() as built:
        batch = first_batch(built.train, batch_size)
        report = check_pair(built.model, built.guide, batch, loss=source.loss)
        if not report.errors:
            found = [*report.findings, *data_findings(built, source.loss, batch_size)]
            report = Report.of(found, report.sites, report.parameters)
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    worst = report.errors or (report.warnings if strict else [])
    if worst:
        raise typer.Exit(exit_code(CODES[worst[0].code]("")))


@app.command()
def compare(
    context: typer.Context,
    program: ProgramFile,
    options: Options = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="A candidate: 'c=disarm', 'c=disarm, z=pathwise' or 'name: c=disarm'."),
    ] = None,
    *,
    train: Annotated[
        bool, typer.Option("--train", help="Train each candidate; else gradients are measured.")
    ] = False,
    num_draws: Annotated[int, typer.Option(help="Draws of the gradient of each candidate.")] = 1000,
    budget: Annotated[
        float, typer.Option(help="Seconds; fewer draws where so many would last longer.")
    ] = 20.0,
    warmup_steps: Annotated[int, typer.Option(help="Draws that baselines learn from first.")] = 0,
    reference: Annotated[str, typer.Option(help="auto, exact or long.")] = "auto",
    parameter: Annotated[
        list[str] | None, typer.Option(help="A parameter with rows of its own; may be a glob.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="With --train: trials of each candidate.")] = 5,
    max_steps: Annotated[int, typer.Option(help="With --train: optimizer steps.")] = 1000,
    check_every: Annotated[
        int | None, typer.Option(help="With --train: steps between two checks.")
    ] = None,
    lr: Annotated[float, typer.Option(help="With --train: learning rate of Adam.")] = 1e-3,
    workers: Annotated[int, typer.Option(help="With --train: trials side by side.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="With --train: keep trials there, and go on from them.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Data points a batch.")] = 128,
    objective: _OBJECTIVE = "elbo",
    num_particles: Particles = None,
    kl: Annotated[str, typer.Option(help="sample, or analytic where it is known.")] = "sample",
    seed: Annotated[int, typer.Option(help="Of everything random; with --train the first.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write an HTML file.")] = None,
    format: Annotated[str, typer.Option(help="text, markdown, latex, html, csv or json.")] = "text",
    progress: Annotated[bool, typer.Option(help="Show a line for each trial.")] = True,
    traceback: Traceback = False,
) -> None:
    """Compare estimators: bias, variance and cost of their gradients, or whole trainings."""
    comparing.refuse_other_kind(context, train=train)
    gradients = {"num_draws": num_draws, "warmup_steps": warmup_steps, "reference": reference}
    gradients |= {"budget_seconds": budget, "parameters": parameter}
    training = {"max_steps": max_steps, "seeds": seeds, "check_every": check_every, "lr": lr}
    training |= {"workers": workers, "folder": folder, "progress": progress}
    bound = objective_of(objective, num_particles, _kl(kl))
    request = comparing.Comparison(
        source=source_of(program, options, None, objective=bound, seed=seed),
        candidates=estimator or [],
        report=report,
        format=format,
        gradients=gradients,
        batch_size=batch_size,
        training=training if train else None,
    )
    interrupted = comparing.run(request)
    if interrupted is not None:
        _fail(interrupted, _INTERRUPTED)


app.command()(selecting.select)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    A mistake is one sentence on standard error. Exit codes: 0 done, 1 an unexpected error, 2 a
    wrong call, 3 a mistake in the program or an estimator that cannot serve it, 4 data, 5 numbers
    that are not finite, 6 files and checkpoints, 7 another process that trains too has failed, 130
    interrupted, 143 terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="amortized", standalone_mode=False)
    except _COMMAND_LINE_ERROR as error:
        _fail(" ".join(getattr(error, "format_message", error.__str__)().split()), 2)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except Exception as error:
        if "--traceback" in given:
            raise
        if isinstance(error, AmortizedError):
            sentence = str(error.args[0])
            # what a program raised is its own text
            sentence = sentence if isinstance(error, ProgramError) else as_options(sentence)
            _fail(sentence, exit_code(error), getattr(error, "table", ""))
        sentence = " ".join(str(error).split())
        _fail(f"{type(error).__name__}: {sentence} (--traceback shows where)", 1)
    else:
        if code == _INTERRUPTED:  # typer takes a Ctrl-C that came before training
            _fail("interrupted", _INTERRUPTED)
        sys.exit(code or 0)


def as_options(sentence: str) -> str:
    """A sentence that names arguments of Python, with the options that stand for them here.

    >>> as_options("max_epochs=0: expected at least 1; fit(detect_anomaly=True) finds the site")
    '--epochs 0: expected at least 1; --detect-anomaly finds the site'
    """
    sentence = re.sub(r"\bELBO\((\w+=[^,)]*)\)", r"\1", sentence)
    sentence = re.sub(r"\bfit\((\w+=[^,)]*)\)", r"\1", sentence)
    sentence = re.sub(r"\bcandidates\[('[^']*')\]", r"--candidate \1", sentence)
    for name, option in _OPTIONS:
        sentence = re.sub(rf"\b{name}=True\b|\b{name}\b(?!=)", option, sentence)
    for name, option in (*_OPTIONS, *_AMBIGUOUS):
        sentence = re.sub(rf"\b{name}=", f"{option} ", sentence)
    return sentence


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


def _kl(text: str) -> Literal["sample", "analytic"]:
    if text not in ("sample", "analytic"):
        raise UsageError(f"--kl {text}: expected sample or analytic")
    return "analytic" if text == "analytic" else "sample"


def _fit(request: Request) -> None:
    training = dict(request.training)
    with launched(training["device"]) as launch:
        training["device"] = launch.device
        try:
            interrupted = run(replace(request, training=training), launcher=launch.launcher)
        except AmortizedError as error:
            if launch.said(error):
                sys.exit(exit_code(error))
            raise
        if interrupted is not None and not current_group().writes:
            sys.exit(_INTERRUPTED)
    if interrupted is not None:
        _fail(interrupted, _INTERRUPTED)
