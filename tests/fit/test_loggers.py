import math
import sys

import pytest

import amortized as am
from amortized.errors import UsageError
from amortized.fit.loggers import as_loggers
from tests.fit import tiny
from tests.fit.harness import Recorded, fit, pair


def test_any_object_gets_the_numbers_of_each_epoch() -> None:
    logger = Recorded()
    history = fit(pair(), None, tiny.data(8), max_epochs=3, logger=logger)
    assert [step for _, step in logger.seen] == [5, 10, 15]
    for number, (metrics, _) in enumerate(logger.seen):
        assert metrics == {key: values[number] for key, values in history.items()}
        assert all(type(value) is float for value in metrics.values())


def test_an_epoch_without_a_number_logs_none() -> None:
    logger = Recorded()
    fit(pair(), None, tiny.data(8), max_epochs=2, check_val_every_n_epoch=2, logger=logger)
    assert "val_loss" not in logger.seen[0][0] and "val_loss" in logger.seen[1][0]
    assert all(math.isfinite(value) for metrics, _ in logger.seen for value in metrics.values())


def test_several_at_once() -> None:
    loggers = [Recorded(), Recorded()]
    fit(pair(), max_epochs=1, logger=loggers)
    assert loggers[0].seen == loggers[1].seen != []
    assert as_loggers(None) == [] and len(as_loggers(iter(loggers))) == 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (3, "found int"),
        ("runs", "found str"),
        ([Recorded(), print], "found builtin_function_or_method"),
        (Recorded, "found the class Recorded"),
        (am.TensorBoard, "found the class TensorBoard"),
    ],
)
def test_what_does_not_log_is_refused_before_training(wrong, named: str) -> None:
    svi = pair()
    with pytest.raises(UsageError, match=rf"logger: {named}; expected an object with a method"):
        fit(svi, max_epochs=1, logger=wrong)
    assert svi._stepper.steps == 0


def test_tensorboard_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        am.TensorBoard("runs")


def test_nothing_is_written_before_the_first_epoch(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    board = am.TensorBoard(tmp_path / "runs")
    assert repr(board) == f"TensorBoard({str(tmp_path / 'runs')!r})"
    assert not (tmp_path / "runs").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_a_curve_for_each_key(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(pair(), None, tiny.data(8), max_epochs=3, logger=am.TensorBoard(tmp_path), seed=0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(history)
    for key, values in history.items():
        found = events.Scalars(key)
        assert [event.step for event in found] == [5, 10, 15]
        assert [event.value for event in found] == pytest.approx(values, rel=1e-6)
