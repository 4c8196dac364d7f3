"""Every cell of the capability table, and every ordered pair of estimators on a chain.

The cells are computed, so a new estimator, or a new law in the table, is tested by being there.
Means of as many independent gradients as it takes are compared with exact numbers; all tests
together, a million draws a cell included, raise a false alarm once in 10^4 seeds.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.errors import ProgramError
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from amortized.estimators.baselines import Baseline
from amortized.estimators.capabilities import capabilities
from amortized.estimators.choice import NAMES, estimator_of
from tests.laws.served import (
    COORDINATES,
    MOST,
    RESOLUTION,
    Family,
    Verdict,
    chain,
    gradients,
    judged,
    served,
    warmed,
)

CELLS = [(c.estimator, c.law) for c in capabilities() if c.served]
BIASED = [name for name in NAMES if estimator_of(name).bias]
# what serves a bit without bias
FIRST_AND_SECOND = [n for n, law in CELLS if law == "Bernoulli" and n not in BIASED]
PAIRS = list(product(FIRST_AND_SECOND, FIRST_AND_SECOND))


def cell(estimator: Estimator, law: str, draws: int | None = None, **options: Any) -> Verdict:
    """A site of the law, served by the estimator."""
    problem = served(law, estimator, **options)
    return judged(problem, warmed(problem, {"z": estimator}), draws)


def test_every_coordinate_is_counted() -> None:
    """The bound on false alarms holds for all of these: twice, since long runs test them again."""
    # more than the leaves of the laws: the value, theta, and one direction for each site
    count = sum(sum(v.numel() for v in Family(law).start.values()) + 3 for _, law in CELLS)
    count += (len(chain().starts) + 3) * len(PAIRS)
    assert 2 * count <= COORDINATES


@pytest.mark.parametrize(("estimator", "law"), CELLS)
def test_the_mean_is_the_truth_or_the_bias_is_told(estimator: str, law: str) -> None:
    found = cell(estimator_of(estimator), law)
    assert found.rejected == (estimator in BIASED), found
    assert estimator in BIASED or found.missed < 1.25 * RESOLUTION


@pytest.mark.long
@pytest.mark.parametrize(("estimator", "law"), CELLS)
def test_a_million_draws(estimator: str, law: str) -> None:
    found = cell(estimator_of(estimator), law, MOST)
    assert found.rejected == (estimator in BIASED), found


@pytest.mark.parametrize("law", [law for name, law in CELLS if name == "straight_through"])
def test_straight_through_has_no_bias_where_costs_are_linear(law: str) -> None:
    found = cell(am.StraightThrough(), law, linear=True)
    assert not found.rejected, found


# --- mutants --------------------------------------------------------------------------------------


class Short(am.ScoreFunction):
    """5 % of the cost is dropped."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        return super().surrogate(draw, Cost(0.95 * cost.copies, cost.peers))


class Slack(am.Pathwise):
    """5 % of the path is cut."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        value = super().draw(site, noise).value
        return Draw(site, 0.95 * value + 0.05 * value.detach())


class Flat(am.Enumerate):
    """The weights of the values are a little too even."""

    def weights(self, draw: Draw) -> Tensor | None:
        found = super().weights(draw)
        return None if found is None else 0.95 * found + 0.05 / draw.copies


class Rushed(am.DisARM):
    """5 % of the coefficients is dropped."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        owed = super().surrogate(draw, cost)
        return None if owed is None else 0.95 * owed


class Peeking(Baseline):
    """A baseline that sees the draw that it is subtracted from."""

    def forward(self, draw: Draw, cost: Cost) -> Tensor:
        return 0.05 * cost.copies


MUTANTS = {
    "short": (lambda: Short(am.LeaveOneOut()), ("Poisson", "MultivariateNormal", "VonMises")),
    "peeking": (lambda: am.ScoreFunction(Peeking()), ("Bernoulli, to_event", "Exponential")),
    "slack": (Slack, ("Normal", "Dirichlet")),
    "flat": (Flat, ("Categorical", "Binomial")),
    "rushed": (Rushed, ("OneHotCategorical, to_event",)),
}


@pytest.mark.parametrize(
    ("mutant", "law"), [(name, law) for name, (_, at) in MUTANTS.items() for law in at]
)
def test_mutants_fail(mutant: str, law: str) -> None:
    assert cell(MUTANTS[mutant][0](), law).rejected


# --- pairs ----------------------------------------------------------------------------------------


def on_a_chain(first: Estimator, second: Estimator, draws: int | None = None) -> Verdict:
    problem = chain()
    return judged(problem, warmed(problem, {"z": first, "y": second}), draws)


# each name once above and once below another
SOME = [(n, FIRST_AND_SECOND[i - 1]) for i, n in enumerate(FIRST_AND_SECOND)]


@pytest.mark.parametrize(("first", "second"), SOME)
def test_some_pairs_on_a_chain(first: str, second: str) -> None:
    found = on_a_chain(estimator_of(first), estimator_of(second))
    assert not found.rejected, found
    assert found.missed < 1.25 * RESOLUTION


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_ordered_pair_on_a_chain(first: str, second: str) -> None:
    found = on_a_chain(estimator_of(first), estimator_of(second), 250_000)
    assert not found.rejected, found


@pytest.mark.parametrize("name", ["z", "y"])
def test_a_mutant_on_a_chain_fails(name: str) -> None:
    mutant = Short(am.LeaveOneOut())
    first, second = (mutant, am.DisARM()) if name == "z" else (am.DisARM(), mutant)
    assert on_a_chain(first, second).rejected


# --- captured, and copy by copy -------------------------------------------------------------------

# draws by rejection loop until enough are accepted, and the support of a Binomial is as long as
# the value of its count: neither can be captured, and a step says so
READS_VALUES = {("*", "VonMises")}


def trained(estimator: str, law: str, compile: Any) -> tuple[list[float], Any]:
    """Losses of three steps, and everything that they moved."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    recipe = estimator_of(estimator)
    problem = served(law, recipe)
    model, guide = problem.make(2, lambda name, start: pyro.param(name, start.clone()))
    loss = am.VariationalLoss(estimators={"z": recipe})
    svi = am.SVI(model, guide, loss, lr=0.05, compile=compile)
    history = svi.fit((), max_epochs=3, progress=False, check=False)
    return history["train_loss"], svi._stepper.parameters.snapshot()


def compare_captured(estimator: str, law: str) -> None:
    losses, moved = trained(estimator, law, "off")
    assert len(set(losses)) > 1
    if READS_VALUES & {(estimator, law), ("*", law)}:
        with pytest.raises(ProgramError, match="read the value of a tensor"):
            trained(estimator, law, "graph")
        return
    found, replayed = trained(estimator, law, "graph")
    assert found == losses
    assert replayed.keys() == moved.keys()
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in moved.items())


# one cell of each estimator, and one of each law
DIAGONAL = sorted(
    set({name: (name, law) for name, law in CELLS}.values())
    | set({law: (name, law) for name, law in reversed(CELLS)}.values())
)


@pytest.mark.parametrize(("estimator", "law"), DIAGONAL)
def test_some_cells_captured(estimator: str, law: str) -> None:
    compare_captured(estimator, law)


@pytest.mark.long
@pytest.mark.parametrize(("estimator", "law"), CELLS)
def test_every_cell_captured(estimator: str, law: str) -> None:
    compare_captured(estimator, law)


@pytest.mark.parametrize(("estimator", "law"), CELLS)
def test_copy_by_copy(estimator: str, law: str) -> None:
    recipe = estimator_of(estimator)
    problem = served(law, recipe)
    loss = am.VariationalLoss(estimators={"z": recipe}, vectorize=False)
    bound, found = gradients(problem, loss, 5)
    assert bound.isfinite()
    assert all(g.isfinite().all() for g in found.values())
