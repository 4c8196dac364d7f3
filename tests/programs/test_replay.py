"""What the model's handler replays, records and refuses."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import amortized as am

Program = Callable[[], object]
UNIT = dist.Normal(0.0, 1.0)


def minibatch(index: list[int] | None, size: int = 10, name: str = "data") -> Program:
    """A latent a datum on the minibatch that is named, or on a random one."""

    def program() -> None:
        options = {"subsample_size": 3} if index is None else {"subsample": torch.tensor(index)}
        with pyro.plate(name, size, **options):
            pyro.sample("z", UNIT)

    return program


@pytest.mark.parametrize("guide", [minibatch(None), minibatch([7, 1, 3])])
def test_other_data_in_the_guide_are_refused(guide: Program) -> None:
    """Pyro replaces the model's indices by the guide's, in silence."""
    with pytest.raises(am.ProgramError, match=r"plate 'data'.*other data.*create_plates="):
        am.VariationalLoss().loss(minibatch([1, 3, 7]), guide)


def test_the_same_data_named_twice_are_fine() -> None:
    assert am.VariationalLoss().loss(minibatch([1, 3]), minibatch([1, 3])) == 0.0


def test_random_data_of_the_guide_are_the_model_s() -> None:
    run = am.VariationalLoss().estimate(minibatch(None), minibatch(None), (), {}).run
    assert run.subsamples["data"].shape == (3,) and run.terms[0].value.shape == (3,)


def test_plates_of_one_name_and_two_sizes_are_refused() -> None:
    """The guide's indices among ten would stand for data among a hundred."""
    with pytest.raises(am.ProgramError, match="plate 'data'"):
        am.VariationalLoss().loss(minibatch(None, size=100), minibatch(None))


def test_latents_of_a_random_minibatch_that_the_guide_does_not_know_are_refused() -> None:
    with pytest.raises(am.ProgramError, match="plate 'data'"):
        am.VariationalLoss().loss(minibatch(None), minibatch(None, name="other"))


# --- what the guide lacks -------------------------------------------------------------------------


def nothing() -> None:
    """A guide without latents."""


def test_a_discrete_latent_that_the_guide_lacks_may_be_marked() -> None:
    def model() -> None:
        pyro.sample("c", dist.Bernoulli(0.5))

    with pytest.raises(am.ProgramError, match=r"site 'c'.*, infer=\{'enumerate': 'parallel'\}"):
        am.VariationalLoss().loss(model, nothing)
    assert am.VariationalLoss().loss(config_enumerate(model), nothing) == pytest.approx(0.0)


def test_nobody_sums_out_a_continuous_latent() -> None:
    with pytest.raises(am.ProgramError) as error:
        am.VariationalLoss().loss(lambda: pyro.sample("z", UNIT), nothing)
    assert "enumerate" not in str(error.value)


def test_a_summed_out_site_may_be_in_a_minibatch_of_the_model_s_own() -> None:
    """Nothing of the guide is in it."""

    @config_enumerate
    def model() -> None:
        with pyro.plate("data", 10, subsample_size=3):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.zeros(3))

    run = am.VariationalLoss().estimate(model, nothing, (), {}).run
    assert run.model["c"].scale == pytest.approx(10 / 3)
    each = (0.5 * UNIT.log_prob(torch.tensor([0.0, 1.0])).exp()).sum().log()
    assert torch.allclose(run.terms[0].value, each * 10 / 3)


def test_a_summed_out_site_is_sampled_once_a_run() -> None:
    @config_enumerate
    def model() -> None:
        pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("c", dist.Bernoulli(0.5))

    with pytest.raises(am.ProgramError, match=r"site 'c': the model samples it twice"):
        am.VariationalLoss().loss(model, nothing)
