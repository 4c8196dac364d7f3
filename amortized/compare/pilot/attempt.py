"""One mapping of estimators, measured: the noise of its gradient, and the seconds of a step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, final

import pyro
import torch
from torch import Tensor

from amortized.compare.candidates import Backward, Pair, flat
from amortized.compare.draws import Sampler, noise_states
from amortized.compare.groups import Trained
from amortized.compare.moments import Interval, block_sums
from amortized.compare.pilot.replayed import replayed
from amortized.errors import NonFiniteError
from amortized.estimate import Estimate
from amortized.estimators.base import Estimator
from amortized.loss import VariationalLoss
from amortized.programs.modules import buffers_aside
from amortized.programs.records import DataPlate
from amortized.sites import escaped

Clock = Callable[[], float]

# for the own parameters of estimators, in a warm-up
_LEARNING_RATE: Final = 1e-2
_DECAYS: Final = (0.9, 0.999)
_LEAST_SCALE: Final = 1e-8
# seconds and turns of one timing
_LIMIT: Final = 0.02
_LEAST_TURNS, _MOST_TURNS = 5, 25
# half of a 95 % interval of a median, in interquartile ranges over the root of their number
_NOTCH: Final = 1.57
# Seconds of a step beside its gradient, as seen on a CPU: the graph is found, parameters are moved.
_BESIDE: Final = 1.5e-4


def clock_of(leaves: Iterable[Tensor]) -> Clock:
    """Processor seconds, which other work on the machine does not add to; real ones on a GPU."""
    device = next((leaf.device for leaf in leaves if leaf.is_cuda), None)
    if device is None:
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


@final
@dataclass(frozen=True, eq=False)
class Setting:
    """What all mappings of a pilot share.

    ``captured``: steps are timed as a capture replays them, else as the programs run.
    """

    pair: Pair
    loss: VariationalLoss
    clock: Clock
    captured: bool = True
    warmup_steps: int = 50
    data: DataPlate | None = None
    kl_weight: float = 1.0
    learned: Mapping[str, Estimator] = field(default_factory=dict)
    """The estimators of a training that is under way, by the name of their site."""
    signal: float = 1.0
    """For which share of the present squared norm of the gradient mappings are compared."""


@final
@dataclass(frozen=True, eq=False)
class GroupNoise:
    """One group of parameters: the variance of a draw of its gradient, and the mean of draws."""

    variance: float
    interval: Interval
    mean: Tensor
    count: int
    unseen: bool = False
    """All draws were equal, though there may be noise."""

    @property
    def error(self) -> float:
        """The expected square of the distance of the mean from the expectation."""
        return self.variance / self.count

    @property
    def signal(self) -> float:
        """The squared norm of the expectation; not told apart from 0 below its error."""
        return max(float(self.mean.square().sum()) - self.error, self.error)

    def bias_from(self, other: GroupNoise) -> float:
        """The squared distance from another mean, beyond what both are in error by."""
        distance = float((self.mean - other.mean).square().sum())
        return max(0.0, distance - self.error - other.error)


@final
class Attempt:
    """A loss with one mapping of estimators, on copies of everything that moves.

    Attributes:
        loss: with the state that a warm-up left.
        noise: by group of parameters, of so many ``draws``, which took ``draw_seconds``.
        eager: seconds of one gradient by the programs, all looks included.
        seconds: of one gradient.
        spread: half the 95 % interval of their logarithm.
        biased: whether any of its estimators says so of itself.
    """

    def __init__(self, setting: Setting, known: Trained, mapping: Mapping[str, Estimator]) -> None:
        self.setting, self.known, self.biased = setting, known, False
        self.loss = setting.loss.with_estimators(mapping)
        self.noise: dict[str, GroupNoise] = {}
        self.draws, self.draw_seconds = 0, 0.0
        self.seconds, self.spread, self.eager = math.nan, 0.0, math.nan
        self._ratios: list[float] = []
        self._own: list[Tensor] = []
        self._backward = Backward(setting.pair, self.loss)
        self._sampler: Sampler | None = None
        self._step: Callable[[], object] = self.gradient

    def prepare(self, warm: bool) -> None:
        """The first evaluation with all its looks; what estimators learn, if it is to be warm.

        Raises:
            AmortizedError: what the loss refuses.
        """
        pair, loss = self.setting.pair, self.loss
        loss.warm_up(pair.model, pair.guide, pair.batch)
        for site, module in self.setting.learned.items():
            own = (
                loss.estimators.by_site[escaped(site)] if site in loss.estimators.reasons else None
            )
            if own is not None and repr(own) == repr(module):
                own.load_state_dict(module.state_dict())
        self.biased = any(
            isinstance(e, Estimator) and e.bias for e in loss.estimators.by_site.values()
        )
        self._own = [p for p in loss.parameters() if p.requires_grad]
        self._backward = Backward(pair, loss)
        if warm:
            self._learn()
        self.eager = self.once()

    def gradient(self) -> Tensor:
        """One draw, shape ``[P + Q]``: what estimators learn by comes last."""
        leaves = [*self.known.leaves.values(), *self._own]
        with buffers_aside(self.setting.pair.model, self.setting.pair.guide):
            return flat(self._backward(self._estimate().loss, leaves), leaves)

    def draw(self, count: int) -> None:
        """Measures the noise of so many draws; earlier ones are forgotten.

        Raises:
            NonFiniteError: a gradient that is not finite.
        """
        sampler = self._recorded()
        with self._quiet():
            began = self.setting.clock()
            columns = [group.columns for group in self.known.groups]
            before = noise_states(*sampler.programs)
            blocks = block_sums(sampler.chunks(count), count, columns)
            still = noise_states(*sampler.programs) == before
        if not bool(blocks.mean.isfinite().all()):
            raise NonFiniteError(
                f"its gradient is NaN or infinite in some of {count} draws; expected finite ones"
            )
        sums, self.draws = self.known.sums(replace(blocks, noiseless=still)), count
        self.draw_seconds = self.setting.clock() - began
        self.noise = {
            group.name: GroupNoise(
                part.variance, part.variance_interval(), part.mean, count, part.unseen
            )
            for group, part in zip(self.known.groups, sums, strict=True)
        }

    @property
    def elements(self) -> int | None:
        """Of all intermediate results of one step; None where it cannot be captured."""
        recording = None if self._sampler is None else self._sampler.recording
        return None if recording is None else recording.elements

    @property
    def reason(self) -> str:
        """Why a step cannot be captured; empty: it can."""
        return "" if self._sampler is None else self._sampler.reason

    def take_time(self, beside: Attempt | None = None) -> None:
        """Measures the seconds of a step, in turns with another one.

        Load comes and goes: it is the ratio to the other one, taken at the same time, that counts.
        Turns of earlier calls count too.
        """
        pair = [self] if beside is None else [self, beside]
        turns: list[list[float]] = []
        for one in pair:
            one._recorded()
        # how many turns there are depends on the machine, and what is drawn later must not
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with self._quiet(), torch.random.fork_rng(devices):
            began = self.setting.clock()
            while len(turns) < _MOST_TURNS:
                late = self.setting.clock() - began > _LIMIT * len(pair)
                if late and len(turns) >= _LEAST_TURNS:
                    break
                turns.append([one.once() for one in pair])
        if beside is None:
            taken = [turn[0] for turn in turns]
            self.seconds = statistics.median(taken)
            return
        self._ratios += [ours / theirs for ours, theirs in turns]
        self.seconds = beside.seconds * statistics.median(self._ratios)
        self.spread = _spread(self._ratios)

    def once(self) -> float:
        """The seconds of one step, what comes beside its gradient included."""
        clock = self.setting.clock
        began = clock()
        self._step()
        return clock() - began + _BESIDE

    def _recorded(self) -> Sampler:
        """One recording, for draws and for times."""
        if self._sampler is None:
            programs = (self.setting.pair.model, self.setting.pair.guide)
            with self._quiet():
                # what training captures is audited once more
                self._sampler = Sampler(self.gradient, programs, audits=1)
            recording = self._sampler.recording
            if self.setting.captured and recording is not None:
                step, zero = replayed(recording), torch.zeros(())
                self._step = lambda: step(zero)
        return self._sampler

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with self.loss.looking("never"), pyro.validation_enabled(False):
            yield

    def _estimate(self) -> Estimate:
        pair, setting = self.setting.pair, self.setting
        return self.loss.estimate(
            pair.model,
            pair.guide,
            pair.args,
            pair.kwargs,
            data=setting.data,
            kl_weight=setting.kl_weight,
        )

    def _learn(self) -> None:
        """Model and guide stay; the own parameters of estimators are moved by Adam."""
        pair, own = self.setting.pair, self._own
        optimizer = _Adam(own)
        with self._quiet():
            for _ in range(self.setting.warmup_steps):
                with buffers_aside(pair.model, pair.guide):
                    estimate = self._estimate()
                    if own:
                        optimizer.step(self._backward(estimate.loss, own))
                    self.loss.learn(estimate)


@final
class _Adam:
    """Adam without torch's class, whose first use imports torch's compiler, for seconds."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._first = [torch.zeros_like(leaf) for leaf in leaves]
        self._second = [torch.zeros_like(leaf) for leaf in leaves]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        self._steps += 1
        parts = zip(self._leaves, gradients, self._first, self._second, strict=True)
        for leaf, gradient, first, second in parts:
            if gradient is not None:
                first.lerp_(gradient, 1 - _DECAYS[0])
                second.lerp_(gradient.square(), 1 - _DECAYS[1])
                mean = first / (1 - _DECAYS[0] ** self._steps)
                scale = (second / (1 - _DECAYS[1] ** self._steps)).sqrt() + _LEAST_SCALE
                leaf.sub_(_LEARNING_RATE * mean / scale)


def _spread(ratios: Sequence[float]) -> float:
    """Half a 95 % interval of the logarithm of their median."""
    logs = [math.log(ratio) for ratio in ratios]
    low, _, high = statistics.quantiles(logs, n=4)
    return _NOTCH * (high - low) / math.sqrt(len(logs))
