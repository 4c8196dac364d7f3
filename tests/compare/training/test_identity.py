from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amortized as am
from amortized.compare.training.identity import difference, digest_of, made_of

SIZE = 3


def of_source(text: str) -> Callable[..., Any]:
    space: dict[str, Any] = {"__name__": "a_program"}
    exec(compile(text, "some/file.py", "exec"), space)
    return space["program"]


BASE = (
    "RATE = 0.1\ndef helper(x):\n    return x * 2\ndef program(k=1):\n    return helper(k) + RATE\n"
)


def test_the_same_source_is_the_same_wherever_it_stands():
    one, two = of_source(BASE), of_source("\n\n# a comment\n" + BASE)
    assert made_of(one) == made_of(two) == json.loads(json.dumps(made_of(two)))


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("k=1", "k=2", "values.k"),
        ("0.1", "0.2", "values.RATE"),
        ("x * 2", "x * 3", "values.helper.code"),
        ("+ RATE", "- RATE", "code"),
    ],
)
def test_what_a_function_refers_to_is_named(old: str, new: str, place: str):
    found = difference(made_of(of_source(BASE)), made_of(of_source(BASE.replace(old, new))), "p")
    assert found is not None and found[0] == f"p.{place}"


def test_what_runs_fill_is_left_out():
    """A cache, data or a network that a function closes over; they are measured."""

    def of(*held: Any) -> Any:
        def program() -> Any:
            return held

        return made_of(program)

    assert of({}) == of({"x": torch.zeros(2)}) == of(nn.Linear(2, 2)) == of([])


def test_a_recursive_function_and_a_list_in_itself_end():
    def program(n: int) -> int:
        return program(n - 1) if n else 0

    loop: list[Any] = []
    loop.append(loop)
    json.dumps([made_of(program), made_of(loop)])


def test_objects_count_with_their_attributes():
    class Program:
        def __init__(self, scale: float, data: Any) -> None:
            self.scale, self.data = scale, data

        def __call__(self) -> float:
            return self.scale

    one = made_of(Program(1.0, np.zeros(2)))
    assert one == made_of(Program(1.0, np.zeros(2)))
    assert difference(one, made_of(Program(2.0, np.zeros(2))), "p") == ("p.scale", 1.0, 2.0)
    assert difference(one, made_of(Program(1.0, np.ones(2))), "p")[0] == "p.data"  # type: ignore[index]
    assert made_of(Program(1.0, 0).__call__)["self"]["scale"] == 1.0


def test_networks_count_with_their_shapes():
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    assert made_of(one) == made_of(two) != made_of(nn.Linear(2, 4))
    assert made_of(nn.LazyLinear(3))["weight"] == "lazy"
    assert made_of(nn.Dropout(0.1)) != made_of(nn.Dropout(0.2))


def test_libraries_count_by_name():
    assert made_of(torch.optim.Adam) == "Adam"
    assert made_of(am.ELBO) == "ELBO"
    assert set(made_of(torch.nn.functional.relu)) == {"name"}
    assert made_of(partial(torch.optim.Adam, eps=1e-3)) == {
        "function": "Adam",
        "given": {"eps": 1e-3},
    }


def test_digests_are_of_bits_types_and_shapes():
    zeros = torch.zeros(4)
    others = [torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.full((4,), -0.0)]
    assert len({digest_of(tensor) for tensor in (zeros, *others)}) == 4
    assert digest_of(torch.arange(6.0).reshape(2, 3).T) == digest_of(
        torch.arange(6.0).reshape(2, 3).T.contiguous()
    )
    assert digest_of(torch.zeros(0)) == digest_of(torch.zeros(0))


def test_sets_and_numbers_that_are_not_finite_have_one_text():
    assert made_of({"b", "a"}) == made_of({"a", "b"})
    assert made_of([float("nan"), float("inf"), 1, True, None]) == ["nan", "inf", 1, True, None]


def test_the_first_difference_is_found_in_lists_too():
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "") == ("a[1].b", 2, 3)
    assert difference([1], [1, 2], "x") == ("x", [1], [1, 2])
    assert difference([1], [1], "x") is None
