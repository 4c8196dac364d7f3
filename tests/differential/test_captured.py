"""Random programs trained as they are written and from a captured graph: the same, bit for bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyro
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import amortized as am
from amortized.errors import AmortizedError
from amortized.programs.records import DataPlate
from tests.differential.programs import Built, Spec, build
from tests.differential.strategies import specs
from tests.differential.test_differential import FOUND, PATHS, RULES

STEPS = 4
READS = "the programs read the value of a tensor"


class Program(nn.Module):
    """A program of a spec, and the leaves that are its own."""

    def __init__(self, program: Any, leaves: list[nn.Parameter]) -> None:
        super().__init__()
        self.program = program
        self.leaves = nn.ParameterList(leaves)

    def forward(self, x: Tensor) -> None:
        self.program(x)


def trainable(built: Built) -> tuple[Program, Program]:
    """The model and the guide as modules; both programs see the parameters in their dict."""
    for name, value in built.params.items():
        built.params[name] = nn.Parameter(value.detach().clone())
    every: dict[str, Any] = built.params
    ours = {side: [v for k, v in every.items() if k.startswith(f"{side}.")] for side in "pq"}
    return Program(built.model, ours["p"]), Program(built.guide, ours["q"])


def trained(spec: Spec, mode: Any) -> tuple[list[bytes], dict[str, bytes]]:
    """The terms of some steps, and everything that they moved."""
    pyro.clear_param_store()
    pyro.set_rng_seed(spec.seed)
    built = build(spec)
    model, guide = trainable(built)
    loss = am.VariationalLoss(
        am.ELBO(num_particles=spec.num_particles, kl=spec.kl),
        {f"{site.name}*": RULES[site.estimator]() for site in spec.sites},
        vectorize=spec.vectorize,
    )
    stepper = am.SVI(model, guide, loss, lr=0.1, compile=mode)._stepper
    seen = []
    for _ in range(STEPS):
        terms = stepper.accumulate(built.args[0], DataPlate(), spec.kl_weight).values
        norm = torch.tensor(stepper.apply())
        seen += [value.numpy().tobytes() for value in (*terms.values(), norm, torch.rand(1))]
    state = stepper.parameters.snapshot()
    return seen, {name: value.numpy().tobytes() for name, value in state.items()}


def may_read_values(spec: Spec) -> bool:
    """Python looks at a latent, or at indices that both programs give in a tensor of their own.

    So does torch's KL of two Bernoulli laws without dims, which is indexed by a mask.
    """
    given = spec.layout in ("loop", "subsampled")
    closed = spec.kl == "analytic" and any(site.family == "bernoulli" for site in spec.sites)
    return given or closed or any(term.kind == "branch" for term in spec.terms)


def outcome(spec: Spec) -> str:
    """Trains in both modes: "equal", or why not, where that is known beforehand."""
    try:
        eager = trained(spec, "off")
    except AmortizedError as error:
        return f"not served: {type(error).__name__}"
    try:
        replayed = trained(spec, "graph")
    except AmortizedError as error:
        assert READS in str(error) and may_read_values(spec), str(error)
        return "refused"
    assert replayed == eager
    return "equal"


RANDOM = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def seldom_refused(spec: Spec) -> bool:
    given = spec.layout in ("loop", "subsampled")
    return not given and not any(term.kind == "branch" for term in spec.terms)


def test_random_programs() -> None:
    outcomes: Counter[str] = Counter()

    @settings(RANDOM, max_examples=20)
    @given(specs(paths=32).filter(seldom_refused))
    def check(spec: Spec) -> None:
        outcomes[outcome(spec)] += 1

    check()
    assert outcomes["equal"] >= 14, outcomes


@pytest.mark.long
@settings(RANDOM, max_examples=600)
@given(specs(paths=PATHS))
def test_many_random_programs(spec: Spec) -> None:
    outcome(spec)


@pytest.mark.parametrize("name", FOUND)
def test_programs_that_were_hard(name: str) -> None:
    assert outcome(FOUND[name]) == "equal"
