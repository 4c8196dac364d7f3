from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from amortized.checks.report import Finding
from amortized.checks.shapes import shape_findings
from amortized.programs.records import DataPlate
from amortized.programs.survey import survey_guide, survey_model

ROWS = 6


def found(guide: Callable[[], Any], model: Callable[[], Any], **data: Any) -> list[Finding]:
    theirs = survey_guide(guide, (), {})
    ours = survey_model(model, (), {}, theirs)
    return list(shape_findings(theirs, ours, ROWS, DataPlate(**data)))


def observed(law: Any, x: Tensor, plate: int = ROWS) -> list[Finding]:
    def model() -> None:
        with pyro.plate("data", plate):
            pyro.sample("x", law, obs=x)

    return found(lambda: None, model)


def normal(*shape: int) -> dist.Normal:
    return dist.Normal(torch.zeros(shape), 1.0)


@pytest.mark.parametrize(
    ("law", "x"),
    [
        (normal(), torch.zeros(ROWS)),
        (normal(ROWS), torch.zeros(ROWS)),
        (normal(ROWS, 2).to_event(1), torch.zeros(ROWS, 2)),
        (normal(2).to_event(1), torch.zeros(ROWS, 2)),
        (normal(ROWS), torch.tensor(0.0)),
        (dist.Categorical(torch.ones(ROWS, 3)), torch.zeros(ROWS)),
        (dist.OneHotCategorical(torch.ones(ROWS, 3)), torch.eye(3).repeat(2, 1)),
    ],
)
def test_data_that_fit_their_law(law: Any, x: Tensor) -> None:
    assert observed(law, x) == []


@pytest.mark.parametrize(
    ("law", "x", "code", "advice"),
    [
        (normal(ROWS, 1), torch.zeros(ROWS), "broadcast-observation", "squeeze"),
        (normal(ROWS), torch.zeros(ROWS, 1), "broadcast-observation", "squeeze"),
        (normal(ROWS, 2).to_event(2), torch.zeros(ROWS, 2), "broadcast-observation", "to_event(1)"),
        (normal(ROWS, 2).to_event(1), torch.zeros(ROWS, 3), "event-shape-mismatch", "last dims"),
        (normal(ROWS, 2).to_event(1), torch.zeros(()), "event-shape-mismatch", "to_event"),
        (normal(), torch.zeros(4, ROWS), "undeclared-batch-dim", "pyro.plate"),
        (normal(), torch.zeros(ROWS + 1), "plate-size", "len(x)"),
        (
            dist.Categorical(torch.ones(ROWS, 3)),
            torch.eye(3).repeat(2, 1),
            "event-shape-mismatch",
            "argmax",
        ),
        (normal(), 0.5, "data-dtype", "as_tensor"),
    ],
)
def test_data_that_do_not_fit_their_law(law: Any, x: Any, code: str, advice: str) -> None:
    (finding,) = observed(law, x)
    assert (finding.code, finding.site) == (code, "x")
    assert advice in finding.advice


def test_a_plate_of_size_one_around_the_data() -> None:
    (finding,) = observed(normal(), torch.zeros(ROWS), plate=1)
    assert finding.code == "plate-size"


def test_a_minibatch_wants_its_rows() -> None:
    def model() -> None:
        with pyro.plate("data", ROWS, subsample_size=2):
            pyro.sample("x", normal(), obs=torch.zeros(ROWS))

    (finding,) = found(lambda: None, model)
    assert finding.code == "plate-size" and "x[i]" in finding.advice


def latent(law: Any, *plates: Any) -> Callable[[], None]:
    def program() -> None:
        opened = [pyro.plate(*arguments) for arguments in plates]
        for plate in opened:
            plate.__enter__()
        pyro.sample("z", law)
        for plate in reversed(opened):
            plate.__exit__(None, None, None)

    return program


@pytest.mark.parametrize(
    ("guide", "model", "codes"),
    [
        (latent(normal(), ("d", 3)), latent(normal(), ("d", 3)), []),
        (latent(normal(), ("d", 1)), latent(normal()), []),
        (latent(normal(2).to_event(1)), latent(normal(2).to_event(1)), []),
        (latent(normal()), latent(normal(), ("d", 3)), ["plate-mismatch"]),
        (latent(normal(), ("d", 3)), latent(normal()), ["plate-mismatch"]),
        (latent(normal(), ("e", 3)), latent(normal(), ("d", 3)), ["plate-mismatch"]),
        (latent(normal(3)), latent(normal(), ("d", 3)), ["plate-mismatch"]),
        (latent(normal(3)), latent(normal(3)), ["undeclared-batch-dim"] * 2),
        (
            latent(normal(3)),
            latent(normal(3).to_event(1)),
            ["event-shape-mismatch"],
        ),
        (
            latent(normal(3)),
            latent(normal(4).to_event(1)),
            ["event-shape-mismatch", "undeclared-batch-dim"],
        ),
        (latent(normal(), ("d", 3)), latent(normal(), ("d", 4)), ["plate-mismatch"]),
    ],
)
def test_a_latent_in_both_programs(guide: Any, model: Any, codes: list[str]) -> None:
    assert [f.code for f in found(guide, model)] == codes


def test_plates_at_other_dims() -> None:
    def at(row: int, column: int) -> Callable[[], None]:
        def program() -> None:
            with pyro.plate("row", 3, dim=row), pyro.plate("column", 3, dim=column):
                pyro.sample("z", normal())

        return program

    (finding,) = found(at(-1, -2), at(-2, -1))
    assert finding.code == "plate-mismatch" and "dim=" in finding.advice


def test_the_plate_of_the_data_set() -> None:
    program = latent(normal(), ("data", 100, 2))
    assert found(program, program) == []
    assert found(program, program, name="data", size=100) == []
    (finding,) = found(program, program, name="data", size=60)
    assert (finding.severity, finding.code) == ("warning", "plate-size")


def test_minibatches_of_model_and_guide() -> None:
    def rows(*indices: int) -> Callable[[], None]:
        return latent(normal(), ("data", 9, None, torch.tensor(indices)))

    random = latent(normal(), ("data", 9, 2))
    assert found(rows(1, 2), rows(1, 2)) == []
    assert found(random, random) == []
    assert [f.code for f in found(rows(1, 2), rows(3, 4))] == ["subsample-mismatch"]
    theirs = found(latent(normal()), random)
    assert ["subsample-mismatch", "plate-mismatch"] == [f.code for f in theirs]


@pytest.mark.parametrize(
    ("value", "repeated"),
    [
        (lambda w: (w * torch.ones(ROWS)).sum(), True),
        (lambda w: w * torch.ones(ROWS), False),
        (lambda w: w.detach(), False),
        (lambda w: 0.0 * w, False),
    ],
)
def test_a_sum_over_the_rows_inside_their_plate(value: Any, repeated: bool) -> None:
    w = torch.tensor(2.0, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", ROWS):
            pyro.factor("loss", value(w))

    codes = [(f.severity, f.code, f.site) for f in found(lambda: None, model)]
    assert codes == ([("warning", "broadcast-observation", "loss")] if repeated else [])
