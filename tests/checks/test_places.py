from __future__ import annotations

import pyro.distributions as dist
import torch

from amortized.checks.places import (
    law_words,
    names_words,
    place,
    plate_words,
    range_words,
    rows_words,
    shape_words,
    shortened,
    similar,
    written_shape,
)
from amortized.programs.survey import Frame, Statement


def statement(fn: object, *frames: Frame, in_model: bool = True) -> Statement:
    return Statement("z", in_model, fn, None, False, frames, {}, 1.0, None)


def test_a_place_names_site_program_and_plates() -> None:
    minibatch, loop = Frame("data", -1, 64, 1000), Frame("time", None, 5, 5)
    z = statement(dist.Normal(0.0, 1.0), minibatch, loop, in_model=False)
    assert place(z) == "site 'z' of the guide (plates: 'data' 64 of 1000 at dim -1, 'time' 5)"
    assert place(statement(dist.Normal(0.0, 1.0))) == "site 'z' of the model"
    assert plate_words(loop) == "'time' 5"


def test_shapes_show_numbers_and_names() -> None:
    z = statement(dist.Normal(torch.zeros(4, 2), 1.0).to_event(1), Frame("data", -1, 4, 4))
    assert shape_words((4, 2), z) == "(4, 2) = [data=4 | 2]"
    assert law_words(z) == "Normal of shape (4, 2) = [data=4 | 2]"
    assert shape_words((3,), statement(dist.Normal(0.0, 1.0))) == "(3,)"


def test_the_shape_that_a_program_wrote() -> None:
    column = dist.Normal(torch.zeros(5, 1), torch.ones(1)).expand([5, 5])
    assert written_shape(statement(column)) == (5, 1)
    assert written_shape(statement(dist.Normal(torch.zeros(5, 5), 1.0))) == (5, 5)


def test_lists_are_cut() -> None:
    assert names_words([]) == "none"
    assert names_words("abc", most=2) == "'a', 'b' and 1 more"
    assert rows_words([1, 2]) == "2 rows (1, 2)"
    assert shortened("word " * 100, 20) == "word word word ..."


def test_ranges_and_near_names() -> None:
    assert range_words(torch.tensor([2.0, -1.0])) == "values from -1 to 2"
    assert range_words(torch.tensor([255])) == "255"
    assert similar("encoder", ["encodr", "x"]) == "encodr"
    assert similar("encoder", ["x"]) is None
