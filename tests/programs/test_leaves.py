from __future__ import annotations

import torch
from torch import Tensor

from amortized.programs.leaves import leaves_under


def leaf(value: float = 1.0) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def test_leaves_under_a_tensor() -> None:
    a, b, c = leaf(), leaf(), leaf()
    value = (a * 2).exp() + b.detach() + c.sum()
    assert set(leaves_under(value)) == {id(a), id(c)}
    assert leaves_under(torch.tensor(1.0)) == {} == leaves_under(None)
