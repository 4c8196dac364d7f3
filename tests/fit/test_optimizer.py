import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from amortized.errors import CheckpointError, ProgramError, UsageError
from amortized.fit import optimizer as ours
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


# --- without torch's compiler ---------------------------------------------------------------------

SHORT = """
import sys
import functools, tempfile, pyro, pyro.distributions as dist, torch, amortized as am

def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

def guide(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))

def rate(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

x, options = torch.full((64,), 3.0), dict(batch_size=16, seed=0, progress=False, scheduler=rate)
if sys.argv[1] == "AdamW":
    factory = functools.partial(torch.optim.AdamW, fused=True, amsgrad=True)
else:
    factory = getattr(torch.optim, sys.argv[1])
svi = am.SVI(model, guide, optimizer=factory)
with tempfile.TemporaryDirectory() as folder:
    saves = [am.ModelCheckpoint(folder)]
    svi.fit(x, x, max_epochs=2, callbacks=saves, **options)
    svi.fit(x, x, max_epochs=3, resume_from=folder, non_finite="rollback", **options)
    svi.load(svi.save(folder + "/of my own"))
svi.step(x)
svi.evaluate(x, num_particles=3)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(("name", "imported"), [("Adam", False), ("AdamW", False), ("SGD", True)])
def test_eager_training_by_adam_does_not_import_torchs_compiler(name: str, imported: bool) -> None:
    """The import takes seconds, more than many a training; what torch does by itself has it."""
    command = [sys.executable, "-W", "ignore", "-c", SHORT, name]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == str(imported)


class Listening(torch.optim.Adam):
    """A user's own, which hears of every group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.heard: list[str] = []
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.heard.append(param_group["name"])
        super().add_param_group(param_group)


FACTORIES: dict[str, Callable[..., Any]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "options": functools.partial(torch.optim.Adam, betas=(0.5, 0.6), amsgrad=True, fused=True),
    "decay": functools.partial(torch.optim.AdamW, weight_decay=0.3),
    "a partial of one": functools.partial(functools.partial(torch.optim.Adam, eps=1e-3), lr=0.5),
    "SGD": torch.optim.SGD,
    "a subclass": Listening,
    "a function": lambda groups, **options: torch.optim.Adam(groups, **options),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_an_optimizer_is_made_as_its_factory_makes_it(name: str) -> None:
    factory = FACTORIES[name]
    optimizer = GroupedOptimizer(factory, {"model": 0.1, "guide": 0.2})
    groups = {"model": leaves(1), "guide": leaves(2)}
    optimizer.sync(groups)
    parts = [
        {"params": members, "name": key, "lr": optimizer.lr[key]}  # type: ignore[index]
        for key, members in groups.items()
    ]
    fused = {"fused": True} if factory is torch.optim.Adam else {}
    wanted, found = factory(parts, **fused), optimizer.built
    assert type(found) is type(wanted) and found.param_groups == wanted.param_groups
    assert found.defaults == wanted.defaults and list(vars(found)) == list(vars(wanted))
    assert repr(found) == repr(wanted) and found.state_dict() == wanted.state_dict()
    late = leaves(1)
    for one in (found, wanted):  # torch's own method is there again
        one.add_param_group({"params": late, "name": "estimators"})
    assert found.param_groups == wanted.param_groups
    assert getattr(found, "heard", None) == getattr(wanted, "heard", None)


def test_torchs_refusals_are_told_in_its_words() -> None:
    with pytest.raises(UsageError, match=r"cannot be made .*: Invalid beta") as error:
        wrong = functools.partial(torch.optim.Adam, betas=(2.0, 0.9))
        GroupedOptimizer(wrong, 0.1).sync({"model": leaves(1)})
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(UsageError, match="can't optimize a non-leaf"):
        GroupedOptimizer(torch.optim.Adam, 0.1).sync({"model": [leaves(1)[0] * 2]})
    twice = leaves(1)[0]
    with pytest.raises(UsageError, match="more than one parameter group"):
        GroupedOptimizer(torch.optim.Adam, 0.1).sync({"model": [twice], "guide": [twice]})


def followed(optimizer: GroupedOptimizer, names: dict[int, str]) -> None:
    """Every way in which torch's methods are called."""
    optimizer.load_state_dict(optimizer.state_dict(names), names)
    optimizer.follow()
    optimizer.sync({"estimators": leaves(1)})


@pytest.mark.parametrize("where", ["class", "subclass", "instance"])
@pytest.mark.parametrize("name", ["add_param_group", "state_dict", "load_state_dict"])
def test_methods_that_are_not_torchs_own_are_called(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library puts them in the place of torch's, with ``functools.wraps`` or without."""
    kind = type("Users", (torch.optim.Adam,), {})
    optimizer, names = built(torch.optim.Adam if where == "class" else kind)
    owner: Any = {"class": torch.optim.Optimizer, "subclass": kind, "instance": optimizer.built}
    known, calls = getattr(owner[where], name), []

    @functools.wraps(known)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return known(*args, **kwargs)

    monkeypatch.setattr(owner[where], name, counted)
    followed(optimizer, names)
    assert len(calls) == (1 if name == "add_param_group" else 2)


def test_a_torch_that_decorates_otherwise_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    methods = ("add_param_group", "state_dict", "load_state_dict")
    for name in methods:
        known = getattr(torch.optim.Optimizer, name)

        def other(self: Any, *args: Any, _name: str = name, _known: Any = known) -> Any:
            calls.append(_name)
            return _known(self, *args)

        monkeypatch.setattr(torch.optim.Optimizer, name, other)
    monkeypatch.setattr(ours, "_DECORATOR", None)
    optimizer, names = built()
    followed(optimizer, names)
    assert set(calls) == set(methods) and calls.count("add_param_group") == 3
