"""Beta and free bits by site, for every way a KL is computed."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from tests.laws.structures import DATA, weight
from tests.reference import FixedNoise, estimate_law

pytestmark = pytest.mark.float64

NAMES = ("a", "b", "e", "w")


def model() -> None:
    """Two bits a datum: z, then y given z."""
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3).expand(2)))
        y = pyro.sample("y", dist.Bernoulli(logits=0.5 * z))
        pyro.sample("x", dist.Normal(z * weight("w", 0.7) + y, 1.0), obs=DATA)


def guide() -> None:
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.9) * DATA))
        pyro.sample("y", dist.Bernoulli(logits=weight("e", 0.3) * z))


def exact(beta: dict[str, float], free: dict[str, float]) -> list[Tensor]:
    """The reconstruction minus beta max(free, KL) by site, averaged over two data, times two."""
    start = {"a": 0.9, "b": -0.3, "e": 0.3, "w": 0.7}
    p = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    parts = {"x": torch.zeros(()), "z": torch.zeros(()), "y": torch.zeros(())}
    for x in DATA:
        for z, y in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2):
            q_z = dist.Bernoulli(logits=p["a"] * x).log_prob(z)
            q_y = dist.Bernoulli(logits=p["e"] * z).log_prob(y)
            mass = (q_z + q_y).exp()
            parts["x"] = parts["x"] + mass * dist.Normal(z * p["w"] + y, 1.0).log_prob(x)
            parts["z"] = parts["z"] + mass * (q_z - dist.Bernoulli(logits=p["b"]).log_prob(z))
            parts["y"] = parts["y"] + mass * (q_y - dist.Bernoulli(logits=0.5 * z).log_prob(y))
    total = parts["x"]
    for site in "zy":
        floor = torch.tensor(2 * free.get(site, 0.0))
        total = total - beta.get(site, 1.0) * torch.maximum(floor, parts[site])
    leaves = [p[name] for name in NAMES]
    return [total.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def mean(loss: am.VariationalLoss) -> list[Tensor]:
    loss.warm_up(model, guide, ())
    loss.eval()
    leaves = [pyro.get_param_store()[name].unconstrained() for name in NAMES]

    def run(tree: Any) -> list[Tensor]:
        value = -loss.estimate(model, guide, (), {}, noise=tree).loss
        return [value, *torch.autograd.grad(value, leaves, materialize_grads=True)]

    return estimate_law(run, noise=FixedNoise(), limit=10**6).mean


CASES: dict[str, dict[str, dict[str, float]]] = {
    "beta": {"beta": {"z": 3.0, "y": 0.25}},
    "one closed": {"free_bits": {"z": 5.0}},
    "both closed": {"free_bits": {"z": 5.0, "y": 5.0}},
    "open": {"free_bits": {"z": 1e-3}},
    "together": {"beta": {"z": 2.0}, "free_bits": {"z": 5.0, "y": 1e-9}},
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("vectorize", [True, False])
def test_summed_out_sites_give_the_exact_number(case: str, vectorize: bool) -> None:
    given = CASES[case]
    loss = am.VariationalLoss(am.ELBO(**given), "enumerate", vectorize=vectorize)  # type: ignore[arg-type]
    for found, truth in zip(
        mean(loss), exact(given.get("beta", {}), given.get("free_bits", {})), strict=True
    ):
        assert torch.allclose(found, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("estimator", ["score_function", "leave_one_out", "disarm"])
@pytest.mark.parametrize("case", ["beta", "both closed"])
def test_sampled_sites_give_it_on_average(case: str, estimator: str) -> None:
    """Free bits that no draw reaches: which sites are closed is then no matter of chance."""
    given = CASES[case]
    loss = am.VariationalLoss(am.ELBO(**given), {"z": estimator, "y": "score_function"})  # type: ignore[arg-type]
    for found, truth in zip(
        mean(loss), exact(given.get("beta", {}), given.get("free_bits", {})), strict=True
    ):
        assert torch.allclose(found, truth, rtol=1e-10, atol=1e-12)


def test_reports_stay_those_of_the_bound() -> None:
    loss = am.VariationalLoss(am.ELBO(beta=3.0, free_bits={"z": 5.0}), "enumerate")
    plain = am.VariationalLoss(am.ELBO(), "enumerate")
    for one in (loss, plain):
        one.warm_up(model, guide, ())
    strange, usual = (one.estimate(model, guide, (), {}) for one in (loss, plain))
    assert not torch.allclose(strange.loss, usual.loss)
    assert torch.allclose(strange.elbo, usual.elbo)
    assert torch.allclose(strange.reconstruction, usual.reconstruction)
    assert strange.kl_per_site.keys() == usual.kl_per_site.keys()


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=x)


def normal_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(weight("a", 0.9) * x, 0.5))


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_schedule_moves_with_the_steps_and_is_captured(mode: str) -> None:
    """Against a weight of the whole KL that the harness moves in the same way."""

    def rising(step: Tensor) -> Tensor:
        return ((step + 1) / 10).clamp(max=1.0)

    data = torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = []
    for objective, options in (
        (am.ELBO(kl="analytic", beta={"z": rising}), {}),
        (am.ELBO(kl="analytic"), {"kl_weight": lambda step: min(1.0, (step + 1) / 10)}),
    ):
        svi = am.SVI(
            normal_model,
            normal_guide,
            am.VariationalLoss(objective),
            lr=0.05,
            compile=mode,  # type: ignore[arg-type]
        )
        svi.fit(data, max_epochs=4, batch_size=10, seed=0, progress=False, **options)  # type: ignore[arg-type]
        found.append(svi.params())
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-12) for n in found[0])


def test_the_schedule_goes_on_where_a_checkpoint_ends(tmp_path: Any) -> None:
    data = torch.randn(40, generator=torch.Generator().manual_seed(0))
    objective = am.ELBO(beta=lambda step: (step / 20).clamp(max=1.0))

    def fitted(*stops: int, resume: bool) -> dict[str, Tensor]:
        svi = am.SVI(normal_model, normal_guide, am.VariationalLoss(objective), lr=0.05)
        folder = tmp_path / f"{stops}"
        for count, epochs in enumerate(stops):
            if count:
                svi = am.SVI(normal_model, normal_guide, am.VariationalLoss(objective), lr=0.05)
            svi.fit(
                data,
                max_epochs=epochs,
                batch_size=10,
                seed=0,
                progress=False,
                callbacks=[am.ModelCheckpoint(folder)],
                resume_from=folder if count else None,
            )
        return svi.params()

    whole, parts = fitted(4, resume=False), fitted(2, 4, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_key_that_matches_no_site_is_an_error() -> None:
    loss = am.VariationalLoss(am.ELBO(beta={"zz": 2.0}))
    with pytest.raises(am.UsageError, match=r"beta.*'zz'.*matches no latent.*'y', 'z'"):
        loss.warm_up(model, guide, ())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"beta": -1.0}, r"beta=-1.0.*at least 0, or a function of the step"),
        ({"free_bits": {"z": float("nan")}}, r"free_bits=.*at least 0"),
        ({"free_bits": lambda step: step}, r"free_bits=.*at least 0"),
    ],
)
def test_weights_are_checked(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(am.UsageError, match=sentence):
        am.ELBO(**given)


def test_a_prior_that_several_sites_share_is_not_split() -> None:
    def p() -> None:
        c = pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        for name in ("u", "v"):
            pyro.sample(name, dist.Normal(c, 1.0))

    def q() -> None:
        for name in ("u", "v"):
            pyro.sample(name, dist.Normal(weight("a", 0.1), 1.0))

    def rising(step: Tensor) -> Tensor:
        return step + 1

    refused: list[dict[str, Any]] = [
        {"free_bits": 0.1},
        {"free_bits": {"v*": 0.1}},
        {"beta": {"u": 2.0}},
        {"beta": {"u*": 2.0}},
        {"beta": {"v*": 2.0, "*": 3.0}},
        {"beta": {"u*": rising, "v*": lambda step: rising(step)}},
    ]
    for given in refused:
        with pytest.raises(am.UsageError, match=r"sites 'u' and 'v' is one sum over 'c'"):
            am.VariationalLoss(am.ELBO(**given)).warm_up(p, q, ())
    for alike in (2.0, {"u*": 2, "v": 2.0}, {"[uv]": rising}):
        am.VariationalLoss(am.ELBO(beta=alike)).warm_up(p, q, ())
