"""Where costs have been: an offset and a unit for what a network predicts of them."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import MutableMapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from amortized.errors import UsageError

_SLOWEST: Final = 0.1
"""The part of a running moment that a step replaces, once there were ten steps."""


class Running(nn.Module, ABC):
    """A module with the running mean and mean square of past costs, used before they are updated.

    The mean of all costs at first, and from the tenth step on an exponential moving average: a
    level of hundreds of nats is known after one step. A ``rate`` of 0 holds both where they are.
    """

    mean: Tensor
    square: Tensor
    rate: Tensor

    def make_running(self) -> None:
        """Makes the state; called once, in ``__init__``."""
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("square", torch.ones(()))
        self.register_buffer("rate", torch.ones(()))

    def spread(self) -> Tensor:
        """The standard deviation of past costs; 1 before there are any."""
        return (self.square - self.mean**2).clamp(min=1e-6).sqrt()

    @torch.no_grad()
    def follow(self, cost: Tensor) -> None:
        """Moves the moments towards those of new costs, in place."""
        cost = cost.to(self.mean)
        now = torch.stack([cost.mean(), (cost**2).mean()])
        # one impossible event must not spoil every later gradient
        possible = now.isfinite().all()
        rate = torch.where(possible, self.rate, torch.zeros_like(self.rate))
        now = torch.where(possible, now, torch.zeros_like(now))
        self.mean.add_(rate * (now[0] - self.mean))
        self.square.add_(rate * (now[1] - self.square))
        slower = (rate / (1.0 + rate)).clamp(min=_SLOWEST)
        self.rate.copy_(torch.where(rate > 0, slower, self.rate))


def complete(state: MutableMapping[str, Any]) -> None:
    """Adds, in place, what the state of an older network lacks: it works as it did then.

    A baseline was all that its network said, with no offset, and keeps to that; RELAX's moments
    were exponential averages from the first step on.
    """
    for name in [name for name in state if isinstance(name, str)]:
        own = re.fullmatch(r"(.*by_site\..*\bbaseline\.)network\..*", name)
        if own is not None and f"{own[1]}rate" not in state:
            value = state[name]
            numbers = {"mean": 0.0, "square": 1.0, "rate": 0.0}
            state.update({f"{own[1]}{key}": value.new_full((), n) for key, n in numbers.items()})
        relax = re.fullmatch(r"(.*by_site\..*\.)log_temperature", name)
        if relax is not None and f"{relax[1]}square" in state:
            state.setdefault(f"{relax[1]}rate", state[name].new_full((), _SLOWEST))


def network_or_default(name: str, network: nn.Module | None, hidden: int) -> nn.Module:
    """The network that was given, or one with a hidden layer.

    Raises:
        UsageError: no module, or no width.
    """
    if network is not None and not isinstance(network, nn.Module):
        raise UsageError(f"{name}({network!r}): expected a torch.nn.Module, or None")
    if type(hidden) is not int or hidden < 1:
        raise UsageError(f"{name}(hidden={hidden!r}): expected an int, at least 1")
    if network is not None:
        return network
    return nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))


def applied(network: nn.Module, features: Tensor) -> Tensor:
    """What a network says of ``[..., features]``, shape ``[...]``, in the dtype of the features.

    The network keeps its own dtype: programs and losses may be moved one without the other.
    """
    own = next(network.parameters(), None)
    if own is None or own.dtype == features.dtype:
        return network(features).squeeze(-1)
    return network(features.to(own.dtype)).squeeze(-1).to(features.dtype)
