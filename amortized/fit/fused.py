"""Adam by torch's fused kernel, without what torch's optimizer does around each call.

The same kernel on the same state, so the same numbers; on small networks the bookkeeping around it
costs three times the update.
"""

from __future__ import annotations

import operator
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# what the kernel is told of a group
_OPTIONS: Final = (
    "lr",
    "eps",
    "weight_decay",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
)
_STATE: Final = ("exp_avg", "exp_avg_sq", "step", "max_exp_avg_sq")


@final
class FusedAdam:
    """One update of a torch ``Adam`` or ``AdamW`` whose groups are fused."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._lists: dict[int, _Lists] = {}

    def step(self) -> bool:
        """Moves the parameters; False, and nothing is done, where torch's own ``step`` is needed.

        That is: at the first step, for another optimizer, with hooks, or with rates in tensors.
        """
        if not self._serves():
            return False
        found: list[tuple[_Lists, dict[str, Any]]] = []
        for index, (group, parameters) in enumerate(_merged(self.optimizer.param_groups)):
            lists = self._lists_of(index, parameters)
            if lists is None:
                return False
            found.append((lists, group))
        decoupled = isinstance(self.optimizer, torch.optim.AdamW)
        for lists, group in found:
            if lists.parameters:
                decay = group.get("decoupled_weight_decay", decoupled)
                lists.update(group, decoupled=decay)
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
        return all(
            group["fused"] and type(group["lr"]) is float and not group["differentiable"]
            for group in optimizer.param_groups
        )

    def _lists_of(self, index: int, parameters: list[Tensor]) -> _Lists | None:
        moved = [p for p in parameters if p.grad is not None]
        known = self._lists.get(index)
        if known is None or not known.serves(moved, self.optimizer.state):
            known = _Lists.of(moved, self.optimizer.state)
            if known is not None:
                self._lists[index] = known
        return known


def _merged(groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """Groups with their parameters; those with the same options are one."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], list[Tensor]]] = {}
    for group in groups:
        options = (*group["betas"], *[group.get(name) for name in _OPTIONS])
        if options in found:
            found[options][1].extend(group["params"])
        else:
            found[options] = (group, list(group["params"]))
    return list(found.values())


class _Lists:
    """The parameters of a group that have gradients, and their state, as the kernel wants them."""

    def __init__(self, parameters: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        self.parameters = parameters
        self._parts = [[state.get(name) for state in states] for name in _STATE]
        self.firsts, self.seconds, self.steps, largest = self._parts
        self.largest = [tensor for tensor in largest if tensor is not None]

    @classmethod
    def of(cls, parameters: list[Tensor], state: Any) -> _Lists | None:
        """None where torch has yet to make a state, or would call the kernel more than once."""
        states = [state.get(parameter) for parameter in parameters]
        if not all(states) or len({(p.device, p.dtype) for p in parameters}) > 1:
            return None
        return cls(parameters, states)

    def serves(self, parameters: list[Tensor], state: Any) -> bool:
        """Whether the same parameters have gradients, and the state is still the same."""
        if len(parameters) != len(self.parameters):
            return False
        if any(a is not b for a, b in zip(parameters, self.parameters, strict=True)):
            return False
        states = [state.get(parameter, {}) for parameter in parameters]
        return all(
            all(map(operator.is_, [held.get(name) for held in states], part))
            for name, part in zip(_STATE, self._parts, strict=True)
        )

    @torch.no_grad()
    def update(self, group: dict[str, Any], *, decoupled: bool) -> None:
        """What torch's own ``step`` calls in the end."""
        beta1, beta2 = group["betas"]
        kernels: Any = torch  # which does not export them
        kernel = kernels._fused_adamw_ if decoupled else kernels._fused_adam_
        kernels._foreach_add_(self.steps, 1)
        kernel(
            self.parameters,
            [p.grad for p in self.parameters],
            self.firsts,
            self.seconds,
            self.largest if group["amsgrad"] else [],
            self.steps,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
