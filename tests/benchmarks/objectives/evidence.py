"""Log-evidence of held-out images after training with each objective, in the same number of steps.

The program is ``examples/vae.py``. Each training has a process of its own, with one thread, whose
processor time is reported: capture, compilation and the compiler's own processes included. Test
images are evaluated in parts, with the same noise for all, so that differences are paired.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import amortized as am
from amortized.objectives.choice import objective_of
from tests.benchmarks.belief_network.plan import read, write
from tests.benchmarks.programs import example

ROOT = Path(__file__).parents[3]
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
PARTS = 20
"""Of the test images, for the errors of differences."""
OBJECTIVES = ("iwae 50", "iwae 5", "iwae 1", "reweighted_wake_sleep 5", "tvo 5")
"""Names of the command line, and K; the longest training first, for several at a time."""
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "iwae 1": (-86.76, -88.71),
    "iwae 5": (-85.54, -87.63),
    "iwae 50": (-84.78, -87.10),
}
"""Burda et al. 2015, one stochastic layer: binarized anew at each epoch, and once for all."""


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on."""

    data: str
    """The file of binarized MNIST, or "digits"."""
    steps: int = 8000
    batch: int = 20
    lr: float = 1e-3
    hidden: int = 200
    latent: int = 20
    compile: str = "auto"
    images: int = 1000
    """Test images, the first ones."""
    particles: tuple[int, ...] = (1, 50, 1000)

    def program(self) -> am.Program:
        known = ("digits", "") if self.data == "digits" else ("binarized-mnist", self.data)
        return example("vae").program(self.latent, self.hidden, *known)


def processor_seconds() -> float:
    """Of this process and of those that it has started and seen end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def train(settings: Settings, objective: str, seed: int) -> dict[str, Any]:
    """One training, and what it has reached."""
    torch.manual_seed(seed)
    name, particles = objective.split()
    program = settings.program()
    loss = am.VariationalLoss(objective_of(name, int(particles)))
    options: dict[str, Any] = {"lr": settings.lr, "compile": settings.compile}
    svi = am.SVI(program.model, program.guide, loss, **options)
    began = processor_seconds()
    svi.fit(
        program.train,
        max_steps=settings.steps,
        batch_size=settings.batch,
        seed=seed,
        progress=False,
    )
    seconds = processor_seconds() - began
    test = program.test[: settings.images]
    size = -(-len(test) // PARTS)
    parts = [
        svi.evaluate(part, num_particles=list(settings.particles), seed=0)
        for part in test.split(size)
    ]
    return {
        "objective": objective,
        "seed": seed,
        "repr": repr(loss.objective),
        "seconds": seconds,
        "epochs": settings.steps * settings.batch / len(program.train),
        "sizes": [len(part) for part in test.split(size)],
        "parts": parts,
    }


def run(
    settings: Settings, objectives: Sequence[str], seeds: int, folder: Path, jobs: int
) -> list[dict[str, Any]]:
    """All trainings, ``jobs`` at a time; what is finished in the folder is kept."""
    asked = [(objective, seed) for seed in range(seeds) for objective in objectives]

    def one(objective: str, seed: int) -> dict[str, Any]:
        file = folder / f"{objective.replace(' ', '-')}-{seed}.json"
        if read(file).get("settings") != json.loads(json.dumps(asdict(settings))):
            job = {"settings": asdict(settings), "objective": objective, "seed": seed}
            _child({**job, "file": str(file)})
        found = read(file)
        print(line(found), flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda pair: one(*pair), asked))


def _child(job: Mapping[str, Any]) -> None:
    name = "tests.benchmarks.objectives.evidence"
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    command = [sys.executable, "-W", "ignore", "-m", name, json.dumps(job)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)


def mean(found: Mapping[str, Any], number: str) -> float:
    """A number per image, over all parts."""
    return float(np.average([part[number] for part in found["parts"]], weights=found["sizes"]))


def against(found: Mapping[str, Any], other: Mapping[str, Any], number: str) -> tuple[float, float]:
    """The paired difference of two trainings, and its standard error over images."""
    pairs = zip(found["parts"], other["parts"], strict=True)
    away = np.array([ours[number] - theirs[number] for ours, theirs in pairs])
    return float(away.mean()), float(away.std(ddof=1) / np.sqrt(len(away)))


def line(found: Mapping[str, Any]) -> str:
    largest = max(int(name.split("/")[1]) for name in found["parts"][0] if "/" in name)
    return (
        f"{found['objective']}, seed {found['seed']}: ELBO {mean(found, 'elbo'):.2f}, log-evidence "
        f"{mean(found, 'log_evidence'):.2f} (K = {largest}), {found['seconds'] / 60:.1f} min"
    )


def markdown(settings: Settings, runs: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row an objective, and what it says."""
    several = [f"log-evidence, K = {size}" for size in settings.particles if size > 1]
    heads = ["trained with", "ELBO", *several, "against IWAE, K = 1", "processor minutes"]
    heads += ["published, dynamic", "published, static"]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for found in sorted(runs, key=lambda run: (place(run["objective"]), run["seed"])):
        by_name.setdefault(found["objective"], []).append(found)
    first = {found["seed"]: found for found in by_name.get("iwae 1", [])}
    rows = []
    for name, of_seeds in by_name.items():
        names = ["elbo", *(f"log_evidence/{size}" for size in settings.particles if size > 1)]
        cells = [", ".join(f"{mean(found, n):.2f}" for found in of_seeds) for n in names]
        cells.append("" if name == "iwae 1" else ", ".join(_gains(of_seeds, first)))
        cells.append(", ".join(f"{found['seconds'] / 60:.1f}" for found in of_seeds))
        cells += [f"{number:.2f}" for number in PUBLISHED.get(name, ())] or ["", ""]
        rows.append(f"| `{of_seeds[0]['repr']}` | " + " | ".join(cells) + " |")
    head = "| " + " | ".join(heads) + " |\n|---" + "|---:" * (len(heads) - 1) + "|"
    return "\n".join([head, *rows]) + "\n\n" + _about(settings, runs)


def place(objective: str) -> tuple[bool, str, int]:
    """Where a row stands: IWAE first, by K."""
    name, particles = objective.split()
    return name != "iwae", name, int(particles)


def _gains(
    of_seeds: Sequence[Mapping[str, Any]], first: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    pairs = [(found, first[found["seed"]]) for found in of_seeds if found["seed"] in first]
    found = [against(*pair, "log_evidence") for pair in pairs]
    return [f"{away:+.2f} ± {1.96 * error:.2f}" for away, error in found]


def _about(settings: Settings, runs: Sequence[Mapping[str, Any]]) -> str:
    total = sum(found["seconds"] for found in runs) / 60
    data = "scikit-learn's digits" if settings.data == "digits" else "static binarized MNIST"
    return (
        f"`examples/vae.py` on {data}, {settings.hidden} hidden units, {settings.latent} latent "
        f'dims, batch {settings.batch}, Adam at {settings.lr:g}, `compile="{settings.compile}"`; '
        f"{settings.steps:,} steps each, which are {runs[0]['epochs']:.1f} epochs. "
        f"{settings.images:,} test images. Several numbers in a cell are seeds. The difference is "
        "that of the log-evidence with the most particles, ± 1.96 standard errors over images with "
        "the weights held: it does not have what other seeds change in training. All trainings "
        f"together took {total:.1f} minutes of one core's processor time."
    )


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    given = {**job["settings"], "particles": tuple(job["settings"]["particles"])}
    settings = Settings(**given)
    found = train(settings, job["objective"], job["seed"])
    write(Path(job["file"]), {**found, "settings": asdict(settings)})


if __name__ == "__main__":
    main()
