"""The same steps written by hand in PyTorch, as somebody would who has the time: no Pyro.

One reparameterized draw, whose noise gives log q its closed form; BCE with logits; fused Adam. The
compiled ones in three ways: the loss alone, as the tutorials have it; loss and gradient as one
graph; and Adam in the same graph. ``mode="max-autotune-no-cudagraphs"`` gained nothing on a CPU in
any of them, and is left out; so is ``torch.compile`` around ``backward`` and ``optimizer.step``,
which run eagerly between its graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

from tests.benchmarks.peers.works import LR, Work

Step = Callable[[int], float]
Weights = dict[str, Tensor]
Loss = Callable[[Weights, Tensor], tuple[Tensor, Tensor]]
"""What is differentiated, and the loss per data point without a gradient."""


def network(name: str, w: Weights, x: Tensor) -> Tensor:
    hidden = torch.tanh(linear(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"]))
    return linear(hidden, w[f"{name}.2.weight"], w[f"{name}.2.bias"])


def vae(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """The bound with one reparameterized draw."""
    loc, raw = network("encoder", w, x).chunk(2, -1)
    scale = softplus(raw)
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    missing = binary_cross_entropy_with_logits(network("decoder", w, z), x, reduction="sum")
    kl = (0.5 * (z * z - noise * noise) - scale.log()).sum()
    loss = (missing + kl) / len(x)
    return loss, loss.detach()


def leave_one_out(samples: int) -> Loss:
    """The score function of one layer of Bernoullis, K draws, each the others' baseline."""

    def loss(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(x, w["up.weight"], w["up.bias"])
        with torch.no_grad():
            uniform = torch.rand(samples, *logits.shape, device=logits.device)
            b = (uniform < torch.sigmoid(logits)).float()
        log_q = (b * logits).sum(-1) - softplus(logits).sum(-1)
        log_prior = (b * w["top"]).sum(-1) - softplus(w["top"]).sum()
        pixels = linear(b, w["out.weight"], w["out.bias"])
        missing = binary_cross_entropy_with_logits(pixels, x.expand_as(pixels), reduction="none")
        energy = missing.sum(-1) - log_prior
        cost = (energy + log_q).detach()
        signal = (cost - cost.mean(0)) * (samples / (samples - 1))
        return (signal * log_q + energy).mean(), cost.mean()

    return loss


def setting(work: Work) -> tuple[Loss, list[Tensor], Weights]:
    loss = vae if work.kind == "vae" else leave_one_out(work.samples)
    data = [torch.from_numpy(batch) for batch in work.batches()]
    weights = {name: torch.from_numpy(value) for name, value in work.weights().items()}
    device = device_asked()
    data = [batch.to(device) for batch in data]
    return loss, data, {name: value.to(device) for name, value in weights.items()}


def device_asked() -> torch.device:
    """Where all contestants compute."""
    return torch.device(os.environ.get("BENCHMARK_DEVICE", "cpu"))


def eager(work: Work, compiled: bool = False) -> Step:
    """Loss, backward, fused Adam; with ``compiled`` the loss is compiled by torch."""
    loss, data, weights = setting(work)
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=LR, fused=True)
    run = torch.compile(loss, fullgraph=True) if compiled else loss

    def step(i: int) -> float:
        optimizer.zero_grad()
        surrogate, value = run(weights, data[i % len(data)])
        surrogate.backward()
        optimizer.step()
        return value.item()

    return step


def compiled_gradient(work: Work, mode: str | None = None) -> Step:
    """Loss and gradient as one compiled graph, then fused Adam."""
    loss, data, weights = setting(work)
    optimizer = torch.optim.Adam(weights.values(), lr=LR, fused=True)
    run = torch.compile(torch.func.grad(loss, has_aux=True), fullgraph=True, mode=mode)

    def step(i: int) -> float:
        gradients, value = run(weights, data[i % len(data)])
        for name, weight in weights.items():
            weight.grad = gradients[name]
        optimizer.step()
        return value.item()

    return step


def compiled_whole(work: Work) -> Step:
    """Loss, gradient and Adam as one compiled graph."""
    loss, data, weights = setting(work)
    mean, square = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    steps = torch.zeros((), device=data[0].device)

    @torch.compile(fullgraph=True)
    def run(w: Weights, m: Weights, v: Weights, t: Tensor, x: Tensor) -> Tensor:
        gradients, value = torch.func.grad(loss, has_aux=True)(w, x)
        t.add_(1)
        rate, root = LR / (1 - 0.9**t), (1 - 0.999**t).sqrt()
        for name, gradient in gradients.items():
            m[name].lerp_(gradient, 0.1)
            v[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            w[name].sub_(rate * m[name] / (v[name].sqrt() / root + 1e-8))
        return value

    return lambda i: run(weights, mean, square, steps, data[i % len(data)]).item()
