"""Programs with sites that are summed out in the model, each also with the sums written by hand.

Parameters are ``pyro.param`` in the global store. The latents of the guide are Normal or Bernoulli
by ``kind``. By hand, a latent's prior is a factor, so that values that an estimator relaxes are
taken alike in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from tests.laws.structures import DATA, ROWS, law_of, weight

Program = Callable[[], object]
STEPS = torch.tensor([[0.3, -1.2], [0.8, 1.7], [0.1, -0.4]], dtype=torch.float64)
PARALLEL = {"enumerate": "parallel"}


@dataclass(frozen=True)
class Marginal:
    """A model, the same with its sums by hand, and a guide."""

    model: Program
    by_hand: Program
    guide: Program
    latents: tuple[str, ...] = ("z",)


def table() -> tuple[Tensor, Tensor]:
    """Logits of three categories, and what each says."""
    return weight("w", [0.3, -0.5, 0.1]), weight("m", [-1.0, 0.4, 1.5])


def transitions() -> Tensor:
    """Logits of three categories after each of three."""
    return weight("t", [[0.4, -0.3, 0.2], [-0.6, 0.5, 0.1], [0.3, 0.2, -0.7]])


def log_normal(x: Tensor, mean: Tensor) -> Tensor:
    """log N(x; mean, 1)."""
    return dist.Normal(mean, 1.0).log_prob(x)


def log_of(kind: str, z: Tensor, loc: Tensor) -> Tensor:
    """The log-probability of a latent under `law_of`, linear in a bit."""
    if kind == "normal":
        return law_of(kind)(loc).log_prob(z)
    return z * loc - torch.nn.functional.softplus(loc)


def free(name: str, kind: str, like: Tensor) -> Tensor:
    """A latent whose prior is written as a factor."""
    return pyro.sample(name, law_of(kind)(torch.zeros_like(like)).mask(False))


def summed(parts: list[Tensor]) -> Tensor:
    """The logarithm of a sum."""
    return torch.stack(torch.broadcast_tensors(*parts)).logsumexp(0)


def _per_datum(kind: str) -> Program:
    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law_of(kind)(weight("a", 0.4) * DATA))

    return guide


def child(kind: str) -> Marginal:
    """z -> c -> x, and z -> x: a mixture of likelihoods."""

    def model() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            z = pyro.sample("z", law_of(kind)(weight("b", -0.3).expand(2)))
            logits = w + weight("u", [0.5, -0.2, 0.9]) * z.unsqueeze(-1)
            c = pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c] + 0.6 * z, 1.0), obs=DATA)

    def by_hand() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            z = free("z", kind, DATA)
            pyro.factor("prior", log_of(kind, z, weight("b", -0.3)))
            logits = (w + weight("u", [0.5, -0.2, 0.9]) * z.unsqueeze(-1)).log_softmax(-1)
            every = [logits[..., k] + log_normal(DATA, m[k] + 0.6 * z) for k in range(3)]
            pyro.factor("x", summed(every))

    return Marginal(model, by_hand, _per_datum(kind))


def parent(kind: str) -> Marginal:
    """c -> z -> x: the prior is a mixture."""

    def model() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Categorical(logits=w), infer=PARALLEL)
            z = pyro.sample("z", law_of(kind)(m[c]))
            pyro.sample("x", dist.Normal(z * weight("v", 0.7), 1.0), obs=DATA)

    def by_hand() -> None:
        w, m = table()
        logits = w.log_softmax(-1)
        with pyro.plate("data", 2):
            z = free("z", kind, DATA)
            pyro.factor("prior", summed([logits[k] + log_of(kind, z, m[k]) for k in range(3)]))
            pyro.sample("x", dist.Normal(z * weight("v", 0.7), 1.0), obs=DATA)

    return Marginal(model, by_hand, _per_datum(kind))


def both(kind: str) -> Marginal:
    """c -> z, and both -> x: prior and likelihood share the sum."""

    def model() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Categorical(logits=w), infer={"enumerate": "sequential"})
            z = pyro.sample("z", law_of(kind)(m[c]))
            pyro.sample("x", dist.Normal(z * weight("v", 0.7) - m[c], 1.0), obs=DATA)

    def by_hand() -> None:
        w, m = table()
        logits = w.log_softmax(-1)
        with pyro.plate("data", 2):
            z = free("z", kind, DATA)
            mean = z * weight("v", 0.7)
            every = [
                logits[k] + log_of(kind, z, m[k]) + log_normal(DATA, mean - m[k]) for k in range(3)
            ]
            pyro.factor("x", summed(every))

    return Marginal(model, by_hand, _per_datum(kind))


def two_latents(kind: str) -> Marginal:
    """c -> z, c -> y, all three -> x; the guide runs z -> y."""

    def model() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Categorical(logits=w), infer=PARALLEL)
            y = pyro.sample("y", law_of(kind)(m[c] * weight("g", 0.5)))
            z = pyro.sample("z", law_of(kind)(m[c] + 0.3 * y))
            pyro.sample("x", dist.Normal(z * weight("v", 0.7) + y - m[c], 1.0), obs=DATA)

    def by_hand() -> None:
        w, m = table()
        logits, g, v = w.log_softmax(-1), weight("g", 0.5), weight("v", 0.7)
        with pyro.plate("data", 2):
            y, z = free("y", kind, DATA), free("z", kind, DATA)
            every = [
                logits[k]
                + log_of(kind, y, m[k] * g)
                + log_of(kind, z, m[k] + 0.3 * y)
                + log_normal(DATA, z * v + y - m[k])
                for k in range(3)
            ]
            pyro.factor("x", summed(every))

    def guide() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law_of(kind)(weight("a", 0.4) * DATA))
            pyro.sample("y", law_of(kind)(weight("e", 0.3) * z))

    return Marginal(model, by_hand, guide, ("z", "y"))


def hidden_states(kind: str) -> Marginal:
    """A hidden Markov model a datum, whose transitions depend on a latent of the guide."""

    def model() -> None:
        w, m = table()
        t = transitions()
        with pyro.plate("data", 2):
            z = pyro.sample("z", law_of(kind)(weight("b", -0.3).expand(2)))
            logits = w
            for step in pyro.markov(range(3)):
                law = dist.Categorical(logits=logits)
                s = pyro.sample(f"s{step}", law, infer=PARALLEL)
                pyro.sample(f"x{step}", dist.Normal(m[s], 1.0), obs=STEPS[step])
                logits = t[s] + z.unsqueeze(-1) * w

    def by_hand() -> None:
        w, m = table()
        with pyro.plate("data", 2):
            z = free("z", kind, DATA)
            pyro.factor("prior", log_of(kind, z, weight("b", -0.3)))
            logits = (transitions() + z[..., None, None] * w).log_softmax(-1)
            every = []
            for path in product(range(3), repeat=3):
                log_p = w.log_softmax(-1)[path[0]]
                log_p = log_p + logits[..., path[0], path[1]] + logits[..., path[1], path[2]]
                for step, state in enumerate(path):
                    log_p = log_p + log_normal(STEPS[step], m[state])
                every.append(log_p)
            pyro.factor("x", summed(every))

    return Marginal(model, by_hand, _per_datum(kind))


def switching(kind: str) -> Marginal:
    """A chain of latents of the guide whose steps are chosen by a chain of summed-out states."""

    def model() -> None:
        w, m = table()
        t, logits, z = transitions(), w, torch.zeros(2)
        with pyro.plate("data", 2):
            for step in pyro.markov(range(2)):
                s = pyro.sample(f"s{step}", dist.Categorical(logits=logits), infer=PARALLEL)
                z = pyro.sample(f"z{step}", law_of(kind)(m[s] + 0.5 * z))
                pyro.sample(f"x{step}", dist.Normal(z * weight("v", 0.7) + s, 1.0), obs=STEPS[step])
                logits = t[s]

    def by_hand() -> None:
        w, m = table()
        first, then, v = w.log_softmax(-1), transitions().log_softmax(-1), weight("v", 0.7)
        with pyro.plate("data", 2):
            z0, z1 = free("z0", kind, DATA), free("z1", kind, DATA)
            every = [
                first[i]
                + then[i, j]
                + log_of(kind, z0, m[i])
                + log_of(kind, z1, m[j] + 0.5 * z0)
                + log_normal(STEPS[0], z0 * v + i)
                + log_normal(STEPS[1], z1 * v + j)
                for i, j in product(range(3), repeat=2)
            ]
            pyro.factor("x", summed(every))

    def guide() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z0", law_of(kind)(weight("a", 0.4) * STEPS[0]))
            pyro.sample("z1", law_of(kind)(weight("e", 0.3) * z))

    return Marginal(model, by_hand, guide, ("z0", "z1"))


def nested(kind: str) -> Marginal:
    """A class a row and a type an entry, in nested plates; the latent is the row's."""

    def model() -> None:
        w, m = table()
        with pyro.plate("rows", 2, dim=-2):
            z = pyro.sample("z", law_of(kind)(weight("b", -0.3).expand(2, 1)))
            logits = w + z.unsqueeze(-1) * w.flip(-1)
            c = pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)
            with pyro.plate("columns", 3, dim=-1):
                d = pyro.sample("d", dist.Bernoulli(logits=m[c]), infer=PARALLEL)
                pyro.sample("x", dist.Normal(d * weight("v", 0.7) + z * c, 1.0), obs=ROWS)

    def by_hand() -> None:
        w, m = table()
        v = weight("v", 0.7)
        with pyro.plate("rows", 2, dim=-2):
            z = free("z", kind, torch.zeros(2, 1))
            pyro.factor("prior", log_of(kind, z, weight("b", -0.3)))
            logits = (w + z.unsqueeze(-1) * w.flip(-1)).log_softmax(-1)
            every = []
            for k in range(3):
                entry = [
                    log_of("bernoulli", torch.tensor(float(bit)), m[k])
                    + log_normal(ROWS, bit * v + z * k)
                    for bit in range(2)
                ]
                every.append(logits[..., k] + summed(entry).sum(-1, keepdim=True))
            pyro.factor("x", summed(every))

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", law_of(kind)(weight("a", 0.4) * ROWS.sum(-1, keepdim=True)))

    return Marginal(model, by_hand, guide)


def outside(kind: str) -> Marginal:
    """One class for all data, on which every latent depends."""

    def model() -> None:
        w, m = table()
        c = pyro.sample("c", dist.Categorical(logits=w), infer=PARALLEL)
        with pyro.plate("data", 2):
            z = pyro.sample("z", law_of(kind)(m[c] + torch.zeros(2)))
            pyro.sample("x", dist.Normal(z * weight("v", 0.7), 1.0), obs=DATA)

    def by_hand() -> None:
        w, m = table()
        logits = w.log_softmax(-1)
        with pyro.plate("data", 2):
            z = free("z", kind, DATA)
            pyro.sample("x", dist.Normal(z * weight("v", 0.7), 1.0), obs=DATA)
        every = [logits[k] + log_of(kind, z, m[k]).sum(-1, keepdim=True) for k in range(3)]
        pyro.factor("prior", summed(every).squeeze(-1).unsqueeze(-1))

    return Marginal(model, by_hand, _per_datum(kind))


def masked(kind: str) -> Marginal:
    """`both`, of whose two data one is masked."""
    seen = torch.tensor([True, False])

    def under(program: Program) -> Program:
        return lambda: poutine.mask(program, mask=seen)()

    pair = both(kind)

    def by_hand() -> None:
        # what is masked has neither latent nor observation: its class is summed to one
        poutine.mask(pair.by_hand, mask=seen)()

    return Marginal(under(pair.model), by_hand, under(pair.guide))


def scaled(kind: str) -> Marginal:
    """`both`, three times: the scale stands outside the logarithm."""

    def thrice(program: Program) -> Program:
        return lambda: poutine.scale(program, scale=3.0)()

    pair = both(kind)
    return Marginal(thrice(pair.model), thrice(pair.by_hand), thrice(pair.guide))


EVERY = {
    f.__name__: f
    for f in (
        child,
        parent,
        both,
        two_latents,
        hidden_states,
        switching,
        nested,
        outside,
        masked,
        scaled,
    )
}
