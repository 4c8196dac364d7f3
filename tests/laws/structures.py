"""Small programs, one for each structure that a Pyro program can have.

Each is a pair (model, guide) without arguments whose latent ``z`` (and sometimes more) is Normal or
Bernoulli by ``kind``; parameters are ``pyro.param`` in the global store, so that Pyro's own losses
see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

Program = Callable[[], object]
Law = Callable[..., dist.Distribution]

DATA = torch.tensor([0.3, -1.2], dtype=torch.float64)
ROWS = torch.tensor([[0.3, -1.2, 0.8], [1.7, 0.1, -0.4]], dtype=torch.float64)


@dataclass(frozen=True)
class Structure:
    """A pair of programs and the latents that carry randomness."""

    model: Program
    guide: Program
    latents: tuple[str, ...] = ("z",)


def law_of(kind: str) -> Law:
    """A latent's distribution from a location."""
    if kind == "normal":
        return lambda loc: dist.Normal(loc, torch.ones_like(loc) * 0.8)
    return lambda loc: dist.Bernoulli(logits=loc)


def weight(name: str, value: float | list[float]) -> Tensor:
    """A parameter with a fixed start."""
    return pyro.param(name, torch.tensor(value, dtype=torch.float64))


def global_site(kind: str) -> Structure:
    """One latent outside all plates."""
    law = law_of(kind)

    def model() -> None:
        z = pyro.sample("z", law(torch.tensor(0.2)))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def guide() -> None:
        pyro.sample("z", law(weight("a", 0.4)))

    return Structure(model, guide)


def plate(kind: str) -> Structure:
    """One latent a datum."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(weight("a", 0.4) * DATA))

    return Structure(model, guide)


def nested_plates(kind: str) -> Structure:
    """A latent a row, seen by three columns."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("rows", 2, dim=-2):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2, 1)))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=ROWS)

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", law(weight("a", 0.4) * ROWS.sum(-1, keepdim=True)))

    return Structure(model, guide)


def sequential_plates(kind: str) -> Structure:
    """Two plates of different size at the same dim; the second is observed only."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("first", 2):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)
        with pyro.plate("second", 3):
            pyro.sample("y", dist.Normal(weight("c", 0.2), 1.0), obs=ROWS[0])

    def guide() -> None:
        with pyro.plate("first", 2):
            pyro.sample("z", law(weight("a", 0.4) * DATA))

    return Structure(model, guide)


def subsampled(kind: str) -> Structure:
    """A plate of ten with a random minibatch of two."""
    law = law_of(kind)
    everything = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", 10, subsample_size=2) as index:
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=everything[index])

    def guide() -> None:
        with pyro.plate("data", 10, subsample_size=2) as index:
            pyro.sample("z", law(weight("a", 0.4) * everything[index]))

    return Structure(model, guide)


def chosen_minibatch(kind: str) -> Structure:
    """A plate of ten of which the caller names two."""
    law = law_of(kind)
    index = torch.tensor([7, 2])
    everything = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", 10, subsample=index):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=everything[index])

    def guide() -> None:
        with pyro.plate("data", 10, subsample=index):
            pyro.sample("z", law(weight("a", 0.4) * everything[index]))

    return Structure(model, guide)


def masked(kind: str) -> Structure:
    """Some data are masked out; their latents are drawn all the same."""
    law = law_of(kind)
    mask = torch.tensor([True, False])

    def model() -> None:
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("z", law(weight("a", 0.4) * DATA))

    return Structure(model, guide)


def scaled(kind: str) -> Structure:
    """The latent's terms are annealed in both programs."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("data", 2):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2), poutine.scale(scale=0.3):
            pyro.sample("z", law(weight("a", 0.4) * DATA))

    return Structure(model, guide)


def event_dims(kind: str) -> Structure:
    """A vector latent a datum."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(weight("b", [-0.3, 0.5]).expand(2, 2)).to_event(1))
            mean = (z * weight("w", [0.7, -0.2])).sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(weight("a", [0.4, -0.6]) * DATA.unsqueeze(-1)).to_event(1))

    return Structure(model, guide)


def partially_observed(kind: str) -> Structure:
    """Half of a site is observed (obs_mask), the other half is a latent of the guide."""
    law = law_of(kind)
    seen = torch.tensor([True, False])
    truth = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)), obs=truth, obs_mask=seen)
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2), poutine.mask(mask=~seen):
            pyro.sample("z_unobserved", law(weight("a", 0.4) * DATA))

    return Structure(model, guide, ("z_unobserved",))


def factor_and_deterministic(kind: str) -> Structure:
    """A factor on a deterministic function of the latent."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(weight("b", -0.3).expand(2)))
            twice = pyro.deterministic("twice", 2.0 * z)
            pyro.factor("penalty", -weight("w", 0.7) * (twice - DATA) ** 2)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(weight("a", 0.4) * DATA))

    return Structure(model, guide)


def control_flow(kind: str) -> Structure:
    """The observation's statement depends on the latent's value through a Python branch."""
    law = law_of(kind)

    def model() -> None:
        z = pyro.sample("z", law(torch.tensor(0.2)))
        if z.item() > 0.5:
            pyro.sample("x", dist.Normal(weight("w", 2.0), 1.0), obs=DATA[0])
        else:
            pyro.sample("x", dist.Normal(weight("v", -1.0), 1.0), obs=DATA[0])

    def guide() -> None:
        pyro.sample("z", law(weight("a", 0.4)))

    return Structure(model, guide)


def buffer_write(kind: str) -> Structure:
    """A sequence model that fills a buffer in place, where provenance tags are lost."""
    law = law_of(kind)

    def model() -> None:
        z = pyro.sample("z", law(torch.tensor(0.2)))
        states = torch.zeros(2, dtype=torch.float64)
        states[0] = z
        states[1] = z * weight("w", 0.7)
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(states, 1.0), obs=DATA)

    def guide() -> None:
        pyro.sample("z", law(weight("a", 0.4)))

    return Structure(model, guide)


def python_loop(kind: str) -> Structure:
    """A plate run as a Python loop, one site name an iteration."""
    law = law_of(kind)

    def model() -> None:
        for i in pyro.plate("steps", 2):
            z = pyro.sample(f"z{i}", law(weight("b", -0.3)))
            pyro.sample(f"x{i}", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA[i])

    def guide() -> None:
        for i in pyro.plate("steps", 2):
            pyro.sample(f"z{i}", law(weight("a", 0.4) * DATA[i]))

    return Structure(model, guide, ("z0", "z1"))


def auxiliary(kind: str) -> Structure:
    """The guide draws an auxiliary variable after the latent; its entropy is part of the bound."""
    law = law_of(kind)

    def model() -> None:
        z = pyro.sample("z", law(torch.tensor(0.2)))
        pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA[0])

    def guide() -> None:
        z = pyro.sample("z", law(weight("a", 0.4)))
        pyro.sample(
            "aux",
            dist.Normal(z, 0.5 + torch.sigmoid(weight("s", 0.1) + z)),
            infer={"is_auxiliary": True},
        )

    return Structure(model, guide)


def chain(kind: str) -> Structure:
    """Two dependent latents a datum, the model running through them in the other order."""
    law = law_of(kind)

    def model() -> None:
        with pyro.plate("data", 2):
            y = pyro.sample("y", law(weight("c", 0.2).expand(2)))
            z = pyro.sample("z", law(weight("b", -0.3) * y))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7) + y, 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(weight("a", 0.4) * DATA))
            pyro.sample("y", law(weight("e", 0.3) * z))

    return Structure(model, guide, ("z", "y"))


ONE_LATENT = {
    f.__name__: f
    for f in (
        global_site,
        plate,
        nested_plates,
        sequential_plates,
        subsampled,
        chosen_minibatch,
        masked,
        scaled,
        event_dims,
        factor_and_deterministic,
        buffer_write,
        control_flow,
    )
}
SEVERAL = {f.__name__: f for f in (partially_observed, python_loop, auxiliary, chain)}
EVERY = {**ONE_LATENT, **SEVERAL}
