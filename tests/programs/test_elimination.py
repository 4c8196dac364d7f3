"""Sums over model sites by elimination: against every outcome listed; scales, plates, names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

import amortized as am
from amortized.estimators.base import TorchNoise
from amortized.programs.handlers import Context
from amortized.programs.records import Layout, Run, Term
from amortized.programs.run import run_pair
from tests.reference import OutcomeTree, _Steer

pytestmark = pytest.mark.float64

Program = Callable[[], object]
PARALLEL = {"enumerate": "parallel"}
X = torch.tensor([[0.3, -1.2, 0.8], [1.7, 0.1, -0.4]], dtype=torch.float64)


def nothing() -> None:
    """A guide without latents."""


def run_of(model: Program, guide: Program = nothing, **options: Any) -> Run:
    return am.VariationalLoss(**options).estimate(model, guide, (), {}).run


def listed(model: Program, values: dict[str, Tensor] | None = None) -> Tensor:
    """log sum p over every outcome of what has no value, each element of a plate by itself."""
    tree, known, found = OutcomeTree(), values or {}, []
    for _ in tree.paths():

        def choose(msg: dict[str, Any]) -> Tensor:
            name = msg["name"]
            return known[name] if name in known else tree.sample(msg["fn"], site=name)

        with poutine.trace() as tracer, _Steer(choose):
            model()
        found.append(tracer.trace.log_prob_sum())
    return torch.stack(found).logsumexp(0)


# --- programs of many shapes ----------------------------------------------------------------------


def coin(name: str, logit: Tensor | float) -> Tensor:
    return pyro.sample(name, dist.Bernoulli(logits=torch.as_tensor(logit)), infer=PARALLEL)


def see(name: str, mean: Tensor, x: Tensor) -> None:
    pyro.sample(name, dist.Normal(mean, 1.0), obs=x)


def a_tree() -> None:
    root = coin("root", 0.3)
    for side in range(2):
        leaf = coin(f"leaf{side}", root - 0.4 * side)
        see(f"x{side}", leaf + root, X[0, side])


def a_loop() -> None:
    """Four bits in a ring: no order of elimination leaves pairs only."""
    a, b = coin("a", 0.3), coin("b", -0.2)
    c, d = coin("c", a - b), coin("d", b + 0.1)
    see("x", a + 2.0 * d, X[0, 0])
    see("y", c * d, X[0, 1])


def plates_beside_each_other() -> None:
    g = coin("g", 0.3)
    for name, row in (("one", X[0]), ("two", X[1])):
        with pyro.plate(name, 3):
            see(f"x {name}", coin(f"c {name}", g - 0.5) + g, row)


def plates_in_each_other() -> None:
    g = coin("g", 0.3)
    with pyro.plate("rows", 2, dim=-2):
        r = coin("r", g - 0.7)
        with pyro.plate("columns", 3, dim=-1):
            see("x", coin("e", r + g) - r, X)


def an_outer_plate_on_the_right() -> None:
    with pyro.plate("columns", 3, dim=-1):
        r = coin("r", 0.2)
        with pyro.plate("rows", 2, dim=-2):
            see("x", coin("e", r - 0.1) - r, X)


def crossing_plates_told_apart() -> None:
    """Rows and columns have bits of their own, and no entry sees both."""
    with pyro.plate("rows", 2, dim=-2):
        r = coin("r", torch.tensor(0.2))
        see("x", r, X[:, :1])
    with pyro.plate("columns", 3, dim=-1):
        see("y", coin("c", -0.3), X[0])


def nobody_sees_it() -> None:
    coin("a", coin("b", 0.3) - 0.2)


def one_value_only() -> None:
    c = pyro.sample("c", dist.Categorical(torch.ones(1)), infer=PARALLEL)
    see("x", c + 0.5, X[0, 0])


def factors_too() -> None:
    a, b = coin("a", 0.3), coin("b", -0.2)
    pyro.factor("agree", 0.7 * (a == b).double())
    pyro.deterministic("sum", a + b)


SHAPES = [
    a_tree,
    a_loop,
    plates_beside_each_other,
    plates_in_each_other,
    an_outer_plate_on_the_right,
    crossing_plates_told_apart,
    nobody_sees_it,
    one_value_only,
    factors_too,
]


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("model", SHAPES, ids=lambda f: f.__name__)
def test_the_sum_is_that_over_every_outcome(model: Program, vectorize: bool) -> None:
    value = am.VariationalLoss(vectorize=vectorize).loss(model, nothing)
    assert -value == pytest.approx(float(listed(model)), rel=1e-12)


def test_log_probabilities_of_two_types_meet_in_the_wider_one() -> None:
    def model() -> None:
        law = dist.Bernoulli(torch.tensor(0.5, dtype=torch.float32))
        c = pyro.sample("c", law, infer=PARALLEL)
        see("x", c.double(), X[0, 0])

    value = run_of(model).terms[0].value
    each = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(X[0, 0])
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(float(each.exp().mean().log()), rel=1e-7)


def chance(seed: int) -> tuple[Program, Program]:
    """A random program: sites in nested plates, summed out, observed, or latents of the guide."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    plates = {0: (), 1: ("rows",), 2: ("rows", "columns")}
    sites: list[tuple[str, int, str, list[int], list[float]]] = []
    for i in range(6):
        depth, role = pick(0, 1, 1, 2), pick("sum", "sum", "see", "guide")
        # what lies in fewer plates may not depend on what lies in more
        able = [j for j, site in enumerate(sites) if site[1] <= depth]
        parents = [j for j in able if pick(True, True, False)]
        count = sum((1, 2, 4)[s[1]] for s in sites if s[2] == "sum")
        if role == "sum" and count + (1, 2, 4)[depth] > 6:
            role = "see"  # few enough outcomes to list
        numbers = torch.randn(len(parents) + 1, generator=generator).tolist()
        sites.append((f"v{i}", depth, role, parents, numbers))

    def run(in_model: bool) -> None:
        made = {"rows": pyro.plate("rows", 2, dim=-2), "columns": pyro.plate("columns", 2, dim=-1)}
        values: list[Tensor] = []
        for name, depth, role, parents, numbers in sites:
            mean = torch.as_tensor(numbers[0])
            if in_model:
                mean = mean + sum(a * values[j] for a, j in zip(numbers[1:], parents, strict=True))
            if not in_model and role != "guide":
                values.append(torch.tensor(0.0))
                continue
            with ExitStack() as inside:
                for plate in plates[depth]:
                    inside.enter_context(made[plate])
                if role == "see":
                    pyro.sample(name, dist.Normal(mean, 1.0), obs=torch.tensor(0.4))
                    values.append(torch.tensor(0.4))
                elif role == "sum":
                    values.append(coin(name, mean))
                else:
                    values.append(pyro.sample(name, dist.Normal(mean, 1.0)))

    return (lambda: run(True)), (lambda: run(False))


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    """Terms of latents and of data, for each particle, against every outcome listed."""
    model, guide = chance(seed)
    run = run_of(model, guide, objective=am.ELBO(num_particles=2))
    for k in range(2):
        values = {}
        for name, record in run.guide.items():
            value = record.value
            picked = value[k] if value.dim() > 2 else value
            values[name] = picked.reshape(picked.shape[-2:]) if picked.dim() > 2 else picked
        expected = listed(model, values)
        found = sum(_particle(t, k) for t in run.terms if t.in_model)
        assert torch.allclose(torch.as_tensor(found), expected, rtol=1e-11), k


def _particle(term: Term, k: int) -> Tensor:
    value = term.value
    return (value[k] if value.dim() > 2 and value.shape[0] > 1 else value).sum()


# --- names, splits and notes ----------------------------------------------------------------------


def latent_prior(observed: bool) -> tuple[Program, Program]:
    def model() -> None:
        with pyro.plate("data", 3):
            c = coin("c", 0.3)
            d = coin("d", c - 0.5)
            z = pyro.sample("z", dist.Normal(c, 1.0))
            y = pyro.sample("y", dist.Normal(c + z, 1.0))
            if observed:
                see("x", y + d, X[0])

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(0.0, 1.0))

    return model, guide


def named(run: Run) -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    return ((t.name, t.role, t.sums, t.latents) for t in run.terms if t.in_model)


def test_a_sum_over_priors_alone_is_a_prior() -> None:
    run = run_of(*latent_prior(False))
    assert list(named(run)) == [("z", "prior", ("c", "d"), ("z", "y"))]


def test_a_sum_with_data_is_a_prior_and_a_likelihood() -> None:
    run = run_of(*latent_prior(True))
    assert sorted(named(run)) == [
        ("c", "likelihood", ("c", "d"), ()),
        ("z", "prior", ("c", "d"), ("z", "y")),
    ]
    assert {t.name for t in run.factors} == {"c", "d", "z", "y", "x"}
    assert run.kl_notes["z"] == "sampled: its prior is a sum over 'c', 'd' of the model"
    assert run.kl_notes["y"].endswith("of the model, log p counted at 'z'")


def test_a_term_comes_as_late_as_its_last_factor() -> None:
    run = run_of(*latent_prior(True))
    order = {name: place for place, name in enumerate(run.model)}
    found = {t.name: t.order for t in run.terms if t.in_model}
    assert found == {"z": order["y"], "c": order["x"]}


def test_latents_that_share_no_sum_have_priors_of_their_own() -> None:
    """The data join them, the priors do not."""

    def model() -> None:
        a, b = coin("a", 0.3), coin("b", -0.4)
        z, y = pyro.sample("z", dist.Normal(a, 1.0)), pyro.sample("y", dist.Normal(b, 1.0))
        see("x", a + b + z * y, X[0, 0])

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    run = run_of(model, guide)
    assert sorted((t.name, t.role) for t in run.terms if t.in_model) == [
        ("a", "likelihood"),
        ("y", "prior"),
        ("z", "prior"),
    ]


def test_closed_forms_are_taken_where_the_prior_is_no_sum() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(coin("c", 0.3), 1.0))
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        see("x", y + coin("d", 0.1), X[0, 0])

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.5, 1.0))
        pyro.sample("y", dist.Normal(0.5, 1.0))

    run = run_of(model, guide, objective=am.ELBO(kl="analytic"))
    assert run.kl_notes["y"] == "closed form"
    assert run.kl_notes["z"] == "sampled: its prior is a sum over 'c' of the model"


def test_impossible_latents_have_a_bound_of_minus_infinity() -> None:
    def model() -> None:
        c = coin("c", 0.3)
        z = pyro.sample("z", dist.Uniform(c + 2.0, c + 3.0, validate_args=False))
        see("x", c + z, X[0, 0])

    def guide() -> None:
        pyro.sample("z", dist.Uniform(0.0, 1.0))

    run = run_of(model, guide)
    found = {t.name: t.value.item() for t in run.terms if t.in_model}
    assert found == {"z": -torch.inf, "c": 0.0}


# --- refusals -------------------------------------------------------------------------------------


def outside() -> None:
    with pyro.plate("data", 3):
        c = coin("c", 0.3)
    see("x", c.sum(-1, keepdim=True), X[0, :1])


def two_scales() -> None:
    c = coin("c", 0.3)
    with pyro.plate("data", 30, subsample=torch.tensor([1, 5, 7])):
        see("x", c.expand(3) if c.dim() == 0 else c, X[0])


def scales_of_one_site() -> None:
    with pyro.plate("data", 3), poutine.scale(scale=2.0):
        c = coin("c", 0.3)
    with pyro.plate("data", 3):
        see("x", c, X[0])


def varying_scale() -> None:
    c = coin("c", 0.3)
    with poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])):
        with pyro.plate("data", 3):
            see("x", c, X[0])


def crossing() -> None:
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        r = coin("r", 0.3)
    with columns:
        c = coin("c", -0.2)
    with rows, columns:
        see("x", r + c, X)


REFUSED: dict[str, tuple[Program, str]] = {
    "outside the plate": (
        outside,
        r"site 'x' of the model depends on site 'c'.*plate 'data'.*outside that plate",
    ),
    "a subsampled plate under a global sum": (
        two_scales,
        r"sites 'c' \(scale 1, plates none\) and 'x' \(scale 10, plates 'data' 3 of 30\)",
    ),
    "two scales": (scales_of_one_site, r"'c' \(scale 2.*'x' \(scale 1.*one scale"),
    "plates that cross": (crossing, r"sites 'r', 'c'.*plates 'columns', 'rows' cross.*a loop"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_a_reason(name: str) -> None:
    model, expected = REFUSED[name]
    with pytest.raises(am.ProgramError, match=expected):
        run_of(model)


def weighted(inside: bool) -> Program:
    """A weight for each datum; the class is the datum's, or everybody's."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def model() -> None:
        if inside:
            with poutine.scale(scale=weights):
                c = coin("c", 0.3)
                with pyro.plate("data", 3):
                    see("x", c, X[0])
        else:
            with pyro.plate("data", 3), poutine.scale(scale=weights):
                see("x", coin("c", 0.3), X[0])

    return model


def test_weights_of_data_stand_outside_each_datum_s_sum() -> None:
    run = run_of(weighted(False))
    each = [-1.0 * am.VariationalLoss().loss(single, nothing) for single in map(_single, X[0])]
    expected = torch.tensor(each) * torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(run.terms[0].value, expected, rtol=1e-12)


def _single(x: Tensor) -> Program:
    return lambda: see("x", coin("c", 0.3), x)


def test_weights_of_data_inside_a_sum_are_refused() -> None:
    with pytest.raises(am.ProgramError, match=r"scale of shape \(3,\).*sum over 'c' joins"):
        run_of(weighted(True))


def test_an_enumerated_guide_site_inside_what_is_summed_together_is_refused() -> None:
    """Pyro: "Expected model enumeration to be no more global than guide enumeration"."""

    def model() -> None:
        c = coin("c", 0.3)
        with pyro.plate("data", 3):
            z = pyro.sample(
                "z", dist.Bernoulli(logits=c.expand(3) if c.dim() == 0 else c + 0 * X[0])
            )
            see("x", z, X[0])

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(0.4))

    with pytest.raises(am.ProgramError, match=r"site 'z'.*plate 'data'.*sum over 'c' joins them"):
        am.VariationalLoss(estimators="enumerate").loss(model, guide)


# --- scales that are tensors ----------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("equal", [True, False])
def test_scales_that_are_tensors_are_compared_by_value(equal: bool, reads: bool) -> None:
    """A captured step may not read them: there the sum is NaN, so that it is repeated eagerly."""
    two = torch.tensor(2.0, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", 3), poutine.scale(scale=two.clone()):
            c = coin("c", 0.3)
        other = two.clone() if equal else torch.tensor(3.0, dtype=torch.float64)
        with pyro.plate("data", 3), poutine.scale(scale=other):
            see("x", c, X[0])

    context = Context(Layout(1), TorchNoise(), reads=reads)
    if reads and not equal:
        with pytest.raises(am.ProgramError, match="one scale"):
            run_pair(model, nothing, (), {}, context)
        return
    found = run_pair(model, nothing, (), {}, context).terms[0].value
    plain = run_of(_three).terms[0].value
    assert torch.allclose(found, 2 * plain) if equal else bool(found.isnan().all())


def _three() -> None:
    with pyro.plate("data", 3):
        see("x", coin("c", 0.3), X[0])


def test_marks_by_a_handler_are_marks() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            c = pyro.sample("c", dist.Bernoulli(logits=torch.tensor(0.3)))
            see("x", c, X[0])

    found = am.VariationalLoss().loss(config_enumerate(model), nothing)
    assert found == pytest.approx(am.VariationalLoss().loss(_three, nothing), rel=1e-12)


# --- what depends on a summed-out site in other ways than by its law ------------------------------


def _mask_alone() -> None:
    c = coin("c", 0.3)
    with poutine.mask(mask=c.bool()):
        see("x", torch.tensor(0.5, dtype=torch.float64), X[0, 0])


def _mask_and_law() -> None:
    c = coin("c", 0.3)
    with poutine.mask(mask=c.bool()):
        see("x", c + 0.5, X[0, 0])


def _mask_in_a_plate() -> None:
    with pyro.plate("data", 3):
        c = coin("c", 0.3)
        with poutine.mask(mask=c.bool()):
            see("x", torch.tensor(0.5, dtype=torch.float64), X[0])


def _mask_in_the_law() -> None:
    with pyro.plate("data", 3):
        c = coin("c", 0.3)
        law = dist.Normal(0.5, torch.ones(3, dtype=torch.float64)).mask(c.bool())
        pyro.sample("x", law, obs=X[0])


@pytest.mark.parametrize("model", [_mask_alone, _mask_and_law, _mask_in_a_plate, _mask_in_the_law])
def test_a_mask_may_depend_on_a_summed_out_site(model: Program) -> None:
    found = -am.VariationalLoss().loss(model, nothing)
    assert found == pytest.approx(float(listed(model)), rel=1e-12)


@pytest.mark.parametrize("kl", ["sample", "analytic"])
def test_the_mask_of_a_latent_may_depend_on_one_too(kl: Any) -> None:
    """Its law does not, so without the mask the prior would be no sum, and have a closed form."""

    def model() -> None:
        c = coin("c", 0.3)
        with poutine.mask(mask=c.bool()):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.3), 1.0))
        see("x", z + c, X[0, 0])

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.2), 1.0))

    run = run_of(model, guide, objective=am.ELBO(kl=kl))
    assert run.kl_notes["z"] == "sampled: its prior is a sum over 'c' of the model"
    found = sum(term.value for term in run.terms if term.in_model)
    expected = listed(model, {"z": run.guide["z"].value})
    assert torch.allclose(torch.as_tensor(found), expected, rtol=1e-12)


def test_a_scale_that_depends_on_a_summed_out_site_is_refused() -> None:
    def model() -> None:
        c = coin("c", 0.3)
        with poutine.scale(scale=1.0 + c):
            see("x", torch.tensor(0.5, dtype=torch.float64), X[0, 0])

    with pytest.raises(am.ProgramError, match=r"site 'x' .* scale that depends on 'c'"):
        am.VariationalLoss().loss(model, nothing)


# --- what is read of pyro.markov out of its reach -------------------------------------------------


def _lag(history: int, reads: int, own: bool = False) -> Program:
    """A chain whose observations, or whose own law, look further back."""

    def model() -> None:
        states = [torch.tensor(0.0, dtype=torch.float64)] * 4
        for t in pyro.markov(range(6), history=history):
            logit = states[-1] - 0.3 + (1.5 * states[-reads] if own else 0.0)
            states.append(coin(f"s{t}", logit))
            see(f"x{t}", states[-1] + (0.0 if own else 2 * states[-1 - reads]), X[0, t % 3])

    return model


def _after_the_loop() -> None:
    w = y = torch.tensor(0.0, dtype=torch.float64)
    for t in pyro.markov(range(3)):
        w = coin(f"w{t}", w - 0.3)
        y = coin(f"y{t}", y + w - 0.5)
        see(f"x{t}", w + y, X[0, t])
    see("z", w + 2 * coin("c", 0.4), X[1, 0])


def _two_loops() -> None:
    s = u = torch.tensor(0.0, dtype=torch.float64)
    for t in pyro.markov(range(3)):
        s = coin(f"s{t}", s - 0.3)
        see(f"x{t}", s, X[0, t])
    for t in pyro.markov(range(3)):
        u = coin(f"u{t}", u - 0.3)
        see(f"y{t}", u + 2 * s, X[1, t])


@pytest.mark.parametrize(
    "model",
    [
        _lag(1, 2),
        _lag(1, 2, own=True),
        _lag(1, 3),
        _lag(1, 4),
        _lag(2, 3),
        _after_the_loop,
        _two_loops,
    ],
    ids=["lag 2", "own lag 2", "lag 3", "lag 4", "lag 3 of 2", "after the loop", "two loops"],
)
def test_what_is_out_of_reach_of_a_markov_loop_is_refused(model: Program) -> None:
    """Sites share dims there: one out of reach would silently be taken for another."""
    with pytest.raises(am.ProgramError, match=r"mixes the values of the summed-out|its reach"):
        am.VariationalLoss().loss(model, nothing)


@pytest.mark.parametrize("model", [_lag(2, 2), _lag(2, 2, own=True), _lag(3, 3), _lag(4, 4)])
def test_what_is_in_reach_is_summed(model: Program) -> None:
    found = -am.VariationalLoss().loss(model, nothing)
    assert found == pytest.approx(float(listed(model)), rel=1e-12)


def test_sites_of_other_sizes_out_of_reach_are_named() -> None:
    def model() -> None:
        kept = torch.tensor(0.0, dtype=torch.float64)
        for t in pyro.markov(range(4)):
            logits = torch.arange(2 if t < 2 else 5, dtype=torch.float64) * 0.3
            c = pyro.sample(f"c{t}", dist.Categorical(logits=logits), infer=PARALLEL)
            kept = c if t == 0 else kept
            if t == 2:
                see("x", kept * 1.0, X[0, 0])

    with pytest.raises(am.ProgramError, match=r"site 'x' .* size 2 .* 'c2', which has 5 values"):
        am.VariationalLoss().loss(model, nothing)
