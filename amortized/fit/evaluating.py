"""Held-out numbers of a pair, from the data to the dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amortized.fit.alike import refuse_other_data
from amortized.fit.arguments import refuse_no_count, refuse_no_seed
from amortized.fit.culprits import blamed_on
from amortized.fit.data import as_batches
from amortized.fit.distributed import current_group
from amortized.fit.evaluate import Evaluation, rows_at_once, sizes_of
from amortized.fit.rng import seeded
from amortized.fit.shards import sharded
from amortized.fit.step import Stepper
from amortized.programs.records import DataPlate


def evaluated(
    stepper: Stepper,
    plate: DataPlate,
    test: Any,
    *,
    num_particles: int | Sequence[int],
    batch_size: int | None,
    seed: int | None,
    max_rows: int,
) -> dict[str, float]:
    """What `amortized.SVI.evaluate` returns; of several processes each takes its part of the data.

    Raises:
        UsageError: unfit data or options.
        DataError: several processes have other data than each other, or the model observes values
            that its likelihood excludes, by row.
    """
    most = max(sizes_of(num_particles))
    refuse_no_count("max_rows", max_rows)
    refuse_no_seed(seed)
    group = current_group()
    rows = rows_at_once(most, max_rows) if batch_size is None else batch_size
    batches = sharded(as_batches(test, rows), group)
    refuse_other_data(group, "test", batches)
    data = DataPlate(plate.name, batches.size if plate.size is None else plate.size)
    evaluation = Evaluation(stepper, data, num_particles=num_particles, max_rows=max_rows)
    own = seed if seed is None or not group.rank else group.seed(seed)
    divide = batch_size is None and batches.rows_asked() is not None
    with blamed_on(batches, stepper), seeded(own):
        return evaluation.run(batches, divide=divide)
