"""Where copies go, and the law without its masks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators.base import Draw, Site
from amortized.fit.memory import Footprint
from amortized.programs import placement
from amortized.programs.placement import per_particle, place, unmasked
from amortized.programs.records import Layout

UNIT = dist.Normal(0.0, 1.0)


def test_every_particle_draws_its_own() -> None:
    layout = Layout(nesting=1, num_particles=4)
    assert per_particle(UNIT, layout).batch_shape == (4, 1)
    assert per_particle(dist.Normal(torch.zeros(3), 1.0), layout).batch_shape == (4, 3)
    wide = dist.Normal(torch.zeros(2, 4, 3), 1.0)
    assert per_particle(wide, layout) is wide
    delta = dist.Delta(torch.zeros(3))
    assert per_particle(delta, layout) is delta


def test_copies_go_to_the_private_dim() -> None:
    layout = Layout(nesting=2, num_particles=1)
    site = Site("z", dist.Normal(torch.zeros(5, 3), 1.0).to_event(1))
    first = place(Draw(site, torch.randn(4, 5, 3), 4), layout)
    assert first.axis == -4 and first.value.shape == (4, 1, 1, 5, 3)
    second = place(Draw(Site("y", UNIT), torch.randn(2), 2), layout)
    assert second.axis == -5 and second.value.shape == (2, 1, 1, 1, 1)


def test_copies_of_dependent_sites_must_not_explode() -> None:
    def program() -> None:
        z = torch.tensor(0.0)
        for step in range(20):
            z = pyro.sample(f"z{step}", dist.Bernoulli(logits=z))

    with pytest.raises(am.EstimatorError, match=r"site 'z14'.*32768 times.*multiply.*num_particl"):
        am.VariationalLoss(estimators="enumerate").loss(program, program)


def test_the_budget_is_named_before_anything_is_drawn() -> None:
    """6,000 numbers under measure-valued derivatives would be 18,001 copies of all of them."""
    weights = torch.zeros(6000)

    def program() -> None:
        pyro.sample("w", dist.Normal(weights, 1.0).to_event(1))

    loss = am.VariationalLoss(estimators="measure_valued")
    with Footprint() as footprint, pytest.raises(am.EstimatorError) as error:
        loss.loss(program, program)
    assert footprint.bytes < 100 * weights.nbytes
    text = str(error.value)
    assert "site 'w': its estimator takes 18001 copies" in text and "at most 16384" in text
    assert "108006000 numbers in all" in text and "am.Pathwise() where it has rsample" in text


@pytest.mark.parametrize(("layout", "limit", "where"), [("axes", 319, "z3"), ("rows", 199, "z1")])
def test_memory_is_a_budget_of_numbers_too(
    monkeypatch: pytest.MonkeyPatch, layout: str, limit: int, where: str
) -> None:
    """Plates and events count; on rows, which add up, as on axes, which multiply."""

    def program() -> None:
        logits = torch.zeros(4, 5)
        with pyro.plate("data", 4):
            for step in range(4):
                z = pyro.sample(f"z{step}", dist.Bernoulli(logits=logits).to_event(1))
                logits = z - 0.5

    loss = am.VariationalLoss(estimators="disarm", layout=layout)  # type: ignore[arg-type]
    loss.loss(program, program)
    monkeypatch.setattr(placement, "_MAX_NUMBERS", limit + 1)
    loss.loss(program, program)
    monkeypatch.setattr(placement, "_MAX_NUMBERS", limit)
    with pytest.raises(am.EstimatorError, match=rf"site '{where}'.*numbers in all.*{limit}\)"):
        loss.loss(program, program)


def test_one_copy_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program itself draws is its own affair, until copies of others multiply it."""

    def program() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("w", dist.Normal(z, torch.ones(100)).to_event(1))

    monkeypatch.setattr(placement, "_MAX_NUMBERS", 150)
    am.VariationalLoss().loss(program, program)
    with pytest.raises(am.EstimatorError, match=r"site 'w': with the copies.*200 numbers in all"):
        am.VariationalLoss(estimators={"z": "disarm"}).loss(program, program)


def test_masks_are_taken_off_the_law_and_nothing_else() -> None:
    normal = dist.Normal(torch.zeros(2, 3), 1.0)
    mask = torch.tensor([True, False, True])
    assert unmasked(normal.mask(mask)) is normal
    inner = unmasked(normal.mask(mask).to_event(1))
    assert inner.event_shape == (3,) and inner.base_dist is normal
    event = normal.to_event(1)
    assert unmasked(event) is event and unmasked(event.mask(False)) is event


def test_a_value_is_repeated_over_the_copies_of_earlier_sites() -> None:
    """Each of them then has a slope of its own; the law is not drawn from again."""
    layout = Layout(nesting=1)
    layout.allocate("earlier")
    law = dist.Normal(torch.zeros(5), 1.0).expand([5])
    draw = place(Draw(Site("z", law), torch.randn(2, 5), 2), layout, {-3: 4})
    assert draw.axis == -4 and draw.value.shape == (2, 4, 1, 5)
    assert draw.root is draw.value and draw.log_prob.shape == (2, 4, 1, 5)
