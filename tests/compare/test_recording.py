from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amortized.compare.recording import NotRecordedError, recorded

LEAF = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)


def slope() -> Tensor:
    value = (LEAF * torch.randn(3)).exp().sum() + torch.zeros(3).normal_().sum() * LEAF[0]
    return torch.autograd.grad(value, LEAF)[0]


def test_a_recording_repeats_the_evaluation_under_every_state():
    found = recorded(slope)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = slope()
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(found(torch.zeros(())), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_parameters_are_taken_as_they_are_at_each_run():
    found = recorded(lambda: (LEAF * torch.ones(3)).detach() * 2)
    with torch.no_grad():
        LEAF.add_(1.0)
    try:
        assert torch.equal(found(torch.zeros(())), 2 * LEAF.detach())
    finally:
        with torch.no_grad():
            LEAF.sub_(1.0)


def test_no_graph_of_autograd_is_left():
    assert not recorded(lambda: LEAF * 2)(torch.zeros(())).requires_grad


def test_draws_differ_under_vmap():
    run = torch.func.vmap(recorded(slope), randomness="different")
    draws = run(torch.zeros(20))
    assert draws.shape == (20, 3)
    assert len(draws.unique(dim=0)) == 20


def test_elements_are_those_of_all_results():
    assert recorded(lambda: torch.zeros(7).exp() + 1.0).elements >= 14


def test_values_of_noise_are_not_read_and_others_are():
    with pytest.raises(NotRecordedError, match="read the value"):
        recorded(lambda: LEAF * torch.rand(()).item())
    with pytest.raises(NotRecordedError, match="read the value"):
        recorded(lambda: LEAF * torch.zeros(()).copy_(torch.rand(())).item())
    with pytest.raises(NotRecordedError, match="read the value"):
        recorded(lambda: LEAF * torch.rand(2).tolist()[0])
    found = recorded(lambda: LEAF * torch.tensor(2.0).item() + torch.rand(3))
    assert found(torch.zeros(())).shape == (3,)


def test_noise_in_a_part_of_another_tensor_is_refused():
    def part() -> Tensor:
        noise = torch.zeros(4)
        noise[:3].normal_()
        return LEAF * noise[:3]

    with pytest.raises(NotRecordedError, match="other uses"):
        recorded(part)


def test_what_is_no_result_of_torch_calls_is_refused():
    with pytest.raises(NotRecordedError, match="does not come from recorded calls"):
        recorded(lambda: LEAF)


def test_the_compiler_of_torch_is_not_imported():
    import subprocess
    import sys

    code = (
        "import sys, torch\n"
        "from amortized.compare.recording import recorded\n"
        "from amortized.compare.memory import peak_bytes\n"
        "recorded(lambda: torch.rand(3) * 2); peak_bytes(lambda: torch.rand(3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
