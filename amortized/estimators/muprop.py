"""MuProp: the score function, with the cost's first-order expansion at the mean taken out."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.estimators.base import Cost, Draw, Noise, Site
from amortized.estimators.conditional import (
    WithRelaxedCopies,
    carried,
    logits_by_element,
    means_of,
    over_event,
    sum_event,
    through,
)
from amortized.estimators.elements import finite
from amortized.estimators.running import Running


class MuProp(Running, WithRelaxedCopies):
    r"""The score of what the cost's expansion at the mean leaves, and the expansion's own gradient.

    .. math:: \hat g = (f(b) - h(b))\, \nabla_\phi \log q_\phi(b) + f'(\mu)^\top \nabla_\phi \mu,
        \qquad h(b) = m + f(\mu) + f'(\mu)^\top (b - \mu), \quad \mu = E b

    m is the running mean of past ``f(b) - f(mu)``: the cost at a mean is far from the mean cost
    where many bits are uncertain. Unbiased, with later sites too: they are drawn anew on the copy
    at the mean, and any offset and slope that do not depend on b will do. Where the cost is affine
    in b every draw is the exact gradient, as soon as m is 0. Value and theta's gradient are those
    of the hard copy alone.

    Bernoulli and one-hot sites (also ``to_event``, with a joint cost), under a model that accepts
    values between and is differentiable there. Copies: 2 (hard, mean). State: ``mean``,
    ``square`` and ``rate`` of past differences.

    Gu et al. 2015 (1511.05176), with its baseline for what the expansion leaves.

    >>> MuProp()
    MuProp()
    """

    label = "muprop"

    def __init__(self) -> None:
        super().__init__()
        self.make_running()

    def copies(self, site: Site) -> int:
        """The hard value and the mean."""
        return 2

    def draw(self, site: Site, noise: Noise) -> Draw:
        """A draw and the mean, ``[2, *batch, *event]``; constants to phi."""
        means = means_of(site.law, logits_by_element(site.law).detach())
        hard = noise.sample(site.law, site=site.name).to(means.dtype)
        value = torch.stack([hard, means.expand(hard.shape)])
        if torch.is_grad_enabled():
            value = value.requires_grad_()
        return Draw(site, value, 2, memory={"hard": hard, "means": means}, ordinary=1)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """The gradient in the logits, handed on to them."""
        if not torch.is_grad_enabled():
            return None
        law, means = draw.site.law, draw.memory["means"]
        slope = finite(self.rows(draw, cost.slope(draw))[1])
        hard, at_mean = draw.each(cost.copies)
        away = draw.memory["hard"] - means
        expected = at_mean + sum_event(slope * away, law) + self.mean.to(hard)
        left = finite(hard - finite(expected))
        expanded = through(law, means, slope)
        return carried(over_event(left, law) * away + expanded, logits_by_element(law), law)

    def update(self, draw: Draw, cost: Cost) -> None:
        """Move the running mean of what the expansion leaves; its linear part has mean zero."""
        hard, at_mean = draw.each(cost.copies)
        self.follow(hard - at_mean)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        return "MuProp()"
