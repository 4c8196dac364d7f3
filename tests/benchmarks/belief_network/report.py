"""Tables on the screen, a page in Markdown, and a figure: what is there so far."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.belief_network import figure
from tests.benchmarks.belief_network.plan import (
    EPOCHS,
    ESTIMATORS,
    THEIR_EPOCH,
    Folder,
    Settings,
    read,
    write,
)

Runs = dict[str, list[dict[str, Any]]]
STAR = r" \*"
PAGE, FIGURE, ALL = "estimators-measured.md", "elbo.png", "report.json"


def line(run: Mapping[str, Any]) -> str:
    """One run in one line."""
    name = f"{run['estimator']}, seed {run['seed']}, lr {run.get('lr', float('nan')):g}"
    reached = ""
    if "train_elbo" in run:
        reached = f"train ELBO {run['train_elbo']:.2f} after {run['steps']} steps, "
        reached += f"{run['seconds']:.0f} s of processor time, {1e3 * pace(run)[0]:.2f} ms a step"
    if run.get("finished"):
        test = run["test"]
        return f"{name}: {reached}; test ELBO {test['elbo']:.2f}, bound {bound(test):.2f}"
    return f"{name}: FAILED: {run.get('error', 'no reason')} {reached}"


def pace(run: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds a step after the first look, and what the steps before it took beyond that."""
    first, last = run["curve"][0], run["curve"][-1]
    if first["step"] == last["step"]:
        return last["seconds"] / last["step"], 0.0
    step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return step, max(0.0, first["seconds"] - first["step"] * step)


def bound(test: Mapping[str, Any]) -> float:
    """The bound of many particles."""
    found = test.get("log_evidence")
    return float("nan") if found is None else found


@dataclass(frozen=True)
class Row:
    """What is told of one estimator."""

    name: str
    biased: bool
    cells: tuple[str, ...]
    variance: tuple[str, ...]


TRAINING = ("steps", "ms a step", "start s", "train ELBO", "test ELBO", "test bound", "published")
VARIANCE = ("variance per element", "± SE", "ln", "of the first's", "mean apart")


def collected(folder: Folder, options: argparse.Namespace) -> Runs:
    """The runs that there are, by estimator."""
    found: Runs = {}
    for name in options.estimators:
        runs = [read(folder.run(name, seed)) for seed in range(options.seeds)]
        found[name] = [run for run in runs if run]
    return found


def rows(folder: Folder, settings: Settings, runs: Runs) -> list[Row]:
    """One for each estimator; numbers of several seeds side by side."""
    variances = {name: read(folder.variance(name)) for name in runs}
    first = next((v["variance"] for v in variances.values() if "variance" in v), None)
    apart = distances(folder, variances)
    found = []
    for name, several in runs.items():
        done = [run for run in several if run.get("finished")]
        lost = "; ".join(f"seed {r['seed']}: {r['error']}" for r in several if "error" in r)
        published = settings.published(name)
        cells = (
            joined(f"{run['steps']:,}" for run in done),
            joined(f"{1e3 * pace(run)[0]:.2f}" for run in done),
            joined(f"{pace(run)[1]:.0f}" for run in done),
            joined(f"{run['train_elbo']:.2f}" for run in done) or f"failed: {lost}"[:60],
            joined(f"{run['test']['elbo']:.2f}" for run in done),
            joined(f"{bound(run['test']):.2f}" for run in done),
            "" if published is None else f"{published:.2f}",
        )
        biased = bool(ESTIMATORS[name]().bias)
        found.append(Row(name, biased, cells, variance_cells(variances[name], first, apart[name])))
    return found


def joined(values: Iterable[str]) -> str:
    return ", ".join(values)


def variance_cells(
    found: Mapping[str, Any], first: float | None, apart: float | None
) -> tuple[str, ...]:
    if "variance" not in found:
        return (f"failed: {found['error']}"[:60] if "error" in found else "", "", "", "", "")
    value = found["variance"]
    log = f"{np.log(value):.2f}" if value > 0 else ""
    shown = (f"{value:.3g}", f"{found['error']:.1g}", log)
    return *shown, f"{value / first:.3g}" if first else "", "" if apart is None else f"{apart:.2f}"


def distances(
    folder: Folder, variances: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """How far mean gradients are from that of the least variance without a bias.

    The squared distance over what noise alone makes of it: 1 for equal means.
    """
    found: dict[str, float | None] = dict.fromkeys(variances)
    unbiased = {
        name: v["variance"]
        for name, v in variances.items()
        if "variance" in v and not ESTIMATORS[name]().bias
    }
    if not unbiased:
        return found
    best = min(unbiased, key=lambda name: unbiased[name])
    means = {name: folder.variance(name).with_suffix(".npy") for name in variances}
    held = {name: np.load(path).astype(float) for name, path in means.items() if path.exists()}
    if best not in held:
        return found
    for name in held:
        if name == best or "variance" not in variances[name]:
            continue
        noise = sum(
            v["variance"] * v["elements"] * v["batches"] ** 2 / v["draws"]
            for v in (variances[name], variances[best])
        )
        found[name] = float(((held[name] - held[best]) ** 2).sum()) / noise if noise else None
    return found


def tables(found: Sequence[Row], settings: Settings) -> list[Table]:
    """For the screen."""
    title = f"{settings.layers} layer(s) of {settings.width}, "
    title += f"{settings.minutes:g} min of processor time a run"
    result = []
    for name, columns in (("training", TRAINING), ("gradient at one checkpoint", VARIANCE)):
        table = Table(title=f"{title}: {name}; * biased", title_justify="left")
        table.add_column("estimator")
        for column in columns:
            table.add_column(column, justify="right")
        for row in found:
            cells = row.cells if columns is TRAINING else row.variance
            table.add_row(row.name + " *" * row.biased, *cells)
        result.append(table)
    return result


def markdown(found: Sequence[Row], settings: Settings, runs: Runs) -> str:
    """A part of a page of the documentation."""
    parts = [
        f"## {layers(settings)} of {settings.width} Bernoulli units",
        conditions(settings, runs),
        in_markdown(TRAINING, [(r.name, r.biased, r.cells) for r in found]),
        "\\* biased. " + explanation(settings, runs),
        f"![ELBO against steps and seconds]({FIGURE})",
        "### Variance of the gradient",
        about_variance(settings),
        in_markdown(VARIANCE, [(r.name, r.biased, r.variance) for r in found]),
    ]
    return "\n\n".join(parts) + "\n"


def in_markdown(columns: Sequence[str], rows: Sequence[tuple[str, bool, tuple[str, ...]]]) -> str:
    head = ["| estimator | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    body = [
        f"| `{name}`{STAR if biased else ''} | " + " | ".join(cells) + " |"
        for name, biased, cells in rows
    ]
    return "\n".join(head + body)


def layers(settings: Settings) -> str:
    names = {1: "One layer", 2: "Two layers"}
    return names.get(settings.layers, f"{settings.layers} layers")


def conditions(settings: Settings, runs: Runs) -> str:
    every = [run for several in runs.values() for run in several if run.get("finished")]
    load = max((max(run["load"]) for run in every), default=float("nan"))
    share = [run["processor"] for run in every] or [float("nan")]
    data = "scikit-learn's digits" if settings.data == "digits" else "static binarized MNIST"
    return (
        f"`examples/sigmoid_belief_network.py` on {data}, batch {settings.batch}, Adam at "
        f"{settings.lr:g}, float32, {settings.minutes:g} minutes of processor time a run (of its "
        "own process, so that other work on the machine does not count; capture and compilation "
        f'included, looks at the ELBO not), `compile="{settings.compile}"`. Several '
        "numbers in a cell are seeds. Start: seconds of the first steps beyond what they take "
        f"later. Train ELBO: the discrete bound on {settings.subset} training images, "
        f"{settings.particles} draws each, the same images and noise for all; "
        f"test: {settings.test_images} images, the bound being that of {settings.test_particles} "
        f"particles. Torch {torch.__version__}, Pyro {pyro.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; a run had "
        f"{min(share):.0%} to {max(share):.0%} of one; load up to {load:.1f}."
    )


def explanation(settings: Settings, runs: Runs) -> str:
    steps = [run["steps"] for several in runs.values() for run in several if run.get("finished")]
    if not steps or settings.published("rebar") is None:
        return "Nothing is published for this network on these data."
    theirs = " and ".join(
        f"{epochs} epochs ({epochs * THEIR_EPOCH / 1e6:.1f} million steps) for {name.upper()}"
        for name, epochs in EPOCHS[settings.layers].items()
    )
    return (
        "Published: the highest training ELBO on binarized MNIST, 200 units, batch 24 (Grathwohl "
        "et al. 2018, 1711.00123, with columns of Tucker et al. 2017, 1703.07370). Theirs trained "
        f"to the end, REBAR's best being reached after {theirs}; ours had {min(steps):,} to "
        f"{max(steps):,} steps ({min(steps) / THEIR_EPOCH:.1f} to {max(steps) / THEIR_EPOCH:.1f} "
        "epochs). The numbers stand beside each other, and are no comparison."
    )


def about_variance(settings: Settings) -> str:
    return (
        "At one checkpoint for all: the trace of the covariance of the gradient of the mean bound "
        "per datum in the guide's parameters, divided by their number, by the estimator's own "
        "noise (four fixed minibatches, averaged). An estimator that learns had learned in its own "
        f"run and for {settings.adapt} more steps there, model and guide held. `mean apart`: the "
        "squared distance of the mean gradient from that of the unbiased estimator with the least "
        "variance, over what noise alone makes of it; 1 is equal means."
    )


def publish(
    folder: Folder, settings: Settings, options: argparse.Namespace, console: Console
) -> None:
    """All of it; what fails to be drawn must not hide the numbers."""
    runs = collected(folder, options)
    found = rows(folder, settings, runs)
    for table in tables(found, settings):
        console.print(table)
    console.print(
        f"torch {torch.__version__}, pyro {pyro.__version__}, Python {platform.python_version()}, "
        f"{options.threads} thread(s) a run, {platform.machine()}, {os.cpu_count()} cores",
        highlight=False,
    )
    page = folder.path / PAGE
    page.write_text(markdown(found, settings, runs), encoding="utf-8")
    variances = {name: read(folder.variance(name)) for name in runs}
    about = {"settings": settings.as_dict(), "threads": options.threads}
    write(folder.path / ALL, {**about, "runs": runs, "variances": variances})
    written: list[Path] = [page, folder.path / ALL]
    try:
        written.append(figure.draw(runs, folder.path / FIGURE))
    except Exception as error:
        console.print(f"no figure: {type(error).__name__}: {error}", highlight=False)
    console.print("\n".join(map(str, written)), highlight=False)
