"""How a batch becomes arguments, and what makes two calls alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive

import amortized as am
from amortized.programs.batches import aliases, as_arguments, signature_of

X, Y = torch.zeros(4, 2), torch.ones(4)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Y), (X, Y), {}),
        ([X, Y], (X, Y), {}),
        ((), (), {}),
        ({"x": X, "y": Y}, (), {"x": X, "y": Y}),
        ({}, (), {}),
        (None, (None,), {}),
        ("text", ("text",), {}),
    ],
)
def test_one_batch_object(batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = as_arguments(batch)
    assert type(found_args) is tuple and len(found_args) == len(args)
    assert all(a is b for a, b in zip(found_args, args, strict=True))
    assert found_kwargs.keys() == kwargs.keys()
    assert all(found_kwargs[name] is kwargs[name] for name in kwargs)


def test_the_caller_s_dict_is_not_shared() -> None:
    batch = {"x": X}
    as_arguments(batch)[1]["y"] = Y
    assert batch.keys() == {"x"}


DIFFERENT = {
    "a shorter batch": ((X,), (X[:3],)),
    "another dtype": ((X,), (X.double(),)),
    "one more argument": ((X,), (X, Y)),
    "a flag": ((True,), (False,)),
    "a choice": (("train",), ("test",)),
    "given or not": ((None,), (X,)),
    "in a list": (([X, X],), ([X],)),
    "in a dict": (({"x": X},), ({"x": Y},)),
    "numpy": ((np.zeros(3),), (np.zeros(4),)),
}


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_what_shapes_a_run_is_told_apart(name: str) -> None:
    one, other = DIFFERENT[name]
    assert signature_of(one, {}) != signature_of(other, {})
    assert signature_of((), {"a": one}) != signature_of((), {"a": other})


ALIKE = {
    "other numbers": ((X,), (X + 1,)),
    "an annealed float": ((0.1,), (0.2,)),
    "a step counter": ((1,), (2,)),
    "objects of one class": ((object(),), (object(),)),
}


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_what_does_not_is_not(name: str) -> None:
    one, other = ALIKE[name]
    assert signature_of(one, {}) == signature_of(other, {})


def test_a_signature_is_a_key_whatever_the_order_of_names() -> None:
    one = signature_of((), {"x": X, "options": {"deep": [Y, 3]}})
    other = signature_of((), {"options": {"deep": [Y, 4]}, "x": X})
    assert {one: 1}[other] == 1


def test_positional_and_named_are_different_calls() -> None:
    assert signature_of((X,), {}) != signature_of((), {"x": X})


def test_aliases_are_other_objects_with_the_same_numbers() -> None:
    x, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    (first, (second,)), named = aliases((x, [x]), {"y": x, "leaf": leaf, "n": 3})
    assert first is not x and second is not x and named["y"] is not x
    assert first.data_ptr() == x.data_ptr() and named["leaf"] is leaf and named["n"] == 3


@pytest.mark.parametrize("check", [True, False])
def test_a_flow_as_the_likelihood_learns_from_its_first_step(check: bool) -> None:
    """Its cache would answer for the very tensor that the warm-up ran on, without gradients."""
    pyro.set_rng_seed(0)
    flow = affine_autoregressive(2)

    def model(x):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    def guide(x):
        pass

    x = torch.randn(20, 2) * 2 + 1
    if check:
        assert am.check(model, guide, x).ok
    before = [p.detach().clone() for p in flow.parameters()]
    svi = am.SVI(model, guide, lr=0.1)
    svi.step(x)
    assert any(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))
