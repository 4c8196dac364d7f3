"""Values outside of the support, wherever training meets them first."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import DataError, ProgramError
from amortized.fit.culprits import culprit_among, located
from amortized.fit.data import as_batches
from tests.fit import tiny


def counts(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def rate(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def ones(negative: int | None = None, size: int = 1000) -> Tensor:
    x = torch.ones(size)
    if negative is not None:
        x[negative] = -1.0
    return x


def svi(**options) -> am.SVI:
    return am.SVI(counts, rate, **options)


OPTIONS = {"max_epochs": 1, "batch_size": 100, "progress": False, "seed": 0}
FOUND = (
    r"site 'x' of the model \(plates: 'data' 100 at dim -1\): {}outside the support of Poisson: -1"
)


# torch refuses it in the first batch; in a later one the loss is infinite
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("check", [True, False])
def test_a_negative_count_is_named_by_its_row_in_the_data_set(seed: int, check: bool) -> None:
    expected = r"^epoch 1, batch (\d+), step \1: " + FOUND.format("row 900 ")
    with pytest.raises(DataError, match=expected) as error:
        svi().fit(ones(900), **OPTIONS | {"seed": seed, "check": check})
    assert error.value.__cause__ is not None


def test_in_a_first_batch_that_nobody_checked() -> None:
    with pytest.raises(DataError, match=FOUND.format("row 5 ")):
        svi().fit(ones(5, 100), **OPTIONS, check=False)


def test_rows_of_a_loader_are_those_of_its_batch() -> None:
    loader = DataLoader(TensorDataset(ones(907)), 100)
    with pytest.raises(DataError, match=r"batch 10, step 10: .*row 7 outside .*\(rows of this"):
        svi().fit(loader, **OPTIONS)


def test_rows_of_validation_data_in_order() -> None:
    expected = "^epoch 1, validation batch 3: " + FOUND.format("row 230 ")
    with pytest.raises(DataError, match=expected):
        svi().fit(ones(), ones(230, 300), **OPTIONS)


def test_a_policy_goes_on_without_the_batch() -> None:
    history = svi(compile="off").fit(ones(900), **OPTIONS, non_finite="skip")
    assert history["skipped_steps"] == [1]
    history = svi().fit(ones(), ones(230, 300), **OPTIONS, non_finite="skip")
    assert "check the validation data" in history.notices[0]


def test_a_lone_step_and_an_evaluation() -> None:
    fitted = svi(validate=True)
    with pytest.raises(DataError, match=r"row 3 outside .*\(rows of this batch\)"):
        fitted.step(ones(3, 100))
    with pytest.raises(DataError, match=r"^test: site 'x' .*row 230 outside"):
        fitted.evaluate(ones(230, 300), num_particles=2, batch_size=100)


def test_nothing_has_moved_when_data_are_looked_at() -> None:
    fitted = svi()
    fitted.step(ones())
    before, state = fitted.params(), torch.get_rng_state()
    with fitted.scope():
        assert culprit_among((counts, rate), as_batches(ones())) is None
        assert culprit_among((counts, rate), as_batches(ones(500))) is not None
    assert torch.equal(state, torch.get_rng_state()) and fitted.params() == before


def test_a_minibatch_of_a_plate_has_its_own_rows() -> None:
    def model(x: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", 50, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    def guide(x: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", 50, subsample=rows):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    data = {"x": ones(3, 4), "rows": torch.tensor([8, 20, 33, 41])}
    found = culprit_among((model, guide), as_batches(data))
    assert found is not None and "row 41 outside" in str(found)


def test_programs_at_fault_are_not_data_at_fault() -> None:
    def broken(x: Tensor) -> None:
        tiny.local_model(x)
        raise ZeroDivisionError

    fitted = am.SVI(broken, tiny.param_guide)
    with pytest.raises(Exception) as error:
        fitted.fit(tiny.data(), max_epochs=1, progress=False, check=False)
    assert not isinstance(error.value, DataError)


def test_other_errors_say_where_training_stood() -> None:
    with pytest.raises(ProgramError, match=r"^batch 3: a plate$"), located(lambda: "batch 3"):
        raise ProgramError("a plate")


def in_place(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.0)).exp()
    scale += 1.0
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, scale))


@pytest.mark.parametrize("check", [True, False])
def test_a_gradient_that_torch_cannot_take_is_the_programs_mistake(check: bool) -> None:
    where = "the gradient of the loss" if check else "epoch 1, batch 1, step 1"
    with pytest.raises(ProgramError, match=f"^{where}: torch cannot take .*instead of writing"):
        am.SVI(counts, in_place).fit(ones(), **OPTIONS, check=check)


def test_a_state_with_its_graph_from_the_batch_before() -> None:
    state = {"z": torch.tensor(0.0)}

    def guide(x: Tensor) -> None:
        state["z"] = (state["z"] + pyro.param("loc", torch.tensor(0.0))).tanh()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(state["z"], 1.0))

    where = "^epoch 1, batch 2, step 2: torch cannot take the gradient"
    with pytest.raises(ProgramError, match=f"{where}.*from one run to the next"):
        am.SVI(counts, guide).fit(ones(), **OPTIONS, check=False)


def test_other_errors_of_torch_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"), located(lambda: "here"):
        raise RuntimeError("out of memory")
