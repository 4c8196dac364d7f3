"""Adam by torch's fused kernel, without what torch's optimizer does around each call.

The same kernel on the same state, so the same numbers; on small networks the bookkeeping around it
costs three times the update, and the first call of torch's own ``step`` imports its compiler, which
takes seconds.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# what the kernel is told of a group
_OPTIONS: Final = (
    "betas",
    "lr",
    "eps",
    "weight_decay",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
)
_STATE: Final = ("exp_avg", "exp_avg_sq", "step")
_LARGEST: Final = "max_exp_avg_sq"


@final
class FusedAdam:
    """One update of a torch ``Adam`` or ``AdamW`` whose groups are fused."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._known: _Known | None = None

    def step(self) -> bool:
        """Moves the parameters; False, and none has moved, where torch's own ``step`` is needed.

        That is: for another optimizer, with hooks, or with rates in tensors.
        """
        if not self._serves():
            return False
        known, groups = self._known, self.optimizer.param_groups
        gradients = None if known is None else known.gradients(groups, self.optimizer.state)
        if known is None or gradients is None:
            if not self._begin():
                return False
            known = self._known = _Known(groups, self.optimizer.state)
            gradients = known.gradients(groups, self.optimizer.state)
        calls = known.calls(groups)
        if calls is None or gradients is None:
            return False
        decoupled = isinstance(self.optimizer, torch.optim.AdamW)
        with torch.no_grad():
            for call in calls:
                call.update(groups[call.group], gradients, decoupled=decoupled)
        return True

    def _serves(self) -> bool:
        optimizer: Any = self.optimizer
        if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
            return False
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return False
        if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return False
        replaced = vars(optimizer).get("step")
        if replaced is not None:
            if not getattr(replaced, "_wrapped_by_lr_sched", False):
                return False
            optimizer._opt_called = True  # what a scheduler's wrapper notes
        for group in optimizer.param_groups:
            if not group["fused"] or type(group["lr"]) is not float or group["differentiable"]:
                return False
        return True

    def _begin(self) -> bool:
        """Makes the state of parameters that move for the first time, by torch's own function."""
        optimizer: Any = self.optimizer
        fresh = [(group, self._fresh(group["params"])) for group in optimizer.param_groups]
        if not any(leaves for _, leaves in fresh):
            return True
        make = getattr(type(optimizer), "_init_group", None)
        if make is None or make is not getattr(torch.optim.Adam, "_init_group", None):
            return False  # AdamW once had one of its own
        for group, leaves in fresh:
            make(optimizer, {**group, "params": leaves}, [], [], [], [], [], [])
        return True

    def _fresh(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        state = self.optimizer.state
        return [p for p in parameters if p.grad is not None and not state.get(p)]


@final
class _Known:
    """What seldom changes: parameters, which of them have gradients, and their state."""

    def __init__(self, groups: Sequence[dict[str, Any]], state: dict[Any, Any]) -> None:
        self._lengths = [len(group["params"]) for group in groups]
        self._parameters = [p for group in groups for p in group["params"]]
        self._without = [p.grad is None for p in self._parameters]
        self._owners, self._parts = list(state), _parts(state)
        self._states: list[dict[str, Tensor]] = [dict(state.get(p, {})) for p in self._parameters]
        self._options: list[list[Any]] | None = None
        self._calls: list[_Call] | None = None

    def gradients(
        self, groups: Sequence[dict[str, Any]], state: dict[Any, Any]
    ) -> list[Tensor | None] | None:
        """The gradients of all parameters; None where something else is not as it was."""
        if [len(group["params"]) for group in groups] != self._lengths:
            return None
        parameters = self._parameters
        if not all(map(operator.is_, [p for g in groups for p in g["params"]], parameters)):
            return None
        if not _are_same(list(state), self._owners) or not _are_same(_parts(state), self._parts):
            return None
        gradients = [parameter.grad for parameter in parameters]
        return gradients if [g is None for g in gradients] == self._without else None

    def calls(self, groups: Sequence[dict[str, Any]]) -> list[_Call] | None:
        """What to call; None where torch would call the kernel more than once for a group.

        Groups with the same options are one.
        """
        options = [[group.get(name) for name in _OPTIONS] for group in groups]
        if options != self._options:
            self._options, self._calls = options, self._merged(options)
        return self._calls

    def _merged(self, options: list[list[Any]]) -> list[_Call] | None:
        places: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
        end = 0
        for index, length in enumerate(self._lengths):
            betas, *others = options[index]
            start, end = end, end + length
            moved = [place for place in range(start, end) if not self._without[place]]
            if moved:
                places.setdefault((*betas, *others), (index, []))[1].extend(moved)
        calls = []
        for group, found in places.values():
            parameters = [self._parameters[place] for place in found]
            states = [self._states[place] for place in found]
            amsgrad = options[group][_OPTIONS.index("amsgrad")]
            names = (*_STATE, _LARGEST) if amsgrad else _STATE
            if any(state.get(name) is None for state in states for name in names):
                return None
            if len({(p.device, p.dtype) for p in parameters}) > 1:
                return None
            calls.append(_Call(group, found, parameters, states))
        return calls


def _parts(state: dict[Any, Any]) -> list[Any]:
    return [part for held in state.values() for part in held.values()]


def _are_same(values: list[Any], others: list[Any]) -> bool:
    return len(values) == len(others) and all(map(operator.is_, values, others))


@final
class _Call:
    """One call of the kernel: a group, its parameters that move, and their state."""

    def __init__(
        self,
        group: int,
        places: list[int],
        parameters: list[Tensor],
        states: list[dict[str, Tensor]],
    ) -> None:
        self.group, self._places, self._parameters = group, places, parameters
        self._firsts, self._seconds, self._steps = (
            [state[name] for state in states] for name in _STATE
        )
        self._largest = [state[_LARGEST] for state in states if _LARGEST in state]
        on_cpu = all(step.is_cpu for step in self._steps)
        self._one = torch.ones_like(self._steps[0]) if on_cpu else None

    def update(
        self, group: dict[str, Any], gradients: list[Tensor | None], *, decoupled: bool
    ) -> None:
        """What torch's own ``step`` calls in the end."""
        beta1, beta2 = group["betas"]
        kernels: Any = torch  # which does not export them
        decoupled = group.get("decoupled_weight_decay", decoupled)
        kernel = kernels._fused_adamw_ if decoupled else kernels._fused_adam_
        if self._one is None:
            kernels._foreach_add_(self._steps, 1)
        else:  # a number would be made a tensor for each counter anew
            kernels._foreach_add_(self._steps, self._one, alpha=1.0)
        kernel(
            self._parameters,
            [gradients[place] for place in self._places],
            self._firsts,
            self._seconds,
            self._largest if group["amsgrad"] else [],
            self._steps,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
