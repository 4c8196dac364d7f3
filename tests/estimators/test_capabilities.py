"""The table of who serves what, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

import amortized as am
from amortized.estimators.capabilities import capabilities, laws, markdown
from amortized.estimators.choice import NAMES, estimator_of

ROOT = Path(__file__).parents[2]
CELLS = {(c.estimator, c.law): c for c in capabilities()}


def test_the_page_is_what_the_declarations_say() -> None:
    page = (ROOT / "docs/capabilities.md").read_text(encoding="utf-8")
    assert page == markdown(), "python -m amortized.estimators.capabilities > docs/capabilities.md"


def test_every_estimator_that_is_offered_has_a_name() -> None:
    offered = {
        value
        for value in vars(am).values()
        if isinstance(value, type) and issubclass(value, am.Estimator) and value is not am.Estimator
    }
    assert offered == {type(estimator_of(name)) for name in NAMES}


@pytest.mark.parametrize("law", sorted(laws()))
def test_every_law_is_served_by_someone_without_bias(law: str) -> None:
    assert any(CELLS[name, law].served for name in NAMES if not estimator_of(name).bias)


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_names_what_would_work_instead(name: str) -> None:
    refused = [cell for (owner, _), cell in CELLS.items() if owner == name and not cell.served]
    for cell in refused:
        assert cell.refusal is not None and "am." in cell.refusal, cell
        assert cell.law.split(",")[0] in cell.refusal, cell
    served = [cell for (owner, _), cell in CELLS.items() if owner == name and cell.served]
    assert served and all(cell.copies >= 1 for cell in served)


def test_what_is_known_of_some_cells() -> None:
    assert CELLS["pathwise", "Normal"].served and not CELLS["pathwise", "Bernoulli"].served
    assert CELLS["enumerate", "Bernoulli, to_event"].copies == 8
    assert not CELLS["arm", "Categorical"].served and CELLS["disarm", "Categorical"].served
    assert not CELLS["relaxed", "Categorical"].served and CELLS["relax", "Categorical"].served
