"""How the cost of a step, its start and its memory grow with particles, batch and sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from tests.benchmarks.peers import turns
from tests.benchmarks.peers.works import BY_NAME, MODES, Work

CONTESTANTS = (*MODES, "Pyro SVI.step", "by hand, eager", "NumPyro")
ROUNDS, BLOCK = 5, 0.1
PARTICLES = (1, 10, 100, 1000)
BATCH = (16, 64, 256, 1024, 4096)
SITES = (1, 10, 30, 100, 200)
PANELS = {"ms": "ms a step", "start_s": "s to start", "peak_mb": "peak MB"}
LEAST = {"start_s": 0.01}
"""What is less is shown as that: such a start is within the noise of the first steps."""
STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "D"),
    ("#D55E00", "^"),
    ("#000000", "v"),
    ("#CC79A7", "P"),
)
"""Colors that are told apart by all (Okabe and Ito), and markers."""


def works() -> Iterator[tuple[str, int, Work]]:
    """Axis, value and work: the small VAE, and the chain."""
    small, chain = (replace(BY_NAME[name], learn=0) for name in ("small", "sites"))
    for particles in PARTICLES:
        yield "particles", particles, replace(small, particles=particles)
    for batch in BATCH:
        yield "batch", batch, replace(small, batch=batch)
    for sites in SITES:
        yield "sites", sites, replace(chain, latent=sites)


def measure(settings: turns.Settings, console: Console) -> list[dict[str, Any]]:
    """One row for each axis, value and contestant."""
    settings = replace(settings, rounds=min(settings.rounds, ROUNDS), block=BLOCK)
    table = Table(title="growth: the small VAE, and the chain of sites", title_justify="left")
    for column in ("axis", "value", "contestant", *PANELS.values()):
        table.add_column(column, justify="left" if column in ("axis", "contestant") else "right")
    rows: list[dict[str, Any]] = []
    for axis, value, work in works():
        # by hand there is one particle; the chain is a Pyro program only
        names = [n for n in CONTESTANTS if n in work.contestants]
        names = [n for n in names if work.particles == 1 or n != "by hand, eager"]
        found, _ = turns.run(work, names, settings)
        for name, result in found.items():
            numbers = {key: result.as_dict()[key] for key in PANELS}
            rows.append({"axis": axis, "value": value, "contestant": name, **numbers})
            milliseconds, seconds, peak = numbers.values()
            texts = (f"{milliseconds:.3f}", f"{seconds:.2f}", f"{peak:.0f}")
            table.add_row(axis, str(value), name, *texts)
        print(f"{axis} {value} done", flush=True)
    console.print(table)
    return rows


def plots(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """One figure an axis: a panel for each number, a line for each contestant."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        figure, panels = plt.subplots(1, len(PANELS), figsize=(12, 3.6), layout="constrained")
        about = [row for row in rows if row["axis"] == axis]
        for panel, (key, label) in zip(panels, PANELS.items(), strict=True):
            least = LEAST.get(key, 0.0)
            for name, (color, marker) in zip(
                dict.fromkeys(row["contestant"] for row in about), STYLES, strict=False
            ):
                line = [
                    (row["value"], max(least, row[key]))
                    for row in about
                    if row["contestant"] == name
                ]
                places, values = zip(*line, strict=True)
                panel.plot(places, values, color=color, marker=marker, markersize=4, label=name)
            panel.set(xscale="log", xlabel=axis, ylabel=label)
            if key == "peak_mb":
                panel.set_ylim(bottom=0)
            else:
                panel.set_yscale("log")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        paths.append(folder / f"growth_{axis}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths
