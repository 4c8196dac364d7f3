"""What is measured: the works, who takes part, and the ratios to reach; without torch or jax.

All contestants of a work begin with the same weights and see the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

LR = 1e-3
BATCHES = 8
"""Batches that the steps go through in turn."""
CLUSTERS = 10
SERIES = 10
COMPILED = ("amortized graph", "amortized inductor")
AUTO = "amortized auto"
"""Only if asked for: it chooses by the steps to come, which ``SVI.step`` cannot know."""
MODES = ("amortized off", *COMPILED)
PYRO = ("Pyro SVI.step", "Pyro loss, fused Adam")
HAND_COMPILED = ("torch.compile", "torch.compile, gradient", "torch.compile, gradient and Adam")
CUDA_GRAPH = "torch.compile, CUDA graph"
"""Only with --device cuda, beside the other compiled ones."""
LOSSES = ("amortized loss", "Pyro loss")

Kind = Literal["vae", "mixture", "bernoulli", "chain"]


@dataclass(frozen=True)
class Work:
    """One pair of programs, its sizes, and the contestants that fit it.

    ``outputs``, ``hidden`` and ``latent`` are a network's; a chain has ``latent`` sites and nothing
    else. ``samples`` are draws of the score function at its site, ``particles`` those of the bound.
    ``learn`` is the number of steps after which the losses are compared.
    """

    name: str
    title: str
    kind: Kind
    outputs: int
    hidden: int
    latent: int
    batch: int
    contestants: tuple[str, ...]
    samples: int = 1
    particles: int = 1
    learn: int = 300

    @property
    def sites(self) -> int:
        """Latent sites."""
        return {"chain": self.latent, "mixture": 2}.get(self.kind, 1)

    @property
    def data(self) -> int:
        """Data points of one batch."""
        return SERIES if self.kind == "chain" else self.batch

    def batches(self) -> list[np.ndarray]:
        """Float32 ``[batch, outputs]``, binary around ten prototypes; a chain's ``[T, series]``."""
        generator = np.random.default_rng(1)
        if self.kind == "chain":
            shape = (BATCHES, self.latent, SERIES)
            return list(generator.normal(size=shape).astype(np.float32))
        probability = generator.beta(0.3, 0.3, (CLUSTERS, self.outputs))
        which = generator.integers(CLUSTERS, size=(BATCHES, self.batch))
        drawn = generator.random((BATCHES, self.batch, self.outputs)) < probability[which]
        return list(drawn.astype(np.float32))

    def weights(self) -> dict[str, np.ndarray]:
        """The first weights of model and guide, by torch's names and in its layout."""
        generator = np.random.default_rng(2)

        def linear(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
            bound = inputs**-0.5
            weight = generator.uniform(-bound, bound, (outputs, inputs))
            return {f"{name}.weight": weight, f"{name}.bias": np.zeros(outputs)}

        found: dict[str, np.ndarray]
        if self.kind == "chain":
            found = {"drift": np.zeros(()), "loc": np.zeros(self.latent)}
        elif self.kind == "bernoulli":
            top = {"top": np.zeros(self.hidden)}
            up = linear("up", self.outputs, self.hidden)
            found = top | up | linear("out", self.hidden, self.outputs)
        else:
            found = linear("decoder.0", self.latent, self.hidden)
            found |= linear("decoder.2", self.hidden, self.outputs)
            found |= linear("encoder.0", self.outputs, self.hidden)
            found |= linear("encoder.2", self.hidden, 2 * self.latent)
        if self.kind == "mixture":
            found |= linear("cluster", self.outputs, CLUSTERS)
            found |= {"weights": np.zeros(CLUSTERS)}
            found |= {"means": generator.normal(size=(CLUSTERS, self.latent))}
            found |= {"shift.weight": generator.normal(size=(CLUSTERS, 2 * self.latent))}
        return {name: value.astype(np.float32) for name, value in found.items()}


WORKS = (
    Work(
        name="small",
        title="VAE 64-64-8, batch 64",
        kind="vae",
        outputs=64,
        hidden=64,
        latent=8,
        batch=64,
        contestants=(*MODES, *PYRO, "by hand, eager", *HAND_COMPILED, "NumPyro", *LOSSES),
    ),
    Work(
        name="large",
        title="VAE 784-400-20, batch 128",
        kind="vae",
        outputs=784,
        hidden=400,
        latent=20,
        batch=128,
        contestants=(*MODES, *PYRO, "by hand, eager", *HAND_COMPILED, "NumPyro", *LOSSES),
    ),
    Work(
        name="wide",
        title="VAE 3072-4096-256, batch 4096",
        kind="vae",
        outputs=3072,
        hidden=4096,
        latent=256,
        batch=4096,
        contestants=(*MODES, *PYRO[1:], "by hand, eager", *HAND_COMPILED, "NumPyro"),
        learn=60,
    ),
    Work(
        name="mixture",
        title="mixture VAE 64-64-8, 10 clusters enumerated, batch 64",
        kind="mixture",
        outputs=64,
        hidden=64,
        latent=8,
        batch=64,
        contestants=(*MODES, *PYRO, *LOSSES),
    ),
    Work(
        name="score",
        title="784-200 Bernoulli, score function and leave-one-out, K = 8, batch 64",
        kind="bernoulli",
        outputs=784,
        hidden=200,
        latent=200,
        batch=64,
        contestants=(*MODES, *PYRO, "by hand, eager", *HAND_COMPILED, *LOSSES),
        samples=8,
    ),
    Work(
        name="sites",
        title="100 sequential Normal sites",
        kind="chain",
        outputs=0,
        hidden=0,
        latent=100,
        batch=0,
        contestants=(*MODES, *PYRO, *LOSSES),
        learn=60,
    ),
)
BY_NAME: Mapping[str, Work] = {work.name: work for work in WORKS}


def comparable(work: Work, contestant: str) -> bool:
    """Whether a contestant's loss has to agree: Pyro has no leave-one-out."""
    return not (contestant in LOSSES or (work.kind == "bernoulli" and contestant in PYRO))


@dataclass(frozen=True)
class Target:
    """A ratio to reach: the fastest of ``ours`` against the fastest of ``theirs``.

    One of ``faster`` (theirs / ours, at least) and ``at_most`` (ours / theirs).
    """

    work: str
    against: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    faster: float | None = None
    at_most: float = 1.0


HAND = ("by hand, eager",)
TARGETS = (
    Target("small", "Pyro SVI.step", COMPILED, PYRO[:1], faster=8.0),
    Target("small", "by hand, eager", COMPILED, HAND, faster=2.5),
    Target("small", "NumPyro", COMPILED, ("NumPyro",)),
    Target("large", "the best of them", COMPILED, (*HAND, *HAND_COMPILED, "NumPyro"), at_most=1.1),
    Target("mixture", "Pyro SVI.step, TraceEnum_ELBO", COMPILED, PYRO[:1], faster=5.0),
    Target("score", "torch.compile by hand", COMPILED, HAND_COMPILED, at_most=1.1),
    Target("sites", "Pyro SVI.step", COMPILED, PYRO[:1], faster=10.0),
    *(Target(w.name, "eager: Pyro SVI.step", MODES[:1], PYRO[:1]) for w in WORKS),
    *(Target(w.name, "eager: Pyro loss, fused Adam", MODES[:1], PYRO[1:]) for w in WORKS),
    *(Target(w.name, "eager: loss_and_grads alone", LOSSES[:1], LOSSES[1:]) for w in WORKS),
)
SECONDS_A_SITE = 0.15
"""What capturing a step may cost for each latent site."""
