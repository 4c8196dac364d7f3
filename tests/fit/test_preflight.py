import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import DataError
from tests.fit import tiny


def fit(data, val=None, model=tiny.local_model, **options) -> am.History:
    svi = am.SVI(model, tiny.param_guide)
    return svi.fit(data, val, **{"max_epochs": 1, "batch_size": 8, "progress": False} | options)


def broken(*rows: int) -> torch.Tensor:
    x = tiny.data(40).clone()
    x[list(rows)] = math.nan
    return x


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ((3,), "row 3"),
        ((37,), "row 37 of the data set"),
        ((9, 20, 21, 30, 31), "9, 20, 21 and 2 more"),
    ],
)
def test_rows_are_those_of_the_data_set(rows: tuple[int, ...], named: str) -> None:
    with pytest.raises(DataError, match=rf"site 'x'.*{named}"):
        fit(broken(*rows), seed=0)


def test_missing_values_behind_a_mask_are_no_mistake() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(x.isfinite()), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x.nan_to_num(), 1.0))

    svi = am.SVI(model, guide)
    history = svi.fit(broken(3, 37), max_epochs=1, batch_size=8, progress=False)
    assert math.isfinite(history["train_loss"][0])


def test_validation_data_have_the_structure_of_training_data() -> None:
    with pytest.raises(DataError, match=r"val: found \(tensor, tensor\) where train is tensor"):
        fit(tiny.data(), (tiny.data(8), tiny.data(8)))


def test_a_loader_is_not_used_up_and_is_checked_on_its_first_batch() -> None:
    passes = []

    class Counting(TensorDataset):
        def __getitem__(self, index):
            passes.append(index)
            return super().__getitem__(index)

    fit(DataLoader(Counting(tiny.data(16)), 8))
    assert len(passes) == 16
    with pytest.raises(DataError, match="row 3"):
        fit(DataLoader(TensorDataset(broken(3)), 8))


def test_the_check_may_be_left_out_and_moves_nothing() -> None:
    histories = []
    for check in (True, False):
        torch.manual_seed(4)
        histories.append(fit(tiny.data(), tiny.data(8), seed=1, check=check))
    for history in histories:
        history.pop("epoch_time")
    assert histories[0] == histories[1]
    with pytest.raises(am.NonFiniteError):
        fit(broken(3), check=False, seed=0)


def test_warnings_are_shown_and_training_goes_on() -> None:
    network = torch.nn.Linear(1, 1)

    def model(x):
        loc = network(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    with pytest.warns(am.CheckWarning, match="Linear"):
        fit(tiny.data(), model=model)
