from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.compare.candidates import Pair
from amortized.compare.groups import Trained, trained
from amortized.errors import ProgramError, UsageError
from tests.compare import coin


def names(known: Trained, group: str) -> set[str]:
    columns = next(g.columns for g in known.groups if g.name == group)
    row = torch.zeros(sum(leaf.numel() for leaf in known.leaves.values()))
    row[columns] = 1
    parts = known.by_name(row)
    assert all(part.min() == part.max() for part in parts.values())
    return {name for name, part in parts.items() if bool(part.any())}


def test_groups_are_sides_sites_and_what_was_asked_for():
    known = trained(Pair(*coin.chain(), coin.chain_batch()), ["head.*", "shifts"])
    *parts, one, two, three = [g.name for g in known.groups]
    assert parts == ["model", "guide", "site z", "site c"]
    assert {one, two, three} == {
        "parameter shifts",
        "parameter head.weight",
        "parameter head.bias",
    }
    assert names(known, "model") == {"decoder.weight", "decoder.bias", "shifts"}
    guide = {"encoder.weight", "encoder.bias", "head.weight", "head.bias"}
    assert names(known, "guide") == guide
    assert names(known, "site z") == {"encoder.weight", "encoder.bias"}
    # though the value of z, on which the law of c depends, carries the encoder's gradient
    assert names(known, "site c") == {"head.weight", "head.bias"}


def test_a_body_that_sites_share_belongs_to_none_of_them():
    body, heads = nn.Linear(1, 2), nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = body, heads

        def forward(self) -> None:
            hidden = self.body(torch.ones(1))
            for name, head in zip("ab", self.heads, strict=True):
                pyro.sample(name, dist.Bernoulli(logits=head(hidden)).to_event(1))

    def model() -> None:
        for name in "ab":
            pyro.sample(name, dist.Bernoulli(torch.full((1,), 0.5)).to_event(1))

    known = trained(Pair(model, Guide(), ()))
    assert [g.name for g in known.groups] == ["guide", "site a", "site b"]
    assert names(known, "site a") == {"guide.heads.0.weight", "guide.heads.0.bias"}


def test_autoguides_frozen_parameters_and_modules():
    net = nn.Linear(1, 1)
    net.bias.requires_grad_(False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.net(z.reshape(1)), 1.0).to_event(1), obs=x)

    model = Model()
    known = trained(Pair(model, pyro.infer.autoguide.AutoNormal(model), torch.ones(1)))
    assert names(known, "model") == {"model.net.weight"}
    assert names(known, "guide") == {"guide.locs.z_unconstrained", "guide.scales.z_unconstrained"}


def test_no_parameters_and_failing_programs():
    def empty() -> None:
        pyro.sample("b", dist.Bernoulli(0.5))

    with pytest.raises(UsageError, match="have no parameter"):
        trained(Pair(empty, empty, ()))
    with pytest.raises(ProgramError, match="the guide raised ZeroDivisionError"):
        trained(Pair(empty, lambda: 1 / 0, ()))
    with pytest.raises(UsageError, match=r"'dekoder\.\*' matches none of"):
        trained(Pair(*coin.chain(), coin.chain_batch()), ["dekoder.*"])


def test_estimators_own_parameters_are_nobodys():
    loss = am.VariationalLoss(estimators="neural_baseline")
    loss.warm_up(coin.model, coin.guide, ())
    assert list(trained(Pair(coin.model, coin.guide, ())).leaves) == ["phi"]
