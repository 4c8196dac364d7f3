"""Objectives of several weights, measured.

    python -m tests.benchmarks.objectives evidence --data binarized_mnist.npz --out runs/objectives
    python -m tests.benchmarks.objectives snr --out runs/objectives
    python -m tests.benchmarks.objectives seconds --out runs/objectives

evidence: the log-evidence of test images after training with each objective, see `evidence`.
snr: the signal-to-noise ratio of gradients against the number of particles, see `snr`.
seconds: a step of each objective against Pyro's, see `seconds`.

Each part writes its numbers, a table in Markdown and, if it has one, a figure into --out. Trainings
that are finished there with the same settings are kept.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from tests.benchmarks.belief_network.plan import write
from tests.benchmarks.objectives import evidence, figure, report, seconds, snr

GAUSSIAN = "Gaussian, one latent"
NETWORKS = {"VAE, half trained": 1.0, "VAE, guide twice as wide": snr.WIDER}


def measure_evidence(options: argparse.Namespace) -> str:
    settings = evidence.Settings(
        str(options.data.resolve()) if options.data else "digits",
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        images=options.images,
    )
    # the longest first, so that several at a time end together
    runs = evidence.run(
        settings, options.objectives, options.seeds, options.out / "evidence", options.jobs
    )
    return evidence.markdown(settings, runs)


def measure_snr(options: argparse.Namespace) -> str:
    settings, about = snr.Settings(draws=options.draws, seed=options.seed), snr.Gaussian()
    torch.set_num_threads(1)
    works: dict[str, snr.Found] = {GAUSSIAN: snr.gaussian(settings, about)}
    weights = {}
    for title, factor in NETWORKS.items():
        works[title], weights[title] = snr.network(settings, factor)
    limits = {GAUSSIAN: about.limits()}
    plain = {
        title: {name: [(k, asdict(r)) for k, r in points] for name, points in found.items()}
        for title, found in works.items()
    }
    about_all = {
        "settings": asdict(settings),
        "gaussian": asdict(about),
        "limits": limits,
        "weights": weights,
    }
    write(options.out / "snr.json", {**about_all, "works": plain})
    figure.draw(works, limits, options.out / "objectives-snr.png")
    return (
        report.ratios(works, limits)
        + "\n\n"
        + report.slopes(works)
        + "\n\n"
        + report.about(settings, weights)
    )


def measure_seconds(options: argparse.Namespace) -> str:
    reports = seconds.run(options)
    known = {key: getattr(options, key) for key in seconds.KEPT}
    write(options.out / "seconds.json", {"options": known, "reports": reports})
    return seconds.markdown(reports, known)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("evidence")
    one.add_argument("--data", type=Path, help="binarized MNIST, .npz; else scikit-learn's digits")
    one.add_argument("--objectives", nargs="+", default=evidence.OBJECTIVES, help="name and K")
    one.add_argument("--steps", type=int, default=8000, help="of the optimizer")
    one.add_argument("--batch", type=int, default=20)
    one.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    one.add_argument("--images", type=int, default=1000, help="of the test part")
    one.add_argument("--seeds", type=int, default=2)
    one.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    one.set_defaults(measure=measure_evidence)
    two = parts.add_parser("snr")
    two.add_argument("--draws", type=int, default=200_000, help="of the plain Gaussian gradient")
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(measure=measure_snr)
    three = parts.add_parser("seconds")
    three.add_argument("--rounds", type=int, default=30, help="rounds of turns")
    three.add_argument("--block", type=float, default=0.1, help="seconds of a turn")
    three.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="cpu: processor")
    three.add_argument("--learn", type=int, default=300, help="steps before the comparison")
    three.add_argument("--seed", type=int, default=0)
    three.set_defaults(measure=measure_seconds)
    for part in (one, two, three):
        part.add_argument("--out", type=Path, required=True, help="folder for what is written")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    text = options.measure(options)
    name = options.measure.__name__.removeprefix("measure_")
    (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
