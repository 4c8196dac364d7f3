"""Different values of a finite site: the most probable ones, or ones drawn without return."""

from __future__ import annotations

from abc import abstractmethod
from itertools import combinations
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.distributions import Categorical

from amortized.errors import UsageError
from amortized.estimators.base import Cost, Draw, Noise, Site
from amortized.estimators.elements import copies_last
from amortized.estimators.enumeration import Enumerate, ListsSupport, support_of

# 2 ** 10 subsets are weighed for each element of a plate
_MAX_SIZE: Final = 10


class _Subset(ListsSupport):
    r"""Different values with weights: what `SumAndSample` and `UnorderedSet` have in common.

    .. math:: \hat g = \sum_a w_a\, \nabla \log q(a) \Big[f(a) - \sum_c v_{ac}\, f(c)\Big]

    The value is the average with the weights w. The rows of v sum to one, or v is zero.
    """

    joint_copies = False

    def __init__(self, size: int, *, smallest: int, largest: int, baseline: bool) -> None:
        super().__init__()
        name = type(self).__name__
        if type(size) is not int or not smallest <= size <= largest:
            hint = "; one value is am.ScoreFunction()" if smallest > 1 else ""
            raise UsageError(
                f"{name}(size={size!r}): expected an int from {smallest} to {largest}{hint}"
            )
        if type(baseline) is not bool:
            raise UsageError(f"{name}(baseline={baseline!r}): expected True or False")
        self.size = size
        self.baseline = baseline

    def refusal(self, site: Site) -> str | None:
        """Only finite supports of a sensible size."""
        return Enumerate().refusal(site)

    @abstractmethod
    def pick(self, site: Site, noise: Noise, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of different values, their weights w, and v.

        Args:
            site: the site.
            noise: where randomness comes from.
            log_q: of the whole support, shape ``[N, *batch]``.

        Returns:
            Shapes ``[C, *batch]``, ``[*batch, C]`` and ``[*batch, C or 1, C]``.
        """

    def draw(self, site: Site, noise: Noise) -> Draw:
        """Different values, shape ``[C, *batch, *event]``."""
        law = site.law
        with torch.no_grad():
            values = support_of(law, self.values(site))
            log_q = law.log_prob(values)
            log_q = log_q - log_q.logsumexp(0)
            index, weights, others = self.pick(site, noise, log_q)
        ones = (1,) * len(law.event_shape)
        where = index.reshape(*index.shape, *ones).expand(*index.shape, *law.event_shape)
        memory = {"weights": weights, "others": others}
        values = values.gather(0, where)
        count = len(values)
        return Draw(site, values if count > 1 else values[0], count, memory=memory)

    def weights(self, draw: Draw) -> Tensor:
        """The weights w, on the private dim."""
        weights = draw.memory["weights"].movedim(-1, 0)
        if draw.axis is None:
            return weights.squeeze(0)
        ones = (1,) * (-draw.axis - weights.dim())
        return weights.reshape(draw.copies, *ones, *weights.shape[1:])

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        """``w (log q - sg log q) (f - v f)``, summed over the values."""
        axis, costs = draw.axis, cost.copies.detach()
        if axis is None or costs.dim() < -axis or costs.shape[axis] == 1:
            return None  # one value, or a cost that is the same for all of them
        costs, log_q = copies_last(costs, axis), copies_last(draw.log_prob, axis)
        weights, others = draw.memory["weights"], draw.memory["others"]
        signal = _kept(weights, self._advantage(costs, others))
        score = torch.where(signal != 0, log_q - log_q.detach(), torch.zeros_like(signal))
        return (score * signal).sum(-1)

    def _advantage(self, costs: Tensor, others: Tensor) -> Tensor:
        """What each value earned above the others: exactly 0 where all earned the same."""
        if not self.baseline:
            return costs
        return _kept(others, costs.unsqueeze(-1) - costs.unsqueeze(-2)).sum(-1)

    def __repr__(self) -> str:
        """One line: what a user would type."""
        return (
            f"{type(self).__name__}(size={self.size}{'' if self.baseline else ', baseline=False'})"
        )


@final
class SumAndSample(_Subset):
    r"""The most probable values are summed out, and one draw stands for all the others.

    .. math:: \sum_{z \in S} q(z)\, f(z) + (1 - q(S))\, f(v), \qquad v \sim q(\cdot \mid z \notin S)

    Unbiased; no state. Copies: ``size + 1``, or the whole support if that is not more (then it is
    enumeration, without variance). Never more variance than the score function with the same
    baseline, by Rao-Blackwell. Any cost. Bernoulli, Categorical, OneHotCategorical and other
    finite supports; events of ``to_event`` by their joint support, of at most 4096 values.
    Elements of a plate have their own S, so no term outside the plate may depend on the site.

    Args:
        size: how many values are in S.
        baseline: subtract the mean cost over S, ``sum_S q f / q(S)``, everywhere. The gradient is
            then zero, draw by draw, where the cost is constant, hence at q = posterior.

    Raises:
        UsageError: ``size`` below 1.

    Liu et al. 2019 (1810.04777).

    >>> SumAndSample(size=3)
    SumAndSample(size=3)
    """

    label = "sum_and_sample"
    weighted_base = True

    def __init__(self, size: int = 1, *, baseline: bool = True) -> None:
        super().__init__(size, smallest=1, largest=4096, baseline=baseline)

    def copies(self, site: Site) -> int:
        """S and one more, or the whole support."""
        return min(self.size + 1, self.support_size(site))

    def pick(self, site: Site, noise: Noise, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """S by probability, largest first; then a value outside."""
        top, index = log_q.topk(min(self.size, len(log_q)), 0)
        mean = top.softmax(0).movedim(0, -1).unsqueeze(-2)
        weights = top.exp()
        if len(index) < len(log_q):
            rest = log_q.scatter(0, index, -torch.inf)
            index = torch.cat([index, _sampled(rest, index, site, noise)])
            weights = torch.cat([weights, rest.logsumexp(0, keepdim=True).exp()])
            mean = torch.cat([mean, torch.zeros_like(mean[..., :1])], -1)
        return index, weights.movedim(0, -1), mean


@final
class UnorderedSet(_Subset):
    r"""Different values drawn one after the other without return, their order averaged out.

    .. math:: R(S, a) = \frac{p^{A \setminus a}(S \setminus a)}{p^A(S)}, \qquad
        \hat g = \sum_{a \in S} \nabla q(a)\, R(S, a)
        \Big[f(a) - \sum_{c \in S} q(c)\, R_a(S, c)\, f(c)\Big]

    ``p^A(S)`` is the probability that the first draws from A, without return, are the set S, in
    any order: the same S as of the Gumbel-top-k trick. R is not differentiated. The value is
    ``sum_S q(a) R(S, a) f(a)``. Unbiased; no state. Copies: ``size``, or the whole support if that
    is not more (then it is enumeration, without variance). Any cost. Supports as for
    `SumAndSample`; no term outside the plate may depend on the site.

    Args:
        size: how many different values are drawn, 2 to 10 (``2^size`` subsets are weighed).
        baseline: the second term of the bracket. With it the gradient is zero, draw by draw, where
            the cost is constant, hence at q = posterior.

    Raises:
        UsageError: ``size`` below 2 or above 10.

    Kool et al. 2020 (2002.06043).

    >>> UnorderedSet(size=4)
    UnorderedSet(size=4)
    """

    label = "unordered_set"
    weighted_base = True

    def __init__(self, size: int = 2, *, baseline: bool = True) -> None:
        super().__init__(size, smallest=2, largest=_MAX_SIZE, baseline=baseline)
        for number, (sets, members, larger) in enumerate(_levels(size)):
            for name, table in (("sets", sets), ("members", members), ("larger", larger)):
                table = torch.tensor(table, dtype=torch.long)
                self.register_buffer(f"_{name}{number}", table, persistent=False)

    def copies(self, site: Site) -> int:
        """The size, or the whole support."""
        return min(self.size, self.support_size(site))

    def pick(self, site: Site, noise: Noise, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One value after the other, each from what is left."""
        if len(log_q) <= self.size:
            index = torch.arange(len(log_q), device=log_q.device)
            index = index.reshape(-1, *(1,) * (log_q.dim() - 1)).expand(log_q.shape)
            weights = log_q.exp().movedim(0, -1)
            return index, weights, weights.unsqueeze(-2)
        left, index = log_q, log_q.new_zeros(0, *log_q.shape[1:], dtype=torch.long)
        for _ in range(self.size):
            found = _sampled(left, index, site, noise)
            index, left = torch.cat([index, found]), left.scatter(0, found, -torch.inf)
        taken = log_q.gather(0, index)
        alone, pairs = self._completions(taken, left.logsumexp(0))
        weights = (taken + alone[1:] - alone[0]).exp().movedim(0, -1)
        # q(c) R_a(S, c), with R_a(S, a) = 1
        others = (taken + pairs - alone[1:].unsqueeze(1)).exp()
        return index, weights, others.movedim((0, 1), (-2, -1))

    def _completions(self, taken: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability that draws go on to make S their first elements, after some of S.

        For each subset T of S, ``H(T) = sum over b in S - T of q(b) / (1 - q(T)) H(T + b)`` and
        ``H(S) = 1``, so that ``p^A(S) = H(empty)``, ``p^(A-a)(S-a) = H(a)`` and so on. What is
        left after T is added up, ``q(S - T) + q(not S)``: 1 - q(T) would cancel.

        Args:
            taken: log q of the elements of S, shape ``[k, *batch]``.
            rest: log q of all that is not in S, ``[*batch]``.

        Returns:
            log H of the empty set and of single elements, ``[1 + k, *batch]``, and of pairs,
            ``[k, k, *batch]`` with the single elements on the diagonal.
        """
        log_h = taken.new_zeros(2**self.size, *taken.shape[1:])
        for number in reversed(range(self.size)):
            members = taken[self.get_buffer(f"_members{number}")]
            mass = torch.logaddexp(members.logsumexp(1), rest)
            paths = (members + log_h[self.get_buffer(f"_larger{number}")]).logsumexp(1) - mass
            # nothing possible is left: whatever follows is as good as certain
            paths = torch.where(mass == -torch.inf, torch.zeros_like(paths), paths)
            log_h = log_h.index_copy(0, self.get_buffer(f"_sets{number}"), paths)
        bits = 2 ** torch.arange(self.size, device=taken.device)
        pairs = log_h[bits.unsqueeze(0) | bits.unsqueeze(1)]
        return torch.cat([log_h[:1], log_h[bits]]), pairs


def _kept(weight: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the weight is 0 or the value infinite or NaN."""
    product = weight * value
    kept = (weight != 0) & value.isfinite()
    return torch.where(kept, product, torch.zeros_like(product))


def _sampled(left: Tensor, taken: Tensor, site: Site, noise: Noise) -> Tensor:
    """The index of one value of those left, shape ``[1, *batch]``.

    Where all that is left is impossible, any of them: its weight will be 0.
    """
    anything = torch.zeros_like(left).scatter(0, taken, -torch.inf)
    possible = (left > -torch.inf).any(0)
    logits = torch.where(possible, left, anything)
    logits = (logits - logits.logsumexp(0)).movedim(0, -1)
    return noise.sample(Categorical(logits=logits, validate_args=False), site=site.name)[None]


def _levels(size: int) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """Subsets by how many elements they have: the subsets, as bits; what they lack; one more.

    >>> _levels(2)
    [([0], [[0, 1]], [[1, 2]]), ([1, 2], [[1], [0]], [[3], [3]])]
    """
    found: list[tuple[list[int], list[list[int]], list[list[int]]]] = []
    for count in range(size):
        level: Any = ([], [], [])
        for chosen in combinations(range(size), count):
            bits = sum(1 << element for element in chosen)
            lacking = [element for element in range(size) if element not in chosen]
            level[0].append(bits)
            level[1].append(lacking)
            level[2].append([bits | 1 << element for element in lacking])
        found.append(level)
    return found
