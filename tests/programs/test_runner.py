"""What is learned once and what is learned again."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am


def standard() -> dist.Normal:
    return dist.Normal(0.0, 1.0)


class Counted:
    """A pair on data of any length that counts how often its model runs."""

    def __init__(self) -> None:
        self.runs = 0

    def model(self, x: Tensor, *rest: Any) -> None:
        self.runs += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor, *rest: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard())


def runs_of(loss: am.VariationalLoss, pair: Counted, *args: Any) -> int:
    before = pair.runs
    loss.loss(pair.model, pair.guide, *args)
    return pair.runs - before


def test_one_probe_per_signature() -> None:
    loss, pair = am.VariationalLoss(), Counted()
    x = torch.zeros(5)
    assert runs_of(loss, pair, x) == 2
    assert runs_of(loss, pair, x + 1) == 1
    assert runs_of(loss, pair, x[:3]) == 2, "a short last batch is another signature"
    assert runs_of(loss, pair, x) == 1, "and the first one is not forgotten"
    assert runs_of(loss, pair, x, 0.1) == 2
    assert runs_of(loss, pair, x, 0.2) == 1, "an annealed number is no new signature"
    assert runs_of(loss, pair, x, True) == 2
    assert runs_of(loss, pair, x, False) == 2, "a flag is"


def test_two_pairs_are_told_apart() -> None:
    loss, one, other = am.VariationalLoss(), Counted(), Counted()
    x = torch.zeros(5)
    assert runs_of(loss, one, x) == 2 and runs_of(loss, other, x) == 2


def test_a_short_last_batch_is_right() -> None:
    loss, pair = am.VariationalLoss(am.ELBO(num_particles=3)), Counted()
    for size in (5, 3, 1, 5):
        assert loss.estimate(pair.model, pair.guide, (torch.zeros(size),), {}).data_size == size


def nested(depth: int, x: Tensor) -> None:
    """Data in as many plates as asked for; a latent outside."""
    z = pyro.sample("z", standard())

    def inner(level: int) -> None:
        if level == 0:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[(0,) * (3 - depth)])
            return
        with pyro.plate(f"plate{level}", 3, dim=-level):
            inner(level - 1)

    inner(depth)


def outside(depth: int, x: Tensor) -> None:
    pyro.sample("z", standard())


def latents(depth: int, x: Tensor) -> None:
    """A latent in as many plates as asked for."""
    if depth == 0:
        pyro.sample("z", standard())
        return
    with pyro.plate(f"plate{depth}", 3, dim=-depth):
        latents(depth - 1, x)


@pytest.mark.float64
@pytest.mark.parametrize("pair", [(nested, outside), (latents, latents)])
def test_plates_deeper_than_probed_are_given_room(pair: Any) -> None:
    """A number among the arguments decides the depth, so all calls share a signature.

    The particles, three as well, must not be taken for a plate.
    """
    model, guide = pair
    x = torch.randn(3, 3, 3)
    loss = am.VariationalLoss(am.ELBO(num_particles=3))
    loss.loss(model, guide, 0, x)
    for depth in (1, 3, 2, 0):
        estimate = loss.estimate(model, guide, (depth, x), {})
        value = estimate.run.guide["z"].value
        assert value.shape[0] == 3 and estimate.run.layout.nesting >= depth
        expected = torch.stack([total(model, guide, depth, x, v) for v in value]).mean()
        assert -estimate.loss.item() == pytest.approx(expected.item())


def total(model: Any, guide: Any, depth: int, x: Tensor, value: Tensor) -> Tensor:
    """log p - log q of one particle, run on its own."""
    given = {"z": value.reshape(value.shape[value.dim() - depth :] if model is latents else ())}
    p = poutine.trace(poutine.condition(model, given)).get_trace(depth, x)
    q = poutine.trace(poutine.condition(guide, given)).get_trace(depth, x)
    return p.log_prob_sum() - q.log_prob_sum()


def test_room_can_be_asked_for() -> None:
    loss = am.VariationalLoss(max_plate_nesting=4)
    assert loss.estimate(outside, outside, (0, torch.zeros(1)), {}).run.layout.nesting == 4


def test_a_copy_knows_nothing_of_the_programs() -> None:
    """Copying a used loss neither copies the networks nor remembers whose facts it had."""
    loss, pair = am.VariationalLoss(), Counted()
    x = torch.zeros(5)
    runs_of(loss, pair, x)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert runs_of(other, pair, x) == 2
    assert runs_of(loss, pair, x) == 1


def test_programs_made_anew_at_each_step_are_not_all_kept() -> None:
    """KL annealing wraps the model at each step: that must not fill the memory."""
    loss, pair = am.VariationalLoss(), Counted()
    references = []
    for step in range(300):
        wrapped = poutine.scale(pair.model, scale=0.1 + step)
        references.append(weakref.ref(wrapped))
        loss.loss(wrapped, pair.guide, torch.zeros(2))
        del wrapped
    gc.collect()
    assert sum(reference() is not None for reference in references) < 200


def bit(erase: bool = False) -> None:
    """A bit and a bonus for it, which may or may not mix the copies."""
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.factor("bonus", 3.0 * (z.mean() if erase else z))


def guess() -> None:
    pyro.sample("z", dist.Bernoulli(0.5))


def test_partials_and_handlers_are_not_checked_for_each_other() -> None:
    """A keyword may choose another program: what was checked was the first one."""
    loss = am.VariationalLoss(estimators="enumerate")
    loss.loss(partial(bit, erase=False), guess)
    with pytest.raises(am.ProgramError, match="mixes"):
        loss.loss(partial(bit, erase=True), guess)


def test_partials_and_handlers_keep_their_own_data_plate() -> None:
    """Conditioned on x or on y, the model has its data in one plate or in the other."""

    def both() -> None:
        with pyro.plate("xs", 3):
            pyro.sample("x", standard())
        with pyro.plate("ys", 6):
            pyro.sample("y", standard())

    def other_of(name: str) -> Any:
        return poutine.block(both, hide=[name])

    loss = am.VariationalLoss()
    for name, plate, size in (("x", "xs", 3), ("y", "ys", 6)):
        model = poutine.condition(both, data={name: torch.zeros(size)})
        estimate = loss.estimate(model, other_of(name), (), {})
        assert (estimate.data_plate, estimate.data_size) == (plate, size)


def test_wrapping_anew_at_each_step_costs_no_probe() -> None:
    """Annealing by `poutine.scale(model, beta)` is a common idiom."""
    loss, pair = am.VariationalLoss(), Counted()
    x = torch.zeros(3)
    loss.loss(poutine.scale(pair.model, scale=0.1), pair.guide, x)
    before = pair.runs
    for step in range(5):
        loss.loss(poutine.scale(pair.model, scale=0.2 + step), pair.guide, x)
    assert pair.runs == before + 5


def test_copies_that_only_grown_weights_reveal_as_mixed() -> None:
    weight = torch.zeros((), requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Normal(weight * z.mean(), 1.0), obs=x)

    loss, x = am.VariationalLoss(am.ELBO(num_particles=3)), torch.ones(4)
    pair = (model, Counted().guide)
    loss.loss(*pair, x)
    with torch.no_grad():
        weight.fill_(0.5)
    with pytest.raises(am.ProgramError, match="mixes the particles"):
        for _ in range(10):
            loss.loss(*pair, x)
