"""Folded networks equal a loop over the extra left dims."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import amortized as am

LEFT = (3, 2, 5)


class Recurrent(nn.Module):
    """The last state of a GRU, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


class Attention(nn.Module):
    """Self-attention, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x, x, x, need_weights=False)[0]


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(1, 2, 3), (1, 6, 6)),
    "transposed": (nn.ConvTranspose2d(2, 1, 3), (2, 3, 3)),
    "flatten": (nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (2, 3)),
    "recurrent": (Recurrent(), (7, 4)),
    "attention": (Attention(), (7, 4)),
    "batch norm in eval": (nn.BatchNorm1d(4).eval(), (4,)),
    "one number a datum": (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), (4,)),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_equal_to_a_loop(name: str) -> None:
    network, event = NETWORKS[name]
    x = torch.randn(*LEFT, *event)
    together = am.Fold(network, event_dim=len(event))(x)
    alone = torch.stack([torch.stack([network(x[i, j]) for j in range(2)]) for i in range(3)])
    assert together.shape[:3] == LEFT
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [(), (5,), (1, 1, 5), (0,)])
def test_any_left_dims(left: tuple[int, ...]) -> None:
    assert am.Fold(nn.Conv1d(2, 3, 1), event_dim=2)(torch.randn(*left, 2, 7)).shape == (*left, 3, 7)


class Joined(nn.Module):
    """A decoder of an image and a code."""

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return torch.cat([image.flatten(1), code], -1)


def test_several_inputs_broadcast_over_their_left_dims() -> None:
    """The data have no copies, the code has."""
    image, code = torch.randn(5, 2, 3), torch.randn(4, 1, 5, 7)
    joined = am.Fold(Joined(), event_dim=(2, 1))(image, code)
    assert joined.shape == (4, 1, 5, 13)
    torch.testing.assert_close(joined[2, 0, 3], torch.cat([image[3].flatten(), code[2, 0, 3]]))


def test_gradients_and_parameters_pass_through() -> None:
    fold = am.Fold(nn.Linear(4, 1))
    x = torch.randn(3, 2, 4, requires_grad=True)
    fold(x).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert {n: p.grad is not None for n, p in fold.named_parameters()} == {
        "network.weight": True,
        "network.bias": True,
    }


def test_one_event_dim_for_each_input() -> None:
    with pytest.raises(am.UsageError, match=r"Fold.*event_dim"):
        am.Fold(Joined(), event_dim=(2, 1))(torch.randn(5, 2, 3))


def test_an_input_with_too_few_dims_is_explained() -> None:
    with pytest.raises(am.UsageError, match=r"Fold.*event_dim=3"):
        am.Fold(nn.Conv2d(1, 1, 1), event_dim=3)(torch.randn(4, 4))
