"""What the guide's handler refuses and records, and both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am

Program = Callable[[], object]
UNIT = dist.Normal(0.0, 1.0)
TWO = torch.tensor(2.0)


def sampling(*names: str) -> Program:
    """A program that samples these sites."""
    return lambda: [pyro.sample(name, UNIT) for name in names]


def observing(name: str, *latents: str) -> Program:
    """A program that samples these sites and observes one."""

    def program() -> None:
        sampling(*latents)()
        pyro.sample(name, UNIT, obs=TWO)

    return program


REFUSED: dict[str, tuple[Program, Program, tuple[str, ...]]] = {
    "twice in the guide": (sampling("z"), sampling("z", "z"), ("'z'", "guide", "twice")),
    "twice in the model": (sampling("z", "z"), sampling("z"), ("'z'", "model", "twice")),
    "observed twice": (
        lambda: [pyro.sample("x", UNIT, obs=TWO) for _ in range(2)],
        sampling(),
        ("'x'", "model", "twice"),
    ),
    "observed in the guide": (
        observing("x", "z"),
        observing("x", "z"),
        ("'x'", "guide observes it", "take obs= out"),
    ),
    "conditioned in the guide": (
        sampling("z"),
        poutine.condition(sampling("z"), {"z": TWO}),
        ("'z'", "guide observes it"),
    ),
    "observed in the model, sampled in the guide": (
        observing("x", "z"),
        sampling("z", "x"),
        ("'x'", "the model observes it", "remove it from the guide"),
    ),
    "missing in the guide": (
        sampling("weight", "z"),
        sampling("weigth", "z"),
        ("'weight'", "the guide does not", "['weigth', 'z']", "did you mean 'weigth'"),
    ),
    "missing, nothing alike": (
        sampling("z", "code"),
        sampling("z"),
        ("'code'", "the guide does not", "Give the guide a pyro.sample('code', ...)"),
    ),
    "a factor that does not say": (
        sampling("z"),
        lambda: [sampling("z")(), pyro.factor("extra", TWO)],
        ("'extra'", "has_rsample=True", "has_rsample=False"),
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_the_site_s_name(name: str) -> None:
    model, guide, parts = REFUSED[name]
    with pytest.raises(am.ProgramError) as error:
        am.VariationalLoss().loss(model, guide)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_hidden_and_conditioned_statements_inside_a_guide_are_no_sites() -> None:
    def guide() -> None:
        with poutine.block(hide=["noise"]):
            noise = pyro.sample("noise", UNIT)
        pyro.sample("z", dist.Normal(noise, 1.0))

    run = am.VariationalLoss().estimate(sampling("z"), guide, (), {}).run
    assert list(run.guide) == ["z"]


def test_auxiliary_sites_need_no_place_in_the_model() -> None:
    def guide() -> None:
        sampling("z")()
        pyro.sample("helper", UNIT, infer={"is_auxiliary": True})

    estimate = am.VariationalLoss().estimate(sampling("z"), guide, (), {})
    assert estimate.run.guide["helper"].auxiliary
    helper = estimate.run.guide["helper"].value
    assert estimate.loss.item() == pytest.approx(UNIT.log_prob(helper).item())


def test_a_factor_of_the_guide_is_a_part_of_log_q() -> None:
    def guide() -> None:
        sampling("z")()
        pyro.factor("extra", TWO, has_rsample=True)

    assert am.VariationalLoss().loss(sampling("z"), guide) == 2.0


@pytest.mark.float64
@pytest.mark.parametrize("before", [True, False])
def test_a_factor_without_rsample_is_the_score_of_a_draw_by_hand(before: bool) -> None:
    """The draw may have reached any site, also those before the factor: all costs are charged."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5).mask(False))
        pyro.factor("reward", 3.0 * z)

    def guide() -> None:
        logit = pyro.param("logit", torch.tensor(0.4))
        law = dist.Bernoulli(logits=logit)
        value = torch.bernoulli(law.probs.detach())
        if before:
            pyro.sample("z", dist.Delta(value))
        pyro.factor("by hand", law.log_prob(value), has_rsample=False)
        if not before:
            pyro.sample("z", dist.Delta(value))

    loss = am.VariationalLoss()
    for _ in range(5):
        if "logit" in pyro.get_param_store():
            pyro.get_param_store()["logit"].grad = None
        estimate = loss.estimate(model, guide, (), {})
        estimate.loss.backward()
        logit, value = pyro.get_param_store()["logit"], estimate.run.guide["z"].value
        cost = 3.0 * value - dist.Bernoulli(logits=logit).log_prob(value)
        expected = -cost * (value - torch.sigmoid(logit))
        assert logit.grad.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("size", [None, 2, 20])
def test_a_plate_of_the_minibatch_is_scaled_to_the_data_set(size: int | None) -> None:
    """A global latent counts once, the data N / B times."""

    def model() -> None:
        pyro.sample("w", dist.Delta(torch.tensor(1.0)))
        with pyro.plate("data", 2):
            pyro.sample("x", UNIT, obs=torch.zeros(2))
        pyro.factor("prior", torch.tensor(-5.0))

    def guide() -> None:
        pyro.sample("w", dist.Delta(torch.tensor(1.0)))

    data = am.DataPlate(size=size)
    estimate = am.VariationalLoss().estimate(model, guide, (), {}, data=data)
    of_data = -2 * UNIT.log_prob(torch.tensor(0.0)).item() * (1 if size is None else size / 2)
    assert estimate.loss.item() == pytest.approx(5.0 + of_data)
    assert estimate.data_size == (size or 2)


def test_a_plate_that_knows_the_data_set_is_left_alone() -> None:
    def program() -> None:
        with pyro.plate("data", 10, subsample=torch.tensor([1, 3])):
            pyro.sample("z", UNIT)

    estimate = am.VariationalLoss().estimate(program, program, (), {}, data=am.DataPlate(size=77))
    assert estimate.run.guide["z"].scale == 5.0


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("size", [4, 12])
def test_rows_drawn_from_a_minibatch_are_scaled_to_the_data_set(size: int, vectorize: bool) -> None:
    """A global latent counts once, whichever rows of the minibatch the plate takes."""
    x = torch.tensor([0.5, 0.5, 0.5, 0.5])

    def model(x: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Delta(torch.tensor(1.0), log_density=-3.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])

    def guide(x: torch.Tensor) -> None:
        pyro.sample("w", dist.Delta(torch.tensor(1.0)))

    data = am.DataPlate("data", size, rows=4, counted=True)
    loss = am.VariationalLoss(vectorize=vectorize)
    estimate = loss.estimate(model, guide, (x,), {}, data=data)
    of_row = -dist.Normal(1.0, 1.0).log_prob(x[0]).item()
    assert estimate.loss.item() == pytest.approx(3.0 + size * of_row)
    assert estimate.data_size == size


@pytest.mark.parametrize("size", [None, am.DataPlate("data", 12), am.DataPlate("data", 12, rows=3)])
def test_a_plate_without_a_size_has_that_of_its_sites(size: am.DataPlate | None) -> None:
    x = torch.tensor([0.5, -1.0, 2.0])

    def program(declared: int | None) -> Any:
        def run() -> None:
            with pyro.plate("data", declared):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    def guide() -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    losses = []
    for model in (program(3), program(None)):
        torch.manual_seed(0)
        estimate = am.VariationalLoss().estimate(model, guide, (), {}, data=size)
        losses.append(estimate.loss.item())
        assert estimate.data_size == (3 if size is None else 12)
    assert losses[0] == losses[1]


def visits_of(patients: torch.Tensor) -> Any:
    """A pair with two visits for each row of a batch, and that batch."""

    def model(x: torch.Tensor) -> None:
        pyro.sample("w", dist.Delta(torch.tensor(1.0)))
        with pyro.plate("visits", 2 * len(x)):
            pyro.sample("x", UNIT, obs=torch.zeros(2 * len(x)))

    def guide(x: torch.Tensor) -> None:
        pyro.sample("w", dist.Delta(torch.tensor(1.0)))

    return model, guide, (patients,), {}


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_data_plate_with_a_name_and_a_size_is_taken_at_its_word(vectorize: bool) -> None:
    loss = am.VariationalLoss(vectorize=vectorize)
    data = am.DataPlate("visits", 60, rows=3)
    estimate = loss.estimate(*visits_of(torch.zeros(3)), data=data)
    per_visit = -UNIT.log_prob(torch.tensor(0.0)).item()
    assert estimate.data_size == 60
    assert estimate.loss.item() == pytest.approx(60 * per_visit)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    "data", [am.DataPlate(None, 60, rows=3), am.DataPlate("visits", 60, rows=3, counted=True)]
)
def test_a_size_that_was_counted_wants_a_plate_of_the_minibatch(
    data: am.DataPlate, vectorize: bool
) -> None:
    loss = am.VariationalLoss(vectorize=vectorize)
    with pytest.raises(am.UsageError, match=r"'visits'.* 6 elements .* 3 rows.*DataPlate\("):
        loss.estimate(*visits_of(torch.zeros(3)), data=data)
