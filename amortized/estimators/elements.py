"""The elements of an event, and densities at relaxed values.

An event of ``to_event(k)`` holds elements that are drawn independently. Coefficients of antithetic
and control-variate estimators belong to one element, while the cost belongs to the whole event.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from amortized.errors import EstimatorError
from amortized.estimators.base import base_of

_MASKED: Final = "MaskedDistribution"
_INDEPENDENT: Final = "Independent"


def is_bernoulli(law: Any) -> bool:
    """Whether the elements are bits with a probability."""
    return isinstance(base_of(law), torch.distributions.Bernoulli)


def is_one_hot(law: Any) -> bool:
    """Whether an element is a one-hot vector, which has relaxed values on the simplex."""
    return isinstance(base_of(law), torch.distributions.OneHotCategorical)


def is_categorical(law: Any) -> bool:
    """Whether an element is one of finitely many categories, as an index or one-hot."""
    return is_one_hot(law) or isinstance(base_of(law), torch.distributions.Categorical)


def logits_of(law: Any) -> Tensor:
    """The logits of the elements, attached.

    Bernoulli: log p - log(1 - p), shape ``[*batch, *elements]``. Categorical or one-hot: normalized
    log-probabilities, shape ``[*batch, *elements, categories]``.
    """
    inner = base_of(law)
    logits = inner.logits
    if is_categorical(law):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        return logits.expand(*inner.batch_shape, logits.shape[-1])
    return logits.expand(inner.batch_shape)


def element_dims(law: Any) -> int:
    """How many dims of the event are independent elements (``to_event``)."""
    return len(law.event_shape) - len(base_of(law).event_shape)


def to_elements(cost: Tensor, law: Any) -> Tensor:
    """A tensor of shape ``[*left]`` with a dim of size 1 for each dim of elements."""
    return cost.reshape((*cost.shape, *(1,) * element_dims(law)))


def sum_elements(value: Tensor, law: Any) -> Tensor:
    """A tensor of shape ``[*left, *elements]``, summed over the elements."""
    dims = element_dims(law)
    return value.sum(tuple(range(-dims, 0))) if dims else value


def linear_log_prob(law: Any, value: Tensor) -> Tensor:
    """The log-probability of a Bernoulli or one-hot law as the linear function of its value.

    ``z * logit - softplus(logit)``, or ``sum_i z_i log pi_i``: the log-probability where z is hard,
    and defined where it is relaxed. Masks inside the law apply.

    Raises:
        EstimatorError: another law, whose log-probability at a relaxed value nobody has defined.
    """
    kind = type(law).__name__
    if kind == _MASKED:
        inner = linear_log_prob(law.base_dist, value)
        return torch.where(torch.as_tensor(law._mask), inner, torch.zeros_like(inner))
    if kind == _INDEPENDENT:
        inner = linear_log_prob(law.base_dist, value)
        dims = law.reinterpreted_batch_ndims
        return inner.sum(tuple(range(-dims, 0))) if dims else inner
    if isinstance(law, torch.distributions.Bernoulli):
        logits, value = torch.broadcast_tensors(law.logits, value)
        return -F.binary_cross_entropy_with_logits(logits, value, reduction="none")
    if isinstance(law, torch.distributions.OneHotCategorical):
        log_probs = law.logits - law.logits.logsumexp(-1, keepdim=True)
        # a category that is impossible and not taken contributes nothing: 0 * -inf is NaN; the
        # others keep the slope that they have at 0
        nothing = (value == 0) & (log_probs == -torch.inf)
        return (value * torch.where(nothing, 0.0, log_probs)).sum(-1)
    raise EstimatorError(
        f"a {type(base_of(law)).__name__} has no log-probability at relaxed values; relaxed values "
        "need a Bernoulli or a OneHotCategorical in model and guide, under the same name"
    )


def support_moves(law: Any) -> bool:
    """Whether a bound of the support has a gradient: then the score does not have mean zero."""
    try:
        support = base_of(law).support
    except NotImplementedError:
        return False
    bounds = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in bounds)
