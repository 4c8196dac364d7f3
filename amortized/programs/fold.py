"""Networks that cannot take extra left dims, made to."""

from __future__ import annotations

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from amortized.errors import UsageError


class Fold(nn.Module):
    """A network behind a folded batch: extra left dims become batch, and come back afterwards.

    Convolutions, recurrent and attention layers expect exactly one batch dim; private axes and
    particles add more on the left. ``Fold(network, event_dim)`` reshapes every input
    ``[*left, *event]`` to ``[prod(left), *event]``, calls the network, and unfolds the output.

    Args:
        network: takes inputs with one batch dim first, returns a tensor with that batch dim first.
        event_dim: dims on the right of each input that belong to one datum (1 for vectors, 3 for
            images ``[channels, height, width]``); one int for all inputs, or one per input.

    Shapes: inputs ``[*left, *event]``, their ``left`` broadcast together; output
    ``[*left, *rest]``.

    Raises:
        UsageError: an input has fewer dims than its event, or ``event_dim`` fits other inputs.

    >>> decode = Fold(nn.Conv2d(1, 4, 3), event_dim=3)
    >>> decode(torch.zeros(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 6, 6])
    """

    def __init__(self, network: nn.Module, event_dim: int | tuple[int, ...] = 1) -> None:
        super().__init__()
        self.network = network
        self.event_dim = event_dim

    def forward(self, *inputs: Tensor) -> Tensor:
        """Fold, apply, unfold."""
        events = self._event_dims(inputs)
        shapes = (x.shape[: x.dim() - e] for x, e in zip(inputs, events, strict=True))
        left = torch.Size(broadcast_shape(*shapes))
        folded = []
        for x, e in zip(inputs, events, strict=True):
            event = x.shape[x.dim() - e :]
            folded.append(x.expand((*left, *event)).reshape(left.numel(), *event))
        output = self.network(*folded)
        return output.reshape(*left, *output.shape[1:])

    def _event_dims(self, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        dims = self.event_dim
        events = (dims,) * len(inputs) if isinstance(dims, int) else dims
        shapes = [tuple(x.shape) for x in inputs]
        if len(events) != len(inputs) or any(
            x.dim() < e for x, e in zip(inputs, events, strict=False)
        ):
            raise UsageError(
                f"Fold({type(self.network).__name__}, event_dim={dims}) got inputs of shapes "
                f"{shapes}: expected one event_dim for each input, and no more dims than it has"
            )
        return events
