"""Random programs with random mappings: the mean of our gradient is the exact gradient.

The estimator runs once per joint outcome of its own randomness, the oracle once per joint outcome
of the guide; continuous sites see the same fixed noise in both. There is no tolerance to tune.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from torch import Tensor

import amortized as am
from tests.differential.programs import (
    CONTINUOUS,
    ESTIMATORS,
    FAMILIES,
    LAYOUTS,
    Built,
    Site,
    Spec,
    Term,
    ancestors,
    build,
)
from tests.differential.strategies import specs
from tests.reference import FixedNoise, OutcomeTree, TooManyOutcomes, contributions, estimate_law

RELATIVE = 1e-9
PATHS = 96

RULES = {
    "pathwise": am.Pathwise,
    "enumerate": am.Enumerate,
    "score": am.ScoreFunction,
    "constant": lambda: am.ScoreFunction(am.Constant(0.7)),
    "moving": lambda: am.ScoreFunction(am.MovingAverage()),
    "neural": lambda: am.ScoreFunction(am.NeuralBaseline()),
    "twice": lambda: am.ScoreFunction(am.MovingAverage(), num_samples=2),
    "particles": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "loo": lambda: am.ScoreFunction(am.LeaveOneOut(), num_samples=2),
}


def prepared(spec: Spec, built: Built) -> am.VariationalLoss:
    """The loss of a spec, its state moved away from the start, then held still."""
    objective = am.ELBO(num_particles=spec.num_particles, kl=spec.kl)
    # a glob, since the sites of a loop are several
    loss = am.VariationalLoss(
        objective,
        {f"{site.name}*": RULES[site.estimator]() for site in spec.sites},
        vectorize=spec.vectorize,
    )
    pyro.set_rng_seed(spec.seed)
    loss.warm_up(built.model, built.guide, built.args)
    for _ in range(2):
        loss.learn(loss.estimate(built.model, built.guide, built.args, {}))
    return loss.eval()


def integrated(spec: Spec, built: Built, loss: am.VariationalLoss) -> list[str]:
    """Continuous sites whose two terms the loss replaces by their KL: only legal ones."""
    rows = loss.describe(built.model, built.guide, built.args).rows
    closed = {row.site for row in rows if row.kl == "closed form"}
    found: list[str] = []
    for site in spec.sites:
        if closed.intersection(site.names):
            later = ancestors(spec.sites, site.model_parents)
            assert site not in later, f"{site.name}: its prior depends on what follows from it"
        if site.family in CONTINUOUS:
            found += closed.intersection(site.names)
    return found


def gradients(value: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    found = torch.autograd.grad(
        value, list(params.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(params, found, strict=True))


def truth(
    built: Built, noise: FixedNoise, analytic: list[str], kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    value, total = torch.zeros(()), {n: torch.zeros_like(p) for n, p in built.params.items()}
    parts = contributions(
        built.model,
        built.guide,
        built.args,
        noise=noise,
        analytic=analytic,
        kl_weight=kl_weight,
    )
    for part in parts:
        value = value + part.detach()
        total = {n: total[n] + g for n, g in gradients(part, built.params).items()}
    return value, total


def expected(
    built: Built, loss: am.VariationalLoss, noise: FixedNoise, kl_weight: float
) -> dict[str, Any]:
    def run(tree: OutcomeTree) -> dict[str, Any]:
        estimate = loss.estimate(
            built.model, built.guide, built.args, {}, noise=tree, kl_weight=kl_weight
        )
        parts = estimate.reconstruction - kl_weight * estimate.kl
        return {
            "bound": -estimate.loss.detach(),
            "parts": parts,
            "gradient": gradients(-estimate.loss, built.params),
        }

    return estimate_law(run, noise=noise, limit=4 * PATHS).mean


def compare(name: str, found: Tensor, wanted: Tensor, size: float) -> None:
    worst = (found - wanted).abs().max()
    assert worst <= RELATIVE * size, f"{name}: {found.tolist()} instead of {wanted.tolist()}"


def check(spec: Spec) -> None:
    """The mean of value and gradient over the estimator's randomness is exact."""
    built, noise = build(spec), FixedNoise(seed=spec.seed)
    loss = prepared(spec, built)
    analytic = integrated(spec, built, loss)
    with pyro.validation_enabled(False):
        value, gradient = truth(built, noise, analytic, spec.kl_weight)
        try:
            mean = expected(built, loss, noise, spec.kl_weight)
        except TooManyOutcomes:
            if spec.vectorize:
                raise
            reject()  # copy by copy, how much is drawn again is the loss's affair
    size = 1 + max(float(g.abs().max()) for g in gradient.values())
    compare("bound", mean["bound"], value, 1 + float(value.abs()))
    compare("reconstruction - kl", mean["parts"], value, 1 + float(value.abs()))
    for name in built.params:
        compare(f"gradient of {name}", mean["gradient"][name], gradient[name], size)


RANDOM = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(RANDOM, max_examples=100)
@given(specs(paths=PATHS))
def test_random_programs(spec: Spec) -> None:
    check(spec)


@pytest.mark.long
@settings(RANDOM, max_examples=2000)
@given(specs(paths=PATHS))
def test_many_random_programs(spec: Spec) -> None:
    check(spec)


def one_plate(*sites: Site, x: Term | None = None, **options: Any) -> Spec:
    order = options.pop("model_order", tuple(site.name for site in sites))
    terms = () if x is None else (x,)
    return Spec("one", tuple(sites), model_order=order, terms=terms, **options)


IN = ("a",)
ENUMERATED_THEN_SCORED = (
    Site("z", "bernoulli", IN, estimator="enumerate"),
    Site("y", "bernoulli", IN, model_parents=("z", "g"), estimator="score"),
    Site("g", "normal", ("b",), ("y",)),
)
FOUND = {  # what random programs found, made small by hand
    "elements of a plate meet in an outer site": one_plate(
        Site("z", "bernoulli", IN, estimator="score"),
        Site("g", "normal", (), ("z",)),
        x=Term("x", "factor", IN, ("g",)),
    ),
    "the same, on joint copies": one_plate(
        Site("z", "bernoulli", IN, estimator="loo"),
        Site("g", "bernoulli", (), ("z",), estimator="score"),
        x=Term("x", "factor", IN, ("g",)),
    ),
    "elements meet in the model's order": one_plate(
        Site("z", "bernoulli", IN, model_parents=("g",), estimator="score"),
        Site("g", "bernoulli", (), ("z",), estimator="score"),
        model_order=("g", "z"),
    ),
    "an enumerated plate that an outer score cannot depend on": one_plate(
        Site("z", "bernoulli", IN, estimator="enumerate"),
        Site("g", "bernoulli", estimator="score"),
        model_order=("g", "z"),
    ),
    "an enumerated plate and, after it, an independent enumerated site": one_plate(
        Site("z", "bernoulli", IN, estimator="enumerate"),
        Site("g", "bernoulli", estimator="enumerate"),
        x=Term("x", "normal", IN, ("z", "g")),
    ),
    "an enumerated plate with a pathwise child, and an independent enumerated site": one_plate(
        Site("z", "bernoulli", IN, model_parents=("g",), estimator="enumerate"),
        Site("y", "normal", IN, ("z",)),
        Site("g", "bernoulli", estimator="enumerate"),
        model_order=("g", "y", "z"),
    ),
    "elements meet in another plate, under copies with weights of their own": Spec(
        "sequential",
        ENUMERATED_THEN_SCORED,
        model_order=("z", "g", "y"),
        terms=(Term("x", "factor", ("b",), ("g",)),),
    ),
    "the same, where another site depends on the copies": Spec(
        "sequential",
        (
            ENUMERATED_THEN_SCORED[0],
            Site("w", "bernoulli", IN, ("z",), estimator="score"),
            *ENUMERATED_THEN_SCORED[1:],
        ),
        model_order=("z", "w", "g", "y"),
        terms=(Term("x", "factor", ("b",), ("g",)),),
    ),
    "the same, on joint copies under copies with weights": Spec(
        "sequential",
        (
            ENUMERATED_THEN_SCORED[0],
            replace(ENUMERATED_THEN_SCORED[1], estimator="loo"),
            ENUMERATED_THEN_SCORED[2],
        ),
        model_order=("z", "g", "y"),
        terms=(Term("x", "factor", ("b",), ("g",)),),
    ),
    "a mask that is one number": one_plate(
        Site("z", "normal"), x=Term("x", "normal", (), ("z",), masked=True)
    ),
    "a prior with fewer dims than its guide site": one_plate(
        Site("z", "bernoulli", IN, estimator="score"),
        Site("y", "bernoullis", (), ("z",), estimator="score"),
        kl="analytic",
    ),
    "a neural baseline at a global site": one_plate(Site("z", "bernoulli", estimator="neural")),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_programs(name: str) -> None:
    check(FOUND[name])


def test_specs_reach_everything() -> None:
    """The random test is not vacuous, and what it prints is a reproducer."""
    seen: Counter[str] = Counter()

    @settings(RANDOM, max_examples=400)
    @given(specs(paths=PATHS))
    def collect(spec: Spec) -> None:
        assert eval(repr(spec)) == spec
        seen.update(
            [spec.layout, spec.kl, f"{spec.num_particles} particles", f"weight {spec.kl_weight}"]
        )
        seen["copy by copy"] += not spec.vectorize
        seen.update(term.kind for term in spec.terms)
        for site in spec.sites:
            seen.update([site.family, site.estimator])
            seen.update(["parents"] * len(site.guide_parents + site.model_parents))
            seen["auxiliary"] += site.auxiliary
            seen["partial"] += site.partial
            parents = [spec.site(name) for name in site.guide_parents]
            seen["across plates"] += any(set(p.plates) - set(site.plates) for p in parents)

    collect()
    wanted = [*LAYOUTS, *FAMILIES, *ESTIMATORS, "branch", "factor", "auxiliary", "partial"]
    wanted += ["analytic", "2 particles", "copy by copy", "parents", "across plates"]
    assert not [name for name in wanted if seen[name] < 4], seen
