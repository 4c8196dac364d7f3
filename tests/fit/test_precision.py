"""Layers in bfloat16: their results, samples and log-probabilities stay float32."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import amortized as am
from amortized.errors import UsageError
from amortized.fit.precision import MixedLayers

X = (torch.rand(64, 24, generator=torch.Generator().manual_seed(0)) < 0.5).float()


class Networks(nn.Module):
    def __init__(self, bits: bool) -> None:
        super().__init__()
        self.bits = bits
        self.encoder = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 6))
        self.decoder = nn.Linear(6, 24)

    def law(self, value: Tensor) -> dist.TorchDistribution:
        if self.bits:
            return dist.Bernoulli(logits=value).to_event(1)
        return dist.Normal(value, 1.0).to_event(1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.law(torch.zeros(6)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(self.encoder(x)))


def pair(bits: bool, precision: str, **options) -> am.SVI:
    pyro.set_rng_seed(0)
    networks = Networks(bits)
    loss = am.VariationalLoss(estimators={"z": "enumerate"} if bits else None)
    options = {"lr": 1e-2, "compile": "off"} | options
    return am.SVI(networks.model, networks.guide, loss, precision=precision, **options)


def gradients(svi: am.SVI) -> Tensor:
    pyro.set_rng_seed(1)
    svi.step(X)
    return torch.cat([leaf.grad.flatten() for leaf in svi._stepper.optimizer.leaves()])


@pytest.mark.parametrize("bits", [False, True])
def test_gradients_differ_by_the_rounding_of_bfloat16(bits: bool) -> None:
    exact, mixed = (gradients(pair(bits, p)) for p in ("float32", "bf16-mixed"))
    assert mixed.dtype == torch.float32
    apart = (mixed - exact).norm() / exact.norm()
    # a factor of a product is off by up to 2^-9, and rounding does not add up
    assert 1e-5 < apart < 2**-7


def test_a_layer_is_the_product_of_rounded_factors() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(16, 64)
    with MixedLayers():
        found = layer(x)
    rounded = functional.linear(
        x.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.bfloat16().double()
    )
    assert found.dtype == torch.float32
    # sums are rounded to bfloat16 once
    torch.testing.assert_close(found.double(), rounded, rtol=2**-8, atol=1e-6)


def test_densities_are_float32() -> None:
    seen: list[torch.dtype] = []
    networks = Networks(bits=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", networks.law(torch.zeros(6)))
            logits = networks.decoder(z)
            law = dist.Bernoulli(logits=logits).to_event(1)
            seen.extend((z.dtype, logits.dtype, law.log_prob(x).dtype))
            pyro.sample("x", law, obs=x)

    svi = am.SVI(model, networks.guide, precision="bf16-mixed", compile="off")
    svi.step(X)
    assert seen and set(seen) == {torch.float32}


@pytest.mark.parametrize("objective", [am.ELBO(), am.IWAE(4), am.ReweightedWakeSleep(4)])
def test_captured_steps_are_the_eager_ones(objective) -> None:
    def run(compile: str) -> tuple[list[float], list[Tensor]]:
        pyro.set_rng_seed(0)
        networks = Networks(bits=False)
        loss = am.VariationalLoss(copy.deepcopy(objective))
        svi = am.SVI(networks.model, networks.guide, loss, precision="bf16-mixed", compile=compile)
        losses = [svi.step(X) for _ in range(5)]
        return losses, [leaf.detach().clone() for leaf in svi._stepper.optimizer.leaves()]

    (losses, leaves), (others, reference) = run("graph"), run("off")
    assert losses == others
    assert all(map(torch.equal, leaves, reference))


def test_it_learns_as_well() -> None:
    found = {}
    for precision in ("float32", "bf16-mixed"):
        svi = pair(False, precision)
        svi.fit(X, max_epochs=30, batch_size=32, seed=0, progress=False)
        found[precision] = svi.evaluate(X, num_particles=50, seed=0)["log_evidence"]
    assert found["bf16-mixed"] != found["float32"]
    assert found["bf16-mixed"] == pytest.approx(found["float32"], rel=5e-3)


def test_other_types_are_left_alone() -> None:
    wide, x = nn.Linear(8, 8).double(), torch.randn(4, 8, dtype=torch.float64)
    narrow = nn.Linear(8, 8).bfloat16()
    plain = nn.Linear(8, 8)
    with MixedLayers():
        assert torch.equal(wide(x), functional.linear(x, wide.weight, wide.bias))
        assert narrow(x.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert plain(x.float()).dtype == torch.bfloat16


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision='half': expected one of float32, bf16-mixed"):
        pair(False, "half")


def test_the_fitted_pair_runs_in_its_precision() -> None:
    svi = pair(False, "bf16-mixed")
    svi.step(X)
    networks = svi.guide.program.__self__
    plain = networks.encoder(X)
    with svi.scope():
        assert not torch.equal(networks.encoder(X), plain)
