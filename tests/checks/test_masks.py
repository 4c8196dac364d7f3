from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am

X = torch.linspace(-1.0, 1.0, 6)
SEEN = X > 0


def pair(model_mask: Tensor | bool | None, guide_mask: Tensor | bool | None) -> am.Report:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=True if model_mask is None else model_mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=True if guide_mask is None else guide_mask):
                pyro.sample("z", dist.Normal(slope * x, 1.0))

    return am.check(model, guide, X)


@pytest.mark.parametrize(
    ("model", "guide", "count", "side"),
    [(SEEN, None, 3, "guide"), (None, SEEN, 3, "model"), (SEEN, X > 0.5, 1, "model")],
)
def test_the_program_whose_term_counts_alone_is_named(model, guide, count: int, side: str) -> None:
    (finding,) = pair(model, guide).warnings
    assert finding.code == "mask-mismatch" and f"the {side}" in finding.where
    assert f"in {count} of 6 places" in finding.found


@pytest.mark.parametrize(("model", "guide"), [(SEEN, SEEN), (None, None), (False, None)])
def test_equal_masks_and_terms_left_out_on_purpose_are_right(model, guide) -> None:
    assert pair(model, guide).ok


def test_an_unmasked_guide_makes_the_bound_too_large() -> None:
    """What the finding is about: with all labels observed, the bound is log p(y) and no more."""
    y, seen = torch.ones(4), torch.ones(4, dtype=torch.bool)

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), obs=y, obs_mask=seen)

    def guide() -> None:
        with pyro.plate("data", 4):
            pyro.sample("y_unobserved", dist.Bernoulli(torch.full((4,), 0.5)))

    exact = 4 * torch.tensor(0.3).log().item()
    loss = am.VariationalLoss(estimators="enumerate")
    assert -loss.loss(model, guide) > exact + 1.0
    masked = poutine.mask(guide, mask=~seen)
    assert -loss.loss(model, masked) == pytest.approx(exact, rel=1e-5)
    assert [f.code for f in am.check(model, guide, ()).warnings] == ["mask-mismatch"]
