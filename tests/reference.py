"""The slow sequential oracle: exact numbers by listing every outcome, one plain run each.

It knows pyro and torch and nothing of the package under test. Two questions are answered:

* `exact`, `exact_gradients`: what is the ELBO of a program, and its gradient? Every joint outcome
  of every finite latent of the guide is visited (each plate element on its own), guide and model
  run once per outcome, without copies or particles, so that shapes cannot mix anything up.
* `OutcomeTree`, `estimate_law`: what does an estimator give on average over its *own* randomness?
  It runs once per joint outcome of whatever it draws, each run weighted by its probability.

Continuous sites are handled given fixed noise (`FixedNoise`), the same in both, so that the two
answers can be compared to rounding.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.utils._pytree import tree_flatten, tree_unflatten

Program = Callable[..., Any]
Standard = Tensor | Callable[[Distribution], Tensor]

NEGLIGIBLE: Final = 1e-300
"""Outcomes less probable than this are not visited."""


class TooManyOutcomes(Exception):
    """The enumeration would need more runs than the caller allows."""


def unwrap(fn: Distribution) -> Distribution:
    """The law of the single elements: masks and event dims change terms, not what is drawn."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


@final
class FixedNoise:
    """One standard noise per continuous site, of shape plates + event; it broadcasts on the left.

    A site's noise is a standard normal tensor, or a function of its distribution that returns the
    value (for laws without a known transform). Sites that `values` does not name get noise from
    `seed` at their first use, which must be a plain run (`exact` is): later uses may have more dims
    on the left (copies, particles), and all of them see the same noise.
    """

    def __init__(
        self, values: Mapping[str, Standard] | None = None, seed: int | None = None
    ) -> None:
        self.values: dict[str, Standard] = dict(values or {})
        self.seed = seed

    def draw(self, name: str, fn: Distribution, sample_shape: Sequence[int] = ()) -> Tensor:
        """The site's value, attached to the parameters of `fn`."""
        standard = self._standard(name, fn)
        value = standard(fn) if callable(standard) else transport(fn, standard)
        return value.expand(torch.Size(sample_shape) + fn.batch_shape + fn.event_shape)

    def _standard(self, name: str, fn: Distribution) -> Standard:
        if isinstance(unwrap(fn), Delta):
            return torch.zeros(())
        if name not in self.values:
            if self.seed is None:
                raise KeyError(f"continuous site '{name}' needs an entry in `noise`")
            generator = torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))
            self.values[name] = torch.randn(fn.batch_shape + fn.event_shape, generator=generator)
        return self.values[name]


def transport(fn: Distribution, standard: Tensor) -> Tensor:
    """Standard normal noise carried to a value of `fn`, differentiable in its parameters."""
    fn = unwrap(fn)
    if isinstance(fn, Delta):
        return fn.v
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * standard
    if isinstance(fn, TransformedDistribution):
        value = transport(fn.base_dist, standard)
        for step in fn.transforms:
            value = step(value)
        return value
    if isinstance(fn, (MultivariateNormal, LowRankMultivariateNormal)):
        return fn.loc + (fn.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)
    try:
        return fn.icdf(torch.special.ndtr(standard))
    except NotImplementedError as error:
        message = f"no transform known for {type(fn).__name__}: give its noise as a function"
        raise NotImplementedError(message) from error


Noise = FixedNoise | Mapping[str, Standard]


# --- the tree of outcomes ------------------------------------------------------------------------


@dataclass
class _Event:
    """One random draw of n independent elements with C values each: C**n joint outcomes."""

    table: list[list[float]]  # log probability of each value, one row per element
    index: int = -1

    @property
    def count(self) -> int:
        return math.prod(len(row) for row in self.table)

    def digits(self) -> list[int]:
        rest, digits = self.index, []
        for row in self.table:
            rest, digit = divmod(rest, len(row))
            digits.append(digit)
        return digits

    def log_probability(self) -> float:
        return math.fsum(row[d] for row, d in zip(self.table, self.digits(), strict=True))

    def advance(self, log_so_far: float) -> bool:
        """Move to the next outcome that is not negligible; False if there is none."""
        for index in range(self.index + 1, self.count):
            self.index = index
            if log_so_far + self.log_probability() > math.log(NEGLIGIBLE):
                return True
        return False


@dataclass
class Path:
    """One joint outcome; its probability is known once the run is over."""

    _events: list[_Event]

    @property
    def probability(self) -> float:
        return math.exp(math.fsum(event.log_probability() for event in self._events))


@final
class OutcomeTree:
    """A noise source that goes through all outcomes of whatever is drawn from it, depth first.

        for path in tree.paths():
            result = run(tree)
            total += path.probability * result

    `run` must draw only from the tree and be a function of its draws: a state that moves between
    runs (a moving average in training mode) makes the paths belong to different estimators.
    """

    def __init__(self, noise: Noise | None = None) -> None:
        self.noise = noise if isinstance(noise, FixedNoise) else FixedNoise(noise)
        self._events: list[_Event] = []
        self._position = 0

    @property
    def outcomes(self) -> int:
        """Joint outcomes of the current path's draws: all paths, if the draws do not branch."""
        return math.prod(event.count for event in self._events)

    def paths(self) -> Iterator[Path]:
        self._events, masses = [], []
        while True:
            self._position = 0
            path = Path(self._events)
            yield path
            if self._position < len(self._events):
                raise RuntimeError("the run drew less than before on the same outcomes")
            masses.append(path.probability)
            if not self._advance():
                break
        if abs(math.fsum(masses) - 1.0) > 1e-12:
            raise ArithmeticError(f"the outcomes' probabilities sum to {math.fsum(masses)!r}")

    def _advance(self) -> bool:
        while self._events:
            event = self._events.pop()
            before = math.fsum(earlier.log_probability() for earlier in self._events)
            if event.advance(before):
                self._events.append(event)
                return True
        return False

    def sample(
        self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str | None = None
    ) -> Tensor:
        """A joint outcome of independent draws over sample_shape + batch_shape, detached."""
        base, sample_shape = unwrap(fn), torch.Size(sample_shape)
        if isinstance(base, Delta):
            return base.v.detach().expand(sample_shape + fn.batch_shape + fn.event_shape)
        if not base.has_enumerate_support:
            raise TypeError(f"site '{site}': {type(base).__name__} has no finite set of outcomes")
        with torch.no_grad():
            support = base.enumerate_support(expand=False)
            wide = base.expand(sample_shape + base.batch_shape)
            logs = wide.log_prob(wide.enumerate_support(expand=True))
        event = self._next(logs.reshape(len(support), -1).T.tolist())
        digits = torch.tensor(event.digits(), dtype=torch.long).reshape(wide.batch_shape)
        return support.reshape((-1, *base.event_shape))[digits]

    def rsample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        """The value at the site's fixed noise, attached; the same noise in all copies."""
        return self.noise.draw(site, fn, sample_shape)

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str | None = None) -> Tensor:
        """Nodes of a quadrature that is exact for what is a cubic between the kinks.

        The kinks are where antithetic bits jump: at p and 1 - p, with ``like`` the bits' logits.
        """
        p = torch.sigmoid(like.detach()).expand(tuple(shape)).reshape(-1)
        cells = torch.stack([0 * p, torch.minimum(p, 1 - p), torch.maximum(p, 1 - p), 0 * p + 1])
        width = cells.diff(dim=0)
        step = width / 2 / math.sqrt(3.0)
        middle = (cells[1:] + cells[:-1]) / 2
        nodes = torch.cat([middle - step, middle + step])
        event = self._next(torch.cat([width, width]).div(2).log().T.tolist())
        digits = torch.tensor(event.digits(), dtype=torch.long)
        return nodes.gather(0, digits[None]).reshape(tuple(shape))

    def _next(self, table: list[list[float]]) -> _Event:
        if self._position == len(self._events):
            event = _Event(table)
            so_far = math.fsum(earlier.log_probability() for earlier in self._events)
            if not event.advance(so_far):
                raise ArithmeticError("a draw has no outcome of positive probability")
            self._events.append(event)
        event = self._events[self._position]
        if [len(row) for row in event.table] != [len(row) for row in table]:
            raise RuntimeError("the run drew something else than before on the same outcomes")
        self._position += 1
        return event


@dataclass(frozen=True)
class Law:
    """Moments of an estimator over its own randomness, in the structure that the run returned."""

    mean: Any
    second: Any  # E of the square, elementwise
    paths: int

    @property
    def variance(self) -> Any:
        means, structure = tree_flatten(self.mean)
        seconds, _ = tree_flatten(self.second)
        return tree_unflatten([s - m * m for s, m in zip(seconds, means, strict=True)], structure)


def estimate_law(
    run: Callable[[OutcomeTree], Any],
    *,
    noise: Noise | None = None,
    limit: int = 100_000,
) -> Law:
    """Exact mean and second moment of `run(tree)`: a tensor, or a dict or sequence of tensors."""
    tree, means, seconds, structure, paths = OutcomeTree(noise), [], [], None, 0
    for path in tree.paths():
        leaves, structure = tree_flatten(run(tree))
        if tree.outcomes > limit:
            raise TooManyOutcomes(f"{tree.outcomes} outcomes, {limit} allowed")
        values = [torch.as_tensor(leaf).detach() for leaf in leaves]
        weight = path.probability
        zeros = [torch.zeros_like(value) for value in values]
        means = [m + weight * v for m, v in zip(means or zeros, values, strict=True)]
        seconds = [s + weight * v * v for s, v in zip(seconds or zeros, values, strict=True)]
        paths += 1
    assert structure is not None
    return Law(tree_unflatten(means, structure), tree_unflatten(seconds, structure), paths)


# --- the exact bound of a program ----------------------------------------------------------------


@final
class _Steer(Messenger):
    """Gives every latent site the value that `choose` says, and leaves everything else alone."""

    def __init__(self, choose: Callable[[dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._choose = choose

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        if isinstance(msg["fn"], _Subsample):
            if (msg["fn"].subsample_size or msg["fn"].size) < msg["fn"].size:
                raise ValueError(f"plate '{msg['name']}' subsamples: give it explicit indices")
            return
        msg["value"] = self._choose(msg)


@dataclass
class _Chooser:
    """Values of guide sites: from the tree if finite, else from the fixed noise."""

    tree: OutcomeTree
    log_path: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, msg: dict[str, Any]) -> Tensor:
        fn, name = msg["fn"], msg["name"]
        base = unwrap(fn)
        if base.has_enumerate_support:
            value = self.tree.sample(fn, site=name)
            self.log_path = self.log_path + base.log_prob(value).sum()  # unscaled, unmasked
            return value
        if not base.has_rsample:
            raise TypeError(f"site '{name}': {type(base).__name__} is neither finite nor pathwise")
        return self.tree.rsample(fn, site=name)


def _terms(trace: Trace) -> dict[str, Tensor]:
    """Scaled and masked log-probabilities, summed, by site."""
    trace.compute_log_prob()
    return {
        name: node["log_prob_sum"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)
    }


def _integrated(name: str, guide: Trace, model: Trace) -> tuple[Tensor, Tensor]:
    """E_q[log p] and E_q[log q] of one site at the sampled parents, scaled and masked."""
    q, p = guide.nodes[name], model.nodes[name]
    inner = len(unwrap(q["fn"]).batch_shape) - len(q["fn"].batch_shape)
    entropy = unwrap(q["fn"]).entropy()
    cross = -(kl_divergence(unwrap(q["fn"]), unwrap(p["fn"])) + entropy)
    totals = []
    for node, each in ((p, cross), (q, -entropy)):
        value = each.flatten(each.dim() - inner).sum(-1) if inner else each
        value = value if node["mask"] is None else value * node["mask"]
        totals.append((value * node["scale"]).sum())
    return totals[0], totals[1]


def contributions(
    model: Program,
    guide: Program,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    noise: Noise | None = None,
    analytic: Sequence[str] = (),
    kl_weight: float = 1.0,
) -> Iterator[Tensor]:
    """One attached tensor per joint outcome of the guide: probability times log-weight.

    What is not observed counts `kl_weight` times.
    """
    kwargs, tree = dict(kwargs or {}), OutcomeTree(noise)
    for _ in tree.paths():
        choose = _Chooser(tree)
        with poutine.trace() as tracer, _Steer(choose):
            guide(*args, **kwargs)
        guided = tracer.trace
        with (
            poutine.trace() as tracer,
            _Steer(lambda msg, of=guided: of.nodes[msg["name"]]["value"]),
        ):
            model(*args, **kwargs)
        log_p, log_q = _terms(tracer.trace), _terms(guided)
        for name in analytic:
            if name in log_p:
                log_p[name], log_q[name] = _integrated(name, guided, tracer.trace)
        cost = -kl_weight * sum(log_q.values(), torch.zeros(()))
        for name, value in log_p.items():
            observed = tracer.trace.nodes[name]["is_observed"]
            cost = cost + (value if observed else kl_weight * value)
        yield choose.log_path.exp() * cost


def exact(model: Program, guide: Program, *args: Any, **options: Any) -> Tensor:
    """The ELBO, exact over everything finite and given `noise` for the rest; attached.

    Arguments are those of `contributions`. `analytic` names sites whose two terms are integrated
    over the site: given fixed noise another number than the sampled pair, equal in the mean.
    """
    return torch.stack(list(contributions(model, guide, *args, **options))).sum()


def exact_gradients(
    model: Program,
    guide: Program,
    params: Mapping[str, Tensor] | Sequence[Tensor],
    *args: Any,
    **options: Any,
) -> Any:
    """Gradients of the ELBO (to be maximized) in leaf tensors, as a dict or list like `params`."""
    names = list(params) if isinstance(params, Mapping) else None
    leaves = list(params.values()) if isinstance(params, Mapping) else list(params)
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    for part in contributions(model, guide, *args, **options):
        if part.requires_grad:
            found = torch.autograd.grad(part, leaves, allow_unused=True, retain_graph=True)
            totals = [t if g is None else t + g for t, g in zip(totals, found, strict=True)]
    return totals if names is None else dict(zip(names, totals, strict=True))
