"""Places that programs look up: which changes are seen, what is left out, what does no harm."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

import amortized as am
from amortized.fit.compiled.held import HeldValues
from tests.fit import tiny

BETA = 1.0
FACTOR = torch.ones(2)
CONFIG: dict[str, Any] = {"dropout": 0.1, "nested": {"depth": 2}, 3: "three"}
NAMES = ["loc", "scale"]


@pytest.fixture(autouse=True)
def globals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BETA", BETA)
    monkeypatch.setitem(globals(), "FACTOR", FACTOR)
    monkeypatch.setitem(globals(), "CONFIG", {**CONFIG, "nested": dict(CONFIG["nested"])})
    monkeypatch.setitem(globals(), "NAMES", list(NAMES))


def rebind(name: str, value: Any) -> Callable[[], None]:
    return lambda: globals().__setitem__(name, value)


def setter(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def held(program: Any, *modules: nn.Module) -> HeldValues:
    every = [part for module in modules for part in module.modules()]
    if isinstance(program, nn.Module):
        every += list(program.modules())
    return HeldValues([program], every)


class Options:
    """An object of the user's, with what must not be run."""

    def __init__(self) -> None:
        self.rate, self.name, self.weight = 0.5, "first", torch.ones(2)
        self.inner = SimpleNamespace(depth=3)

    @property
    def costly(self) -> float:
        raise AssertionError("a property was run")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} was asked for")


class Net(nn.Module):
    beta = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.25)
        self.rate = 0.5
        self.options = Options()
        self.sizes = [1, 2]
        self.shape = (2, 3)
        self.config = {"on": True}
        self.prior = dist.Normal(0.0, 1.0)
        self.activation: Callable[[Tensor], Tensor] = torch.tanh
        self.weights = np.ones(3)
        self.share = np.float32(0.5)
        self.offset = torch.zeros(2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return helper(self.activation(self.layer(x))) * self.rate * BETA

    def costly(self) -> float:
        raise AssertionError("a method was run")


def helper(x: Tensor) -> Tensor:
    return second_helper(x) + CONFIG["dropout"]


def second_helper(x: Tensor) -> Tensor:
    return x * FACTOR + len(NAMES[0])


# --- what is seen: the program, what changes, and what the sentence says --------------------------

Case = tuple[Any, Callable[[], None], str]


def a_closure() -> Case:
    rate = 0.5

    def change() -> None:
        nonlocal rate
        rate = 0.25

    return (lambda x: x * rate), change, "rate of <lambda> was 0.5 and is 0.25"


def a_closure_on_a_dict() -> Case:
    options = {"rate": 0.5}
    change = functools.partial(options.__setitem__, "rate", 0.25)
    return (lambda x: x * options["rate"]), change, "rate was 0.5 and is 0.25"


def a_closure_in_a_closure() -> Case:
    options = SimpleNamespace(rate=0.5)

    def inner(x: Tensor) -> Tensor:
        return x * options.rate

    return (lambda x: inner(x)), setter(options, "rate", 1.5), "rate was 0.5 and is 1.5"


def a_global() -> Case:
    return (lambda x: x * BETA), rebind("BETA", 2.0), "BETA was 1.0 and is 2.0"


def a_global_in_a_comprehension() -> Case:
    return (lambda x: [y * BETA for y in x]), rebind("BETA", 2.0), "BETA was 1.0"


def a_global_of_another_type() -> Case:
    return (lambda x: x * BETA), rebind("BETA", True), "BETA was 1.0 and is True"


def a_global_that_becomes_none() -> Case:
    return (lambda x: x * BETA), rebind("BETA", None), "BETA was 1.0 and is None"


def a_global_tensor() -> Case:
    return (lambda x: x * FACTOR), rebind("FACTOR", torch.ones(2)), "FACTOR holds another tensor"


def an_entry_of_a_global() -> Case:
    return helper, lambda: CONFIG.update(dropout=0.2), "CONFIG.dropout was 0.1 and is 0.2"


def a_nested_entry() -> Case:
    return helper, lambda: CONFIG["nested"].update(depth=4), "depth was 2 and is 4"


def an_entry_that_is_gone() -> Case:
    return helper, lambda: CONFIG.pop("dropout"), "CONFIG.dropout was 0.1 and is None"


def an_element_of_a_list() -> Case:
    return second_helper, lambda: NAMES.__setitem__(0, "location"), "was 'loc' and is 'location'"


def a_list_that_is_shorter() -> Case:
    return second_helper, NAMES.pop, "was 'scale' and is None"


def a_global_of_a_function_called_by_functions() -> Case:
    return (lambda x: helper(x)), rebind("FACTOR", None), "FACTOR holds another tensor"


def an_attribute() -> Case:
    net = Net()
    return net, setter(net, "rate", 0.25), "Net.rate was 0.5 and is 0.25"


def an_attribute_of_an_attribute() -> Case:
    net = Net()
    return net, setter(net.options, "rate", 0.25), "options.rate was 0.5 and is 0.25"


def a_name_in_an_attribute() -> Case:
    net = Net()
    return net, setter(net.options, "name", "other"), "name was 'first' and is 'other'"


def a_tensor_of_an_object() -> Case:
    net = Net()
    return net, setter(net.options, "weight", torch.ones(2)), "weight holds another tensor"


def an_attribute_of_a_library_layer() -> Case:
    net = Net()
    return net, setter(net.dropout, "p", 0.75), "dropout.p was 0.25 and is 0.75"


def an_array() -> Case:
    net = Net()
    return net, setter(net, "weights", np.ones(3)), "weights holds another tensor"


def a_tensor_attribute() -> Case:
    net = Net()
    return net, setter(net, "offset", torch.zeros(2)), "offset holds another tensor"


def a_buffer_that_is_another_tensor() -> Case:
    net = Net()
    return net, setter(net, "mean", torch.zeros(2)), "mean holds another tensor"


def a_dict_of_a_module() -> Case:
    net = Net()
    return net, lambda: net.config.update(on=False), "on was True and is False"


def a_global_of_forward() -> Case:
    return Net(), rebind("BETA", 3.0), "BETA was 1.0 and is 3.0"


def a_method() -> Case:
    net = Net()
    return net.forward, setter(net.options, "rate", 2.0), "rate was 0.5 and is 2.0"


def a_method_of_an_object() -> Case:
    class Program:
        def __init__(self) -> None:
            self.rate = 0.5

        def model(self, x: Tensor) -> Tensor:
            return x * self.rate

    program = Program()
    return program.model, setter(program, "rate", 2.0), "rate was 0.5 and is 2.0"


def an_object_that_is_called() -> Case:
    class Program:
        rate = 0.5

        def __call__(self, x: Tensor) -> Tensor:
            return x * BETA

    return Program(), rebind("BETA", 3.0), "BETA was 1.0"


def keywords_of_a_partial() -> Case:
    program = functools.partial(helper, rate=0.5)
    change = functools.partial(program.keywords.__setitem__, "rate", 0.25)
    return program, change, "rate was 0.5 and is 0.25"


def what_a_partial_calls() -> Case:
    return functools.partial(helper, x=1), rebind("FACTOR", None), "FACTOR holds another tensor"


def an_object_in_a_partial() -> Case:
    options = SimpleNamespace(rate=0.5)
    program = functools.partial(helper, options=options)
    return program, setter(options, "rate", 0.25), "rate was 0.5 and is 0.25"


def positions_of_a_partial() -> Case:
    options = SimpleNamespace(rate=0.5)
    program = functools.partial(lambda options, x: x * options.rate, options)
    return program, setter(options, "rate", 0.25), "rate was 0.5 and is 0.25"


def a_handler_around_the_program() -> Case:
    """``poutine.scale(model, beta)`` and what it holds."""
    handled = poutine.scale(helper, scale=0.5)
    (handler,) = [a for a in handled.func.args if isinstance(a, poutine.messenger.Messenger)]
    return handled, setter(handler, "scale", 0.25), "scale was 0.5 and is 0.25"


def a_program_under_a_handler() -> Case:
    return poutine.scale(helper, scale=0.5), rebind("FACTOR", None), "FACTOR holds another tensor"


def a_pyro_module() -> Case:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.rate = 0.5

        def forward(self, x: Tensor) -> Tensor:
            return x * self.rate

    model = Model()
    return model, setter(model, "rate", 0.25), "rate was 0.5 and is 0.25"


SEEN = [
    a_closure,
    a_closure_on_a_dict,
    a_closure_in_a_closure,
    a_global,
    a_global_in_a_comprehension,
    a_global_of_another_type,
    a_global_that_becomes_none,
    a_global_tensor,
    an_entry_of_a_global,
    a_nested_entry,
    an_entry_that_is_gone,
    an_element_of_a_list,
    a_list_that_is_shorter,
    a_global_of_a_function_called_by_functions,
    an_attribute,
    an_attribute_of_an_attribute,
    a_name_in_an_attribute,
    a_tensor_of_an_object,
    an_attribute_of_a_library_layer,
    an_array,
    a_tensor_attribute,
    a_buffer_that_is_another_tensor,
    a_dict_of_a_module,
    a_global_of_forward,
    a_method,
    a_method_of_an_object,
    an_object_that_is_called,
    keywords_of_a_partial,
    what_a_partial_calls,
    an_object_in_a_partial,
    positions_of_a_partial,
    a_handler_around_the_program,
    a_program_under_a_handler,
    a_pyro_module,
]


@pytest.mark.parametrize("case", SEEN, ids=lambda case: case.__name__)
def test_is_seen(case: Callable[[], Case]) -> None:
    program, change, sentence = case()
    values = held(program)
    assert values.version() == 0 and values.versions == 1
    change()
    assert values.version() == 1 and values.versions == 2
    assert sentence in values.changed


# --- what is not seen and would change what a program does ----------------------------------------


class Namespace:
    rate = 0.5


def a_class_attribute() -> Case:
    net = Net()
    return net, setter(net, "beta", 2.0), "attributes of Net was"


def a_namespace() -> Case:
    return (lambda x: x * Namespace.rate), setter(Namespace, "rate", 0.25), "Namespace.rate was 0.5"


def a_constant_of_a_module() -> Case:
    return (lambda x: x * math.tau), setter(math, "tau", math.tau / 2), ""


def a_tuple() -> Case:
    net = Net()
    return net, setter(net, "shape", (3, 2)), "shape holds another tuple"


def a_number_of_numpy() -> Case:
    net = Net()
    return net, setter(net, "share", np.float32(0.25)), "and is"


def another_dict() -> Case:
    net = Net()
    return net, setter(net, "config", {"on": False}), "config holds another dict"


def another_list() -> Case:
    net = Net()
    return net, setter(net, "sizes", [2, 3]), "sizes holds another list"


def a_longer_list() -> Case:
    net = Net()
    return net, lambda: net.sizes.append(3), "and is"


def another_object() -> Case:
    net = Net()
    return net, setter(net, "options", SimpleNamespace(rate=0.25)), "options holds another Options"


def another_function() -> Case:
    net = Net()
    return net, setter(net, "activation", torch.relu), "activation holds another"


def another_distribution() -> Case:
    net = Net()
    return net, setter(net, "prior", dist.Normal(1.0, 1.0)), "prior holds another Normal"


def another_global_function() -> Case:
    return (lambda x: helper(x)), rebind("helper", second_helper), "helper holds another function"


def a_default() -> Case:
    options = SimpleNamespace(rate=0.5)

    def program(x: Tensor, options: SimpleNamespace = options) -> Tensor:
        return x * options.rate

    return program, setter(options, "rate", 0.25), ""


def a_global_of_a_method() -> Case:
    class Program(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x)

        def encode(self, x: Tensor) -> Tensor:
            return x * BETA

    return Program(), rebind("BETA", 2.0), "BETA was 1.0"


def slots() -> Case:
    class Slotted:
        __slots__ = ("rate",)

        def __init__(self) -> None:
            self.rate = 0.5

    options = Slotted()
    return (lambda x: x * options.rate), setter(options, "rate", 0.25), ""


def a_new_attribute() -> Case:
    net = Net()
    return net, setter(net, "extra", 1.0), "and is"


OTHERS = [
    a_new_attribute,
    a_longer_list,
    a_namespace,
    a_class_attribute,
    a_tuple,
    a_number_of_numpy,
    another_dict,
    another_list,
    another_object,
    another_function,
    another_distribution,
    another_global_function,
    a_global_of_a_method,
]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.__name__)
def test_another_object_is_seen(case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "helper", helper)
    monkeypatch.setattr(Namespace, "rate", 0.5)
    test_is_seen(case)


UNSEEN = [
    a_constant_of_a_module,
    a_default,
    slots,
]


@pytest.mark.xfail(strict=True, reason="left to the audit")
@pytest.mark.parametrize("case", UNSEEN, ids=lambda case: case.__name__)
def test_is_left_to_the_audit(case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "tau", math.tau)  # put back afterwards
    monkeypatch.setattr(Namespace, "rate", 0.5)
    monkeypatch.setitem(globals(), "helper", helper)
    program, change, _ = case()
    values = held(program)
    change()
    assert values.version() == 1


# --- what is no change ----------------------------------------------------------------------------


def test_equal_values_are_the_same() -> None:
    net = Net()
    values = held(net)
    net.rate, net.options.name = float("0.5"), "".join(["fir", "st"])
    assert values.version() == 0 and values.changed == ""


def test_tensors_may_change_in_place_and_another_parameter_is_seen() -> None:
    net = Net()
    values = held(net)
    with torch.no_grad():
        net.offset.add_(1), net.mean.add_(1), net.layer.weight.add_(1), net.options.weight.add_(1)
    net.weights += 1
    assert values.version() == 0
    net.layer.weight = nn.Parameter(torch.ones(2, 2))
    assert values.version() == 1


def test_modes_are_not_values() -> None:
    """They have a signature of their own."""
    net = Net()
    values = held(net)
    net.eval()
    assert values.version() == 0


def test_a_number_that_is_not_one_is_no_change_by_itself() -> None:
    net = Net()
    net.rate = math.nan
    values = held(net)
    assert values.version() == 0
    values.after_run()
    net.options.rate = 7.0
    assert values.version() == 1
    assert "options.rate was 0.5 and is 7.0" in values.changed
    net.rate = 1.0
    assert values.version() == 2
    assert "Net.rate was nan and is 1.0" in values.changed


def test_versions_return() -> None:
    net = Net()
    values = held(net)
    found = []
    for rate, name in [(0.5, "a"), (0.25, "a"), (0.25, "b"), (0.5, "a"), (0.25, "b"), (0.5, "c")]:
        net.rate, net.options.name = rate, name
        found.append(values.version())
    assert found == [1, 2, 3, 1, 3, 4]
    assert values.versions == 5


def test_a_tensor_that_comes_back_is_the_same() -> None:
    net = Net()
    first, second = net.offset, torch.ones(2)
    values = held(net)
    found = []
    for tensor in (first, second, first, second, torch.ones(2)):
        net.offset = tensor
        found.append(values.version())
    assert found == [0, 1, 0, 1, 2]


# --- what programs change by themselves -----------------------------------------------------------


def test_objects_that_a_run_replaces_are_left_out_and_numbers_are_told() -> None:
    net = Net()
    values = held(net)
    net.rate, net.offset = 0.75, torch.ones(2)
    assert [name.rpartition(".")[2] for name in values.after_run()] == ["rate"]
    net.offset = torch.ones(2)
    assert values.version() == 0 and values.after_run() == []
    net.rate = 0.8
    assert values.version() == 1


def test_what_was_changed_before_a_run_is_still_looked_at() -> None:
    """`version` comes before each run: what it has seen is no change of the program's."""
    net = Net()
    values = held(net)
    net.rate = 0.75
    assert values.version() == 1
    values.after_run()
    net.rate = 0.5
    assert values.version() == 0
    values.after_run()
    net.rate = 0.75
    assert values.version() == 1


def test_versions_survive_what_is_left_out() -> None:
    net = Net()
    values = held(net)
    net.rate = 0.75
    assert values.version() == 1
    net.options.weight = torch.ones(2)  # by the program
    values.after_run()
    net.options.weight = torch.ones(2)
    assert values.version() == 1
    net.rate = 0.5
    assert values.version() == 0


# --- what must do no harm -------------------------------------------------------------------------


class Raises:
    def __init__(self) -> None:
        self.rate = 0.5

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    def __hash__(self) -> int:
        raise RuntimeError("hashed")

    def __bool__(self) -> bool:
        raise RuntimeError("asked for its truth")

    def __len__(self) -> int:
        raise RuntimeError("asked for its length")

    def __repr__(self) -> str:
        raise RuntimeError("printed")


class Table:
    """As pandas has it: columns as attributes, comparisons elementwise, an array if asked."""

    def __init__(self) -> None:
        self._columns = {"a": np.arange(10_000)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._columns[name]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise AssertionError("made into an array")

    def __eq__(self, other: object) -> Any:
        return np.ones(3, dtype=bool)

    __hash__ = None  # type: ignore[assignment]


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    rate: float = 0.5


@dataclasses.dataclass(slots=True)
class Slotted:
    rate: float = 0.5


class Evil(dict):
    """A dict that computes what it lacks."""

    def __missing__(self, key: Any) -> Any:
        raise AssertionError("asked for what it lacks")


def cyclic() -> Any:
    first, second = SimpleNamespace(rate=0.5), SimpleNamespace()
    first.other, second.other, first.all = second, first, [first, second]
    return first


ODD: dict[str, Callable[[], Any]] = {
    "raises at everything": Raises,
    "a table": Table,
    "a cycle": cyclic,
    "an enum": lambda: Colour.RED,
    "a frozen dataclass": Frozen,
    "slots": Slotted,
    "an evil dict": lambda: Evil(a=1),
    "a class": lambda: Options,
    "a module": lambda: math,
    "an array": lambda: np.ones(3),
    "an array of objects": lambda: np.array([None, {}], dtype=object),
    "a generator": lambda: (n for n in range(3)),
    "a file": lambda: open(__file__),
    "a lambda": lambda: lambda: BETA,
    "a builtin": lambda: len,
    "a set": lambda: {1, 2},
    "bytes": lambda: b"abc",
    "a device": lambda: torch.device("cpu"),
    "a generator of torch": torch.Generator,
    "a distribution": lambda: dist.Normal(torch.zeros(2), 1.0),
    "a partial of a method": lambda: functools.partial(Net().forward),
    "a cached function": lambda: functools.lru_cache(helper),
    "a bound builtin": lambda: [].append,
    "deep": lambda: functools.reduce(lambda inner, _: {"inner": inner}, range(5000), {}),
    "an object with properties": Options,
    "not a number": lambda: math.nan,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ODD)
def test_odd_objects_do_no_harm(name: str) -> None:
    thing = ODD[name]()
    net = Net()
    net.thing = thing  # type: ignore[assignment]
    net.others = {"thing": thing, "things": [thing], "pair": (thing, thing)}  # type: ignore[assignment]

    def program(x: Tensor) -> Tensor:
        return net(x) if thing is not None else x

    values = held(program, net)
    assert values.version() == 0
    values.after_run()
    net.rate = 0.125
    assert values.version() == 1
    assert "rate was 0.5 and is 0.125" in values.changed


def test_what_is_met_again_is_looked_at_once() -> None:
    """Also where two objects hold each other twice."""
    first = cyclic()
    values = held(lambda x: x * first.rate)
    assert len(values._reads) < 12


class Callable_:
    """A program that has no name, and raises when asked for one."""

    def __init__(self) -> None:
        self.rate = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.rate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(name)


def test_a_program_without_a_name() -> None:
    program = Callable_()
    values = held(program)
    program.rate = 0.25
    assert values.version() == 1


def test_large_tables_are_looked_at_up_to_a_limit() -> None:
    table = {f"word {n}": n for n in range(50_000)}
    values = held(lambda x: x * table["word 3"])
    assert len(values._reads) <= 2000
    table["word 3"] = 7
    assert values.version() == 1


def test_an_unfilled_closure() -> None:
    def outer() -> tuple[Any, Callable[[float], None]]:
        def program(x: Tensor) -> Tensor:
            return x * rate

        def fill(value: float) -> None:
            nonlocal rate
            rate = value

        if program is None:
            rate = 0.0
        return program, fill

    program, fill = outer()
    values = held(program)
    fill(0.5)
    assert values.version() == 1


def test_networks_of_a_library_have_few_places() -> None:
    """Hundreds of layers cost a look at a handful of places each."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    values = held(net)
    assert len(values._reads) <= 20 * 10


def test_a_change_that_shows_only_on_a_later_batch_is_no_change_to_be_kept() -> None:
    """A limit that no datum of the batch reaches at which it was lowered."""

    def trained(mode: Any) -> list[float]:
        limit = [10.0]

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z + x.clamp(max=limit[0]), 1.0), obs=x)

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = am.SVI(model, tiny.param_guide, lr=0.1, compile=mode)
        losses = []
        for number in range(8):
            limit[0] = 10.0 if number < 5 else 2.0
            x = tiny.data(8).clamp(max=1.0)
            x[0] = 5.0 if number > 5 else x[0]
            losses.append(svi.step(x))
        return losses

    assert trained("graph") == trained("off")
