"""The captured steps of a pair: one for each signature, made and looked after as the mode says."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

from torch import Tensor, nn

from amortized.checks.isolation import torch_generators
from amortized.errors import CheckWarning, UsageError
from amortized.fit.arguments import one_of
from amortized.fit.buffers import Copy, MovingBuffers
from amortized.fit.compiled.audit import audit, is_due
from amortized.fit.compiled.capture import (
    CaptureError,
    StepGraph,
    StepInputs,
    StepProgram,
    clause,
)
from amortized.fit.compiled.choice import Outlook, Stopwatch, worth_capturing, worth_compiling
from amortized.fit.compiled.held import HeldValues
from amortized.fit.compiled.inductor import compiled_step
from amortized.fit.compiled.replay import Replay, replay_of
from amortized.fit.compiled.same import same_graph
from amortized.fit.terms import Terms

Compile = Literal["off", "graph", "inductor", "auto"]
COMPILE: Final[tuple[Compile, ...]] = ("off", "graph", "inductor", "auto")

# "inductor" compiles the first signature at once, another (a short last batch) when it has come
# so often
_RARE: Final = 200
# "auto" looks at so many steps first, and at so many batches of validation
_LOOK: Final = 25
_LOOK_AT_EVALUATIONS: Final = 20
# a graph holds its constants: of more signatures than these, the later ones stay eager
_MOST_GRAPHS: Final = 64
# more than graphs: of those without one, the oldest is forgotten
_MOST_SIGNATURES: Final = 512
# so many graphs for one signature, as what a capture holds fixed is changed
_MOST_VARIANTS: Final = 8


def compile_of(asked: str, *, validate: bool) -> Compile:
    """The mode that was asked for; with Pyro's checks at every step nothing is captured.

    Raises:
        UsageError: there is no such mode, or checks were asked for too.
    """
    found = one_of("compile", asked, COMPILE)
    if validate and found in ("graph", "inductor"):
        raise UsageError(
            f"validate=True with compile={asked!r}: Pyro's checks read values, which a captured "
            "step cannot; use compile='off' with validate=True"
        )
    return "off" if validate else found


@dataclass(frozen=True)
class Replayed:
    """What a replay gave; ``before`` are the buffers as they were."""

    loss: float
    norm: Tensor
    terms: Terms
    gradients: list[tuple[int, Tensor]]
    before: list[Copy]


@dataclass(eq=False)
class Signature:
    """Steps of one signature: how many there were, and what serves them."""

    name: str
    variants: list[Signature] = field(repr=False)
    """Those of the same signature, this one included: each with other values held fixed."""
    versions: set[int] = field(default_factory=set)
    """The values under which the graph was seen to do what the programs do."""
    seen: int = 0
    ran: bool = False
    """In this process, as the programs are written."""
    replays: int = 0
    graph: StepGraph | None = None
    replay: Replay | None = None
    compiled: Replay | None = None
    eager: bool = False
    """For good: replays were slower, or there are too many signatures."""
    was_compiled: bool = False
    """In the training that this one goes on with."""
    interpreted: bool = False
    """For good: the compiled step failed, or its numbers differed."""
    kept: Any = None
    """The state at the last comparison that held."""
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.variants.append(self)

    def forget(self) -> None:
        """Drops what was captured."""
        self.versions.clear()
        self.graph = self.replay = self.compiled = self.kept = None
        self.replays = 0


@final
class CompiledSteps:
    """The captured and compiled steps of a pair.

    Args:
        mode: ``"graph"``, ``"inductor"`` or ``"auto"``.
        program: what a step runs.
        buffers: those that runs were seen to move.
        modules: every module whose mode takes part.
    """

    def __init__(
        self,
        mode: Compile,
        program: StepProgram,
        buffers: MovingBuffers,
        modules: Sequence[nn.Module],
    ) -> None:
        self.mode = mode
        self.to_come: int | None = None
        """Batches that this training will still take; None: nobody knows."""
        self._program, self._buffers = program, buffers
        every = list({id(m): m for module in modules for m in module.modules()}.values())
        self._modes = [vars(module) for module in every]
        self.generators = torch_generators(*program.programs)
        """The programs' own."""
        self._held = HeldValues(list(program.programs), every)
        self._met: dict[Hashable, list[Signature]] = {}
        self._last: tuple[Hashable, list[Signature]] = (None, [])
        """The newest of them: most steps are as the one before."""
        self._saved: dict[str, dict[str, Any]] = {}
        self._main: str | None = None
        self._total = self._version = 0

    def find(self, inputs: StepInputs) -> Signature:
        """What is known of steps with these inputs."""
        version = self._version = self._held.version()
        key = (inputs.signature(), tuple([held["training"] for held in self._modes]))
        last, variants = self._last
        if key != last:
            variants = self._variants(key)
            self._last = key, variants
        for found in variants:
            if version in found.versions:
                return found
        if variants:  # to be compared with the programs first
            return variants[-1]
        found = Signature(repr(key), variants)
        for name, value in self._saved.get(found.name, {}).items():
            setattr(found, name, value)
        self._main = self._main or found.name
        return found

    def _variants(self, key: Hashable) -> list[Signature]:
        """What is known of a signature."""
        if key not in self._met and len(self._met) >= _MOST_SIGNATURES:
            self._met.pop(next(k for k, found in self._met.items() if not found[-1].graph), None)
        return self._met.setdefault(key, [])

    def step(
        self, found: Signature, inputs: StepInputs, keep: Callable[[], Any] | None = None
    ) -> Replayed | None:
        """Replays a step: gradients are returned, estimators learn; None: it has to be eager.

        Args:
            found: what is known of such steps.
            inputs: the batch and its weights.
            keep: gives a copy of the state, to go back to; taken whenever a comparison held.

        Raises:
            CaptureError: the step cannot be captured or compiled, or differs from the programs.
        """
        found.seen += 1
        self._total += 1
        if not self._captured(found, inputs):
            return None
        if self._version not in found.versions:
            found = self._variant(found, inputs)
        step = self._function(found, inputs)
        if step is None or found.graph is None:
            return None
        if is_due(found.replays):
            step = self._audited(found, found.graph, step, inputs)
            found.kept = None if keep is None else keep()
        found.replays += 1
        before = self._buffers.copies()
        started = time.perf_counter()
        total, norm, values, *gradients = step(*inputs.tensors)
        loss = total.item()  # waits for a GPU
        found.watch.add("replay", time.perf_counter() - started)
        outputs = found.graph.outputs
        terms = Terms.from_stack(outputs.names, values, outputs.per_datum, outputs.local)
        return Replayed(
            loss,
            norm,
            terms,
            list(zip(outputs.with_gradient, gradients, strict=True)),
            before,
        )

    @contextmanager
    def eagerly(self, found: Signature) -> Iterator[None]:
        """Around a step as the programs are written, after `find`."""
        started = time.perf_counter()
        yield
        found.ran = True
        found.watch.add("eager", time.perf_counter() - started)
        self._held.after_run()

    def state_dict(self) -> dict[str, Any]:
        """What decides when steps are captured and compiled: a resumed run does the same."""
        met = {
            found.name: {
                "seen": found.seen,
                "eager": found.eager,
                "interpreted": found.interpreted,
                "was_compiled": found.was_compiled or found.compiled is not None,
            }
            for variants in self._met.values()
            for found in variants[-1:]
            if found.seen > 1 or found.name == self._main
        }
        return {"main": self._main, "total": self._total, "signatures": {**self._saved, **met}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes that back; from nothing, nothing is known."""
        self._main, self._total = state.get("main"), state.get("total", 0)
        self._saved, self._met = dict(state.get("signatures", {})), {}
        self._last = None, []

    def _captured(self, found: Signature, inputs: StepInputs) -> bool:
        """Whether a graph serves such steps; made or compiled when it is time."""
        if found.graph is not None and not found.graph.serves(inputs):
            found.forget()
        if found.eager or (found.graph is None and not self._time_to_capture(found)):
            return False
        if found.graph is None:
            others = (other for variants in self._met.values() for other in variants)
            if sum(1 for other in others if other.graph) >= _MOST_GRAPHS:
                found.eager = True
                return False
            self._take(found, self._graph(found, inputs))
        if self.mode == "auto" and not found.compiled:
            slower = found.watch.slower("replay", "eager")
            found.eager = slower or self._changed_too_soon(found)
        return not found.eager

    def _function(self, found: Signature, inputs: StepInputs) -> Replay | None:
        """The replay, or the compiled step; compiled when it is time."""
        graph = found.graph
        if graph is not None and found.compiled is None and self._time_to_compile(found, graph):
            try:
                compiled = compiled_step(graph.module, inputs.tensors)
                graph.trial(compiled, inputs.tensors)
                found.compiled, found.replays = compiled, 0
            except Exception as error:
                self._interpret(found, error)
        return found.compiled or found.replay

    def _interpret(self, found: Signature, error: Exception) -> None:
        """Gives a compiled step up: replays are right, under "auto" they go on."""
        if self.mode != "auto":
            if isinstance(error, CaptureError):
                raise error
            sentence = f"the compiled step failed ({clause(error)}); use compile='graph'"
            raise CaptureError(sentence) from error
        found.compiled, found.interpreted, found.replays = None, True, 0
        warnings.warn(
            f"compile='auto': steps are replayed, and not compiled: {error}",
            CheckWarning,
            stacklevel=2,
        )

    def _changed_too_soon(self, found: Signature) -> bool:
        """Whether a graph of validation must be looked at again before it has paid for itself."""
        if self._program.gradient or self._version in found.versions:
            return False
        return not worth_capturing(Outlook(found.replays, None), gradient=False)

    def _outlook(self, found: Signature) -> Outlook:
        share = found.seen / max(1, self._total)
        return Outlook(found.seen, None if self.to_come is None else self.to_come * share)

    def _time_to_capture(self, found: Signature) -> bool:
        if self.mode != "auto":
            return found.seen > 1
        gradient = self._program.gradient
        look = _LOOK if gradient else _LOOK_AT_EVALUATIONS
        return found.seen > look and worth_capturing(self._outlook(found), gradient=gradient)

    def _time_to_compile(self, found: Signature, graph: StepGraph) -> bool:
        if found.interpreted or self.mode == "graph" or not self._program.gradient:
            return False
        if found.was_compiled:
            return True
        if self.mode == "inductor":
            return found.name == self._main or found.seen > _RARE
        if found.seen <= 2 * _LOOK:
            return False
        return worth_compiling(self._outlook(found), graph.calls)

    def _variant(self, found: Signature, inputs: StepInputs) -> Signature:
        """What serves these steps now that a value was changed: a graph that is there, or another.

        To compare results on one batch would not do: a limit may be reached by a later one.
        """
        now = self._graph(found, inputs)
        for known in found.variants:
            graph = known.graph
            if graph is not None and graph.outputs == now.outputs:
                if same_graph(graph.module, now.module):
                    known.versions.add(self._version)
                    return known
        if len(found.variants) >= _MOST_VARIANTS:
            raise CaptureError(
                "a value that the programs look up changes again and again "
                f"({self._held.changed}), and a capture holds it fixed; make it a tensor that is "
                "changed in place, or use kl_weight= for a weight of the KL"
            )
        self._held.matters()
        other = Signature(found.name, found.variants, seen=found.seen, ran=found.ran)
        self._take(other, now)
        return other

    def _graph(self, found: Signature, inputs: StepInputs) -> StepGraph:
        graph = StepGraph(self._program, self._buffers, inputs, seen=found.ran)
        self._refuse_moved()
        return graph

    def _refuse_moved(self) -> None:
        """A number that runs change, such as a counter of calls, would stand still in replays."""
        moved = self._held.after_run()
        if moved:
            raise CaptureError(
                f"the programs change {moved[0]} while they run, and a replay does not run them; "
                "count in a callback, or in a tensor that is changed in place"
            )

    def _take(self, found: Signature, graph: StepGraph) -> None:
        found.graph, found.replay = graph, replay_of(graph.module)
        found.versions = {self._version}

    def _audited(
        self, found: Signature, graph: StepGraph, step: Replay, inputs: StepInputs
    ) -> Replay:
        """The step that was compared with the programs."""
        try:
            audit(graph, step, inputs, exact=found.compiled is None)
            self._refuse_moved()
        except CaptureError as error:
            if found.compiled is not None and found.replays == 0 and found.replay is not None:
                self._interpret(found, error)
                return self._audited(found, graph, found.replay, inputs)
            error.drifted, error.kept = found.replays > 0, found.kept
            raise
        return step
