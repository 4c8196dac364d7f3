"""A small training with everything that moves, which can be killed at any moment; or run by hand::

python -m tests.faults.training FOLDER RESULT

It goes on from the newest checkpoint of the folder, and writes the result when it is at its end.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Dataset

import amortized as am
from amortized.fit import checkpoint, checkpoint_files, model_checkpoint
from amortized.fit.callbacks import Callback, FitState

SIZE, BATCH, EPOCHS = 300, 32, 6  # 10 batches an epoch, the last one short
EVERY = 2
PIXELS, CLUSTERS, BITS, CODE, HIDDEN = 64, 4, 3, 4, 24

torch.set_num_threads(1)

_DIGITS = torch.tensor(load_digits().data > 8, dtype=torch.float32)
TRAIN, VAL = _DIGITS[:SIZE], _DIGITS[SIZE : SIZE + 100]


class Model(PyroModule):
    """A cluster, three bits and a Gaussian code for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(CLUSTERS))
        self.means = nn.Parameter(torch.randn(CLUSTERS, CODE))
        self.decoder = nn.Sequential(
            nn.Linear(CODE + BITS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS)
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.weights))
            b = pyro.sample("b", dist.Bernoulli(torch.full((BITS,), 0.5)).to_event(1))
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
            logits = self.decoder(torch.cat([z, b], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class Guide(PyroModule):
    """Batch norm has buffers that move, dropout draws from torch, the jitter from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Tanh(), nn.Dropout(0.2)
        )
        self.discrete = nn.Linear(HIDDEN, CLUSTERS + BITS)
        self.code = nn.Linear(HIDDEN, 2 * CODE)

    def forward(self, x: Tensor) -> None:
        features = self.features(x) + 0.01 * random.random()
        clusters, bits = self.discrete(features).split([CLUSTERS, BITS], -1)
        loc, scale = self.code(features).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=clusters))
            pyro.sample("b", dist.Bernoulli(logits=bits).to_event(1))
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


class Flipped(Dataset):
    """Images with a few pixels flipped anew each time, by the generator of the loader's worker."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return (TRAIN[index] - (torch.rand(PIXELS) < 0.02).float()).abs()


def pair() -> am.SVI:
    """Before its first step; the same each time."""
    pyro.set_rng_seed(0)
    estimators = {"c": "neural_baseline", "b": "moving_average", "z": "pathwise"}
    return am.SVI(Model(), Guide(), am.VariationalLoss(estimators=estimators), lr=0.01)


def data(workers: int) -> Any:
    """In memory, or from a loader with so many processes of its own."""
    if workers == 0:
        return TRAIN
    return DataLoader(Flipped(), BATCH, shuffle=True, num_workers=workers)


def fit(svi: am.SVI, folder: Path | None, *more: Callback, workers: int = 0, **options: Any) -> Any:
    """Trains to the end, from the newest checkpoint of the folder where there is one."""
    begun = folder is not None and checkpoint.listed(folder)
    saving = [] if folder is None else [am.ModelCheckpoint(folder, every_n_steps=EVERY)]
    given: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "batch_size": BATCH,
        "seed": 1,
        "progress": False,
        "scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97),
        "scheduler_interval": "step",
        "n_epochs_kl_warmup": 2,
        "gradient_clip_val": 50.0,
        "resume_from": folder if begun else None,
    }
    # the best is the second epoch, and the fourth the last
    stopping = am.EarlyStopping(min_delta=3.5, patience=2)
    callbacks = [stopping, *saving, *more]
    return svi.fit(data(workers), VAL, callbacks=callbacks, **(given | options))


def outcome(svi: am.SVI, history: am.History) -> dict[str, Any]:
    """Parameters, buffers, estimators, optimizer and history, flat; with a checksum of all bytes.

    Early stopping has put the best parameters back; the optimizer's state is that of the end.
    """
    state = svi._stepper.state_dict()
    tensors = {name: tensor.clone() for name, tensor in state["parameters"].items()}
    for name, of in state["optimizer"]["state"].items():
        tensors |= {f"{name}/{key}": torch.as_tensor(value) for key, value in of.items()}
    for key, values in history.items():
        if key != "epoch_time":
            tensors[f"history/{key}"] = torch.tensor(values, dtype=torch.float64)
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    rates = [group["lr"] for group in state["optimizer"]["groups"]]
    about = {"rates": rates, "steps": state["steps"], "stopped": history.stopped}
    return {**about, "tensors": tensors, "sha256": digest.hexdigest()}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what is not equal bit for bit."""
    keys = [key for key in expected if key != "tensors" and found[key] != expected[key]]
    ours, theirs = found["tensors"], expected["tensors"]
    both = sorted(ours.keys() & theirs.keys())
    unequal = [n for n in both if not torch.equal(_bytes(ours[n]), _bytes(theirs[n]))]
    return [*keys, *sorted(ours.keys() ^ theirs.keys()), *unequal]


def _bytes(tensor: Tensor) -> Tensor:
    """So that NaN equals NaN, and -0.0 not 0.0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def train(
    folder: str, result: str, phases: str, workers: int = 0, mutant: str = "", dies_at: int = 0
) -> None:
    """What is forked and killed: goes on with the training of a folder; notes what it is doing.

    One that is not to be killed from outside may die by itself at the end of a step.
    """
    # The nursery answers on standard output, which the workers of a loader would hold open.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("error")  # a checkpoint that is passed over as damaged, for one
    note = noting(phases)
    MUTANTS[mutant]()
    svi = pair()
    history = fit(svi, Path(folder), Told(note, dies_at), workers=workers)
    note("finishing")
    partial = Path(f"{result}.part")
    torch.save(outcome(svi, history), partial)
    os.replace(partial, result)


class Told(Callback):
    """Notes the end of starting, when checkpoints have been read, and kills at a step."""

    def __init__(self, note: Callable[[str], None], dies_at: int) -> None:
        self.note, self.dies_at = note, dies_at

    def on_fit_start(self, state: FitState) -> None:
        self.note("training")

    def on_train_batch_end(self, state: FitState) -> None:
        if state.step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def noting(path: str) -> Callable[[str], None]:
    """A function that notes what the process is doing, in a file that outlives it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)

    def note(phase: str) -> None:
        os.pwrite(descriptor, phase.ljust(10).encode(), 0)

    def noted(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            note(phase)
            found = function(*args, **kwargs)
            note("training")
            return found

        return inner

    note("starting")
    checkpoint.write = noted("writing", checkpoint.write)
    model_checkpoint.prune = noted("deleting", model_checkpoint.prune)
    return note


def forget(forgotten: Callable[[dict[str, Any]], object]) -> None:
    """From now on checkpoints are read without a part of their state."""
    real = checkpoint.read

    def read(*args: Any, **kwargs: Any) -> checkpoint.Checkpoint:
        found = real(*args, **kwargs)
        forgotten(found.state)
        return found

    checkpoint.read = read


def write_in_place() -> None:
    """From now on checkpoints are written where they are read, not beside it and renamed."""
    real = checkpoint.write

    def write(root: Path, state: Any, *, step: int, **options: Any) -> Path:
        @contextmanager
        def folder_of_its_own(root: Path) -> Iterator[Path]:
            folder = root / checkpoint_files.folder_name(step)
            if folder.exists():
                folder = root / checkpoint_files.folder_name(step, version=2)
            folder.mkdir()
            yield folder

        checkpoint_files.temporary_folder = folder_of_its_own
        checkpoint_files.publish = lambda folder, root, step: folder
        return real(root, state, step=step, **options)

    checkpoint.write = write


def import_late_modules() -> None:
    """What torch imports when an optimizer is made: seconds, which every child would need again."""
    svi = pair()
    svi.describe(TRAIN[:2])
    assert svi.optimizer is not None
    svi.optimizer.step()


MUTANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "forgets the optimizer": lambda: forget(lambda state: state["optimizer"]["state"].clear()),
    "forgets the generator": lambda: forget(
        lambda state: state["moment"]["rng"].update(torch=torch.get_rng_state())
    ),
    "forgets early stopping": lambda: forget(
        lambda state: state["callbacks"].pop("EarlyStopping1")
    ),
    "writes in place": write_in_place,
}

import_late_modules()

if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], os.devnull)
