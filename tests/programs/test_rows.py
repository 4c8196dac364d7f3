"""Copies on the rows of one dim: who sees what where."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.programs.records import Layout, MoreRowsError, Span
from amortized.programs.rows import hard_log_q, lay_out, relaxed_rows, serves, shared

LOGITS = torch.tensor([0.3, -1.2])


def layout(rows: int) -> Layout:
    return Layout(nesting=1, rows=rows)


def drawn(name: str, copies: int, rows: int = 0, ordinary: int | None = None) -> am.Draw:
    """Copies numbered 10 c + r on a law with that many rows (0: none), for a plate of two."""
    batch = (rows, 1, 2) if rows else (2,)
    law = dist.Bernoulli(logits=LOGITS.expand(batch))
    numbers = 10.0 * torch.arange(copies).reshape(-1, *(1,) * len(batch))
    if rows:
        numbers = numbers + torch.arange(rows).reshape(1, -1, 1, 1)
    value = numbers.expand(copies, *batch)
    return am.Draw(am.Site(name, law), value, copies, ordinary=ordinary)


def rows_of(value: Tensor) -> list[float]:
    """What stands on each row, in the first element of the plate."""
    return value[..., 0].flatten().tolist()


def test_a_first_site_has_its_copies_on_its_rows_and_the_base_elsewhere() -> None:
    where = layout(5)
    placed, value, span = lay_out(drawn("z", 3), where, {})
    assert span == Span(1, 3, dim=-3, rows=5) and placed.axis == where.copy_dim == -4
    assert value.shape == (1, 5, 1, 2) and rows_of(value) == [0.0, 10.0, 20.0, 0.0, 0.0]


def test_a_later_site_is_drawn_anew_on_earlier_rows_and_takes_its_copies_at_the_base() -> None:
    where = layout(5)
    lay_out(drawn("z", 3), where, {})
    _, value, span = lay_out(drawn("y", 3, rows=5), where, {})
    assert (span.start, span.stop) == (3, 5)
    # copy 0 of rows 0 to 2; copies 1 and 2 of row 0
    assert rows_of(value) == [0.0, 1.0, 2.0, 10.0, 20.0]


def test_every_value_comes_from_what_was_drawn() -> None:
    draw = drawn("z", 2)
    draw.value.requires_grad_()
    placed, value, _ = lay_out(draw, layout(3), {})
    value[:, 1].sum().backward()
    assert placed.root is placed.value and draw.value.grad is not None
    assert draw.value.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_too_few_rows_say_how_many_are_needed() -> None:
    with pytest.raises(MoreRowsError) as error:
        lay_out(drawn("z", 4), layout(2), {})
    assert error.value.rows == 4


def test_what_is_drawn_once_is_the_base_s_on_the_rows_of_later_sites() -> None:
    where = layout(5)
    where.span("z", 3)
    value = torch.arange(5.0).reshape(5, 1, 1).expand(5, 1, 2)
    assert rows_of(shared(value, where)) == [0.0, 1.0, 2.0, 0.0, 0.0]
    alone = torch.zeros(2)
    assert shared(alone, where) is alone


def test_relaxed_rows_have_no_log_q_and_a_hard_one_for_their_laws() -> None:
    where = layout(4)
    law = dist.Bernoulli(logits=LOGITS)
    values = torch.tensor([1.0, 0.3, 0.6]).reshape(3, 1).expand(3, 2)
    draw = am.Draw(am.Site("z", law), values, 3, ordinary=1)
    placed, value, span = lay_out(draw, where, {})
    assert relaxed_rows(placed, span) == range(1, 3)
    hard, counted = hard_log_q(law, value, placed, span)
    one = law.log_prob(torch.ones(2))
    assert torch.allclose(hard, one.expand(4, 1, 2))
    expected = torch.stack([one, 0 * one, 0 * one, one]).unsqueeze(1)
    assert torch.allclose(counted, expected)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (am.DisARM(), True),
        (am.REBAR(), True),
        (am.MuProp(), True),
        (am.Enumerate(), False),
        (am.MeasureValued(), False),
        (am.ScoreFunction(am.LeaveOneOut()), False),
        (am.Pathwise(), False),
    ],
)
def test_who_may_lie_in_rows(estimator: am.Estimator, expected: bool) -> None:
    assert serves(estimator) is expected
