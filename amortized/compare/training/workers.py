"""Trials one after the other, or side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from amortized.compare.training.trial import Job, Plan, Trial, run_trial
from amortized.errors import AmortizedError, UsageError

Done = Callable[[Trial], None]


def run_trials(plan: Plan, jobs: Sequence[Job], workers: int, done: Done) -> bool:
    """Run all of them in order, and hand each over when it is finished.

    Returns whether Ctrl-C ended it before the last one.

    Raises:
        AmortizedError: what `run_trial` raises; a process died.
        UsageError: the program cannot be sent to another process.
    """
    try:
        if workers > 1 and len(jobs) > 1:
            return _side_by_side(plan, jobs, min(workers, len(jobs)), done)
        for job in jobs:
            trial = run_trial(plan, job)
            if trial is None:
                return True
            done(trial)
    except KeyboardInterrupt:
        return True
    return False


def _side_by_side(plan: Plan, jobs: Sequence[Job], workers: int, done: Done) -> bool:
    _refuse_unsendable(plan, jobs, workers)
    before = set(multiprocessing.active_children())
    # a fork would inherit the threads of torch in the middle of what they do
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        futures: list[Future[Trial | None]] = [pool.submit(run_trial, plan, job) for job in jobs]
        for future in as_completed(futures):
            trial = future.result()
            if trial is None:
                return True
            done(trial)
        return False
    except BrokenProcessPool as error:
        raise AmortizedError(
            f"workers={workers}: one of the processes died, most likely for lack of memory, or "
            "since a script starts the comparison outside of if __name__ == '__main__':; finished "
            "trials are kept in folder=; call again with fewer workers to go on"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _refuse_unsendable(plan: Plan, jobs: Sequence[Job], workers: int) -> None:
    try:
        pickle.dumps((plan, list(jobs)))
    except Exception as error:
        raise UsageError(
            f"workers={workers}: program, candidates and options are sent to other processes, and "
            f"something in them cannot be ({type(error).__name__}: {error}); name a program file, "
            "define functions at the top of a module, or leave workers out"
        ) from error


def _start() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it; it has nothing to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.join,), daemon=True).start()


def _follow(join: Callable[[], None]) -> None:
    join()
    os._exit(1)
