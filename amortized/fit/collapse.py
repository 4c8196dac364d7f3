"""Notices about latents that the model has come to ignore (posterior collapse)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from amortized.fit.history import History

# An early KL says nothing: guides often start at the prior.
_FIRST_EPOCH: Final = 5
_NEAR_ZERO: Final = 0.01


def collapse_notices(
    history: History, local: Collection[str], epoch: int, kl_weight: float
) -> list[str]:
    """A sentence for each latent of the data points whose KL is near zero, once a training.

    Global latents are left out: per data point their KL is small by the size of the data.
    """
    if epoch < _FIRST_EPOCH or kl_weight < 1.0:
        return []
    last, found = history.last(), []
    for site in sorted(local):
        kl = last.get(f"kl/{site}")
        known = any(notice.startswith(_begin(site)) for notice in history.notices)
        if kl is not None and abs(kl) < _NEAR_ZERO and not known:
            found.append(
                f"{_begin(site)} {kl + 0.0:.1e} nats per data point at epoch {epoch}: the guide "
                "has become the prior and the model ignores it (posterior collapse); try a KL "
                "warm-up (n_epochs_kl_warmup), a weaker decoder, or fewer dims"
            )
    return found


def _begin(site: str) -> str:
    return f"site {site!r}: its KL is"
