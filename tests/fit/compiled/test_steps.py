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
        (lambda: 0.1 * random.random(), "draw from a generator of Python or numpy"),
        (lambda: 0.1 * float(np.random.rand()), "draw from a generator of Python or numpy"),
        (Counter(), r"programs change change of model\.calls while they run"),
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


class Hidden:
    """A number in a place that nobody looks at."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0

    def __call__(self) -> float:
        return self.number


def drifting(compile: str, **options):
    """Six steps of a program whose number changes unseen, then more steps."""
    hidden = Hidden()
    pyro.set_rng_seed(0)
    svi = am.SVI(model_with(hidden), tiny.param_guide, lr=0.05, compile=compile)
    yield svi
    hidden.number = 1.0
    yield svi


def test_the_audit_finds_a_change_later() -> None:
    trained = drifting("graph")
    svi = next(trained)
    for _ in range(6):
        svi.step(tiny.data(8))
    next(trained)
    with pytest.raises(ProgramError, match=r"no longer serves.*differs from the eager step"):
        for _ in range(10):
            svi.step(tiny.data(8))


class Beta:
    """A number that somebody else changes."""

    def __init__(self) -> None:
        self.number = 0.0

    def __call__(self) -> float:
        return self.number


def test_a_number_that_was_changed_has_a_graph_of_its_own() -> None:
    def run(mode: str) -> list[float]:
        pyro.set_rng_seed(0)
        beta = Beta()
        svi = am.SVI(model_with(beta), tiny.param_guide, lr=0.05, compile=mode)
        losses = []
        for number in range(15):
            beta.number = float(number >= 5) - float(number >= 10)
            losses.append(svi.step(tiny.data(8)))
        return losses

    assert run("off") == run("graph")


def test_a_number_that_changes_at_each_step_is_named() -> None:
    beta = Beta()
    svi = am.SVI(model_with(beta), tiny.param_guide, compile="graph")
    with pytest.raises(ProgramError, match=r"number was 0\.\d+ and is 0\.\d+.*kl_weight="):
        for number in range(20):
            beta.number = 0.01 * number
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
    with pytest.raises(
        am.UsageError, match="compile='fast': expected one of off, graph, inductor, auto"
    ):
        am.SVI(tiny.local_model, tiny.exact_guide, compile="fast")  # type: ignore[arg-type]


@pytest.fixture
def eager_to_capture(monkeypatch) -> None:
    """Short trainings are worth a capture."""
    monkeypatch.setattr("amortized.fit.compiled.choice._CAPTURE_STEPS", 5)
    monkeypatch.setattr("amortized.fit.compiled.steps._LOOK", 3)


def kinds(svi: am.SVI) -> set[str]:
    """What served the steps so far."""
    signatures = [last for *_, last in svi._stepper._steps()._met.values()]
    found = {"compiled" if s.compiled else "replay" if s.graph else "eager" for s in signatures}
    return found


def trained(
    mode: str, optimizer=torch.optim.Adam, **options
) -> tuple[am.SVI, dict[str, list[float]]]:
    pyro.set_rng_seed(0)
    svi = am.SVI(tiny.local_model, Encoder(), lr=0.05, compile=mode, optimizer=optimizer)
    fit = {"max_epochs": 4, "batch_size": 8, "seed": 1, "progress": False} | options
    history = svi.fit(tiny.data(44), tiny.data(9), **fit)
    history.pop("epoch_time")
    return svi, dict(history)


def test_auto_leaves_a_short_training_as_it_is() -> None:
    svi, _ = trained("auto")
    assert kinds(svi) == {"eager"}


def test_auto_captures_what_pays_for_itself(eager_to_capture) -> None:
    svi, history = trained("auto")
    assert kinds(svi) == {"replay", "eager"}  # the short last batch is too rare
    other, expected = trained("off")
    same(
        (history, svi._stepper.parameters.snapshot()),
        (expected, other._stepper.parameters.snapshot()),
    )


def test_auto_without_an_end_in_sight_counts_what_was(eager_to_capture) -> None:
    pyro.set_rng_seed(0)
    svi = am.SVI(tiny.local_model, Encoder(), lr=0.05)
    seen = []
    for _ in range(8):
        svi.step(tiny.data(8))
        seen.append(kinds(svi) == {"replay"})
    assert seen == [False] * 4 + [True] * 4


def test_auto_says_once_why_it_stays_eager(eager_to_capture) -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            shift = 0.1 if float(z.detach().mean()) > 0 else 0.0
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def run(mode: str) -> list[float]:
        pyro.set_rng_seed(0)
        svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
        return [svi.step(tiny.data(8)) for _ in range(12)]

    with pytest.warns(am.CheckWarning, match="goes on eagerly.*read the value") as caught:
        losses = run("auto")
    assert len(caught) == 1
    assert losses == run("off")


def test_auto_goes_back_to_the_state_that_was_right(eager_to_capture, monkeypatch) -> None:
    monkeypatch.setattr("amortized.fit.compiled.audit._FIRST", (0, 1, 26))
    hidden = Hidden()
    pyro.set_rng_seed(0)
    svi = am.SVI(model_with(hidden), tiny.param_guide, lr=0.05)
    snapshots = []
    for number in range(30):  # replays from the fifth on; the first two are compared
        hidden.number = float(number >= 7)  # seen by nobody
        snapshots.append(svi._stepper.parameters.snapshot())
        svi.step(tiny.data(8))
    assert kinds(svi) == {"replay"}
    with pytest.warns(am.CheckWarning, match="again those after step 5") as caught:
        svi.step(tiny.data(8))
    assert len(caught) == 1 and svi._stepper.steps == 31
    now, right, wrong = svi._stepper.parameters.snapshot(), snapshots[5], snapshots[29]
    # one eager step of Adam from the state that was right
    assert all((now[name] - right[name]).abs().max() < 0.06 for name in now)
    assert any((now[name] - wrong[name]).abs().max() > 0.2 for name in now)


def test_compiled_steps_agree_to_rounding_repeat_and_resume_exactly(tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop(state) -> None:
        if state.epoch == 2:
            raise Stop

    svi, history = trained("inductor")
    assert kinds(svi) == {"compiled", "replay"}
    _, again = trained("inductor")
    assert history == again
    # Adam makes full steps of a gradient that is rounding alone, as of a bias before batch norm
    _, plain = trained("inductor", optimizer=torch.optim.SGD)
    _, eager = trained("off", optimizer=torch.optim.SGD)
    for key, values in eager.items():
        assert plain[key] == pytest.approx(values, rel=1e-3, abs=1e-4), key
    with pytest.raises(Stop):
        trained("inductor", callbacks=[am.ModelCheckpoint(tmp_path, every_n_steps=1), stop])
    resumed, _ = trained("inductor", resume_from=tmp_path)
    found, whole = resumed._stepper.parameters.snapshot(), svi._stepper.parameters.snapshot()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_a_value_that_changes_and_does_not_matter_costs_no_graph() -> None:
    """A counter that a training loop keeps on the model, as for its logs."""
    counter = Beta()

    def model(x):
        assert counter.number >= 0
        tiny.local_model(x)

    def run(mode: str) -> list[float]:
        pyro.set_rng_seed(0)
        svi = am.SVI(model, tiny.param_guide, lr=0.05, compile=mode)
        losses = []
        for number in range(70):
            counter.number = float(number)
            losses.append(svi.step(tiny.data(8)))
        if mode == "graph":
            ((signature, *others),) = svi._stepper._steps()._met.values()
            assert signature.replays == 69 and not others
        return losses

    assert run("off") == run("graph")


def test_a_generator_of_the_programs_own() -> None:
    def run(mode: str) -> list[float]:
        own = torch.Generator().manual_seed(5)

        def change() -> torch.Tensor:
            return torch.randn((), generator=own)

        pyro.set_rng_seed(0)
        svi = am.SVI(model_with(change), tiny.param_guide, lr=0.05, compile=mode)
        return [svi.step(tiny.data(8)) for _ in range(15)]

    assert run("off") == run("graph")
