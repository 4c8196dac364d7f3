"""Processes that are not alike, or do what needs all rows at once: each is refused, by name."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import amortized as am
from amortized.fit.callbacks import FitState
from tests.fit.processes.jobs import EachStep, data, exact, numbers, place, said, small, values

PLAIN: Any = {"batch_size": 8, "seed": 0, "progress": False, "check": False}


def mean(x: Tensor) -> None:
    pyro.sample("mean", dist.Delta(pyro.param("loc", torch.zeros(3))).to_event(1))


def refusals(folder: Path) -> Any:
    """What each of these says."""
    rank, size = place()

    def of_shards(x: Tensor) -> Any:
        return said(lambda: small(mean).fit(x, max_epochs=1, **PLAIN))

    def other_rate() -> None:
        small(mean, lr=0.1 * (rank + 1)).fit(data(), max_epochs=1, **PLAIN)

    def other_steps() -> None:
        svi = small(mean)
        if rank == 0:
            svi._stepper.warm_up(data())
            svi._stepper.steps = 5
        svi.fit(data(), max_epochs=1, **PLAIN)

    def drifting() -> None:
        def push(state: FitState) -> None:
            if rank == 0 and state.step == 3:
                svi._stepper.optimizer.leaves()[0].data.add_(0.5)

        svi = small(mean)
        svi.fit(data(), max_epochs=2, callbacks=[EachStep(push)], **PLAIN)

    def with_free_bits() -> None:
        loss = am.VariationalLoss(am.ELBO(free_bits=1.0))
        small(mean, loss=loss).fit(data(), max_epochs=1, **PLAIN)

    def without_a_plate() -> None:
        def model(x: Tensor) -> None:
            loc = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc.expand(len(x), 3), 1.0).to_event(2), obs=x)

        am.SVI(model, mean, compile="off").evaluate(data(), batch_size=37, seed=0)

    def a_callback() -> None:
        def fail(state: FitState) -> None:
            if rank == 1 and state.step == 3:
                raise am.NonFiniteError("mine", "")

        options = {**PLAIN, "callbacks": [EachStep(fail)], "non_finite": "skip"}
        small(mean).fit(data(), max_epochs=2, **options)

    def one_checkpoint() -> None:
        keep = [am.ModelCheckpoint(folder / "one")] if rank == 0 else []
        small(mean).fit(data(), max_epochs=1, callbacks=keep, **PLAIN)

    def one_loader() -> None:
        val = DataLoader(TensorDataset(data(8))) if rank == 0 else None
        small(mean).fit(data(), val, max_epochs=1, **PLAIN)

    return {
        "callback": said(a_callback),
        "checkpoints": said(one_checkpoint),
        "val": said(one_loader),
        "shards": of_shards(data(36)[rank::size]),
        "unequal": of_shards(data(36)[: 25 if rank == 0 else 11]),
        "rate": said(other_rate),
        "steps": said(other_steps),
        "drift": said(drifting),
        "free bits": said(with_free_bits),
        "totals": said(without_a_plate),
        "batch of a group": said(
            lambda: exact(x=_bad(), accumulate_grad_batches=4, max_epochs=1, max_steps=None)
        ),
    }


def caught(folder: Path) -> Any:
    """What a callback of one process raises ends all, who then go on together."""
    rank, _ = place()
    found = []
    for hook in ("on_fit_start", "on_train_batch_end", "on_train_epoch_end", "on_fit_end"):
        svi = small(mean)
        keep = am.ModelCheckpoint(folder / hook, every_n_steps=1)

        def fail(state: FitState) -> None:
            if rank == 1 and state.step in (0, 5, 10):
                raise ZeroDivisionError("a callback")

        first = am.Callback()
        setattr(first, hook, fail)
        options = {**PLAIN, "max_epochs": 2, "callbacks": [first, keep]}
        found.append(said(lambda svi=svi, options=options: svi.fit(data(), **options)))
        found.append(said(lambda svi=svi: svi.fit(data(), max_epochs=1, **PLAIN)))
    return found


def _bad() -> Tensor:
    x = data()
    x[3] = float("nan")
    return x


def drawn_rows(folder: Path) -> Any:
    """A plate that draws from the rows it is given: the data are alike, so draws do not matter."""
    x = torch.ones(36, 3)

    def model(x: Tensor) -> None:
        loc = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[rows])

    svi = am.SVI(model, mean, lr=0.01, compile="off", optimizer=partial(torch.optim.SGD))
    svi.fit(x, max_epochs=5, **{**PLAIN, "batch_size": 36})
    return values(svi)


def same_history(folder: Path) -> Any:
    """A notice of one process, a sampler within a sampler, and a checkpoint before all steps."""
    rank, size = place()
    seen: list[Tensor] = []

    def guide(x: Tensor) -> None:
        seen.append(x)
        mean(x)

    class First(am.Callback):
        def on_fit_start(self, state: FitState) -> None:
            if state.save is not None:
                state.save(folder / "first")

    x, val = TensorDataset(data(36)), data(12)
    val[-1] = float("nan")
    sampler = DistributedSampler(x, size, rank, seed=1)
    loader = DataLoader(x, batch_sampler=BatchSampler(sampler, 6, drop_last=False))
    svi = small(guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error", am.CheckWarning)
        history = svi.fit(
            loader, val, max_epochs=2, non_finite="skip", callbacks=[First()], **PLAIN
        )
    batches = [batch for batch in seen if len(batch) == 6 and batch.isfinite().all()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        odd = TensorDataset(data(37))
        svi.evaluate(DataLoader(odd, 5, sampler=DistributedSampler(odd, size, rank)), seed=0)
    told = [str(warning.message) for warning in caught if warning.category is am.CheckWarning]
    return {
        "notices": history.notices,
        "numbers": numbers(history),
        "batches": batches[-6:],
        "checkpoints": sorted(path.name for path in (folder / "first").iterdir()),
        "warnings": told,
    }
