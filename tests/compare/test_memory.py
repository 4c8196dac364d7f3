from __future__ import annotations

import torch

from amortized.compare.memory import peak_bytes

MB = 4 * 250_000


def test_what_is_freed_does_not_count():
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.zeros(250_000)

    def at_the_same_time() -> list[torch.Tensor]:
        return [torch.zeros(250_000) for _ in range(5)]

    assert peak_bytes(one_after_the_other) == MB
    assert peak_bytes(at_the_same_time) == 5 * MB


def test_what_a_backward_pass_keeps_counts():
    x = torch.zeros(250_000, requires_grad=True)

    def without() -> None:
        with torch.no_grad():
            (x.exp().exp() * 1.0).sum()

    def with_gradient() -> None:
        torch.autograd.grad(x.exp().exp().sum(), x)

    # results of exp are kept, and the backward pass makes another two
    assert peak_bytes(without) == 2 * MB
    assert 3 * MB <= peak_bytes(with_gradient) < 5 * MB


def test_views_and_changes_in_place_take_nothing():
    def evaluate() -> None:
        x = torch.zeros(250_000)
        x.add_(1.0)[:100].view(10, 10).mul_(2.0)

    assert peak_bytes(evaluate) == MB


def test_what_was_there_before_does_not_count():
    x = torch.zeros(250_000)
    assert peak_bytes(lambda: x.view(-1)) == 0


def test_sparse_tensors_pass():
    sparse = torch.ones(3).to_sparse()
    assert peak_bytes(lambda: (sparse * 2.0).to_dense()) >= 12
