"""Which parameter, and which site, a gradient that is not finite belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amortized.errors import NonFiniteError
from amortized.estimate import Estimate

_SHOWN = 3
# a norm that is not finite cannot be scaled to anything
_CLIPPING = "gradient_clip_val helps only where finite gradients had grown step by step before"


def named_gradients(leaves: Sequence[Tensor], names: Mapping[int, str]) -> str:
    """A clause naming the parameters whose gradient is not finite, and what to do."""
    bad = [names[id(leaf)] for leaf in leaves if leaf.grad is not None and _bad(leaf.grad)]
    if not bad:
        return (
            "the gradient of every parameter is finite, and together they overflow although the "
            "loss is finite; bring the data or a scale near 1, or lower the learning rate; "
            f"{_CLIPPING}, and fit(detect_anomaly=True) looks for a site"
        )
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    where = ", ".join(bad[:_SHOWN]) + more
    return (
        f"that of {where} is not finite although the loss is; look for sqrt, log or a division at "
        f"zero, or let fit(detect_anomaly=True) find the site; {_CLIPPING}"
    )


def watched_backward(loss: Tensor, estimate: Estimate, leaves: Sequence[Tensor]) -> None:
    """A backward pass that names the first site whose gradient is not finite (slow).

    Raises:
        NonFiniteError: naming the site, and torch's operation where it knows one.
    """
    operation, before = "", [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # what earlier batches added must survive this one
    with torch.autograd.set_detect_anomaly(True, check_nan=True), warnings.catch_warnings():
        # what torch warns of is in the error that follows
        warnings.filterwarnings("ignore", "Error detected in")
        try:
            loss.backward(retain_graph=True)
        except RuntimeError as error:
            operation = " ".join(str(error).split())
            if "nan" not in operation.lower():
                raise
    bad = operation != "" or any(leaf.grad is not None and _bad(leaf.grad) for leaf in leaves)
    for leaf, earlier in zip(leaves, before, strict=True):
        if bad or leaf.grad is None:
            leaf.grad = earlier
        elif earlier is not None:
            leaf.grad = earlier + leaf.grad
    if not bad:
        return
    where = _first_bad_site(estimate, leaves) or (
        "no single site (the sum of their gradients overflows, or an estimator's own term does it)"
    )
    torch_says = f" (torch: {operation})" if operation else ""
    raise NonFiniteError(
        f"the gradient is not finite, first at {where}{torch_says}, although the loss is; look for "
        f"sqrt, log or a division at zero there; {_CLIPPING}",
        estimate.site_table(),
    )


def _first_bad_site(estimate: Estimate, leaves: Sequence[Tensor]) -> str | None:
    """The first site, guide before model, whose log-probability has a bad gradient."""
    # where an estimator needs no gradient of -log q, the term is detached and the draw is not
    draws = [(latent.name, "guide", latent.draw.log_prob) for latent in estimate.run.latents]
    ordered = sorted(estimate.run.terms, key=lambda term: term.in_model)
    terms = [(term.name, term.side, term.value) for term in ordered]
    for name, program, value in (*draws, *terms):
        if not value.requires_grad:
            continue
        found = torch.autograd.grad(value.sum(), list(leaves), retain_graph=True, allow_unused=True)
        if any(gradient is not None and _bad(gradient) for gradient in found):
            return f"site {name!r} of the {program}"
    return None


def _bad(gradient: Tensor) -> bool:
    return not bool(gradient.isfinite().all())
