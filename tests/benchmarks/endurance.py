"""100,000 steps: does memory grow, do Pyro's global stores, does the number of live objects?

    python -m tests.benchmarks.endurance [--steps 100000] [--program vae]

Two programs on scikit-learn's digits, drawn with repetition so that an epoch has 1,000 batches: the
VAE of ``examples/vae.py``, and two layers of Bernoulli latents with neural baselines. Training is
``fit`` with validation and early stopping's snapshots. Resident memory is read every 1,000 steps;
its slope is by least squares after a warm-up. Objects are counted after a garbage collection.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import os
import resource
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import pyro
import torch
from pyro.poutine import runtime
from rich.table import Table

import amortized as am
from amortized.fit.callbacks import Callback, FitState
from tests.benchmarks.programs import BinaryGuide, BinaryModel, example
from tests.benchmarks.timing import show

BATCH, EPOCH = 64, 1000
SAMPLE, COUNT = 1000, 10_000
WARM_UP = 2000
CONTAINERS = frozenset({dict, list, set, deque, WeakKeyDictionary, WeakValueDictionary, WeakSet})


def resident() -> int:
    """Bytes of memory that the process holds now; where nobody can say, the most it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def stores() -> dict[str, int]:
    """Sizes of what is global to the process: Pyro's parameter store and its stack of handlers,
    all containers of Pyro's and torch's modules, results that ``lru_cache`` keeps, and so on.
    """
    caches = [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]
    modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    descriptors = Path("/proc/self/fd")
    return {
        "parameters": len(pyro.get_param_store()),
        "handlers": len(runtime._PYRO_STACK),
        "in Pyro": sum(containers("pyro").values()),
        "in torch": sum(containers("torch").values()),
        "cached": sum(cache.cache_info().currsize for cache in caches),
        "warned": sum(len(vars(m).get("__warningregistry__", ())) for m in modules),
        "modules": len(modules),
        "threads": threading.active_count(),
        "files": len(list(descriptors.iterdir())) if descriptors.exists() else 0,
    }


def containers(package: str) -> dict[str, int]:
    """The length of every list, dict or set that a module of a package holds, directly or in an
    object of the package; by name.
    """
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != package or not isinstance(module, ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if is_container(value):
                found[f"{name}.{key}"] = len(value)
            elif type(value).__module__.split(".")[0] == package:
                own = attributes(value).items()
                found |= {f"{name}.{key}.{k}": len(v) for k, v in own if is_container(v)}
    return found


def attributes(value: object) -> dict[str, Any]:
    """As they are, past what a class may do when it is asked for them."""
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}


def is_container(value: object) -> bool:
    """By its own class: ``isinstance`` would fill caches of abstract classes, which are counted."""
    return not CONTAINERS.isdisjoint(type(value).__mro__)


def live() -> Counter[type]:
    """Objects that the garbage collector knows, by type."""
    gc.collect()
    return Counter(map(type, gc.get_objects()))


@dataclass(frozen=True)
class Count:
    """What is alive at a step."""

    step: int
    objects: int
    tensors: int
    stores: dict[str, int]


@dataclass
class Watch(Callback):
    """Reads memory and counts objects as training goes on."""

    steps: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    before: Counter[type] = field(default_factory=Counter)
    """Live objects after the warm-up."""
    more: Counter[type] = field(default_factory=Counter)
    """Those beyond them at the last count."""

    def on_train_batch_end(self, state: FitState) -> None:
        if state.step % SAMPLE == 0:
            self.steps.append(state.step)
            self.memory.append(resident())
            self.seconds.append(time.process_time())
            print(f"{state.step:>8} steps, {self.memory[-1] / 2**20:.2f} MiB", flush=True)
        if state.step % COUNT == 0 or state.step == WARM_UP:
            self._count(state.step)

    def _count(self, step: int) -> None:
        now = live()
        self.before = self.before or now
        self.more = now - self.before
        tensors = sum(n for kind, n in now.items() if issubclass(kind, torch.Tensor))
        self.counts.append(Count(step, now.total(), tensors, stores()))


@dataclass(frozen=True)
class Slope:
    """Of memory over steps after the warm-up."""

    per_step: float
    half_width: float
    """Of the 95 % interval."""
    growth: int
    """Bytes from the first sample after the warm-up to the last."""

    @classmethod
    def of(cls, watch: Watch) -> Slope:
        x = np.array(watch.steps, dtype=float)
        y = np.array(watch.memory, dtype=float)[x > WARM_UP]
        x = x[x > WARM_UP]
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        residuals = y - y.mean() - slope * centred
        error = math.sqrt(residuals @ residuals / (len(x) - 2) / (centred @ centred))
        # with 98 samples the quantile of Student's t is that of 1.98
        return cls(slope, 1.98 * error, int(y[-1] - y[0]))


def vae() -> am.SVI:
    """The pair of ``examples/vae.py`` as it is by default."""
    pair = example("vae").program()
    return am.SVI(pair.model, pair.guide, am.VariationalLoss(am.ELBO(kl="analytic")), lr=1e-3)


def binary() -> am.SVI:
    """Two layers of Bernoulli latents, each site with a neural baseline."""
    loss = am.VariationalLoss(estimators="neural_baseline")
    return am.SVI(BinaryModel(64, 32, 16), BinaryGuide(64, 32, 16), loss, lr=1e-3)


PROGRAMS: dict[str, Callable[[], am.SVI]] = {"vae": vae, "binary": binary}
TITLES = {"vae": "VAE", "binary": "two Bernoulli layers, neural baselines"}


def endure(make: Callable[[], am.SVI], steps: int) -> Watch:
    """So many steps of one program."""
    pyro.set_rng_seed(0)
    images = example("data").load()
    train = images.train[torch.randint(len(images.train), (EPOCH * BATCH,))]
    live(), stores()  # the counting itself makes objects when it is first done
    watch = Watch()
    make().fit(
        train,
        images.val,
        max_steps=steps,
        batch_size=BATCH,
        seed=0,
        progress=False,
        callbacks=[am.EarlyStopping(patience=None), watch],
    )
    return watch


def grown(watch: Watch) -> str:
    """What there is more of at the end than after the warm-up, the most first."""
    more = watch.more.most_common(5)
    return ", ".join(f"{n} {kind.__module__}.{kind.__qualname__}" for kind, n in more) or "none"


def changed(watch: Watch) -> str:
    """Global stores that have another size at the end than after the warm-up."""
    before, after = watch.counts[0].stores, watch.counts[-1].stores
    moved = [f"{n}: {before[n]} to {after[n]}" for n in before if before[n] != after[n]]
    return "; ".join(moved) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--program", choices=PROGRAMS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watches = {name: endure(PROGRAMS[name], options.steps) for name in options.program or PROGRAMS}
    show(memory_table(watches))
    for name, watch in watches.items():
        show(counts_table(TITLES[name], watch))
        print(f"more live objects: {grown(watch)}")
        print(f"global stores that changed: {changed(watch)}\n")


def memory_table(watches: dict[str, Watch]) -> Table:
    title = f"Resident memory, every {SAMPLE} steps after {WARM_UP}, one thread, seed 0"
    table = Table(title=title)
    columns = (
        "steps",
        "first",
        "last",
        "growth",
        "bytes a step [95 %]",
        "ms a step: at first, last",
    )
    table.add_column("program")
    for column in columns:
        table.add_column(column, justify="right")
    for name, watch in watches.items():
        slope = Slope.of(watch)
        after = [m for s, m in zip(watch.steps, watch.memory, strict=True) if s > WARM_UP]
        low, high = slope.per_step - slope.half_width, slope.per_step + slope.half_width
        table.add_row(
            TITLES[name],
            str(watch.steps[-1]),
            f"{after[0] / 2**20:.2f} MiB",
            f"{after[-1] / 2**20:.2f} MiB",
            f"{slope.growth / 1024:.0f} KiB",
            f"{slope.per_step:.3f} [{low:.3f}, {high:.3f}]",
            "{:.2f}, {:.2f}".format(*speeds(watch)),
        )
    return table


def speeds(watch: Watch) -> tuple[float, float]:
    """Milliseconds a step in the first and the last tenth."""
    taken = np.diff(watch.seconds) / SAMPLE * 1e3
    tenth = max(1, len(taken) // 10)
    return float(taken[:tenth].mean()), float(taken[-tenth:].mean())


def counts_table(title: str, watch: Watch) -> Table:
    table = Table(title=f"{title}: live objects and global stores")
    table.add_column("steps", justify="right")
    table.add_column("objects", justify="right")
    table.add_column("tensors", justify="right")
    for name in watch.counts[0].stores:
        table.add_column(name, justify="right")
    for count in watch.counts:
        numbers = (count.step, count.objects, count.tensors, *count.stores.values())
        table.add_row(*map(str, numbers))
    return table


if __name__ == "__main__":
    main()
