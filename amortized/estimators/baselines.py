"""Baselines of the score function: what a draw was expected to earn.

A baseline may depend on the data, on earlier sites and on *other* draws, never on the draw that
it is subtracted from: that is what keeps the score function unbiased. Costs are per datum, the
subsampling factor divided out, so that targets do not grow with N / B.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn
from torch.distributions import Distribution

from amortized.errors import UsageError
from amortized.estimators.base import (
    Cost,
    Draw,
    Site,
    base_of,
    parameter_names,
    parameters_of,
)
from amortized.estimators.elements import sum_elements
from amortized.estimators.running import Running, applied, network_or_default


class Baseline(nn.Module, ABC):
    """A prediction of a site's downstream cost that does not see the site's own draw."""

    label: str = ""

    @abstractmethod
    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The prediction, broadcastable to ``cost.copies`` (nats per datum, detached)."""

    def copies(self, site: Site) -> int:
        """How many draws of the site are needed."""
        return 1

    def refusal(self, site: Site, copies: int) -> str | None:
        """Why the site cannot be served with that many copies, or None."""
        return None

    def regression(self, predicted: Tensor, cost: Tensor) -> Tensor | None:
        """A term of value zero that trains the baseline's own parameters, or None."""
        return None

    def update(self, cost: Tensor) -> None:
        """Move the baseline's state, after use."""
        return None

    def observe(self, draw: Draw, cost: Cost) -> None:
        """The same for a baseline that also learns from the draw; calls `update` by default."""
        self.update(cost.copies)


class Constant(Baseline):
    """A fixed number of nats.

    Unbiased for every value; the best one is problem dependent.

    >>> Constant(-90.0)
    Constant(-90.0)
    """

    label = "constant"

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = float(value)

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The constant, as a 0-d tensor."""
        return cost.copies.new_full((), self.value)

    def __repr__(self) -> str:
        """One line."""
        return f"Constant({self.value})"


class MovingAverage(Baseline):
    r"""An exponential moving average of past costs, used before it is updated.

    .. math:: b \leftarrow \rho\, b + (1 - \rho)\, \bar f

    One number per site, in nats per datum, averaged over the plate, so it does not store the
    shape of a minibatch. Unbiased because the average holds past costs only.

    Args:
        decay: rho, between 0 and 1.

    Raises:
        UsageError: ``decay`` outside [0, 1).

    Mnih & Gregor 2014 (1402.0030), Ranganath et al. 2014 (1401.0118).

    >>> MovingAverage(decay=0.95)
    MovingAverage(decay=0.95)
    """

    label = "moving average"
    average: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not isinstance(decay, int | float) or not 0.0 <= decay < 1.0:
            raise UsageError(f"MovingAverage(decay={decay!r}): expected 0 <= decay < 1")
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The average so far (0 before the first update)."""
        return self.average.to(cost.copies).clone()

    @torch.no_grad()
    def update(self, cost: Tensor) -> None:
        """Move the average towards the mean cost, in place."""
        mean = cost.mean().to(self.average)
        # one impossible event must not spoil every later gradient
        mean = torch.where(mean.isfinite(), mean, self.average)
        self.average.mul_(self.decay).add_(mean, alpha=1.0 - self.decay)

    def __repr__(self) -> str:
        """One line."""
        return f"MovingAverage(decay={self.decay})"


class LeaveOneOut(Baseline):
    r"""The mean cost of the other draws: of the site's own samples, else of the particles.

    .. math:: b_k = \frac{1}{K - 1} \sum_{j \ne k} f_j

    Unbiased because draws are independent; no state. The gradient is zero, draw by draw, when the
    cost is constant, hence at q = posterior. With one particle and no ``num_samples`` the site
    draws two samples of its own; with several particles the baseline is over them and costs
    nothing.

    Kool et al. 2019 ("Buy 4 REINFORCE samples"); Salimans & Knowles 2014 (1401.1022).

    >>> LeaveOneOut()
    LeaveOneOut()
    """

    label = "leave one out"

    def copies(self, site: Site) -> int:
        """Two draws of its own, unless there are particles to compare with."""
        return 1 if site.num_particles > 1 else 2

    def refusal(self, site: Site, copies: int) -> str | None:
        """At least two draws in all."""
        if copies > 1 or site.num_particles > 1:
            return None
        return (
            "a leave-one-out baseline needs at least two draws, and there is one sample of one "
            "particle at a time; use ScoreFunction(LeaveOneOut(), num_samples=2), or "
            "ELBO(num_particles=2) unless vectorize=False runs particles one by one"
        )

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The mean over the other draws, shape of ``cost.copies``."""
        if draw.axis is None:
            return cost.copies if cost.peers is None else cost.peers
        return mean_of_others(cost.copies, draw.axis)


def mean_of_others(cost: Tensor, dim: int) -> Tensor:
    """For each entry of a dim, the mean of the other entries; the entry itself if it is alone.

    >>> mean_of_others(torch.tensor([1.0, 2.0, 6.0]), -1)
    tensor([4.0000, 3.5000, 1.5000])
    """
    count = cost.shape[dim] if cost.dim() >= -dim else 1
    if count == 1:
        return cost
    return (cost.sum(dim, keepdim=True) - cost) / (count - 1)


class NeuralBaseline(Running, Baseline):
    r"""A network's prediction of the cost, trained on the squared error (NVIL).

    .. math:: b = m + s\, C_\psi(u), \qquad \psi \text{ minimizes } ((f - b) / s)^2

    m and s are the running mean and standard deviation of past costs, so the network has to tell
    data apart and not to climb to their level first. ``u`` is what the draw may depend on: by
    default the parameters of the site's distribution (functions of the data and of earlier sites),
    detached; or the tensor given at the site as ``infer={"baseline_input": tensor}``, of shape
    ``[*plates, features]``. The network gets no gradient from the objective, and the objective none
    from the network's loss. Unbiased. State: the network, and ``mean``, ``square``, ``rate`` of
    past costs.

    Args:
        network: maps ``[*plates, features]`` to ``[*plates, 1]``; None builds one hidden layer.
        hidden: width of the hidden layer of the default network.

    Raises:
        UsageError: a network that is no module, a width below 1.

    Mnih & Gregor 2014 (1402.0030).

    >>> NeuralBaseline(hidden=16).label
    'neural'
    """

    label = "neural"

    def __init__(self, network: nn.Module | None = None, *, hidden: int = 64) -> None:
        super().__init__()
        self.network = network_or_default("NeuralBaseline", network, hidden)
        self.make_running()

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The prediction, shape ``[*left]`` without event dims."""
        site = draw.site
        features = features_of(site.law) if site.inputs is None else site.inputs.detach()
        found = applied(self.network, features.to(cost.copies.dtype))
        return self.mean.to(found).clone() + self.spread().to(found) * found

    def regression(self, predicted: Tensor, cost: Tensor) -> Tensor:
        """Minus the squared error in units of the spread, shifted to value zero."""
        error = -(((cost - predicted) / self.spread().to(cost)) ** 2)
        return error - error.detach()

    def update(self, cost: Tensor) -> None:
        """Move the running mean and spread."""
        self.follow(cost)

    def __repr__(self) -> str:
        """One line."""
        return f"NeuralBaseline({type(self.network).__name__})"


class Scaled(Baseline):
    r"""A baseline as a control variate, with the coefficient that has been best so far.

    .. math:: a\, b, \qquad a = \frac{E[f\, b\, |s|^2]}{E[b^2\, |s|^2]}, \qquad
        s = \nabla \log q

    ``a b s`` is the multiple of ``b s`` (whose mean is zero) that leaves the least variance in
    ``(f - a b) s``. The two means are moving averages of past draws, used before they are updated,
    so the estimate stays unbiased. The score is taken in the parameters of the distribution, summed
    over an event; one coefficient a site. Without a baseline b = 1, and a is the best constant.

    Args:
        baseline: what is scaled; None for a constant.
        decay: of the moving averages, between 0 and 1.

    Until its first update a is 1, or 0 without a baseline. State: the two means, and what the
    baseline has.
    Refuses a distribution that cannot be made again from its parameters (mixtures, flows): the
    score of one draw cannot be told there.

    Raises:
        UsageError: ``decay`` outside [0, 1), or no baseline.

    Ranganath et al. 2014 (1401.0118); Greensmith et al. 2004 (JMLR 5).

    >>> Scaled(MovingAverage())
    Scaled(MovingAverage(decay=0.9), decay=0.9)
    """

    label = "scaled"
    means: Tensor

    def __init__(self, baseline: Baseline | None = None, decay: float = 0.9) -> None:
        super().__init__()
        if baseline is not None and not isinstance(baseline, Baseline):
            raise UsageError(
                f"Scaled(baseline={baseline!r}): expected an amortized baseline (am.MovingAverage, "
                "am.LeaveOneOut, am.NeuralBaseline) or None"
            )
        if not isinstance(decay, int | float) or not 0.0 <= decay < 1.0:
            raise UsageError(f"Scaled(decay={decay!r}): expected 0 <= decay < 1")
        self.baseline = baseline
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))

    def copies(self, site: Site) -> int:
        """What the baseline needs."""
        return 1 if self.baseline is None else self.baseline.copies(site)

    def refusal(self, site: Site, copies: int) -> str | None:
        """A score in known parameters; and what the baseline refuses."""
        if rebuilt(site.law, ()) is None:
            return (
                f"the score of one draw of {site.family} cannot be told, since it is not made from "
                "its parameters alone; use am.ScoreFunction() with the baseline itself"
            )
        return None if self.baseline is None else self.baseline.refusal(site, copies)

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        """The baseline times the coefficient so far."""
        top, bottom = self.means.to(cost.copies).clone().unbind()
        start = torch.full_like(top, 0.0 if self.baseline is None else 1.0)
        scale = torch.where(bottom > 0, top / bottom, start)
        return scale * self._unscaled(draw, cost)

    def _unscaled(self, draw: Draw, cost: Cost) -> Tensor:
        if self.baseline is None:
            return cost.copies.new_ones(())
        return self.baseline(draw, cost)

    def regression(self, predicted: Tensor, cost: Tensor) -> Tensor | None:
        """The baseline's own: its network makes up for the coefficient."""
        return None if self.baseline is None else self.baseline.regression(predicted, cost)

    def observe(self, draw: Draw, cost: Cost) -> None:
        """Move the two means in place, by the baseline as it was used; then the baseline."""
        score = squared_score(draw)
        with torch.no_grad():
            unscaled, target = self._unscaled(draw, cost), cost.copies
            both = torch.stack(
                [(target * unscaled * score).mean(), (unscaled * unscaled * score).mean()]
            ).to(self.means)
            # one impossible event must not spoil every later gradient
            both = torch.where(both.isfinite().all(), both, self.means)
            self.means.mul_(self.decay).add_(both, alpha=1.0 - self.decay)
        if self.baseline is not None:
            self.baseline.observe(draw, cost)

    def __repr__(self) -> str:
        """One line."""
        inner = "" if self.baseline is None else f"{self.baseline!r}, "
        return f"Scaled({inner}decay={self.decay})"


def squared_score(draw: Draw) -> Tensor:
    """The squared norm of each draw's score in the parameters of its law, shape ``[*left]``."""
    law, value = draw.site.law, draw.value
    found = rebuilt(law, value.shape[: value.dim() - len(base_of(law).event_shape)])
    if found is None:  # refused before the first step
        return value.new_ones(())
    apart, leaves = found
    with torch.enable_grad():
        scores = torch.autograd.grad(
            apart.log_prob(value.detach()).sum(),
            list(leaves.values()),
            allow_unused=True,
            materialize_grads=True,
        )
    squares = [s.square().reshape(*apart.batch_shape, -1).sum(-1) for s in scores]
    return sum_elements(torch.stack(squares).sum(0), law)


def rebuilt(law: Distribution, batch: tuple[int, ...] = ()) -> tuple[Any, dict[str, Tensor]] | None:
    """The law of the elements with its own parameters in each place of ``batch``, and these.

    None where the law is not made from its parameters alone.
    """
    inner = base_of(law)
    batch = torch.Size(broadcast_shape(batch, inner.batch_shape))
    arguments, leaves = {}, {}
    try:
        for name in parameter_names(inner):
            constraint, value = inner.arg_constraints[name], torch.as_tensor(getattr(inner, name))
            own = value.shape[value.dim() - constraint.event_dim :]
            value = value.detach().expand((*batch, *own)).clone()
            arguments[name] = value
            if not constraint.is_discrete:
                leaves[name] = value.requires_grad_()
        with torch.enable_grad():
            return type(inner)(**arguments, validate_args=False), leaves
    except (TypeError, NotImplementedError, AttributeError):
        return None


# stands for infinity in what a network is shown; the logit of what is impossible is -infinity
_BEYOND: Final = 100.0


def features_of(law: Distribution) -> Tensor:
    """The parameters of a law as one feature axis, detached and finite: ``[*batch, features]``."""
    batch = law.batch_shape
    # an expanded law has batch dims that its base lacks, on the left
    lacking = max(0, len(batch) - len(base_of(law).batch_shape))
    columns = [
        value.expand((*batch, *value.shape[len(batch) - lacking :])).reshape(*batch, -1)
        for value in parameters_of(law)
    ]
    found = torch.cat(columns, -1) if columns else torch.ones(*batch, 1)
    return found.nan_to_num(0.0, _BEYOND, -_BEYOND) if found.is_floating_point() else found
