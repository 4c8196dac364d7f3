"""One torch optimizer over named groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from types import CodeType, MethodType
from typing import Any, Final, final

import torch
from pyro.optim.optim import PyroOptim
from torch import Tensor

from amortized.errors import CheckpointError, ProgramError, UsageError
from amortized.fit.fused import FusedAdam
from amortized.fit.parameters import GROUPS

OptimizerFactory = Callable[..., Any]
LearningRate = float | Mapping[str, float] | None
DEFAULT_LR = 1e-3
_OWN: Final = "estimators"


@final
class GroupedOptimizer:
    """Built at the first step, when lazy parameters exist; takes in those that come later.

    Args:
        factory: called with a list of torch's parameter groups, each with its ``name``.
        lr: one learning rate, or one each for some of ``"model"``, ``"guide"``, ``"estimators"``
            (the others get 1e-3); None leaves it to the factory.
    """

    def __init__(self, factory: OptimizerFactory, lr: LearningRate) -> None:
        if isinstance(factory, PyroOptim | torch.optim.Optimizer) or not callable(factory):
            raise UsageError(
                f"optimizer={type(factory).__name__}(...): expected a torch optimizer class, or a "
                "callable that makes one from parameter groups, such as "
                "functools.partial(torch.optim.SGD, momentum=0.9)"
            )
        self.factory = factory
        self.lr = _learning_rates(lr)
        self.torch_optimizer: torch.optim.Optimizer | None = None
        self._known: set[int] = set()
        self._fused: FusedAdam | None = None

    def sync(self, groups: Mapping[str, list[Tensor]]) -> None:
        """Builds the optimizer, or adds the parameters that it does not know yet."""
        fresh = {
            name: [leaf for leaf in leaves if id(leaf) not in self._known]
            for name, leaves in groups.items()
        }
        parts = [self._group(name, leaves) for name, leaves in fresh.items() if leaves]
        self._known |= {id(leaf) for leaves in fresh.values() for leaf in leaves}
        if self.torch_optimizer is None:
            self.torch_optimizer = self._build(parts)
            return
        for part in parts:
            self._add(part)

    def forget(self, leaves: Iterable[Tensor]) -> None:
        """Moves these parameters no more; their groups stay, so that schedulers know as many."""
        if self.torch_optimizer is None:
            return
        gone = {id(leaf): leaf for leaf in leaves}
        for group in self.built.param_groups:
            group["params"] = [leaf for leaf in group["params"] if id(leaf) not in gone]
        for leaf in gone.values():
            self.built.state.pop(leaf, None)
        self._known -= gone.keys()

    def leaves(self) -> list[Tensor]:
        """Every parameter that it moves."""
        return [leaf for group in self.built.param_groups for leaf in group["params"]]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step."""
        for leaf in self.leaves():
            leaf.grad = None

    def clip(self, largest: float | None, total: Tensor) -> float:
        """Scales gradients to a norm of ``largest`` at most; returns that of model and guide.

        What estimators learn by, such as the variance of a gradient, is on a scale of its own and
        would decide how far the programs move: its norm is taken apart.

        Args:
            largest: None scales nothing.
            total: the norm of all gradients together.
        """
        groups = self.built.param_groups
        apart = [leaf for g in groups if g.get("name") == _OWN for leaf in g["params"]]
        parts = [(self.leaves(), total)]
        if apart:
            programs = [leaf for g in groups if g.get("name") != _OWN for leaf in g["params"]]
            parts = [(leaves, _norm(leaves)) for leaves in (programs, apart)]
        if largest is not None:
            for leaves, norm in parts:
                torch.nn.utils.clip_grads_with_norm_(leaves, largest, norm)
        return parts[0][1].item()

    def step(self) -> None:
        """Moves the parameters by their gradients."""
        built = self.built
        if self._fused is None or self._fused.optimizer is not built:
            self._fused = FusedAdam(built)
        if not self._fused.step():
            built.step()

    def follow(self) -> None:
        """Moves the state to where the parameters are."""
        if self.torch_optimizer is not None:
            # torch knows for each entry whether it belongs beside its parameter
            _light(self.built, "load_state_dict")(_light(self.built, "state_dict")())

    def rates(self) -> dict[str, float]:
        """The learning rate of each group, by its name."""
        groups = self.built.param_groups
        return {group.get("name", "all"): float(group["lr"]) for group in groups}

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Sets the learning rates of groups by name."""
        for group in self.built.param_groups:
            group["lr"] = rates.get(group.get("name", "all"), group["lr"])

    def scale_rates(self, factor: float) -> None:
        """Multiplies every learning rate."""
        for group in self.built.param_groups:
            group["lr"] = group["lr"] * factor

    def state_dict(self, names: Mapping[int, str]) -> dict[str, Any]:
        """State and options by parameter name; ``names`` maps the id of a leaf to it."""
        built = self.built
        groups = [
            {**group, "params": [names[id(leaf)] for leaf in group["params"]]}
            for group in built.param_groups
        ]
        state = {names[id(leaf)]: dict(of) for leaf, of in built.state.items()}
        return {"kind": type(built).__name__, "groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any], names: Mapping[int, str]) -> None:
        """Takes a state back; parameters that it does not know keep a fresh one.

        Raises:
            CheckpointError: the state is another kind of optimizer's.
        """
        built = self.built
        if state["kind"] != type(built).__name__:
            raise CheckpointError(
                f"the file holds the state of {state['kind']}, and this is a "
                f"{type(built).__name__}: pass the optimizer it was written with"
            )
        ours = [names[id(leaf)] for group in built.param_groups for leaf in group["params"]]
        saved = {name: group for group in state["groups"] for name in group["params"]}
        packed = _light(built, "state_dict")()
        for group in packed["param_groups"]:
            known = next((saved[ours[i]] for i in group["params"] if ours[i] in saved), {})
            group.update({key: value for key, value in known.items() if key != "params"})
        # torch would take tensors as they are, and training would then move the caller's state
        packed["state"] = {
            index: {key: _copied(value) for key, value in state["state"][name].items()}
            for index, name in enumerate(ours)
            if name in state["state"]
        }
        _light(built, "load_state_dict")(packed)

    def _group(self, name: str, leaves: list[Tensor]) -> dict[str, Any]:
        rate = {} if self.lr is None else {"lr": self.lr[name]}
        return {"params": leaves, "name": name, **rate}

    def _add(self, part: dict[str, Any]) -> None:
        """Into the group of that name, so that schedulers know as many groups as before."""
        for group in self.built.param_groups:
            if group.get("name") == part["name"]:
                group["params"].extend(part["params"])
                return
        _light(self.built, "add_param_group")(part)

    def _build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if not groups:
            raise ProgramError(
                "nothing to train: neither model nor guide has a parameter; use nn.Parameter or "
                "PyroParam in a module, or pyro.param or pyro.module in a function"
            )
        options: dict[str, Any] = {}
        if self.factory is torch.optim.Adam:
            options["fused"] = _can_fuse(leaf for group in groups for leaf in group["params"])
        try:
            built = _made(self.factory, groups, options)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"optimizer: it cannot be made of parameter groups: {error}; give its own options "
                "with functools.partial(torch.optim.Adam, ...)"
            ) from error
        if not isinstance(built, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer made a {type(built).__name__}: expected a torch.optim.Optimizer"
            )
        if isinstance(built, torch.optim.LBFGS):
            raise UsageError(
                "optimizer=LBFGS: it evaluates the loss several times a step, which the noise of "
                "the loss does not allow; use torch.optim.Adam, or SGD with momentum"
            )
        return built

    @property
    def built(self) -> torch.optim.Optimizer:
        """The torch optimizer.

        Raises:
            UsageError: before the first step.
        """
        if self.torch_optimizer is None:
            raise UsageError("the optimizer is made at the first step: none was taken yet")
        return self.torch_optimizer


def _norm(leaves: Iterable[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves if leaf.grad is not None])


def _learning_rates(lr: LearningRate) -> dict[str, float] | None:
    if lr is None:
        return None
    for rate in lr.values() if isinstance(lr, Mapping) else (lr,):
        if isinstance(rate, bool) or not isinstance(rate, Real):
            raise UsageError(f"lr={rate!r}: expected a number, one for each group, or None")
    if not isinstance(lr, Mapping):
        rates = {name: float(lr) for name in GROUPS}
    else:
        unknown = sorted(set(lr) - set(GROUPS))
        if unknown:
            raise UsageError(f"lr: no group {unknown[0]!r}; the groups are {', '.join(GROUPS)}")
        rates = {name: float(lr.get(name, DEFAULT_LR)) for name in GROUPS}
    for name, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise UsageError(f"lr={rate} for {name}: expected a finite number of at least 0")
    return rates


def _made(factory: OptimizerFactory, groups: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    """What the factory makes of the groups; an Adam without the import of torch's compiler."""
    inner, given = factory, options
    if type(factory) is partial and not factory.args:
        inner, given = factory.func, {**factory.keywords, **options}
    if inner not in (torch.optim.Adam, torch.optim.AdamW):
        return factory(groups, **options)
    built: Any = object.__new__(inner)
    add = _light(built, "add_param_group")
    vars(built)["add_param_group"] = add  # which torch's own __init__ calls
    built.__init__(groups, **given)
    del vars(built)["add_param_group"]
    return built


def _light(optimizer: torch.optim.Optimizer, name: str) -> Callable[..., Any]:
    """A method of torch's without what keeps torch's compiler out of it, and imports it for that.

    The import takes seconds, and nothing is being compiled here. Whatever is not just torch's own
    method in torch's own decorator is taken as it is.
    """
    method = getattr(torch.optim.Optimizer, name)
    mine = getattr(type(optimizer), name) is method and name not in vars(optimizer)
    decorated = getattr(method, "__code__", None) is _DECORATOR
    inner = getattr(method, "__wrapped__", None) if mine and decorated else None
    return getattr(optimizer, name) if inner is None else MethodType(inner, optimizer)


def _decorator() -> CodeType | None:
    """The code that all methods have which torch's compiler is kept out of."""
    decorate = getattr(torch, "_disable_dynamo", None)
    return None if decorate is None else getattr(decorate(lambda: None), "__code__", None)


_DECORATOR: Final = _decorator()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _can_fuse(leaves: Iterable[Tensor]) -> bool:
    """Fused Adam wants floating parameters on one kind of device; it is 5 times faster there."""
    kinds = {(leaf.device.type, leaf.is_floating_point()) for leaf in leaves}
    return kinds in ({("cpu", True)}, {("cuda", True)})
