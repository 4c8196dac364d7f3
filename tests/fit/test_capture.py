"""A captured step does what the eager step does, bit for bit, or is refused with a reason."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized as am
from amortized.errors import NonFiniteError, ProgramError
from tests.fit import tiny
from tests.laws.structures import EVERY
from tests.laws.test_unbiased import DISCRETE

# they read values: a branch on a latent, a loop over a sequential plate
READS_VALUES = ("control_flow", "python_loop")


def steps(make, data, count: int, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and everything that moves, after some steps."""
    pyro.set_rng_seed(0)
    svi = make(**options)
    losses = [svi.step(data(number)) for number in range(count)]
    return losses, svi._stepper.parameters.snapshot()


def same(first, second) -> None:
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    for name, tensor in first[1].items():
        assert torch.equal(tensor, second[1][name]), name


@pytest.mark.float64
@pytest.mark.parametrize("estimator", sorted(DISCRETE))
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_every_estimator_in_every_structure(structure: str, estimator: str) -> None:
    def make(**options) -> am.SVI:
        pyro.clear_param_store()
        pair = EVERY[structure]("bernoulli")
        loss = am.VariationalLoss(estimators={n: DISCRETE[estimator]() for n in pair.latents})
        return am.SVI(pair.model, pair.guide, loss, lr=0.1, **options)

    def run(**options):
        return steps(make, lambda number: (), 5, **options)

    try:
        eager = run()
    except am.AmortizedError:
        pytest.skip("not served: see the laws")
    if structure in READS_VALUES:
        with pytest.raises(ProgramError, match="read the value of a tensor"):
            run(compile="graph")
        return
    same(eager, run(compile="graph"))


class Encoder(nn.Module):
    """Batch norm, dropout, and a latent code."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )

    def forward(self, x):
        loc, log_scale = self.layers(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


OPTIONS = {
    "plain": {},
    "short last batches": {"batch_size": 7},
    "accumulation": {"accumulate_grad_batches": 2},
    "a warm-up of the KL": {"n_epochs_kl_warmup": 2},
    "clipping": {"gradient_clip_val": 0.05},
    "a scheduler": {
        "scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_whole_training(options: str) -> None:
    ends = []
    for mode in ("off", "graph"):
        pyro.set_rng_seed(0)
        svi = am.SVI(tiny.local_model, Encoder(), lr=0.05, compile=mode)
        fit = {"max_epochs": 4, "batch_size": 8, "seed": 1, "progress": False} | OPTIONS[options]
        history = svi.fit(tiny.data(40), tiny.data(9), **fit)
        history.pop("epoch_time")
        ends.append((dict(history), svi._stepper.parameters.snapshot()))
    same(*ends)


def test_particles_and_closed_forms() -> None:
    def make(**options) -> am.SVI:
        loss = am.VariationalLoss(am.ELBO(num_particles=3, kl="analytic"))
        return am.SVI(tiny.ModuleModel(), tiny.ModuleGuide(), loss, lr=0.05, **options)

    data = functools.partial(steps, make, lambda number: tiny.data(6 + 2 * (number % 2)), 8)
    same(data(), data(compile="graph"))


def test_resume_is_exact_in_both_modes(tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop(state) -> None:
        if state.epoch == 2:
            raise Stop

    def trained(**options) -> dict[str, torch.Tensor]:
        pyro.set_rng_seed(0)
        svi = am.SVI(tiny.local_model, Encoder(), lr=0.05, compile="graph")
        svi.fit(tiny.data(40), max_epochs=4, batch_size=8, seed=1, progress=False, **options)
        return svi._stepper.parameters.snapshot()

    whole = trained()
    with pytest.raises(Stop):
        trained(callbacks=[am.ModelCheckpoint(tmp_path, every_n_steps=1), stop])
    found = trained(resume_from=tmp_path)
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def model_with(change):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + change(), 1.0), obs=x)

    return model


class Counter:
    """State that is no buffer."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 0.001 * self.calls


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: 0.1 * random.random(), "Python's or numpy's generator"),
        (lambda: 0.1 * float(np.random.rand()), "Python's or numpy's generator"),
        (Counter(), "differs from the eager step"),
        (lambda: float(torch.ones(()).item()) * 0.0 + torch.rand(()).item(), "read the value"),
    ],
    ids=["random", "numpy", "a counter", "item"],
)
def test_what_a_capture_would_hold_fixed_is_refused(change, reason: str) -> None:
    svi = am.SVI(model_with(change), tiny.param_guide, compile="graph")
    svi.step(tiny.data(8))
    before = svi._stepper.parameters.snapshot()
    with pytest.raises(ProgramError, match=rf"compile='graph'.*{reason}.*compile='off'"):
        svi.step(tiny.data(8))
    after = svi._stepper.parameters.snapshot()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_audit_finds_a_change_later(monkeypatch) -> None:
    monkeypatch.setattr("amortized.fit.capture._AUDIT_EVERY", 3)
    drift = [0.0]
    svi = am.SVI(model_with(lambda: drift[0]), tiny.param_guide, compile="graph")
    for _ in range(4):
        svi.step(tiny.data(8))
    drift[0] = 1.0
    with pytest.raises(ProgramError, match="differs from the eager step"):
        for _ in range(3):
            svi.step(tiny.data(8))


def test_numbers_that_are_not_finite_are_named_as_in_eager_steps() -> None:
    messages = []
    for mode in ("off", "graph"):
        pyro.set_rng_seed(0)
        svi = am.SVI(tiny.local_model, Encoder(), compile=mode)
        for _ in range(3):
            svi.step(tiny.data(8))
        before = svi._stepper.parameters.snapshot()
        with pytest.raises(NonFiniteError) as error:
            svi.step(torch.full((8,), float("nan")))
        messages.append(str(error.value))
        after = svi._stepper.parameters.snapshot()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert messages[0] == messages[1] and "site 'x'" in messages[0]


def test_modes_have_graphs_of_their_own_and_frozen_parameters_stay() -> None:
    def run(mode: str) -> list[float]:
        pyro.set_rng_seed(0)
        guide = Encoder()
        svi = am.SVI(tiny.local_model, guide, lr=0.05, compile=mode)
        losses = []
        for number in range(12):
            guide.train(number % 4 < 2)
            guide.layers[0].requires_grad_(number < 6)
            losses.append(svi.step(tiny.data(8)))
        return losses

    assert run("off") == run("graph")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(am.UsageError, match="compile='fast': expected one of off, graph"):
        am.SVI(tiny.local_model, tiny.exact_guide, compile="fast")  # type: ignore[arg-type]
