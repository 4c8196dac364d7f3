"""Objectives that take samples as data: particles are weighed, simulations charged their log q."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from amortized.errors import UsageError
from amortized.estimate import Estimate, estimated
from amortized.estimators.as_data import as_data
from amortized.estimators.base import Noise
from amortized.objectives.base import Reweighted
from amortized.programs.records import DataPlate, Run
from amortized.programs.run import Program
from amortized.programs.runner import Runner
from amortized.surrogate.outer import OuterScale, shared_plates
from amortized.surrogate.reweighted import log_q_of_simulation, summed, weigh_particles
from amortized.surrogate.weights import Weight


class Asked(NamedTuple):
    """What an evaluation of an objective is of."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    data: DataPlate | None
    noise: Noise
    kl_weight: Weight


def weigh_samples(
    objective: Reweighted, asked: Asked, runner: Runner, outer: OuterScale
) -> Estimate:
    """The objective's losses of model and guide, added.

    Raises:
        UsageError: a weight of a KL, of which there is none.
    """
    if isinstance(asked.kl_weight, Tensor) or asked.kl_weight != 1.0:
        raise UsageError(
            f"kl_weight={asked.kl_weight}: {objective!r} has no KL that could count less; leave KL "
            "warm-up out, or use am.ELBO()"
        )
    pair = (asked.model, asked.guide, asked.args, asked.kwargs)
    given: dict[str, Any] = {"noise": asked.noise, "data": asked.data}
    parts: dict[str, Tensor] = {}
    found: list[tuple[Run, DataPlate]] = []
    if objective.weighs_particles:
        count = objective.num_particles
        run, plate = runner.run(*pair, choose=as_data, num_particles=count, **given)
        factor, _ = outer.of(run, shared_plates(run), read=runner.looks != "never")
        parts = weigh_particles(run, objective, factor)
        found.append((run, plate))
    if objective.simulated:
        stored = not objective.draws_simulations
        asleep, plate = runner.simulate(*pair, observed=objective.observed, stored=stored, **given)
        learned = objective.simulated * log_q_of_simulation(asleep)
        parts["guide"] = parts["guide"] + learned if "guide" in parts else learned
        found.append((asleep, plate))
    on_data = objective.weighs_particles
    return estimated(*found[0], summed(parts), is_elbo=False, on_data=on_data)
