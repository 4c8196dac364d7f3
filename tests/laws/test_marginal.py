"""Summing sites out in the model: against Pyro's `TraceEnum_ELBO`, sums by hand, brute force.

Three oracles that share nothing. On Pyro's own kinds of programs, and on the same draws of a
guide, value and gradients are Pyro's. A program with its sums written by hand has the same loss on
the same noise under every estimator, objective and executor. And every outcome can be listed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

import amortized as am
from amortized.estimators.base import Estimator
from amortized.objectives.base import Objective
from amortized.programs import elimination, terms
from amortized.programs.records import Term
from tests.laws import test_captured
from tests.laws.marginals import EVERY, PARALLEL, Marginal, Program, both, log_normal, table
from tests.laws.marginals import transitions as transitions_of_marginals
from tests.laws.structures import DATA, ROWS, weight
from tests.laws.test_unbiased import leaves
from tests.reference import FixedNoise, estimate_law

Make = Callable[[], Estimator]
Found = tuple[Tensor, dict[str, Tensor]]


def nothing() -> None:
    """A guide without latents."""


# --- Pyro's own kinds of programs -----------------------------------------------------------------

SERIES = torch.tensor([[0.3, -1.2, 0.8, 0.5, -0.6], [1.7, 0.1, -0.4, 0.9, -1.1]])


@config_enumerate
def mixture() -> None:
    """A class a datum."""
    w, m = table()
    with pyro.plate("data", 2):
        c = pyro.sample("c", dist.Categorical(logits=w))
        pyro.sample("x", dist.Normal(m[c], 1.0), obs=DATA)


@config_enumerate
def markov_chain() -> None:
    """Hidden states, each after the one before."""
    _, m = table()
    t, state = transitions_of_marginals(), 0
    with pyro.plate("series", 2):
        for step in pyro.markov(range(5)):
            state = pyro.sample(f"s{step}", dist.Categorical(logits=t[state]))
            pyro.sample(f"x{step}", dist.Normal(m[state], 1.0), obs=SERIES[:, step])


@config_enumerate
def second_order_chain() -> None:
    """Hidden states, each after the two before."""
    t = weight("two", (torch.linspace(-1.0, 1.0, 27).reshape(3, 3, 3) ** 2).tolist())
    _, m = table()
    before, last = torch.tensor(0), torch.tensor(0)
    with pyro.plate("series", 2):
        for step in pyro.markov(range(5), history=2):
            state = pyro.sample(f"s{step}", dist.Categorical(logits=Vindex(t)[before, last]))
            pyro.sample(f"x{step}", dist.Normal(m[state], 1.0), obs=SERIES[:, step])
            before, last = last, state


@config_enumerate
def factorial_chain() -> None:
    """Two chains side by side, and data that see both; a bit outside that all depend on."""
    _, m = table()
    g = pyro.sample("g", dist.Bernoulli(logits=weight("h", 0.3)))
    one = two = torch.tensor(0)
    with pyro.plate("series", 2):
        for step in pyro.markov(range(3)):
            one = pyro.sample(f"a{step}", dist.Bernoulli(logits=m[one] + g))
            two = pyro.sample(f"b{step}", dist.Bernoulli(logits=m[two.long()]))
            mean = m[one.long()] - 2.0 * two
            pyro.sample(f"x{step}", dist.Normal(mean, 1.0), obs=SERIES[:, step])
            one = one.long()


@config_enumerate
def nested_plates() -> None:
    """A bit outside, a class a row, a type an entry."""
    w, m = table()
    kinds = weight("k", [[0.1, 0.2], [-0.3, 0.5], [0.4, 0.9]])
    g = pyro.sample("g", dist.Bernoulli(logits=weight("h", 0.3)))
    with pyro.plate("rows", 2, dim=-2):
        c = pyro.sample("c", dist.Categorical(logits=w + g.unsqueeze(-1) * w.flip(0)))
        with pyro.plate("columns", 3, dim=-1):
            d = pyro.sample("d", dist.Categorical(logits=kinds[c]))
            pyro.sample("x", dist.Normal(m[c] * d, 1.0), obs=ROWS)


def masked() -> None:
    """Data of which one is missing."""
    with poutine.mask(mask=torch.tensor([True, False])):
        mixture()


def subsampled() -> None:
    """Two data of ten."""
    w, m = table()
    everything = torch.linspace(-1.0, 2.0, 10)
    with pyro.plate("data", 10, subsample=torch.tensor([7, 2])) as index:
        c = pyro.sample("c", dist.Categorical(logits=w), infer=PARALLEL)
        pyro.sample("x", dist.Normal(m[c], 1.0), obs=everything[index])


def scaled() -> None:
    """One scale around everything."""
    with poutine.scale(scale=0.3):
        mixture()


def one_hot_and_counts() -> None:
    """Supports that are no ranges of integers from zero, and an event."""
    w, m = table()
    with pyro.plate("data", 2):
        c = pyro.sample("c", dist.OneHotCategorical(logits=w), infer=PARALLEL)
        n = pyro.sample("n", dist.Binomial(3, logits=(c * m).sum(-1)), infer=PARALLEL)
        pyro.sample("x", dist.Normal((c * m).sum(-1) + n, 1.0), obs=DATA)


def expanded() -> None:
    """Values with all their dims."""
    config_enumerate(lambda: mixture(), expand=True)()


def loop_plate() -> None:
    """A plate run as a loop."""
    w, m = table()
    g = pyro.sample("g", dist.Bernoulli(logits=weight("h", 0.3)), infer=PARALLEL)
    for i in pyro.plate("data", 2):
        c = pyro.sample(f"c{i}", dist.Categorical(logits=w + g.unsqueeze(-1)), infer=PARALLEL)
        pyro.sample(f"x{i}", dist.Normal(m[c] * g, 1.0), obs=DATA[i])


def impossible_steps() -> None:
    """States that cannot follow each other."""
    _, m = table()
    allowed = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf, 0.0, 0.0], [0.0, -torch.inf, 0.0]])
    state = 0
    with pyro.plate("series", 2):
        for step in pyro.markov(range(3)):
            law = dist.Categorical(logits=transitions_of_marginals()[state] + allowed[state])
            state = pyro.sample(f"s{step}", law, infer=PARALLEL)
            pyro.sample(f"x{step}", dist.Normal(m[state], 1.0), obs=SERIES[:, step])


PYRO_S: dict[str, tuple[Program, int]] = {
    "mixture": (mixture, 1),
    "Markov chain": (markov_chain, 1),
    "second order": (second_order_chain, 1),
    "factorial": (factorial_chain, 1),
    "nested plates": (nested_plates, 2),
    "masked": (masked, 1),
    "subsampled": (subsampled, 1),
    "scaled": (scaled, 1),
    "one-hot and counts": (one_hot_and_counts, 1),
    "expanded": (expanded, 1),
    "loop": (loop_plate, 0),
    "impossible steps": (impossible_steps, 1),
}


def gradients(value: Tensor) -> Found:
    params = leaves()
    found = torch.autograd.grad(
        value, list(params.values()), allow_unused=True, materialize_grads=True
    )
    return value.detach(), dict(zip(params, found, strict=True))


def assert_equal(ours: Found, theirs: Found) -> None:
    assert torch.allclose(ours[0], theirs[0], rtol=1e-12, atol=1e-12)
    assert max(float(g.abs().max()) for g in theirs[1].values()) > 1e-3
    for name, expected in theirs[1].items():
        assert torch.allclose(ours[1][name], expected, rtol=1e-10, atol=1e-11), name


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("program", sorted(PYRO_S))
def test_as_pyro_enumerates(program: str, vectorize: bool) -> None:
    model, nesting = PYRO_S[program]
    pyros = TraceEnum_ELBO(max_plate_nesting=nesting).differentiable_loss(model, nothing)
    ours = am.VariationalLoss(vectorize=vectorize).differentiable_loss(model, nothing)
    assert_equal(gradients(ours), gradients(pyros))


NESTING = {"nested": 2}


@pytest.mark.parametrize("structure", sorted(set(EVERY) - {"scaled"}))
def test_as_pyro_on_the_same_pathwise_draws(structure: str) -> None:
    """Latents of the guide before, after and between what is summed out."""
    pair = EVERY[structure]("normal")
    pyros = TraceEnum_ELBO(max_plate_nesting=NESTING.get(structure, 1))
    pair.guide()
    model = config_enumerate(pair.model)  # Pyro takes a mark "sequential" for another thing
    if structure in ("both", "masked"):
        model = reworded(model)
    found = []
    for loss in (am.VariationalLoss(), pyros):
        if isinstance(loss, am.VariationalLoss):
            loss.warm_up(model, pair.guide, ())
        pyro.set_rng_seed(3)
        found.append(gradients(loss.differentiable_loss(model, pair.guide)))
    assert_equal(*found)


def reworded(model: Program) -> Program:
    """With its marks "parallel"."""
    return poutine.infer_config(
        model, lambda msg: PARALLEL if msg["infer"].get("enumerate") else {}
    )


@pytest.mark.parametrize("structure", ["child", "parent", "both", "hidden_states", "switching"])
def test_as_pyro_with_the_guide_s_sites_enumerated_too(structure: str) -> None:
    pair = EVERY[structure]("bernoulli")
    model, guide = reworded(pair.model), config_enumerate(pair.guide)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    ours = am.VariationalLoss(estimators="enumerate").differentiable_loss(model, pair.guide)
    assert_equal(gradients(ours), gradients(pyros))


# --- sums by hand ---------------------------------------------------------------------------------

NORMAL: dict[str, Make] = {
    "pathwise": am.Pathwise,
    "score": am.ScoreFunction,
    "two samples": lambda: am.ScoreFunction(am.LeaveOneOut(), num_samples=2),
    "doubly reparameterized": am.DoublyReparameterized,
    "measure valued": am.MeasureValued,
    "relax": am.RELAX,
}
BERNOULLI: dict[str, Make] = {
    "score": am.ScoreFunction,
    "two samples": lambda: am.ScoreFunction(am.LeaveOneOut(), num_samples=2),
    "enumerate": am.Enumerate,
    "arm": am.ARM,
    "disarm": am.DisARM,
    "rebar": am.REBAR,
    "relax": am.RELAX,
    "muprop": am.MuProp,
    "measure valued": am.MeasureValued,
    "sum and sample": am.SumAndSample,
    "unordered set": am.UnorderedSet,
    "straight through": am.StraightThrough,
}
KINDS = {"normal": NORMAL, "bernoulli": BERNOULLI}
CELLS = [(kind, name) for kind, makes in KINDS.items() for name in makes]
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "particles": lambda: am.ELBO(num_particles=2),
    "IWAE": lambda: am.IWAE(3),
    "Renyi": lambda: am.Renyi(0.5, 2),
}


def on_one_noise(pair: Marginal, make: Make, objective: Objective, **options: Any) -> None:
    """The loss and its gradients are those with the sums by hand; or both are refused."""
    found: list[Found | str] = []
    state: dict[str, Tensor] | None = None
    for model in (pair.model, pair.by_hand):
        loss = am.VariationalLoss(objective, {n: make() for n in pair.latents}, **options)
        try:
            loss.warm_up(model, pair.guide, ())
            if state is not None:
                loss.load_state_dict(state)
            state = {k: v.clone() for k, v in loss.state_dict().items()}
            pyro.set_rng_seed(4)
            found.append(gradients(loss.differentiable_loss(model, pair.guide)))
        except am.AmortizedError as error:
            found.append(type(error).__name__)
    ours, theirs = found
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
        pytest.skip("refused, as without the sum: see the laws")
    assert_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "estimator"), CELLS)
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_every_estimator_beside_a_sum(structure: str, kind: str, estimator: str) -> None:
    on_one_noise(EVERY[structure](kind), KINDS[kind][estimator], am.ELBO())


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("normal", "pathwise"), ("bernoulli", "enumerate"), ("bernoulli", "disarm")],
)
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_copy_by_copy_beside_a_sum(structure: str, kind: str, estimator: str) -> None:
    on_one_noise(EVERY[structure](kind), KINDS[kind][estimator], am.ELBO(), vectorize=False)


@pytest.mark.parametrize("structure", ["both", "hidden_states"])
@pytest.mark.parametrize("estimator", ["disarm", "rebar", "muprop"])
def test_copies_in_rows(structure: str, estimator: str) -> None:
    on_one_noise(EVERY[structure]("bernoulli"), BERNOULLI[estimator], am.ELBO(), layout="rows")


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        ("normal", "pathwise"),
        ("normal", "doubly reparameterized"),
        ("bernoulli", "score"),
        ("bernoulli", "disarm"),
        ("bernoulli", "enumerate"),
    ],
)
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_every_objective_beside_a_sum(
    structure: str, kind: str, estimator: str, objective: str
) -> None:
    on_one_noise(EVERY[structure](kind), KINDS[kind][estimator], OBJECTIVES[objective]())


@pytest.mark.parametrize("structure", sorted(EVERY))
@pytest.mark.parametrize("name", ["wake", "thermodynamic"])
def test_objectives_that_take_samples_as_data(structure: str, name: str) -> None:
    makes = {"wake": lambda: am.ReweightedWakeSleep(3), "thermodynamic": lambda: am.TVO(3)}
    pair = EVERY[structure]("normal")
    found = []
    for model in (pair.model, pair.by_hand):
        loss = am.VariationalLoss(makes[name]())
        loss.warm_up(model, pair.guide, ())
        pyro.set_rng_seed(4)
        found.append(gradients(loss.differentiable_loss(model, pair.guide)))
    assert_equal(*found)


# --- every outcome listed -------------------------------------------------------------------------


def joint(z: float, x: Tensor) -> Tensor:
    """log sum_c p(z, c, x) of `both` with a bit, for one datum, term by term."""
    w, m = table()
    parts = []
    for c in range(3):
        p_z = dist.Bernoulli(logits=m[c]).log_prob(torch.tensor(z))
        mean = z * weight("v", 0.7) - m[c]
        parts.append(w.log_softmax(-1)[c] + p_z + log_normal(x, mean))
    return torch.stack(parts).logsumexp(0)


def exact(objective: Objective, size: int) -> Found:
    """The bound and its gradients by the sum over the tuples of particles of each datum."""
    total = torch.zeros(())
    for x in DATA[:size]:
        q = dist.Bernoulli(logits=weight("a", 0.4) * x)
        log_q = [q.log_prob(torch.tensor(z)) for z in (0.0, 1.0)]
        log_w = [joint(z, x) - log_q[int(z)] for z in (0.0, 1.0)]
        for tuple_ in product((0, 1), repeat=objective.num_particles):
            mass = torch.stack([log_q[z] for z in tuple_]).sum().exp()
            total = total + mass * objective.bound(torch.stack([log_w[z] for z in tuple_]))
    return gradients(total)


def mean(objective: Objective, make: Make) -> Found:
    """The same of the estimate over its own randomness."""
    pair = both("bernoulli")
    loss = am.VariationalLoss(objective, {"z": make()})
    loss.warm_up(pair.model, pair.guide, ())
    loss.eval()
    names: list[str] = []

    def run(tree: Any) -> list[Tensor]:
        bound = -loss.estimate(pair.model, pair.guide, (), {}, noise=tree).loss
        value, found = gradients(bound)
        names[:] = found
        return [value, *found.values()]

    value, *found = estimate_law(run, noise=FixedNoise(), limit=10**6).mean
    return value, dict(zip(names, found, strict=True))


LISTED: dict[str, Make] = {
    "score": am.ScoreFunction,
    "enumerate": am.Enumerate,
    "disarm": am.DisARM,
    "two samples": BERNOULLI["two samples"],
}
BOUNDS: dict[str, Callable[[], Objective]] = {
    "ELBO": am.ELBO,
    "IWAE": lambda: am.IWAE(2),
    "Renyi": lambda: am.Renyi(-1.0, 2),
}


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@pytest.mark.parametrize("estimator", sorted(LISTED))
def test_the_mean_is_the_exact_bound_and_its_gradient(estimator: str, bound: str) -> None:
    if bound != "ELBO" and estimator in ("two samples", "disarm"):
        pytest.skip("tens of thousands of outcomes: covered by the sums by hand")
    objective = BOUNDS[bound]()
    assert_equal(mean(objective, LISTED[estimator]), exact(objective, 2))


def mean_bound(model: Program, guide: Program) -> Callable[[Any], Tensor]:
    """A bound of two weights by a source of noise."""
    loss = am.VariationalLoss(am.IWAE(2), {"z": am.ScoreFunction()})
    loss.warm_up(model, guide, ())
    loss.eval()
    return lambda tree: loss.estimate(model, guide, (), {}, noise=tree).loss


def test_data_have_bounds_of_their_own() -> None:
    """Two data together are the sum of each alone."""
    values = []
    for rows in ([0], [1], [0, 1]):

        def model(rows: list[int] = rows) -> None:
            w, m = table()
            with pyro.plate("data", len(rows)):
                c = pyro.sample("c", dist.Categorical(logits=w), infer=PARALLEL)
                z = pyro.sample("z", dist.Bernoulli(logits=m[c]))
                pyro.sample("x", dist.Normal(z - m[c], 1.0), obs=DATA[rows])

        def guide(rows: list[int] = rows) -> None:
            with pyro.plate("data", len(rows)):
                pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4) * DATA[rows]))

        values.append(estimate_law(mean_bound(model, guide)).mean)
    assert torch.allclose(values[0] + values[1], values[2], rtol=1e-12)


# --- what reports say -----------------------------------------------------------------------------


def test_priors_and_likelihoods_are_told_apart() -> None:
    """The KL is to the prior with c summed out, and the rest is log p(x | z)."""
    pair = both("normal")
    loss = am.VariationalLoss()
    pyro.set_rng_seed(2)
    estimate = loss.estimate(pair.model, pair.guide, (), {})
    w, m = (t.detach() for t in table())
    z = estimate.run.guide["z"].value.detach()
    q = dist.Normal(weight("a", 0.4) * DATA, 0.8).log_prob(z).detach()
    mixed = dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, 0.8))
    assert torch.allclose(estimate.kl, (q - mixed.log_prob(z)).sum(), rtol=1e-12)
    assert set(estimate.kl_per_site) == {"z"}
    logits = w.log_softmax(-1)[:, None] + dist.Normal(m, 0.8).log_prob(z[:, None]).T
    seen = log_normal(DATA, z * 0.7 - m[:, None])
    expected = (logits + seen).logsumexp(0) - logits.logsumexp(0)
    assert torch.allclose(estimate.reconstruction, expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("kl_weight", [0.3, 0.0, torch.tensor(0.3)])
def test_warm_up_weighs_the_prior_and_not_the_likelihood(kl_weight: float | Tensor) -> None:
    pair = both("normal")
    loss = am.VariationalLoss()
    loss.warm_up(pair.model, pair.guide, ())
    pyro.set_rng_seed(2)
    plain = loss.estimate(pair.model, pair.guide, (), {})
    pyro.set_rng_seed(2)
    weighed = loss.estimate(pair.model, pair.guide, (), {}, kl_weight=kl_weight)
    expected = kl_weight * plain.kl - plain.reconstruction
    assert torch.allclose(weighed.loss, expected, rtol=1e-12)


def test_evaluation_is_of_the_collapsed_model() -> None:
    """Without latents of the guide every weight is the evidence."""
    loss = am.VariationalLoss()
    found = loss.log_weights(mixture, nothing, (), {}, num_particles=3)
    w, m = table()
    law = dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, 1.0))
    assert found.per_datum and found.log_joint.shape == (3, 2)
    assert torch.allclose(found.log_joint, law.log_prob(DATA).expand(3, 2), rtol=1e-12)


# --- mutants --------------------------------------------------------------------------------------


def mutate(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    right = elimination._summed

    def earlier(group: list[Term], *rest: Any) -> Term:
        found = right(group, *rest)
        found.order = min(t.order for t in group)
        return found

    def inside(record: Any, value: Tensor) -> bool:
        return bool(record.summed)

    if mutant == "order of the first factor":
        monkeypatch.setattr(elimination, "_summed", earlier)
    elif mutant == "scale forgotten":
        monkeypatch.setattr(elimination, "_common_scale", lambda *_: 1.0)
    elif mutant == "prior counted twice":
        monkeypatch.setattr(elimination, "_without", lambda whole, prior: whole)
    elif mutant == "dependents left out of the sum":
        monkeypatch.setattr(terms, "is_factor", inside)
    elif mutant == "every site summed alone":
        monkeypatch.setattr(elimination, "_connected", lambda factors, _: [[f] for f in factors])


CAUGHT = {
    "order of the first factor": ("both", "bernoulli", "score"),
    "scale forgotten": ("scaled", "normal", "pathwise"),
    "prior counted twice": ("both", "normal", "pathwise"),
    "dependents left out of the sum": ("child", "normal", "pathwise"),
    "every site summed alone": ("parent", "normal", "pathwise"),
}


@pytest.mark.parametrize("mutant", sorted(CAUGHT))
def test_mutants_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    structure, kind, estimator = CAUGHT[mutant]
    mutate(monkeypatch, mutant)
    with pytest.raises((AssertionError, IndexError, KeyError, ValueError)):
        on_one_noise(EVERY[structure](kind), KINDS[kind][estimator], am.ELBO())


# --- captured and trained -------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["both", "hidden_states", "nested", "scaled"])
@pytest.mark.parametrize(
    ("kind", "estimator", "objective"),
    [
        ("normal", "pathwise", "ELBO"),
        ("normal", "pathwise", "IWAE"),
        ("bernoulli", "score", "particles"),
        ("bernoulli", "disarm", "ELBO"),
    ],
)
def test_captured_steps(
    structure: str, kind: str, estimator: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the eager ones."""
    monkeypatch.setattr(test_captured, "EVERY", EVERY)
    make = {"ELBO": am.ELBO, **OBJECTIVES}[objective]
    test_captured.compare(structure, kind, KINDS[kind][estimator], make())


def test_a_mixture_autoencoder_learns() -> None:
    """100 steps with classes that are summed out of the prior of a continuous code."""
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    draws = dist.Normal(centres[torch.arange(150) % 3], 0.5).sample()
    mixing = torch.tensor([[1.0, 0.5, -0.3, 0.8], [-0.2, 0.9, 1.0, -0.6]])
    x = dist.Normal(draws @ mixing, 0.3).sample()
    encoder, decoder = torch.nn.Linear(4, 4), torch.nn.Linear(2, 4)

    def model(x: Tensor) -> None:
        decode = pyro.module("decoder", decoder)
        locs = pyro.param("locs", torch.randn(3, 2))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(locs[c], 0.5).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, log_scale = pyro.module("encoder", encoder)(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = am.SVI(model, guide, lr=0.05, compile="off")
    history = svi.fit(x, x, max_steps=100, batch_size=150, seed=0, progress=False)
    losses = history["train_loss"]
    assert losses[-1] < 0.3 * losses[0]
    found = svi.evaluate(x, num_particles=20)
    assert found["log_evidence"] > found["elbo"] - 1e-6
