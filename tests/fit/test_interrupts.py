"""Signals end training after a step, with a checkpoint from which it goes on as if never ended."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import amortized as am
from amortized.errors import CheckpointError, DataError, NonFiniteError
from amortized.fit import checkpoint_files
from amortized.fit.callbacks import Callback
from amortized.fit.checkpoint import newest
from amortized.fit.interrupts import Interrupted, Interrupts
from tests.fit import tiny
from tests.fit.harness import BATCH, SIZE, Do, fit, in_order, pair
from tests.fit.test_resume import everything, noisy, same

INT, TERM = signal.SIGINT, signal.SIGTERM
ROOT = Path(__file__).parents[2]


def send(*numbers: int) -> Callable[..., None]:
    """Sends signals to this process, wherever it is called."""

    def function(*_: object) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0)  # handlers run between two instructions

    return function


def sending(svi: am.SVI, at: int, *numbers: int) -> am.SVI:
    """Signals come while the model runs in a step, and while gradients flow."""
    real, steps = svi.loss.estimate, []

    def estimate(*args, **options):
        if torch.is_grad_enabled():
            steps.append(1)
            if len(steps) == at:
                send(*numbers)()
        return real(*args, **options)

    svi.loss.estimate = estimate
    return svi


class Ending(Callback):
    """What ended training, and whether its end was announced."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.stopped: str | None = None
        self.ended = False

    def on_exception(self, state, error) -> None:
        self.error, self.history = error, state.history

    def on_fit_end(self, state) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(number) for number in (INT, TERM)]
    yield
    assert [signal.getsignal(number) for number in (INT, TERM)] == before


# One signal


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path, capsys) -> None:
    ending, svi = Ending(), sending(pair(), 3, INT)
    saving = am.ModelCheckpoint(tmp_path)
    history = fit(svi, max_epochs=9, callbacks=[saving, ending])
    assert (svi._stepper.steps, history.stopped, history.epochs) == (3, "interrupted", 1)
    assert ending.ended and isinstance(ending.error, Interrupted) and not ending.error.terminates
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    saved = newest(tmp_path)
    assert saved.metadata["step"] == 3 and saved.state["moment"]["batch"] == 3
    for name, tensor in svi._stepper.parameters.tensors().items():
        assert torch.equal(saved.state["parameters"][name], tensor)
    assert "SIGINT: ending after this step (again: at once)" in capsys.readouterr().err


def test_a_terminated_process_exits_after_the_checkpoint(tmp_path, capsys) -> None:
    ending, svi = Ending(), sending(pair(), 3, TERM)
    with pytest.raises(SystemExit) as exit_:
        fit(svi, max_epochs=9, callbacks=[am.ModelCheckpoint(tmp_path), ending])
    assert exit_.value.code == 143 and svi._stepper.steps == 3
    assert isinstance(ending.error, Interrupted) and ending.error.terminates
    assert ending.history.stopped == "terminated" and ending.history.epochs == 1
    assert newest(tmp_path).metadata["step"] == 3
    assert "SIGTERM: ending after this step\n" in capsys.readouterr().err


def test_a_signal_in_a_callback() -> None:
    svi = pair()
    history = fit(svi, max_epochs=9, callbacks=[Do(send(INT), 7)])
    assert (svi._stepper.steps, history.stopped, history.epochs) == (7, "interrupted", 2)


@pytest.mark.parametrize("hook", ["train_epoch_start", "train_epoch_end", "validation_epoch_end"])
def test_a_signal_between_steps(tmp_path, hook: str) -> None:
    """At the start of an epoch, a step is still taken; later, the epoch is whole."""
    at_two = Do(lambda state: send(INT)() if state.epoch == 2 else None, hook=hook)
    svi = pair()
    saving = am.ModelCheckpoint(tmp_path)
    history = fit(svi, None, tiny.data(8), max_epochs=9, callbacks=[at_two, saving])
    steps = 6 if hook == "train_epoch_start" else 10
    assert (svi._stepper.steps, history.stopped, history.epochs) == (steps, "interrupted", 2)
    assert newest(tmp_path).state["moment"]["mid_epoch"] is (steps == 6)


def test_a_signal_waits_for_the_end_of_a_group(tmp_path) -> None:
    svi = sending(pair(), 1, INT)
    saving = am.ModelCheckpoint(tmp_path)
    fit(svi, max_epochs=9, accumulate_grad_batches=3, callbacks=[saving])
    assert svi._stepper.steps == 1 and newest(tmp_path).state["moment"]["batch"] == 3


def test_a_signal_from_another_thread() -> None:
    svi, began = pair(), threading.Event()

    def sender() -> None:
        began.wait(10)
        send(INT)()

    thread = threading.Thread(target=sender)
    thread.start()
    history = fit(svi, max_epochs=100_000, callbacks=[Do(lambda state: began.set(), 3)])
    thread.join()
    assert history.stopped == "interrupted" and svi._stepper.steps >= 3


# Resuming


@pytest.mark.parametrize("at", [1, 4, 5, 6, 11])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_after_ctrl_c_training_goes_on_bit_for_bit(tmp_path, at: int, accumulate: int) -> None:
    options = {"max_epochs": 3, "seed": 3, "accumulate_grad_batches": accumulate}

    def callbacks() -> list[Callback]:
        stopping = am.EarlyStopping(patience=2)
        return [stopping, am.ModelCheckpoint(tmp_path)]

    whole, again = noisy(), noisy()
    expected = fit(whole, None, tiny.data(9), **options)
    cut = fit(sending(noisy(), at, INT), None, tiny.data(9), callbacks=callbacks(), **options)
    assert cut.stopped == "interrupted"
    found = fit(again, None, tiny.data(9), callbacks=callbacks(), resume_from=tmp_path, **options)
    same(everything(whole, expected), everything(again, found))
    assert found.stopped is None


def test_after_a_second_interruption_too(tmp_path) -> None:
    options = {"max_epochs": 3, "seed": 3}
    whole, again = noisy(), noisy()
    expected = fit(whole, **options)
    fit(sending(noisy(), 3, INT), callbacks=[am.ModelCheckpoint(tmp_path)], **options)
    with pytest.raises(SystemExit):
        saving = am.ModelCheckpoint(tmp_path)
        fit(sending(noisy(), 5, TERM), callbacks=[saving], resume_from=tmp_path, **options)
    assert newest(tmp_path).metadata["step"] == 8
    same(
        everything(whole, expected), everything(again, fit(again, resume_from=tmp_path, **options))
    )


# Several signals


def test_a_second_ctrl_c_acts_at_once(tmp_path) -> None:
    """In the middle of a step, of which nothing is saved."""
    ending, svi = Ending(), sending(pair(), 3, INT, INT)
    saving = am.ModelCheckpoint(tmp_path, every_n_steps=1)
    history = fit(svi, max_epochs=9, callbacks=[saving, ending])
    assert (svi._stepper.steps, history.stopped) == (2, "interrupted")
    assert type(ending.error) is KeyboardInterrupt
    assert newest(tmp_path).metadata["step"] == 2


def test_sigterm_may_come_twice(tmp_path, capsys) -> None:
    svi = sending(pair(), 3, TERM, TERM, TERM)
    with pytest.raises(SystemExit) as exit_:
        fit(svi, max_epochs=9, callbacks=[am.ModelCheckpoint(tmp_path)])
    assert exit_.value.code == 143 and newest(tmp_path).metadata["step"] == 3
    assert capsys.readouterr().err.count("SIGTERM") == 1


def test_sigterm_after_ctrl_c_ends_the_process(tmp_path) -> None:
    svi = sending(pair(), 3, INT, TERM)
    with pytest.raises(SystemExit) as exit_:
        fit(svi, max_epochs=9, callbacks=[am.ModelCheckpoint(tmp_path)])
    assert exit_.value.code == 143 and newest(tmp_path).metadata["step"] == 3


def test_ctrl_c_after_sigterm_ends_the_process_at_once() -> None:
    svi = sending(pair(), 3, TERM, INT)
    with pytest.raises(SystemExit) as exit_:
        fit(svi, max_epochs=9)
    assert exit_.value.code == 143 and svi._stepper.steps == 2


# Handlers


def test_handlers_are_ours_only_while_training() -> None:
    seen = []
    look = Do(lambda state: seen.append(signal.getsignal(INT)), 1)
    before = signal.getsignal(INT)
    fit(pair(), max_epochs=1, callbacks=[look])
    assert before is signal.default_int_handler and seen != [before]
    assert signal.getsignal(INT) is before
    with pytest.raises(NonFiniteError):
        fit(pair(), in_order(2), max_epochs=1)
    assert signal.getsignal(INT) is before and signal.getsignal(TERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_handler_of_the_users_own_stays_in_charge(number: int) -> None:
    calls = []
    before = signal.signal(number, lambda *_: calls.append(number))
    try:
        svi = sending(pair(), 3, number)
        history = fit(svi, max_epochs=2)
    finally:
        signal.signal(number, before)
    assert calls == [number] and history.stopped is None and svi._stepper.steps == 10


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(INT, signal.SIG_IGN)
    try:
        history = fit(sending(pair(), 3, INT), max_epochs=1)
    finally:
        signal.signal(INT, before)
    assert history.stopped is None


def test_in_another_thread_nothing_is_touched() -> None:
    seen: list[Any] = []

    def run() -> None:
        look = Do(lambda state: seen.append(signal.getsignal(INT)), 1)
        seen.append(fit(pair(), max_epochs=1, callbacks=[look]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen[0] is signal.default_int_handler and seen[1].epochs == 1


def test_training_within_training() -> None:
    """The signal belongs to the outer one, which ends when the inner one is done."""
    inner = pair()
    outer = pair()
    within = Do(lambda state: fit(sending(inner, 2, INT), max_epochs=1), 4)
    history = fit(outer, max_epochs=2, callbacks=[within])
    assert (inner._stepper.steps, outer._stepper.steps) == (5, 4)
    assert history.stopped == "interrupted"


def test_interrupts_by_themselves() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        send(INT)()
        with pytest.raises(Interrupted, match="SIGINT"):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            send(INT)()
    with Interrupts() as interrupts:  # afresh
        interrupts.check()


# Faults that come with signals


@pytest.mark.parametrize("error", [BrokenPipeError, RuntimeError, ValueError])
def test_a_closed_terminal_does_not_spoil_the_step(tmp_path, monkeypatch, error) -> None:
    """Ctrl-C ends the reader of a pipe too."""

    class Closed:
        def write(self, text: str) -> None:
            raise error

        def flush(self) -> None:
            raise error

    svi = sending(pair(), 3, INT)
    monkeypatch.setattr(sys, "stderr", Closed())
    history = fit(svi, max_epochs=9, callbacks=[am.ModelCheckpoint(tmp_path)])
    assert history.stopped == "interrupted" and newest(tmp_path).metadata["step"] == 3


class Failing(Dataset):
    """Its workers end with the signal, which the loader then reports as an error."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.items = numbers, 0

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int):
        self.items += 1
        if self.items == 20:
            send(*self.numbers)()
            raise RuntimeError("DataLoader worker (pid 3) exited unexpectedly")
        return tiny.data(SIZE)[index]


def test_a_loader_that_a_signal_ended_is_no_fault_of_the_data(tmp_path) -> None:
    # the first item is read once more, for a look at the batch
    svi, saving = pair(), am.ModelCheckpoint(tmp_path)
    history = fit(svi, DataLoader(Failing(INT), BATCH), max_epochs=9, callbacks=[saving])
    assert history.stopped == "interrupted" and newest(tmp_path).metadata["step"] == 2
    with pytest.raises(SystemExit):
        fit(pair(), DataLoader(Failing(TERM), BATCH), max_epochs=9)
    with pytest.raises(DataError, match="epoch 1, batch 3"):
        fit(pair(), DataLoader(Failing(), BATCH), max_epochs=9)


def test_a_full_disk_at_the_end_is_told(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ending, saving = Ending(), am.ModelCheckpoint(tmp_path, every_n_steps=2)
    fill = Do(lambda state: monkeypatch.setattr(checkpoint_files, "write_file", full), 3)
    svi = sending(pair(), 3, INT)
    with pytest.raises(CheckpointError, match=r"No space left on device; free space"):
        fit(svi, max_epochs=9, callbacks=[saving, fill, ending])
    assert signal.getsignal(INT) is signal.default_int_handler and not ending.ended
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert newest(tmp_path).metadata["step"] == 2


def test_a_call_of_exit_saves_what_was_learned(tmp_path) -> None:
    saving = am.ModelCheckpoint(tmp_path)
    with pytest.raises(SystemExit, match="7"):
        fit(pair(), max_epochs=9, callbacks=[saving, Do(lambda state: sys.exit(7), 3)])
    assert newest(tmp_path).metadata["step"] == 3


# Processes

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
import amortized as am
from torch.utils.data import DataLoader, TensorDataset
from tests.fit import tiny
from tests.fit.harness import fit, pair, Do
data = TensorDataset(tiny.data(40))
loader = DataLoader(data, 8, num_workers=int(sys.argv[2]), shuffle=True)
ready = Do(lambda state: print("ready", flush=True), 12)
saving = am.ModelCheckpoint(sys.argv[1])
history = fit(pair(), loader, max_epochs=100_000, seed=0, callbacks=[saving, ready])
print(history.stopped, flush=True)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_their_groups(tmp_path, workers: int) -> None:
    """SIGTERM to a process, and Ctrl-C to one with all its workers, as a terminal sends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if workers:
            os.killpg(process.pid, INT)
        else:
            os.kill(process.pid, TERM)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == (0 if workers else 143), err
    assert out == ("interrupted\n" if workers else "") and err.count("ending after") == 1
    saved = newest(tmp_path)
    assert saved.metadata["step"] >= 12 and saved.state["moment"]["step"] == saved.metadata["step"]
    svi = pair()
    loader = DataLoader(torch.utils.data.TensorDataset(tiny.data(40)), 8, shuffle=True)
    steps = saved.metadata["step"] + 3
    fit(svi, loader, max_steps=steps, resume_from=tmp_path)
    assert svi._stepper.steps == steps
