"""Copies in rows: the same gradients in the mean, at a cost that adds up instead of multiplying."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator
from amortized.programs import rows as rows_module
from amortized.programs.records import Layout, Span
from amortized.programs.rows import lay_out
from amortized.surrogate import assemble as assemble_module
from amortized.surrogate.rows import cost_of_copies
from tests.laws.structures import DATA, Structure, law_of, weight
from tests.laws.test_unbiased import error

pytestmark = pytest.mark.float64

Make = Callable[[], Estimator]


class InRows(am.ScoreFunction):
    """Leave-one-out over two samples that may lie in rows."""

    in_rows = True

    def __init__(self) -> None:
        super().__init__(am.LeaveOneOut(), num_samples=2)


def chain(first: str, second: str) -> Structure:
    """z -> y in the guide, y -> z in the model, one datum."""
    z_law = law_of("normal" if first == "pathwise" else "bernoulli")
    y_law = law_of("normal" if second == "pathwise" else "bernoulli")

    def model() -> None:
        with pyro.plate("data", 1):
            y = pyro.sample("y", y_law(weight("c", 0.2).expand(1)))
            z = pyro.sample("z", z_law(weight("b", -0.3) * y))
            mean = z * weight("w", 0.7) + y * (1 - z)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:1])

    def guide() -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", z_law(weight("a", 0.4) * DATA[:1]))
            pyro.sample("y", y_law(weight("e", 0.3) * z + weight("f", 0.1)))

    return Structure(model, guide, ("z", "y"))


MAKES: dict[str, Make] = {
    "rows": InRows,
    "disarm": am.DisARM,
    "plain": am.ScoreFunction,
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut(), num_samples=2),
    "enumerate": am.Enumerate,
    "pathwise": am.Pathwise,
}
LAID_OUT = ("rows", "disarm")
PAIRS = [p for p in product(MAKES, MAKES) if {*p} & {*LAID_OUT}]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_unbiased_beside_every_other(first: str, second: str) -> None:
    pair = chain(first, second)
    estimators = {"z": MAKES[first](), "y": MAKES[second]()}
    assert error(am.VariationalLoss(estimators=estimators, layout="rows"), pair) < 1e-10


def deep(layers: int, size: int = 2) -> Structure:
    """A chain of bits, each layer dependent on the one before, seen at its end."""
    data = DATA.repeat(size // 2)

    def model() -> None:
        with pyro.plate("data", size):
            z = torch.zeros(size)
            for layer in range(layers):
                z = pyro.sample(f"z{layer}", dist.Bernoulli(logits=weight("m", 0.8) * z - 0.3))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=data)

    def guide() -> None:
        with pyro.plate("data", size):
            z = data
            for layer in range(layers):
                z = pyro.sample(f"z{layer}", dist.Bernoulli(logits=weight("g", 1.1) * z - 0.2))

    return Structure(model, guide, tuple(f"z{layer}" for layer in range(layers)))


@pytest.mark.parametrize(
    ("layers", "layout", "evaluations", "how"),
    [
        (4, "axes", 16, "2"),
        (4, "auto", 16, "2"),
        (4, "rows", 5, "2 in rows"),
        (8, "auto", 9, "2 in rows"),
        (12, "auto", 13, "2 in rows"),
    ],
)
def test_the_cost_adds_up(layers: int, layout: str, evaluations: int, how: str) -> None:
    pair = deep(layers)
    loss = am.VariationalLoss(estimators={"z*": am.DisARM()}, layout=layout)  # type: ignore[arg-type]
    text = str(loss.describe(pair.model, pair.guide, ()))
    assert f"the model {evaluations} times a datum" in text and f" {how} " in text


def test_without_rows_the_budget_is_named_before_the_memory_runs_out() -> None:
    pair = deep(20)
    loss = am.VariationalLoss(estimators={"z*": am.DisARM()}, layout="axes")
    with pytest.raises(am.EstimatorError, match=r"site 'z14'.*32768 times a datum.*layout='rows'"):
        loss.describe(pair.model, pair.guide, ())


def drawn(loss: am.VariationalLoss, pair: Structure, draws: int) -> Tensor:
    """Gradients of single evaluations in every parameter, ``[draws, parameters]``."""
    loss.warm_up(pair.model, pair.guide, ())
    store = pyro.get_param_store()
    leaves = [store[name].unconstrained() for name in sorted(store)]
    found = []
    for _ in range(draws):
        bound = -loss.estimate(pair.model, pair.guide, (), {}).loss
        found.append(torch.stack(torch.autograd.grad(bound, leaves)))
    return torch.stack(found)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_deep_program_in_the_mean(particles: int) -> None:
    """Against the same estimator on axes, which the laws hold to enumeration."""
    pair = deep(4, size=400)

    def moments(layout: str) -> tuple[Tensor, Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        objective = am.ELBO(num_particles=particles)
        loss = am.VariationalLoss(objective, {"z*": am.DisARM()}, layout=layout)  # type: ignore[arg-type]
        found = drawn(loss, pair, 60)
        return found.mean(0), found.var(0) / len(found)  # means of 24,000 data: nearly normal

    (axes, one), (rows, other) = moments("axes"), moments("rows")
    z = (axes - rows).abs() / (one + other).sqrt()
    assert float(z.max()) < 5.0  # three coordinates: false alarms below 2e-6
    assert float(axes.abs().max()) > 20 * float((one + other).sqrt().max())


def test_programs_that_mix_the_rows_are_refused() -> None:
    pair = deep(3)

    def model() -> None:
        with pyro.plate("data", 2):
            z = [pyro.sample(f"z{k}", dist.Bernoulli(torch.full((2,), 0.4))) for k in range(3)]
            pyro.sample("x", dist.Normal(z[0].mean(0, keepdim=True) + z[2], 1.0), obs=DATA)

    loss = am.VariationalLoss(estimators={"z*": am.DisARM()}, layout="rows")
    with pytest.raises(am.ProgramError, match=r"site 'x'.*'z0', 'z1', 'z2', which lie in rows"):
        loss.warm_up(model, pair.guide, ())


def test_a_captured_step_is_the_eager_one() -> None:
    def run(compile: str) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = deep(3)
        loss = am.VariationalLoss(estimators={"z*": am.DisARM()}, layout="rows")
        svi = am.SVI(pair.model, pair.guide, loss, lr=0.1, compile=compile)
        return [svi.step(()) for _ in range(5)], svi._stepper.parameters.snapshot()

    (losses, moved), (captured, left) = run("off"), run("graph")
    assert losses == captured and moved.keys() == left.keys()
    assert all(torch.equal(moved[name], left[name]) for name in moved)


def test_another_layout_is_refused() -> None:
    with pytest.raises(am.UsageError, match=r"layout='tree'.*'auto', 'axes' or 'rows'"):
        am.VariationalLoss(layout="tree")  # type: ignore[arg-type]


def _other_rows(cost: Cost, span: Span, layout: Layout) -> Cost:
    """A mutant: each copy is charged the row after its own."""
    return cost_of_copies(cost, replace(span, start=min(span.start + 1, span.rows - 1)), layout)


def _not_redrawn(draw: Draw, layout: Layout, wide: Mapping[int, int]) -> tuple[Draw, Tensor, Span]:
    """A mutant: on the rows of earlier sites the value is still the base's."""
    placed, value, span = lay_out(draw, layout, wide)
    dim = layout.row_dim - len(draw.site.law.event_shape)
    first = value.narrow(dim, 0, 1)
    sizes = [span.start if d == dim % value.dim() else -1 for d in range(value.dim())]
    rest = value.narrow(dim, span.start, layout.rows - span.start)
    return placed, torch.cat([first.expand(sizes), rest], dim), span


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "another row's cost": (assemble_module, "cost_of_copies", _other_rows),
    "later sites keep the base's draw": (rows_module, "lay_out", _not_redrawn),
    "averaged surrogates": (assemble_module, "on_base", lambda value, span: value),
}


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(place, name, wrong)
    worst = 0.0
    for first in ("rows", "plain"):
        pair = chain(first, "rows")
        pyro.clear_param_store()
        estimators = {"z": MAKES[first](), "y": InRows()}
        worst = max(worst, error(am.VariationalLoss(estimators=estimators, layout="rows"), pair))
    assert worst > 1e-3


def relaxed_rows(first: Make, later: str) -> tuple[float, float]:
    """The largest error of a mean gradient a datum, in standard errors and in nats."""
    size = 40_000
    data = DATA[:1].expand(size)

    def model() -> None:
        with pyro.plate("data", size):
            y = pyro.sample("y", dist.Bernoulli(logits=weight("c", 0.2).expand(size)))
            z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -1.3) * y))
            mean = z * weight("w", 0.7) + 2.0 * y * (1 - z)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    def guide() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4) * data))
            logits = weight("e", 1.7) * z + weight("f", 0.1)
            pyro.sample("y", dist.Bernoulli(logits=logits))

    def moments(estimators: dict[str, Estimator], layout: str) -> tuple[Tensor, Tensor]:
        pyro.clear_param_store()
        loss = am.VariationalLoss(estimators=estimators, layout=layout)  # type: ignore[arg-type]
        found = drawn(loss.eval(), Structure(model, guide), 2 if layout == "axes" else 12) / size
        return found.mean(0), found.std(0) / len(found) ** 0.5

    truth, _ = moments({"z": am.Enumerate(), "y": am.Enumerate()}, "axes")
    second = first() if later == "itself" else MAKES[later]()
    mean, error_ = moments({"z": first(), "y": second}, "rows")
    return float(((mean - truth).abs() / error_).max()), float((mean - truth).abs().max())


@pytest.mark.parametrize("later", ["plain", "disarm", "enumerate", "itself"])
@pytest.mark.parametrize("first", [am.REBAR, am.MuProp, am.ARM])
def test_control_variates_in_rows_in_the_mean(first: Make, later: str) -> None:
    """Twelve runs of 40,000 data: t with 11 degrees of freedom, six coordinates."""
    errors, nats = relaxed_rows(first, later)
    assert errors < 11.0 and nats < 4e-3


def test_slopes_must_hold_how_later_laws_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble_module, "scores_of_relaxed_rows", lambda *_: None)
    errors, _ = relaxed_rows(am.REBAR, "disarm")
    assert errors > 30.0
