"""Gradients: which parameters get one, which get none, and which nobody would train."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from amortized.checks.inventory import Inventory
from amortized.checks.places import names_words, shortened
from amortized.checks.report import Finding
from amortized.programs.leaves import leaves_under

_NAMED = 4

Gradients = dict[str, Tensor]

# what torch says where programs make a gradient impossible, and what to do about it
_BACKWARD = (
    (
        r"modified by an inplace operation",
        "make a new tensor instead of writing into one: s = s + 0.1 instead of s += 0.1, x.exp() "
        "instead of x.exp_()",
    ),
    (
        r"through the graph a second time",
        "keep no tensor with its graph from one run to the next, such as the state of a recurrent "
        "network: .detach() it, or start it anew",
    ),
    (
        r"does not require grad",
        "look for a mask of False, torch.no_grad() or .detach() around everything that is observed",
    ),
)


def no_gradient_findings(
    reached: Collection[int], known: Inventory, called: Collection[int], excused: Collection[int]
) -> Iterator[Finding]:
    """Parameters that the loss does not depend on in this run, together by network.

    ``called`` are the modules that ran; ``excused`` the parameters that other batches may use.
    """
    idle = known.idle(called)
    groups: dict[tuple[str, bool, bool], list[str]] = {}
    for name, tensor in known.fitted.items():
        if id(tensor) not in reached:
            key = (known.network[name], id(tensor) in idle, id(tensor) in excused)
            groups.setdefault(key, []).append(name)
    for (_, unused, optional), names in groups.items():
        yield _no_gradient(names, unused, optional)


def rare_findings(reached: Collection[int], known: Inventory) -> Iterator[Finding]:
    """Parameters that got no gradient where others get one in some runs and not in others."""
    names = [name for name, tensor in known.fitted.items() if id(tensor) not in reached]
    if names:
        yield Finding(
            "note",
            "no-gradient",
            None,
            _parameters(names),
            "no gradient in a few runs, in which other parameters had one now and then",
            "a gradient now and then for everything that is trained",
            "nothing to do if a latent decides which part of the program runs",
        )


def _no_gradient(names: list[str], unused: bool, optional: bool) -> Finding:
    if unused:
        found = "no gradient: this run did not use them"
        advice = (
            "use it, remove it, or freeze it with requires_grad_(False); other batches may use it"
        )
    else:
        them, they = ("it", "it") if len(names) == 1 else ("them", "they")
        found = f"no gradient: the loss does not depend on {them}"
        advice = (
            "look for .detach(), .data, .item(), torch.tensor(...) of a result, torch.no_grad(), "
            "argmax or a comparison on the way to the loss, and for a result that is never used; "
            f"if {they} should stay fixed, freeze {them} with requires_grad_(False)"
        )
    return Finding(
        "note" if unused and optional else "warning",
        "no-gradient",
        None,
        _parameters(names),
        found,
        "a gradient for everything that is trained",
        advice,
    )


def _parameters(names: list[str]) -> str:
    return f"parameter{'' if len(names) == 1 else 's'} {names_words(names, _NAMED)}"


def gradients_of(loss: Tensor, tensors: Mapping[str, Tensor]) -> Gradients:
    """Gradients by name; without those that the loss does not depend on."""
    if not tensors or not loss.requires_grad:
        return {}
    with gradients_aside([*tensors.values(), *leaves_under(loss).values()]):
        # a plain pass, as in training: a reentrant checkpoint has no gradient in any other
        loss.backward(retain_graph=True)
        return {name: leaf.grad for name, leaf in tensors.items() if leaf.grad is not None}


@contextmanager
def gradients_aside(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Backward passes start from no gradient, and what was there is put back."""
    kept = [(leaf, leaf.grad) for leaf in leaves]
    for leaf, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in reversed(kept):
            leaf.grad = gradient


def hidden_under(loss: Tensor, tensors: Mapping[str, Tensor]) -> set[int]:
    """Those that a backward pass reaches though no path leads to them: inside a checkpoint."""
    try:
        return {id(tensors[name]) for name in gradients_of(loss, tensors)}
    except RuntimeError:  # the gradient cannot be taken, which is said elsewhere
        return set()


def non_finite_gradient_findings(gradients: Gradients) -> Iterator[Finding]:
    """Gradients with NaN or infinity."""
    names = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
    if names:
        yield Finding(
            "error",
            "non-finite-gradient",
            None,
            _parameters(names),
            "NaN or infinity in the gradient of a finite loss",
            "finite gradients",
            "look for sqrt, log or a norm at 0, 0 * inf, and NaN hidden by torch.where: replace "
            "the bad argument before the function, not its result",
        )


def backward_advice(error: Exception) -> str | None:
    """What to do about a gradient that torch cannot take; None: that is not what it says."""
    text = str(error)
    found = (advice for pattern, advice in _BACKWARD if re.search(pattern, text))
    return next(found, None) if isinstance(error, RuntimeError) else None


def first_words(error: Exception) -> str:
    """What torch says, without what it advises."""
    return shortened(re.split(r" \(or directly|\. Hint: ", str(error))[0])


def backward_finding(error: Exception) -> Finding | None:
    """A gradient that torch cannot take; None: that is not what the error says."""
    advice = backward_advice(error)
    if advice is None:
        return None
    return Finding(
        "error",
        "program-raises",
        None,
        "the gradient of the loss",
        f"torch cannot take it: {first_words(error)}",
        "programs whose results can be differentiated",
        advice,
        error,
    )


def nothing_learns_finding() -> Finding:
    """A loss that depends on no parameter at all."""
    return Finding(
        "error",
        "no-gradient",
        None,
        "the loss",
        "it depends on no parameter, so nothing would be trained",
        "a gradient for what is trained",
        _BACKWARD[-1][1],
    )


def zero_names(gradients: Gradients) -> list[str]:
    """Parameters whose gradient is 0 everywhere."""
    return [name for name, g in gradients.items() if not bool((g != 0).any())]


def zero_findings(names: list[str], known: Inventory) -> Iterator[Finding]:
    """Parameters whose gradient stayed 0 for other noise and other values."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(known.network[name], []).append(name)
    for group in groups.values():
        yield Finding(
            "warning",
            "no-gradient",
            None,
            _parameters(group),
            "the gradient is exactly 0, also for other noise and for other parameter values",
            "a gradient for everything that is trained",
            "look for round, sign, floor, a comparison, or a factor that is 0 on the way to the "
            "loss",
        )


@contextmanager
def moved(tensors: Iterable[Tensor], distance: float) -> Iterator[None]:
    """Other values for parameters, then the old ones again; at distance 1 with either sign."""
    kept = [(t, t.detach().clone()) for t in tensors if t.is_floating_point()]
    try:
        with torch.no_grad():
            for tensor, value in kept:
                near, noise = (1.0 - distance) * value, torch.randn_like(value)
                tensor.copy_(near + distance * (value.abs() + 0.1) * noise)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
