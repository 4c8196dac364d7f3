import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import NonFiniteError, UsageError
from amortized.fit.checkpoint import read
from amortized.fit.recovery import recovery_of
from tests.fit import tiny
from tests.fit.harness import BATCH, SIZE, Do, Stop, fit, in_order, pair, stop
from tests.fit.test_resume import everything, same

SGD = torch.optim.SGD


def trap(parameter: Tensor, flag: Tensor) -> Tensor:
    """Zero; where the flag is set, its gradient is NaN."""
    if flag.any():
        return (parameter - parameter.detach()).abs().sqrt()
    return torch.zeros(())


class Noisy(nn.Module):
    """A guide with dropout, batch norm, and a buffer that is replaced and not written to."""

    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x, flag):
        if self.training:
            self.replaced = 0.9 * self.replaced + 0.1 * x.mean()
        loc = self.head(self.layers(x.unsqueeze(-1))).squeeze(-1) + self.replaced
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + trap(self.head.bias, flag), 1.0))


def bit_model(x, flag):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def bit_guide(x, flag):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=slope * x + trap(slope, flag)))


def noisy() -> am.SVI:
    pyro.set_rng_seed(0)
    return am.SVI(lambda x, flag: tiny.local_model(x), Noisy(), lr=0.01)


def bits(baseline: str) -> am.SVI:
    pyro.set_rng_seed(0)
    return am.SVI(bit_model, bit_guide, am.VariationalLoss(estimators=baseline), lr=0.02)


PAIRS: dict[str, Callable[[], am.SVI]] = {
    "batch norm": noisy,
    "a moving average": lambda: bits("moving_average"),
    "a neural baseline": lambda: bits("neural_baseline"),
}


def flagged(kind: str, *bad: int) -> DataLoader[Any]:
    """Batches in order; in some, the data are NaN or infinite, or the flag is set."""
    x, flag = tiny.data(SIZE), torch.zeros(SIZE)
    for number in bad:
        rows = slice(number * BATCH, (number + 1) * BATCH)
        if kind == "gradient":
            flag[rows] = 1.0
        else:
            x[rows] = float(kind)
    return DataLoader(TensorDataset(x, flag), BATCH)


def tensors(svi: am.SVI) -> dict[str, Any]:
    return everything(svi, am.History())


def still(lr: float = 0.1, **options: Any) -> am.SVI:
    """A pair without noise."""
    return am.SVI(tiny.global_model, tiny.point_guide(0.5), lr=lr, **options)


def place(svi: am.SVI) -> float:
    """The only parameter of it."""
    return svi.params()["m_loc"].item()


OF_ALL = am.DataPlate("data", SIZE)


# What a bad batch leaves behind


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_bad_batch_moves_nothing(name: str, kind: str) -> None:
    """As if training had ended before it: parameters, buffers, baselines and optimizer."""
    until, beyond = PAIRS[name](), PAIRS[name]()
    fit(until, flagged(kind, 3), max_steps=3, seed=1)
    with pytest.raises(NonFiniteError, match=r"^epoch 1, batch 4, step 4: (the|site)"):
        fit(beyond, flagged(kind, 3), max_epochs=1, seed=1)
    same(tensors(until), tensors(beyond))


@pytest.mark.parametrize("kind", ["nan", "gradient"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_bad_group_moves_nothing(name: str, kind: str) -> None:
    """Of a group whose gradient is bad, the good batches have left nothing either."""
    until, beyond = PAIRS[name](), PAIRS[name]()
    fit(until, flagged(kind, 3), max_steps=1, accumulate_grad_batches=2, seed=1)
    with pytest.raises(NonFiniteError, match=r"^epoch 1, batch 4, step 2: (the|site)"):
        fit(beyond, flagged(kind, 3), max_epochs=1, accumulate_grad_batches=2, seed=1)
    found, expected = tensors(beyond), tensors(until)
    if kind == "nan":  # buffers have seen the first batch of the group, which was good
        buffers = ("running", "num_batches", "replaced", "average", ".baseline.")
        for of in (found, expected):
            kept = {n: t for n, t in of["tensors"].items() if not any(b in n for b in buffers)}
            assert 0 < len(kept)
            of["tensors"] = kept
    same(expected, found)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_training_goes_on_without_a_trace_of_it(name: str, kind: str, policy: str) -> None:
    svi = PAIRS[name]()
    history = fit(svi, flagged(kind, 1, 3), max_epochs=2, non_finite=policy, seed=1)
    assert all(tensor.isfinite().all() for tensor in svi._stepper.parameters.tensors().values())
    assert math.isfinite(history["train_loss"][-1]) and math.isfinite(history["grad_norm"][-1])
    key = "skipped_steps" if policy == "skip" else "rollbacks"
    assert history[key] == [2.0, 2.0]


def test_a_buffer_that_moves_late_is_watched_too() -> None:
    class Late(Noisy):
        def forward(self, x, flag):
            self.layers[1].train(self.training and float(x[0]) != first)
            super().forward(x, flag)

    first = float(tiny.data(SIZE)[0])
    pyro.set_rng_seed(0)
    guide = Late()
    svi = am.SVI(lambda x, flag: tiny.local_model(x), guide)
    fit(svi, flagged("nan", 3), max_epochs=1, non_finite="skip")
    assert guide.layers[1].num_batches_tracked.item() == 3
    assert guide.layers[1].running_mean.isfinite().all()


def test_the_baseline_of_a_latent_that_comes_late_is_watched_too() -> None:
    """A branch meets another bit from the third batch on, and the fifth batch is bad."""
    third = float(tiny.data(SIZE)[2 * BATCH])
    seen: list[bool] = []

    def late(x: Tensor) -> bool:
        seen.append(float(x[0]) == third)
        return any(seen)

    def model(x, flag):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            if any(seen):
                c = c + pyro.sample("d", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x, flag):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x + trap(slope, flag)))
            if late(x):
                pyro.sample("d", dist.Bernoulli(logits=slope * x))

    found = []
    for steps in (4, 5):
        seen.clear()
        svi = am.SVI(model, guide, am.VariationalLoss(estimators="moving_average"))
        fit(svi, flagged("gradient", 4), max_steps=steps, non_finite="skip", max_epochs=1, seed=1)
        averages = {n: t for n, t in tensors(svi)["tensors"].items() if n.endswith("average")}
        assert svi._stepper.steps == 4 and len(averages) == 2
        found.append(averages)
    assert found[0] == found[1] and all(average != 0.0 for average in found[0].values())


# Raise


def test_the_message_says_where_and_what_is_left(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        fit(pair(), in_order(3), max_epochs=1, callbacks=[saving], seed=0)
    sentence = caught.value.args[0]
    assert sentence.startswith("epoch 1, batch 4, step 4: the loss is nan")
    for part in (
        "site 'x' of the model",
        "first: site 'z' of the guide: a parameter of its Normal",
    ):
        assert part in sentence
    assert f"(the last good checkpoint is {tmp_path / 'step-00000002'})" in sentence
    assert "local" not in caught.value.table and "log-probability" in caught.value.table
    assert caught.value.table in str(caught.value)
    # nothing was saved of the moment itself, and the last good one goes on
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    svi = pair()
    fit(svi, in_order(), max_epochs=1, resume_from=tmp_path)
    assert svi._stepper.steps == 5


def test_the_gradient_names_parameters() -> None:
    with pytest.raises(
        NonFiniteError, match=r"norm of the gradient is nan: that of guide.head.bias"
    ):
        fit(noisy(), flagged("gradient", 3), max_epochs=1)


def test_the_last_good_checkpoint_is_known_after_a_resume(tmp_path) -> None:
    fit(pair(), in_order(), max_epochs=1, callbacks=[am.ModelCheckpoint(tmp_path)])
    with pytest.raises(NonFiniteError, match=r"the last good checkpoint is .*step-00000005\)"):
        fit(pair(), in_order(1), max_epochs=2, resume_from=tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        fit(pair(), in_order(1), max_epochs=2)
    assert "checkpoint" not in str(caught.value)


# Skip


@pytest.mark.float64
def test_a_skipped_batch_is_as_if_it_were_not_there() -> None:
    """A program without noise."""
    with_bad, without = still(data_plate=OF_ALL), still(data_plate=OF_ALL)
    fit(with_bad, in_order(1, 4), max_epochs=1, non_finite="skip")
    good = torch.cat([tiny.data(SIZE)[:8], tiny.data(SIZE)[16:32]])
    fit(without, DataLoader(good, BATCH), max_epochs=1)
    assert with_bad._stepper.steps == 3 and place(with_bad) == place(without)


@pytest.mark.float64
def test_a_group_goes_on_without_its_bad_batch() -> None:
    """Groups of batches 0 and (1), 2 and 3, (4): two steps."""
    svi, hand = still(data_plate=OF_ALL), still(data_plate=OF_ALL)
    options = {"non_finite": "skip", "accumulate_grad_batches": 2, "max_epochs": 1}
    history = fit(svi, in_order(1, 4), **options)
    x = tiny.data(SIZE)
    for group in ([x[:8]], [x[16:24], x[24:32]]):
        for batch in group:
            hand._stepper.accumulate(batch, OF_ALL)
        hand._stepper.apply()
    assert svi._stepper.steps == 2 and history["skipped_steps"] == [2.0]
    assert place(svi) == place(hand)


def test_skips_are_counted_by_epoch() -> None:
    history = fit(pair(), in_order(1, 3), max_epochs=3, non_finite="skip")
    assert history["skipped_steps"] == [2.0] * 3
    assert "skipped_steps" not in fit(pair(), in_order(), max_epochs=2, non_finite="skip")


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_so_many_skips_in_a_row_and_no_more(kind: str) -> None:
    row = flagged(kind, 1, 2, 3)
    assert fit(noisy(), row, max_epochs=1, non_finite="skip", non_finite_limit=3).epochs == 1
    with pytest.raises(
        NonFiniteError, match=r"2 batches in a row were skipped .* no better: epoch 1"
    ):
        fit(noisy(), row, max_epochs=1, non_finite="skip", non_finite_limit=2)


def test_a_good_step_ends_the_row() -> None:
    history = fit(
        noisy(), flagged("nan", 1, 3), max_epochs=3, non_finite="skip", non_finite_limit=1
    )
    assert history["skipped_steps"] == [2.0] * 3


def test_counts_go_on_after_a_resume(tmp_path) -> None:
    options = {"max_epochs": 2, "non_finite": "skip", "non_finite_limit": 2, "seed": 0}
    whole = fit(noisy(), flagged("nan", 1, 2), **options)
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path)
        fit(noisy(), flagged("nan", 1, 2), callbacks=[saving, Do(stop, 2)], **options)
    again = fit(noisy(), flagged("nan", 1, 2), resume_from=tmp_path, **options)
    assert whole["skipped_steps"] == again["skipped_steps"] == [2.0, 2.0]
    assert whole["train_loss"] == again["train_loss"]


def test_a_row_goes_on_after_a_resume() -> None:
    first = recovery_of("skip", 2, None, None)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        first.recover(NonFiniteError("bad"))
    again = recovery_of("skip", 2, None, None)  # pyright: ignore[reportArgumentType]
    again.load_state_dict(first.state_dict())
    with pytest.raises(NonFiniteError, match="2 batches in a row"):
        again.recover(NonFiniteError("bad"))
    # another policy's numbers are no trouble
    recovery_of("raise", 2, None, None).load_state_dict(first.state_dict())  # pyright: ignore


# Rollback


def spoil(state) -> None:
    with torch.no_grad():
        state.parameters.tensors()["store.m_loc"].fill_(math.nan)


@pytest.mark.float64
@pytest.mark.parametrize("optimizer", [SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_a_rollback_goes_back_to_the_start_of_the_epoch_at_half_the_rate(optimizer) -> None:
    """Parameters and optimizer; training goes on with the next batch."""
    x, svi, hand = tiny.data(SIZE), still(optimizer=optimizer), still(optimizer=optimizer)
    options = {"max_epochs": 2, "non_finite": "rollback", "callbacks": [Do(spoil, 7)]}
    history = fit(svi, DataLoader(x, BATCH), **options)
    assert history["rollbacks"][1] == 1.0 and math.isnan(history["rollbacks"][0])
    assert history["lr"] == [0.1, 0.05] and svi._stepper.steps == 9
    fit(hand, DataLoader(x, BATCH), max_epochs=1)
    assert hand.optimizer is not None
    hand.optimizer.param_groups[0]["lr"] = 0.05
    for batch in (x[24:32], x[32:]):
        hand._stepper.step(batch, am.DataPlate(None, SIZE))
    assert place(hand) == place(svi)


@pytest.mark.float64
def test_a_second_failure_goes_back_further() -> None:
    x, svi = tiny.data(SIZE), still(optimizer=SGD)
    starts, found = [], []

    def bad_from_step_8(state) -> None:
        spoil(state) if state.step in (7, 8) else None

    options = {"non_finite": "rollback", "max_epochs": 2, "seed": 0}
    before = Do(lambda state: starts.append(place(svi)) if state.step else starts.append(0.5))
    before.hook = "train_epoch_start"
    real = svi._stepper.load_state_dict
    svi._stepper.load_state_dict = lambda state: (
        real(state),
        found.append((place(svi), svi._stepper.optimizer.rates()["guide"])),
    )
    history = fit(
        svi, DataLoader(x, 4), callbacks=[before, Do(bad_from_step_8, *range(99))], **options
    )
    assert len(found) == history["rollbacks"][0] == 2
    assert [value for value, _ in found] == [starts[0], starts[0]]
    assert history["lr"] == [0.025, 0.025]


@pytest.mark.float64
def test_the_older_moment_is_used_when_the_newer_one_fails_again() -> None:
    svi, starts, found = still(optimizer=SGD), [], []
    real = svi._stepper.load_state_dict

    def restored(state) -> None:
        real(state)
        found.append(place(svi))

    svi._stepper.load_state_dict = restored
    before = Do(lambda state: starts.append(place(svi)) if state.epoch > 1 else None)
    before.hook = "train_epoch_start"
    fit(
        svi,
        DataLoader(tiny.data(SIZE), BATCH),
        max_epochs=3,
        non_finite="rollback",
        callbacks=[before, Do(spoil, 11, 12)],
    )
    epoch_2, epoch_3 = starts
    assert found == [epoch_3, epoch_2]


def test_so_many_rollbacks_and_no_more() -> None:
    bad = Do(spoil, 1, 2, 3)
    options = {"max_epochs": 2, "non_finite": "rollback", "non_finite_limit": 2}
    with pytest.raises(NonFiniteError, match=r"was rolled back 2 times .* fails again: epoch 2"):
        fit(still(), callbacks=[bad], **options)
    with pytest.raises(NonFiniteError, match=r"was rolled back 1 times"):
        fit(still(), callbacks=[Do(spoil, 1, 8)], **{**options, "non_finite_limit": 1})


def test_the_first_batch_may_be_the_bad_one() -> None:
    history = fit(noisy(), flagged("gradient", 0), max_epochs=1, non_finite="rollback")
    assert history["rollbacks"] == [1.0] and history["lr"] == [0.005]


def test_long_epochs_have_moments_in_between() -> None:
    svi, found = still(optimizer=SGD), []
    kept = Do(lambda state: found.append(place(svi)), 100)
    real = svi._stepper.load_state_dict
    svi._stepper.load_state_dict = lambda state: (real(state), found.append(place(svi)))
    loader = DataLoader(tiny.data(120), 1)
    fit(svi, loader, max_epochs=1, non_finite="rollback", callbacks=[kept, Do(spoil, 104)])
    assert len(found) == 2 and found[0] == found[1] != 0.5


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_scheduler_goes_on_from_half_the_rate(interval: str) -> None:
    decay = functools.partial(torch_schedulers.LambdaLR, lr_lambda=lambda n: 0.9**n)
    svi, seen = still(0.8), []
    look = Do(lambda state: seen.append(svi._stepper.optimizer.rates()["guide"]), *range(99))
    fit(
        svi,
        max_epochs=3,
        non_finite="rollback",
        scheduler=decay,
        scheduler_interval=interval,
        callbacks=[look, Do(spoil, 7)],
    )
    moves = [(n - 1) // 5 if interval == "epoch" else n for n in range(1, 15)]
    if interval == "epoch":  # the bad batch is no step: epoch 2 has four of them
        moves = [0] * 5 + [1] * 4 + [2] * 5
    assert seen == pytest.approx(
        [0.8 * 0.9**n * (0.5 if i > 6 else 1) for i, n in enumerate(moves)]
    )


def test_checkpoints_stay_in_order_and_resume_after_a_rollback(tmp_path) -> None:
    """The step of a checkpoint says which is newer, so that it must not go back."""
    options = {"max_epochs": 3, "non_finite": "rollback", "seed": 0}
    saving = am.ModelCheckpoint(tmp_path / "whole", every_n_steps=1, keep_last=3)
    whole, cut, again = still(), still(), still()
    expected = fit(whole, callbacks=[Do(spoil, 7), saving], **options)
    assert saving.last_path is not None and saving.last_path.name.startswith("step-00000014")
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path / "cut", every_n_steps=1)
        fit(cut, callbacks=[Do(spoil, 7), saving, Do(stop, 11)], **options)
    found = fit(again, callbacks=[Do(spoil, 7)], resume_from=tmp_path / "cut", **options)
    same(everything(whole, expected), everything(again, found))


def test_a_resumed_training_can_go_back_at_once(tmp_path) -> None:
    options = {"max_epochs": 2, "non_finite": "rollback", "non_finite_limit": 2, "seed": 0}
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path)
        fit(still(), callbacks=[saving, Do(spoil, 1), Do(stop, 3)], **options)
    history = fit(still(), callbacks=[Do(spoil, 4)], resume_from=tmp_path, **options)
    assert history["rollbacks"] == [1.0, 1.0] and history["lr"] == [0.05, 0.025]
    with pytest.raises(NonFiniteError, match="rolled back 2 times"):
        fit(still(), callbacks=[Do(spoil, 4, 5)], resume_from=tmp_path, **options)


@pytest.mark.parametrize("at", [7, 8, 10, 11, 12, 13])
@pytest.mark.parametrize("bad", [(8,), (8, 9), (12, 13)], ids=str)
def test_a_resume_before_a_rollback_goes_back_to_the_same_moment(tmp_path, bad, at: int) -> None:
    """The newer one or the older one, bit for bit; Adam's state goes back too."""
    options = {"max_epochs": 4, "non_finite": "rollback", "seed": 0}
    whole, again = still(), still()
    expected = fit(whole, callbacks=[Do(spoil, *bad)], **options)
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=1, save_on_exception=False)
    with pytest.raises(Stop):
        fit(still(), callbacks=[Do(spoil, *bad), Do(stop, at + 1), saving], **options)
    found = fit(again, callbacks=[Do(spoil, *bad)], resume_from=tmp_path, **options)
    assert sum(value for value in found["rollbacks"] if value == value) == len(bad)
    same(everything(whole, expected), everything(again, found))


def test_moments_between_epochs_come_at_the_same_steps_after_a_resume(tmp_path) -> None:
    def run(svi, *more, **given) -> am.History:
        loader = DataLoader(tiny.data(120), 1)
        return fit(
            svi, loader, max_epochs=1, non_finite="rollback", seed=0, callbacks=[*more], **given
        )

    whole, again = still(), still()
    expected = run(whole, Do(spoil, 104))
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=40)
    with pytest.raises(Stop):
        run(still(), Do(stop, 81), saving)
    same(
        everything(whole, expected),
        everything(again, run(again, Do(spoil, 104), resume_from=tmp_path)),
    )


def test_a_checkpoint_holds_two_moments_and_no_more(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path)
    fit(still(), max_epochs=9, non_finite="rollback", callbacks=[saving])
    recovery = read(tmp_path).state["moment"]["recovery"]
    assert len(recovery["kept"]) == 2
    fit(still(), max_epochs=9, callbacks=[am.ModelCheckpoint(tmp_path / "raise")])
    assert "kept" not in read(tmp_path / "raise").state["moment"]["recovery"]


def test_a_moment_with_bad_parameters_is_not_kept() -> None:
    """They are bad after the last step of an epoch, before the next one shows it."""
    svi, found = still(optimizer=SGD), []
    real = svi._stepper.load_state_dict
    svi._stepper.load_state_dict = lambda state: (real(state), found.append(place(svi)))
    options = {"max_epochs": 2, "non_finite": "rollback", "non_finite_limit": 1}
    fit(svi, callbacks=[Do(spoil, 5)], **options)
    assert found == [0.5]


# Validation


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_bad_validation_is_a_notice_once_an_epoch(policy: str) -> None:
    history = fit(pair(), None, in_order(1, 2), max_epochs=2, non_finite=policy)
    assert all(map(math.isnan, history["val_loss"])) and len(history.notices) == 2
    for epoch, notice in enumerate(history.notices, 1):
        assert notice.startswith(f"epoch {epoch}, validation batch 2: check the validation data: ")


def test_a_bad_validation_raises_with_epoch_and_batch(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=5)
    with pytest.raises(NonFiniteError) as caught:
        fit(pair(), None, in_order(2), max_epochs=2, callbacks=[saving])
    sentence = caught.value.args[0]
    assert sentence.startswith("epoch 1, validation batch 3: check the validation data: the loss ")
    assert "step-00000005)" in sentence and "log-probability" in caught.value.table


def test_the_report_of_a_bad_validation_is_of_the_draw_that_was_bad() -> None:
    class Moody(nn.Module):
        """NaN at one run in eval mode, and never again."""

        def __init__(self) -> None:
            super().__init__()
            self.runs, self.weight = 0, nn.Parameter(torch.zeros(()))

        def forward(self, x):
            self.runs += not self.training
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.weight, 1.0))
                bad = math.nan if self.runs == 4 else 0.0
                pyro.sample("x", dist.Normal(z, 1.0), obs=x + bad)

    with pytest.raises(NonFiniteError, match=r"the loss is nan: .*observed value is nan in 8 of 8"):
        fit(am.SVI(Moody(), tiny.param_guide), None, tiny.data(8), max_epochs=9)


# Names


def test_names_and_limits_are_checked() -> None:
    with pytest.raises(UsageError, match="non_finite='ignore': expected one of raise, skip, roll"):
        fit(pair(), max_epochs=1, non_finite="ignore")
    with pytest.raises(UsageError, match="non_finite_limit=0: expected at least 1"):
        fit(pair(), max_epochs=1, non_finite="skip", non_finite_limit=0)
