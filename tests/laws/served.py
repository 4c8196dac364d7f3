"""Programs for any law of the capability table, the truth about them, and a z-test against it.

Everything is computed from the law as the table writes it: other numbers for its parameters, a
prior of the same family, and nodes whose weighted sum is the expectation. Parameters are leaves
with an entry for each element of a plate, so one run gives as many independent gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from scipy.stats import t as student
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

import amortized as am
from amortized.estimators.base import Estimator, Site, base_of
from amortized.estimators.capabilities import laws
from amortized.estimators.elements import element_dims

Leaves = dict[str, Tensor]
Nodes = tuple[Tensor, Tensor]

THETA, NOISE, SEEN = 1.4, 0.6, 1.1
# phases of the parameters: far apart, so that gradients are large beside their noise
_GUIDE, _PRIOR = 3.0, 7.2
# of several ways to write a parameter, the one that is used where the law does not say
_SPARE = {"logits": ("probs",), "scale_tril": ("covariance_matrix", "precision_matrix")}
# torch calls it the whole line
_CIRCLE = constraints.interval(-math.pi, math.pi)


@final
class Family:
    """A law of the table, made again from unconstrained numbers."""

    def __init__(self, name: str) -> None:
        self.table: Any = laws()[name]
        inner = base_of(self.table)
        self.kind, self.dims = type(inner), element_dims(self.table)
        self.event, self.own = self.table.event_shape, inner.event_shape
        names = _written(inner)
        self.fixed: Leaves = {}
        self.start: Leaves = {}
        for n in names:
            constraint, value = inner.arg_constraints[n], getattr(inner, n)
            row = value.expand(
                *inner.batch_shape, *value.shape[value.dim() - constraint.event_dim :]
            )
            if constraint.is_discrete:
                self.fixed[n] = row[0]
            else:
                self.start[n] = transform_to(constraint).inv(row[0])
        self.constraints = {n: inner.arg_constraints[n] for n in self.start}

    def leaves(self, phase: float) -> Leaves:
        """Numbers away from the table's, which are often all the same; different by phase."""
        found = {}
        for k, (name, row) in enumerate(self.start.items()):
            place = torch.arange(float(row.numel())).reshape(row.shape)
            # a concentration below 1 has long tails, which are hard to integrate
            up = 0.7 if self.constraints[name] is constraints.positive else 0.0
            row = row + up * (row < 0)
            found[name] = row + 0.7 * torch.cos(1.7 * place + 0.9 * k + phase)
        return found

    def shape(self, name: str) -> torch.Size:
        """Of one element's entry of a parameter of the programs."""
        return self.start[name].shape if name in self.start else torch.Size()

    def law(self, leaves: Mapping[str, Tensor]) -> Any:
        """The law, with the batch of the leaves."""
        given = {n: transform_to(self.constraints[n])(v) for n, v in leaves.items()}
        law = self.kind(**given, **self.fixed)
        return law.to_event(self.dims) if self.dims else law

    def nodes(self) -> Nodes:
        """Values ``[M, *event]`` and the logarithm of their weights in a sum for the integral."""
        inner = self.kind(**self.given())
        count = self.event[: self.dims].numel()
        if inner.has_enumerate_support:
            value, weight = _finite(inner)
        elif inner.support.is_discrete:
            value, weight = torch.arange(400.0), torch.zeros(400)
        else:
            value, weight = _line(inner, count)
        picked = torch.cartesian_prod(*[torch.arange(len(value))] * count).reshape(-1, count)
        return value[picked].reshape(-1, *self.event), weight[picked].sum(-1)

    def given(self) -> Leaves:
        """One element's parameters, of the law without batch."""
        found = {n: transform_to(self.constraints[n])(v) for n, v in self.leaves(_GUIDE).items()}
        found |= self.fixed
        for _ in range(self.dims):
            found = {n: v[0] for n, v in found.items()}
        return found


def _written(inner: Any) -> list[str]:
    """The parameters that the law was made from, without redundancy."""
    names = [n for n in inner.arg_constraints if n in vars(inner)]
    if names:
        return names
    names = list(inner.arg_constraints)
    spare = {other for kept, others in _SPARE.items() if kept in names for other in others}
    return [n for n in names if n not in spare]


def _finite(inner: Any) -> Nodes:
    value = inner.enumerate_support(expand=False)
    return value, torch.zeros(len(value))


def _line(inner: Any, count: int) -> Nodes:
    """The trapezoid rule on the whole line, mapped to the support; steps grow like sinh."""
    support = _CIRCLE if isinstance(inner, dist.VonMises) else inner.support
    to_support: Any = biject_to(support)
    wide = to_support.inverse_shape(inner.event_shape).numel()
    t = torch.linspace(-4.2, 4.2, {1: 900, 2: 180, 3: 90}[wide * count])
    place = torch.cartesian_prod(*[torch.arange(len(t))] * wide).reshape(-1, wide)
    x = t.sinh()[place].reshape(-1, *to_support.inverse_shape(inner.event_shape))
    weight = (t.cosh() * (t[1] - t[0])).log()[place].sum(-1)
    value = to_support(x)
    slope = to_support.log_abs_det_jacobian(x, value)
    return value, weight + slope.reshape(len(x), -1).sum(-1)


def seen(value: Tensor, theta: Tensor, event_dim: int, *, linear: bool = False) -> Tensor:
    """What the model says of a value: the mean of the observation, or a linear cost in nats."""
    shape = value.shape[value.dim() - event_dim :]
    weights = torch.cos(0.9 * torch.arange(float(shape.numel()))).reshape(shape)
    total = (value * weights).sum(tuple(range(-event_dim, 0))) if event_dim else value
    return theta * total if linear else theta * torch.sin(3.0 * torch.tanh(total / 2) + 0.3)


@final
@dataclass(frozen=True, eq=False)
class Truth:
    """The bound of one element, and its gradient in every parameter."""

    value: float
    gradient: Leaves


@cache
def truth(law: str, linear: bool = False) -> Truth:
    """By the sum over the nodes, which knows nothing of estimators."""
    family = Family(law)
    leaves = {n: v.clone().requires_grad_() for n, v in family.leaves(_GUIDE).items()}
    theta = torch.tensor(THETA, requires_grad=True)
    q, p = family.law(leaves), family.law(family.leaves(_PRIOR))
    nodes, weight = family.nodes()
    log_q = q.log_prob(nodes)
    share = (log_q + weight).exp()
    assert abs(float(share.detach().sum()) - 1) < 1e-7
    cost = p.log_prob(nodes) - log_q + _log_seen(nodes, theta, len(family.event), linear)
    bound = (share * cost).sum()
    found = torch.autograd.grad(bound, [*leaves.values(), theta])
    return Truth(float(bound.detach()), dict(zip([*leaves, "theta"], found, strict=True)))


def _log_seen(value: Tensor, theta: Tensor, event_dim: int, linear: bool) -> Tensor:
    mean = seen(value, theta, event_dim, linear=linear)
    return mean if linear else dist.Normal(mean, NOISE).log_prob(torch.tensor(SEEN))


Param = Callable[[str, Tensor], Tensor]
"""A parameter by its name and where it starts."""


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """Programs over a plate, made for a way to get parameters, and the truth of one element."""

    starts: Leaves
    """Of the parameters that are learned, for one element."""
    make: Callable[[int, Param], tuple[Callable[[], None], Callable[[], None]]]
    """Model and guide from the size of the plate."""
    truth: Truth
    own: Mapping[str, tuple[str, ...]]
    """The parameters of each site's law in the guide."""


def served(law: str, estimator: Estimator, *, linear: bool = False) -> Problem:
    """One latent of the law in each place of a plate, all parameters learned that may be."""
    family = Family(law)
    rows, prior = family.leaves(_GUIDE), family.law(family.leaves(_PRIOR))
    starts = {n: rows[n] for n in family.start if _accepts(estimator, family, n)}
    starts["theta"] = torch.tensor(THETA)

    def make(size: int, param: Param) -> tuple[Callable[[], None], Callable[[], None]]:
        def value(name: str) -> Tensor:
            start = starts.get(name, rows.get(name)).expand(size, *family.shape(name))
            return param(name, start) if name in starts else start

        def model() -> None:
            theta = value("theta")
            with pyro.plate("data", size):
                z = pyro.sample("z", prior)
                mean = seen(z, theta, len(family.event), linear=linear)
                if linear:
                    pyro.factor("x", mean)
                else:
                    pyro.sample("x", dist.Normal(mean, NOISE), obs=torch.full((size,), SEEN))

        def guide() -> None:
            law = family.law({name: value(name) for name in family.start})
            with pyro.plate("data", size):
                pyro.sample("z", law)

        return model, guide

    own = {"z": tuple(n for n in starts if n != "theta")}
    return Problem(starts, make, truth(law, linear), own)


def _accepts(estimator: Estimator, family: Family, name: str) -> bool:
    """Whether a gradient in this parameter is not refused."""
    rows = {n: v.expand(2, *v.shape).clone() for n, v in family.leaves(_GUIDE).items()}
    rows[name].requires_grad_()
    return estimator.refusal(Site("z", family.law(rows))) is None


def chain() -> Problem:
    """Two bits, z -> y in the guide and y -> z in the model."""
    starts = {"a": 2.0, "e": 1.4, "f": 0.4, "b": -1.3, "c": -1.3, "theta": 1.1}
    starts = {name: torch.tensor(value) for name, value in starts.items()}

    def terms(z: Tensor, y: Tensor, v: Callable[[str], Tensor]) -> tuple[Any, Any, Any, Any, Any]:
        mean = v("theta") * torch.sin(1.7 * z + 0.9 * y + 0.4)
        return (
            dist.Bernoulli(logits=v("a")),
            dist.Bernoulli(logits=v("e") * z + v("f")),
            dist.Bernoulli(logits=v("c")),
            dist.Bernoulli(logits=v("b") * y - 1.0),
            dist.Normal(mean, NOISE),
        )

    def make(size: int, param: Param) -> tuple[Callable[[], None], Callable[[], None]]:
        none, data = torch.zeros(size), torch.full((size,), SEEN)

        def value(name: str) -> Tensor:
            return param(name, starts[name].expand(size))

        def model() -> None:
            with pyro.plate("data", size):
                y = pyro.sample("y", terms(none, none, value)[2])
                z = pyro.sample("z", terms(none, y, value)[3])
                pyro.sample("x", terms(z, y, value)[4], obs=data)

        def guide() -> None:
            with pyro.plate("data", size):
                z = pyro.sample("z", terms(none, none, value)[0])
                pyro.sample("y", terms(z, none, value)[1])

        return model, guide

    leaves = {n: v.clone().requires_grad_() for n, v in starts.items()}
    z, y = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    q_z, q_y, p_y, p_z, x = terms(z, y, leaves.__getitem__)
    log_q = q_z.log_prob(z) + q_y.log_prob(y)
    cost = p_y.log_prob(y) + p_z.log_prob(z) + x.log_prob(torch.tensor(SEEN)) - log_q
    bound = (log_q.exp() * cost).sum()
    found = torch.autograd.grad(bound, list(leaves.values()))
    exact = Truth(float(bound.detach()), dict(zip(leaves, found, strict=True)))
    return Problem(starts, make, exact, {"z": ("a",), "y": ("e", "f")})


# --- many independent gradients against the truth -------------------------------------------------

FALSE_ALARMS = 1e-4
"""Of all tests together, two-sided, Bonferroni over their coordinates."""
COORDINATES = 6000
"""At least as many as there are in all tests."""
RESOLUTION = 0.04
"""What part of the gradient in a site's parameters is missed when it lacks, once in 40 times."""
PILOT, MOST, CHUNKS = 4096, 1_000_000, 16
ROUNDING = 1e-9


@cache
def limit(draws: int) -> float:
    """Standard errors that a mean of so many draws may be off."""
    return float(student.isf(FALSE_ALARMS / (2 * COORDINATES), draws - 1))


@final
@dataclass(frozen=True)
class Verdict:
    """What a comparison found."""

    errors: dict[str, float]
    """Of the value, of each parameter, along a site's gradient; as parts of what chance allows."""
    missed: float
    """A part of the gradient that might be missing and not be found."""
    draws: int

    @property
    def rejected(self) -> bool:
        """Whether the mean is not the truth."""
        return max(self.errors.values()) > 1


def warmed(problem: Problem, estimators: Mapping[str, Estimator]) -> am.VariationalLoss:
    """The loss, its state moved away from the start and then held still."""
    loss = am.VariationalLoss(estimators=estimators)
    model, guide = problem.make(64, lambda name, start: start.clone().requires_grad_())
    loss.warm_up(model, guide, ())
    for _ in range(3):
        loss.learn(loss.estimate(model, guide, (), {}))
    return loss.eval()


def gradients(problem: Problem, loss: am.VariationalLoss, size: int) -> tuple[Tensor, Leaves]:
    """The bound of one run, and its gradient by element, ``[size, ...]``."""
    rows = {n: v.expand(size, *v.shape).clone() for n, v in problem.starts.items()}
    leaves = {n: v.requires_grad_() for n, v in rows.items()}
    model, guide = problem.make(size, lambda name, start: leaves[name])
    with pyro.validation_enabled(False), loss.looking("never"):
        bound = -loss.estimate(model, guide, (), {}).loss
    found = torch.autograd.grad(bound, list(leaves.values()), allow_unused=True)
    assert all(g is not None for g in found)
    return bound.detach(), dict(zip(leaves, found, strict=True))


def judged(problem: Problem, loss: am.VariationalLoss, draws: int | None = None) -> Verdict:
    """Compare means with the truth; as many draws as it takes to see `RESOLUTION`."""
    exact = {n: problem.truth.gradient[n] for n in problem.starts}
    _, pilot = gradients(problem, loss, PILOT)
    # of each site, the direction in which a gradient that is too short stands out
    along = {n: exact[n] / pilot[n].var(0).clamp(min=1e-12) for n in sum(problem.own.values(), ())}
    for site, names in problem.own.items():
        exact[f"along {site}"] = torch.stack([(along[n] * exact[n]).sum() for n in names]).sum()

    def with_directions(found: Leaves) -> Leaves:
        made = {n: (v * found[n]).reshape(len(found[n]), -1).sum(-1) for n, v in along.items()}
        sites = {f"along {s}": sum(made[n] for n in names) for s, names in problem.own.items()}
        return {**found, **sites}

    if draws is None:
        every = with_directions(pilot)
        spread = max(float(every[n].std() / exact[n].abs()) for n in exact if n not in pilot)
        draws = int(((limit(MOST) + 2) * spread / RESOLUTION) ** 2)
    size = -(-min(max(draws, PILOT), MOST) // CHUNKS)
    values, sums, squares = [], dict.fromkeys(exact, 0.0), dict.fromkeys(exact, 0.0)
    for _ in range(CHUNKS):
        bound, found = gradients(problem, loss, size)
        values.append(bound / size)
        for name, rows in with_directions(found).items():
            off = rows - exact[name]
            sums[name] = sums[name] + off.sum(0)
            squares[name] = squares[name] + (off * off).sum(0)
    return _verdict(problem.truth.value, values, exact, (sums, squares), CHUNKS * size)


def _verdict(value: float, values: list[Tensor], exact: Leaves, moments: Any, n: int) -> Verdict:
    every = torch.stack(values)
    allowed = limit(CHUNKS) * every.std() / math.sqrt(CHUNKS) + ROUNDING * abs(value)
    errors = {"value": float((every.mean() - value).abs() / allowed)}
    missed = 0.0
    for name, truth_ in exact.items():
        mean, square = (m[name] / n for m in moments)
        standard = ((square - mean * mean).clamp(min=0) / n).sqrt()
        allowed = limit(n) * standard + ROUNDING * (1 + truth_.abs())
        errors[name] = float((mean.abs() / allowed).max())
        if name.startswith("along"):
            missed = max(missed, float((limit(n) + 2) * standard / truth_.abs()))
    return Verdict(errors, missed, n)
