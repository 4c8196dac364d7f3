import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import amortized as am
from amortized.errors import NonFiniteError
from amortized.fit.anomaly import named_gradients, watched_backward
from amortized.fit.callbacks import Callback
from tests.fit import tiny
from tests.fit.harness import BATCH, SIZE, Do, fit, in_order, pair
from tests.fit.test_recovery import flagged, noisy
from tests.fit.test_resume import everything, same


def root_in_the_likelihood(x: Tensor) -> None:
    """The scale is sqrt(t) + 1 with t = 0: finite, and its gradient is not."""
    t = pyro.param("t", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 2.0), obs=x)
        pyro.sample("x", dist.Normal(z, 1.0 + (0 * t).sqrt()), obs=x)


def log_in_the_guide(x: Tensor) -> None:
    """exp(log 0) = 0 is finite, and its gradient is inf times 0."""
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((0 * slope).log().exp() * x, 1.0))


def infinite_in_the_guide(x: Tensor) -> None:
    """The gradient is infinite and not NaN, which torch does not look for."""
    t = pyro.param("t", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0 + t.abs().sqrt() if t == 9 else 1.0 + Root.of(t)))


class Root(torch.autograd.Function):
    """0, with an infinite gradient."""

    @staticmethod
    def of(t: Tensor) -> Tensor:
        return Root.apply(t)  # pyright: ignore

    @staticmethod
    def forward(ctx, t):
        return torch.zeros_like(t)

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, math.inf)


PROGRAMS = {
    "sqrt at 0 in the likelihood": (root_in_the_likelihood, tiny.param_guide, "'x' of the model"),
    "log of 0 in the guide": (tiny.local_model, log_in_the_guide, "'z' of the guide"),
    "an infinite gradient": (tiny.local_model, infinite_in_the_guide, "'z' of the guide"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_first_site_is_named(name: str) -> None:
    model, guide, site = PROGRAMS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(NonFiniteError) as caught:
            fit(am.SVI(model, guide), max_epochs=1, detect_anomaly=True)
    assert [str(warning.message) for warning in said] == [], "the error says it all"
    sentence = caught.value.args[0]
    assert sentence.startswith(
        "epoch 1, batch 1, step 1: the gradient is not finite, first at site"
    )
    assert f"first at site {site}" in sentence and "although the loss is" in sentence
    assert ("torch: Function" in sentence) is ("infinite" not in name)
    assert "log-probability" in caught.value.table


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_search_parameters_are_named(name: str) -> None:
    model, guide, _ = PROGRAMS[name]
    parameter = "store.slope" if "log" in name else "store.t"
    with pytest.raises(
        NonFiniteError, match=rf"that of {parameter} is not finite .*detect_anomaly"
    ):
        fit(am.SVI(model, guide), max_epochs=1)


def test_the_search_is_for_one_call() -> None:
    svi = am.SVI(tiny.local_model, log_in_the_guide)
    for detect in (True, False, True):
        message = "first at site" if detect else "that of store.slope"
        with pytest.raises(NonFiniteError, match=message):
            fit(svi, max_epochs=1, detect_anomaly=detect)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_search_changes_no_number(accumulate: int) -> None:
    found = []
    for detect in (False, True):
        svi = noisy()
        options = {"accumulate_grad_batches": accumulate, "detect_anomaly": detect, "seed": 1}
        found.append(everything(svi, fit(svi, flagged("nan"), max_epochs=2, **options)))
    same(*found)
    assert not torch.is_anomaly_enabled()


@pytest.mark.float64
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_group_survives_a_bad_gradient_that_was_found(kind: str) -> None:
    """With the search, a bad batch leaves the group of the good ones alone."""
    x = tiny.data(SIZE)
    marked = x.clone()
    marked[3 * BATCH : 4 * BATCH] = 99.0

    def guide(x: Tensor) -> None:
        start = torch.tensor(0.5, dtype=x.dtype)
        m = pyro.param("m_loc", start)
        bad = (m - m.detach()).abs().sqrt() if kind == "nan" else Root.of(m)
        pyro.sample("m", dist.Delta(m + bad if bool((x == 99.0).any()) else m))

    searched, plain, hand = (am.SVI(tiny.global_model, guide, lr=0.1) for _ in range(3))
    options = {"accumulate_grad_batches": 4, "non_finite": "skip", "max_epochs": 1}
    history = fit(searched, in_order(data=marked), detect_anomaly=True, **options)
    assert history["skipped_steps"] == [1.0] and searched._stepper.steps == 2
    data = am.DataPlate(None, SIZE)
    for rows in (x[:8], x[8:16], x[16:24]):
        hand._stepper.accumulate(rows, data)
    hand._stepper.apply()
    hand._stepper.step(x[32:], data)
    assert torch.equal(searched.params()["m_loc"], hand.params()["m_loc"])
    # without it, the whole group is left out
    history = fit(plain, in_order(data=marked), **options)
    assert history["skipped_steps"] == [1.0] and plain._stepper.steps == 1


def test_other_errors_of_the_backward_pass_are_passed_on() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("a mistake of the user's")

    def guide(x: Tensor) -> None:
        loc = Broken.apply(pyro.param("loc", torch.tensor(0.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(RuntimeError, match="a mistake of the user's"):
        fit(am.SVI(tiny.local_model, guide), max_epochs=1, detect_anomaly=True)


def test_scores_and_enumerated_sites_are_searched_too() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.0), constraint=constraints.real)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=(0 * p).sqrt() + x))

    for estimator in ("score_function", "enumerate"):
        loss = am.VariationalLoss(estimators={"c": estimator})
        with pytest.raises(NonFiniteError, match="first at site 'c' of the guide"):
            fit(am.SVI(model, guide, loss), max_epochs=1, detect_anomaly=True)


def test_many_parameters_are_counted() -> None:
    leaves = [torch.zeros(2, requires_grad=True) for _ in range(6)]
    names = {id(leaf): f"p{number}" for number, leaf in enumerate(leaves)}
    for leaf in leaves[1:]:
        leaf.grad = torch.tensor([0.0, math.nan])
    assert named_gradients(leaves, names).startswith("that of p1, p2, p3 and 2 more is not finite")
    for leaf in leaves:
        leaf.grad = torch.ones(2)
    assert "every parameter is finite, and together they overflow" in named_gradients(leaves, names)


def test_a_good_gradient_is_added_to_what_is_there() -> None:
    leaf = torch.tensor(2.0, requires_grad=True)
    other = torch.tensor(1.0, requires_grad=True)
    leaf.grad = other.grad = torch.tensor(10.0)
    watched_backward(leaf**2, None, [leaf, other])  # pyright: ignore[reportArgumentType]
    assert leaf.grad is not None and leaf.grad.item() == 14.0
    assert other.grad is not None and other.grad.item() == 10.0


def test_callbacks_see_the_error() -> None:
    class Seen(Callback):
        error: BaseException | None = None

        def on_exception(self, state, error) -> None:
            self.error = error

    seen = Seen()
    with pytest.raises(NonFiniteError) as caught:
        model = root_in_the_likelihood
        fit(am.SVI(model, tiny.param_guide), max_epochs=1, detect_anomaly=True, callbacks=[seen])
    assert seen.error is caught.value


def test_a_training_without_trouble_says_nothing() -> None:
    seen = []
    watch = Do(seen.append, 1, 2, 3, 4, 5)
    history = fit(pair(), max_epochs=1, detect_anomaly=True, callbacks=[watch])
    assert len(seen) == 5 and history.notices == []
