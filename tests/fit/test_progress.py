import io

import pytest
from rich.console import Console

from amortized.fit import progress
from amortized.fit.history import History


def drive(report: progress.Reporter, epochs: int = 3) -> None:
    history = History(epochs)
    for epoch in range(1, epochs + 1):
        for step in range(4):
            report.batch(epoch, 100, 4 * (epoch - 1) + step + 1)
        history.record({"train_loss": 10.0 / epoch, "val_loss": 11.0, "val_elbo": -12.0, "kl": 2.0})
        report.epoch(history)
    report.close(history)


def test_plain_lines_are_few_and_end_with_the_last_epoch() -> None:
    out = io.StringIO()
    drive(progress.Plain(Console(file=out), "/3"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/3  train_loss 10.00  val_loss 11.00  kl 2.00")
    # twelve batches in no time: there is no rate to speak of
    assert lines[1] == "epoch 3/3  train_loss 3.33  val_loss 11.00  kl 2.00"


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PLAIN", -1.0)
    out = io.StringIO()
    drive(progress.Plain(Console(file=out), ""))
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]


def test_the_live_line_shows_the_numbers_and_stays() -> None:
    out = io.StringIO()
    drive(progress.Live(Console(file=out, force_terminal=True, width=120), "/3", 12))
    text = out.getvalue()
    assert "epoch 3/3" in text and "train_loss 3.33" in text and "val_loss 11.00" in text


def test_the_weight_of_the_kl_is_shown_where_there_is_one() -> None:
    shown = {"train_loss": 1.0, "val_loss": 2.0, "kl": 3.0, "kl_weight": 0.25}
    assert (
        progress.summary(shown, 5.0)
        == "train_loss 1.00  val_loss 2.00  kl 3.00  kl_weight 0.25  5 rows/s"
    )


@pytest.mark.parametrize("done", [0, 8])
def test_the_bar_starts_where_training_stands_and_counts_steps(done: int) -> None:
    report = progress.Live(Console(file=io.StringIO(), force_terminal=True), "/3", 12, done)
    (task,) = report._progress.tasks
    assert (task.completed, task.total) == (done, 12)
    for step in (done, done, done + 1):  # of three batches, two were gathered for one step
        report.batch(1, 100, step)
    assert task.completed == done + 1
    report.close(History())


def test_a_live_line_of_nothing_is_harmless() -> None:
    out = io.StringIO()
    report = progress.Live(Console(file=out, force_terminal=True), "", None)
    report.close(History())
    assert "epoch 1" in out.getvalue()


def test_the_reporter_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress.reporter(False, 3, 12), progress.Silent)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.reporter(True, 3, 12), progress.Plain)
    drive(progress.Silent())


def test_speed_counts_data_points_after_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    speed = progress._Speed()
    assert speed() is None
    rates = []
    # set-up takes half a minute, then a second has 200 rows, and a later one 100
    for moment, rows in ((30.0, 100), (30.05, 10), (30.5, 90), (31.5, 100), (32.25, 75)):
        now[0] = moment
        speed.add(rows)
        rates.append(speed())
    assert rates == [None, None, *map(pytest.approx, (200.0, 200.0 / 1.5, 100.0))]
    now[0] = 99.0  # the time after the last batch is not training's
    assert speed() == pytest.approx(100.0)


def test_a_training_that_was_finished_before_has_no_speed() -> None:
    out = io.StringIO()
    report, history = progress.Plain(Console(file=out), "/1"), History(1)
    history.record({"train_loss": 10.0})
    report.close(history)
    assert out.getvalue() == "epoch 1/1  train_loss 10.00\n"
