"""On the same draws our loss equals Pyro's, where Pyro is right."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor

import amortized as am
from tests.laws.structures import EVERY, ONE_LATENT, Structure


def value_and_gradients(
    loss: PyroELBO, pair: Structure, seed: int
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradient of every parameter in the store, from a fixed generator state."""
    store = pyro.get_param_store()
    for name in store:
        store[name].unconstrained().grad = None
    pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(pair.model, pair.guide)
    leaves = {name: store[name].unconstrained() for name in store}
    return value, {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in leaves.items()
        if "$$$" not in name
    }


def assert_equal(ours: PyroELBO, theirs: PyroELBO, pair: Structure, seed: int) -> None:
    """Same value and gradients to float64 rounding."""
    theirs.loss(pair.model, pair.guide)  # makes every parameter first
    expected, expected_gradients = value_and_gradients(theirs, pair, seed)
    value, gradients = value_and_gradients(ours, pair, seed)
    assert value == pytest.approx(expected, rel=1e-12)
    assert any(g.abs().sum() > 0 for g in gradients.values())
    for name in gradients.keys() | expected_gradients.keys():
        # a parameter of a branch that only one of the two has visited so far has no gradient
        zero = torch.zeros(())
        ours_, theirs_ = gradients.get(name, zero), expected_gradients.get(name, zero)
        torch.testing.assert_close(ours_, theirs_, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_all_pathwise_equals_trace_elbo(structure: str, seed: int) -> None:
    """Reparameterized programs: the very same estimator."""
    assert_equal(am.VariationalLoss(), Trace_ELBO(), EVERY[structure]("normal"), seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("structure", sorted(ONE_LATENT))
def test_one_score_function_latent_equals_trace_elbo(structure: str, seed: int) -> None:
    """One score-function latent has everything downstream: the very same estimator."""
    pair = ONE_LATENT[structure]("bernoulli")
    ours = am.VariationalLoss(estimators={pair.latents[0]: am.ScoreFunction()})
    assert_equal(ours, Trace_ELBO(), pair, seed)


@pytest.mark.parametrize("structure", sorted(set(ONE_LATENT) - {"control_flow", "buffer_write"}))
def test_particles_equal_vectorized_trace_elbo(structure: str) -> None:
    """Particles lie where Pyro's vectorized ones do, so the draws are the same."""
    theirs = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
    for kind, estimators in (("normal", None), ("bernoulli", am.ScoreFunction())):
        ours = am.VariationalLoss(am.ELBO(num_particles=3), estimators, max_plate_nesting=2)
        pyro.clear_param_store()
        assert_equal(ours, theirs, ONE_LATENT[structure](kind), 0)


@pytest.mark.parametrize(
    "structure",
    [
        "global_site",
        "plate",
        "nested_plates",
        "sequential_plates",
        "masked",
        "chain",
        "factor_and_deterministic",
        "scaled",
        "subsampled",
        "python_loop",
    ],
)
def test_all_enumerated_equals_trace_enum_elbo(structure: str) -> None:
    """Enumeration is exact in both."""
    pair = EVERY[structure]("bernoulli")
    enumerated = Structure(
        pair.model, config_enumerate(pair.guide, "parallel", expand=False), pair.latents
    )
    ours = am.VariationalLoss(estimators="enumerate")
    assert_equal(ours, TraceEnum_ELBO(max_plate_nesting=2), enumerated, 0)


@pytest.mark.parametrize(
    "structure",
    ["global_site", "plate", "nested_plates", "event_dims", "subsampled", "masked", "scaled"],
)
def test_analytic_kl_equals_trace_mean_field_elbo(structure: str) -> None:
    """The second form of the bound, on the same draws."""
    ours = am.VariationalLoss(am.ELBO(kl="analytic"))
    assert_equal(ours, TraceMeanField_ELBO(), EVERY[structure]("normal"), 0)
