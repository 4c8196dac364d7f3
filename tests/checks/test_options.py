from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.checks.options import may_vary
from tests.checks.wrong import X, guide, model

Y = torch.ones(6)


class Decoder(nn.Module):
    """Forgets a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.used(z.unsqueeze(-1)).squeeze(-1)


def labelled(x: Tensor, y: Tensor | None = None) -> None:
    model(x)


def using(net: nn.Module, when: Callable[[Any], bool]) -> Callable[..., None]:
    """A guide that announces a network, and uses it or does not, as labels are given."""

    def program(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("net", net)
        loc = pyro.param("slope", torch.tensor(0.5)) * x
        if when(y):
            loc = loc + net(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return program


NEVER, WITH, WITHOUT = (lambda y: False), (lambda y: y is not None), (lambda y: y is None)


@pytest.mark.parametrize(
    ("when", "batch", "severity"),
    [
        (WITH, (X, Y), None),
        (WITHOUT, (X,), None),
        (WITHOUT, (X, Y), "note"),
        (WITH, (X,), "note"),
        (NEVER, (X,), "note"),
        (NEVER, (X, None), "note"),
        (NEVER, {"x": X}, "note"),
        (NEVER, (X, Y), "warning"),
        (NEVER, {"x": X, "y": Y}, "warning"),
    ],
)
def test_networks_that_a_batch_leaves_out(when: Any, batch: Any, severity: str | None) -> None:
    report = am.check(labelled, using(nn.Linear(1, 1), when), batch)
    assert [f.code for f in report.findings] == ([] if severity is None else ["no-gradient"])
    assert [f.severity for f in report.findings] == ([] if severity is None else [severity])


@pytest.mark.parametrize("batch", [(X,), (X, Y)])
def test_a_layer_that_its_own_network_forgets_is_never_used(batch: Any) -> None:
    decoder = Decoder()

    def decoding(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(decoder(z), 1.0), obs=x)

    (finding,) = am.check(decoding, lambda x, y=None: guide(x), batch).findings
    assert finding.severity == "warning"
    assert finding.where == "parameters 'decoder.unused.bias', 'decoder.unused.weight'"


def test_programs_that_fail_without_an_option_tell_nothing() -> None:
    def needs(x: Tensor, y: Tensor | None = None) -> None:
        using(net, NEVER)(x + (0.0 * y if y is not None else y))  # type: ignore[operator]

    net = nn.Linear(1, 1)
    assert [f.severity for f in am.check(labelled, needs, (X, Y)).findings] == ["note"]


def test_what_may_vary() -> None:
    assert may_vary((labelled, guide), (X,), {})
    assert not may_vary((model, guide), (X,), {})
    assert may_vary((model, guide), (X,), {"y": None})
