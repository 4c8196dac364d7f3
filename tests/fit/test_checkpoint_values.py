from __future__ import annotations

import io
import math
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortized.errors import CheckpointError
from amortized.fit.checkpoint_values import (
    brief,
    canonical,
    checksum,
    differences,
    fingerprint,
    json_value,
    number_of,
    storable,
)
from tests.fit.saved import same, state_of

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.float8_e4m3fn,
]


def reloaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save({"x": value}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["x"]


PLAIN = [
    None,
    True,
    0,
    -(2**200),
    10**613,
    0.1,
    math.inf,
    math.nan,
    1j,
    "",
    "naïve \ud800",
    (),
    [],
    {},
    [1, (2, [3.0])],
    {1: "a", "b": None, 0.5: True, None: 0},
    OrderedDict(b=1, a=2),
    Counter("aab"),
    torch.Size([2, 3]),
    torch.float16,
    torch.device("cuda:1"),
    state_of(4),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: str(value)[:20])
def test_plain_values_come_back_bit_for_bit(value: Any) -> None:
    assert same(storable(value), value)
    assert same(reloaded(storable(value)), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)], ids=str)
def test_tensors_of_every_dtype_come_back_bit_for_bit(dtype: torch.dtype, shape) -> None:
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    content = torch.randint(0, 2, (count,), dtype=torch.uint8)
    value = content.view(dtype).reshape(shape)
    assert same(reloaded(storable(value)), value)


def test_signs_of_zero_and_not_a_number_are_kept() -> None:
    value = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45])
    assert same(reloaded(storable(value)), value)


def test_tensors_are_detached_and_stripped_of_attributes() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.unconstrained = print  # pyro puts such things on tensors
    stored = storable({"p": parameter, "y": parameter * 2})
    assert type(stored["p"]) is torch.Tensor and not stored["p"].requires_grad
    assert stored["y"].grad_fn is None and vars(stored["p"]) == {}
    assert stored["p"].data_ptr() == parameter.data_ptr()  # no copy: saving needs no second memory
    assert same(reloaded(stored), {"p": torch.ones(2), "y": torch.full((2,), 2.0)})


def test_a_view_does_not_take_its_storage_along() -> None:
    large = torch.arange(100_000.0)
    for view in (large[3:5], large[::50_000], large[:0], large.view(10, -1)[:, 7].t()):
        stored = storable(view)
        assert stored.untyped_storage().nbytes() == view.numel() * 4
        assert same(stored, view)
    wide = torch.ones(1).expand(1000)
    assert same(reloaded(storable(wide)), wide)


def test_tied_tensors_share_their_bytes_in_the_file() -> None:
    weight = torch.ones(1000)
    again = reloaded(storable([weight, weight]))
    assert again[0].data_ptr() == again[1].data_ptr()


def test_lazy_conjugates_are_resolved() -> None:
    value = torch.tensor([1 + 2j, 3 - 1j]).conj()
    assert torch.equal(reloaded(storable(value)), torch.tensor([1 - 2j, 3 + 1j]))
    assert torch.equal(reloaded(storable(value.imag)), torch.tensor([-2.0, 1.0]))


def test_a_state_dict_keeps_the_versions_of_its_layers() -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    again = reloaded(storable(state))
    assert same(again, state) and again._metadata == state._metadata


def test_what_is_stored_is_a_copy_of_the_containers() -> None:
    value = {"a": [1, {"b": 2}]}
    stored = storable(value)
    value["a"][1]["b"] = 3
    assert stored == {"a": [1, {"b": 2}]}


class Subclass(torch.Tensor):
    pass


REFUSED = [
    (np.ones(2), "numpy.ndarray"),
    (Path("a"), "Path"),
    ({1}, "of type set"),
    (frozenset([1]), "frozenset"),
    (b"", "of type bytes"),
    (b"a", "of type bytes"),
    (bytearray(b"a"), "bytearray"),
    (range(3), "range"),
    (print, "builtin_function"),
    (lambda: 0, "of type function"),
    (defaultdict(int), "collections.defaultdict"),
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (torch.Generator(), "Generator"),
    (torch.strided, "torch.layout"),
    (torch.ones(2).as_subclass(Subclass), "Subclass"),
    (torch.nn.UninitializedParameter(), "UninitializedParameter"),
    (torch.ones(2).to_sparse(), "sparse_coo"),
    (torch.empty(2, device="meta"), "on meta"),
    (10**700, "integer of 2326 bits"),
    (-(10**700), "integer of 2326 bits"),
    (type("Text", (str,), {})("a"), "Text"),
    (Ellipsis, "ellipsis"),
]


@pytest.mark.parametrize(("value", "found"), REFUSED, ids=lambda value: str(value)[:20])
def test_what_would_not_load_is_refused_by_its_place(value: Any, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        storable({"optimizer": [0, {"x": value}]})
    message = str(caught.value)
    assert message.startswith("state['optimizer'][1]['x'] is ") and found in message
    assert "\n" not in message and "a checkpoint holds" in message


@pytest.mark.parametrize("key", [(1, 2), torch.Size([1]), b"a", Path("a"), 10**700], ids=repr)
def test_keys_are_strings_or_numbers(key: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a key of state\['a'\] is "):
        storable({"a": {key: 1}})


def test_refused_versions_of_layers_are_named() -> None:
    state = torch.nn.Linear(1, 1).state_dict()
    state._metadata[""]["version"] = {1}
    with pytest.raises(
        CheckpointError, match=r"state\._metadata\[''\]\['version'\] is of type set"
    ):
        storable(state)


def test_endless_values_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for value in (endless, deep):
        with pytest.raises(CheckpointError, match="state is nested too deeply or contains itself"):
            storable(value)
        with pytest.raises(CheckpointError, match="config is nested too deeply"):
            json_value(value, "config")


def test_json_values_are_what_json_gives_back() -> None:
    value = {"a": (1, 2.5), "b": [None, True], "c": OrderedDict(d="é")}
    assert json_value(value, "config") == {"a": [1, 2.5], "b": [None, True], "c": {"d": "é"}}


def test_what_json_has_no_number_for_is_named_and_read_back() -> None:
    values = [math.inf, -math.inf, np.float32(math.inf), np.float64(math.nan)]
    named = json_value(values, "config")
    assert named == ["inf", "-inf", "inf", "nan"]
    assert [repr(number_of(name)) for name in named] == ["inf", "-inf", "inf", "nan"]
    assert [number_of(other) for other in ("infinity", 2, None)] == ["infinity", 2, None]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [Path("a")]}, r"config\['a'\]\[0\] is of type pathlib"),
        ({"a": {1: 2}}, r"a key of config\['a'\] is of type int"),
        ({"a": torch.ones(1)}, r"config\['a'\] is of type torch.Tensor"),
    ],
)
def test_what_json_cannot_hold_is_refused(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        json_value(value, "config")


def test_the_checksum_sees_the_content_only() -> None:
    assert checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1})
    values = [{}, [], None, 0, 0.0, "0", {"a": 0}, {"a": "0"}, {"a": None}, math.nan, math.inf]
    assert len({checksum(value) for value in values}) == len(values)
    assert canonical({"é": "\ud800"}) == rb'{"\u00e9":"\ud800"}'


def test_errors_are_brief_and_on_one_line() -> None:
    assert brief(ValueError("a\n  b. And c")) == "ValueError: a b"
    assert brief("x" * 200) == "x" * 119 + "…"
    assert brief(KeyError("k")) == "KeyError: 'k'" and brief(EOFError()) == "EOFError"


def test_no_differences() -> None:
    parameters = {"a": torch.ones(2, 3), "b": torch.ones((), dtype=torch.float64)}
    assert differences(fingerprint(parameters), parameters) == []
    assert differences(fingerprint({}), {}) == []


def test_differences_are_sentences_that_name_the_parameter() -> None:
    before = {
        "guide.encoder.weight": torch.ones(16, 64),
        "guide.old": torch.ones(3),
        "scale": torch.ones(()),
        "both": torch.ones(2),
    }
    now = {
        "both": torch.ones(3, dtype=torch.float64),
        "guide.encoder.weight": torch.ones(32, 64),
        "guide.new": torch.ones(3, 1),
        "scale": torch.ones((), dtype=torch.float64),
    }
    assert differences(fingerprint(before), now) == [
        "both: the file has (2,), the program (3,)",
        "both: the file has float32, the program float64",
        "guide.encoder.weight: the file has (16, 64), the program (32, 64)",
        "guide.new: the file has no such parameter, the program has (3, 1)",
        "scale: the file has float32, the program float64",
        "guide.old: the file has (3,), the program has no such parameter",
    ]


def test_the_hash_of_a_fingerprint_sees_every_change() -> None:
    variants = [
        {"a": torch.ones(2)},
        {"b": torch.ones(2)},
        {"a": torch.ones(2, 1)},
        {"a": torch.ones(2).double()},
        {},
    ]
    assert len({fingerprint(variant)["hash"] for variant in variants}) == len(variants)
    assert fingerprint({"a": torch.ones(2)}) == fingerprint({"a": torch.zeros(2)})


def test_numpy_numbers_are_kept_as_numbers() -> None:
    """Schedulers written with numpy leave them in the optimizer's options."""
    found = storable({"lr": np.float64(0.5), "n": np.int32(3)})
    assert found == {"lr": 0.5, "n": 3} and [type(v) for v in found.values()] == [float, int]
    assert type(json_value(np.float32(0.5), "config")) is float
