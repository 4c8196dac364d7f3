"""What every test starts from: a fixed seed, an empty parameter store, float32 unless marked."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pyro
import pytest
import torch

# Tiny tensors: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)

# No test opens a window, also not in a process that it starts.
os.environ["MPLBACKEND"] = "Agg"

# One profile for everybody, CI included: the same examples each time. To look for new ones:
# pytest --hypothesis-profile=explore
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile("fixed")

# These compare with exact values to rounding, so they are in float64 without having to say so.
HERE = Path(__file__).parent
IN_FLOAT64 = [HERE / name for name in ("laws", "differential", "spikes", "test_reference.py")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(place) for place in IN_FLOAT64):
            item.add_marker("float64")


@pytest.fixture(autouse=True)
def fresh_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed, empty store and default dtype before the test; global switches put back after it."""
    dtype = torch.get_default_dtype()
    os.environ.pop("COLUMNS", None)  # tables are as wide as they may be, whoever runs the tests
    wide = request.node.get_closest_marker("float64") is not None
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64 if wide else torch.float32)
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> Iterator[None]:
    """A shell that starts the tests in the background has Ctrl-C ignored, here and in children."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
