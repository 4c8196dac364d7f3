from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor, nn

import amortized as am
from amortized.checks import detached
from tests.checks.wrong import X, guide, named

READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda z: z.detach(),
    "data": lambda z: z.data,
    "tolist": lambda z: torch.tensor(z.tolist()),
    "numpy": lambda z: torch.from_numpy(z.detach().numpy()) ** 2,
    "no_grad": lambda z: torch.no_grad()(torch.sin)(z),
}
JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "comparison": lambda z: (z > 0).float(),
    "where": lambda z: torch.where(z > 0, 1.0, -1.0),
    "long": lambda z: (3 * z).long().float(),
    "index": lambda z: torch.tensor([0.0, 2.0])[(z > 0).long()],
}
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda z: z,
    "straight through": lambda z: z + (z.round() - z).detach(),
    "a part": lambda z: z + z.detach(),
    "not used": lambda z: torch.zeros_like(z),
    "noise": lambda z: torch.randn_like(z) * z,
    "noise alone": lambda z: torch.randn_like(z),
}
LOSSES = {
    "one draw": am.VariationalLoss(),
    "particles": am.VariationalLoss(am.ELBO(num_particles=3)),
    "one by one": am.VariationalLoss(am.ELBO(num_particles=2), vectorize=False),
    "closed form": am.VariationalLoss(am.ELBO(kl="analytic")),
}


def reading(read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(read(z), 1.0), obs=x)

    return program


def found(model: Any, own: Any = guide, loss: Any = None, batch: Any = X) -> list[tuple[Any, ...]]:
    report = am.check(model, own, batch, loss=loss)
    assert {f.code for f in report.findings} <= {"detached-latent"}, str(report)
    return [(f.severity, f.site) for f in report.findings]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("how", READINGS)
def test_a_draw_that_the_model_reads_without_a_gradient(how: str, loss: str) -> None:
    assert found(reading(READINGS[how]), loss=LOSSES[loss]) == [("error", "z")]


def test_such_a_guide_learns_nothing_from_the_data() -> None:
    gradients = []
    for data in (X, 10.0 + X):
        # the loss sees other data than the guide, and tells it nothing of them
        torch.manual_seed(0)
        detached = reading(lambda z, data=data: z.detach() - data + X)
        with pyro.get_param_store().scope():
            loss = am.VariationalLoss().differentiable_loss(detached, guide, X)
            slope = pyro.param("slope").unconstrained()
            gradients.append(torch.autograd.grad(loss, slope)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("how", JUMPS)
def test_a_draw_that_decides_in_jumps(how: str) -> None:
    assert found(reading(JUMPS[how])) == [("warning", "z")]


@pytest.mark.parametrize("how", [*READINGS, *JUMPS])
def test_the_score_function_needs_no_gradient(how: str) -> None:
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction()})
    assert found(reading({**READINGS, **JUMPS}[how]), loss=loss) == []


@pytest.mark.parametrize("how", RIGHT)
def test_right_programs(how: str) -> None:
    assert found(reading(RIGHT[how])) == []


def test_a_value_that_is_written_into_is_not_taken_for_a_detached_one() -> None:
    report = am.check(reading(lambda z: z.mul_(2.0)), guide, X)
    assert [(f.code, f.site) for f in report.findings] == [("structure-varies", "z")]


def test_a_program_that_changes_by_itself_is_not_blamed_on_a_latent() -> None:
    calls = []

    def model(x: Tensor) -> None:
        calls.append(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(float(len(calls)), 1.0), obs=x)

    report = am.check(model, guide, X)
    assert {f.code for f in report.findings} == {"structure-varies"}


@pytest.mark.parametrize("second", ["x", "both", "neither"])
def test_of_several_latents_the_one_is_named(second: str) -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a if second == "both" else 0.0, 1.0))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        loc = b + c + (0.0 if second == "neither" else a.detach())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    expected = {"x": [("error", "a")], "both": [("warning", "a")], "neither": []}
    assert found(model, AutoMultivariateNormal(model)) == expected[second]


def test_many_latents_of_which_several_are_read() -> None:
    def model(x: Tensor) -> None:
        total = torch.tensor(0.0)
        for n in range(20):
            z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
            total = total + (z.detach() if n % 3 == 0 else z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    report = am.check(model, AutoMultivariateNormal(model), X)
    (finding,) = report.errors
    assert finding.site == "z_0" and "and likewise 'z_12'" in finding.where


def test_dropout_between_the_latent_and_the_data_is_the_same_in_every_run() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1), nn.Linear(1, 1))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            a = pyro.sample("z", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(b.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)
            pyro.sample("y", dist.Normal(a, 1.0), obs=x)

    def own(x: Tensor) -> None:
        guide(x)
        named("b")(x)

    assert found(model, own) == []


def test_a_mistake_of_its_own_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(records: Any, layout: Any) -> None:
        """As after a change of what it is called with."""

    monkeypatch.setattr(detached, "model_terms", broken)
    (note,) = am.check(reading(READINGS["detach"]), guide, X).notes
    assert note.code == "check-failed" and "TypeError" in note.found


BITS = {
    "index": lambda z: torch.tensor([0.0, 2.0])[z.long()],
    "comparison": lambda z: (z > 0.5).float(),
    "detach": lambda z: z.detach(),
}


def coins(read: Callable[[Tensor], Tensor], one_hot: bool) -> tuple[Any, Any]:
    shape = (2,) if one_hot else ()
    family = dist.OneHotCategorical if one_hot else dist.Bernoulli

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family(logits=torch.zeros(shape)))
            z = z[..., 0] if one_hot else z
            pyro.sample("x", dist.Normal(read(z), 1.0), obs=x)

    def own(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(shape))
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(logits=logits))

    return program, own


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(
    "estimator", [am.REBAR(), am.REBAR(tied=True), am.MuProp(), am.RELAX(relaxed_model=True)]
)
def test_estimators_that_take_slopes_want_some(estimator: Any, one_hot: bool) -> None:
    loss = am.VariationalLoss(estimators=estimator)
    for read in BITS.values():
        pair = coins(read, one_hot)
        assert found(*pair, loss) == [("warning", "z")]
        # its control variate is a network's
        assert found(*pair, am.VariationalLoss(estimators=am.RELAX())) == []
    (finding,) = am.check(*coins(BITS["index"], one_hot), X, loss=loss).findings
    assert repr(estimator) in finding.found and "am.DisARM()" in finding.advice
    for smooth in (lambda z: 3 * z, torch.sin, torch.zeros_like):
        assert found(*coins(smooth, one_hot), loss) == []
