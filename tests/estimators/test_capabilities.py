"""The table of who serves what, and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.errors import AmortizedError
from amortized.estimators.capabilities import capabilities, laws, markdown, settings
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


# --- objectives and structures: the table against programs that are run --------------------------

SETTINGS = {setting.name: setting for setting in settings()}
Pair = tuple[Callable[[], None], Callable[[], None]]


def law_of(name: str) -> Callable[[torch.Tensor], Any]:
    """A distribution that the estimator serves."""
    if CELLS[name, "Bernoulli"].served:
        return lambda value: dist.Bernoulli(logits=value)
    return lambda value: dist.Normal(value, 1.0)


def plain(name: str) -> Pair:
    law = law_of(name)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(torch.zeros(2)))

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(torch.zeros(2)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2))

    return model, guide


def with_a_later_term(name: str) -> Pair:
    law = law_of(name)

    def program() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law(torch.zeros(2)))
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0))

    return program, program


def with_a_late_parent(name: str) -> Pair:
    law = law_of(name)

    def model() -> None:
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("z", law(y * torch.ones(2)))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(torch.zeros(2)))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    return model, guide


def with_a_mask_inside(name: str) -> Pair:
    law, mask = law_of(name), torch.tensor([True, False, True])

    def program() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(torch.zeros(2, 3)).mask(mask).to_event(1))

    return program, program


def with_dropout(name: str) -> Pair:
    model, _ = plain(name)
    law = law_of(name)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law(torch.rand(2) * pyro.param("a", torch.ones(2))))

    return model, guide


RUNS: dict[str, tuple[Callable[[str], Pair], Callable[[], Any]]] = {
    "a sum of terms": (plain, am.ELBO),
    "draws weighted by each other": (plain, lambda: am.IWAE(num_particles=2)),
    "samples as data": (plain, lambda: am.ReweightedWakeSleep(num_particles=2)),
    "a later term outside its plate": (with_a_later_term, am.ELBO),
    "a prior that depends on a later site": (with_a_late_parent, am.ELBO),
    "a mask inside its event": (with_a_mask_inside, am.ELBO),
    "a guide that is random elsewhere": (with_dropout, am.ELBO),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", sorted(SETTINGS))
def test_what_the_table_says_of_settings_is_what_happens(setting: str, name: str) -> None:
    make, objective = RUNS[setting]
    refused = SETTINGS[setting].refusal(estimator_of(name)) is not None
    model, guide = make(name)
    try:
        loss = am.VariationalLoss(objective(), {"z": name})
        for _ in range(2):
            loss.loss_and_grads(model, guide)
    except AmortizedError as error:
        assert refused and "'z'" in str(error), error
    else:
        assert not refused
