import random

import numpy as np
import pytest
import torch

from amortized.fit.rng import fresh_seed, preserved_rng, seeded, side_stream


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
