"""Relaxed values: densities, temperatures, hazards, state, capture, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli, RelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

import amortized as am
from amortized.estimators.base import Draw, Site, TorchNoise
from amortized.estimators.relaxed import Relaxed
from tests.laws.structures import EVERY

TERMS = ("analytic", "discrete", "relaxed")
Programs = tuple[Callable[[], None], Callable[[], None]]


class Given:
    """The same uniforms for everybody, in any dtype."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        return self.u.expand(shape).to(like.dtype)

    def sample(self, fn: Any, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        raise AssertionError(site)

    def rsample(self, fn: Any, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        raise AssertionError(site)


def bits(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits).to_event(1)


def categories(logits: Tensor) -> Any:
    return dist.OneHotCategorical(logits=logits)


def torch_density(law: Any, temperature: float, draw: Draw, own: float) -> Tensor:
    """torch's density of the logit or the logarithm of the value, from the scores."""
    x = draw.memory["score"] / own
    temp = torch.tensor(temperature)
    if isinstance(law, dist.OneHotCategorical):
        at = ExpRelaxedCategorical(temp, logits=law.logits, validate_args=False)
        return at.log_prob(x.log_softmax(-1))
    inner = law.base_dist.logits
    return LogitRelaxedBernoulli(temp, logits=inner, validate_args=False).log_prob(x).sum(-1)


# --- densities ------------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("prior", [None, 0.4])
def test_densities_are_torchs_where_torch_is_sound(family: Any, prior: float | None) -> None:
    guide, model = family(2 * torch.randn(50, 4)), family(2 * torch.randn(50, 4))
    estimator = Relaxed(0.7, terms="relaxed", prior_temperature=prior)
    draw = estimator.draw(Site("z", guide), TorchNoise())
    torch.testing.assert_close(estimator.log_q(draw), torch_density(guide, 0.7, draw, 0.7))
    found = estimator.log_p(model, draw)
    torch.testing.assert_close(found, torch_density(model, prior or 0.7, draw, 0.7))
    # from the value alone, where it is not rounded away
    inside = (draw.value > 1e-6).all(-1) & (draw.value < 1 - 1e-6).all(-1)
    assert inside.any()
    again = estimator.density(model, draw.value)
    torch.testing.assert_close(again[inside], found[inside], rtol=1e-8, atol=1e-8)


@pytest.mark.float64
def test_a_density_of_the_logit_is_that_of_the_value_times_its_slope() -> None:
    law = dist.Bernoulli(logits=torch.tensor([0.3, -1.0]))
    draw = Relaxed(0.7, terms="relaxed").draw(Site("z", law), TorchNoise())
    y = draw.value
    own = RelaxedBernoulli(torch.tensor(0.7), logits=law.logits).log_prob(y)
    expected = own + y.log() + torch.log1p(-y)
    torch.testing.assert_close(Relaxed(0.7, terms="relaxed").log_q(draw), expected)


@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_single_precision_is_as_good_as_double(family: Any, temperature: float) -> None:
    """Logits up to 80: in float32 values are rounded to 0 and 1, densities are not."""
    generator = torch.Generator().manual_seed(3)
    size = (400, 4)
    own, theirs = (160 * torch.rand(size, generator=generator) - 80 for _ in range(2))
    u = torch.rand(size, generator=generator).clamp(1e-7, 1 - 1e-6)
    estimator = Relaxed(temperature, terms="relaxed", prior_temperature=2 * temperature)

    def found(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        logits = own.to(dtype).requires_grad_()
        draw = estimator.draw(Site("z", family(logits)), Given(u))
        log_p = estimator.log_p(family(theirs.to(dtype)), draw)
        slope = torch.autograd.grad(log_p.sum(), logits)[0]
        return log_p.detach().double(), estimator.log_q(draw).double(), slope.double()

    single, double = found(torch.float32), found(torch.float64)
    for low, high in zip(single, double, strict=True):
        assert high.isfinite().all()
        assert ((low - high).abs() <= 2e-4 * (1 + high.abs()) ** 0.5).all()
    value = estimator.draw(Site("z", family(own)), Given(u)).value
    assert ((value == 0) | (value == 1)).any()


@pytest.mark.float64
def test_an_impossible_category_leaves_the_face_that_remains() -> None:
    """Both programs mask a category: the same numbers as without it, and no NaN."""
    inf = torch.tensor([0.0, 0.0, 0.0, -math.inf])
    logits, prior = torch.randn(6, 4, requires_grad=True), torch.randn(4)
    noise = Given(torch.rand(6, 4))
    for terms in ("relaxed", "discrete"):
        estimator = Relaxed(0.6, learned=True, terms=terms)
        wide = estimator.draw(Site("z", categories(logits + inf)), noise)
        narrow = estimator.draw(Site("z", categories(logits[:, :3])), Given(noise.u[:, :3]))
        both = [
            (estimator.log_q(wide), estimator.log_q(narrow)),
            (
                estimator.log_p(categories(prior + inf), wide),
                estimator.log_p(categories(prior[:3]), narrow),
            ),
        ]
        for one, other in both:
            torch.testing.assert_close(one, other)
        total = sum(one.sum() for one, _ in both) + (wide.value**2).sum()
        for grad in torch.autograd.grad(total, [logits, estimator.log_temperature]):
            assert grad.isfinite().all()


@pytest.mark.float64
def test_an_auxiliary_bit_keeps_its_entropy() -> None:
    """Without a prior there is no KL: the closed form of -E log q takes its place."""

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def guide() -> None:
        logit = pyro.param("logit", torch.tensor(0.8))
        pyro.sample("aux", dist.Bernoulli(logits=logit), infer={"is_auxiliary": True})

    am.VariationalLoss(estimators=Relaxed()).loss_and_grads(model, guide)
    p = torch.tensor(0.8).sigmoid()
    gradient = pyro.get_param_store()["logit"].grad
    torch.testing.assert_close(gradient, p * (1 - p) * torch.tensor(0.8))


# --- temperatures ---------------------------------------------------------------------------------


def test_annealing_goes_there_and_stays() -> None:
    estimator, like = Relaxed(1.0, end=0.01, steps=4), torch.zeros(())
    seen = []
    for _ in range(7):
        seen.append(float(estimator.temperature(like)))
        estimator.advance()
    assert seen == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01, 0.01])


def pair_of(family: str, *, low: bool = False) -> Programs:
    """Two data, a network of one weight, and a smooth likelihood."""
    x = torch.tensor([0.3, -1.2])

    def law(scale: Tensor) -> Any:
        logits = torch.stack([x * scale, x - scale, 0.3 + 0 * x], -1)
        return bits(logits) if family == "bits" else categories(logits)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(pyro.param("b", torch.tensor(-0.4))))
            mean = (z * torch.tensor([1.0, -0.5, 2.0])).sum(-1) * pyro.param("w", torch.tensor(0.7))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(pyro.param("a", torch.tensor(0.5))))

    return model, guide


def test_the_annealing_moves_in_training_only_and_is_saved() -> None:
    model, guide = pair_of("bits")
    loss = am.VariationalLoss(estimators={"z": Relaxed(1.0, end=0.1, steps=10)})
    loss.warm_up(model, guide, ())
    for _ in range(3):
        loss.loss_and_grads(model, guide)
    loss.loss(model, guide)
    loss.eval().loss_and_grads(model, guide)
    state = loss.state_dict()
    (taken,) = [value for key, value in state.items() if key.endswith("taken")]
    assert int(taken) == 3
    other = am.VariationalLoss(estimators={"z": Relaxed(1.0, end=0.1, steps=10)})
    other.warm_up(model, guide, ())
    other.load_state_dict(state)
    (own,) = other.estimators.by_site.values()
    expected = torch.tensor(10**-0.3)
    torch.testing.assert_close(own.temperature(torch.zeros(())), expected)


def test_a_learned_temperature_is_trained_and_saved() -> None:
    model, guide = pair_of("categories")
    loss = am.VariationalLoss(estimators={"z": Relaxed(0.8, learned=True, terms="relaxed")})
    svi = am.SVI(model, guide, loss, lr={"model": 0.0, "guide": 0.0, "estimators": 0.05})
    for _ in range(4):
        svi.step(())
    (value,) = [v for k, v in svi.loss.state_dict().items() if k.endswith("log_temperature")]
    assert abs(float(value) - math.log(0.8)) > 1e-3


# --- hazards --------------------------------------------------------------------------------------


def extreme(family: str, size: int) -> Programs:
    """Logits of -80, 0 and 80 in the guide; a weight that everything depends on."""
    rows = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [0.0, 0.1, -80.0]])
    rows = rows[:size]

    def law(shift: Tensor, scale: float) -> Any:
        logits = rows * scale + shift
        return bits(logits) if family == "bits" else categories(logits)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", law(pyro.param("b", torch.zeros(3)), 0.1))
            weight = pyro.param("w", torch.tensor([0.5, -1.0, 2.0]))
            pyro.sample("x", dist.Normal((z * weight).sum(-1), 1.0), obs=torch.zeros(size))

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", law(pyro.param("a", torch.zeros(3)), 1.0))

    return model, guide


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("family", ["bits", "categories"])
def test_saturated_logits_give_finite_gradients(
    family: str, terms: str, temperature: float, size: int
) -> None:
    model, guide = extreme(family, size)
    loss = am.VariationalLoss(estimators={"z": Relaxed(temperature, learned=True, terms=terms)})
    loss.warm_up(model, guide, ())
    for _ in range(5):
        assert math.isfinite(loss.loss_and_grads(model, guide))
    grads = [p.grad for p in [*pyro.get_param_store()._params.values(), *loss.parameters()]]
    assert all(g is None or g.isfinite().all() for g in grads)
    assert any(g is not None and bool(g.any()) for g in grads)


@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("terms", TERMS)
def test_an_empty_batch(terms: str, family: Any) -> None:
    pyro.enable_validation(False)  # torch's own check of empty logits fails
    logits = torch.zeros(0, 3, requires_grad=True)
    law, estimator = family(logits), Relaxed(terms=terms, learned=True)
    draw = estimator.draw(Site("z", law), TorchNoise())
    assert draw.value.shape == (0, 3)
    terms_of = estimator.log_p(law, draw) - estimator.log_q(draw)
    assert terms_of.shape == (0,)
    total = draw.value.sum() + terms_of.sum()
    assert torch.autograd.grad(total, estimator.log_temperature)[0] == 0


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("probability", [1e-30, 1.0 - 1e-7, 1.0])
def test_probabilities_at_the_edge(probability: float, terms: str) -> None:
    def program(name: str) -> Callable[[], None]:
        def run() -> None:
            p = pyro.param(name, torch.tensor(probability))
            z = pyro.sample("z", dist.Bernoulli(p if name == "q" else torch.tensor(0.3)))
            if name == "p":
                pyro.factor("cost", -((z - 0.4) ** 2) * pyro.param("w", torch.tensor(1.0)))

        return run

    loss = am.VariationalLoss(estimators={"z": Relaxed(0.2, terms=terms)})
    assert math.isfinite(loss.loss_and_grads(program("p"), program("q")))
    assert pyro.get_param_store()["q"].grad.isfinite().all()


# --- execution ------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "annealed": {"end": 0.2, "steps": 3},
    "learned": {"learned": True},
    "own prior": {"terms": "relaxed", "prior_temperature": 0.4, "learned": True},
    "discrete": {"terms": "discrete"},
}


@pytest.mark.float64
@pytest.mark.parametrize("options", sorted(OPTIONS))
@pytest.mark.parametrize("structure", ["event_dims", "subsampled", "masked"])
def test_captured_steps_are_bit_for_bit(structure: str, options: str) -> None:
    def trained(compile: str) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = EVERY[structure]("bernoulli")
        loss = am.VariationalLoss(estimators={"z": Relaxed(0.7, **OPTIONS[options])})
        svi = am.SVI(pair.model, pair.guide, loss, lr=0.1, compile=compile)
        return [svi.step(()) for _ in range(5)], {
            **svi._stepper.parameters.snapshot(),
            **{f"loss {k}": v.clone() for k, v in svi.loss.state_dict().items()},
        }

    plain, captured = trained("off"), trained("graph")
    assert plain[0] == captured[0]
    assert plain[1].keys() == captured[1].keys()
    assert all(torch.equal(value, captured[1][name]) for name, value in plain[1].items())


@pytest.mark.float64
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("family", ["bits", "categories"])
def test_copy_by_copy_and_particles_on_the_same_noise(family: str, terms: str) -> None:
    """With one noise for all, particles and copies change nothing."""
    model, guide = pair_of(family)

    def found(particles: int, vectorize: bool) -> list[Tensor]:
        objective = am.ELBO(num_particles=particles)
        loss = am.VariationalLoss(objective, {"z": Relaxed(terms=terms)}, vectorize=vectorize)
        loss.warm_up(model, guide, ())
        noise = Given(torch.tensor([[0.2, 0.7, 0.4], [0.9, 0.1, 0.35]]))
        value = loss.estimate(model, guide, (), {}, noise=noise).loss
        store = pyro.get_param_store()
        return [value, *torch.autograd.grad(value, [store[n].unconstrained() for n in "abw"])]

    alone = found(1, True)
    for other in (found(1, False), found(3, True), found(3, False)):
        for one, two in zip(alone, other, strict=True):
            torch.testing.assert_close(one, two)


def test_the_table_says_that_it_is_biased_and_how() -> None:
    model, guide = pair_of("bits")
    for terms, clause in zip(
        TERMS, ("wrong sign", "bound of nothing", "relaxed model"), strict=True
    ):
        loss = am.VariationalLoss(estimators={"z": Relaxed(terms=terms)})
        table = str(loss.describe(model, guide, ()))
        assert "site 'z' is biased" in table and clause in table


# --- refusals -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "index": (dist.Categorical(torch.ones(3)), "Categorical has integer values.*OneHotCategorical"),
    "count": (dist.Poisson(torch.tensor(2.0)), "Poisson has no relaxed values.*ScoreFunction"),
    "real": (dist.Normal(0.0, 1.0), r"Normal has no relaxed values.*am\.Pathwise\(\)"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_laws_are_refused_with_a_remedy(name: str) -> None:
    law, sentence = REFUSED[name]

    def program() -> None:
        pyro.sample("z", law)

    with pytest.raises(am.EstimatorError, match=f"(?s)site 'z'.*{sentence}"):
        am.VariationalLoss(estimators={"z": Relaxed()}).loss(program, program)


@pytest.mark.parametrize("terms", ["relaxed", "discrete"])
def test_a_prior_of_another_kind_is_refused(terms: str) -> None:
    def model() -> None:
        pyro.sample("z", dist.Beta(2.0, 2.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    with pytest.raises(am.EstimatorError, match=r"site 'z': a Beta has no .* at relaxed values"):
        am.VariationalLoss(estimators={"z": Relaxed(terms=terms)}).loss(model, guide)


def test_closed_form_is_refused_where_the_prior_looks_ahead() -> None:
    pair = EVERY["chain"]("bernoulli")
    with pytest.raises(am.EstimatorError, match=r"site 'z'.*drawn later in the guide.*another"):
        am.VariationalLoss(estimators=Relaxed()).loss(pair.model, pair.guide)
    am.VariationalLoss(estimators=Relaxed(terms="relaxed")).loss(pair.model, pair.guide)


@pytest.mark.parametrize("terms", TERMS)
def test_a_mask_inside_the_event_is_refused(terms: str) -> None:
    def program() -> None:
        law = dist.Bernoulli(torch.tensor([0.3, 0.6])).mask(torch.tensor([True, False]))
        pyro.sample("z", law.to_event(1))

    with pytest.raises(am.EstimatorError, match="site 'z'"):
        am.VariationalLoss(estimators={"z": Relaxed(terms=terms)}).loss(program, program)


@pytest.mark.float64
def test_a_mask_inside_the_event_of_the_prior_counts_what_it_shows() -> None:
    shown = torch.tensor([True, False])
    prior, own = dist.Bernoulli(torch.tensor([0.3, 0.6])), dist.Bernoulli(torch.tensor([0.4, 0.4]))
    estimator = Relaxed(terms="relaxed")
    draw = estimator.draw(Site("z", own.to_event(1)), TorchNoise())
    each = estimator.log_p(prior, draw)
    torch.testing.assert_close(estimator.log_p(prior.mask(shown).to_event(1), draw), each[0])
    torch.testing.assert_close(estimator.log_p(prior.mask(False).to_event(1), draw), 0 * each[0])


def test_a_mask_around_the_statement_is_served() -> None:
    def program() -> None:
        with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("z", dist.Bernoulli(0.3))

    for terms in TERMS:
        loss = am.VariationalLoss(estimators={"z": Relaxed(terms=terms)}).loss(program, program)
        assert loss == pytest.approx(0.0, abs=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"temperature": 0.0}, "expected a finite number above 0, found 0.0"),
    "text": ({"temperature": "low"}, "expected a number above 0, found 'low'"),
    "no steps": ({"end": 0.1}, "an annealing needs both"),
    "no end": ({"steps": 10}, "an annealing needs both"),
    "half a step": ({"end": 0.1, "steps": 0.5}, "expected an int, at least 1"),
    "infinite end": ({"end": math.inf, "steps": 5}, "expected a finite number above 0"),
    "both": ({"end": 0.1, "steps": 10, "learned": True}, "learned or annealed; drop one"),
    "idle": ({"prior_temperature": 0.3}, "only a relaxed prior has a temperature"),
    "cold prior": (
        {"prior_temperature": -1.0, "terms": "relaxed"},
        r"prior_temperature=\.\.\.\): expected a finite number above 0",
    ),
    "terms": ({"terms": "elbo"}, "expected one of analytic, relaxed, discrete"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_options_that_mean_nothing(case: str) -> None:
    options, sentence = WRONG[case]
    with pytest.raises(am.UsageError, match=sentence):
        Relaxed(**options)


@pytest.mark.parametrize(
    "typed",
    [
        "Relaxed(0.5)",
        "Relaxed(1.0, end=0.1, steps=500)",
        "Relaxed(0.7, learned=True, prior_temperature=0.5, terms='relaxed')",
        "Relaxed(0.7, terms='discrete')",
    ],
)
def test_it_prints_as_it_is_typed(typed: str) -> None:
    assert repr(eval(typed)) == typed
