"""The model run forward, and log q of what it simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am
from amortized.estimators.base import TorchNoise
from amortized.programs.runner import Runner
from tests.laws.structures import weight
from tests.reference import FixedNoise, estimate_law

pytestmark = pytest.mark.float64


def model(x: Tensor) -> None:
    """Two bits a datum, seen by a third."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(logits=weight("c", 0.2).expand(len(x))))
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3) * y))
        pyro.sample("x", dist.Bernoulli(logits=weight("w", 0.7) * z - y), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4) * x))
        pyro.sample("y", dist.Bernoulli(logits=weight("e", 0.3) * z + weight("f", 0.1) * x))


def row() -> Tensor:
    return torch.zeros(1)


def phi() -> list[Tensor]:
    return [pyro.get_param_store()[name].unconstrained() for name in "aef"]


def exact() -> list[Tensor]:
    """minus E_p(x, z) log q(z | x) and its gradient, by the eight outcomes."""
    a, e, f = (torch.tensor(v, requires_grad=True) for v in (0.4, 0.3, 0.1))
    total = torch.zeros(())
    for bits in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3):
        y, z, x = bits
        log_p = dist.Bernoulli(logits=torch.tensor(0.2)).log_prob(y)
        log_p = log_p + dist.Bernoulli(logits=-0.3 * y).log_prob(z)
        log_p = log_p + dist.Bernoulli(logits=0.7 * z - y).log_prob(x)
        log_q = dist.Bernoulli(logits=a * x).log_prob(z)
        log_q = log_q + dist.Bernoulli(logits=e * z + f * x).log_prob(y)
        total = total - log_p.exp() * log_q
    return [total.detach(), *torch.autograd.grad(total, [a, e, f])]


def mean(objective: Any) -> list[Tensor]:
    loss = am.VariationalLoss(objective)
    loss.warm_up(model, guide, (row(),))
    loss.eval()

    def run(tree: Any) -> list[Tensor]:
        value = loss.estimate(model, guide, (row(),), {}, noise=tree).loss
        return [value, *torch.autograd.grad(value, phi())]

    return estimate_law(run, noise=FixedNoise()).mean


def test_the_loss_and_its_gradient_against_all_outcomes() -> None:
    for found, truth in zip(mean(am.ForwardKL()), exact(), strict=True):
        assert torch.allclose(found, truth, rtol=1e-12)


def test_sleep_is_the_same_gradient_beside_wake_theta() -> None:
    found = mean(am.ReweightedWakeSleep(1, phi="sleep"))
    assert all(
        torch.allclose(m, t, rtol=1e-11) for m, t in zip(found[1:], exact()[1:], strict=True)
    )


def test_a_mix_is_a_mix() -> None:
    wake, sleep = (mean(am.ReweightedWakeSleep(2, phi=phi)) for phi in ("wake", "sleep"))
    mixed = mean(am.ReweightedWakeSleep(2, phi=0.25))
    for both, one, other in zip(mixed[1:], wake[1:], sleep[1:], strict=True):
        assert torch.allclose(both, 0.25 * one + 0.75 * other, rtol=1e-11)


def test_theta_gets_no_gradient_from_simulations() -> None:
    loss = am.VariationalLoss(am.ForwardKL())
    loss.warm_up(model, guide, (row(),))
    theta = [pyro.get_param_store()[name].unconstrained() for name in "bcw"]
    value = loss.differentiable_loss(model, guide, row())
    found = torch.autograd.grad(value, theta, allow_unused=True)
    assert found == (None, None, None)


def test_a_stored_set_is_charged_the_same() -> None:
    """Every outcome once as a row, with its probability as a weight by hand."""

    def stored_model(x: Tensor, y: Tensor, z: Tensor) -> None:
        model(x)

    def stored_guide(x: Tensor, y: Tensor, z: Tensor) -> None:
        guide(x)

    loss = am.VariationalLoss(am.ForwardKL(simulate=False))
    total = torch.zeros(())
    for bits in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3):
        y, z, x = (bit.reshape(1) for bit in bits)
        log_p = dist.Bernoulli(logits=torch.tensor(0.2)).log_prob(y)
        log_p = log_p + dist.Bernoulli(logits=-0.3 * y).log_prob(z)
        log_p = log_p + dist.Bernoulli(logits=0.7 * z - y).log_prob(x)
        value = loss.estimate(stored_model, stored_guide, (), {"x": x, "y": y, "z": z}).loss
        total = total + log_p.exp().sum() * value
    assert torch.allclose(total, exact()[0])
    with pytest.raises(am.ProgramError, match=r"site 'y'.*no argument of this name.*pass it"):
        loss.estimate(model, guide, (row(),), {})


def test_subsampled_plates_are_scaled() -> None:
    def wide(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        return lambda x: pyro.poutine.scale(program, 5.0)(x)

    values = []
    for p, q in ((wide(model), wide(guide)), (model, guide)):
        loss = am.VariationalLoss(am.ForwardKL())
        loss.warm_up(p, q, (torch.zeros(4),))
        pyro.set_rng_seed(0)
        values.append(loss.estimate(p, q, (torch.zeros(4),), {}).loss)
    assert torch.allclose(values[0], 5 * values[1])


def run(p: Any, q: Any, *args: Any, **options: Any) -> Any:
    found, _ = Runner(0).simulate(p, q, args, {}, noise=TorchNoise(), **options)
    return found


class Encoder(nn.Module):
    def forward(self, images: Tensor) -> None:
        with pyro.plate("data", len(images)):
            pyro.sample("z", dist.Normal(images.sum(-1), 1.0))


def seen(images: Tensor, scale: float = 1.0) -> None:
    with pyro.plate("data", len(images)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(images)), 1.0))
        noise = dist.Normal(z.unsqueeze(-1).expand(-1, 3), 0.1).to_event(1)
        pyro.sample("x", noise, obs=scale * images)


def test_an_argument_is_found_by_the_name_it_is_given() -> None:
    images = torch.zeros(5, 3)
    found = run(seen, Encoder(), images, observed={"x": "images"})
    loc = found.guide["z"].fn.loc
    assert torch.allclose(loc, found.model["x"].value.sum(-1))
    by_function = run(seen, Encoder(), images, observed=lambda s: {"images": s["x"] + 1.0})
    shifted = by_function.model["x"].value.sum(-1) + 3.0
    assert torch.allclose(by_function.guide["z"].fn.loc, shifted)


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no argument": (seen, Encoder(), {}, r"site|argument.*'images'.*observed="),
    "no site": (seen, Encoder(), {"observed": {"y": "images"}}, r"no site 'y'.*'x', 'z'"),
    "changed on the way": (
        lambda images: seen(images, 0.5),
        Encoder(),
        {"observed": {"x": "images"}},
        r"site 'x'.*observes something else.*'images'",
    ),
}


@pytest.mark.parametrize("why", sorted(REFUSED))
def test_what_cannot_be_handed_on_is_refused(why: str) -> None:
    p, q, options, sentence = REFUSED[why]
    with pytest.raises(am.AmortizedError, match=sentence):
        run(p, q, torch.ones(5, 3), **options)


def test_zeros_do_not_hide_that_a_model_changes_its_argument() -> None:
    zeros, options = torch.zeros(5, 3), {"observed": {"x": "images"}}
    run(lambda images: seen(images, 1.0), Encoder(), zeros, **options)
    with pytest.raises(am.ProgramError, match=r"site 'x'.*observes something else.*'images'"):
        run(lambda images: seen(images, 0.5), Encoder(), zeros, **options)


def test_the_second_look_moves_no_generator_and_no_buffer() -> None:
    norm = nn.BatchNorm1d(3, affine=False)

    def p(images: Tensor) -> None:
        with pyro.plate("data", len(images)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(images)), 1.0))
            loc = norm(z.unsqueeze(-1) * torch.ones(3))
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=1.0 * images)

    looked, drawn = [], []
    for looks in ("always", "never"):
        norm.reset_running_stats()
        runner = Runner(0)
        runner.study(p, Encoder(), (torch.zeros(5, 3),), {}, TorchNoise())
        runner.looks = looks  # type: ignore[assignment]
        pyro.set_rng_seed(0)
        options: Any = {"noise": TorchNoise(), "observed": {"x": "images"}}
        found, _ = runner.simulate(p, Encoder(), (torch.zeros(5, 3),), {}, **options)
        looked.append(int(norm.num_batches_tracked or 0))
        drawn.append(found.model["x"].value)
    assert looked == [1, 1] and torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_the_guide_sees_no_more_than_on_data(inside: bool, filled: bool) -> None:
    there = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    x = torch.where(there, torch.tensor(2.0), torch.nan)

    def p(x: Tensor) -> None:
        mask = x.isfinite()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            law = dist.Normal(z.unsqueeze(-1).expand(x.shape), 0.1)
            seen = x.nan_to_num() if filled else x
            if inside:
                pyro.sample("x", law.mask(mask).to_event(1), obs=seen)
            else:
                with pyro.poutine.mask(mask=mask.all(-1)):
                    pyro.sample("x", law.to_event(1), obs=torch.where(mask, seen, x))

    given = []

    def q(x: Tensor) -> None:
        given.append(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num().sum(-1), 1.0))

    found = run(p, q, x)
    visible = there if inside else there.all(-1, keepdim=True).expand(3, 3)
    drawn = found.model["x"].value
    assert torch.equal(given[-1][visible], drawn[visible])
    assert torch.equal(given[-1][~visible].nan_to_num(9.0), x[~visible].nan_to_num(9.0))


def test_numbers_that_an_argument_cannot_hold_are_not_cut_off() -> None:
    whole = torch.ones(5, 3, dtype=torch.int64)

    def of_counts(images: Tensor) -> None:
        Encoder()(1.0 * images)

    with pytest.raises(am.ProgramError, match=r"argument 'images'.*torch\.int64 cannot hold"):
        run(seen, of_counts, whole, observed={"x": "images"})

    def counts(images: Tensor) -> None:
        with pyro.plate("data", len(images)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(images)), 1.0))
            rate = z.exp().unsqueeze(-1).expand(-1, 3)
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=images)

    found = run(counts, of_counts, whole, observed={"x": "images"})
    assert torch.equal(found.guide["z"].fn.loc, found.model["x"].value.sum(-1))


def test_one_draw_is_not_charged_as_that_of_every_datum() -> None:
    def p(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z * torch.ones(len(x)), 1.0), obs=x)

    def q(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(am.ProgramError, match=r"site 'z'.*batch shape \(\).*\(5,\).*len\(x\)"):
        run(p, q, torch.ones(5))


@pytest.mark.parametrize("rows", [None, 1])
def test_a_stored_set_has_a_value_for_each_datum(rows: int | None) -> None:
    def p(x: Tensor, z: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def q(x: Tensor, z: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    stored = torch.zeros(()) if rows is None else torch.zeros(rows)
    with pytest.raises(am.ProgramError, match=r"site 'z'.*a stored set has a value for each"):
        run(p, q, torch.ones(5), stored, stored=True)


def test_a_model_with_a_factor_cannot_simulate() -> None:
    def p(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -z * z)

    def q(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(am.ProgramError, match=r"factor 'f'.*cannot simulate"):
        run(p, q, row())


def test_autoguides_have_no_log_q_of_a_simulation() -> None:
    def p(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(p)
    guide(row())
    with pytest.raises(am.ProgramError, match=r"site 'z_unconstrained'.*auxiliary.*samples the"):
        run(p, guide, row())


def test_a_guide_that_runs_the_model_inside_is_no_observer() -> None:
    class Mean(pyro.infer.autoguide.AutoMessenger):
        def get_posterior(self, name: str, prior: Any) -> Any:
            return dist.Normal(weight("a", 0.5), 1.0).expand(prior.batch_shape)

    def p(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = run(p, Mean(p), torch.zeros(4))
    law = dist.Normal(torch.tensor(0.5), 1.0)
    assert torch.allclose(found.terms[0].value, -law.log_prob(found.model["z"].value))
    assert [term.role for term in found.terms if term.role == "guide"] == ["guide"]


def test_another_shape_is_refused() -> None:
    def p(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def q(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(am.ProgramError, match=r"argument 'x'.*shape \(2,\).*\(2, 3\).*observed="):
        run(p, q, torch.ones(2, 3))


@pytest.mark.parametrize("mode", ["graph", "off"])
@pytest.mark.parametrize(
    "objective", [am.ForwardKL(), am.ReweightedWakeSleep(3, phi=0.5), am.TVO(3)], ids=repr
)
def test_captured_steps_are_the_eager_ones(objective: Any, mode: str) -> None:
    data = torch.bernoulli(torch.full((64,), 0.4))
    svi = am.SVI(model, guide, am.VariationalLoss(objective), lr=0.05, compile=mode)  # type: ignore[arg-type]
    history = svi.fit(data, max_epochs=3, batch_size=16, seed=1, progress=False)
    eager = am.SVI(model, guide, am.VariationalLoss(objective), lr=0.05, compile="off")
    again = eager.fit(data, max_epochs=3, batch_size=16, seed=1, progress=False)
    assert history["train_loss"] == again["train_loss"]
    assert all(torch.equal(v, eager.params()[k]) for k, v in svi.params().items())
