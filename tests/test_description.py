"""The site table: rows, reasons, costs of a step."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am
from amortized.description import Description


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell is folded."""
    monkeypatch.setenv("COLUMNS", "120")


def model() -> None:
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 6, subsample=torch.tensor([0, 3]), dim=-2):
        with pyro.plate("columns", 3, dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(4)))
            pyro.sample("x", dist.Normal(c + top, 1.0), obs=torch.zeros(2, 3))


def guide() -> None:
    pyro.sample("top", dist.StudentT(3.0))
    with pyro.plate("rows", 6, subsample=torch.tensor([0, 3]), dim=-2):
        with pyro.plate("columns", 3, dim=-1):
            pyro.sample("c", dist.Categorical(torch.ones(4)))


def describe(estimators: Any = None, particles: int = 1, **options: Any) -> Description:
    objective = am.ELBO(particles, options.pop("kl", "sample"))
    return am.VariationalLoss(objective, estimators, **options).describe(model, guide, ())


def test_one_row_a_latent() -> None:
    top, c = describe({"c": am.ScoreFunction(am.LeaveOneOut(), num_samples=5)}).rows
    assert (top.site, top.distribution, top.estimator) == ("top", "StudentT", "Pathwise()")
    assert (top.copies, top.plates, top.kl) == (1, "-", "sampled")
    assert (c.site, c.distribution, c.copies) == ("c", "Categorical", 5)
    assert c.estimator == "ScoreFunction(num_samples=5, baseline=LeaveOneOut())"
    assert c.plates == "rows, columns" and c.why == "mapping 'c'"


def test_analytic_terms_say_so_or_why_not() -> None:
    top, c = describe(kl="analytic").rows
    assert top.kl == "sampled: no closed form between StudentT and Normal"
    assert c.kl == "closed form"


COSTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "one draw": ({}, 1, 1),
    "enumerated": ({"estimators": {"c": "enumerate"}}, 4, 4),
    "two samples of the first": ({"estimators": {"top": am.ScoreFunction(num_samples=2)}}, 2, 2),
    "both": (
        {"estimators": {"c": "enumerate", "top": am.ScoreFunction(num_samples=2)}},
        8,
        4,
    ),
    "particles": ({"particles": 3}, 3, 3),
    "particles and enumeration": ({"particles": 3, "estimators": {"c": "enumerate"}}, 12, 4),
}


@pytest.mark.parametrize("name", sorted(COSTS))
def test_how_often_a_step_evaluates_the_programs(name: str) -> None:
    """Copies of independent sites meet in the model only; an enumerated site has no particles."""
    options, in_model, in_guide = COSTS[name]
    found = describe(**options)
    assert (found.model_evaluations, found.guide_evaluations) == (in_model, in_guide)


def test_copy_by_copy_every_combination_is_a_run() -> None:
    found = describe({"c": "enumerate"}, particles=3, vectorize=False)
    assert (found.model_evaluations, found.guide_evaluations) == (12, 12)


def test_the_table_as_text() -> None:
    text = str(describe({"c": "enumerate"}, particles=2))
    lines = text.splitlines()
    heads = ["site", "distribution", "estimator", "why", "copies", "plates", "KL"]
    assert heads in [line.split() for line in lines]
    assert any(line.split()[:3] == ["c", "Categorical", "Enumerate()"] for line in lines)
    assert "ELBO(num_particles=2, kl='sample')" in lines[-1]
    assert "data plate 'rows'" in lines[-1]
    assert "guide 4 and the model 8 times" in lines[-1]
    assert all(len(line) <= 120 for line in lines[:-1]) and "\x1b" not in text


def test_the_data_plate_and_size_that_the_caller_names() -> None:
    data = am.DataPlate("columns", 300)
    text = str(am.VariationalLoss().describe(model, guide, (), data=data))
    assert "data plate 'columns' of 300" in text


def test_without_a_data_plate_the_numbers_are_totals() -> None:
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    text = str(am.VariationalLoss().describe(program, program, ()))
    assert "no data plate: numbers are totals" in text


def test_describing_changes_nothing() -> None:
    """No randomness is spent, no average moves."""
    loss = am.VariationalLoss()
    loss.loss(model, guide)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    pyro.set_rng_seed(2)
    expected = torch.rand(3)
    pyro.set_rng_seed(2)
    loss.describe(model, guide, ())
    assert torch.equal(torch.rand(3), expected)
    assert before and all(torch.equal(loss.state_dict()[name], before[name]) for name in before)


def test_an_estimator_that_the_user_did_not_choose_is_explained() -> None:
    def hand_made() -> None:
        pyro.sample("top", dist.Delta(torch.tensor(0.5)))
        with pyro.plate("rows", 6, subsample=torch.tensor([0, 3]), dim=-2):
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("c", dist.Categorical(torch.ones(4)))

    rows = am.VariationalLoss().describe(model, hand_made, ()).rows
    assert [row.why for row in rows] == [
        "default: deterministic",
        "default: not reparameterizable",
    ]


@pytest.mark.parametrize(
    ("objective", "why"),
    [(am.ELBO(), "fixed by the guide"), (am.ReweightedWakeSleep(2), "the objective")],
)
def test_a_site_for_which_no_estimator_was_chosen(objective: Any, why: str) -> None:
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    fixed = poutine.trace(program).get_trace()
    given = poutine.replay(program, fixed) if objective.site_estimators else program
    (row,) = am.VariationalLoss(objective).describe(program, given, ()).rows
    assert row.why == why


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (am.IWAE(1), "IWAE(num_particles=1) for each element of 'data'"),
        (am.ForwardKL(), "objective ForwardKL() ·"),
        (am.ELBO(2), "objective ELBO(num_particles=2, kl='sample') ·"),
    ],
)
def test_what_weighs_no_particles_is_taken_for_nothing(objective: Any, words: str) -> None:
    def program() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    assert words in str(am.VariationalLoss(objective).describe(program, program, ()))


@pytest.mark.parametrize("columns", [50, 80, 300])
def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table, _, _ = str(am.VariationalLoss().describe(model, guide, ())).partition("objective ")
    widest = max(map(len, table.splitlines()))
    assert widest <= min(columns, 120) and (columns == 50 or widest > 50)


def test_a_pathwise_site_is_one_line_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def pair() -> None:
        with pyro.plate("data", 1000):
            pyro.sample("code", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    table = str(am.VariationalLoss().describe(pair, pair, ())).splitlines()
    (row,) = (line for line in table if "code" in line)
    assert "default: rsample" in row and "sampled" in row
    assert table.index("") == 3  # head, rule, row


def test_a_bound_that_is_no_sum_says_what_it_is_taken_for() -> None:
    def local() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def model() -> None:
        guide()
        with pyro.plate("rows", 3):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

    loss = am.VariationalLoss(am.IWAE(2))
    assert "IWAE(num_particles=2) for each element of 'data'" in str(
        loss.describe(local, local, ())
    )
    assert "IWAE(num_particles=2) of the whole" in str(loss.describe(model, guide, ()))


def test_a_row_for_what_the_model_sums_out() -> None:
    def mixture() -> None:
        with pyro.plate("data", 3):
            c = pyro.sample("c", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=torch.zeros(3))

    def of_z() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    found = am.VariationalLoss(am.ELBO(num_particles=2)).describe(mixture, of_z, ())
    z, c = found.rows
    assert z.kl == "sampled: its prior is a sum over 'c' of the model"
    assert (c.site, c.distribution, c.copies, c.plates) == ("c", "Categorical", 4, "data")
    assert c.estimator == "summed out in the model" and c.kl == "-"
    assert (found.model_evaluations, found.guide_evaluations) == (8, 2)
    assert "summed out in the model" in str(found)


@pytest.mark.parametrize(
    ("estimator", "how"),
    [
        ("enumerate", "summed out"),
        ("sum_and_sample", "a weighted part of the support"),
        ("unordered_set", "a weighted part of the support"),
        ("measure_valued", "sampled"),
        ("disarm", "sampled"),
        ("leave_one_out", "sampled"),
    ],
)
def test_only_what_sums_over_all_values_is_called_summed_out(estimator: str, how: str) -> None:
    assert describe({"c": estimator}).rows[1].kl == how
