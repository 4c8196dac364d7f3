from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger
from torch import Tensor, nn

import amortized as am
from amortized.checks import examination
from tests.checks.wrong import X, guide, model, named, prior, with_value


def codes(report: am.Report) -> list[tuple[str, str]]:
    return [(f.severity, f.code) for f in report.findings]


def decoding(decode: Any, *announced: nn.Module) -> Any:
    def program(x: Tensor) -> None:
        for number, net in enumerate(announced):
            pyro.module(f"net{number}", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(decode(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    return program


def test_zero_by_chance_is_not_reported() -> None:
    dead = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
    assert am.check(decoding(dead, dead), guide, X).findings == []
    blank = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        blank[2].weight.zero_()
    assert am.check(decoding(blank, blank), guide, X).findings == []
    assert not blank[2].weight.any() and bool((dead[0].bias == -100.0).all())


def test_a_term_that_is_switched_off_is_not_reported() -> None:
    net = nn.Linear(1, 1)
    off = poutine.mask(decoding(net, net), mask=torch.tensor(False))
    assert "no-gradient" not in {f.code for f in am.check(off, guide, X).findings}


def test_a_gradient_that_is_always_zero_is_reported() -> None:
    net = nn.Linear(1, 1)
    report = am.check(decoding(lambda z: net(z).round(), net), guide, X)
    assert codes(report) == [("warning", "no-gradient")]
    assert "exactly 0" in report.warnings[0].found


def test_parameters_of_a_branch_on_a_latent() -> None:
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)

    def branch(x: Tensor) -> None:
        pyro.module("one", one)
        pyro.module("two", two)
        z = pyro.sample("z", dist.Bernoulli(0.5))
        net = one if z > 0.5 else two
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    def coin(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(-30.0))))

    def fair(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    assert am.check(branch, fair, X).ok
    rare = am.check(branch, coin, X)
    assert codes(rare) == [("warning", "no-gradient")], "seen in no run: most likely a mistake"


def test_networks_for_other_batches() -> None:
    net = nn.Linear(1, 1)

    def semi(x: Tensor, y: Tensor | None = None) -> None:
        model(x)

    def semi_guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("labels", net)
        guide(x)
        if y is not None:
            net(y)

    assert codes(am.check(semi, semi_guide, X)) == [("note", "no-gradient")]
    given = am.check(semi, semi_guide, (X, torch.zeros(1)))
    assert codes(given) == [("warning", "no-gradient")], "called, and without effect"


def test_data_mistakes_do_not_hide_what_the_gradient_tells() -> None:
    net = nn.Linear(1, 1)

    def counted(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rate = net(z.unsqueeze(-1)).squeeze(-1).exp()
            pyro.sample("x", dist.Poisson(rate), obs=x)

    report = am.check(counted, guide, with_value(0, -3.0))
    assert codes(report) == [("error", "data-support"), ("warning", "untrained-module")]


def test_other_mistakes_do_not_hide_networks_that_nobody_trains() -> None:
    report = am.check(decoding(nn.Linear(1, 1)), named("zz"), X)
    assert ("warning", "untrained-module") in codes(report)
    assert ("error", "missing-in-guide") in codes(report)


def test_a_consequence_of_a_mistake_is_not_told_twice() -> None:
    report = am.check(prior(dist.Exponential(1.0)), guide, X)
    assert codes(report) == [("error", "support-mismatch")]


def test_a_question_that_fails_stops_nobody(monkeypatch: Any) -> None:
    def broken(*arguments: Any) -> Any:
        raise TypeError("unusual")

    monkeypatch.setattr(examination, "shape_findings", lambda *a: map(broken, [1]))
    report = am.check(model, named("zz"), X)
    assert ("note", "check-failed") in codes(report)
    assert ("error", "missing-in-guide") in codes(report)


def test_one_by_one_evaluation_is_checked_too() -> None:
    loss = am.VariationalLoss(am.ELBO(2), {"z": am.ScoreFunction(num_samples=2)}, vectorize=False)
    assert am.check(model, guide, X, loss=loss).findings == []


def test_kl_in_closed_form() -> None:
    assert am.check(model, guide, X, loss=am.VariationalLoss(am.ELBO(kl="analytic"))).ok


def test_writing_in_place_is_one_finding_and_leaves_the_batch_alone() -> None:
    def halving(x: Tensor) -> None:
        x /= 2.0
        guide(x)

    def doubling(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            z *= 2.0
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = X.clone()
    for pair in ((model, halving), (doubling, guide)):
        (finding,) = am.check(*pair, x).findings
        assert finding.code == "structure-varies" and "z = 2 * z" in finding.advice
    assert torch.equal(x, X)


def test_weights_that_pyro_multiplies_with_a_prior_mean_of_zero() -> None:
    def nested(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 2, dim=-2):
            t = pyro.sample("t", dist.Normal(m, 1.0))
            with pyro.plate("data", x.shape[-1], dim=-1):
                pyro.sample("x", dist.Normal(t, 1.0), obs=x)

    pair = nested, AutoHierarchicalNormalMessenger(nested)
    assert am.check(*pair, torch.randn(2, 5)).findings == []
