"""Where the values of summed-out sites lie, how they look, and what cannot be summed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta

import amortized as am
from amortized.programs import marginal as module
from amortized.programs.marginal import Marginal
from amortized.programs.records import Layout, Run

Program = Callable[[], object]
PARALLEL = {"enumerate": "parallel"}
BIT = dist.Bernoulli(0.3)


def nothing() -> None:
    """A guide without latents."""


def run_of(model: Program, guide: Program = nothing, **options: Any) -> Run:
    return am.VariationalLoss(**options).estimate(model, guide, (), {}).run


def places(run: Run) -> dict[str, int]:
    """The dim of each summed-out site."""
    return {
        r.name: next(dim for dim, own in r.open_dims.items() if own == r.name) for r in run.summed
    }


def bits(*names: str) -> Program:
    return lambda: [pyro.sample(name, BIT, infer=PARALLEL) for name in names]


# --- dims -----------------------------------------------------------------------------------------


def test_each_site_has_a_dim_left_of_the_plates() -> None:
    def model() -> None:
        bits("a", "b")()
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            bits("c")()

    # plates, the particles' place, and then one after the other
    assert places(run_of(model)) == {"a": -4, "b": -5, "c": -6}
    run = run_of(model)
    assert run.model["a"].value.shape == (2, 1, 1, 1)
    assert run.model["c"].value.shape == (2, 1, 1, 1, 1, 1)


def test_private_dims_particles_and_rows_lie_to_the_right() -> None:
    def model() -> None:
        bits("c")()
        for name in "yz":
            pyro.sample(name, BIT)

    def guide() -> None:
        for name in "yz":
            pyro.sample(name, BIT)

    run = run_of(model, guide, objective=am.ELBO(num_particles=3), estimators="enumerate")
    assert sorted(run.layout.axes.values()) == [-3, -2] and places(run) == {"c": -4}
    run = run_of(model, guide, estimators="disarm", layout="rows")
    assert run.layout.rows > 1 and places(run)["c"] < run.layout.copy_dim


@pytest.mark.parametrize(("history", "dims"), [(1, {-2, -3}), (2, {-2, -3, -4})])
def test_a_markov_chain_of_any_length_needs_a_dim_for_each_step_in_reach(
    history: int, dims: set[int]
) -> None:
    def model() -> None:
        before = [torch.tensor(0.0)] * history
        for step in pyro.markov(range(40), history=history):
            law = dist.Bernoulli(logits=sum(before) - 0.5)
            before = [*before[1:], pyro.sample(f"s{step}", law, infer=PARALLEL)]

    run = run_of(model)
    assert set(places(run).values()) == dims
    assert len(run.terms) == 1 and run.terms[0].sums == tuple(f"s{i}" for i in range(40))


def test_neighbouring_branches_share_their_dims() -> None:
    """Pyro's own example of ``keep``: branches that cannot see each other."""

    def model() -> None:
        root = pyro.sample("root", BIT, infer=PARALLEL)
        for branch in ("left", "right"):
            with pyro.markov():
                leaf = pyro.sample(branch, dist.Bernoulli(logits=root - 1.0), infer=PARALLEL)
                pyro.sample(f"x {branch}", dist.Normal(leaf, 1.0), obs=torch.tensor(0.5))

    found = places(run_of(model))
    assert found["left"] == found["right"] != found["root"]


def test_a_guide_s_markov_and_its_private_dims_are_no_hindrance() -> None:
    """Private dims are never used twice, so nothing collides with the model's."""

    def chain(estimated: bool) -> Program:
        def program() -> None:
            state = torch.tensor(0.0)
            for step in pyro.markov(range(3)):
                law = dist.Bernoulli(logits=state - 0.5)
                state = pyro.sample(f"s{step}", law)
                if not estimated:
                    c = pyro.sample(f"c{step}", BIT, infer=PARALLEL)
                    mean = state + c
                    pyro.sample(f"x{step}", dist.Normal(mean, 1.0), obs=torch.tensor(0.4))

        return program

    run = run_of(chain(False), chain(True), estimators="enumerate")
    assert len(run.layout.axes) == 3 and set(places(run).values()) == {-5, -6}


# --- values ---------------------------------------------------------------------------------------

LAWS: dict[str, tuple[dist.Distribution, int, tuple[int, ...]]] = {
    "bits": (dist.Bernoulli(torch.full((4,), 0.3)), 2, ()),
    "categories": (dist.Categorical(torch.ones(4, 3)), 3, ()),
    "one-hot": (dist.OneHotCategorical(torch.ones(4, 3)), 3, (3,)),
    "counts": (dist.Binomial(5, torch.full((4,), 0.3)), 6, ()),
    "an event of bits": (dist.Bernoulli(torch.full((4, 3), 0.3)).to_event(1), 8, (3,)),
}


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", sorted(LAWS))
def test_every_value_of_the_support_stands_on_the_dim(name: str, sequential: bool) -> None:
    law, count, event = LAWS[name]
    mark = {"enumerate": "sequential" if sequential else "parallel"}

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("c", law, infer=mark)

    run = run_of(model)
    assert run.model["c"].value.shape == (count, 1, 1, *event) and run.model["c"].summed == count
    values = {tuple(v.flatten().tolist()) for v in run.model["c"].value}
    assert len(values) == count
    # without data the sum is one
    assert torch.allclose(run.terms[0].value, torch.zeros(4), atol=1e-6)


def test_values_take_their_full_shape_where_the_program_asks() -> None:
    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("c", dist.Categorical(torch.ones(3)))

    run = run_of(config_enumerate(model, expand=True))
    assert run.model["c"].value.shape == (3, 1, 4)


def test_pins_are_one_value_without_a_dim() -> None:
    layout = Layout(1)
    found = Marginal(layout, {"c": 2})
    msg: dict[str, Any] = {"name": "c", "fn": dist.Categorical(torch.ones(3)), "infer": PARALLEL}
    found.sum_out(msg)
    assert msg["value"].shape == (1,) and msg["value"].item() == 2 and found.sizes == {"c": 3}


def test_marked_sites_of_the_guide_are_the_guide_s() -> None:
    """Their estimator serves them; the mark in the model changes nothing."""

    @config_enumerate
    def model() -> None:
        pyro.sample("c", BIT)

    run = run_of(model, lambda: pyro.sample("c", dist.Bernoulli(0.6)), estimators="score_function")
    assert not run.summed and not run.factors and run.model["c"].value.numel() == 1


def test_an_autoguide_of_the_rest_of_the_model() -> None:
    """Pyro's mixture tutorial."""
    x = torch.tensor([-1.0, 0.2, 1.5])

    @config_enumerate
    def model() -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[..., k], 1.0), obs=x)

    run = run_of(model, AutoDelta(poutine.block(model, expose=["weights", "locs"])))
    assert [r.name for r in run.summed] == ["k"]


# --- refusals -------------------------------------------------------------------------------------


def marking(law: dist.Distribution, **infer: Any) -> Program:
    return lambda: pyro.sample("c", law, infer={**PARALLEL, **infer})


def many(count: int) -> Program:
    return bits(*(f"b{i}" for i in range(count)))


def joined(count: int) -> Program:
    def model() -> None:
        total = sum(pyro.sample(f"b{i}", BIT, infer=PARALLEL) for i in range(count))
        pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(0.5))

    return model


REFUSED: dict[str, tuple[Program, str]] = {
    "continuous": (marking(dist.Normal(0.0, 1.0)), r"'c'.*Normal has no finite support.*guide"),
    "infinite": (marking(dist.Poisson(2.0)), r"'c'.*Poisson has no finite support.*pyro\.sample"),
    "samples": (marking(BIT, num_samples=5), r"'c'.*5 samples of it instead.*summed out exactly"),
    "a large support": (
        marking(dist.Bernoulli(torch.full((20,), 0.5)).to_event(1)),
        r"'c'.*1048576 values \(at most 4096\).*guide",
    ),
    "uneven supports": (
        marking(dist.Binomial(torch.tensor([2.0, 5.0]), 0.5).to_event(1)),
        r"'c'.*cannot be enumerated",
    ),
    "no dim left": (many(70), r"'b\d+'.*with 5\d other sites.*no dim left.*pyro\.markov"),
    "too many at once": (joined(21), r"'x' of the model.*2097152 joint values.*in the guide"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_a_reason(name: str) -> None:
    model, expected = REFUSED[name]
    with pytest.raises(am.ProgramError, match=f"site {expected}"):
        run_of(model)


def test_a_site_out_of_reach_is_refused() -> None:
    def model() -> None:
        states: list[torch.Tensor] = []
        for step in pyro.markov(range(4)):
            law = dist.Categorical(torch.arange(1.0, step + 3.0))
            states.append(pyro.sample(f"s{step}", law, infer=PARALLEL))
        mean = states[0] + states[1]
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(am.ProgramError, match=r"site 'x'.*in its reach \(none\).*history="):
        run_of(model)


def test_memory_is_a_budget_of_numbers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        with pyro.plate("data", 50):
            c = pyro.sample("c", dist.Categorical(torch.ones(4)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.zeros(50))

    monkeypatch.setattr(module, "_MAX_ELEMENTS", 150)
    with pytest.raises(am.ProgramError, match=r"site 'c' of the model.*200 numbers in all"):
        run_of(model)


def test_an_error_of_the_program_tells_of_the_dims() -> None:
    def model() -> None:
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            torch.cat([c, torch.zeros(2)], -1)

    with pytest.raises(am.ProgramError, match=r"model failed while site 'c' \(summed out, at dim"):
        run_of(model)


def test_a_branch_on_a_value_is_explained() -> None:
    def model() -> None:
        c = pyro.sample("c", BIT, infer=PARALLEL)
        mean = 1.0 if c else 0.0
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(am.ProgramError, match=r"site 'c' \(summed out, at dim -2\)"):
        run_of(model)
