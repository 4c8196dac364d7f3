"""Parameters that a loss depends on, and that no module has registered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch.distributed as dist
from torch import Tensor, nn

from amortized.errors import ProgramError
from amortized.programs.leaves import leaves_under


def refuse_unregistered(loss: Tensor, programs: Iterable[Any]) -> None:
    """Raise for parameters that DistributedDataParallel would leave out, among several processes.

    Its hooks see the registered parameters of the module that it wraps, and no others: these would
    have another gradient in each process.

    Raises:
        ProgramError: naming them.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    names = unregistered(loss, programs)
    if names:
        raise ProgramError(
            f"parameter {', '.join(map(repr, names))} is registered in no module of the pair, so "
            "DistributedDataParallel would not add up its gradient: expected an nn.Parameter or a "
            "PyroParam of a model or guide that is a module; or train with am.SVI, which adds up "
            "all of them"
        )


def unregistered(loss: Tensor, programs: Iterable[Any]) -> list[str]:
    """The names that Pyro's store has for parameters below a loss which no module holds.

    >>> import torch
    >>> lone = pyro.param("lone", torch.tensor(2.0))
    >>> unregistered(lone**2, [nn.Linear(1, 1)])
    ['lone']
    >>> pyro.clear_param_store()
    """
    modules = [program for program in programs if isinstance(program, nn.Module)]
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    used = leaves_under(loss).keys()
    store = pyro.get_param_store().named_parameters()
    return sorted(name for name, leaf in store if id(leaf) in used - owned)
