from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amortized.checks.gradients import (
    backward_finding,
    gradients_of,
    moved,
    no_gradient_findings,
    non_finite_gradient_findings,
    nothing_learns_finding,
    rare_findings,
    zero_findings,
    zero_names,
)
from amortized.checks.inventory import Inventory


def leaf(value: float = 1.0) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def known(*names: str) -> Inventory:
    fitted = {name: leaf() for name in names}
    return Inventory(fitted, {name: name.split(".")[0] for name in names})


def test_parameters_without_a_path_are_said_by_network() -> None:
    parameters = known("net.weight", "net.bias", "loc", "scale")
    reached = {id(parameters.fitted["loc"])}
    found = list(no_gradient_findings(reached, parameters, [], excused=[]))
    assert [f.where for f in found] == [
        "parameters 'net.bias', 'net.weight'",
        "parameter 'scale'",
    ]
    assert {f.severity for f in found} == {"warning"}


def test_networks_that_were_not_called_may_have_their_turn() -> None:
    net = nn.Linear(1, 1)
    parameters = Inventory(dict(net.named_parameters()), dict.fromkeys(["weight", "bias"], "net"))
    parameters.networks = [net]
    own = [id(p) for p in net.parameters()]
    (warning,) = no_gradient_findings([], parameters, [], excused=[])
    (note,) = no_gradient_findings([], parameters, [], excused=own)
    assert "did not use" in warning.found
    assert (warning.severity, note.severity) == ("warning", "note")
    (called,) = no_gradient_findings([], parameters, [id(net)], excused=own)
    assert called.severity == "warning"
    assert [f.severity for f in rare_findings([], parameters)] == ["note"]
    assert list(rare_findings([id(p) for p in net.parameters()], parameters)) == []


def test_gradients_by_name() -> None:
    a, b = leaf(2.0), leaf()
    assert gradients_of(a * a, {"a": a, "b": b}) == {"a": torch.tensor(4.0)}
    assert gradients_of(torch.tensor(1.0), {"a": a}) == {} == gradients_of(a, {})
    assert a.grad is None


def test_gradients_that_are_not_finite_or_zero() -> None:
    gradients = {"a": torch.tensor([1.0, torch.nan]), "b": torch.zeros(3), "c": torch.ones(2)}
    (finding,) = non_finite_gradient_findings(gradients)
    assert finding.where == "parameter 'a'"
    assert zero_names(gradients) == ["b"]
    (finding,) = zero_findings(["net.a", "net.b"], known("net.a", "net.b"))
    assert finding.severity == "warning" and "exactly 0" in finding.found


def test_moved_parameters_come_back() -> None:
    tensors = [torch.ones(3, requires_grad=True), torch.arange(3)]
    try:
        with moved(tensors, 1.0):
            assert not torch.equal(tensors[0], torch.ones(3))
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(tensors[0], torch.ones(3)) and tensors[0].requires_grad


def test_gradients_that_torch_cannot_take() -> None:
    a = leaf()
    written = a.exp()
    written += 1
    twice = a.exp()
    twice.backward()
    for result, advice in (
        (written, "instead of writing into one"),
        (twice, "from one run to the next"),
        (a.detach(), "mask of False"),
    ):
        with pytest.raises(RuntimeError) as caught:
            result.backward()
        finding = backward_finding(caught.value)
        assert finding is not None and finding.severity == "error" and advice in finding.advice
        assert "Hint" not in finding.found and finding.error is caught.value
    for other in (RuntimeError("out of memory"), ValueError("does not require grad")):
        assert backward_finding(other) is None
    assert nothing_learns_finding().code == "no-gradient"
