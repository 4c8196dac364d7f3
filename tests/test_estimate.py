"""The parts of an estimate and the log-weights against hand numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimate import log_weights_of

pytestmark = pytest.mark.float64


def entropy_gap(q: float, p: float) -> float:
    """KL between two bits."""
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def two_bits() -> None:
    a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
    b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
    pyro.factor("score", 2.0 * a + 3.0 * b)
    pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(1.0))


def guess() -> None:
    a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3)))
    pyro.sample("b", dist.Bernoulli(0.4 + 0.5 * a))


@pytest.mark.parametrize("options", [{}, {"vectorize": False}])
@pytest.mark.parametrize("kl", ["sample", "analytic"])
@pytest.mark.parametrize("particles", [1, 3])
def test_parts_of_an_enumerated_program_by_hand(
    particles: int, kl: Any, options: dict[str, Any]
) -> None:
    loss = am.VariationalLoss(am.ELBO(particles, kl), "enumerate", **options)
    estimate = loss.estimate(two_bits, guess, (), {})
    mean_b = 0.7 * 0.4 + 0.3 * 0.9
    gaussian = -0.5 * math.log(2 * math.pi) - 0.5 * (1 - mean_b)
    reconstruction = 2.0 * 0.3 + 3.0 * mean_b + gaussian
    kls = {
        "a": entropy_gap(0.3, 0.5),
        "b": 0.7 * entropy_gap(0.4, 0.2) + 0.3 * entropy_gap(0.9, 0.8),
    }
    assert {k: v.item() for k, v in estimate.kl_per_site.items()} == pytest.approx(kls)
    assert estimate.kl.item() == pytest.approx(sum(kls.values()))
    assert estimate.reconstruction.item() == pytest.approx(reconstruction)
    assert estimate.elbo.item() == pytest.approx(reconstruction - sum(kls.values()))
    assert estimate.loss.item() == pytest.approx(-estimate.elbo.item())
    assert estimate.data_plate is None and estimate.data_size is None


def test_parts_are_detached_and_the_loss_is_not() -> None:
    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    estimate = am.VariationalLoss().estimate(model, guide, (), {})
    assert estimate.loss.requires_grad
    parts = [estimate.elbo, estimate.kl, estimate.reconstruction, *estimate.kl_per_site.values()]
    assert not any(part.requires_grad for part in parts)


def test_auxiliary_sites_and_scales_are_parts_of_the_kl() -> None:
    def model() -> None:
        with poutine.scale(scale=0.5):
            pyro.sample("z", dist.Delta(torch.tensor(1.0), log_density=-6.0))

    def guide() -> None:
        with poutine.scale(scale=0.5):
            pyro.sample("z", dist.Delta(torch.tensor(1.0), log_density=2.0))
        pyro.sample("aux", dist.Delta(torch.tensor(0.0), 3.0), infer={"is_auxiliary": True})

    estimate = am.VariationalLoss().estimate(model, guide, (), {})
    assert {k: v.item() for k, v in estimate.kl_per_site.items()} == {"z": 4.0, "aux": 3.0}
    assert estimate.reconstruction.item() == 0.0


def test_a_model_without_latents_is_all_reconstruction() -> None:
    def model() -> None:
        pyro.sample("x", dist.Delta(torch.tensor(1.0), log_density=-2.0), obs=torch.tensor(1.0))

    estimate = am.VariationalLoss().estimate(model, lambda: None, (), {})
    assert (estimate.kl.item(), estimate.reconstruction.item()) == (0.0, -2.0)
    assert estimate.kl_per_site == {}


def test_the_report_names_the_guilty_site() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("trap", torch.tensor(-math.inf))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    report = am.VariationalLoss().estimate(model, guide, (), {}).non_finite_report()
    assert "site 'trap' of the model" in report and "'z'" not in report and "inf" in report


X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
INDEX = torch.tensor([4, 0, 7])


def model(full: int | None = None) -> None:
    """A latent a datum, seen twice in an inner plate."""
    options: dict[str, Any] = {"size": 3} if full is None else {"size": full, "subsample": INDEX}
    with pyro.plate("data", dim=-1, **options):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        with pyro.plate("views", 2, dim=-2):
            pyro.sample("x", dist.Normal(z, 0.5), obs=X.expand(2, 3))


def guide(full: int | None = None) -> None:
    options: dict[str, Any] = {"size": 3} if full is None else {"size": full, "subsample": INDEX}
    with pyro.plate("data", dim=-1, **options):
        pyro.sample("z", dist.Normal(0.6 * X, 0.7))


def drawn(full: int | None, particles: int, data: am.DataPlate | None = None) -> tuple[Any, Tensor]:
    """Log-weights, and the values that they belong to (the same seed draws the same)."""
    loss = am.VariationalLoss(am.ELBO(particles))
    loss.loss(model, guide, full)
    pyro.set_rng_seed(1)
    value = loss.estimate(model, guide, (full,), {}).run.guide["z"].value.reshape(particles, 3)
    pyro.set_rng_seed(1)
    weights = loss.log_weights(model, guide, (full,), {}, num_particles=particles, data=data)
    return weights, value.detach()


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("full", [None, 3, 30])
def test_log_weights_per_datum_by_hand(full: int | None, particles: int) -> None:
    """Nothing is scaled up for the data that are not in the minibatch."""
    weights, z = drawn(full, particles)
    likelihood = 2 * dist.Normal(z, 0.5).log_prob(X)
    joint = likelihood + dist.Normal(0.0, 1.0).log_prob(z)
    assert weights.per_datum and weights.log_joint.shape == (particles, 3)
    torch.testing.assert_close(weights.log_likelihood.detach(), likelihood)
    torch.testing.assert_close(weights.log_joint.detach(), joint)
    torch.testing.assert_close(weights.log_guide.detach(), dist.Normal(0.6 * X, 0.7).log_prob(z))


def test_log_weights_ignore_a_declared_size() -> None:
    weights, _ = drawn(None, 2)
    rescaled, _ = drawn(None, 2, am.DataPlate(size=300))
    torch.testing.assert_close(weights.log_joint, rescaled.log_joint)


def test_log_weights_ignore_the_estimators() -> None:
    """Evidence wants plain draws, also where training enumerates."""

    def bits() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def bits_guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))

    loss = am.VariationalLoss(estimators="enumerate")
    weights = loss.log_weights(bits, bits_guide, (), {}, num_particles=2000)
    assert weights.log_joint.shape == (2000, 3)
    evidence = (weights.log_joint - weights.log_guide).logsumexp(0) - math.log(2000)
    exact = torch.stack([dist.Normal(float(z), 1.0).log_prob(X) for z in (0, 1)])
    exact = (exact + torch.tensor([[0.7], [0.3]]).log()).logsumexp(0)
    torch.testing.assert_close(evidence, exact, atol=0.05, rtol=0.0)


def shared() -> None:
    """A latent for all data."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(w, 0.5), obs=X)


def shared_guide() -> None:
    pyro.sample("w", dist.Normal(0.4, 0.7))


@pytest.mark.parametrize("particles", [1, 4])
def test_a_global_latent_has_no_evidence_per_datum(particles: int) -> None:
    loss = am.VariationalLoss(am.ELBO(particles))
    loss.loss(shared, shared_guide)
    pyro.set_rng_seed(1)
    w = loss.estimate(shared, shared_guide, (), {}).run.guide["w"].value.reshape(particles, 1)
    pyro.set_rng_seed(1)
    weights = loss.log_weights(shared, shared_guide, (), {}, num_particles=particles)
    likelihood = dist.Normal(w, 0.5).log_prob(X).sum(-1)
    assert not weights.per_datum
    torch.testing.assert_close(weights.log_likelihood, likelihood)
    torch.testing.assert_close(
        weights.log_joint, likelihood + dist.Normal(0.0, 1.0).log_prob(w).squeeze(-1)
    )
    torch.testing.assert_close(weights.log_guide, dist.Normal(0.4, 0.7).log_prob(w).squeeze(-1))


def test_a_factor_outside_the_data_is_global_too() -> None:
    def with_factor() -> None:
        model()
        pyro.factor("outside", torch.tensor(1.0))

    weights = am.VariationalLoss().log_weights(with_factor, guide, (), {}, num_particles=2)
    assert not weights.per_datum and weights.log_joint.shape == (2,)


def test_every_sum_has_a_row_for_each_particle() -> None:
    """Also where nothing is observed, or nothing is latent."""

    def latent() -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def observed() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    for pair in ((latent, latent), (observed, lambda: None)):
        weights = am.VariationalLoss().log_weights(*pair, (), {}, num_particles=3)
        sums = (weights.log_joint, weights.log_guide, weights.log_likelihood)
        assert [tuple(part.shape) for part in sums] == [(3,)] * 3


def test_programs_that_cannot_broadcast_have_log_weights_too() -> None:
    """Evaluation must not fail where training works copy by copy."""

    def flat() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z.reshape(3), 0.5), obs=X)

    def flat_guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.6 * X, 0.7))

    loss = am.VariationalLoss(am.ELBO(2), vectorize=False)
    loss.loss(flat, flat_guide)
    weights = loss.log_weights(flat, flat_guide, (), {}, num_particles=4)
    assert weights.per_datum and weights.log_joint.shape == (4, 3)


def test_global_latents_count_once_when_a_minibatch_stands_for_all() -> None:
    """The plate knows the minibatch only; the caller knows the data set."""
    loss = am.VariationalLoss(estimators={"w": "pathwise"})
    estimate = loss.estimate(shared, shared_guide, (), {}, data=am.DataPlate("data", 30))
    w = estimate.run.guide["w"].value
    likelihood = dist.Normal(w, 0.5).log_prob(X).sum()
    kl = dist.Normal(0.4, 0.7).log_prob(w) - dist.Normal(0.0, 1.0).log_prob(w)
    assert estimate.elbo.item() == pytest.approx((10 * likelihood - kl).item())
    assert estimate.kl.item() == pytest.approx(kl.item())
    assert (estimate.data_plate, estimate.data_size) == ("data", 30)


def test_a_data_plate_that_does_not_exist_is_named() -> None:
    with pytest.raises(am.UsageError, match=r"data_plate='batch'.*\['data'\]"):
        am.VariationalLoss().estimate(shared, shared_guide, (), {}, data=am.DataPlate("batch"))


def test_log_weights_live_where_their_terms_do() -> None:
    """Meta tensors stand for a GPU: a sum begun on the CPU would not mix with them."""
    run = am.VariationalLoss().estimate(model, guide, (None,), {}).run
    moved = [replace(term, value=term.value.to("meta")) for term in run.terms]
    weights = log_weights_of(replace(run, terms=moved), am.DataPlate("data"))
    assert weights.log_joint.device.type == "meta" and weights.log_joint.shape == (1, 3)


def test_weights_without_a_guide_density_are_no_evidence() -> None:
    x = torch.ones(3)

    def model(scale: float = 1.0) -> None:
        with pyro.plate("data", 3):
            with poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def point() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Delta(x / 2))

    def spread(scale: float = 1.0) -> None:
        with pyro.plate("data", 3), poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    loss = am.VariationalLoss()
    assert not loss.log_weights(model, point, (), {}, num_particles=2).is_evidence
    assert loss.log_weights(model, spread, (), {}, num_particles=2).is_evidence
    assert not loss.log_weights(model, spread, (0.1,), {}, num_particles=2).is_evidence


def test_an_impossible_event_makes_the_loss_infinite_not_nan() -> None:
    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("impossible", torch.tensor(-float("inf")))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    assert am.VariationalLoss(estimators="score_function").loss(model, guide) == float("inf")


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_weight_on_the_kl_changes_the_loss_and_none_of_its_parts(vectorize: bool) -> None:
    loss = am.VariationalLoss(estimators="enumerate", vectorize=vectorize)
    plain, weighed = (
        loss.estimate(two_bits, guess, (), {}, kl_weight=weight) for weight in (1.0, 0.25)
    )
    for part in ("elbo", "reconstruction", "kl"):
        assert getattr(weighed, part).item() == pytest.approx(getattr(plain, part).item())
    wanted = 0.25 * plain.kl - plain.reconstruction
    assert weighed.loss.item() == pytest.approx(wanted.item())
    assert abs(plain.loss.item() - weighed.loss.item()) > 1e-3
