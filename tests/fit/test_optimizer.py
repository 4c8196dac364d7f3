import copy
import functools

import numpy as np
import pyro
import pytest
import torch

from amortized.errors import CheckpointError, ProgramError, UsageError
from amortized.fit.optimizer import GroupedOptimizer


def leaves(number: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.zeros(2, dtype=dtype, requires_grad=True) for _ in range(number)]


def rates(optimizer: GroupedOptimizer) -> list[tuple[str, float, int]]:
    built = optimizer.torch_optimizer
    assert built is not None
    return [(g["name"], g["lr"], len(g["params"])) for g in built.param_groups]


def test_one_rate_for_all_and_empty_groups_left_out() -> None:
    optimizer = GroupedOptimizer(torch.optim.Adam, 0.1)
    optimizer.sync({"model": leaves(1), "guide": leaves(2), "estimators": []})
    assert rates(optimizer) == [("model", 0.1, 1), ("guide", 0.1, 2)]


def test_one_rate_each_and_the_default_for_the_rest() -> None:
    optimizer = GroupedOptimizer(torch.optim.SGD, {"guide": 0.5, "estimators": 0.25})
    optimizer.sync({"model": leaves(1), "guide": leaves(1), "estimators": leaves(1)})
    assert rates(optimizer) == [("model", 1e-3, 1), ("guide", 0.5, 1), ("estimators", 0.25, 1)]


def test_none_leaves_the_rate_to_the_optimizer() -> None:
    optimizer = GroupedOptimizer(functools.partial(torch.optim.SGD, lr=0.7), None)
    optimizer.sync({"model": leaves(1)})
    assert rates(optimizer) == [("model", 0.7, 1)]


def test_late_parameters_join_and_known_ones_do_not_twice() -> None:
    optimizer = GroupedOptimizer(torch.optim.Adam, 0.1)
    first, late = leaves(1), leaves(1)
    optimizer.sync({"guide": first})
    optimizer.sync({"guide": first})
    optimizer.sync({"guide": [*first, *late]})
    assert rates(optimizer) == [("guide", 0.1, 2)]
    late[0].grad = torch.ones(2)
    optimizer.step()
    assert late[0][0].item() == pytest.approx(-0.1)
    optimizer.zero_grad()
    assert late[0].grad is None


@pytest.mark.parametrize(
    ("parameters", "fused"),
    [(leaves(2), True), (leaves(1, torch.float64), True), (leaves(1, torch.complex64), False)],
    ids=["float32", "float64", "complex"],
)
def test_adam_is_fused_where_it_can_be(parameters: list[torch.Tensor], fused: bool) -> None:
    optimizer = GroupedOptimizer(torch.optim.Adam, 0.1)
    optimizer.sync({"model": parameters})
    assert optimizer.torch_optimizer is not None
    assert optimizer.torch_optimizer.defaults["fused"] is fused


@pytest.mark.parametrize(
    "factory",
    [pyro.optim.Adam({"lr": 0.1}), torch.optim.Adam(leaves(1)), "adam"],
    ids=["pyro", "instance", "text"],
)
def test_only_a_callable_on_groups_will_do(factory) -> None:
    with pytest.raises(UsageError, match="expected a torch optimizer class"):
        GroupedOptimizer(factory, 0.1)


def test_a_factory_must_make_an_optimizer() -> None:
    with pytest.raises(UsageError, match="optimizer made a list"):
        GroupedOptimizer(list, 0.1).sync({"model": leaves(1)})


@pytest.mark.parametrize(
    ("lr", "message"),
    [({"decoder": 0.1}, "no group 'decoder'"), (-1.0, "lr=-1.0"), (float("nan"), "lr=nan")],
)
def test_rates_are_checked(lr, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GroupedOptimizer(torch.optim.Adam, lr)


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(ProgramError, match="nothing to train"):
        GroupedOptimizer(torch.optim.Adam, 0.1).sync({"model": [], "guide": []})


def test_a_step_before_the_first_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="none was taken yet"):
        GroupedOptimizer(torch.optim.Adam, 0.1).step()


def built(factory=torch.optim.Adam, steps: int = 2) -> tuple[GroupedOptimizer, dict[int, str]]:
    """An optimizer over two groups of named parameters, after some steps."""
    optimizer = GroupedOptimizer(factory, {"model": 0.1, "guide": 0.2})
    groups = {"model": leaves(1), "guide": leaves(2)}
    optimizer.sync(groups)
    names = {}
    for name, members in groups.items():
        names |= {id(leaf): f"{name}{number}" for number, leaf in enumerate(members)}
    for step in range(steps):
        for number, leaf in enumerate(optimizer.leaves()):
            leaf.grad = torch.full((2,), float(step + number + 1))
        optimizer.step()
    return optimizer, names


def test_rates_by_group() -> None:
    optimizer, _ = built()
    assert optimizer.rates() == {"model": 0.1, "guide": 0.2}
    optimizer.set_rates({"guide": 0.5})
    optimizer.scale_rates(0.5)
    assert optimizer.rates() == {"model": 0.05, "guide": 0.25}


@pytest.mark.parametrize(
    "factory", [torch.optim.Adam, torch.optim.RMSprop], ids=["Adam", "RMSprop"]
)
def test_a_state_is_by_name_and_brings_everything_back(factory) -> None:
    first, names = built(factory)
    first.scale_rates(0.5)
    state = first.state_dict(names)
    assert state["kind"] == factory.__name__
    assert [group["params"] for group in state["groups"]] == [["model0"], ["guide0", "guide1"]]
    again, theirs = built(factory, steps=0)
    with torch.no_grad():
        for leaf, value in zip(again.leaves(), first.leaves(), strict=True):
            leaf.copy_(value)
    again.load_state_dict(state, theirs)
    assert again.rates() == {"model": 0.05, "guide": 0.1}
    for optimizer in (first, again):
        for leaf in optimizer.leaves():
            leaf.grad = torch.tensor([0.3, -2.0])
        optimizer.step()
    for leaf, value in zip(again.leaves(), first.leaves(), strict=True):
        assert torch.equal(leaf, value)


def test_training_does_not_move_a_state_that_was_loaded() -> None:
    first, names = built()
    state = copy.deepcopy(first.state_dict(names))
    kept = copy.deepcopy(state)
    first.load_state_dict(state, names)
    for leaf in first.leaves():
        leaf.grad = torch.ones(2)
    first.step()
    for name, of in kept["state"].items():
        assert all(torch.equal(state["state"][name][key], value) for key, value in of.items())


def test_parameters_that_a_state_does_not_know_start_afresh() -> None:
    first, names = built()
    state = first.state_dict(names)
    del state["state"]["guide1"]
    state["groups"][1]["params"].remove("guide1")
    first.load_state_dict(state, names)
    _, _, last = first.leaves()
    assert last not in first.built.state and len(first.built.state) == 2
    assert first.rates() == {"model": 0.1, "guide": 0.2}


def test_the_state_of_another_optimizer_is_refused() -> None:
    first, names = built()
    other, theirs = built(torch.optim.SGD)
    with pytest.raises(
        CheckpointError, match="state of Adam, and this is a SGD: pass the optimizer"
    ):
        other.load_state_dict(first.state_dict(names), theirs)


def test_lbfgs_is_refused_with_the_remedy() -> None:
    optimizer = GroupedOptimizer(torch.optim.LBFGS, None)
    with pytest.raises(UsageError, match=r"LBFGS.*several times a step.*Adam"):
        optimizer.sync({"model": [torch.zeros(2, requires_grad=True)]})


def test_numbers_of_numpy_are_rates() -> None:
    optimizer = GroupedOptimizer(torch.optim.SGD, np.float32(0.5))
    optimizer.sync({"model": [torch.zeros(2, requires_grad=True)]})
    assert optimizer.rates() == {"model": 0.5}
