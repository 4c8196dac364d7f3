"""The parameters of one fitted pair: its modules', and those in a Pyro store of its own."""

from __future__ import annotations

import functools
import inspect
import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import pyro
import torch
from torch import Tensor, nn

from amortized.checks.inventory import colliding
from amortized.errors import ProgramError
from amortized.fit.precision import Precision, layers_in
from amortized.fit.rng import side_stream
from amortized.programs.batches import aliases
from amortized.programs.modules import modules_of
from amortized.programs.run import is_guide_messenger
from amortized.programs.study import run_alone

GROUPS: tuple[str, ...] = ("model", "guide", "estimators")


@final
class Parameters:
    """Every tensor that a fitted pair owns.

    Modules own their parameters, as in torch: training moves them in place. What a program
    declares with ``pyro.param`` lives in a private store, entered by `scope`, so that nothing
    leaks into Pyro's global store and no other pair is met there.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: nn.Module,
        precision: Precision = "float32",
    ) -> None:
        self.model, self.guide, self.loss = model, guide, loss
        self.precision: Precision = precision
        self._state: Any = {"params": {}, "constraints": {}}
        self._active = False
        self.training = secrets.token_hex(8)
        """Names the training that moves them, however often ``fit`` is called or resumed."""
        self._frozen = [p for p in self._module_parameters() if not p.requires_grad]
        self._guide_names: set[str] = set()
        _refuse_collisions(model, guide)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Around runs of the programs: their store and precision are current; may be nested."""
        if self._active:
            yield
            return
        store = pyro.get_param_store()
        with store.scope(self._state), layers_in(self.precision):
            self._active = True
            try:
                yield
            finally:
                self._active = False
                self._state.update(store.get_state())

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those of model, guide and loss that are modules."""
        return tuple(m for m in (self.model, self.guide, self.loss) if isinstance(m, nn.Module))

    @property
    def networks(self) -> list[nn.Module]:
        """Every module that the pair is, belongs to or closes over, and the loss."""
        return [*modules_of(self.model, self.guide), self.loss]

    @property
    def _stored(self) -> dict[str, Tensor]:
        """The private store's leaves by name; while it is current, Pyro holds the newest."""
        if self._active:
            return dict(pyro.get_param_store().named_parameters())
        return self._state["params"]

    def attribute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds out which ``pyro.param`` names are the guide's, after a run of the pair."""
        # Pyro sets requires_grad on a frozen parameter that a PyroModule holds directly.
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        owned = {id(p) for p in self._module_parameters()}
        stray = [n for n, leaf in self._stored.items() if id(leaf) not in owned]
        # A guide messenger runs the model, and keeps its own parameters as a module.
        if not stray or is_guide_messenger(self.guide):
            return
        scratch_scope = pyro.get_param_store().scope()
        with scratch_scope as scratch, evaluation_mode(*self.networks), side_stream():
            run_alone(self.guide, *aliases(args, kwargs))
        self._guide_names = set(scratch["params"])

    def groups(self) -> dict[str, list[Tensor]]:
        """The leaves to be trained, each once, as ``{"model", "guide", "estimators"}``."""
        store = self._stored.items()
        # Modules first: the store announces their parameters again, under anybody's names.
        owners: list[tuple[str, Iterable[Tensor]]] = [
            ("estimators", _parameters(self.loss)),
            ("model", _parameters(self.model)),
            ("guide", _parameters(self.guide)),
            ("guide", [leaf for name, leaf in store if name in self._guide_names]),
            ("model", [leaf for _, leaf in store]),
        ]
        seen: set[int] = set()
        groups: dict[str, list[Tensor]] = {name: [] for name in GROUPS}
        for name, leaves in owners:
            for leaf in leaves:
                if leaf.requires_grad and id(leaf) not in seen:
                    seen.add(id(leaf))
                    groups[name].append(leaf)
        return groups

    def count(self) -> int:
        """Grows when a step declared a new parameter; cheap enough to ask at every step."""
        stored = len(pyro.get_param_store() if self._active else self._state["params"])
        return stored + sum(1 for _ in self.loss.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer, by a name that says whose it is."""
        found: dict[str, Tensor] = {}
        for owner, program in (("model", self.model), ("guide", self.guide), ("loss", self.loss)):
            if isinstance(program, nn.Module):
                state = program.state_dict(keep_vars=True)
                found |= {f"{owner}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        owned = {id(tensor) for tensor in found.values()}
        stored = self._stored.items()
        found |= {f"store.{name}": leaf for name, leaf in stored if id(leaf) not in owned}
        # networks that functions close over: the store has their parameters, nobody their buffers
        for index, network in enumerate(self.networks):
            for name, buffer in network.named_buffers(recurse=False):
                if id(buffer) not in owned:
                    found[f"network{index}.{name}"] = buffer
        return found

    def names(self) -> dict[int, str]:
        """The names of `tensors` by the identity of the tensor."""
        return {id(tensor): name for name, tensor in self.tensors().items()}

    def to(self, device: torch.device) -> None:
        """Moves everything to a device, each tensor staying the same object."""
        for network in self.networks:
            network.to(device)
        with torch.no_grad():
            for leaf in self._stored.values():
                leaf.data = leaf.data.to(device)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of `tensors`."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Writes a snapshot back, in place; what estimators knew that are gone is left out."""
        tensors = self.tensors()
        with torch.no_grad():
            for name, value in snapshot.items():
                own = tensors.get(name)
                if own is not None and own.shape == value.shape:
                    own.copy_(value)
                elif not name.startswith("loss."):
                    tensors[name].copy_(value)

    def first(self) -> Tensor | None:
        """The first parameter of model or guide, whose device is that of the pair."""
        owned = (p for m in (self.model, self.guide) for p in _parameters(m))
        return next(itertools.chain(owned, self._stored.values()), None)

    def _module_parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules for p in module.parameters()]


@final
class Bound(nn.Module):
    """A fitted program: runs with the parameters of its pair, wherever it is called.

    Anything that takes a Pyro program takes it, ``pyro.infer.Predictive`` say. Other attributes
    and methods are those of the program (``svi.guide.median(x)``, ``svi.model.decoder``).
    """

    def __init__(self, program: Callable[..., Any], owner: Parameters) -> None:
        super().__init__()
        self.program = program
        self._owner = owner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        with self._owner.scope():
            return self.program(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the program; its methods run with the fitted parameters too."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "program":  # while copying or unpickling
                raise
        value = getattr(self.program, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def bound(*args: Any, **kwargs: Any) -> Any:
            with self._owner.scope():
                return value(*args, **kwargs)

        return bound


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every submodule gets its own mode back."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _parameters(program: Callable[..., Any]) -> Iterator[Tensor]:
    if isinstance(program, nn.Module):
        yield from program.parameters()


def _refuse_collisions(model: Callable[..., Any], guide: Callable[..., Any]) -> None:
    """Pyro keeps one tensor a name: of two PyroParams it would drop the guide's without a word."""
    for name in colliding(model, guide):
        raise ProgramError(
            f"model and guide each have a PyroParam {name!r}, and Pyro would use the model's "
            "for both; rename one, or name the modules: super().__init__(name='guide')"
        )
