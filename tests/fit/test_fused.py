"""The fused update is torch's own, bit for bit, and leaves to torch what it does not know."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from amortized.fit.fused import FusedAdam

SHAPES = [(3, 2), (4,), (), (2, 1, 3), (5,)]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
Change = Callable[["Side", int], None]


def adam(kind: Any = torch.optim.Adam, **options: Any) -> Make:
    return lambda leaves: kind(leaves, **{"lr": 0.05, "fused": True, **options})


class Side:
    """Parameters, their optimizer, and gradients that depend on the step only."""

    def __init__(self, make: Make, *, ours: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.leaves = [torch.randn(s, generator=generator).requires_grad_() for s in SHAPES]
        self.optimizer = make(self.leaves)
        self.fused = FusedAdam(self.optimizer) if ours else None
        self.scheduler: Any = None
        self.by_us = 0

    def step(self, number: int, absent: Callable[[int, int], bool]) -> None:
        generator = torch.Generator().manual_seed(100 + number)
        for index, leaf in enumerate(self.leaves):
            gradient = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            leaf.grad = None if absent(number, index) else gradient
        if self.fused is not None and self.fused.step():
            self.by_us += 1
        else:
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def state(self) -> list[Tensor]:
        """Parameters and their state, as the optimizer has them in order."""
        state: Any = self.optimizer.state
        assert all(any(key is leaf for leaf in self.leaves) for key in state)
        return [*self.leaves, *state, *(part for of in state.values() for part in of.values())]

    def names(self) -> list[list[str]]:
        """What the state has of each parameter, in order."""
        return [list(of) for of in self.optimizer.state.values()]


def nothing(side: Side, number: int) -> None:
    pass


def every(number: int, index: int) -> bool:
    return False


def compared(
    make: Make,
    change: Change = nothing,
    absent: Callable[[int, int], bool] = every,
    steps: int = 50,
) -> Side:
    """Runs both for some steps, and compares parameters, state and its layout after each."""
    theirs, ours = Side(make, ours=False), Side(make, ours=True)
    for number in range(steps):
        for side in (theirs, ours):
            change(side, number)
            side.step(number, absent)
        found, wanted = ours.state(), theirs.state()
        assert len(found) == len(wanted) and ours.names() == theirs.names()
        for mine, other in zip(found, wanted, strict=True):
            assert torch.equal(mine, other) and mine.dtype == other.dtype, number
            assert mine.stride() == other.stride() and mine.device == other.device
            assert mine.requires_grad == other.requires_grad
    return ours


OPTIONS: dict[str, Make] = {
    "Adam": adam(),
    "AdamW": adam(torch.optim.AdamW),
    "Adam, decay": adam(weight_decay=0.1),
    "AdamW, decay": adam(torch.optim.AdamW, weight_decay=0.3),
    "AdamW, no decay": adam(torch.optim.AdamW, weight_decay=0.0),
    "Adam, decoupled": adam(weight_decay=0.3, decoupled_weight_decay=True),
    "amsgrad": adam(amsgrad=True),
    "AdamW, amsgrad": adam(torch.optim.AdamW, amsgrad=True, weight_decay=0.1),
    "maximize": adam(maximize=True, weight_decay=0.1),
    "betas and eps": adam(betas=(0.5, 0.7), eps=1e-3),
    "betas in a list": adam(betas=[0.5, 0.7]),
    "no memory": adam(betas=(0.0, 0.0)),
    "no rate": adam(lr=0.0, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_is_torchs_own_update(name: str) -> None:
    ours = compared(OPTIONS[name])
    assert ours.by_us == 50


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_groups_have_their_own_options(kind: Any) -> None:
    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return kind(
            [
                {"params": leaves[:2], "lr": 0.2, "weight_decay": 0.3},
                {"params": leaves[2:3], "amsgrad": True},
                {"params": leaves[3:], "betas": (0.3, 0.4), "maximize": True, "eps": 1e-2},
            ],
            lr=0.01,
            fused=True,
        )

    assert compared(make).by_us == 50


@pytest.mark.parametrize("name", ["decoupled_weight_decay", "amsgrad", "maximize", "eps"])
def test_groups_that_differ_in_one_option(name: str) -> None:
    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        other = {name: 0.1 if name == "eps" else True}
        groups = [{"params": leaves[:2]}, {"params": leaves[2:], **other}]
        return torch.optim.Adam(groups, lr=0.05, weight_decay=0.3, fused=True)

    assert compared(make).by_us == 50


def test_groups_may_have_the_same_options() -> None:
    """As those of model and guide have: they are updated together, and may part later."""

    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": leaves[:2]}, {"params": leaves[2:]}], fused=True)

    def change(side: Side, number: int) -> None:
        side.optimizer.param_groups[1]["lr"] = 0.1 if 10 < number < 20 else 1e-3

    assert compared(make).by_us == 50
    assert compared(make, change).by_us == 50
    assert compared(make, absent=lambda number, index: index < 2 and number % 2 == 1).by_us == 50


ABSENT: dict[str, Callable[[int, int], bool]] = {
    "one, every third step": lambda number, index: index == 1 and number % 3 == 1,
    "one, at first": lambda number, index: index == 2 and number < 10,
    "one, never there": lambda number, index: index == 0,
    "all, now and then": lambda number, index: number % 5 == 4,
    "in turn": lambda number, index: number % 5 == index,
    "as many as before, and others": lambda number, index: index == number % 2,
}


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_parameters_without_a_gradient(name: str, amsgrad: bool) -> None:
    ours = compared(adam(amsgrad=amsgrad, weight_decay=0.1), absent=ABSENT[name])
    assert ours.by_us >= 39


def test_no_gradient_at_all() -> None:
    compared(adam(), absent=lambda number, index: number > 3)


# --- the first step -------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_state_is_made_as_torch_makes_it(dtype: torch.dtype, amsgrad: bool) -> None:
    """Laid out as the parameter; the counter is single precision, whatever the parameter is."""

    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        leaves.append(torch.ones(3, 2, dtype=dtype).t().requires_grad_())
        groups = [{"params": leaves[:2]}, {"params": leaves[-1:], "lr": 0.1, "amsgrad": amsgrad}]
        return torch.optim.Adam([*groups, {"params": leaves[2:-1]}], lr=0.05, fused=True)

    ours = compared(make, steps=3)
    held = ours.optimizer.state[ours.leaves[-1]]
    assert ours.by_us == 3 and held["exp_avg"].stride() == (1, 2)
    assert held["step"].dtype == torch.float32 and ("max_exp_avg_sq" in held) == amsgrad


@pytest.mark.parametrize("absent", ["one, at first", "in turn"])
def test_a_state_that_is_made_late_has_its_own_count(absent: str) -> None:
    ours = compared(adam(amsgrad=True), absent=ABSENT[absent])
    counts = {float(ours.optimizer.state[leaf]["step"]) for leaf in ours.leaves}
    assert ours.by_us == 50 and counts == {"one, at first": {40, 50}, "in turn": {40}}[absent]


def test_a_state_of_another_kind_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AdamW had it once: another function makes it, in another way."""
    known = torch.optim.Adam._init_group

    def other(*args: Any) -> Any:
        return known(*args)

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", other)
    assert compared(adam(torch.optim.AdamW)).by_us == 49


def test_what_the_kernel_does_not_take_is_torchs_error() -> None:
    def error(ours: bool) -> Exception:
        leaves = [torch.ones(2, dtype=torch.complex64, requires_grad=True)]
        optimizer = torch.optim.Adam(leaves, fused=True)
        leaves[0].grad = torch.ones(2, dtype=torch.complex64)
        with pytest.raises(RuntimeError) as caught:
            assert not (ours and FusedAdam(optimizer).step())
            optimizer.step()
        return caught.value

    assert str(error(True)) == str(error(False))


def test_amsgrad_without_its_state_is_torchs_error() -> None:
    side = Side(adam(), ours=True)
    side.step(0, every)
    side.optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(KeyError, match="max_exp_avg_sq"):
        side.step(1, every)
    assert float(side.optimizer.state[side.leaves[0]]["step"]) == 1


# --- what is changed in between -------------------------------------------------------------------


def rates(side: Side, number: int) -> None:
    for group in side.optimizer.param_groups:
        group["lr"] = 0.1 / (1 + number)
        group["weight_decay"] = 0.01 * number
        group["betas"] = (0.9, 0.99 if number % 2 else 0.9)


def loaded(side: Side, number: int) -> None:
    if number in (5, 20):
        side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


def loaded_from_earlier(side: Side, number: int) -> None:
    if number == 5:
        side.kept = copy.deepcopy(side.optimizer.state_dict())  # type: ignore[attr-defined]
    if number == 20:
        side.optimizer.load_state_dict(side.kept)  # type: ignore[attr-defined]


def emptied(side: Side, number: int) -> None:
    if number == 10:
        side.optimizer.state.clear()


def one_emptied(side: Side, number: int) -> None:
    if number == 10:
        side.optimizer.state.pop(side.leaves[2])


def first_state_replaced(side: Side, number: int) -> None:
    if number == 10:
        held = side.optimizer.state[side.leaves[0]]
        held["exp_avg"] = held["exp_avg"].clone() * 2


def added(side: Side, number: int) -> None:
    if number == 10:
        side.leaves.append(torch.ones(3, requires_grad=True))
        side.optimizer.add_param_group({"params": [side.leaves[-1]], "lr": 0.3})


def added_to_a_group(side: Side, number: int) -> None:
    if number == 10:
        side.leaves.append(torch.ones(3, requires_grad=True))
        side.optimizer.param_groups[0]["params"].append(side.leaves[-1])


def exchanged(side: Side, number: int) -> None:
    """Another parameter in the place of one; the old one, and its state, stay behind."""
    if number == 10:
        side.leaves.append(torch.ones(4, requires_grad=True))
        side.optimizer.param_groups[0]["params"][1] = side.leaves[-1]


def reordered(side: Side, number: int) -> None:
    if number == 10:
        side.optimizer.param_groups[0]["params"].reverse()


def without_the_largest(side: Side, number: int) -> None:
    side.optimizer.param_groups[0]["amsgrad"] = number < 10


def moved(side: Side, number: int) -> None:
    if number == 10:
        with torch.no_grad():
            for leaf in side.leaves:
                leaf.data = leaf.data.clone()


def without_gradients(side: Side, number: int) -> None:
    torch.set_grad_enabled(number % 2 == 0)


CHANGES: list[Change] = [
    rates,
    loaded,
    loaded_from_earlier,
    emptied,
    one_emptied,
    first_state_replaced,
    added,
    added_to_a_group,
    exchanged,
    reordered,
    moved,
    without_gradients,
]


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_in_between(change: Change) -> None:
    assert compared(adam(weight_decay=0.1), change).by_us >= 40


def in_three_groups(leaves: list[Tensor]) -> torch.optim.Optimizer:
    """The first and the last have the same options, and are updated together."""
    parts, rates = (leaves[:2], leaves[2:4], leaves[4:]), (0.05, 0.2, 0.05)
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, rates, strict=True)]
    return torch.optim.Adam(groups, fused=True)


def moved_to_the_next_group(side: Side, number: int) -> None:
    first, second, _ = side.optimizer.param_groups
    if number == 10:
        second["params"].insert(0, first["params"].pop())


def groups_exchanged(side: Side, number: int) -> None:
    if number % 10 == 5:
        side.optimizer.param_groups.reverse()


def options_exchanged(side: Side, number: int) -> None:
    first, second, _ = side.optimizer.param_groups
    if number % 10 == 5:
        first["lr"], second["lr"] = second["lr"], first["lr"]


def dicts_replaced(side: Side, number: int) -> None:
    """The same tensors in other dicts: the first ones are emptied, the others changed later."""
    state: Any = side.optimizer.state
    if number == 10:
        side.optimizer.state = type(state)(dict, {key: dict(of) for key, of in state.items()})
    if number == 11:
        options_exchanged(side, 5)
        for of in side.before.values():  # type: ignore[attr-defined]
            of.clear()
    side.before = dict(state)  # type: ignore[attr-defined]
    if number == 12:
        for of in state.values():
            of["exp_avg"] = of["exp_avg"] * 2
        options_exchanged(side, 5)


def replaced_while_absent(side: Side, number: int) -> None:
    if number == 10:
        side.optimizer.state[side.leaves[0]] = {
            name: part.clone() for name, part in side.optimizer.state[side.leaves[0]].items()
        }


IN_GROUPS: list[Change] = [
    nothing,
    moved_to_the_next_group,
    groups_exchanged,
    options_exchanged,
    dicts_replaced,
    replaced_while_absent,
]


@pytest.mark.parametrize("change", IN_GROUPS, ids=lambda change: change.__name__)
def test_changes_of_groups(change: Change) -> None:
    def absent(number: int, index: int) -> bool:
        return index == 0 and 8 < number < 12

    assert compared(in_three_groups, change).by_us == 50
    assert compared(in_three_groups, change, absent).by_us == 50


@pytest.mark.parametrize("name", ["exp_avg_sq", "step", "max_exp_avg_sq"])
def test_any_part_of_the_state_may_be_replaced(name: str) -> None:
    def change(side: Side, number: int) -> None:
        if number == 10:
            held = side.optimizer.state[side.leaves[0]]
            held[name] = held[name].clone() + 1

    compared(adam(amsgrad=True), change)


def test_amsgrad_may_be_given_up() -> None:
    assert compared(adam(amsgrad=True), without_the_largest).by_us == 50


def test_hooks_are_called() -> None:
    seen: list[str] = []

    def change(side: Side, number: int) -> None:
        if number == 10 and side.fused is not None:
            pre = lambda *args: seen.append("before")  # noqa: E731
            post = lambda *args: seen.append("after")  # noqa: E731
            side.hooks = [  # type: ignore[attr-defined]
                side.optimizer.register_step_pre_hook(pre),
                side.optimizer.register_step_post_hook(post),
            ]
        if number == 20 and side.fused is not None:
            for hook in side.hooks:  # type: ignore[attr-defined]
                hook.remove()

    ours = compared(adam(), change)
    assert seen == ["before", "after"] * 10
    assert ours.by_us == 40


def test_hooks_of_all_optimizers_are_called() -> None:
    """Profilers and loggers register them for every optimizer at once."""
    seen: list[str] = []
    before = register_optimizer_step_pre_hook(lambda *args: seen.append("before"))
    after = register_optimizer_step_post_hook(lambda *args: seen.append("after"))
    try:
        side = Side(adam(), ours=True)
        for number in range(3):
            side.step(number, every)
    finally:
        before.remove(), after.remove()
    assert seen == ["before", "after"] * 3


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=60),
    "a function": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_see_that_steps_are_taken(name: str) -> None:
    """Torch warns where a scheduler moves before the optimizer; warnings are errors here."""

    def change(side: Side, number: int) -> None:
        if number == 0:
            side.scheduler = SCHEDULERS[name](side.optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compared(adam(), change).by_us == 50


def test_a_scheduler_that_is_made_late_sees_the_next_step() -> None:
    def change(side: Side, number: int) -> None:
        if number == 10:
            side.scheduler = torch.optim.lr_scheduler.ExponentialLR(side.optimizer, 0.9)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compared(adam(), change).by_us == 50


# --- what is left to torch ------------------------------------------------------------------------


class Ours(torch.optim.Adam):
    """A user's own: its step does more."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for leaf in group["params"]:
                leaf.grad.mul_(0.5)
        return super().step(closure)


LEFT: dict[str, Make] = {
    "not fused": adam(fused=False),
    "foreach": adam(fused=False, foreach=True),
    "a rate in a tensor": adam(lr=torch.tensor(0.05)),
    "SGD": lambda leaves: torch.optim.SGD(leaves, lr=0.1),
    "SGD, fused": lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9, fused=True),
    "NAdam": lambda leaves: torch.optim.NAdam(leaves),
    "a subclass": lambda leaves: Ours(leaves, fused=True),
    "one group that is not fused": lambda leaves: torch.optim.Adam(
        [{"params": leaves[:2], "fused": False}, {"params": leaves[2:]}], fused=True
    ),
    "an integer for a rate": adam(lr=1),
}


@pytest.mark.parametrize("name", LEFT)
def test_is_left_to_torch(name: str) -> None:
    assert compared(LEFT[name], steps=10).by_us == 0


def test_a_step_of_the_users_own_is_called() -> None:
    def change(side: Side, number: int) -> None:
        if number == 3:
            known = side.optimizer.step

            def step(closure: Any = None) -> Any:
                for leaf in side.leaves:
                    leaf.grad.mul_(0.5)  # type: ignore[union-attr]
                return known(closure)

            side.optimizer.step = step  # type: ignore[method-assign]

    ours = compared(adam(), change, steps=10)
    assert ours.by_us == 3


def test_several_dtypes_are_left_to_torch() -> None:
    """Torch calls the kernel once for each."""

    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        leaves.append(torch.ones(3, dtype=torch.float64, requires_grad=True))
        return torch.optim.Adam(leaves, lr=0.05, fused=True)

    assert compared(make, steps=10).by_us == 0


def test_dtypes_of_groups_may_differ() -> None:
    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        leaves.append(torch.ones(3, dtype=torch.float64, requires_grad=True))
        groups = [{"params": leaves[:-1]}, {"params": leaves[-1:], "lr": 0.1}]
        return torch.optim.Adam(groups, lr=0.05, fused=True)

    assert compared(make, steps=10).by_us == 10


def test_where_one_group_is_left_no_group_moves() -> None:
    side = Side(adam(), ours=True)
    side.step(0, every)
    more = [torch.ones(3, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64)]
    side.leaves += more
    side.optimizer.add_param_group({"params": more, "lr": 0.1})
    for leaf in more:
        leaf.grad = torch.ones_like(leaf)
    before = [leaf.detach().clone() for leaf in side.leaves]
    assert side.fused is not None and not side.fused.step()
    assert all(torch.equal(a, b) for a, b in zip(before, side.leaves, strict=True))


def test_nothing_is_recorded() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    fused = FusedAdam(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).sum().backward()
        if not fused.step():
            optimizer.step()
    for leaf in layer.parameters():
        assert leaf.is_leaf and leaf.grad_fn is None
        assert not optimizer.state[leaf]["exp_avg"].requires_grad


def test_gradients_are_left_as_they_were() -> None:
    side = Side(adam(weight_decay=0.1, maximize=True), ours=True)
    for number in range(3):
        side.step(number, every)
        generator = torch.Generator().manual_seed(100 + number)
        for leaf in side.leaves:
            gradient = torch.randn(leaf.shape, generator=generator)
            assert leaf.grad is not None and torch.equal(leaf.grad, gradient)
