"""The VAE in NumPyro: ``svi.update`` under ``jax.jit``, its state donated, awaited at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO

from tests.benchmarks.peers.works import LR, Work

Step = Callable[[int], float]


def update(work: Work) -> Step:
    """One jitted update a step; the loss is read, which waits for it."""
    # weights lie as inputs x outputs, as in JAX's own layers
    first = {name: jnp.asarray(value.T) for name, value in work.weights().items()}
    data = [jnp.asarray(batch) for batch in work.batches()]

    def network(name: str, x: Any) -> jax.Array:
        def value(end: str) -> Any:
            return numpyro.param(f"{name}.{end}", first[f"{name}.{end}"])

        hidden = jnp.tanh(x @ value("0.weight") + value("0.bias"))
        return hidden @ value("2.weight") + value("2.bias")

    def model(x: jax.Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(work.latent), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=network("decoder", z)).to_event(1)
            numpyro.sample("x", pixels, obs=x)

    def guide(x: jax.Array) -> None:
        loc, raw = jnp.split(network("encoder", x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw)).to_event(1))

    bound = Trace_ELBO(num_particles=work.particles)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), bound)
    state = svi.init(jax.random.PRNGKey(0), data[0])
    jitted = jax.jit(svi.update, donate_argnums=0)

    def step(i: int) -> float:
        nonlocal state
        state, loss = jitted(state, data[i % len(data)])
        return float(loss.block_until_ready()) / work.data

    return step
