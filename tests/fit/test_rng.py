import random

import numpy as np
import pytest
import torch

from amortized.fit.rng import (
    fresh_seed,
    preserved_rng,
    restore_rng,
    rng_state,
    seeded,
    side_stream,
)


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_all_three_generators_come_back() -> None:
    with preserved_rng():
        expected = draws()
    with preserved_rng():
        draws()
    assert draws() == expected


def test_they_come_back_after_an_error() -> None:
    with preserved_rng():
        expected = draws()
    with pytest.raises(KeyError), seeded(3):
        draws()
        raise KeyError
    assert draws() == expected


def test_a_seed_decides_and_none_goes_on() -> None:
    found = []
    for _ in range(2):
        with seeded(5):
            found.append(draws())
    assert found[0] == found[1]
    with seeded(None):
        first = draws()
    assert draws() != first


def test_a_side_stream_differs_from_the_main_one_and_is_decided_by_it() -> None:
    with side_stream():
        first = torch.rand(4)
    with side_stream():
        again = torch.rand(4)
    assert torch.equal(first, again) and not torch.equal(first, torch.rand(4))
    with side_stream():
        assert not torch.equal(first, torch.rand(4))


def test_fresh_seeds_follow_the_global_stream() -> None:
    torch.manual_seed(1)
    seeds = fresh_seed(), fresh_seed()
    torch.manual_seed(1)
    assert seeds == (fresh_seed(), fresh_seed()) and seeds[0] != seeds[1]


def test_a_state_brings_every_generator_back_also_from_a_file(tmp_path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    np.random.randn()  # leaves a second number behind, which belongs to the state
    random.gauss(0.0, 1.0)
    state = rng_state()
    torch.save(state, tmp_path / "state.pt")
    expected = [(*draws(), float(np.random.randn()), random.gauss(0.0, 1.0)) for _ in range(3)]
    for found in (state, torch.load(tmp_path / "state.pt", weights_only=True)):
        draws()
        restore_rng(found)
        again = [(*draws(), float(np.random.randn()), random.gauss(0.0, 1.0)) for _ in range(3)]
        assert again == expected


def test_a_state_is_not_moved_by_later_draws() -> None:
    state = rng_state()
    first = draws()
    restore_rng(state)
    assert draws() == first
    restore_rng(state)
    assert draws() == first


def test_the_state_of_gpus_that_are_not_there_is_left_out(monkeypatch) -> None:
    state = rng_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 3}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_rng(state)
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: seen.append(device))
    restore_rng(state)
    assert seen == [0, 1]


def test_a_seed_may_be_an_integer_of_numpy() -> None:
    found = []
    for seed in (3, np.int64(3), np.uint8(3)):
        with seeded(seed):  # pyright: ignore[reportArgumentType]
            found.append(draws())
    assert found[0] == found[1] == found[2]
    with pytest.raises(TypeError, match="integer"), seeded(3.5):  # pyright: ignore
        pass
