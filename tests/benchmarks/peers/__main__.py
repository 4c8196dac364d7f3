"""This package against its peers, interleaved, and the ratios that it has to reach.

    python -m tests.benchmarks.peers                          # all, a quarter of an hour
    python -m tests.benchmarks.peers --only small --rounds 5
    python -m tests.benchmarks.peers --only whole import
    python -m tests.benchmarks.peers --growth --json growth.json --plots FOLDER
    python -m tests.benchmarks.peers --device cuda --only small large wide mixture score sites

A step has everything that a user's step has, to the loss as a Python float. NumPyro takes part
where it is installed (``pip install -e '.[benchmarks]'``). How contestants take turns: `turns`;
what each does: `works`, `probabilistic`, `by_hand`, `with_numpyro`; whole processes: `whole`;
growth: `growth`. "ours" is the fastest of the compiled modes. "start s" is what the first steps
cost beyond what they cost later: capture, trace and compile, with empty caches of compilers, and
the import of torch._dynamo (1 to 2 s), which torch does where its first optimizer is made.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.peers import growth, tables, turns, whole
from tests.benchmarks.peers.child import FACTORIES
from tests.benchmarks.peers.works import AUTO, BY_NAME, CUDA_GRAPH, HAND_COMPILED, Work

PACKAGES = ("amortized", "torch", "pyro-ppl", "numpyro", "jax", "numpy")
PARTS = (*BY_NAME, "whole", "import")
FOR_GPUS = ("wide",)
"""Not unless asked for: on a processor it takes seconds a step."""


USUAL = tuple(part for part in PARTS if part not in FOR_GPUS)


def versions() -> dict[str, str]:
    """What it was measured with; "absent" where a package is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def main() -> None:
    options = arguments()
    settings = turns.Settings(
        threads=options.threads,
        rounds=options.rounds,
        block=options.block,
        clock=options.clock,
        pin=options.pin,
        fit_options=tuple(options.fit_options.split()),
        device=options.device,
    )
    console = Console(width=150)
    started, report = time.perf_counter(), {"versions": versions(), "settings": vars(settings)}
    console.print(machine(settings), highlight=False)
    if options.growth:
        report["growth"] = growth.measure(settings, console)
    else:
        report |= compare(options, settings, console)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if options.plots is not None:
        for path in growth.plots(report.get("growth", {}), options.plots):
            console.print(str(path), highlight=False)


def compare(options: argparse.Namespace, settings: turns.Settings, console: Console) -> Any:
    """The parts asked for, each shown when it is done, and the ratios at the end."""
    report: dict[str, Any] = {"works": {}}
    rows: list[tuple[str, ...]] = []
    for name in (part for part in options.only if part in BY_NAME):
        work = BY_NAME[name]
        every = [*work.contestants, AUTO]
        if settings.device == "cuda" and HAND_COMPILED[0] in every:
            every.append(CUDA_GRAPH)
        asked = options.contestants or [c for c in every if c != AUTO]
        some = [c for c in every if c in asked]
        results = one(work, some, settings, console)
        report["works"][name] = [result.as_dict() for result in results.values()]
        rows += tables.targets(BY_NAME[name], results)
    for name, measure in (("whole", whole.whole), ("import", whole.imports)):
        if name == "whole" in options.only and importlib.util.find_spec("sklearn") is None:
            console.print("  whole is left out: scikit-learn, which has its data, is not installed")
        elif name in options.only:
            table, more, report[name] = measure(settings, options.rounds)
            console.print(table)
            rows += more
    console.print(tables.ratios(rows))
    report["ratios"] = rows
    return report


def one(
    work: Work, names: Sequence[str], settings: turns.Settings, console: Console
) -> dict[str, turns.Result]:
    """One work: its table, and who was left out."""
    results, absent = turns.run(work, names, settings)
    console.print(tables.contestants(work, results))
    for contestant, reason in absent.items():
        console.print(f"  {contestant} is left out: {reason}", highlight=False)
    return results


def machine(settings: turns.Settings) -> str:
    """Versions, threads and load in one line."""
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{known}; {settings.threads} thread(s) a contestant, bound to as many cores: "
        f"{settings.pin}; on {settings.device}; {settings.clock} clock; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=USUAL, help="parts to measure")
    parser.add_argument("--contestants", nargs="+", choices=FACTORIES, help="only these")
    parser.add_argument("--fit-options", default="", help="more for `amortized fit`, in one word")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of turns")
    parser.add_argument("--block", type=float, default=0.05, help="seconds of a turn")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contestant")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="any core for all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all steps")
    parser.add_argument("--growth", action="store_true", help="cost by particles, batch and sites")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--plots", type=Path, help="with --growth: write figures to this folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
