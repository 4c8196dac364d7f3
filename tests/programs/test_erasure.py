"""Programs that mix copies are refused by name; programs that do not are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amortized as am

SIZE = 3
DATA = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
PROBS = torch.tensor([[0.2, 0.7], [0.5, 0.4], [0.9, 0.3]])

Decoder = Callable[[Tensor], Tensor]


def pair(decode: Decoder) -> tuple[Any, Any]:
    """Two bits a datum, decoded to the mean of four numbers."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Bernoulli(PROBS).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.linspace(-1, 1, 6).reshape(3, 2))
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


WEIGHT = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))


def batch_norm(z: Tensor) -> Tensor:
    """Batch statistics over everything on the left, as the 1-d module takes them when folded."""
    y = z @ WEIGHT
    return F.batch_norm(y.reshape(-1, 4), None, None, training=True).reshape(y.shape)


MIXING: dict[str, Decoder] = {
    "mean of all": lambda z: z @ WEIGHT + z.mean(),
    "sum over dim 0": lambda z: (z + z.sum(0, keepdim=True)) @ WEIGHT,
    "soft maximum of all": lambda z: z @ WEIGHT + (z @ WEIGHT).flatten().logsumexp(0),
    "centered over a positive dim": lambda z: (z - z.mean(0)) @ WEIGHT,
    "softmax over dim 0": lambda z: torch.softmax(z, 0) @ WEIGHT,
    "standardized": lambda z: ((z - z.mean()) / (z.std() + 1)) @ WEIGHT,
    "batch statistics": batch_norm,
    "reversed on the left": lambda z: z.flip(0) @ WEIGHT,
    "first copy only": lambda z: (z.reshape(-1, SIZE, 2)[0]) @ WEIGHT,
    "sum read as a number": lambda z: z @ WEIGHT + z.sum().item(),
}
WIDE: dict[str, tuple[int, Any]] = {
    "enumerated": (1, am.Enumerate()),
    "copies": (1, am.ScoreFunction(am.LeaveOneOut(), num_samples=5)),
    "particles": (5, am.ScoreFunction()),
}


@pytest.mark.parametrize("wide", sorted(WIDE))
@pytest.mark.parametrize("name", sorted(MIXING))
def test_mixing_is_refused(name: str, wide: str) -> None:
    particles, estimator = WIDE[wide]
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    with pytest.raises(am.ProgramError) as error:
        loss.loss(*pair(MIXING[name]), DATA)
    text = str(error.value)
    assert "site 'x' of the model mixes" in text
    assert ("the particles" if particles > 1 else "the copies of site 'z'") in text
    assert "negative dims" in text and "am.Fold(network)" in text and "vectorize=False" in text


@pytest.mark.parametrize("name", sorted(MIXING))
def test_with_one_draw_there_is_nothing_to_mix(name: str) -> None:
    am.VariationalLoss(estimators="score_function").loss(*pair(MIXING[name]), DATA)


def test_a_guide_that_mixes_is_refused() -> None:
    def program() -> None:
        z = pyro.sample("first", dist.Bernoulli(0.4))
        pyro.sample("second", dist.Normal(z.mean() + z, 1.0))

    loss = am.VariationalLoss(estimators={"first": "enumerate"})
    with pytest.raises(am.ProgramError, match=r"site 'second' of the (guide|model) mixes"):
        loss.loss(program, program)


class Net(nn.Module):
    """A decoder with one layer of each kind that treats data one by one."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), *layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


FINE: dict[str, Decoder] = {
    "linear": lambda z: z @ WEIGHT,
    "negative reductions": lambda z: (z - z.mean(-1, keepdim=True)) @ WEIGHT,
    "index of a table": lambda z: WEIGHT[z.long()[..., 0]],
    "one-hot": lambda z: F.one_hot(z.long().sum(-1), 4).float(),
    "layer norm": Net(nn.LayerNorm(4)),
    "dropout": Net(nn.Dropout(0.5)),
    "dropout in a function": lambda z: F.dropout(z @ WEIGHT, 0.5),
    "noise of its own": lambda z: z @ WEIGHT + torch.randn(4),
    "batch norm in eval": am.Fold(Net(nn.BatchNorm1d(4)).eval()),
    "infinite": lambda z: torch.log(z[..., :1].expand(*z.shape[:-1], 4)),
}


@pytest.mark.parametrize("wide", sorted(WIDE))
@pytest.mark.parametrize("name", sorted(FINE))
def test_a_program_that_keeps_copies_apart_passes(name: str, wide: str) -> None:
    particles, estimator = WIDE[wide]
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    loss.loss(*pair(FINE[name]), DATA)


class Model(nn.Module):
    """The pair's model as a module of its own, with a network inside."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = Net(*layers)
        self.model = pair(self.net)[0]

    def forward(self, x: Tensor) -> None:
        self.model(x)


@pytest.mark.parametrize("wide", sorted(WIDE))
def test_dropout_in_a_module_passes_and_stays_on(wide: str) -> None:
    particles, estimator = WIDE[wide]
    model = Model(nn.Dropout(0.5))
    am.VariationalLoss(am.ELBO(particles), {"z": estimator}).loss(model, pair(model.net)[1], DATA)
    assert all(module.training for module in model.modules())


class Mixer(nn.Module):
    """A layer that is wrong."""

    def forward(self, y: Tensor) -> Tensor:
        return y + y.mean()


@pytest.mark.parametrize("wide", sorted(WIDE))
def test_dropout_does_not_hide_mixing(wide: str) -> None:
    """Its own randomness is off while copies are compared."""
    particles, estimator = WIDE[wide]
    model = Model(nn.Dropout(0.5), Mixer())
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    with pytest.raises(am.ProgramError, match="site 'x' of the model mixes"):
        loss.loss(model, pair(model.net)[1], DATA)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("wide", sorted(WIDE))
def test_batch_norm_in_training_is_refused_and_its_buffers_untouched(wide: str) -> None:
    """Folded, so that it runs: its statistics are over all copies."""
    particles, estimator = WIDE[wide]
    model = Model(am.Fold(nn.BatchNorm1d(4)))
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss = am.VariationalLoss(am.ELBO(particles), {"z": estimator})
    with pytest.raises(am.ProgramError, match=r"site 'x' of the model mixes.*batch norm"):
        loss.warm_up(model, pair(model.net)[1], DATA)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.eval()
    loss.warm_up(model, pair(model.net)[1], DATA)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_rounding_of_a_narrow_network_under_wide_data_is_no_mixing(wide: torch.dtype) -> None:
    """A matrix product may round otherwise at another size: the last digits of float32 differ."""

    def decode(z: Tensor) -> Tensor:
        last_digit = 1.0 + 2e-7 * z.dim()
        return 10.0 * last_digit * (z @ WEIGHT)

    model, guide = pair(decode)
    loss = am.VariationalLoss(am.ELBO(num_particles=7), "score_function")
    loss.loss(model, guide, DATA.to(wide))


def test_numbers_without_dims_may_change_their_dtype() -> None:
    """Between two tensors of no dims the wider dtype wins, else the one with dims."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3, dtype=torch.float64))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.1), 1.0))

    am.VariationalLoss(am.ELBO(num_particles=3)).loss(model, guide)


def test_a_site_that_only_one_copy_reaches_is_refused() -> None:
    """Together not all are one, so the bonus is missed; alone the copy at one has it."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if bool((z > 0.5).all()):
            pyro.factor("bonus", torch.tensor(5.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(am.ProgramError, match=r"site 'bonus' of the model.*structure depends"):
        am.VariationalLoss(estimators="enumerate").loss(model, guide)


def test_a_random_minibatch_of_the_model_alone_does_not_hide_mixing() -> None:
    """The data of the first run are those of the replays."""
    everything = torch.randn(10)

    def model(erase: bool) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", 10, subsample_size=4) as index:
            loc = z.mean() if erase else z
            pyro.sample("x", dist.Normal(loc, 1.0), obs=everything[index])

    def guide(erase: bool) -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    loss = am.VariationalLoss(estimators="enumerate")
    loss.loss(model, guide, False)
    with pytest.raises(am.ProgramError, match="site 'x' of the model mixes"):
        loss.loss(model, guide, True)


def test_every_new_structure_is_checked() -> None:
    """A harmless first call does not vouch for another flag, batch or mode."""

    def decode(z: Tensor, bad: bool) -> Tensor:
        return z @ WEIGHT + (z.mean() if bad else 0.0)

    guide = pair(MIXING["mean of all"])[1]
    good, bad = (pair(partial(decode, bad=flag))[0] for flag in (False, True))

    def model(x: Tensor, flag: bool) -> None:
        (bad if flag else good)(x)

    loss = am.VariationalLoss(estimators="enumerate")
    loss.loss(model, lambda x, flag: guide(x), DATA, False)
    with pytest.raises(am.ProgramError, match="mixes"):
        loss.loss(model, lambda x, flag: guide(x), DATA, True)


def test_the_check_costs_no_randomness() -> None:
    """Equal seeds, equal draws, whether the check has run before or not."""
    model, guide = pair(FINE["linear"])
    loss = am.VariationalLoss(am.ELBO(num_particles=2), "score_function")
    values = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        values.append(loss.loss(model, guide, DATA))
    assert values[0] == values[1]


def test_the_check_runs_once_per_structure() -> None:
    calls = []

    def decode(z: Tensor) -> Tensor:
        calls.append(z.shape)
        return z @ WEIGHT

    model, guide = pair(decode)
    loss = am.VariationalLoss(estimators="enumerate")
    loss.loss(model, guide, DATA)
    checked = len(calls)
    loss.loss(model, guide, DATA)
    assert checked > 2 and len(calls) == checked + 1


def test_copy_by_copy_nothing_is_mixed() -> None:
    """The slow executor gives the mean the meaning that it has for one draw."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("value", 3.0 * z.mean())

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    value = am.VariationalLoss(estimators="enumerate", vectorize=False).loss(model, guide)
    assert value == pytest.approx(-1.5)


# --- sites that are summed out in the model -------------------------------------------------------

TABLE = torch.tensor([[0.3, -1.0, 0.5, 0.2], [1.1, 0.4, -0.6, 0.9], [-0.2, 0.8, 0.1, -0.7]])


def summed_pair(decode: Decoder) -> tuple[Any, Any]:
    """A class a datum, summed out, decoded to the mean of four numbers."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", SIZE):
            c = pyro.sample("c", dist.Categorical(PROBS.sum(0).expand(3, 2)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(decode(c), 1.0).to_event(1), obs=x)

    return model, lambda x: None


PARALLEL = {"enumerate": "parallel"}
MIXING_VALUES: dict[str, Decoder] = {
    "mean of all": lambda c: TABLE[c] + TABLE[c].mean(),
    "sum over dim 0": lambda c: TABLE[c] + TABLE[c].sum(0, keepdim=True),
    "first value only": lambda c: TABLE[c][:1],
    "reversed on the left": lambda c: TABLE[c.flip(0)],
    "sum read as a number": lambda c: TABLE[c] + c.sum().item(),
    "squeezed away": lambda c: TABLE[c].float().mean(0),
}
APART_VALUES: dict[str, Decoder] = {
    "looked up": lambda c: TABLE[c],
    "softmax over a negative dim": lambda c: torch.softmax(TABLE[c], -1),
    "one-hot": lambda c: F.one_hot(c, 3).float() @ TABLE,
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", sorted(MIXING_VALUES))
def test_mixed_values_of_a_summed_out_site_are_refused(name: str, vectorize: bool) -> None:
    loss = am.VariationalLoss(vectorize=vectorize)
    with pytest.raises(am.ProgramError) as error:
        loss.loss(*summed_pair(MIXING_VALUES[name]), DATA)
    assert "site 'x' of the model mixes the values of the summed-out sites 'c'" in str(error.value)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", sorted(APART_VALUES))
def test_values_that_stay_apart_are_left_in_peace(name: str, vectorize: bool) -> None:
    loss = am.VariationalLoss(vectorize=vectorize)
    assert loss.loss(*summed_pair(APART_VALUES[name]), DATA) > 0


def test_a_chain_s_steps_are_compared_with_its_dims_used_again() -> None:
    def chain(mixing: bool) -> Callable[[Tensor], None]:
        def model(x: Tensor) -> None:
            state = torch.tensor(0)
            for step in pyro.markov(range(4)):
                state = pyro.sample(
                    f"s{step}", dist.Categorical(TABLE.exp()[state]), infer=PARALLEL
                )
                mean = state.float().mean() if mixing and step == 3 else state
                pyro.sample(f"x{step}", dist.Normal(mean, 1.0), obs=x[0, step])
                state = state.clamp(max=2)

        return model

    am.VariationalLoss().loss(chain(False), lambda x: None, DATA)
    with pytest.raises(am.ProgramError, match=r"'x3' of the model mixes the values.*'s3'"):
        am.VariationalLoss().loss(chain(True), lambda x: None, DATA)


def test_copies_beside_a_sum_are_compared_too() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            c = pyro.sample("c", dist.Bernoulli(0.3 + 0.4 * z), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c + z - z.mean(), 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Bernoulli(torch.full((SIZE,), 0.4)))

    with pytest.raises(am.ProgramError, match="mixes the copies of site 'z'"):
        am.VariationalLoss(estimators="enumerate").loss(model, guide, DATA)
