"""What the processes do; a single one that does the same is what they are compared with."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import Buffer
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

import amortized as am
from amortized.fit.buffers import MovingBuffers
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.distributed import Group
from amortized.fit.reduction import Part, Reduction
from amortized.fit.step import Stepper

STEPS, FEW = 100, 20


class Model(nn.Module):
    """A global mean, a code for each datum and a network from it to the datum."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        pyro.module("decode", self.decode)
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean + self.decode(z).tanh(), 0.5).to_event(1), obs=x)


class Guide(nn.Module):
    """All mass at one point: no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        pyro.module("encode", self.encode)
        mean = pyro.param("mean_loc", lambda: torch.zeros(3))
        pyro.sample("mean", dist.Delta(mean).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encode(x)).to_event(1))


def data(size: int = 37) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, 3, generator=generator) + torch.tensor([1.0, -2.0, 0.5])


def exact(**options: Any) -> dict[str, Tensor]:
    """Parameters after 100 steps of a pair without noise: short last batches of every size."""
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    options = {"batch_size": 8, "compile": "off", "lr": 0.01, "max_steps": STEPS, **options}
    made = {key: options.pop(key) for key in ("compile", "lr", "optimizer") if key in options}
    svi = am.SVI(Model(), Guide(), **made)
    x = options.pop("x", data())
    history = svi.fit(x, seed=5, progress=False, check=False, **options)
    found = {name: t.detach().clone() for name, t in svi._stepper.parameters.tensors().items()}
    losses = torch.tensor(history["train_loss"])
    return {**found, "losses": losses, "norms": torch.tensor(history["grad_norm"])}


SGD = partial(torch.optim.SGD, momentum=0.9)


def eager(folder: Path) -> Any:
    """Batches of 8 of 37 rows: the last has 5, of two processes 3 and 2."""
    return exact()


def captured(folder: Path) -> Any:
    return exact(compile="graph")


def sgd(folder: Path) -> Any:
    return exact(optimizer=SGD, max_steps=FEW)


def captured_sgd(folder: Path) -> Any:
    return exact(optimizer=SGD, compile="graph")


def empty_parts(folder: Path) -> Any:
    """The last batch has a single row: other processes have none."""
    return exact(x=data(33), max_steps=FEW)


def accumulated(folder: Path) -> Any:
    return exact(accumulate_grad_batches=3)


def captured_accumulated(folder: Path) -> Any:
    return exact(accumulate_grad_batches=3, compile="graph", max_steps=FEW)


def clipped(folder: Path) -> Any:
    return exact(gradient_clip_val=0.5, max_steps=FEW)


def numbers(values: dict[str, Any]) -> dict[str, Tensor]:
    """As tensors, without what the clock says."""
    kept = {name: value for name, value in values.items() if name != "epoch_time"}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in kept.items()}


def held_out(folder: Path) -> Any:
    """Validation and evaluation without noise, of parts of unequal size."""
    torch.manual_seed(1)
    svi = am.SVI(Model(), Guide(), lr=0.01, compile="off")
    history = svi.fit(
        data(), data(13), max_epochs=3, batch_size=6, seed=0, progress=False, check=False
    )
    return numbers({**history, **svi.evaluate(data(11), 2, batch_size=5, seed=0)})


def own_rows(x: Tensor, rank: int, size: int) -> Tensor:
    """The last process has no row, the first has more than half."""
    edges = [0, *(len(x) * 2 // 3 + i for i in range(size - 2)), len(x), len(x)]
    return x if size == 1 else x[edges[rank] : edges[rank + 1]]


def lone_steps(folder: Path) -> Any:
    """Steps on batches that each process cuts itself; the plate declares the batch alone."""
    rank, size = place()
    torch.manual_seed(2 + rank)
    svi = am.SVI(Model(), Guide(), lr=0.01, compile="off")
    losses = [svi.step(own_rows(data(), rank, size)) for _ in range(20)]
    return {"losses": torch.tensor(losses), **values(svi)}


def place() -> tuple[int, int]:
    """Rank and number of processes."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def values(svi: am.SVI) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {name: t.detach().clone() for name, t in svi._stepper.parameters.tensors().items()}


def loaders(folder: Path) -> Any:
    """A loader with a distributed sampler, whose batches make those of a single process."""
    _, size = place()
    x = TensorDataset(data(36))
    sampler = DistributedSampler(x, shuffle=False) if size > 1 else None
    return exact(x=DataLoader(x, 12 // size, sampler=sampler), max_steps=FEW)


def collated(folder: Path) -> Any:
    """Rows that a data set makes one by one, in the order of a single process."""

    class Rows(Dataset[Tensor]):
        def __len__(self) -> int:
            return 37

        def __getitem__(self, row: int) -> Tensor:
            return data()[row]

    return exact(x=Rows(), max_epochs=2)


def mapped(folder: Path) -> Any:
    """A file of which each process reads its own rows."""
    rank, _ = place()
    path = folder / f"rows-{rank}.npy"
    np.save(path, data().numpy())
    return exact(x=np.load(path, mmap_mode="r"), max_steps=FEW)


def longer_loader(folder: Path) -> Any:
    """One process has two batches, the other five: an epoch is five steps of all that there is."""
    rank, _ = place()
    torch.manual_seed(rank)
    svi = am.SVI(Model(), Guide(), lr=0.01, data_plate=am.DataPlate("data", 28), compile="off")
    loader = DataLoader(TensorDataset(data(28)[:8] if rank == 0 else data(28)[8:]), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", am.CheckWarning)
        svi.fit(loader, max_epochs=3, seed=0, progress=False, check=False)
    return {"steps": torch.tensor(svi._stepper.steps), **values(svi)}


class Stream(IterableDataset[Tensor]):
    """Nobody knows how many rows there are."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def streams(folder: Path) -> Any:
    """The same of unknown length, two batches a step."""
    rank, _ = place()
    torch.manual_seed(rank)
    svi = am.SVI(Model(), Guide(), lr=0.01, data_plate=am.DataPlate("data", 28), compile="off")
    loader = DataLoader(Stream(data(28)[:8] if rank == 0 else data(28)[8:]), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", am.CheckWarning)
        options = {"accumulate_grad_batches": 2, "seed": 0, "progress": False, "check": False}
        history = svi.fit(loader, max_epochs=3, **options)
    return {"steps": torch.tensor(svi._stepper.steps), **numbers(history), **values(svi)}


def noise(folder: Path) -> Any:
    """The order is shared, the noise is not."""
    seen: list[Tensor] = []
    drawn: list[Tensor] = []

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            drawn.append(pyro.sample("z", dist.Normal(loc, 1.0).to_event(1)))
        seen.append(x)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    svi = am.SVI(model, guide, compile="off")
    svi.fit(data(24), max_epochs=1, batch_size=8, seed=9, progress=False, check=False)
    return {"rows": torch.cat(seen[-3:]), "noise": torch.cat(drawn[-3:]), **values(svi)}


# --- what goes wrong ------------------------------------------------------------------------------


def bad(*rows: int) -> Tensor:
    """Data with rows that are no numbers."""
    x = data()
    x[list(rows)] = float("nan")
    return x


def skipped(folder: Path) -> Any:
    """A NaN in the rows of one process: the step is skipped in all, as by a single one."""
    return exact(x=bad(3, 20), non_finite="skip", max_steps=FEW)


def rolled_back(folder: Path) -> Any:
    """The same with half the rate, from an earlier moment."""
    return exact(x=bad(3), non_finite="rollback", max_steps=None, max_epochs=4)


def refused(folder: Path) -> Any:
    """Who raises what at a NaN in one row."""
    return said(lambda: exact(x=bad(3)))


def failed(folder: Path) -> Any:
    """A program that fails in the second process, at some step."""
    rank, _ = place()
    steps = []

    def guide(x: Tensor) -> None:
        steps.append(1)
        if len(steps) > 5 and rank == 1:
            raise RuntimeError("out of luck")
        pyro.sample("mean", dist.Delta(pyro.param("loc", torch.zeros(3))).to_event(1))

    return said(lambda: small(guide).fit(data(), max_epochs=5, progress=False, check=False))


def late(folder: Path) -> Any:
    """A parameter that only the second process declares, at some step."""
    rank, _ = place()
    steps = []

    def guide(x: Tensor) -> None:
        steps.append(1)
        if len(steps) > 5 and rank == 1:
            pyro.param("late", torch.ones(2))
        pyro.sample("mean", dist.Delta(pyro.param("loc", torch.zeros(3))).to_event(1))

    return said(lambda: small(guide).fit(data(), max_epochs=5, progress=False, check=False))


def late_in_all(folder: Path) -> Any:
    """One that all declare at the same step goes on from the first process's value."""
    rank, _ = place()
    steps = []

    def guide(x: Tensor) -> None:
        steps.append(1)
        loc = pyro.param("loc", torch.zeros(3))
        if len(steps) > 5:
            loc = loc + pyro.param("late", torch.full((3,), 0.1 * (rank + 1)))
        pyro.sample("mean", dist.Delta(loc).to_event(1))

    svi = small(guide)
    svi.fit(data(), max_epochs=9, batch_size=37, seed=0, progress=False, check=False)
    return values(svi)


def totals(folder: Path) -> Any:
    """No plate says that the rows are a part of more."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean.expand(len(x), 3), 1.0).to_event(2), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Delta(pyro.param("loc", torch.zeros(3))).to_event(1))

    svi = am.SVI(model, guide, compile="off")
    options = {"batch_size": 37, "progress": False, "check": False}
    return said(lambda: svi.fit(data(), max_epochs=1, **options))


def small(guide: Any, **options: Any) -> am.SVI:
    """A global mean and data around it."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    return am.SVI(model, guide, **{"lr": 0.1, "compile": "off", **options})


def said(function: Callable[[], Any]) -> tuple[str, str]:
    """The kind of an error, and its sentence."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error.args[0])
    return "", ""


def terminated(folder: Path) -> Any:
    """SIGTERM to the second process ends both after the same step, with a checkpoint of it."""
    rank, _ = place()

    def strike(state: FitState) -> None:
        if rank == 1 and state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    steps: list[int] = []
    svi = noisy()
    keep = am.ModelCheckpoint(folder / "terminated", every_n_steps=100)
    try:
        svi.fit(data(), callbacks=[EachStep(strike), keep], **RUN)
    except SystemExit as end:
        steps = [svi._stepper.steps, int(end.code or 0)]
    names = sorted(path.name for path in (folder / "terminated").iterdir())
    return steps, names


class EachStep(Callback):
    """Calls a function after each step."""

    def __init__(self, function: Callable[[FitState], None]) -> None:
        self.function = function

    def on_train_batch_end(self, state: FitState) -> None:
        self.function(state)


RUN: Any = {"max_epochs": 6, "batch_size": 8, "seed": 4, "progress": False, "check": False}


def noisy() -> am.SVI:
    """A pair with noise, and an estimator that remembers."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + on[:, None], 1.0).to_event(1), obs=x)

    torch.manual_seed(0)
    net = nn.Linear(3, 4)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        out = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("on", dist.Bernoulli(logits=out[:, 0]))
            pyro.sample("z", dist.Normal(out[:, 1:], 0.5).to_event(1))

    loss = am.VariationalLoss(estimators={"on": am.ScoreFunction(baseline=am.NeuralBaseline())})
    return am.SVI(model, guide, loss, lr=0.01, compile="off")


def resumed(folder: Path) -> Any:
    """A training that is stopped in the middle of an epoch and goes on, and one that is not."""
    whole = noisy()
    history = whole.fit(data(), data(9), **RUN)
    keep = am.ModelCheckpoint(folder / "resumed", every_n_steps=4, keep_last=9)
    try:
        noisy().fit(data(), data(9), callbacks=[keep, EachStep(_stop_at_13)], **RUN)
    except ZeroDivisionError:
        pass
    again = noisy()
    goes_on = again.fit(data(), data(9), resume_from=folder / "resumed", **RUN)
    return (numbers(history), values(whole)), (numbers(goes_on), values(again))


def _stop_at_13(state: FitState) -> None:
    if state.step == 13:
        raise ZeroDivisionError


# --- mistakes that the comparison with a single process must find --------------------------------


def without_weights(folder: Path) -> Any:
    """Every process counts the same, whatever its rows."""
    accumulate = Stepper.accumulate

    def alike(self: Any, batch: Any, plate: Any, kl_weight: float, weight: float) -> Any:
        return accumulate(self, batch, plate, kl_weight, 1.0)

    with patch.object(Stepper, "accumulate", alike):
        return exact(max_steps=FEW)


def without_sum(folder: Path) -> Any:
    """Nothing is added up, and nobody looks."""
    with patch.object(Group, "add_up", lambda self, tensor: None):
        with patch("amortized.fit.joint.refuse_drift"):
            return exact(max_steps=FEW)


# --- statistics -----------------------------------------------------------------------------------


def trained(folder: Path) -> list[float]:
    """The bound of a pair with noise after training, over 5 seeds."""
    found = []
    for seed in range(5):
        svi = noisy()
        options = {"max_epochs": 40, "batch_size": 8, "progress": False, "check": False}
        svi.fit(data(200), seed=seed, **options)
        found.append(svi.evaluate(data(200), 20, seed=seed)["elbo"])
    return found


# --- one reduction --------------------------------------------------------------------------------


class Parts(nn.Module):
    """Parameters of two dtypes, one without a gradient, and buffers that move."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.single = nn.Parameter(torch.zeros(2))
        self.precise = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.idle = nn.Parameter(torch.zeros(4))
        self.average, self.count = Buffer(torch.tensor([1.0, 4.0])), Buffer(torch.tensor(2**40))
        self.still = Buffer(torch.tensor(7.0 + rank))

    def tensors(self) -> dict[str, Tensor]:
        return self.state_dict(keep_vars=True)


def reduced(folder: Path) -> Any:
    """Gradients and buffers of processes with one row and with three."""
    rank, size = place()
    parts = Parts(rank)
    leaves = list(parts.parameters())
    buffers = MovingBuffers([parts])
    reduction = Reduction(Group(rank, size))
    rows = 1.0 + 2 * rank
    reduction.start(Part(leaves, parts.tensors, buffers, 0.0))
    before = buffers.copies()
    parts.average.add_(rank)  # 1, 4 and 2, 5
    parts.count.add_(1 + rank)
    buffers.look(before)
    parts.single.grad = torch.full((2,), rows * (rank + 1))
    parts.precise.grad = torch.full((3,), rows / 3, dtype=torch.float64)
    reduction.had_a_batch, reduction.loss = True, rows * rank
    weight = reduction.reduce(Part(leaves, parts.tensors, buffers, rows))
    gradients = [leaf.grad for leaf in leaves]
    return weight, reduction.loss, gradients, dict(parts.named_buffers())
