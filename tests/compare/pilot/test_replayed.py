import pyro
import torch
from torch import Tensor

from amortized.checks.isolation import seed_torch
from amortized.compare.candidates import Pair, as_candidate
from amortized.compare.groups import trained
from amortized.compare.pilot.replayed import replayed
from amortized.compare.recording import recorded
from tests.compare import coin


def test_a_gradient_is_the_same_bit_for_bit():
    pair = Pair(*coin.chain(), coin.chain_batch())
    leaves = list(trained(pair).leaves.values())
    for name in ("leave_one_out", "enumerate", "unordered_set"):
        candidate = as_candidate(name, {"c": name})
        candidate.prepare(pair, 0)
        candidate.gradient(pair, leaves)
        with candidate.quiet(), pyro.validation_enabled(False):
            recording = recorded(lambda c=candidate: c.gradient(pair, leaves))
        again = replayed(recording)
        for seed in range(3):
            seed_torch(seed)
            expected = recording(torch.zeros(()))
            seed_torch(seed)
            assert torch.equal(again(torch.zeros(())), expected)


def test_what_nobody_reads_is_not_run_and_writes_are():
    base = torch.zeros(3)

    def evaluate() -> Tensor:
        values = torch.ones(3)
        values.exp()
        values.add_(1.0)
        first, second = values.split([1, 2])
        return torch.cat([second, first]) + base

    recording = recorded(evaluate)
    again = replayed(recording)
    assert torch.equal(again(torch.zeros(())), torch.full((3,), 2.0))
    base.fill_(1.0)  # what comes from outside is taken as it is now
    assert torch.equal(again(torch.zeros(())), torch.full((3,), 3.0))
