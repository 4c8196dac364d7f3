"""Draws of a gradient: many at once from a recording of one evaluation, or one by one.

A recording is the list of torch calls that one evaluation makes. It is run for many draws at once,
each with random numbers of its own, where it provably repeats the evaluation: the recording made
under one generator state must give the same numbers as the programs under others. Where it does
not, or torch cannot run it so, each draw runs the programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from amortized.checks.isolation import outside_states, seed_torch, torch_generators
from amortized.compare.recording import NotRecordedError, Recording, recorded

# elements of all intermediate results of the draws that run at once
_AT_ONCE = 2**23
# fewer draws than these are not worth what running them together costs
_FEW = 4
_ONE_BY_ONE = 64
_AUDITS = 3
# after the draws: a state that changes at every twentieth call is met
_LATE_AUDITS = 24
# draws whose seconds are taken, where they run at once and where they do not
_PACE, _PACE_ALONE = 100, 3


@final
class Sampler:
    """Draws of a gradient.

    Args:
        gradient: one evaluation, shape ``[P]``, from torch's generator.
        programs: whose other generators must not move.
        audits: how often the recording is compared with the programs.

    Attributes:
        reason: why draws are evaluated one by one; empty: they are not.
        recording: of one evaluation; None where there is a reason.
    """

    def __init__(
        self,
        gradient: Callable[[], Tensor],
        programs: tuple[Any, ...] = (),
        *,
        audits: int = _AUDITS,
    ) -> None:
        self.gradient, self.programs, self.audits = gradient, programs, audits
        self.reason = ""
        self.recording: Recording | None = None
        self._at_once = 1
        try:
            self.recording = self._recorded()
        except NotRecordedError as error:
            self.reason = str(error)

    def chunks(self, count: int) -> Iterator[Tensor]:
        """So many draws, in chunks of shape ``[m, P]``."""
        while count > 0:
            if self.recording is None:
                found = torch.stack([self.gradient() for _ in range(min(_ONE_BY_ONE, count))])
            elif self._at_once < _FEW:
                found = self.recording(torch.zeros(()))[None]
            else:
                found = self._together(self.recording, min(self._at_once, count))
            count -= len(found)
            yield found

    def audited_after(self) -> bool:
        """Whether the recording still gives what the programs do, over many evaluations.

        What the programs count or remember shows late. Generators stay where they are.
        """
        if self.recording is None:
            return True
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            try:
                for _ in range(_LATE_AUDITS):
                    self._audit(self.recording)
            except NotRecordedError as error:
                self.reason, self.recording = str(error), None
        return self.recording is not None

    def seconds(self) -> float:
        """Processor seconds of one evaluation by the programs; those of a clock on a GPU.

        Other work on the machine makes an evaluation last longer, and not more expensive.
        """
        began, processor = time.perf_counter(), time.process_time()
        found = self.gradient()
        if found.is_cuda:
            torch.cuda.synchronize(found.device)
            return time.perf_counter() - began
        return time.process_time() - processor

    def pace(self) -> float:
        """Seconds of a clock that a draw takes as `chunks` makes it; torch's generators stay."""
        count = min(self._at_once, _PACE) if self._at_once >= _FEW else _PACE_ALONE
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            began = time.perf_counter()
            for chunk in self.chunks(count):
                chunk.sum().item()
            return (time.perf_counter() - began) / count

    def _recorded(self) -> Recording:
        before = outside_states(*self.programs)
        if torch_generators(*self.programs):
            raise NotRecordedError("the programs draw from generators of their own")
        try:
            recording = recorded(self.gradient)
            for _ in range(self.audits):
                self._audit(recording)
            self._at_once = max(1, _AT_ONCE // max(1, recording.elements))
            if self._at_once >= _FEW and len(self._together(recording, 2)) != 2:
                raise NotRecordedError("torch cannot run them together")
        except NotRecordedError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise NotRecordedError(reason) from error
        if outside_states(*self.programs) != before:
            raise NotRecordedError("the programs draw from a generator of Python or numpy")
        return recording

    def _audit(self, recording: Recording) -> None:
        """The recording and the programs under one new state of the generator."""
        seed = int(torch.randint(2**62, ()))
        seed_torch(seed)
        expected = self.gradient()
        state = torch.get_rng_state()
        seed_torch(seed)
        found = recording(torch.zeros(()))
        same = torch.equal(found.nan_to_num(), expected.nan_to_num())
        if not same or not torch.equal(state, torch.get_rng_state()):
            raise NotRecordedError("the programs do something else at another draw")

    @staticmethod
    def _together(recording: Recording, count: int) -> Tensor:
        run = torch.func.vmap(recording, randomness="different")
        with _told_nothing():
            return run(torch.zeros(count))


def noise_states(*programs: Any) -> Hashable:
    """Where all generators stand that programs can ask for noise."""
    own = [g.get_state().numpy().tobytes() for g in torch_generators(*programs)]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = (torch.get_rng_state(), *cuda)
    return *(s.numpy().tobytes() for s in states), *own, outside_states(*programs)


@contextmanager
def _told_nothing() -> Iterator[None]:
    """Torch says of each call that it runs draws of it one by one; their time is measured."""
    own: Any = torch._C
    tells = getattr(own._functorch, "_set_vmap_fallback_warning_enabled", lambda on: None)
    tells(False)
    try:
        yield
    finally:
        tells(True)
