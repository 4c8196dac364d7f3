"""``examples/vae.py`` on digits, three ways: ``am.SVI``, plain PyTorch, and Pyro's own SVI.

    python -m tests.benchmarks.vae_equivalence [--seeds 5] [--epochs 100] [--noise own]
    python -m tests.benchmarks.vae_equivalence --only steps

Fits: for each seed the three arms start from the same weights, see the same batches in the same
order and take the same number of Adam steps on the sampled ELBO; each draws its own noise (or, with
``--noise shared``, the same noise at each step). ``fit`` is ``am.SVI.fit`` with its own shuffling,
progress off: what a user types. The test ELBO per datum is computed by one function, with the same
draws, for all. The bar: the 95 % t-interval of the paired differences lies within 0.3 nats of 0.

Steps: milliseconds of one eager step, the arms interleaved in one process. The bar: ours is no
slower than Pyro's with the same validation setting. All times are processor time at one thread.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import amortized as am
from tests.benchmarks.programs import example
from tests.benchmarks.timing import Arm, interleave, mean_and_interval, ratio, show, zero

BAR = 0.3
LATENT, HIDDEN, BATCH, LR = 8, 200, 128, 1e-3
Step = Callable[[Tensor], Any]
vae = example("vae")


def pair(seed: int) -> tuple[nn.Module, nn.Module]:
    pyro.set_rng_seed(seed)
    return vae.Model(64, LATENT, HIDDEN), vae.Guide(64, LATENT, HIDDEN)


def by_hand(decoder: nn.Module, encoder: nn.Module, x: Tensor) -> Tensor:
    """Minus the one-draw ELBO, summed over the batch."""
    loc, scale = encoder(x).chunk(2, -1)
    scale = softplus(scale)
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    # log N(z; 0, 1) - log N(z; loc, scale): the constants cancel.
    log_ratio = (0.5 * (noise.square() - z.square()) + scale.log()).sum()
    return binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") - log_ratio


def ours(model: nn.Module, guide: nn.Module, validate: bool = False) -> Step:
    return am.SVI(model, guide, am.VariationalLoss(), lr=LR, validate=validate).step


def hand_written(model: nn.Module, guide: nn.Module, fused: bool = False) -> Step:
    decoder, encoder = model.decoder, guide.encoder
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=fused)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        # Adam does not see the scale of a loss, but its epsilon does: per datum, as am.SVI has it.
        loss = by_hand(decoder, encoder, x) / len(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def pyro_own(model: nn.Module, guide: nn.Module) -> Step:
    return SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO()).step


ARMS: dict[str, Callable[..., Step]] = {
    "am.SVI": ours,
    "by hand": hand_written,
    "Pyro's SVI": pyro_own,
}


@torch.no_grad()
def elbo_per_datum(model: nn.Module, guide: nn.Module, x: Tensor, draws: int) -> float:
    """The ELBO by many draws, the same for every arm: the generator is put back to one state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        total = sum(float(by_hand(model.decoder, guide.encoder, x)) for _ in range(draws))
    return -total / draws / len(x)


def batches(x: Tensor, seed: int, epochs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(epochs)]
    return [x[rows] for order in orders for rows in order.split(BATCH)]


def train(step: Step, data: list[Tensor], noise: Callable[[int], int | None]) -> float:
    """Takes one step on each batch; seconds of the processor."""
    started = time.process_time()
    for number, batch in enumerate(data):
        seed = noise(number)
        if seed is not None:
            torch.manual_seed(seed)
        step(batch)
    return time.process_time() - started


def own_noise(seed: int) -> Callable[[int], int | None]:
    return lambda number: seed if number == 0 else None


def fitted(make: Callable[..., Step], start: Any, data: list[Tensor], noise: Any) -> Any:
    """A copy of the pair, trained, and its seconds."""
    model, guide = copy.deepcopy(start)
    with pyro.get_param_store().scope():
        seconds = train(make(model, guide), data, noise)
    return model, guide, seconds


def by_fit(start: Any, images: Any, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Test ELBO and seconds of ``am.SVI.fit``, which shuffles for itself."""
    model, guide = copy.deepcopy(start)
    svi, started = am.SVI(model, guide, lr=LR), time.process_time()
    size = {"max_epochs": options.epochs, "batch_size": BATCH}
    svi.fit(images.train, **size, seed=seed, progress=False)
    taken = time.process_time() - started
    return elbo_per_datum(model, guide, images.test, options.draws), taken


def fits(options: argparse.Namespace) -> Table:
    """Every arm from every seed, and paired differences."""
    images = vae.load("digits")
    names = [*ARMS, "am.SVI.fit"] if options.noise == "own" else [*ARMS]
    elbo: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in elbo}
    steps = len(batches(images.train, 0, options.epochs))
    for make in ARMS.values():  # the first steps of a process are slow: not counted
        fitted(make, pair(0), batches(images.train, 0, 2), own_noise(0))
    for seed in range(options.seeds):
        start, data = pair(seed), batches(images.train, seed, options.epochs)
        for number, (name, make) in enumerate(ARMS.items(), start=1):
            shared = options.noise == "shared"
            noise = (lambda n: n) if shared else own_noise(1000 * number + seed)
            model, guide, taken = fitted(make, start, data, noise)
            seconds[name].append(taken)
            elbo[name].append(elbo_per_datum(model, guide, images.test, options.draws))
        if options.noise == "own":
            elbo_of_fit, taken = by_fit(start, images, seed, options)
            elbo["am.SVI.fit"].append(elbo_of_fit)
            seconds["am.SVI.fit"].append(taken)
        print(f"seed {seed}: " + ", ".join(f"{n} {v[-1]:.3f}" for n, v in elbo.items()), flush=True)
    return fits_table(options, elbo, seconds, steps)


def fits_table(
    options: argparse.Namespace,
    elbo: dict[str, list[float]],
    seconds: dict[str, list[float]],
    steps: int,
) -> Table:
    table = Table(
        title=f"examples/vae.py on digits, {steps} steps, seeds 0 to {options.seeds - 1}, "
        f"{options.noise} noise, test ELBO by {options.draws} draws",
        min_width=100,
    )
    for column in ("arm", "test ELBO, nats", "minus by hand", "minus Pyro's", "bar 0.3", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, values in elbo.items():
        cells, inside = [], True
        for other in ("by hand", "Pyro's SVI"):
            if other == name:
                cells.append("")
                continue
            mean, half = mean_and_interval(np.subtract(values, elbo[other]).tolist())
            cells.append(f"{mean:+.3f} ± {half:.3f}")
            inside = inside and abs(mean) + half <= BAR
        row = [name, f"{np.mean(values):.3f}", *cells, "inside" if inside else "OUTSIDE"]
        table.add_row(*row, f"{np.median(seconds[name]):.2f}")
    return table


def step_arms(validate: bool) -> dict[str, Arm]:
    """Every way to take a step, on copies of one pair; and bare losses with their gradients."""
    x, start = vae.load("digits").train[:BATCH], pair(0)
    steps = {
        "am.SVI.step": partial(ours, validate=validate),
        "Pyro SVI.step": pyro_own,
        "by hand": hand_written,
        "by hand, fused Adam": partial(hand_written, fused=True),
    }
    arms = {
        name: Arm(name, partial(make(*copy.deepcopy(start)), x)) for name, make in steps.items()
    }
    losses = {"ours, loss_and_grads": am.VariationalLoss(), "Pyro's, loss_and_grads": Trace_ELBO()}
    for name, loss in losses.items():
        model, guide = copy.deepcopy(start)
        call = partial(loss.loss_and_grads, model, guide, x)
        arms[name] = Arm(name, call, zero(model, guide))
    model, guide = copy.deepcopy(start)
    arms["by hand, loss.backward"] = Arm(
        "by hand, loss.backward",
        lambda: by_hand(model.decoder, guide.encoder, x).backward(),
        zero(model, guide),
    )
    return arms


def steps_table(rounds: int) -> Table:
    table = Table(
        title=f"ms an eager step, batch {BATCH}, seed 0, medians of {rounds} interleaved rounds"
    )
    for column in ("arm", "validation on", "ours / it", "validation off", "ours / it"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    cells: dict[str, list[str]] = {}
    for validate in (True, False):
        with pyro.get_param_store().scope(), pyro.validation_enabled(validate):
            arms = step_arms(validate)
            interleave(list(arms.values()), rounds)
        for name, arm in arms.items():
            bare = "loss" in name
            reference = arms["ours, loss_and_grads" if bare else "am.SVI.step"]
            middle, low, high = ratio(reference, arm)
            shown = "" if reference is arm else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            cells.setdefault(name, []).extend([f"{arm.median:.3f}", shown])
    for name, row in cells.items():
        table.add_row(name, *row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--noise", choices=("own", "shared"), default="own")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", choices=("fits", "steps"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "steps":
        show(fits(options))
    if options.only != "fits":
        show(steps_table(options.rounds))


if __name__ == "__main__":
    main()
