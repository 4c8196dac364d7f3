import copy

import pytest
import torch

from amortized.errors import UsageError
from amortized.fit.callbacks import Callback, EachEpoch, EarlyStopping, FitState, as_callbacks
from amortized.fit.history import History
from amortized.fit.parameters import Parameters
from tests.fit import tiny


def feed(stopping: EarlyStopping, values: list[float], key: str = "val_loss") -> FitState:
    """Lets it see one value an epoch until it stops; the model's noise is the epoch's number."""
    model = tiny.ModuleModel()
    state = FitState(Parameters(model, tiny.exact_guide, torch.nn.Identity()), History())
    stopping.on_fit_start(state)
    for value in values:
        state.epoch += 1
        with torch.no_grad():
            model.noise_unconstrained.fill_(float(state.epoch))
        state.history.record({key: value})
        stopping.on_train_epoch_end(state)
        if state.stop:
            break
    stopping.on_fit_end(state)
    return state


def noise(state: FitState) -> float:
    return state.parameters.tensors()["model.noise_unconstrained"].item()


def test_it_stops_after_patience_checks_without_improvement() -> None:
    state = feed(EarlyStopping(patience=2), [3.0, 2.0, 2.5, 2.5, 1.0])
    assert (state.epoch, state.stop) == (4, "early stopped")


def test_an_improvement_starts_the_count_again() -> None:
    state = feed(EarlyStopping(patience=2), [3.0, 3.5, 2.0, 2.5, 1.0])
    assert (state.epoch, state.stop) == (5, None)


def test_small_improvements_do_not_count() -> None:
    state = feed(EarlyStopping(patience=2, min_delta=0.5), [3.0, 2.8, 2.6, 2.4])
    assert state.epoch == 3


def test_more_can_be_better() -> None:
    stopping = EarlyStopping("val_elbo", patience=1, mode="max")
    assert feed(stopping, [-3.0, -2.0, -2.5], "val_elbo").epoch == 3


def test_an_epoch_without_a_check_is_passed_over() -> None:
    nan = float("nan")
    assert feed(EarlyStopping(patience=2), [1.0, 2.0, nan, nan, 2.0]).epoch == 5


@pytest.mark.parametrize(("restore", "expected"), [(True, 2.0), (False, 4.0)])
def test_the_best_parameters_come_back_if_asked(restore: bool, expected: float) -> None:
    stopping = EarlyStopping(patience=2, restore_best=restore)
    assert noise(feed(stopping, [3.0, 2.0, 2.5, 2.5])) == expected


def test_they_come_back_too_when_the_epochs_ran_out() -> None:
    assert noise(feed(EarlyStopping(patience=9), [3.0, 2.0, 2.5])) == 2.0


def test_it_can_be_used_again() -> None:
    stopping = EarlyStopping(patience=1)
    feed(stopping, [1.0, 2.0])
    assert feed(stopping, [5.0, 4.0]).stop is None


def test_a_missing_monitor_is_explained() -> None:
    with pytest.raises(UsageError, match=r"no validation data: pass val="):
        EarlyStopping().refuse_unknown_monitor(validates=False)
    with pytest.raises(UsageError, match="'elbo'; recorded are val_loss"):
        EarlyStopping("elbo").refuse_unknown_monitor(validates=True)
    EarlyStopping("kl/z").refuse_unknown_monitor(validates=False)
    with pytest.raises(UsageError, match="'kl/z'; recorded are train_loss"):
        feed(EarlyStopping("kl/z"), [1.0], "train_loss")


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"mode": "up"}], ids=["patience", "mode"])
def test_arguments_are_checked(arguments) -> None:
    with pytest.raises(UsageError, match="expected"):
        EarlyStopping(**arguments)


def test_functions_are_called_each_epoch_and_others_refused() -> None:
    stopping, seen = EarlyStopping(), []
    found = as_callbacks([stopping, seen.append])
    assert found[0] is stopping and isinstance(found[1], EachEpoch)
    state = FitState(Parameters(print, print, torch.nn.Identity()), History())
    found[1].on_train_epoch_end(state)
    assert seen == [state]
    for wrong in (EarlyStopping, 3):
        with pytest.raises(UsageError, match="callbacks: found"):
            as_callbacks([wrong])  # pyright: ignore[reportArgumentType]


def test_every_hook_is_optional() -> None:
    class Nothing(Callback):
        pass

    state = FitState(Parameters(print, print, torch.nn.Identity()), History())
    for hook in ("fit_start", "train_epoch_start", "train_batch_end", "validation_epoch_end"):
        getattr(Nothing(), f"on_{hook}")(state)
    Nothing().on_exception(state, ValueError())


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_early_stopping_goes_on_from_its_state(cut: int, restore: bool) -> None:
    """Its best, its patience so far, and the parameters that will come back."""
    values = [3.0, 2.0, 2.5, 2.5, 2.5]
    options = {"patience": 2, "restore_best": restore, "min_delta": 0.1}
    whole = feed(EarlyStopping(**options), values)
    first, again = EarlyStopping(**options), EarlyStopping(**options)
    model = tiny.ModuleModel()
    state = FitState(Parameters(model, tiny.exact_guide, torch.nn.Identity()), History())
    first.on_fit_start(state)
    for stopping, part in ((first, values[:cut]), (again, values[cut:])):
        if stopping is again:
            again.on_fit_start(state)
            again.load_state_dict(copy.deepcopy(first.state_dict()))
        for value in part:
            if state.stop:
                break
            state.epoch += 1
            with torch.no_grad():
                model.noise_unconstrained.fill_(float(state.epoch))
            state.history.record({"val_loss": value})
            stopping.on_train_epoch_end(state)
    again.on_fit_end(state)
    assert (state.epoch, state.stop) == (whole.epoch, whole.stop) == (4, "early stopped")
    assert noise(state) == noise(whole)


def test_a_callback_without_a_state_is_left_alone() -> None:
    assert EachEpoch(print).state_dict() == {}
    EachEpoch(print).load_state_dict({})


def test_functions_take_the_state() -> None:
    with pytest.raises(UsageError, match="callbacks: it is called with the state of training"):
        as_callbacks([lambda: None])  # pyright: ignore
    with pytest.raises(UsageError, match="callbacks=None: expected a list"):
        as_callbacks(None)  # pyright: ignore
    with pytest.raises(UsageError, match=r"EarlyStopping\(monitor=3\)"):
        EarlyStopping(3)  # pyright: ignore
