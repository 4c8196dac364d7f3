"""Estimators of one layer of bits by hand in PyTorch: no Pyro, and nothing of this package.

The network of ``examples/sigmoid_belief_network.py``: logits = layers.0(2 x - 1 - center), bits b,
pixels(2 b - 1). An estimator is a function of the weights, its state and a batch ``[B, pixels]``;
it returns what is to be minimized, and (the bound, the next state). Tensors have the names that
they have in the package, so that weights and states can be handed over.

What somebody writes who has the time: every noise once, relaxed copies without a graph, and the
slope of the cost in closed form, which in this network is one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

Tensors = dict[str, Tensor]
Answer = tuple[Tensor, tuple[Tensor, Tensors]]
Loss = Callable[[Tensors, Tensors, Tensor], Answer]
HIDDEN = 64
TEMPERATURE = 0.5
SLOWEST = 0.1


def encoded(w: Tensors, state: Tensors, x: Tensor) -> Tensor:
    """Logits of the bits, ``[B, width]``."""
    return linear(2 * x - 1 - state["center"], w["layers.0.weight"], w["layers.0.bias"])


def log_joint(w: Tensors, b: Tensor, x: Tensor) -> Tensor:
    """log p(x, b), linear in b under the prior, ``[..., B]``."""
    return log_likelihood(w, b, x) + log_bits(w["prior"], b)


def log_likelihood(w: Tensors, b: Tensor, x: Tensor) -> Tensor:
    pixels = linear(2 * b - 1, w["pixels.weight"], w["pixels.bias"])
    target = x.expand_as(pixels)
    return -binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)


def log_bits(logits: Tensor, b: Tensor) -> Tensor:
    return (b * logits - softplus(logits)).sum(-1)


def drawn(logits: Tensor, copies: tuple[int, ...] = ()) -> Tensor:
    """Bits, without a gradient."""
    with torch.no_grad():
        return (torch.rand(*copies, *logits.shape) < torch.sigmoid(logits)).float()


def uniform(like: Tensor) -> Tensor:
    limits = torch.finfo(like.dtype)
    return torch.rand_like(like).clamp(limits.tiny, 1 - limits.eps / 2)


@torch.no_grad()
def expanded(w: Tensors, logits: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cost log p(x, b) - log q(b | x) where b need not be hard, and its derivative in b."""
    pixels = linear(2 * b - 1, w["pixels.weight"], w["pixels.bias"])
    target = x.expand_as(pixels)
    fit = -binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)
    cost = fit + log_bits(w["prior"], b) - log_bits(logits, b)
    slope = 2 * (target - torch.sigmoid(pixels)) @ w["pixels.weight"] + w["prior"] - logits
    return cost, slope


def leave_one_out(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """The score function, two draws, each the other's baseline."""
    logits = encoded(w, state, x)
    b = drawn(logits, (2,))
    joint, log_q = log_joint(w, b, x), log_bits(logits, b)
    cost = (joint - log_q).detach()
    return -((cost - cost.flip(0)) * log_q + joint).mean(), (cost.mean(), {})


def nvil(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """The score function with a network's prediction as baseline."""
    logits = encoded(w, state, x)
    b = drawn(logits)
    joint, log_q = log_joint(w, b, x), log_bits(logits, b)
    cost = (joint - log_q).detach()
    found, spread = (
        network(w, "baseline.network", logits.detach())[1],
        spread_of(state, "baseline."),
    )
    missed = cost - state["baseline.mean"] - spread * found
    owed = (missed / spread) ** 2 - missed.detach() * log_q - joint
    return owed.mean(), (cost.mean(), moved(state, cost, "baseline."))


def spread_of(state: Tensors, name: str = "") -> Tensor:
    """The standard deviation of past costs."""
    return (state[f"{name}square"] - state[f"{name}mean"] ** 2).clamp(min=1e-6).sqrt()


@torch.no_grad()
def moved(state: Tensors, cost: Tensor, name: str = "") -> Tensors:
    """The running moments after one more batch of costs."""
    rate, now = state[f"{name}rate"], {"mean": cost.mean(), "square": (cost**2).mean()}
    found = {f"{name}{key}": state[f"{name}{key}"].lerp(m, rate) for key, m in now.items()}
    return found | {f"{name}rate": (rate / (1 + rate)).clamp(min=SLOWEST)}


def pair(w: Tensors, state: Tensors, x: Tensor, *, arm: bool) -> Answer:
    """ARM and DisARM: an antithetic pair."""
    logits = encoded(w, state, x)
    with torch.no_grad():
        u, p = torch.rand_like(logits), torch.sigmoid(logits)
        b = torch.stack([u < p, 1 - u < p]).float()
        cut = 1 - 2 * u if arm else (b[0] - b[1]) * torch.sigmoid(logits.abs())
    joint = log_joint(w, b, x)
    with torch.no_grad():
        cost = joint - log_bits(logits, b)
        half = 0.5 * (cost[0] - cost[1])
    return -(joint.mean() + (half.unsqueeze(-1) * cut * logits).sum(-1).mean()), (cost.mean(), {})


def arm(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    return pair(w, state, x, arm=True)


def disarm(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    return pair(w, state, x, arm=False)


class Conditioned(NamedTuple):
    """A hard bit, its score, the noise, the noise drawn given the bit, and how that one moves."""

    hard: Tensor
    score: Tensor
    noise: Tensor
    """``[2, B, width]``: free, and given the bit."""
    turn: Tensor
    """The derivative in the logits of the second; that of the first is 1."""


@torch.no_grad()
def conditioned(logits: Tensor) -> Conditioned:
    u, v = uniform(logits), uniform(logits)
    free = logits + u.log() - torch.log1p(-u)
    one = free > 0
    above, below = logits + v.log(), torch.log1p(-v) - logits
    given = torch.where(one, softplus(above) - torch.log1p(-v), v.log() - softplus(below))
    hard = one.float()
    turn = torch.sigmoid(torch.where(one, above, below))
    return Conditioned(hard, hard - torch.sigmoid(logits), torch.stack([free, given]), turn)


@torch.no_grad()
def relaxed_model(
    w: Tensors, logits: Tensor, x: Tensor, found: Conditioned
) -> tuple[Tensor, Tensor]:
    """What REBAR's scale multiplies, the cost at relaxed values as a control variate; its level."""
    y = torch.sigmoid(found.noise / TEMPERATURE)
    cost, slope = expanded(w, logits, y, x)
    slope = slope * y * (1 - y) / TEMPERATURE
    return cost[1].unsqueeze(-1) * found.score - slope[0] + slope[1] * found.turn, cost[1]


def rebar(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """Untied, at a fixed temperature, its scale trained on the variance."""
    logits = encoded(w, state, x)
    found = conditioned(logits)
    joint = log_joint(w, found.hard, x)
    cost = (joint - log_bits(logits, found.hard)).detach()
    control, _ = relaxed_model(w, logits, x, found)
    gradient = cost.unsqueeze(-1) * found.score - w["scale"] * control
    owed = joint + (gradient.detach() * logits - gradient**2).sum(-1)
    return -owed.mean(), (cost.mean(), {})


def relax(w: Tensors, state: Tensors, x: Tensor, *, model: bool = True) -> Answer:
    """A network as control variate, and REBAR's too; all trained on the variance."""
    logits = encoded(w, state, x)
    found = conditioned(logits)
    joint = log_joint(w, found.hard, x)
    cost = (joint - log_bits(logits, found.hard)).detach()
    warmth = w["log_temperature"].exp()
    y = torch.sigmoid(found.noise / warmth)
    features = torch.cat([logits.detach().expand_as(y), y], -1)
    hidden, value = network(w, "network", features)
    bits = w["network.0.weight"][:, logits.shape[-1] :]
    slope = ((1 - hidden**2) * w["network.2.weight"]) @ bits
    spread = spread_of(state)
    value, slope = state["mean"] + spread * value, spread * slope * y * (1 - y) / warmth
    control = value[1].unsqueeze(-1) * found.score - slope[0] + slope[1] * found.turn
    left = cost
    if model:
        more, level = relaxed_model(w, logits, x, found)
        control, left = control + w["rebar.scale"] * more, cost - w["rebar.scale"].detach() * level
    gradient = cost.unsqueeze(-1) * found.score - control
    owed = joint + (gradient.detach() * logits - gradient**2).sum(-1)
    return -owed.mean(), (cost.mean(), moved(state, left))


def relax_network(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """The network alone."""
    return relax(w, state, x, model=False)


def network(w: Tensors, name: str, u: Tensor) -> tuple[Tensor, Tensor]:
    """A hidden layer, and the output."""
    hidden = torch.tanh(linear(u, w[f"{name}.0.weight"], w[f"{name}.0.bias"]))
    return hidden, linear(hidden, w[f"{name}.2.weight"], w[f"{name}.2.bias"]).squeeze(-1)


def muprop(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """The expansion of the cost at the mean is taken out."""
    logits = encoded(w, state, x)
    b = drawn(logits)
    joint = log_joint(w, b, x)
    with torch.no_grad():
        p = torch.sigmoid(logits)
        cost = joint - log_bits(logits, b)
        at_mean, slope = expanded(w, logits, p, x)
        left = cost - at_mean - (slope * (b - p)).sum(-1) - state["mean"]
        gradient = left.unsqueeze(-1) * (b - p) + slope * p * (1 - p)
    owed = joint + (gradient * logits).sum(-1)
    return -owed.mean(), (cost.mean(), moved(state, cost - at_mean))


def concrete(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    """Relaxed bits in the likelihood, and the KL of the bits in closed form."""
    logits = encoded(w, state, x)
    u = uniform(logits)
    y = torch.sigmoid((logits + u.log() - torch.log1p(-u)) / TEMPERATURE)
    p, prior = torch.sigmoid(logits), w["prior"]
    kl = (p * (logits - prior) - softplus(logits) + softplus(prior)).sum(-1)
    bound = (log_likelihood(w, y, x) - kl).mean()
    return -bound, (bound.detach(), {})


def through(w: Tensors, state: Tensors, x: Tensor, *, kind: str) -> Answer:
    """Hard bits, with the gradient of something smooth; log q with its parameters held."""
    logits = encoded(w, state, x)
    b = drawn(logits)
    if kind == "plain":
        smooth = torch.sigmoid(logits)
    else:
        smooth = 0.5 * torch.sigmoid(logits.detach() * (1 - 2 * b)) * logits
    b = b + (smooth - smooth.detach())
    bound = (log_joint(w, b, x) - log_bits(logits.detach(), b)).mean()
    return -bound, (bound.detach(), {})


def straight_through(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    return through(w, state, x, kind="plain")


def reinmax(w: Tensors, state: Tensors, x: Tensor) -> Answer:
    return through(w, state, x, kind="reinmax")


LOSSES: Mapping[str, Loss] = {
    loss.__name__: loss
    for loss in (
        *(leave_one_out, nvil, arm, disarm, rebar, relax, relax_network, muprop, concrete),
        *(straight_through, reinmax),
    )
}


def own(name: str, width: int) -> tuple[Tensors, Tensors]:
    """Parameters and state of an estimator itself."""
    if name == "rebar":
        return {"scale": torch.tensor(1.0)}, {}
    if name == "nvil":
        return _network("baseline.network", width), _moments("baseline.")
    if name == "muprop":
        return {}, _moments()
    if name not in ("relax", "relax_network"):
        return {}, {}
    found = _network("network", 2 * width)
    found["log_temperature"] = torch.tensor(TEMPERATURE).log()
    if name == "relax":
        found["rebar.scale"] = torch.tensor(1.0)
    return found, _moments()


def _moments(name: str = "") -> Tensors:
    values = {"mean": torch.zeros(()), "square": torch.ones(()), "rate": torch.ones(())}
    return {f"{name}{key}": value for key, value in values.items()}


def _network(name: str, inputs: int) -> Tensors:
    made = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    return {f"{name}.{key}": value.detach() for key, value in made.state_dict().items()}


class Setting(NamedTuple):
    """What a training by hand is made of; its tensors are changed in place."""

    loss: Loss
    weights: Tensors
    state: Tensors
    data: list[Tensor]
    lr: float


def eager(setting: Setting, compiled: bool = False) -> Callable[[int], float]:
    """Loss, backward, fused Adam; with ``compiled`` torch compiles the loss."""
    loss, weights, state, data, lr = setting
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=lr, fused=True)
    run = torch.compile(loss, fullgraph=True) if compiled else loss

    def step(i: int) -> float:
        optimizer.zero_grad()
        surrogate, (bound, moved) = run(weights, state, data[i % len(data)])
        surrogate.backward()
        optimizer.step()
        for name, value in moved.items():
            state[name].copy_(value)
        return -bound.item()

    return step


def compiled_whole(setting: Setting) -> Callable[[int], float]:
    """Loss, gradient and Adam as one compiled graph."""
    loss, weights, state, data, lr = setting
    mean, square = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    steps = torch.zeros(())

    @torch.compile(fullgraph=True)
    def run(w: Tensors, s: Tensors, m: Tensors, v: Tensors, t: Tensor, x: Tensor) -> Tensor:
        gradients, (bound, moved) = torch.func.grad(loss, has_aux=True)(w, s, x)
        t.add_(1)
        rate, root = lr / (1 - 0.9**t), (1 - 0.999**t).sqrt()
        for name, gradient in gradients.items():
            m[name].lerp_(gradient, 0.1)
            v[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            w[name].sub_(rate * m[name] / (v[name].sqrt() / root + 1e-8))
        for name, value in moved.items():
            s[name].copy_(value)
        return bound

    return lambda i: -run(weights, state, mean, square, steps, data[i % len(data)]).item()
