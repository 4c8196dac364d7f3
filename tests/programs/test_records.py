"""Where axes lie, and what a run leaves behind."""

from __future__ import annotations

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.programs.records import DataPlate, Layout, Role, Term


def test_private_dims_lie_left_of_plates_and_particles() -> None:
    layout = Layout(nesting=2, num_particles=5)
    assert layout.particle_dim == -3
    assert [layout.allocate(site) for site in "abc"] == [-4, -5, -6]
    assert layout.axes == {"a": -4, "b": -5, "c": -6}


def test_two_layouts_share_nothing() -> None:
    Layout(0).allocate("a")
    assert Layout(0).axes == {}


def test_a_tensor_has_no_room_for_more() -> None:
    layout = Layout(nesting=1)
    with pytest.raises(am.EstimatorError) as error:
        for number in range(64):
            layout.allocate(f"bit{number}")
    found = len(layout.axes)
    text = str(error.value)
    assert 40 < found < 64 and f"site 'bit{found}'" in text
    assert f"more than {found} sites" in text and "MovingAverage" in text


@pytest.mark.float64
def test_many_sites_of_one_sample_need_no_room() -> None:
    """Private dims are for copies: a hundred single-sample sites are fine."""

    def program() -> None:
        for number in pyro.plate("steps", 100):
            pyro.sample(f"bit{number}", dist.Bernoulli(0.5))

    loss = am.VariationalLoss(estimators="moving_average")
    assert loss.loss(program, program) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("role", "in_model"),
    [("likelihood", True), ("prior", True), ("guide", False), ("kl", False), ("folded", False)],
)
def test_whose_order_a_term_counts(role: Role, in_model: bool) -> None:
    term = Term("z", role, torch.zeros(()), frozenset(), 0)
    assert term.in_model is in_model


def test_a_data_plate_is_a_value() -> None:
    assert {DataPlate("data", 10): 1}[DataPlate("data", 10)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataPlate("data").size = 3  # type: ignore[misc]


def test_a_run_keeps_sizes_and_scales_of_plates() -> None:
    def program() -> None:
        with pyro.plate("groups", 6, subsample=torch.tensor([1, 4]), dim=-2):
            with pyro.plate("members", 3, dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    run = am.VariationalLoss().estimate(program, program, (), {}).run
    record = run.guide["z"]
    assert record.sizes == {"groups": (2, 6), "members": (3, 3)}
    assert record.plates == {("groups", -2), ("members", -1)}
    assert record.plate_scale == 3.0 and record.scale == 3.0
    assert [latent.name for latent in run.latents] == ["z"]
    assert run.subsamples["groups"].tolist() == [1, 4]
