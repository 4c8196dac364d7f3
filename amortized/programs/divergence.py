"""KL divergences in closed form, between the distributions of two sample statements."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.util import broadcast_shape, scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from amortized.estimators.base import base_of, wrappers_of
from amortized.programs.records import SiteRecord

_CATEGORICAL = (torch.distributions.Categorical, torch.distributions.OneHotCategorical)
_BIT = torch.distributions.Bernoulli


def analytic_kl(guide: SiteRecord, prior: SiteRecord) -> tuple[Tensor | None, str]:
    """-KL(q || p), scaled and masked as the pair is; or None and why it must be sampled.

    Where model and guide scale or mask the site differently (s_p, s_q),
    ``E_q[s_p log p - s_q log q] = -s_p KL + (s_q - s_p) H(q)``.
    """
    (q, q_mask), (p, p_mask) = _split(guide.fn), _split(prior.fn)
    kl = closed_kl(q, p)
    if kl is None:
        pair = f"{_name(q)} and {_name(p)}"
        return None, f"sampled: no closed form between {pair}"
    masks = [m for m in (guide.mask, q_mask) if m is not None]
    prior_masks = [m for m in (prior.mask, p_mask) if m is not None]
    value = _masked(scale_and_mask(-kl, prior.scale), prior_masks)
    if _same(guide.scale, prior.scale) and _all_same(masks, prior_masks):
        return value, "closed form"
    try:
        entropy = q.entropy()
    except NotImplementedError:
        return None, "sampled: model and guide scale it differently, and q has no entropy formula"
    own = _masked(scale_and_mask(entropy, guide.scale), masks)
    theirs = _masked(scale_and_mask(entropy, prior.scale), prior_masks)
    return value + own - theirs, "closed form"


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q || p) of shape ``[*batch]``, or None where no closed form is known."""
    if is_masked(q) or is_masked(p) or isinstance(base_of(q), dist.Delta):
        # a mask inside an event hides terms, not the law; at a Delta the sampled form is exact
        return None
    shared = min(_independent_dims(q), _independent_dims(p))
    q, p = _peel(q, shared), _peel(p, shared)
    if isinstance(q, _CATEGORICAL) and isinstance(p, _CATEGORICAL):
        inner = _categorical_kl(q, p)
    elif isinstance(q, _BIT) and isinstance(p, _BIT):
        inner = _bernoulli_kl(q.logits, p.logits)
    else:
        shape = broadcast_shape(q.batch_shape, p.batch_shape)
        try:
            inner = kl_divergence(q.expand(shape), p.expand(shape))
        except NotImplementedError:
            return None
    return inner.sum(tuple(range(-shared, 0))) if shared else inner


def _categorical_kl(q: Any, p: Any) -> Tensor:
    """KL of categorical laws; an impossible category of q contributes 0, also to gradients."""
    impossible = q.logits == -torch.inf
    ratio = q.logits.masked_fill(impossible, 0.0) - p.logits.masked_fill(impossible, 0.0)
    return (q.probs * ratio).sum(-1)


def _bernoulli_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL of bits by their logits; torch's is infinite where a probability rounds to 0 or 1."""
    one = torch.sigmoid(q) * (F.softplus(-p) - F.softplus(-q))
    return one + torch.sigmoid(-q) * (F.softplus(p) - F.softplus(q))


def _independent_dims(fn: Any) -> int:
    """How many event dims come from ``to_event``."""
    return fn.reinterpreted_batch_ndims if isinstance(fn, torch.distributions.Independent) else 0


def _peel(fn: Any, dims: int) -> Any:
    """The distribution with its last ``dims`` event dims back in the batch shape."""
    if dims == 0:
        return fn
    inner, left = fn.base_dist, fn.reinterpreted_batch_ndims - dims
    return inner.to_event(left) if left else inner


def _split(fn: Any) -> tuple[Any, Any]:
    """A distribution without its outer mask, and that mask."""
    mask = None
    while isinstance(fn, dist.MaskedDistribution):
        own = fn._mask
        mask = own if mask is None else mask & own
        fn = fn.base_dist
    return fn, mask


def _masked(value: Tensor, masks: list[Any]) -> Tensor:
    for mask in masks:
        value = scale_and_mask(value, 1.0, mask)
    return value


def is_masked(fn: Any) -> bool:
    """Whether a distribution masks a part of itself."""
    return any(type(layer).__name__ == "MaskedDistribution" for layer in wrappers_of(fn))


def _same(a: Any, b: Any) -> bool:
    """Whether two scales are known to be equal without reading a tensor."""
    if a is b:
        return True
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _all_same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


def _name(fn: Any) -> str:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__
