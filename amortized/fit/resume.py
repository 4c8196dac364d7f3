"""Everything that moves while training, as the state of a checkpoint, and back."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from amortized.errors import CheckpointError
from amortized.fit import checkpoint
from amortized.fit.callbacks import EARLY, Callback, EarlyStopping, FitState, numbered
from amortized.fit.checkpoint import UNKNOWN, Checkpoint
from amortized.fit.checkpoint_values import fingerprint
from amortized.fit.data import Batches
from amortized.fit.options import Options, options_of
from amortized.fit.plan import Plan
from amortized.fit.recovery import Recovery
from amortized.fit.rng import preserved_rng, restore_rng, rng_state
from amortized.fit.selecting import adopt, selection_of
from amortized.fit.shards import whole
from amortized.fit.step import Stepper
from amortized.fit.terms import Averager
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate

# so many batches are looked at for parameters that only some branches declare
_LOOKS: Final = 64


# the moments of training that do not come again by themselves when it is resumed
_ONCE: Final = ("on_train_batch_end", "on_train_epoch_end")


@final
class Telling:
    """Which callbacks have heard of what happens now: a checkpoint may be written in between."""

    def __init__(self) -> None:
        self._hook = ""
        self._told: list[str] = []
        self._waiting: list[str] = []

    def others(self, hook: str, callbacks: Sequence[tuple[str, Callback]]) -> Iterator[Callback]:
        """Those that have not heard of it yet; each counts as told when its turn comes."""
        if hook != self._hook:
            self._hook, self._told = hook, []
        for name, callback in callbacks:
            if name not in self._told:
                self._told.append(name)
                yield callback
        self._hook, self._told = "", []

    def left(self, callbacks: Sequence[tuple[str, Callback]]) -> Iterator[tuple[str, Callback]]:
        """After a resume: those that were not told before the file was written, and of what."""
        hook, waiting, self._waiting = self._hook, self._waiting, []
        if hook in _ONCE:
            self._hook = ""
            yield from ((hook, callback) for name, callback in callbacks if name in waiting)

    def state_dict(self, callbacks: Iterable[Callback]) -> dict[str, Any]:
        """Who was told, and who was not."""
        names = [name for name, _ in numbered(callbacks)] if self._hook else []
        waiting = [name for name in names if name not in self._told]
        return {"hook": self._hook, "told": [*self._told], "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that back; an older file says nothing."""
        self._hook = state.get("hook", "")
        self._told, self._waiting = [*state.get("told", ())], [*state.get("waiting", ())]


@final
class Moment:
    """Where training stands, beyond parameters and history."""

    def __init__(self, recovery: Recovery) -> None:
        self.recovery = recovery
        self.shuffle = torch.Generator()
        self.val_seed = 0
        self.mid_epoch = False
        self.announced = False
        """Callbacks are being told of an epoch that has not begun."""
        self.averager = Averager()
        self._norms = (0.0, 0)
        """The sum and number of the epoch's gradient norms: a list would grow with its length."""
        self._elapsed = 0.0
        self._since: float | None = None
        self.kl_weight = 1.0
        self.last_saved: Path | None = None
        self.rng: dict[str, Any] = {}
        self.resumed = False
        """In an epoch that another process began: its batches so far must be passed over."""
        self.options: Options = {}
        """Those in use; empty until the optimizer exists."""
        self._callbacks: dict[str, Any] | None = {}
        """Their state in the file, until they have started and taken it."""
        self._start: dict[str, Any] = {}
        self._weighted = False
        self.telling = Telling()

    def start_epoch(self, train: Batches, val: Batches | None = None) -> None:
        """Remembers the generators that decide the order of this epoch and of its validation."""
        self.mid_epoch, self.announced = True, False
        self.averager, self._norms, self._elapsed = Averager(), (0.0, 0), 0.0
        self._start = {
            "shuffle": self.shuffle.get_state(),
            "loaders": _states(train),
            "val": _states(val),
            "rng": rng_state(),
        }

    def rewind(self, train: Batches, val: Batches | None = None) -> None:
        """Puts those generators back, so that the same batches come again."""
        # a validation that was cut short is run again from its beginning
        _set_states(val, self._start.get("val", ()))
        self.shuffle.set_state(self._start["shuffle"])
        _set_states(train, self._start["loaders"])
        restore_rng(self._start["rng"])

    def order(self) -> torch.Generator:
        """A generator in the state that decided the order of this epoch."""
        generator = torch.Generator()
        # before the first epoch it is the state that will
        generator.set_state(self._start.get("shuffle", self.shuffle.get_state()))
        return generator

    def start_clock(self) -> None:
        """An epoch begins, or goes on in this process."""
        self._since = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """The last seconds were no training."""
        if self._since is not None:
            self._since += seconds

    @property
    def elapsed(self) -> float:
        """Seconds in this epoch, those of earlier processes included."""
        if self._since is None or not self.mid_epoch:
            return self._elapsed
        return self._elapsed + time.perf_counter() - self._since

    def weigh(self, kl_weight: float) -> None:
        """Takes note of the weight of a batch."""
        self.kl_weight = kl_weight
        self._weighted = self._weighted or kl_weight != 1.0

    def add_norm(self, norm: float) -> None:
        """Takes in the norm of a step's gradient."""
        total, count = self._norms
        self._norms = total + norm, count + 1

    def grad_norm(self) -> dict[str, float]:
        """The mean norm in this epoch, as an entry of the history; none before the first step."""
        total, count = self._norms
        return {"grad_norm": total / count} if count else {}

    def always_one(self) -> bool:
        """Whether the KL has always had weight one."""
        return not self._weighted

    def state_dict(
        self, stepper: Stepper, state: FitState, plan: Plan, done: int = 0
    ) -> dict[str, Any]:
        """The whole state of a training that chose estimators so often."""
        return {
            **stepper.state_dict(),
            **plate_and_choice(plan.data, stepper.loss, done),
            "history": state.history.state_dict(),
            "callbacks": self._states_of(plan.callbacks),
            "moment": {
                "epoch": state.epoch - self.announced,
                "step": state.step,
                "batch": state.batch,
                "stop": state.stop,
                "training": state.training,
                "mid_epoch": self.mid_epoch,
                "averager": self.averager.state_dict(),
                "norms": self._norms,
                "elapsed": self.elapsed,
                "kl_weight": self.kl_weight,
                "weighted": self._weighted,
                "val_seed": self.val_seed,
                "shuffle": self.shuffle.get_state(),
                "start": self._start,
                "rng": rng_state(),
                "loaders": {"train": _states(plan.train), "val": _states(plan.val)},
                "recovery": self.recovery.state_dict(),
                "schedule": {} if plan.schedule is None else plan.schedule.state_dict(),
                "identity": plan.identity,
                "telling": self.telling.state_dict(plan.callbacks),
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any], state: FitState, plan: Plan) -> None:
        """Takes that back."""
        state.epoch, state.step, state.batch = saved["epoch"], saved["step"], saved["batch"]
        state.stop, state.training = saved["stop"], saved["training"]
        self.mid_epoch = self.resumed = saved["mid_epoch"]
        total, count = saved["norms"]
        self._norms = total, count
        self.averager.load_state_dict(saved["averager"])
        self._elapsed, self.kl_weight = saved["elapsed"], saved["kl_weight"]
        self._weighted, self.val_seed = saved["weighted"], saved["val_seed"]
        self.shuffle.set_state(saved["shuffle"])
        self._start, self.rng = saved["start"], saved["rng"]
        for name, batches in (("train", plan.train), ("val", plan.val)):
            _set_states(batches, saved["loaders"][name])
        self.recovery.load_state_dict(saved["recovery"])
        self.telling.load_state_dict(saved.get("telling", {}))
        if plan.schedule is not None:
            plan.schedule.load_state_dict(saved["schedule"])
        restore_rng(self.rng)

    def own_state(self, plan: Plan, averager: Mapping[str, Any]) -> dict[str, Any]:
        """What a process has for itself, of several that train together."""
        loaders = {"train": _states(plan.train), "val": _states(plan.val)}
        parts = {"start": self._start, "loaders": loaders, "averager": averager}
        return {**parts, "rng": rng_state()}

    def keep_callbacks(self, saved: Mapping[str, Any]) -> None:
        """Keeps their state until they have started."""
        self._callbacks = dict(saved["callbacks"])

    def load_callbacks(self, callbacks: Iterable[Callback], state: FitState) -> None:
        """Gives callbacks their state back; one that is new starts afresh."""
        named, saved = numbered(callbacks), self._callbacks or {}
        self._callbacks = None
        for name, callback in named:
            if name in saved:
                callback.load_state_dict(saved[name])
        # with more patience than before, or without early stopping, training goes on
        waiting = [callback for _, callback in named if isinstance(callback, EarlyStopping)]
        if state.stop == EARLY and not any(callback.exhausted for callback in waiting):
            state.stop = None

    def _states_of(self, callbacks: Iterable[Callback]) -> dict[str, Any]:
        if self._callbacks is not None:
            return self._callbacks
        return {name: callback.state_dict() for name, callback in numbered(callbacks)}


def resumed(found: Checkpoint, stepper: Stepper, plan: Plan) -> Options:
    """Puts parameters, estimators and optimizer where a checkpoint left them.

    Returns:
        The options that were given, to be settled with those of the checkpoint.

    Raises:
        CheckpointError: another program, or other data.
    """
    if "moment" not in found.state:
        raise CheckpointError(
            f"{found.path} holds parameters, and no training to go on with: it was written by "
            "svi.save; load it with am.load, then call fit"
        )
    saved = found.state["moment"]["identity"]
    for name, ours in plan.identity.items():
        if saved[name] not in (ours, UNKNOWN):
            raise CheckpointError(
                f"{found.path}: the training had {saved[name]} {name}, and this one has {ours}; "
                "resume with the same data and batch size"
            )
    _warn_of_other_machine(found.metadata)
    with preserved_rng():
        adopt(stepper, found.state)
        _declare_parameters(found, stepper, plan)
        refuse_other_program(found, stepper.parameters.tensors())
        if plan.schedule is not None:
            plan.schedule.attach(stepper.optimizer.built)
        given = options_of(plan, stepper)
        stepper.load_state_dict(found.state)
    return given


def _declare_parameters(found: Checkpoint, stepper: Stepper, plan: Plan) -> None:
    """Runs the programs until they have declared what the file holds: branches may do so late."""
    saved = _parameters_of(found).keys()
    for batch in itertools.islice(whole(plan.train).epoch(), _LOOKS):
        stepper.warm_up(batch, again=True)
        missing = saved - stepper.parameters.tensors().keys()
        if not any(name.startswith(("store.", "loss.")) for name in missing):
            return


def refuse_other_program(
    found: Checkpoint, tensors: Mapping[str, Tensor], *, estimators: bool = True
) -> None:
    """Raise for a program whose parameters are not those of the file.

    Raises:
        CheckpointError: naming each parameter and shape.
    """
    saved = _parameters_of(found)
    # a lazy layer has no shape before its first run
    tensors = {name: tensor for name, tensor in tensors.items() if not is_lazy(tensor)}
    if not estimators:
        saved = {n: tensor for n, tensor in saved.items() if not n.startswith("loss.")}
        tensors = {n: tensor for n, tensor in tensors.items() if not n.startswith("loss.")}
    differing = checkpoint.differences(fingerprint(saved), tensors)
    if not differing:
        return
    late = set(tensors) < set(saved)
    hint = "; parameters that a program declares when it runs need batch=..." if late else ""
    raise CheckpointError(f"{found.path} does not fit this program: {'; '.join(differing)}{hint}")


def _parameters_of(found: Checkpoint) -> dict[str, Tensor]:
    """What the file really holds, which is what will be loaded."""
    saved: Any = found.state.get("parameters")
    ours = isinstance(saved, dict) and isinstance(found.state.get("data"), dict)
    if not ours or not all(isinstance(value, Tensor) for value in saved.values()):
        raise CheckpointError(
            f"{found.path} does not hold what svi.save and ModelCheckpoint write: use a checkpoint "
            "of theirs"
        )
    return saved


def plate_and_choice(data: DataPlate, loss: VariationalLoss, done: int = 0) -> dict[str, Any]:
    """The data plate, and the estimators that measuring chose so often, as plain values."""
    plate = {"plate": data.name, "size": data.size}
    return {"data": plate, "selection": selection_of(loss, done)}


def _warn_of_other_machine(metadata: Mapping[str, Any]) -> None:
    # a build may be named in one of the two places where torch says its version, "2.13.0+cpu"
    release = str(torch.__version__).partition("+")[0]
    now = {"torch": release, "threads": torch.get_num_threads()}
    written = metadata["versions"]["torch"].partition("+")[0]
    then = {"torch": written, "threads": metadata["threads"]}
    differing = [
        f"{name} {then[name]} then, {now[name]} now" for name in now if then[name] != now[name]
    ]
    if differing:
        warnings.warn(
            f"resumed under other conditions ({'; '.join(differing)}): results may differ from an "
            "uninterrupted run in the last digits",
            stacklevel=2,
        )


@contextmanager
def only_looking(batches: Batches) -> Iterator[None]:
    """Puts every generator back that a look at the data moves."""
    before = _states(batches)
    with preserved_rng():
        try:
            yield
        finally:
            _set_states(batches, before)


def _states(batches: Batches | None) -> list[Tensor]:
    return [] if batches is None else [g.get_state() for g in batches.generators()]


def _set_states(batches: Batches | None, states: Iterable[Tensor]) -> None:
    generators = [] if batches is None else batches.generators()
    for generator, state in zip(generators, states, strict=False):  # validation may be new
        generator.set_state(state)
