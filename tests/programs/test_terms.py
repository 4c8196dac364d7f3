"""From sample statements to terms: shapes, hidden data, order, and which KL may be closed."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am
from amortized.programs.records import Run
from amortized.programs.terms import fill_hidden

UNIT = dist.Normal(0.0, 1.0)


def run_of(model: Any, guide: Any, kl: str = "sample") -> Run:
    loss = am.VariationalLoss(am.ELBO(kl=kl))  # type: ignore[arg-type]
    return loss.estimate(model, guide, (), {}).run


def batch(name: str = "z", size: int = 4, declared: bool = False, observed: bool = False) -> Any:
    """A batch of latents or data, in a plate or not."""

    def program() -> None:
        value = torch.zeros(size) if observed else None
        if declared:
            with pyro.plate("data", size):
                pyro.sample(name, dist.Normal(torch.zeros(size), 1.0), obs=value)
        else:
            pyro.sample(name, dist.Normal(torch.zeros(size), 1.0), obs=value)

    return program


@pytest.mark.parametrize(
    ("model", "guide", "where"),
    [
        (batch(declared=True), batch(), "site 'z' of the guide"),
        (batch(), batch(declared=True), "site 'z' of the model"),
        (batch("x", observed=True), lambda: None, "site 'x' of the model"),
    ],
)
def test_a_batch_dim_must_be_declared(model: Any, guide: Any, where: str) -> None:
    with pytest.raises(am.ProgramError) as error:
        run_of(model, guide)
    text = str(error.value)
    assert where in text and "size 4 at dim -1" in text and "are none" in text
    assert "pyro.plate(...)" in text and ".to_event(1)" in text


def test_the_plates_that_are_there_are_named() -> None:
    def program() -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.zeros(3, 4), 1.0))

    with pytest.raises(am.ProgramError, match=r"size 3 at dim -2.*'data' at -1"):
        run_of(program, program)


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_declared_or_of_size_one_is_fine(size: int) -> None:
    program = batch(size=size, declared=size > 1)
    assert run_of(program, program).terms[0].value.shape == (size,)


HIDDEN: dict[str, tuple[dist.Distribution, Any]] = {
    "real": (dist.Normal(torch.zeros(2), 1.0), math.nan),
    "positive": (dist.Gamma(torch.ones(2), 1.0), -1.0),
    "unit interval": (dist.Beta(torch.ones(2) * 2, 2.0), math.nan),
    "interval": (dist.Uniform(torch.ones(2) * 3, 5.0), 0.0),
    "bit": (dist.Bernoulli(torch.ones(2) / 2), math.nan),
    "count": (dist.Poisson(torch.ones(2)), -1.0),
    "index": (dist.Categorical(torch.ones(2, 3)), -1),
    "bounded count": (dist.Binomial(3, torch.ones(2) / 2), 7.0),
    "vector": (dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), math.nan),
    "multivariate": (dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)), math.nan),
    "simplex": (dist.Dirichlet(torch.ones(2, 3) * 2), math.nan),
    "one-hot": (dist.OneHotCategorical(torch.ones(2, 3)), 0.0),
}


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_what_a_mask_hides_is_made_harmless(name: str) -> None:
    """The visible entry is untouched; the hidden one becomes a possible value."""
    law, impossible = HIDDEN[name]
    value = law.sample()
    broken = value.clone()
    broken[1] = impossible
    filled = fill_hidden(law, broken, torch.tensor([True, False]))
    assert filled.dtype == value.dtype and torch.equal(filled[0], value[0])
    assert law.log_prob(filled).isfinite().all()


def test_an_unknown_support_is_left_as_it_is() -> None:
    law = dist.LKJCholesky(2, torch.ones(2))
    value = law.sample()
    assert fill_hidden(law, value, torch.tensor([True, False])) is value


@pytest.mark.parametrize(
    ("law", "value", "cause"),
    [
        (dist.Bernoulli(torch.tensor(0.5)), torch.tensor(0.3), "support"),
        (dist.Normal(0.0, 1.0), torch.tensor(math.nan), "NaN"),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.zeros(2), "shape"),
    ],
)
def test_a_value_that_its_law_refuses_is_named(
    law: dist.Distribution, value: torch.Tensor, cause: str
) -> None:
    def model() -> None:
        pyro.sample("pixels", law, obs=value)

    with pytest.raises(am.ProgramError, match=r"site 'pixels'.*refuses a value") as error:
        am.VariationalLoss().loss(model, lambda: None)
    assert cause in str(error.value)


DATA = torch.tensor([1.0, math.nan, 3.0])
SEEN = torch.tensor([True, False, True])


def masked_by_handler() -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", 3), poutine.mask(mask=SEEN):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA)


def masked_by_law() -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(loc.expand(3), 1.0).mask(SEEN), obs=DATA)


def masked_inside_of_an_event() -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    law = dist.Normal(loc.expand(1, 3), 1.0).mask(SEEN).to_event(1)
    with pyro.plate("data", 1):
        pyro.sample("x", law, obs=DATA.unsqueeze(0))


@pytest.mark.parametrize("model", [masked_by_handler, masked_by_law, masked_inside_of_an_event])
def test_missing_data_do_not_reach_the_gradient(model: Any) -> None:
    """Pyro gives log_prob 0 there and gradient NaN."""
    am.VariationalLoss().loss_and_grads(model, lambda: None)
    assert pyro.get_param_store()["loc"].grad.item() == pytest.approx(-(0.5 + 2.5))


def test_order_and_role_of_terms() -> None:
    def model() -> None:
        pyro.sample("z", UNIT)
        pyro.deterministic("twice", torch.zeros(()))
        pyro.factor("extra", torch.tensor(1.0))
        pyro.sample("y", UNIT)
        pyro.sample("x", UNIT, obs=torch.tensor(0.0))

    def guide() -> None:
        pyro.sample("y", UNIT)
        pyro.sample("z", UNIT)

    found = [(t.name, t.role, t.order) for t in run_of(model, guide).terms]
    assert found == [
        ("y", "guide", 0),
        ("z", "guide", 1),
        ("z", "prior", 0),
        ("extra", "likelihood", 1),
        ("y", "prior", 2),
        ("x", "likelihood", 3),
    ]


def in_order(*names: str) -> Any:
    return lambda: [pyro.sample(name, UNIT) for name in names]


def test_the_first_model_site_that_a_latent_can_reach() -> None:
    """Through itself or through any later site of the guide."""
    run = run_of(in_order("a", "b", "c"), in_order("c", "a", "b"))
    assert {x.name: x.first_in_model for x in run.latents} == {"c": 0, "a": 0, "b": 1}


def test_a_last_auxiliary_site_reaches_no_model_site() -> None:
    def guide() -> None:
        in_order("a")()
        pyro.sample("helper", UNIT, infer={"is_auxiliary": True})

    run = run_of(in_order("a"), guide)
    assert {x.name: x.first_in_model for x in run.latents} == {"a": 0, "helper": math.inf}


def roles(run: Run) -> dict[str, set[str]]:
    return {n: {t.role for t in run.terms if t.name == n} for n in {t.name for t in run.terms}}


def test_a_prior_that_may_depend_on_a_later_site_keeps_the_sampled_form() -> None:
    """guide z -> y, model y -> z: only y's prior is free of what comes after it in the guide."""
    run = run_of(in_order("y", "z"), in_order("z", "y"), "analytic")
    assert roles(run) == {"z": {"guide", "prior"}, "y": {"kl"}}
    assert "'y', drawn later in the guide" in run.kl_notes["z"]
    assert run.kl_notes["y"] == "closed form"


def test_in_the_same_order_all_are_closed() -> None:
    run = run_of(in_order("y", "z"), in_order("y", "z"), "analytic")
    assert roles(run) == {"z": {"kl"}, "y": {"kl"}}


def test_sampled_where_the_plates_differ() -> None:
    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    run = run_of(batch(declared=True), guide, "analytic")
    assert roles(run) == {"z": {"guide", "prior"}}
    assert run.kl_notes == {"z": "sampled: model and guide declare different plates"}


@pytest.mark.float64
def test_the_counterexample_is_sampled_and_right() -> None:
    """Model y -> z, guide z -> y, bits: the closed form for z would give another number.

    With it the bound would be -0.339; the exact one is -0.279 (checked by listing all outcomes).
    """
    prior, flip, q_z, q_y = 0.3, (0.2, 0.7), 0.6, (0.4, 0.8)

    def model() -> None:
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(prior)))
        pyro.sample("z", dist.Bernoulli(torch.tensor(flip)[y.long()]))

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(q_z)))
        pyro.sample("y", dist.Bernoulli(torch.tensor(q_y)[z.long()]))

    def log(p: float, bit: int) -> float:
        return math.log(p if bit else 1 - p)

    exact = sum(
        math.exp(log(q_z, z) + log(q_y[z], y))
        * (log(prior, y) + log(flip[y], z) - log(q_z, z) - log(q_y[z], y))
        for z in (0, 1)
        for y in (0, 1)
    )
    for kl in ("sample", "analytic"):
        loss = am.VariationalLoss(am.ELBO(kl=kl), "enumerate")  # type: ignore[arg-type]
        assert loss.loss(model, guide) == pytest.approx(-exact, rel=1e-12)


def test_a_half_observed_site_is_two_sites() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=DATA, obs_mask=SEEN)

    def guide() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=~SEEN):
            pyro.sample("z_unobserved", dist.Normal(0.0, 1.0))

    run = run_of(model, guide)
    assert roles(run) == {"z_observed": {"likelihood"}, "z_unobserved": {"guide", "prior"}}
    (prior,) = (t for t in run.terms if t.role == "prior")
    assert (prior.value != 0).tolist() == [False, True, False]
