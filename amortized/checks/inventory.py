"""Parameters: which there are, where they lie, and which would be trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import getclosurevars, isfunction, ismethod
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from amortized.checks.calls import Calls
from amortized.checks.places import names_words
from amortized.checks.report import Finding
from amortized.loss import VariationalLoss
from amortized.programs.modules import modules_of
from amortized.programs.survey import Survey

Program = Callable[..., Any]

Held = dict[tuple[int, str], tuple[str, Tensor]]
"""Parameters with their names, by network and name in it."""

_NAMED = 4


@dataclass
class Inventory:
    """The tensors that training would move, by name."""

    fitted: dict[str, Tensor] = field(default_factory=dict)
    """Of the two programs."""
    network: dict[str, str] = field(default_factory=dict)
    """The network that each of them belongs to, or its own name."""
    estimators: list[Tensor] = field(default_factory=list)
    """Of the loss."""
    frozen: set[int] = field(default_factory=set)
    networks: list[nn.Module] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many tensors would be trained."""
        return len(self.fitted) + len(self.estimators)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the first parameter."""
        kinds = (t.dtype for t in self.fitted.values() if t.is_floating_point())
        return next(kinds, None)

    def idle(self, called: Collection[int]) -> set[int]:
        """Parameters of modules that were not called."""
        quiet = [m for m in self.networks if id(m) not in called]
        return {id(p) for m in quiet for p in m.parameters(recurse=False)}


def frozen_in(*programs: Any) -> set[int]:
    """Parameters that the user froze; Pyro thaws some of them in a run."""
    modules = modules_of(*programs)
    return {id(p) for m in modules for p in m.parameters(recurse=False) if not p.requires_grad}


def inventory(
    model: Program,
    guide: Program,
    loss: VariationalLoss,
    surveys: Sequence[Survey],
    frozen: set[int],
    reached: Collection[int] = (),
) -> Inventory:
    """Parameters of modules that are programs, then what the programs announced, each once.

    ``reached`` are leaves under the loss: a branch may announce what no survey met. An objective
    that trains no model leaves those of the model alone out.
    """
    found = Inventory(frozen=frozen, networks=modules_of(model, guide))
    taken = set(frozen)

    def add(name: str, network: str, tensor: Tensor) -> None:
        if id(tensor) not in taken and tensor.requires_grad:
            taken.add(id(tensor))
            found.fitted[name], found.network[name] = tensor, network

    learns = loss.objective.trains_model
    sides = (("model", model), ("guide", guide)) if learns else (("guide", guide),)
    for side, program in sides:
        if isinstance(program, nn.Module):
            for name, parameter in program.named_parameters():
                add(f"{side}.{name}", f"{side}.{name.split('.')[0]}", parameter)
    # a module may have replaced what was announced at first
    stored = dict(pyro.get_param_store().named_parameters())
    for survey in surveys:
        for announced in survey.announced if learns or not survey.in_model else ():
            name = announced.name
            network, _, _ = name.partition("$$$")
            add(name.replace("$$$", "."), network, stored.get(name, announced.leaf))
    for name, leaf in stored.items():
        if id(leaf) in reached:
            add(name.replace("$$$", "."), name.partition("$$$")[0], leaf)
    found.estimators = [p for p in loss.parameters() if p.requires_grad]
    return found


def device_findings(model: Program, guide: Program) -> Iterator[Finding]:
    """Parameters on several devices: nothing can be run."""
    places: dict[str, list[str]] = {}
    for side, program in (("model", model), ("guide", guide)):
        for module in modules_of(program):
            for parameter in module.parameters(recurse=False):
                sides = places.setdefault(str(parameter.device), [])
                sides += [] if side in sides else [side]
    if len(places) > 1:
        parts = [f"{device} ({' and '.join(sides)})" for device, sides in places.items()]
        yield Finding(
            "error",
            "devices-differ",
            None,
            "the parameters of model and guide",
            f"they are on {' and '.join(parts)}",
            "one device for both programs",
            "move both with .to(device)",
        )


def device_of(model: Program, guide: Program) -> torch.device | None:
    """Where the parameters of a pair are."""
    owned = (p for m in (model, guide) if isinstance(m, nn.Module) for p in m.parameters())
    stored = (p for _, p in pyro.get_param_store().named_parameters())
    first = next(owned, None)
    first = next(stored, None) if first is None else first
    return None if first is None else first.device


def colliding(model: Program, guide: Program) -> list[str]:
    """PyroParams of one name in two modules; to be asked before a run, which makes them one."""
    ours, theirs = _constrained(model), _constrained(guide)
    return [n for n in sorted(ours.keys() & theirs.keys()) if ours[n] is not theirs[n]]


def collision_findings(model: Program, guide: Program) -> Iterator[Finding]:
    """What to say of those."""
    for name in colliding(model, guide):
        yield _collision(
            name,
            "model and guide each have a PyroParam of this name, and Pyro would use one tensor for "
            "both",
            "rename one, or give the modules names: super().__init__(name='guide')",
        )


def announced_findings(
    model: Program, guide: Program, surveys: Sequence[Survey]
) -> Iterator[Finding]:
    """Announced parameters of which Pyro keeps one and drops the other without a word."""
    owned = {id(p) for m in (model, guide) if isinstance(m, nn.Module) for p in m.parameters()}
    first: dict[str, torch.Size] = {}
    for survey in surveys:
        for announced in survey.announced:
            yield from _announced_twice(announced.name, announced, survey.side, owned, first)


def _announced_twice(
    name: str, announced: Any, side: str, owned: set[int], first: dict[str, torch.Size]
) -> Iterator[Finding]:
    offered, leaf = announced.offered, announced.leaf
    if offered is None:
        return
    shape = first.setdefault(name, offered.shape)
    plain = name.replace("$$$", ".")
    if isinstance(offered, nn.Parameter):
        # the modules of module programs are trained as they are, whatever the store holds
        if offered is not leaf and offered.is_contiguous() and id(offered) not in owned:
            yield _collision(
                plain,
                f"the {side} announces it, but Pyro's store holds another tensor of this name, so "
                "the one in use is not trained",
                "give every network its own name in pyro.module(name, net); if another program "
                "left it there, call pyro.clear_param_store(), or fit with am.SVI",
            )
    elif shape != offered.shape:
        yield _collision(
            plain,
            f"it is declared with shapes {tuple(shape)} and {tuple(offered.shape)}, and the second "
            "statement is given the first one's tensor",
            "give each parameter its own name",
        )


def _collision(name: str, found: str, advice: str) -> Finding:
    return Finding(
        "error",
        "parameter-collision",
        None,
        f"parameter {name!r}",
        found,
        "a name of its own for every parameter",
        advice,
    )


def _constrained(program: Program) -> dict[str, Tensor]:
    """PyroParams by the name that Pyro's store would give them."""
    suffix = "_unconstrained"
    if not isinstance(program, PyroModule):
        return {}
    prefix = f"{program._pyro_name}." if program._pyro_name else ""
    named = program.named_parameters()
    return {prefix + n.removesuffix(suffix): p for n, p in named if n.endswith(suffix)}


def no_parameter_findings(known: Inventory, strays: bool) -> Iterator[Finding]:
    """Nothing at all to train."""
    if known.fitted:
        return
    advice = "declare parameters with pyro.param or pyro.module, or make the programs modules"
    if strays:
        advice = (
            "register networks with pyro.module(name, net), tensors with pyro.param(name, init), "
            "or make the programs modules that own them"
        )
    elif known.frozen:
        advice = f"thaw a network with net.requires_grad_(True), or {advice}"
    yield Finding(
        "error",
        "no-parameters",
        None,
        "model and guide",
        "they have no parameter that training could move",
        "at least one pyro.param, nn.Parameter or network",
        advice,
    )


def untrained_findings(
    strays: Mapping[int, Tensor], known: Inventory, calls: Calls, programs: tuple[Program, Program]
) -> Iterator[Finding]:
    """Leaves that would get a gradient, and that no optimizer would be given."""
    left = dict(strays)
    for network in _outermost([*known.networks, *calls.modules.values()]):
        own = {id(p) for p in network.parameters()} & left.keys()
        if own:
            yield _untrained(network, len(own), known, calls, programs)
            left = {key: leaf for key, leaf in left.items() if key not in own}
    for leaf in left.values():
        yield Finding(
            "warning",
            "untrained-module",
            None,
            f"a tensor of shape {tuple(leaf.shape)} in model or guide",
            "it gets a gradient, but it is registered nowhere, so no optimizer would move it",
            "parameters that are announced",
            "make it with pyro.param(name, init), or once, outside, as an nn.Parameter of a module "
            "program",
        )


def held_parameters(model: Program, guide: Program) -> Held:
    """What an optimizer would be given now, with its name, by what tells it at another time."""
    found: Held = {}
    for side, program in (("model", model), ("guide", guide)):
        for network in _outermost(modules_of(program)):
            stem = side if network is program else type(network).__name__
            for name, parameter in network.named_parameters():
                plain = name.removesuffix("_unconstrained")
                found[id(network), name] = f"{stem}.{plain}", parameter
    for name, leaf in pyro.get_param_store().named_parameters():
        found[0, name] = name.replace("$$$", "."), leaf
    return found


def remade_findings(before: Held, now: Held) -> Iterator[Finding]:
    """Parameters that a run put others in the place of: what an optimizer moved is lost."""
    both = [(*before[key], now[key][1]) for key in before.keys() & now.keys()]
    names = {id(old): name for name, old, new in both if new is not old}.values()
    if names:
        yield Finding(
            "warning",
            "untrained-module",
            None,
            f"parameter{'s' if len(names) > 1 else ''} {names_words(names, _NAMED)}",
            "every run puts a new tensor in its place, so what the optimizer has learned is lost",
            "parameters that are made once",
            "make it in __init__, or with pyro.param(name, init), which starts it once; take "
            "pyro.clear_param_store() out of the programs",
        )


def strays_among(
    reached: Mapping[int, Tensor], known: Inventory, data: Iterable[Tensor]
) -> dict[int, Tensor]:
    """Leaves under the loss that are neither trained nor frozen nor data."""
    trained = {id(t) for t in (*known.fitted.values(), *known.estimators, *data)} | known.frozen
    return {key: leaf for key, leaf in reached.items() if key not in trained}


def _untrained(
    network: nn.Module, count: int, known: Inventory, calls: Calls, programs: tuple[Any, Any]
) -> Finding:
    kind = type(network).__name__
    side = calls.sides.get(id(network), "model or guide")
    name = _closure_name(network, programs)
    holder = _listed_in(network, known.networks)
    if holder is not None:
        where = f"{kind} in {holder}, used in the {side}"
        advice = "hold it in nn.ModuleList or nn.ModuleDict, where torch finds its parameters"
    elif id(network) not in {id(m) for m in known.networks}:
        where = f"{kind} used in the {side}"
        advice = (
            "if the program makes it at each call, make it once, outside; then write "
            f"pyro.module({kind.lower()!r}, net) in the program, or make the program an nn.Module "
            "that owns it"
        )
    else:
        where = f"network {name!r} ({kind}) used in the {side}" if name else f"{kind} in the {side}"
        called = name or kind.lower()
        advice = (
            f"write pyro.module({called!r}, {name or 'net'}) in the {side}, or make the {side} an "
            f"nn.Module that owns it; if it is to stay fixed: {name or 'net'}.requires_grad_(False)"
        )
    return Finding(
        "warning",
        "untrained-module",
        None,
        where,
        f"{count} of its parameters get a gradient, but they are registered nowhere, so no "
        "optimizer would move them",
        "networks that a module program owns or that are announced",
        advice,
    )


def _closure_name(network: nn.Module, programs: tuple[Any, Any]) -> str | None:
    """What the programs call a network."""
    for program in programs:
        while isinstance(program, partial):
            program = program.func
        owner = program.__self__ if ismethod(program) else program
        names = dict(getattr(owner, "__dict__", None) or {})
        function = program.__func__ if ismethod(program) else program
        if isfunction(function):
            try:
                outer = getclosurevars(function)
                names |= {**outer.globals, **outer.nonlocals}
            except ValueError:  # a cell that is not filled yet
                pass
        for name, value in names.items():
            if value is network:
                return name
    return None


def _listed_in(network: nn.Module, networks: list[nn.Module]) -> str | None:
    """The plain list or dict of a module that holds a network, where torch does not look."""
    for owner in networks:
        for name, value in vars(owner).items():
            if name.startswith("_"):
                continue
            items = value.values() if isinstance(value, dict) else value
            if isinstance(items, list | tuple | set) or isinstance(value, dict):
                if any(item is network for item in items):
                    return f"the {type(value).__name__} {name!r} of {type(owner).__name__}"
    return None


def _outermost(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that are part of no other one, each once."""
    unique = {id(m): m for m in modules}
    inner = {id(c) for m in unique.values() for c in m.modules() if c is not m}
    return [m for key, m in unique.items() if key not in inner]
