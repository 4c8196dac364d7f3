"""Noise of a discrete value, free and given the value: what control variates are made of.

A hard value b is H(z), with z = logits + noise. A control variate also needs z~, drawn from the law
of z given b, *as a function of the logits*: they move z~ through the condition too. Both are exact,
and in log space, so that they are finite where probabilities underflow. Gradients are closed
forms in the logits, elementwise.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from amortized.estimators.base import Draw, Estimator, Noise, Site, base_of
from amortized.estimators.elements import (
    element_dims,
    finite,
    held,
    is_bernoulli,
    is_categorical,
    linear_log_prob,
    logits_of,
    unrelaxable,
)


@final
@dataclass(frozen=True, eq=False)
class Conditioned:
    """A hard draw and its noise, detached, shape ``[*batch, *elements]``, plus one for categories.

    The derivative of ``free`` in its logit is 1. With tied noise ``given`` has the values of
    ``free`` and a derivative of its own.
    """

    hard: Tensor
    """b, or b as one-hot."""
    free: Tensor
    """z, of which b is made."""
    given: Tensor
    """z~, drawn from the law of z given b."""
    turn: Tensor
    """The derivative of z~ in its logit (of a category: in its normalized log-probability)."""


def conditioned(site: Site, logits: Tensor, noise: Noise, *, tied: bool = False) -> Conditioned:
    """A hard value with its noise, from `logits_by_element`.

    Args:
        site: the latent.
        logits: of its elements.
        noise: gives a uniform for each logit; twice, unless tied.
        tied: z~ takes the noise of z: uniform given b, and one evaluation less.
    """
    logits = logits.detach()
    make = _of_bits if is_bernoulli(site.law) else _of_categories
    u = _uniform(site, logits, noise)
    return make(logits, u, None if tied else _uniform(site, logits, noise))


def logits_by_element(law: Any, support: Tensor | None = None) -> Tensor:
    """Logits of a finite law, attached, over its whole batch and event.

    Bernoulli: ``[*batch, *elements]``; anything else: log-probabilities of the values of its
    support, ``[*batch, *elements, values]``.

    Args:
        law: Bernoulli, categorical, or one of numbers with a finite support.
        support: the numbers, if they are known.
    """
    shape = law.batch_shape + law.event_shape[: element_dims(law)]
    if is_bernoulli(law):
        return logits_of(law).expand(shape)
    if is_categorical(law):
        logs = logits_of(law)
    else:
        inner = base_of(law)
        values = inner.enumerate_support(expand=False) if support is None else support
        ones = (1,) * len(inner.batch_shape)
        logs = inner.log_prob(values.reshape(-1, *ones)).movedim(0, -1)
    return logs.expand(*shape, logs.shape[-1])


def means_of(law: Any, logits: Tensor) -> Tensor:
    """The mean of the hard value, of the shape of the logits."""
    return logits.sigmoid() if is_bernoulli(law) else logits.exp()


def in_logits(law: Any, gradient: Tensor, means: Tensor) -> Tensor:
    """A gradient in normalized log-probabilities as one in free logits; of bits as it is."""
    if is_bernoulli(law):
        return gradient
    return gradient - means * gradient.sum(-1, keepdim=True)


def over_event(cost: Tensor, law: Any) -> Tensor:
    """A cost ``[*left]`` with a dim of size 1 for each event dim of the logits."""
    return cost.reshape((*cost.shape, *(1,) * _event_dims(law)))


def sum_event(value: Tensor, law: Any) -> Tensor:
    """What is like the logits, summed to ``[*left]``."""
    dims = _event_dims(law)
    return value.sum(tuple(range(-dims, 0))) if dims else value


def carried(gradient: Tensor, logits: Tensor, law: Any) -> Tensor:
    """A term of value zero, ``[*left]``, with that gradient in the logits."""
    return sum_event(_carried(logits, finite(gradient.detach())), law)


@final
class _Carried(torch.autograd.Function):
    """Zeros with a given gradient; ``logits - logits.detach()`` is NaN at infinite logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor) -> Tensor:
        """Zeros of the shape of both."""
        ctx.save_for_backward(gradient)
        return torch.zeros_like(gradient)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """The given gradient, times the slope in these zeros."""
        (gradient,) = ctx.saved_tensors
        return slopes[0] * gradient, None


def _carried(logits: Tensor, gradient: Tensor) -> Tensor:
    logits, gradient = torch.broadcast_tensors(logits, gradient)
    return torch.as_tensor(_Carried.apply(logits, gradient))


def through(law: Any, value: Tensor, slope: Tensor) -> Tensor:
    """A slope in a sigmoid or softmax with this value, as one in what it was taken of."""
    if is_bernoulli(law):
        return slope * value * (1 - value)
    return value * (slope - (value * slope).sum(-1, keepdim=True))


def _event_dims(law: Any) -> int:
    return element_dims(law) + (0 if is_bernoulli(law) else 1)


def _uniform(site: Site, logits: Tensor, noise: Noise) -> Tensor:
    """Inside (0, 1) as the dtype has it, so that no logarithm is infinite."""
    u = noise.uniform(tuple(logits.shape), logits, site=site.name)
    kind = torch.finfo(u.dtype)
    return u.clamp(kind.tiny, 1 - kind.eps / 2)


def _of_bits(logits: Tensor, u: Tensor, v: Tensor | None) -> Conditioned:
    free = logits + u.log() - torch.log1p(-u)
    one = free > 0
    hard = one.to(logits.dtype)
    if v is None:
        # z~ = z: its derivative is 1 - (1 - p) / u where b = 1, 1 - p / (1 - u) where b = 0
        taken = torch.where(
            one, F.logsigmoid(-logits) - u.log(), F.logsigmoid(logits) - torch.log1p(-u)
        )
        return Conditioned(hard, free, free, -torch.expm1(taken))
    # logits + logit(v p + 1 - p) where b = 1, logits + logit(v (1 - p)) where b = 0
    above, below = logits + v.log(), torch.log1p(-v) - logits
    given = torch.where(one, F.softplus(above) - torch.log1p(-v), v.log() - F.softplus(below))
    return Conditioned(hard, free, given, torch.where(one, above, below).sigmoid())


def _of_categories(logs: Tensor, u: Tensor, v: Tensor | None) -> Conditioned:
    free = logs - _log_exponential(u)
    best = free.argmax(-1, keepdim=True)
    hard = torch.zeros_like(free).scatter(-1, best, 1.0)
    if v is None:
        # z~ = z: the derivative is 1 - exp(z - max z)
        return Conditioned(hard, free, free, -torch.expm1(free - free.gather(-1, best)))
    waiting = _log_exponential(v)
    top = waiting.gather(-1, best)
    # the maximum is Gumbel whatever the logits; the others are below it
    excess = waiting - logs
    given = torch.where(hard > 0, -waiting, -torch.logaddexp(excess, top))
    turn = torch.where(hard > 0, torch.zeros_like(excess), (excess - top).sigmoid())
    return Conditioned(hard, free, given, turn)


def _log_exponential(u: Tensor) -> Tensor:
    """The logarithm of a standard exponential, accurate where it is small (at the maximum)."""
    return (-torch.log1p(-u)).log()


class WithRelaxedCopies(Estimator, ABC):
    """Copies: the hard value first, then relaxed ones that only its control variate sees.

    log q at a relaxed value is its linear form with the parameters held, so the control variate
    has the entropy that the cost has.
    """

    differentiates_cost = True
    base_only = True
    keeps_log_q = True
    in_rows = True
    needs = "a model that accepts, and is differentiable at, values between 0 and 1"

    def refusal(self, site: Site) -> str | None:
        """Bernoulli and one-hot have relaxed values."""
        return unrelaxable(site)

    def density(self, law: Distribution, value: Tensor) -> Tensor:
        """The log-probability as a linear function of the value."""
        return linear_log_prob(law, value)

    def log_q(self, draw: Draw) -> Tensor:
        """log q of every copy, with a gradient in the value only."""
        return linear_log_prob(held(draw.site.law), draw.value)

    def rows(self, draw: Draw, tensor: Tensor) -> tuple[Tensor, ...]:
        """What is like the value, copy by copy, the dim of the copies kept with size 1."""
        return tensor.split(1, draw.dim(tensor))
