from __future__ import annotations

import torch
from torch import nn

import amortized as am
from amortized.checks.calls import Calls, left_dim_findings


def test_calls_are_recorded_by_side_and_the_hook_goes_away() -> None:
    net, calls = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), Calls()
    with calls.recorded("guide"):
        net(torch.zeros(4, 3))
    net[0](torch.zeros(9, 9, 9, 3))
    assert calls.sides == dict.fromkeys(map(id, (net, net[0], net[1])), "guide")
    assert calls.dims[id(net[0])] == 2


def test_networks_for_one_batch_dim_that_met_more() -> None:
    calls, fine = Calls(), nn.Linear(4, 4)
    conv, inside = nn.Conv1d(1, 1, 1), nn.GRU(4, 2)
    folded = am.Fold(nn.Flatten(), event_dim=1)
    with calls.recorded():
        for net in (fine, conv, folded, inside):
            net(torch.zeros(5, 1, 4))
    before = dict(calls.dims)
    with calls.recorded():
        fine(torch.zeros(2, 5, 1, 4))
        folded(torch.zeros(2, 5, 1, 4))
        for net in (conv, inside):
            try:
                net(torch.zeros(2, 5, 1, 4))
            except (RuntimeError, ValueError):
                pass
    assert calls.suspects(before) == [conv, inside]
    (note,) = left_dim_findings(calls.suspects(before))
    assert note.severity == "note" and "Conv1d, GRU" in note.where
    assert list(left_dim_findings([])) == []


def test_compiled_modules_are_not_hooked() -> None:
    net = nn.Linear(1, 1)
    OptimizedModule = type("OptimizedModule", (nn.Module,), {})
    calls = Calls([net, OptimizedModule()])
    with calls.recorded("model"):
        net(torch.zeros(1))
    assert calls.dims == {} and id(net) in calls.modules
