import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.breakdown import first_non_finite, site_table, terminal_width
from amortized.errors import NonFiniteError
from amortized.programs.records import Run
from tests.fit import tiny

NAN, INF = math.nan, math.inf


def run_of(model, guide, *args: Any, **options: Any) -> Run:
    """One run, without Pyro's own checks, as in training."""
    with pyro.validation_enabled(False):
        return am.VariationalLoss(**options).estimate(model, guide, args, {}).run


def rows(run: Run) -> dict[tuple[str, str], list[str]]:
    """The cells of the table by site and program."""
    lines = site_table(run).splitlines()
    heads = ["site", "program", "log-probability", "non-finite", "value from", "to"]
    starts = [lines[0].index(head) for head in ("site", "program")]
    ends = [lines[0].index(head) + len(head) for head in heads[2:-1]] + [None]
    assert set(lines[1].strip()) == {"─"}
    found = {}
    for line in lines[2:]:
        name, program = line[: starts[1]].strip(), line[starts[1] : starts[1] + 7].strip()
        begin, cells = starts[1] + 7, []
        for end in ends:
            cells.append(line[begin:end].strip())
            begin = end or begin
        found[name, program] = cells
    return found


def test_a_row_for_each_term_with_its_sum_and_range() -> None:
    x = torch.tensor([0.5, -1.0, 2.0])
    run = run_of(tiny.global_model, tiny.point_guide(0.25), x)
    likelihood = tiny.normal_log_prob(x, 0.25).sum().item()
    prior = tiny.normal_log_prob(torch.tensor(0.25), 0.0).item()
    assert rows(run) == {
        ("m", "guide"): ["0", "", "0.25", "0.25"],
        ("m", "model"): [f"{prior:.6g}", "", "0.25", "0.25"],
        ("x", "model"): [f"{likelihood:.6g}", "", "-1", "2"],
    }
    assert first_non_finite(run) is None


def test_the_guide_counts_as_log_q_and_the_kl_as_it_is_added() -> None:
    x = tiny.data(4)
    run = run_of(tiny.local_model, tiny.exact_guide, x)
    q, z = dist.Normal(x / 2, math.sqrt(0.5)), run.guide["z"].value
    assert float(rows(run)["z", "guide"][0]) == pytest.approx(q.log_prob(z).sum().item(), rel=1e-4)
    analytic = rows(run_of(tiny.local_model, tiny.exact_guide, x, objective=am.ELBO(kl="analytic")))
    kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum().item()
    assert float(analytic["z", "KL"][0]) == pytest.approx(-kl, rel=1e-5)
    assert set(analytic) == {("z", "KL"), ("x", "model")}


def guided(z: Any = 0.0, scale: Any = 1.0):
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.as_tensor(z).expand(len(x)), scale))

    return guide


def modelled(loc: Any = 0.0, scale: Any = 1.0):
    """The observation has its own trouble; z has none."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(len(x)))
            pyro.sample("x", dist.Normal(loc + 0 * z, scale), obs=x)

    return model


def within(high: float):
    """Observations beyond are impossible."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(0.0, high).mask(x.isfinite()), obs=x)

    return model


GOOD = torch.tensor([0.0, 1.0, 2.0, 3.0])
BAD = torch.tensor([0.0, NAN, NAN, 3.0])


@pytest.mark.parametrize(
    ("model", "guide", "x", "expected"),
    [
        (modelled(), guided(), GOOD, None),
        (
            modelled(),
            guided(NAN),
            GOOD,
            "site 'z' of the guide: a parameter of its Normal is nan in",
        ),
        (modelled(), guided(scale=INF), GOOD, "site 'z' of the guide: its value is"),
        (modelled(), guided(), BAD, "site 'x' of the model: its observed value is nan in 2 of 4"),
        (
            modelled(NAN),
            guided(),
            GOOD,
            "site 'x' of the model: a parameter of its Normal is nan in",
        ),
        (
            modelled(scale=torch.tensor([1.0, 1.0, NAN, 1.0])),
            guided(),
            GOOD,
            "site 'x' of the model: a parameter of its Normal is nan in 1 of 4 places",
        ),
        (
            within(2.5),
            guided(),
            GOOD,
            "site 'x' of the model: its log-probability is -inf in 1 of 4",
        ),
        (modelled(), guided(), GOOD * INF, "site 'x' of the model: its observed value is nan in 4"),
    ],
    ids=["none", "guide", "overflow", "data", "parameter", "place", "log-probability", "inf"],
)
def test_the_first_trouble_is_named(model, guide, x: Tensor, expected: str | None) -> None:
    found = first_non_finite(run_of(model, guide, x))
    assert found is None if expected is None else found is not None and found.startswith(expected)


def test_the_counts_are_of_the_terms() -> None:
    table = rows(run_of(modelled(), guided(), BAD))
    assert table["x", "model"][:2] == ["nan", "2 of 4"] and table["y", "model"][1] == ""


def masked(inner: bool, other: float):
    """The NaN in the data is hidden; the second observation may have a trouble in view."""

    def model(x: Tensor) -> None:
        seen = x.isfinite()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if inner:
                pyro.sample("x", dist.Normal(z, 1.0).mask(seen), obs=x)
            else:
                with poutine.mask(mask=seen):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.full((len(x),), other))

    return model


@pytest.mark.parametrize("inner", [True, False], ids=["fn.mask", "poutine.mask"])
def test_what_a_mask_hides_is_no_trouble(inner: bool) -> None:
    run = run_of(masked(inner, 0.0), guided(), BAD)
    assert first_non_finite(run) is None and rows(run)["x", "model"][1] == ""
    found = first_non_finite(run_of(masked(inner, NAN), guided(), BAD))
    assert found is not None and found.startswith(
        "site 'y' of the model: its observed value is nan"
    )


def test_a_hidden_nan_is_not_blamed_for_another_trouble_at_the_same_site() -> None:
    found = first_non_finite(run_of(within(2.5), guided(), BAD))
    assert found == "site 'x' of the model: its log-probability is -inf in 1 of 4 places"


def test_impossible_categories_are_legal() -> None:
    logits = torch.tensor([0.0, -INF, 0.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=logits.expand(len(x), 3)))

    assert first_non_finite(run_of(model, guide, GOOD)) is None
    bad = first_non_finite(run_of(modelled_as(torch.tensor([0.0, -INF, NAN])), guide, GOOD))
    assert bad is not None and bad.startswith(
        "site 'c' of the model: a parameter of its Categorical"
    )
    assert "is nan in" in bad


def modelled_as(logits: Tensor):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model


def test_an_impossible_draw_is_a_trouble_of_the_model() -> None:
    """The guide draws what the prior excludes: log 0, and no parameter is to blame."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])))

    model = modelled_as(torch.tensor([0.0, -INF, 0.0]))
    found = first_non_finite(run_of(model, guide, GOOD))
    # torch clamps the logits of probs, not those that were given
    assert found == "site 'c' of the model: its log-probability is -inf in 4 of 4 places"


def test_enumerated_copies() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0 - c), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.full((len(x),), 0.5)))

    run = run_of(model, guide, GOOD, estimators={"c": "enumerate"})
    table = rows(run)
    assert table["c", "guide"][2:] == ["0", "1"] and table["x", "model"][1] == "4 of 8"
    found = first_non_finite(run)
    assert found is not None and found.startswith("site 'x' of the model: its log-probability")
    assert found.endswith("in 4 of 8 places")


def test_particles_and_copy_by_copy_runs() -> None:
    for options in ({"objective": am.ELBO(3)}, {"objective": am.ELBO(3), "vectorize": False}):
        run = run_of(modelled(), guided(), BAD, **options)
        found = first_non_finite(run)
        assert found is not None and found.startswith("site 'x' of the model: its observed value")
        assert rows(run)["x", "model"][0] == "nan"


def test_integers_booleans_events_and_discrete_values() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson(3.0), obs=torch.arange(len(x)))
            pyro.sample("label", dist.Categorical(torch.ones(3)), obs=torch.arange(len(x)) % 3)
            pyro.sample("bit", dist.Bernoulli(0.5), obs=torch.ones(len(x)))
            vector = x.unsqueeze(-1).expand(-1, 2)
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=vector)

    run = run_of(model, lambda x: None, GOOD)
    table = rows(run)
    assert table["count", "model"][2:] == ["0", "3"] and table["label", "model"][2:] == ["0", "2"]
    assert table["bit", "model"][2:] == ["1", "1"] and first_non_finite(run) is None
    found = first_non_finite(run_of(model, lambda x: None, BAD))
    assert found == "site 'x' of the model: its observed value is nan in 4 of 8 places"


def test_an_event_without_elements() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            nothing = dist.Normal(0.0, 1.0).expand([0]).to_event(1)
            pyro.sample("y", nothing, obs=torch.zeros(len(x), 0))

    run = run_of(model, lambda x: None, GOOD)
    assert rows(run)["y", "model"] == ["0", "", "", ""] and first_non_finite(run) is None
    assert first_non_finite(run_of(model, lambda x: None, BAD)) is not None


def test_factors_and_long_names() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.factor("a name of more than thirty characters", x.log())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    run = run_of(model, lambda x: None, GOOD)
    found = first_non_finite(run)
    assert found is not None and found.startswith("site 'a name of more than thirty characters' of")
    assert "log-probability is -inf in 1 of 4 places" in found
    assert max(map(len, site_table(run).splitlines())) <= 100


def test_many_latents_whose_sum_overflows() -> None:
    """No term is to blame alone, and the report says so."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in "abcd":
                pyro.factor(name, torch.full((len(x),), 3e37))

    estimate = am.VariationalLoss().estimate(model, lambda x: None, (GOOD,), {})
    assert not math.isfinite(estimate.loss.item()) and first_non_finite(estimate.run) is None
    assert "no single term (their sum overflows)" in estimate.non_finite_report()


def test_the_error_shows_the_table_below_the_sentence() -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    svi.step(GOOD)
    with pytest.raises(NonFiniteError) as caught:
        svi.step(BAD)
    sentence, table = str(caught.value).split("\n\n")
    assert sentence == caught.value.args[0] and table == caught.value.table
    assert "first: site 'z' of the guide: a parameter of its Normal is nan in 2 of 4" in sentence


def test_a_table_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    for columns in ("10", "72", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(terminal_width(120))
    assert widths == [40, 72, 120]
    monkeypatch.delenv("COLUMNS")
    assert 40 <= terminal_width(120) <= 120


def mixture(loc: float, logits: list[float]) -> Any:
    def model() -> None:
        c = pyro.sample("c", dist.Categorical(logits=torch.tensor(logits)), infer=PARALLEL)
        pyro.sample("x", dist.Normal(c + loc, 1.0), obs=torch.tensor(0.5))

    return model


PARALLEL = {"enumerate": "parallel"}


def test_what_is_summed_out_is_shown_value_by_value_and_as_a_sum() -> None:
    run = run_of(mixture(0.0, [0.0, 0.0]), lambda: None)
    table = site_table(run)
    assert [line.split()[:2] for line in table.splitlines()[2:]] == [
        ["c", "sum"],
        ["c", "model"],
        ["x", "model"],
    ]


def test_a_value_that_is_impossible_is_no_trouble_in_a_sum() -> None:
    assert first_non_finite(run_of(mixture(0.0, [0.0, -INF]), lambda: None)) is None
    found = first_non_finite(run_of(mixture(NAN, [0.0, -INF]), lambda: None))
    assert found is not None and "site 'x' of the model: a parameter of its Normal is nan" in found


def test_a_sum_of_nothing_but_impossible_values_is_named() -> None:
    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        law = dist.Uniform(c + 1.0, c + 2.0, validate_args=False)
        pyro.sample("x", law, obs=torch.tensor(0.5))

    found = first_non_finite(run_of(model, lambda: None))
    assert found == "site 'c' of the model: the sum over its values is -inf in 1 of 1 places"
