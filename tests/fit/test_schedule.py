import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import DataLoader

import amortized as am
from amortized.errors import CheckpointError, UsageError
from amortized.fit.schedule import KLWeight, LearningRateSchedule, schedule_of
from tests.fit import tiny
from tests.fit.harness import BATCH, SIZE, Do, Stop, Stream, fit, pair, stop

# The weight of the KL


@pytest.mark.parametrize(
    ("weight", "warmup", "moment", "expected"),
    [
        (1.0, None, {"step": 0, "epochs": 0.0}, 1.0),
        (0.3, None, {"step": 9, "epochs": 9.0}, 0.3),
        (0.0, None, {"step": 9, "epochs": 9.0}, 0.0),
        (2.0, 4, {"step": 0, "epochs": 1.0}, 0.5),
        (2.0, 4, {"step": 0, "epochs": 9.0}, 2.0),
        (lambda step: 0.1 * step, None, {"step": 3, "epochs": 0.0}, 0.1 * 3),
        (lambda step: 1 + step, 2, {"step": 3, "epochs": 1.0}, 2.0),
        (1, None, {"step": 0, "epochs": 0.0}, 1.0),
    ],
)
def test_the_weight_at_a_moment(weight, warmup, moment, expected) -> None:
    assert KLWeight(weight, warmup)(**moment) == expected


def test_the_weight_may_be_a_number_of_numpy() -> None:
    for weight in (np.float32(0.5), lambda step: np.float64(0.5)):
        found = KLWeight(weight)(step=0, epochs=0.0)
        assert found == 0.5 and type(found) is float


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "1", None, torch.tensor(1.0)])
def test_wrong_weights_are_refused(wrong) -> None:
    with pytest.raises(UsageError, match=r"kl_weight=.*expected a number of at least 0"):
        KLWeight(wrong)
    with pytest.raises(UsageError, match=r"kl_weight=.* at step 3: expected"):
        KLWeight(lambda step: wrong if step == 3 else 1.0)(step=3, epochs=0.0)
    with pytest.raises(UsageError, match=r"n_epochs_kl_warmup=0: expected at least 1"):
        KLWeight(1.0, warmup=0)


def weights_seen(train=None, **options) -> tuple[list[float], am.History, am.SVI]:
    """The weight of each batch, as the estimate of the loss saw it."""
    svi, seen = pair(), []
    real = svi.loss.estimate

    def estimate(*args, kl_weight=1.0, **more):
        if torch.is_grad_enabled():
            seen.append(kl_weight)
        else:
            assert kl_weight == 1.0, "validation and warm-up have full weight"
        return real(*args, kl_weight=kl_weight, **more)

    svi.loss.estimate = estimate
    history = fit(svi, train, tiny.data(8), **options)
    return seen, history, svi


def test_a_warm_up_grows_from_batch_to_batch() -> None:
    seen, history, _ = weights_seen(max_epochs=3, n_epochs_kl_warmup=2)
    expected = [min(1.0, number / 10) for number in range(15)]
    assert seen == pytest.approx(expected) and history["kl_weight"] == pytest.approx([0.4, 0.9, 1])


def test_a_warm_up_over_a_stream_grows_from_epoch_to_epoch() -> None:
    stream = DataLoader(Stream(tiny.data(24)), 8)
    seen, _, _ = weights_seen(stream, max_epochs=3, n_epochs_kl_warmup=2)
    assert seen == [0.0] * 3 + [0.5] * 3 + [1.0] * 3


def test_a_function_is_asked_with_the_step() -> None:
    steps = []
    weight = lambda step: steps.append(step) or 0.5  # noqa: E731
    weights_seen(max_epochs=1, kl_weight=weight, accumulate_grad_batches=2)
    assert steps == [0, 0, 1, 1, 2]


def test_the_column_is_there_only_if_the_weight_was_ever_not_one() -> None:
    assert "kl_weight" not in weights_seen(max_epochs=2)[1]
    assert "kl_weight" not in weights_seen(max_epochs=2, kl_weight=lambda step: 1)[1]
    within = weights_seen(max_epochs=2, kl_weight=lambda step: 1.0 if step else 0.5)[1]
    assert within["kl_weight"] == [1.0, 1.0]
    later = weights_seen(max_epochs=2, kl_weight=lambda step: 1.0 if step < 6 else 0.5)[1]
    assert math.isnan(later["kl_weight"][0]) and later["kl_weight"][1] == 0.5


def weighed(m: torch.Tensor, x: torch.Tensor, size: int, weight: float) -> torch.Tensor:
    """The loss per datum of `tiny.global_model` with all mass at m."""
    likelihood = tiny.normal_log_prob(x, 0.0) + x * m - m**2 / 2
    prior = -(m**2) / 2 - 0.5 * math.log(2 * math.pi)
    return -likelihood.mean() - weight * prior / size


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"kl_weight": 0.3}, 0.3),
        ({"kl_weight": lambda step: 0.7 - step}, 0.7),
        ({"n_epochs_kl_warmup": 5}, 0.0),
        ({}, 1.0),
    ],
    ids=["number", "function", "warm-up", "none"],
)
@pytest.mark.float64
def test_the_first_step_is_that_of_a_hand_computation(options, weight: float) -> None:
    x, sgd = tiny.data(SIZE), functools.partial(torch.optim.SGD)
    svi = am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=0.1, optimizer=sgd)
    history = fit(svi, x, x, batch_size=SIZE, max_steps=1, **options)
    m = torch.tensor(0.5, requires_grad=True)
    loss = weighed(m, x, SIZE, weight)
    (gradient,) = torch.autograd.grad(loss, m)
    assert history["train_loss"][0] == pytest.approx(loss.item(), rel=1e-12)
    assert history["grad_norm"][0] == pytest.approx(abs(gradient.item()), rel=1e-12)
    after = m.detach() - 0.1 * gradient
    assert svi.params()["m_loc"].item() == pytest.approx(after.item(), rel=1e-12)
    # the bound, its terms and validation do not carry the weight
    likelihood = tiny.normal_log_prob(x, 0.5).mean().item()
    prior = tiny.normal_log_prob(torch.tensor(0.5), 0.0).item() / SIZE
    assert history["kl"][0] == pytest.approx(-prior, rel=1e-9)
    assert history["reconstruction"][0] == pytest.approx(likelihood, rel=1e-9)
    assert history["train_elbo"][0] == pytest.approx(likelihood + prior, rel=1e-9)
    assert history["val_loss"][0] == pytest.approx(weighed(after, x, SIZE, 1.0).item(), rel=1e-9)
    assert history["val_elbo"][0] == -history["val_loss"][0]


@pytest.mark.float64
@pytest.mark.parametrize("estimator", ["enumerate", "score_function"])
def test_the_weight_reaches_every_estimator(estimator: str) -> None:
    """Bits that are enumerated, or so many that their mean is close to the exact gradient."""
    weight, logit, enumerated = 0.3, 0.4, estimator == "enumerate"
    x = tiny.data(6).repeat(1 if enumerated else 2000)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = pyro.param("logit", torch.tensor(logit)).expand(len(x))
            pyro.sample("c", dist.Bernoulli(logits=logits))

    sgd = functools.partial(torch.optim.SGD)
    loss = am.VariationalLoss(estimators={"c": estimator})
    svi = am.SVI(model, guide, loss, lr=1.0, optimizer=sgd)
    found = []
    for _ in range(2 if enumerated else 20):
        svi._stepper.accumulate(x, am.DataPlate(None, len(x)), weight)
        before = svi.params()["logit"].item()
        svi._stepper.apply()
        found.append(before - svi.params()["logit"].item())
        with torch.no_grad():
            svi._stepper.parameters.tensors()["store.logit"].fill_(logit)
    phi = torch.tensor(logit, requires_grad=True)
    q = torch.stack([1 - torch.sigmoid(phi), torch.sigmoid(phi)])
    kl = (q * (q / torch.tensor([0.7, 0.3])).log()).sum()
    likelihood = sum(q[c] * tiny.normal_log_prob(x, 2.0 * c - 1).mean() for c in (0, 1))
    (exact,) = torch.autograd.grad(weight * kl - likelihood, phi)
    error = torch.tensor(found).std().item() / math.sqrt(len(found))
    assert abs(sum(found) / len(found) - exact.item()) <= 4 * error + 1e-12 and error < 0.01


# Learning rates


def rates_seen(svi: am.SVI) -> Any:
    """A callback that keeps the rate with which each step was taken."""
    seen: list[float] = []

    def look(state) -> None:
        assert svi.optimizer is not None
        seen.append(svi.optimizer.param_groups[0]["lr"])

    return seen, Do(look, *range(1, 99))


STEP = functools.partial(torch_schedulers.StepLR, step_size=1, gamma=0.5)


def test_by_epoch_and_by_step() -> None:
    svi = pair(lr=0.8)
    seen, watch = rates_seen(svi)
    history = fit(svi, max_epochs=3, scheduler=STEP, callbacks=[watch])
    # the hook comes after the scheduler: a rate of its own for every epoch
    assert seen == [0.8] * 5 + [0.4] * 5 + [0.2] * 5 and history["lr"] == [0.8, 0.4, 0.2]
    svi = pair(lr=0.8)
    seen, watch = rates_seen(svi)
    fit(svi, max_epochs=1, scheduler=STEP, scheduler_interval="step", callbacks=[watch])
    assert seen == [0.8 / 2**n for n in range(1, 6)]


def test_a_second_schedule_starts_where_the_first_one_ended() -> None:
    halved = functools.partial(torch_schedulers.ExponentialLR, gamma=0.5)
    svi = pair(lr=0.8)
    first, second, third = (
        fit(svi, max_epochs=2, scheduler=scheduler)["lr"] for scheduler in (halved, halved, None)
    )
    assert (first, second, third) == ([0.8, 0.4], [0.2, 0.1], [0.05, 0.05])
    assert svi.optimizer is not None
    for group in svi.optimizer.param_groups:
        group["lr"] = 0.4
    assert fit(svi, max_epochs=2, scheduler=halved)["lr"] == [0.4, 0.2]


def test_steps_of_the_scheduler_are_those_of_the_optimizer() -> None:
    svi = pair(lr=0.8)
    options = {"scheduler": STEP, "scheduler_interval": "step", "accumulate_grad_batches": 2}
    history = fit(svi, max_epochs=1, **options)
    assert svi._stepper.steps == 3 and history["lr"] == [0.1]


class Watching(torch_schedulers.ReduceLROnPlateau):
    """Keeps what it is shown."""

    seen: list[float]

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        Watching.seen = []

    def step(self, metrics, epoch=None) -> None:
        Watching.seen.append(float(metrics))
        super().step(metrics, epoch)


def test_a_plateau_is_one_of_the_validation_loss() -> None:
    history = fit(pair(), None, tiny.data(8), max_epochs=3, scheduler=Watching)
    assert Watching.seen == history["val_loss"]
    history = fit(pair(), max_epochs=3, scheduler=Watching)
    assert Watching.seen == history["train_loss"]


def test_an_epoch_without_validation_says_nothing_to_it() -> None:
    options = {"max_epochs": 5, "check_val_every_n_epoch": 2, "scheduler": Watching}
    history = fit(pair(), None, tiny.data(8), **options)
    assert Watching.seen == [history["val_loss"][1], history["val_loss"][3]]


def test_a_plateau_lowers_the_rate() -> None:
    plateau = functools.partial(torch_schedulers.ReduceLROnPlateau, patience=0, threshold=1e9)
    history = fit(pair(lr=0.1), None, tiny.data(8), max_epochs=4, scheduler=plateau)
    assert history["lr"] == pytest.approx([0.1, 0.01, 0.001, 0.0001])


def test_parameters_that_come_late_get_the_rate_of_their_group() -> None:
    def guide(x):
        loc = pyro.param("early", torch.zeros(()))
        if len(x) == 4:
            loc = loc + pyro.param("late", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def run(scheduler: Callable[..., Any] | None, lr: float = 0.8) -> am.SVI:
        svi = am.SVI(tiny.local_model, guide, lr=lr, optimizer=functools.partial(torch.optim.SGD))
        options = {"scheduler": scheduler, "scheduler_interval": "step"}
        fit(svi, DataLoader(tiny.data(12), BATCH), max_epochs=2, seed=0, **options)
        return svi

    svi = run(functools.partial(torch_schedulers.LambdaLR, lr_lambda=lambda step: 0.5**step))
    assert svi.optimizer is not None
    (group,) = svi.optimizer.param_groups
    assert len(group["params"]) == 2 and group["lr"] == 0.8 / 16
    # the late one is first moved at the second step, with half of the rate
    slow = functools.partial(torch_schedulers.LambdaLR, lr_lambda=lambda step: float(step != 1))
    assert run(slow).params()["late"] != run(None).params()["late"] != 0.0


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch_schedulers.StepLR, r"cannot be made of an optimizer alone: .*step_size.*partial"),
        (torch_schedulers.OneCycleLR, r"cannot be made of an optimizer alone"),
        (functools.partial(torch_schedulers.OneCycleLR, max_lr=0.1), r"alone: You must define"),
        (lambda optimizer: 3, r"scheduler made a int: expected a torch.optim.lr_scheduler"),
        (lambda optimizer: None, r"scheduler made a NoneType"),
        ("step", r"scheduler=str\(...\): expected a callable"),
        (STEP(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)), r"scheduler=StepLR"),
    ],
)
def test_wrong_factories_are_refused_before_the_first_step(factory, message: str) -> None:
    svi = pair()
    with pytest.raises(UsageError, match=message):
        fit(svi, max_epochs=1, scheduler=factory)
    assert svi._stepper.steps == 0


def test_wrong_intervals_are_refused() -> None:
    with pytest.raises(UsageError, match="scheduler_interval='batch': expected 'epoch' or 'step'"):
        fit(pair(), max_epochs=1, scheduler=STEP, scheduler_interval="batch")
    with pytest.raises(UsageError, match="watches the validation loss: use scheduler_interval="):
        options = {"scheduler": torch_schedulers.ReduceLROnPlateau, "scheduler_interval": "step"}
        fit(pair(), max_epochs=1, **options)
    assert schedule_of(None, "epoch") is None


def test_a_schedule_that_is_too_short_is_explained() -> None:
    short = functools.partial(torch_schedulers.OneCycleLR, max_lr=0.1, total_steps=7)
    with pytest.raises(UsageError, match=r"OneCycleLR cannot move on: .*; make it longer"):
        fit(pair(), max_epochs=2, scheduler=short, scheduler_interval="step")


EVERY = {
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 6},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "PolynomialLR": {"total_iters": 12},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
}


def of_two(optimizer: torch.optim.Optimizer) -> Any:
    parts = [torch_schedulers.LinearLR(optimizer), torch_schedulers.ExponentialLR(optimizer, 0.9)]
    return torch_schedulers.SequentialLR(optimizer, parts, milestones=[6])


FACTORIES = {
    name: functools.partial(getattr(torch_schedulers, name), **EVERY[name]) for name in EVERY
}
FACTORIES["SequentialLR"] = of_two


# SequentialLR of older versions of torch calls its parts in a way that torch warns of
OLD = pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")


@OLD
@pytest.mark.parametrize("name", FACTORIES)
def test_every_scheduler_can_be_scaled_at_any_moment(name: str) -> None:
    """From then on the rates are half of what they would have been."""

    def rates(halved_after: int | None) -> list[float]:
        group = {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1}
        optimizer = torch.optim.SGD([group], momentum=0.9)
        schedule, found = LearningRateSchedule(FACTORIES[name], "step"), []
        schedule.attach(optimizer)
        for number in range(12):
            if number == halved_after:
                optimizer.param_groups[0]["lr"] *= 0.5
                schedule.scale(0.5)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        return found

    whole, halved = rates(None), rates(4)
    assert halved[:4] == whole[:4]
    assert halved[4:] == pytest.approx([rate / 2 for rate in whole[4:]], rel=1e-12)


@OLD
@pytest.mark.parametrize("name", FACTORIES)
def test_every_scheduler_survives_a_checkpoint(tmp_path, name: str) -> None:
    options = {"max_epochs": 2, "seed": 0, "scheduler": FACTORIES[name]}
    options["scheduler_interval"] = "step"
    whole = pair(lr=0.1)
    expected, watch = rates_seen(whole)
    fit(whole, callbacks=[watch], **options)
    cut = pair(lr=0.1)
    first, watch = rates_seen(cut)
    saving = am.ModelCheckpoint(tmp_path, save_on_exception=True)
    with pytest.raises(Stop):
        fit(cut, callbacks=[watch, saving, Do(stop, 7)], **options)
    again = pair(lr=0.1)
    rest, watch = rates_seen(again)
    fit(again, callbacks=[watch], resume_from=tmp_path, **options)
    assert first + rest == expected and len(rest) == 3


def test_the_state_of_another_scheduler_is_refused(tmp_path) -> None:
    fit(pair(), max_epochs=1, scheduler=STEP, callbacks=[am.ModelCheckpoint(tmp_path)])
    other = functools.partial(torch_schedulers.ExponentialLR, gamma=0.9)
    with pytest.raises(CheckpointError, match="state of StepLR, and this is a ExponentialLR"):
        fit(pair(), max_epochs=2, scheduler=other, resume_from=tmp_path)


def test_a_scale_survives_a_checkpoint() -> None:
    """Of a scheduler that computes its rate anew and not from the rate before."""
    halving = functools.partial(torch_schedulers.LambdaLR, lr_lambda=lambda step: 0.5**step)
    states: list[dict[str, Any]] = []
    for _ in range(2):
        optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.8}])
        schedule = LearningRateSchedule(halving, "step")
        assert schedule.state_dict() == {}
        schedule.load_state_dict({"kind": "LambdaLR"})  # before it is attached: nothing to do
        schedule.attach(optimizer)
        if states:
            schedule.load_state_dict(states[0])
        else:
            schedule.scale(0.5)
            states.append(schedule.state_dict())
        optimizer.param_groups[0]["lr"] = 0.4
        optimizer.step()
        schedule.after_step()
        assert optimizer.param_groups[0]["lr"] == 0.2


def test_a_weight_is_a_function_of_the_step() -> None:
    with pytest.raises(UsageError, match="kl_weight: it is called with the number of the step"):
        KLWeight(lambda: 1.0)  # pyright: ignore
    assert KLWeight(functools.partial(max, 0.5))(step=3, epochs=0.0) == 3.0
