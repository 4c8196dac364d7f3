"""The oracle against closed forms, hand-made enumerations and Pyro's own exact loss."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from tests.reference import (
    FixedNoise,
    exact,
    exact_gradients,
    transport,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def leaf(value):
    return torch.tensor(value, requires_grad=True)


def entropy(p):
    return -p * torch.log(p) - (1 - p) * torch.log(1 - p)


# --- closed forms --------------------------------------------------------------------------------


def test_one_bernoulli():
    logit, prior = leaf(0.4), leaf(0.3)

    def model():
        z = pyro.sample("z", dist.Bernoulli(prior))
        pyro.factor("f", 2.0 * z - 1.0)

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=logit))

    q = torch.sigmoid(logit)
    elbo = q * (prior.log() + 1) + (1 - q) * ((1 - prior).log() - 1) + entropy(q)
    torch.testing.assert_close(exact(model, guide), elbo, **EXACT)
    found = exact_gradients(model, guide, {"logit": logit, "prior": prior})
    by_hand = torch.autograd.grad(elbo, [logit, prior])
    torch.testing.assert_close(list(found.values()), list(by_hand), **EXACT)


def test_two_dependent_bernoullis_whose_prior_runs_the_other_way():
    a, b = leaf(0.4), leaf([-0.3, 0.8])

    def model():
        y = pyro.sample("y", dist.Bernoulli(0.35))
        z = pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * y))
        pyro.factor("f", (z - 2 * y) ** 2)

    def guide():
        z = pyro.sample("z", dist.Bernoulli(logits=a))
        pyro.sample("y", dist.Bernoulli(logits=b[z.long()]))

    elbo = torch.zeros(())
    for z in (0, 1):
        for y in (0, 1):
            q = (torch.sigmoid(a) if z else torch.sigmoid(-a)) * torch.sigmoid(b[z] if y else -b[z])
            p = (0.35 if y else 0.65) * (0.2 + 0.5 * y if z else 0.8 - 0.5 * y)
            elbo = elbo + q * (math.log(p) + (z - 2 * y) ** 2 - q.log())
    torch.testing.assert_close(exact(model, guide), elbo, **EXACT)
    found = exact_gradients(model, guide, [a, b])
    torch.testing.assert_close(found, list(torch.autograd.grad(elbo, [a, b])), **EXACT)


def branch_model(branch_counts=True):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        with poutine.scale(scale=1.0 if branch_counts else 1e-300):
            if z:
                pyro.sample("x1", dist.Normal(2.0, 1.0), obs=torch.tensor(1.0))
            else:
                pyro.sample("x0", dist.Normal(-1.0, 1.0), obs=torch.tensor(1.0))

    return model


def test_control_flow_on_a_latent():
    logit = leaf(0.4)

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=logit))

    found = exact_gradients(branch_model(), guide, {"logit": logit})["logit"]
    assert float(found) == pytest.approx(0.06071, abs=5e-6)
    wrong = exact_gradients(branch_model(branch_counts=False), guide, [logit])[0]
    assert float(wrong) == pytest.approx(-0.29968, abs=5e-6)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_guide_site(auxiliary):
    """The entropy of a given z adds q'(z) log(sd1/sd0): -log 6 for standard deviations .5 and 3."""
    logit = leaf(0.4)

    def guide():
        z = pyro.sample("z", dist.Bernoulli(logits=logit))
        if auxiliary:
            sd = torch.where(z > 0, 0.5, 3.0)
            pyro.sample("a", dist.Normal(1 - z, sd), infer={"is_auxiliary": True})

    noise = {"a": torch.tensor(0.7)}
    found = -exact_gradients(branch_model(), guide, [logit], noise=noise)[0]
    assert float(found) == pytest.approx(0.3698 if auxiliary else -0.06071, abs=5e-5)


def test_different_sites_in_each_branch():
    logit, other = leaf(-0.2), leaf([0.5, -0.1, 0.3])

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        if z:
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.factor("f", -0.5 * c)

    def guide():
        if pyro.sample("z", dist.Bernoulli(logits=logit)):
            pyro.sample("c", dist.Categorical(logits=other))

    q, r = torch.sigmoid(logit), torch.softmax(other, -1)
    inner = (r * (torch.tensor([0.2, 0.3, 0.5]).log() - 0.5 * torch.arange(3) - r.log())).sum()
    elbo = q * (math.log(0.4) + inner) + (1 - q) * math.log(0.6) + entropy(q)
    torch.testing.assert_close(exact(model, guide), elbo, **EXACT)
    found = exact_gradients(model, guide, [logit, other])
    torch.testing.assert_close(found, list(torch.autograd.grad(elbo, [logit, other])), **EXACT)


def test_small_sigmoid_belief_network():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images = (torch.tensor(load_digits().data) / 16 >= 0.5).double()
    x, means = images[:5], images.mean(0).clamp(0.05, 0.95)
    d, j = torch.arange(64.0), torch.arange(4.0)
    w = (0.8 * torch.sin(0.7 * d[:, None] + 1.3 * j)).requires_grad_()
    v = (0.15 * torch.cos(0.3 * d + 0.9 * j[:, None])).requires_grad_()
    a, b = torch.zeros(4, requires_grad=True), torch.logit(means).requires_grad_()

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(logits=a).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=b + w @ z).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=v @ (x - means)).to_event(1))

    elbo = sum(exact(model, guide, (row,)).detach() for row in x) / 5
    assert float(elbo) == pytest.approx(-28.872501694, abs=1e-9)
    params = {"V": v, "W": w, "a": a, "b": b}
    each = [exact_gradients(model, guide, params, (row,)) for row in x]
    found = {name: sum(one[name] for one in each) / 5 for name in params}
    norms = {"V": 1.585799991, "W": 1.311063722, "a": 0.012881354, "b": 1.217735395}
    assert {name: value.norm().item() for name, value in found.items()} == pytest.approx(
        norms, abs=1e-9
    )
    torch.testing.assert_close(
        found["V"][0, 10:13],
        torch.tensor([0.249304068, -0.056966528, 0.013076508]),
        rtol=0,
        atol=1e-9,
    )


# --- Pyro's exact loss on all-discrete programs --------------------------------------------------


def nested_plates(p):
    outer, inner = pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 2, dim=-1)
    g = pyro.sample("g", dist.Bernoulli(logits=p["g"]))
    with outer:
        a = pyro.sample("a", dist.Categorical(logits=p["a"] + g.unsqueeze(-1)))
        with inner:
            b = pyro.sample("b", dist.Bernoulli(logits=p["b"] * (a - g)))
            if p["observed"]:
                pyro.sample("x", dist.Normal(g + a * b, 1.0), obs=torch.ones(2, 2))


def two_plates(p):
    with pyro.plate("one", 2, dim=-1):
        pyro.sample("a", dist.Bernoulli(logits=p["b"][0]))
    with pyro.plate("two", 3, dim=-1):
        pyro.sample("b", dist.Categorical(logits=p["a"]))


def subsampled(p):
    with pyro.plate("data", 7, subsample=torch.tensor([1, 4]), dim=-1) as rows:
        a = pyro.sample("a", dist.Bernoulli(logits=p["g"] + 0.1 * rows))
        with poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("b", dist.Bernoulli(logits=p["b"][0] * a))


def scaled(p):
    with poutine.scale(scale=0.3):
        a = pyro.sample("a", dist.Categorical(logits=p["a"]))
    pyro.sample("b", dist.OneHotCategorical(logits=p["a"] * (a.unsqueeze(-1) + 1)))


def looped(p):
    for i in pyro.plate("loop", 2):
        pyro.sample(f"z_{i}", dist.Bernoulli(logits=p["b"].flatten()[i]))


@pytest.mark.parametrize("sites", [nested_plates, two_plates, subsampled, scaled, looped])
def test_against_trace_enum(sites):
    guided = {"g": leaf(0.3), "a": leaf([0.5, -0.2, 0.1]), "b": leaf([[0.7, -0.4], [0.2, 0.9]])}
    prior = {"g": leaf(-0.3), "a": leaf([0.1, 0.2, 0.1]), "b": leaf([[0.1, 0.4], [0.3, 0.5]])}

    def model():
        sites({**prior, "observed": True})

    def guide():
        sites({**guided, "observed": False})

    params = {f"q_{k}": v for k, v in guided.items()} | {f"p_{k}": v for k, v in prior.items()}
    loss = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    peer = -loss.differentiable_loss(model, config_enumerate(guide, "parallel"))
    torch.testing.assert_close(exact(model, guide), peer, **EXACT)
    theirs = torch.autograd.grad(
        peer, list(params.values()), allow_unused=True, materialize_grads=True
    )
    ours = exact_gradients(model, guide, params)
    torch.testing.assert_close(list(ours.values()), list(theirs), rtol=1e-11, atol=1e-12)


def test_pathwise_site_between_discrete_ones():
    loc, logit = leaf([0.3, -0.2]), leaf(0.1)
    eps = torch.tensor([0.7, -1.1])

    def model():
        with pyro.plate("d", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Bernoulli(logits=z))

    def guide():
        with pyro.plate("d", 2):
            z = pyro.sample("z", dist.Normal(loc, 0.5))
            pyro.sample("b", dist.Bernoulli(logits=logit * z))

    z = loc + 0.5 * eps
    q, p = torch.sigmoid(logit * z), torch.sigmoid(z)
    elbo = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(loc, 0.5).log_prob(z)
    elbo = (elbo + q * p.log() + (1 - q) * (1 - p).log() + entropy(q)).sum()
    torch.testing.assert_close(exact(model, guide, noise={"z": eps}), elbo, **EXACT)
    found = exact_gradients(model, guide, [loc, logit], noise={"z": eps})
    torch.testing.assert_close(found, list(torch.autograd.grad(elbo, [loc, logit])), **EXACT)


@pytest.mark.parametrize("events", [0, 1])
def test_analytic_kl_has_scale_mask_and_event_dims(events):
    loc = leaf([[0.3, -0.2], [0.5, 1.5]])
    mask = torch.tensor([True, False]) if events else torch.tensor([[True, False], [True, True]])

    def program(loc):
        def run():
            with pyro.plate("o", 4, subsample=torch.tensor([0, 3]), dim=-1 if events else -2):
                plate = pyro.plate("i", 2, dim=-1) if not events else poutine.scale(scale=1.0)
                with plate, poutine.mask(mask=mask):
                    pyro.sample("z", dist.Normal(loc, 0.5).to_event(events))

        return run

    model, guide = program(torch.zeros(2, 2)), program(loc)
    each = 2 * torch.distributions.kl_divergence(
        dist.Normal(loc, 0.5), dist.Normal(torch.zeros(2, 2), 0.5)
    )
    kl = (each.sum(-1) * mask).sum() if events else (each * mask).sum()
    found = exact(model, guide, noise=FixedNoise(seed=1), analytic=["z"])
    torch.testing.assert_close(found, -kl, **EXACT)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: dist.LogNormal(0.5, 2.0), math.exp(0.5 + 2 * 0.3)),
        (lambda: dist.Exponential(2.0), -math.log1p(-0.6179114221889526) / 2),
        (lambda: dist.Uniform(1.0, 3.0), 1 + 2 * 0.6179114221889526),
        (lambda: dist.Delta(torch.tensor(1.5)), 1.5),
        (lambda: dist.Normal(1.0, 2.0).mask(False), 1.6),
        (lambda: dist.MultivariateNormal(torch.ones(1), scale_tril=2 * torch.eye(1)), [1.6]),
    ],
)
def test_transport(make, expected):
    fn = make()
    standard = torch.tensor(0.3).expand(fn.event_shape)
    torch.testing.assert_close(transport(fn, standard), torch.tensor(expected))


def test_fixed_noise_broadcasts_to_the_left():
    noise = FixedNoise(seed=3)
    plain = noise.draw("z", dist.Normal(0.0, 1.0).expand([2, 1]))
    wide = noise.draw("z", dist.Normal(0.0, 1.0).expand([5, 2, 1]), (3,))
    torch.testing.assert_close(wide, plain.expand(3, 5, 2, 1))
    gamma = FixedNoise({"g": lambda fn: fn.mean})
    assert float(gamma.draw("g", dist.Gamma(3.0, 2.0))) == 1.5
    with pytest.raises(NotImplementedError, match="Gamma"):
        noise.draw("g", dist.Gamma(3.0, 2.0))
    with pytest.raises(KeyError, match="needs an entry"):
        FixedNoise().draw("z", dist.Normal(0.0, 1.0))


# --- the surface of a Pyro program ---------------------------------------------------------------


def test_masked_distribution_still_has_its_law():
    """A latent whose own terms are masked away keeps its probability and its score."""
    logit = leaf(0.4)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5).mask(False))
        pyro.factor("f", 3.0 * z)

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=logit).mask(False))

    q = torch.sigmoid(logit)
    torch.testing.assert_close(exact(model, guide), 3 * q, **EXACT)
    torch.testing.assert_close(exact_gradients(model, guide, [logit])[0], 3 * q * (1 - q), **EXACT)


def test_partly_observed_site_and_deterministic():
    logit, seen = leaf([0.4, -0.6]), torch.tensor([True, False])
    x = torch.tensor([1.0, 0.0])

    def model():
        with pyro.plate("d", 2):
            b = pyro.sample("b", dist.Bernoulli(0.3), obs=x, obs_mask=seen)
            pyro.deterministic("twice", 2 * b)
            pyro.factor("f", -b)

    def guide():
        with pyro.plate("d", 2), poutine.mask(mask=~seen):
            pyro.sample("b_unobserved", dist.Bernoulli(logits=logit))

    q = torch.sigmoid(logit[1])
    latent = q * (math.log(0.3) - 1) + (1 - q) * math.log(0.7) + entropy(q)
    torch.testing.assert_close(exact(model, guide), math.log(0.3) - 1 + latent, **EXACT)


def test_modules_and_stored_params():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)
            self.rate = PyroParam(torch.tensor(0.7), dist.constraints.positive)
            self.bias = PyroSample(dist.Bernoulli(0.5))

        def forward(self, x):
            loc = self.net(x).squeeze(-1) + self.bias
            pyro.sample("x", dist.Normal(loc, self.rate), obs=torch.tensor(0.5))

    def guide(x):
        p = pyro.param("p", torch.tensor(0.2), constraint=dist.constraints.unit_interval)
        pyro.sample("bias", dist.Bernoulli(p))

    pyro.clear_param_store()
    with pyro.get_param_store().scope():
        model, x = Model(), torch.tensor([0.3])
        exact(model, guide, (x,))
        unconstrained = pyro.param("p").unconstrained()
        found = exact_gradients(
            model, guide, {"p": unconstrained, **dict(model.named_parameters())}, (x,)
        )

        p, rate = torch.sigmoid(unconstrained), model.rate
        terms = dist.Normal(model.net(x) + torch.tensor([0.0, 1.0]), rate).log_prob(
            torch.tensor(0.5)
        )
        elbo = (1 - p) * terms[0] + p * terms[1] + math.log(0.5) + entropy(p)
        torch.testing.assert_close(exact(model, guide, (x,)), elbo, **EXACT)
        leaves = [unconstrained, *model.parameters()]
        by_hand = torch.autograd.grad(elbo, leaves)
        torch.testing.assert_close(list(found.values()), list(by_hand), **EXACT)


def test_mistakes_are_named():
    def normal():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def poisson():
        pyro.sample("z", dist.Poisson(1.0))

    def drawn():
        with pyro.plate("d", 5, subsample_size=2):
            pass

    with pytest.raises(KeyError, match="'z'"):
        exact(normal, normal)
    with pytest.raises(TypeError, match="'z'"):
        exact(poisson, poisson)
    with pytest.raises(ValueError, match="'d'"):
        exact(drawn, drawn)
    with pytest.raises(KeyError, match="z"):
        exact(normal, lambda: None)
