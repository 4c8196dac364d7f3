"""REBAR, RELAX and MuProp: the mean gradient over their own noise is the exact gradient.

Noise is integrated. Each element of a plate sees one node; its weight is a scale, also where it
differs between the copies of a site, on whose value the law of a later site depends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from amortized.estimators.muprop import MuProp
from amortized.estimators.rebar import REBAR
from amortized.estimators.relax import RELAX
from amortized.programs.handlers import GuideHandler
from amortized.programs.records import Term
from amortized.surrogate import costs
from tests.laws.grids import gauss
from tests.laws.structures import EVERY as STRUCTURES
from tests.laws.structures import Structure, weight
from tests.laws.test_captured import compare
from tests.laws.test_in_the_mean import rejected
from tests.laws.test_unbiased import SINGLE_ONLY, error, leaves, true_gradient, warmed
from tests.reference import FixedNoise, exact_gradients

Make = Callable[[], Estimator]


class Cells:
    """A noise source for one plate of ``size`` elements: nodes between the kinks of each uniform.

    Where a uniform jumps depends on logits, which may differ between elements and between copies
    of an earlier site. All copies take the same node, each with its own weight: estimators are
    linear in the cost of each copy. The first run finds the weights, the second uses them.

    ``calls`` are the draws in order: "u" and "v" for a uniform with and without a kink, "b" for a
    sample of a bit, "bb" for two.
    """

    def __init__(self, calls: Sequence[str], nodes: int) -> None:
        self.calls = calls
        sizes = {"u": 2 * nodes, "v": nodes, "b": 2, "bb": 4}
        counts = [sizes[call] for call in calls]
        codes = torch.cartesian_prod(*[torch.arange(count) for count in counts])
        self.codes = codes.reshape(-1, len(calls)).T
        self.size = self.codes.shape[1]
        self.points, self.shares = gauss([], nodes)
        self.weights = self._found = torch.ones(self.size)
        self._used = 0

    def again(self) -> None:
        """From the first draw on, with the weights that were found."""
        assert self._used == len(self.codes)
        assert torch.allclose(self._found.sum(-1), torch.ones(()))
        self.weights, self._found, self._used = self._found, torch.ones(self.size), 0

    def _next(self) -> Tensor:
        self._used += 1
        return self.codes[self._used - 1]

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        """A node of the cell below 1 - p, or of the one above."""
        kinked, code = self.calls[self._used] == "u", self._next()
        edge = torch.sigmoid(-like.detach()) if kinked else torch.ones_like(like)
        edge = edge.expand(tuple(shape))
        above, node = (code % 2 == 1, code // 2) if kinked else (code < 0, code)
        width = torch.where(above, 1 - edge, edge)
        self._found = self._found * width * self.shares[node]
        return torch.where(above, edge, 0.0) + width * self.points[node]

    def sample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        """One pattern of bits."""
        code = self._next()
        bits = [(code // 2**k % 2).expand(fn.batch_shape).to(code) for k in range(2)]
        values = torch.stack(
            [bit.double() for bit in bits[: sample_shape[0] if sample_shape else 1]]
        )
        self._found = self._found * fn.log_prob(values).detach().sum(0).exp()
        return values if sample_shape else values[0]

    def rsample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        """Refused."""
        raise RuntimeError(f"site {site!r} draws from {fn}")


def chain(size: int = 1, weights: Cells | None = None) -> Structure:
    """z -> y in the guide, y -> z in the model; linear in neither: slopes are no differences."""

    def scaled() -> poutine.scale:
        return poutine.scale(scale=1.0 if weights is None else weights.weights)

    def model() -> None:
        with pyro.plate("grid", size), scaled():
            y = pyro.sample("y", dist.Bernoulli(logits=weight("c", 0.2).expand(size)))
            z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3) * y))
            mean = z * weight("w", 0.7) - 1.1 * y + (2.0 + weight("v", 0.4) * z) * z * y * y
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.full((size,), 0.7))

    def guide() -> None:
        with pyro.plate("grid", size), scaled():
            z = pyro.sample("z", dist.Bernoulli(logits=weight("a", -0.6).expand(size)))
            pyro.sample("y", dist.Bernoulli(logits=weight("e", 1.7) * z + weight("f", -0.4)))

    return Structure(model, guide, ("z", "y"))


class Weighted(nn.Module):
    """A network whose output counts as often as the cost beside it."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(features, 3), nn.Tanh(), nn.Linear(3, 1))
        self.cells: Cells | None = None

    def forward(self, features: Tensor) -> Tensor:
        out = self.inner(features)
        if self.cells is None:
            return out
        weights = self.cells.weights
        while weights.dim() > out.dim() - 2:  # the hard copy's, of the site's own copies
            weights = weights[0]
        return out * weights.unsqueeze(-1)


UNTIED, TIED = ("u", "v"), ("u",)
OURS: dict[str, tuple[Make, Sequence[str]]] = {
    "rebar": (lambda: REBAR(temperature=1.0, scale=0.8), UNTIED),
    "rebar tied": (lambda: REBAR(temperature=1.0, tied=True, scale=0.8), TIED),
    "rebar improved": (lambda: REBAR(temperature=1.0, improved=True, tied=True), TIED),
    "relax": (lambda: RELAX(Weighted(), temperature=1.0), UNTIED),
    "relax tied": (lambda: RELAX(Weighted(), temperature=1.0, tied=True), TIED),
    "relax with the model": (
        lambda: RELAX(Weighted(), temperature=1.0, tied=True, relaxed_model=True),
        TIED,
    ),
    "muprop": (MuProp, ("b",)),
}
OTHERS: dict[str, tuple[Make, Sequence[str]]] = {
    "enumerate": (am.Enumerate, ()),
    "leave one out": (lambda: am.ScoreFunction(am.LeaveOneOut()), ("bb",)),
    "score": (am.ScoreFunction, ("b",)),
}
EVERY = {**OURS, **OTHERS}


def errors(pair: Callable[..., Structure], estimators: dict[str, Estimator], cells: Cells) -> float:
    """The largest error of the mean gradient, relative to the gradient's size."""
    programs = pair(cells.size, cells)
    loss = am.VariationalLoss(estimators=estimators).eval()
    loss.warm_up(programs.model, programs.guide, ())
    for network in loss.modules():
        if isinstance(network, Weighted):
            network.cells = cells
    loss.estimate(programs.model, programs.guide, (), {}, noise=cells)
    found = gradients(loss, programs, cells)
    plain = pair()
    truth = exact_gradients(plain.model, plain.guide, list(leaves().values()))
    size = max(float(g.abs().max()) for g in truth)
    return max(float((a - b).abs().max()) for a, b in zip(found, truth, strict=True)) / size


def gradients(loss: am.VariationalLoss, programs: Structure, cells: Cells) -> list[Tensor]:
    cells.again()
    bound = -loss.estimate(programs.model, programs.guide, (), {}, noise=cells).loss
    asked = list(leaves().values())
    return list(torch.autograd.grad(bound, asked, allow_unused=True, materialize_grads=True))


def counted(estimators: Sequence[str]) -> Cells:
    """Enough nodes for the uniforms that these ask for."""
    calls = [call for name in estimators for call in EVERY[name][1]]
    uniforms = sum(call in "uv" for call in calls)
    return Cells(calls, {0: 1, 1: 16, 2: 12, 3: 12, 4: 9}[uniforms])


PAIRS = [pair for pair in product(EVERY, EVERY) if set(pair) & set(OURS)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_ordered_pair_on_a_dependent_chain(first: str, second: str) -> None:
    """Both ends of the chain, every parameter; four uniforms are too many for more digits."""
    estimators = {"z": EVERY[first][0](), "y": EVERY[second][0]()}
    bound = 1e-9 if second == "rebar" and first in ("rebar", "relax") else 1e-10
    assert errors(chain, estimators, counted([first, second])) < bound


def apart(size: int = 1, weights: Cells | None = None) -> Structure:
    """The law of y does not know of z, and its cost does: each copy of z has a slope of its own."""

    def scaled() -> poutine.scale:
        return poutine.scale(scale=1.0 if weights is None else weights.weights)

    def model() -> None:
        with pyro.plate("grid", size), scaled():
            z = pyro.sample("z", dist.Bernoulli(logits=torch.full((size,), 0.1)))
            y = pyro.sample("y", dist.Bernoulli(logits=torch.full((size,), 0.1)))
            mean = 3.0 * z * y * y - weight("w", 0.7) * y
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.full((size,), 0.7))

    def guide() -> None:
        with pyro.plate("grid", size), scaled():
            pyro.sample("z", dist.Bernoulli(logits=weight("a", -0.6).expand(size)))
            pyro.sample("y", dist.Bernoulli(logits=weight("f", -0.4).expand(size)))

    return Structure(model, guide, ("z", "y"))


@pytest.mark.parametrize("second", [name for name in OURS if name not in ("relax", "relax tied")])
@pytest.mark.parametrize("first", ["enumerate", "leave one out", "rebar tied", "muprop"])
def test_a_law_without_the_dims_of_its_cost(first: str, second: str) -> None:
    estimators = {"z": EVERY[first][0](), "y": EVERY[second][0]()}
    assert errors(apart, estimators, counted([first, second])) < 1e-10


class Detached(REBAR):
    """A mutant: phi moves z~ as it moves z, as if the condition did not depend on it."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        return replace(
            drawn, memory={**drawn.memory, "turn": torch.ones_like(drawn.memory["turn"])}
        )


class AsIfContinuous(REBAR):
    """A mutant: the form of LAX on a discrete value, c(z) in the bracket and no slope of c(z~)."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        turn = torch.zeros_like(drawn.memory["turn"])
        return replace(drawn, memory={**drawn.memory, "turn": turn})

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        hard, free, _ = draw.each(cost.copies)
        copies = torch.cat([hard, free, free], draw.axis or 0)
        return super().surrogate(draw, replace(cost, copies=copies))


class Halved(REBAR):
    """A mutant: the bracket has the scale, the slopes do not."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        hard, free, given = draw.each(cost.copies)
        copies = torch.cat([hard, free, 0.5 * given], draw.axis or 0)
        return super().surrogate(draw, replace(cost, copies=copies))


class OwnWithoutSlope(REBAR):
    """A mutant: log q at relaxed values is in the cost, and its slope is not."""

    def log_q(self, draw: Draw) -> Tensor:
        return super().log_q(draw).detach()


MUTANTS: dict[str, Callable[..., Estimator]] = {
    "conditional detached": Detached,
    "the form of LAX": AsIfContinuous,
    "scale in the bracket only": Halved,
    "log q without its slope": OwnWithoutSlope,
}


@pytest.mark.parametrize("second", ["enumerate", "score"])
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_fail(mutant: str, second: str) -> None:
    estimators = {"z": MUTANTS[mutant](temperature=1.0), "y": EVERY[second][0]()}
    assert errors(chain, estimators, counted(["rebar", second])) > 1e-3


@pytest.mark.parametrize("first", ["rebar", "rebar tied", "relax with the model"])
@pytest.mark.parametrize("second", ["score", "leave one out", "rebar tied"])
def test_a_slope_without_the_laws_of_later_sites_is_biased(
    first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant of the assembly: what is differentiated lacks the later surrogates."""
    original = costs._cost

    def through_draws_only(terms: list[Term], *rest: object) -> Cost | None:
        whole = original(terms, *rest)
        drawn = original([t for t in terms if t.role != "surrogate"], *rest)
        return None if whole is None or drawn is None else replace(whole, total=drawn.total)

    monkeypatch.setattr(costs, "_cost", through_draws_only)
    estimators = {"z": EVERY[first][0](), "y": EVERY[second][0]()}
    assert errors(chain, estimators, counted([first, second])) > 1e-3


def test_a_slope_that_is_shared_by_copies_is_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant of the runs: a value is not repeated for the copies of earlier sites."""
    monkeypatch.setattr(GuideHandler, "_open", lambda *_: {})
    estimators = {"z": am.Enumerate(), "y": EVERY["rebar tied"][0]()}
    assert errors(apart, estimators, counted(["enumerate", "rebar tied"])) > 1e-3


class EventCells(Cells):
    """For events of two bits in a plate of data inside the grid: data share the nodes."""

    def __init__(self, calls: Sequence[str], nodes: int) -> None:
        super().__init__(calls, nodes)
        self.weights = torch.ones(self.size, 1)

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        """Both bits of an event, each with a node of its own."""
        found = [self._node(like[..., bit]) for bit in range(2)]
        return torch.stack(found, -1)

    def _node(self, like: Tensor) -> Tensor:
        kinked, code = self.calls[self._used] == "u", self._next().unsqueeze(-1)
        edge = torch.sigmoid(-like) if kinked else torch.ones_like(like)
        above, node = (code % 2 == 1, code // 2) if kinked else (code < 0, code)
        width = torch.where(above, 1 - edge, edge)
        self._found = self._found.reshape(self.size, -1) * width * self.shares[node]
        return torch.where(above, edge, 0.0) + width * self.points[node]

    def again(self) -> None:
        """From the first draw on, with the weights that were found."""
        assert torch.allclose(self._found.sum(0), torch.ones(()))
        self.weights, self._found, self._used = self._found, torch.ones(self.size), 0


def rows(size: int = 1, weights: Cells | None = None) -> Structure:
    """Two bits an event, whose cost is joint; masked, scaled and subsampled."""

    def over_grid() -> poutine.scale:
        return poutine.scale(scale=1.0 if weights is None else weights.weights)

    def of_latent() -> poutine.mask:
        return poutine.mask(mask=torch.tensor([True, False]))

    def plates() -> tuple[pyro.plate, pyro.plate]:
        data = pyro.plate("data", 6, subsample=torch.tensor([4, 1]), dim=-1)
        return pyro.plate("grid", size, dim=-2), data

    def model() -> None:
        grid, data = plates()
        with grid, data, over_grid():
            with of_latent(), poutine.scale(scale=0.3):
                prior = weight("b", [-0.3, 0.5]).expand(size, 2, 2)
                z = pyro.sample("z", dist.Bernoulli(logits=prior).to_event(1))
            first, second = z.unbind(-1)
            mean = first * weight("w", 0.7) + 2.0 * second * second * first**3
            pyro.sample("x", dist.Normal(mean, 0.6), obs=torch.tensor([0.7, -0.4]))

    def guide() -> None:
        grid, data = plates()
        with grid, data, over_grid(), of_latent(), poutine.scale(scale=0.3):
            logits = weight("a", [0.4, -0.6]) * torch.tensor([[1.0], [0.5]])
            pyro.sample("z", dist.Bernoulli(logits=logits.expand(size, 2, 2)).to_event(1))

    return Structure(model, guide)


@pytest.mark.parametrize(
    ("estimator", "calls"),
    [
        ("rebar", "uuvv"),
        ("rebar tied", "uu"),
        ("rebar improved", "uu"),
        ("relax with the model", "uu"),
    ],
)
def test_events_with_a_joint_cost(estimator: str, calls: str) -> None:
    """Masked latents keep their score, whatever the mask and the scale of their terms."""
    make = EVERY[estimator][0] if estimator != "relax with the model" else joint_relax
    cells = EventCells(calls, 12 if len(calls) == 2 else 7)
    assert errors(rows, {"z": make()}, cells) < (1e-10 if len(calls) == 2 else 1e-7)


def joint_relax() -> Estimator:
    return RELAX(Weighted(4), temperature=1.0, tied=True, relaxed_model=True)


def test_each_bit_of_an_event_has_its_own_slope() -> None:
    """A mutant: slopes are exchanged between the bits of an event."""

    class Exchanged(REBAR):
        def rows(self, draw: Draw, tensor: Tensor) -> tuple[Tensor, ...]:
            return super().rows(draw, tensor if tensor is draw.value else tensor.flip(-1))

    assert errors(rows, {"z": Exchanged(temperature=1.0, tied=True)}, EventCells("uu", 12)) > 1e-3


@pytest.mark.parametrize("ours", ["rebar tied", "relax with the model", "muprop"])
@pytest.mark.parametrize("place", ["z", "y"])
def test_copy_by_copy(place: str, ours: str) -> None:
    """Same noise, same gradient, where the other site has none."""
    other = "y" if place == "z" else "z"
    found = []
    for vectorize in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = chain(5)
        estimators = {place: EVERY[ours][0](), other: am.Enumerate()}
        loss = am.VariationalLoss(estimators=estimators, vectorize=vectorize).eval()
        loss.warm_up(pair.model, pair.guide, ())
        bound = -loss.estimate(pair.model, pair.guide, (), {}, noise=Repeated()).loss
        found.append(torch.autograd.grad(bound, list(leaves().values()), allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


class Repeated:
    """The same uniforms at every call, and for all copies."""

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        return torch.linspace(0.1, 0.9, shape[-1]).expand(tuple(shape))

    def sample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        return (self.uniform(fn.batch_shape, fn.logits, site=site) < fn.probs).double()

    def rsample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        raise RuntimeError(f"site {site!r} draws from {fn}")


STEPS: dict[str, Make] = {
    "rebar": lambda: REBAR(learn_temperature=True, improved=True),
    "rebar tied": lambda: REBAR(tied=True),
    "relax": RELAX,
    "relax with the model": lambda: RELAX(relaxed_model=True),
    "muprop": MuProp,
}


@pytest.mark.parametrize(
    ("structure", "estimator"),
    [
        ("plate", "rebar"),
        ("chain", "rebar tied"),
        ("event_dims", "relax"),
        ("subsampled", "relax with the model"),
        ("masked", "muprop"),
    ],
)
def test_captured(structure: str, estimator: str) -> None:
    """Replays are bit for bit what the programs give, what estimators learn included."""
    compare(structure, "bernoulli", STEPS[estimator])


def test_lax_captured() -> None:
    compare("event_dims", "normal", RELAX)


SERVED = [name for name in sorted(STRUCTURES) if name not in ("subsampled", "auxiliary")]


@pytest.mark.parametrize("structure", SERVED)
def test_muprop_in_every_structure(structure: str) -> None:
    """By the tree of its outcomes."""
    pair = STRUCTURES[structure]("bernoulli")
    loss = am.VariationalLoss(estimators={name: MuProp() for name in pair.latents})
    if structure in SINGLE_ONLY:
        with pytest.raises(am.ProgramError, match="'z'"):
            error(loss, pair)
        return
    assert error(loss, pair) < 1e-10


IN_THE_MEAN: dict[str, Make] = {
    "rebar": lambda: REBAR(learn_temperature=True),
    "relax": lambda: RELAX(hidden=4),
}


@pytest.mark.parametrize("estimator", sorted(IN_THE_MEAN))
@pytest.mark.parametrize("structure", [s for s in SERVED if s not in SINGLE_ONLY])
def test_in_every_structure_in_the_mean(structure: str, estimator: str) -> None:
    """25,000 draws, as particles; the estimators have learned before."""
    pair = STRUCTURES[structure]("bernoulli")
    loss = am.VariationalLoss(
        am.ELBO(num_particles=1000), {name: IN_THE_MEAN[estimator]() for name in pair.latents}
    )
    noise = FixedNoise(seed=5)
    warmed(loss, pair)
    truth = true_gradient(pair, noise)
    draws = torch.stack([flat_gradient(loss, pair) for _ in range(25)])
    expected = torch.cat([g.reshape(-1) for g in truth.values()])
    moving = draws.std(0) > 1e-12
    assert not rejected(draws[:, moving], expected[moving])
    torch.testing.assert_close(draws[0, ~moving], expected[~moving])
    assert rejected(1.3 * draws[:, moving], expected[moving])


def flat_gradient(loss: am.VariationalLoss, pair: Structure) -> Tensor:
    bound = -loss.estimate(pair.model, pair.guide, (), {}).loss
    asked = list(leaves().values())
    found = torch.autograd.grad(bound, asked, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])
