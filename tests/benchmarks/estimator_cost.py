"""One training step of each estimator against the same estimator written by hand in PyTorch.

    python -m tests.benchmarks.estimator_cost                    # all, both batch sizes
    python -m tests.benchmarks.estimator_cost --only rebar disarm --batch 24 --rounds 5
    python -m tests.benchmarks.estimator_cost --json cost.json

The sigmoid belief network of the examples with one layer, 784-200, Adam, float32, one thread. Ours
is ``am.SVI.step`` with compile="off", "graph" and "inductor"; theirs is in `by_hand`: eager, its
loss compiled by torch.compile, and loss, gradient and Adam compiled as one graph. A step goes to
the loss as a Python float. To reach: eager 1.3 times theirs, compiled 1.1 times the faster of
their compiled ones, by the faster of ours. "bare Pyro" is what the eager bar leaves to Pyro itself:
a trace, a replay and a sum of log-probabilities, ``backward`` and fused Adam, with no estimator.

First, whether both do the same work. All train on the same batches from the same weights, and the
losses are compared: the table has the mean of the last hundred by hand, how far from it another
seed is by hand, and how far the furthest of the contestants. Then the weights and the estimator's
state of our eager training are handed over, and the gradient in the guide is drawn so many times
by both: the means of its norm (ours, by hand) and the z-value of their difference tell estimators
of different mean or variance apart.

Each estimator has a process of its own; its contestants take turns in blocks, in random order, and
ratios are taken within a round. Rows are printed, and written to --json, as they come.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from rich.console import Console
from rich.table import Table
from torch import Tensor

import amortized as am
from amortized.estimators.base import Estimator
from amortized.estimators.muprop import MuProp
from amortized.estimators.rebar import REBAR
from amortized.estimators.relax import RELAX
from amortized.estimators.relaxed import Relaxed
from amortized.estimators.straight_through import StraightThrough
from tests.benchmarks import by_hand
from tests.benchmarks.programs import example
from tests.benchmarks.timing import show

ROOT = Path(__file__).parents[2]
OURS: Mapping[str, Callable[[], Estimator]] = {
    "leave_one_out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "nvil": lambda: am.ScoreFunction(am.NeuralBaseline(hidden=by_hand.HIDDEN)),
    "arm": am.ARM,
    "disarm": am.DisARM,
    "rebar": lambda: REBAR(temperature=by_hand.TEMPERATURE),
    "relax": lambda: RELAX(relaxed_model=True),
    "relax_network": RELAX,
    "muprop": MuProp,
    "concrete": lambda: Relaxed(by_hand.TEMPERATURE),
    "straight_through": StraightThrough,
    "reinmax": lambda: StraightThrough("reinmax"),
}
MODES = {"off": "ours, eager", "graph": "ours, graph", "inductor": "ours, inductor"}
EAGER, COMPILED, WHOLE = "by hand, eager", "by hand, torch.compile", "by hand, with Adam"
AGAIN = "by hand, another seed"
BARE = "bare Pyro"
BARS = {"eager": 1.3, "compiled": 1.1}
BATCHES, CLUSTERS = 8, 10
TAIL = 100
"""Steps at the end of learning whose losses are compared."""

Step = Callable[[int], float]


def batches(size: int) -> list[Tensor]:
    """Binary images around ten prototypes, ``[size, 784]``."""
    generator = np.random.default_rng(1)
    probability = generator.beta(0.3, 0.3, (CLUSTERS, 784))
    which = generator.integers(CLUSTERS, size=(BATCHES, size))
    drawn = generator.random((BATCHES, size, 784)) < probability[which]
    return [torch.from_numpy(batch) for batch in drawn.astype(np.float32)]


class Work:
    """One estimator on batches of one size: everybody begins with the same weights."""

    def __init__(self, name: str, batch: int, width: int, lr: float) -> None:
        torch.manual_seed(0)
        self.name, self.lr, self.width = name, lr, width
        self.data = batches(batch)
        mean = torch.stack(self.data).mean((0, 1))
        file = example("sigmoid_belief_network")
        self.model, self.guide = file.Model(mean, 1, width), file.Guide(mean, 1, width)

    def ours(self, mode: Any) -> tuple[am.SVI, Step]:
        """A training by this package, and its step."""
        pair = copy.deepcopy((self.model, self.guide))
        loss = am.VariationalLoss(estimators=OURS[self.name]())
        svi = am.SVI(*pair, loss, lr=self.lr, compile=mode)
        return svi, lambda i: svi.step(self.data[i % BATCHES])

    def bare(self) -> Step:
        """A step of Pyro's own handlers: one draw of everything, and no gradient through draws."""
        model, guide = copy.deepcopy((self.model, self.guide))
        leaves = [*model.parameters(), *guide.parameters()]
        optimizer = torch.optim.Adam(leaves, lr=self.lr, fused=True)

        def step(i: int) -> float:
            x = self.data[i % BATCHES]
            optimizer.zero_grad()
            with pyro.validation_enabled(False):
                drawn = poutine.trace(guide).get_trace(x)
                seen = poutine.trace(poutine.replay(model, drawn)).get_trace(x)
                loss = (drawn.log_prob_sum() - seen.log_prob_sum()) / len(x)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def theirs(self) -> by_hand.Setting:
        """A training by hand that has not begun."""
        weights, state = by_hand.own(self.name, self.width)
        held = {**self.model.state_dict(), **self.guide.state_dict()}
        state["center"] = held.pop("center")
        weights |= {name: value.clone() for name, value in held.items()}
        return by_hand.Setting(by_hand.LOSSES[self.name], weights, state, self.data, self.lr)

    def handed_over(self, svi: am.SVI) -> by_hand.Setting:
        """The same at the weights, and with the estimator's state, of a training of ours."""
        setting = self.theirs()
        own = svi.loss.estimators.by_site["site:b1"].state_dict()
        found = {**svi.model.program.state_dict(), **svi.guide.program.state_dict(), **own}
        for tensors in (setting.weights, setting.state):
            for name, tensor in tensors.items():
                tensor.copy_(found[name])
        return setting


def norms(work: Work, svi: am.SVI, draws: int) -> tuple[list[float], list[float]]:
    """The norm of the guide's gradient in one batch, per datum, by ours and by hand."""
    x, found = work.data[0], ([], [])
    setting = work.handed_over(svi)
    names = [name for name in setting.weights if name.startswith("layers.")]
    model, guide = svi.model.program, svi.guide.program
    svi.loss.eval()  # the estimator's state stays as it is
    for _ in range(draws):
        for module in (model, guide):
            module.zero_grad()
        svi.loss.loss_and_grads(model, guide, x)
        found[0].append(norm([p.grad for p in guide.parameters()]) / len(x))
        weights = {n: w.detach().requires_grad_(n in names) for n, w in setting.weights.items()}
        surrogate, _ = setting.loss(weights, setting.state, x)
        found[1].append(norm(torch.autograd.grad(surrogate, [weights[n] for n in names])))
    svi.loss.train()
    return found


def norm(gradients: Sequence[Tensor | None]) -> float:
    return sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5


def contestants(work: Work, modes: Sequence[str]) -> dict[str, tuple[am.SVI | None, Step]]:
    """Name, its training if it is ours, and its step."""
    found: dict[str, tuple[am.SVI | None, Step]] = {MODES[m]: work.ours(m) for m in modes}
    found |= {name: (None, by_hand.eager(work.theirs())) for name in (EAGER, AGAIN)}
    found[BARE] = None, work.bare()
    if set(modes) != {"off"}:
        found[COMPILED] = None, by_hand.eager(work.theirs(), compiled=True)
        found[WHOLE] = None, by_hand.compiled_whole(work.theirs())
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What a child reports of one estimator with one batch size."""
    work = Work(options.child, options.batch[0], options.width, options.lr)
    steps: dict[str, Step] = {}
    losses: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    gradient: dict[str, Any] = {}
    for name, (svi, step) in contestants(work, options.modes).items():
        torch.manual_seed(options.seed + (name == AGAIN))
        try:
            losses[name] = [step(i) for i in range(options.learn)]
            if name == "ours, eager" and svi is not None:
                ours, theirs = norms(work, svi, options.draws)
                gradient = compared(ours, theirs)
        except Exception as error:  # one that fails must not take the others along
            failed[name] = f"{type(error).__name__}: {error}"[:400]
        else:
            steps[name] = step
    steps.pop(AGAIN, None)
    times = take_turns(steps, options)
    tails = {name: values[-TAIL:] for name, values in losses.items()}
    return {"ms": times, "losses": tails, "gradient": gradient, "failed": failed}


def compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Two samples of norms: their means, and their difference in standard errors."""
    first, second = np.array(ours), np.array(theirs)
    error = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))
    means = {"ours": float(first.mean()), "theirs": float(second.mean())}
    return {**means, "z": float((first.mean() - second.mean()) / error)}


def take_turns(steps: Mapping[str, Step], options: argparse.Namespace) -> dict[str, list[float]]:
    """Median milliseconds of a step of each, round by round."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    # what there is by now would be looked at by the collector in everybody's turn
    gc.collect()
    gc.freeze()
    order, shuffle = list(steps), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in steps}
    done: dict[str, int] = {name: options.learn for name in steps}
    for _ in range(options.rounds):
        shuffle.shuffle(order)
        for name in order:
            taken, end = [], time.perf_counter() + options.block
            # the first ones warm the caches; at least seven count
            while len(taken) < 10 or time.perf_counter() < end:
                started = clock()
                steps[name](done[name])
                taken.append(1e3 * (clock() - started))
                done[name] += 1
            found[name].append(float(np.median(taken[3:])))
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of ours / theirs, and its 95 % bootstrap interval."""
    ratios = np.array(ours) / np.array(theirs)
    index = np.random.default_rng(0).integers(len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[index], 1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def run(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """A child's report, or why there is none."""
    kept = ("rounds", "width", "lr", "learn", "draws", "block", "clock", "seed")
    command = ["-m", "tests.benchmarks.estimator_cost", "--child", name, "--batch", str(batch)]
    for key in kept:
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--modes", *options.modes]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            env={**os.environ, **threads},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=options.limit,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {options.limit:g} s"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"error": f"its process died: {' '.join(last)[:400]}"}
    return json.loads(done.stdout.splitlines()[-1])


def judged(report: Mapping[str, Any], kind: str) -> tuple[str, str]:
    """A ratio with its interval, and whether it is small enough."""
    ms = report["ms"]
    ours = ["ours, eager"] if kind == "eager" else ["ours, graph", "ours, inductor"]
    theirs = [EAGER] if kind == "eager" else [COMPILED, WHOLE]
    best = [
        min((n for n in names if n in ms), key=lambda n: np.median(ms[n]), default=None)
        for names in (ours, theirs)
    ]
    if best[0] is None or best[1] is None:
        return "", ""
    middle, low, high = ratio(ms[best[0]], ms[best[1]])
    reached = "yes" if middle <= BARS[kind] else "no"
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]", reached


def with_floor(report: Mapping[str, Any]) -> list[str]:
    """Both ratios, and that of bare Pyro to by hand between them."""
    ms, floor = report["ms"], ""
    if BARE in ms and EAGER in ms:
        floor = f"{ratio(ms[BARE], ms[EAGER])[0]:.2f}"
    return [*judged(report, "eager"), floor, *judged(report, "compiled")]


def same_work(report: Mapping[str, Any]) -> str:
    """Gradient norms of both at the same weights, and the z-value of their difference."""
    found = report["gradient"]
    if not found:
        return ""
    verdict = "" if abs(found["z"]) < 4 else "NOT THE SAME: "
    return f"{verdict}{found['ours']:.4g}, {found['theirs']:.4g}, {found['z']:+.1f}"


def losses(report: Mapping[str, Any]) -> str:
    """The last losses by hand; how far away are another seed, and the furthest of the others."""
    held = {name: float(np.mean(values)) for name, values in report["losses"].items() if values}
    if EAGER not in held or AGAIN not in held:
        return ""
    away = {name: value - held[EAGER] for name, value in held.items()}
    others = [value for name, value in away.items() if name not in (EAGER, AGAIN, BARE)]
    furthest = max(others, key=abs, default=float("nan"))
    return f"{held[EAGER]:.1f}, {away[AGAIN]:+.1f}, {furthest:+.1f}"


def tables(reports: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> list[Table]:
    """Milliseconds; and ratios beside the check of the same work."""
    about = f"784-{options.width}, Adam {options.lr:g}, float32, seed {options.seed}"
    times = Table(title=f"ms a step, {about}; {options.clock} clock", title_justify="left")
    compiled = () if set(options.modes) == {"off"} else (COMPILED, WHOLE)
    theirs = (EAGER, BARE, *compiled)
    names = [*(MODES[mode] for mode in options.modes), *theirs]
    for column in ("estimator", "batch", *names):
        times.add_column(column, justify="left" if column == "estimator" else "right")
    judgement = Table(title="ours / by hand, median over rounds [95 %]", title_justify="left")
    bars = [f"{kind}, <= {bar:g}" for kind, bar in BARS.items()]
    last = ("gradient norms, z", f"loss, by step {options.learn}")
    heads = ("estimator", "batch", bars[0], "", "bare Pyro", bars[1], "", *last)
    for column in heads:
        judgement.add_column(column, justify="left" if column == "estimator" else "right")
    for key, report in reports.items():
        name, batch = key.split()
        if "error" in report:
            times.add_row(name, batch, report["error"])
            continue
        ms = {n: f"{np.median(v):.3f}" for n, v in report["ms"].items()}
        times.add_row(name, batch, *(ms.get(n, "failed") for n in names))
        judgement.add_row(name, batch, *with_floor(report), same_work(report), losses(report))
    return [times, judgement]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if options.child is not None:
        print(json.dumps(measured(options)))
        return
    console, reports = Console(width=150), {}
    for batch in options.batch:
        for name in options.only:
            started = time.perf_counter()
            report = reports[f"{name} {batch}"] = run(name, batch, options)
            ratios = "" if "error" in report else " ".join(judged(report, "eager"))
            more = "" if "error" in report else " ".join(judged(report, "compiled"))
            seconds = time.perf_counter() - started
            line = f"{name}, batch {batch}: eager {ratios}; compiled {more}; {seconds:.0f} s"
            console.print(report.get("error", line), highlight=False)
            for contestant, reason in report.get("failed", {}).items():
                console.print(f"  {name}, {contestant}: {reason}", highlight=False, markup=False)
            if options.json is not None:
                about = {k: v for k, v in vars(options).items() if k != "json"}
                text = json.dumps({"options": about, "reports": reports}, indent=1)
                options.json.write_text(text, encoding="utf-8")
    for table in tables(reports, options):
        show(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=OURS, default=list(OURS), help="estimators")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of turns")
    parser.add_argument("--batch", type=int, nargs="+", default=[24, 100], help="batch sizes")
    parser.add_argument("--width", type=int, default=200, help="bits of the layer")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of ours")
    parser.add_argument("--learn", type=int, default=200, help="steps before the comparison")
    parser.add_argument("--draws", type=int, default=200, help="of the gradient, for its norm")
    parser.add_argument("--block", type=float, default=0.1, help="seconds of a turn")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="cpu: processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one estimator")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--child", choices=OURS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
