"""Estimators chosen in a training: when, on what, how it is told, and what a checkpoint knows."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.compare.pilot.options import Option, name_of
from amortized.compare.pilot.outcome import Outcome, Row
from amortized.errors import ProgramError
from amortized.estimators.choice import estimator_of
from amortized.fit import selecting
from tests.fit import tiny
from tests.fit.harness import Do, Stop, stop
from tests.fit.test_resume import everything, same

STEPS = 2000
EXPONENTIAL = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)


def model(x):
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(3 * weight * c, 1.0), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=slope * x))


def auto(**options) -> am.SVI:
    return am.SVI(model, guide, am.VariationalLoss(estimators="auto"), lr=0.01, **options)


def enough(state) -> None:
    state.stop = "enough"


def fit(svi: am.SVI, *callbacks, **options) -> am.History:
    """Announces a long training, of which the callbacks end most."""
    options = {"max_steps": STEPS, "progress": False, "check": False, "seed": 0, **options}
    return svi.fit(tiny.data(40), batch_size=8, callbacks=callbacks, **options)


def named(svi: am.SVI) -> str:
    return repr(svi.loss.estimators.by_name()["c"])


@pytest.fixture(autouse=True)
def as_if_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are few here, and a training chooses again later."""
    monkeypatch.setattr(selecting, "_SHORT", 0)


@pytest.fixture
def equal_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps take the same time, and a second choice follows soon."""
    ticks = itertools.count()
    monkeypatch.setattr(selecting, "clock_of", lambda leaves: lambda: 1e-3 * next(ticks))
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.2), (0.006, 0.2)))  # at step 12


def forced(*names: str):
    """A search that finds these names, one a call."""
    waiting = iter(names)

    def search(setting, candidates, budget):
        name = next(waiting)
        option = Option(name, estimator_of(name))
        chosen = setting.loss.estimators.chosen()
        before = {"c": name_of(chosen["c"]) if chosen else "moving_average"}
        row = Row("c", name, "chosen", "because", work=1.0)
        return Outcome({}, {"c": option}, before, [row], 0.5)

    return search


def test_a_switch_is_told_and_takes_place(equal_seconds):
    svi = auto(compile="off")
    history = fit(svi, Do(enough, 3))
    assert named(svi) == "Enumerate()"
    pilot, switch = history.notices[:2]
    assert pilot.startswith("before step 1: ") and "estimators were measured in" in pilot
    assert switch.startswith("before step 1: site 'c': moving_average -> enumerate: ")
    (row,) = svi.describe(tiny.data(8)).rows
    assert row.why == "auto: measured in training"


def test_what_was_captured_before_a_switch_serves_no_longer(monkeypatch):
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.1), (0.003, 0.1)))  # at step 6
    monkeypatch.setattr(selecting, "searched", forced("leave_one_out", "disarm"))
    captured, eager = auto(compile="graph"), auto(compile="off")
    ends = []
    for svi in (captured, eager):
        monkeypatch.setattr(selecting, "searched", forced("leave_one_out", "disarm"))
        ends.append(everything(svi, fit(svi, Do(enough, 10))))
        assert named(svi) == "DisARM()"
    same(*ends)


def average_of(svi: am.SVI) -> torch.Tensor:
    return next(svi.loss.estimators.by_name()["c"].buffers())


def test_before_the_first_step_nothing_is_learned_and_steps_to_come_count(monkeypatch):
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.1), (0.003, 0.1)))  # at step 6
    settings = []

    def search(setting, candidates, budget):
        settings.append(setting)
        kept = Option("moving_average", estimator_of("moving_average"))
        row = Row("c", kept.name, "kept", "because", seconds=1.0, work=1.0)
        module = estimator_of("moving_average")
        after = {"c": module}
        if len(settings) == 1:  # what the pilot has learned
            found = setting.loss.with_estimators({"c": module})
            found.warm_up(setting.pair.model, setting.pair.guide, setting.pair.batch)
            after = {"c": found.estimators.by_name()["c"]}
            for buffer in after["c"].buffers():
                buffer.fill_(7)
        return Outcome({}, {"c": kept}, {"c": kept.name}, [row], 0.5, learned=after)

    monkeypatch.setattr(selecting, "searched", search)
    svi, means = auto(compile="off"), []
    look = Do(lambda state: means.append(float(average_of(svi))), 1)
    fit(svi, look, Do(enough, 8))
    first, second = settings
    assert not first.learned and second.learned.keys() == {"c"}
    assert (first.signal, second.signal) == (0.1, 1.0)
    # one step later, nine tenths of it are left
    assert means[0] == pytest.approx(6.3, abs=0.7)


@pytest.mark.parametrize("scheduler", [None, EXPONENTIAL])
def test_what_estimators_learn_comes_and_goes(monkeypatch, scheduler):
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.1), (0.001, 0.1), (0.002, 0.1)))
    monkeypatch.setattr(selecting, "searched", forced("rebar", "relax", "enumerate"))
    svi, counts = auto(), []
    counting = Do(lambda state: counts.append(len(list(svi.loss.parameters()))), *range(1, 9))
    fit(svi, counting, Do(enough, 8), scheduler=scheduler)
    assert counts[:2] == [1, 1] and counts[2] > 1 and counts[-1] == 0
    assert not svi.optimizer.param_groups[-1]["params"] or len(svi.optimizer.param_groups) == 2


@pytest.mark.parametrize("at", [5, 15])
def test_a_training_that_is_resumed_ends_bit_for_bit_the_same(
    equal_seconds, monkeypatch, tmp_path, at
):
    calls = []
    real = selecting.searched
    monkeypatch.setattr(selecting, "searched", lambda *a, **k: calls.append(1) or real(*a, **k))

    def saving(folder):
        return am.ModelCheckpoint(folder, "train_loss", every_n_steps=1)

    whole = auto()
    expected = everything(whole, fit(whole, saving(tmp_path / "whole"), Do(enough, 20)))
    assert len(calls) == 2
    with pytest.raises(Stop):
        fit(auto(), saving(tmp_path / "part"), Do(stop, at))
    made = len(calls)
    again = auto()
    history = fit(again, saving(tmp_path / "part"), Do(enough, 20), resume_from=tmp_path / "part")
    assert len(calls) - made == (1 if at < 12 else 0), "each choice is made once"
    same(expected, everything(again, history))
    assert named(again) == named(whole)
    assert sum("->" in notice for notice in history.notices) == 1


def test_the_best_parameters_come_back_after_a_switch(monkeypatch):
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.1), (0.004, 0.1)))
    monkeypatch.setattr(selecting, "searched", forced("rebar", "enumerate"))
    svi = auto()
    stopping = am.EarlyStopping("train_loss", patience=None)
    history = fit(svi, stopping, Do(enough, 15), non_finite="rollback")
    assert history.stopped == "enough" and named(svi) == "Enumerate()"


def test_a_saved_choice_is_loaded(equal_seconds, tmp_path):
    svi = auto()
    fit(svi, Do(enough, 2))
    svi.save(tmp_path)
    fresh = auto()
    fresh.load(tmp_path, tiny.data(8))
    assert named(fresh) == named(svi) == "Enumerate()"
    assert torch.equal(fresh.params()["slope"], svi.params()["slope"])


def test_a_short_training_measures_nothing_and_says_so():
    svi = auto()
    history = fit(svi, max_steps=6)
    assert named(svi) == "ScoreFunction(baseline=MovingAverage(decay=0.9))"
    assert history.notices[0] == (
        "before step 1: no estimators were measured: the steps to come are too few to pay for it"
    )


def test_a_training_that_is_not_long_chooses_once(monkeypatch):
    monkeypatch.setattr(selecting, "_SHORT", 3000)
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.1), (0.001, 0.1)))
    monkeypatch.setattr(selecting, "searched", forced("disarm", "enumerate"))
    svi = auto()
    fit(svi, Do(enough, 5))
    assert named(svi) == "DisARM()"


def test_the_pilot_moves_nothing_but_the_estimators(monkeypatch):
    monkeypatch.setattr(selecting, "_MOMENTS", ((0.0, 0.0),))
    plain = am.SVI(model, guide, lr=0.01)
    chosen = auto()
    same(*(everything(svi, fit(svi, Do(enough, 8))) for svi in (plain, chosen)))


def test_a_pilot_that_fails_leaves_things_as_they_are(monkeypatch):
    def failing(*args, **options):
        raise ProgramError("site 'c': no")

    monkeypatch.setattr(selecting, "searched", failing)
    history = fit(auto(), Do(enough, 2))
    assert history.notices[0] == (
        "before step 1: estimators stay as they are: measuring them failed: site 'c': no"
    )


def test_where_the_length_is_unknown_it_looks_at_powers_of_ten(monkeypatch):
    monkeypatch.setattr(selecting, "searched", forced("disarm"))
    svi = auto()
    history = fit(svi, am.EarlyStopping("train_loss", patience=50), Do(enough, 2), max_steps=None)
    assert "site 'c': moving_average -> disarm: because" in history.notices[1]
