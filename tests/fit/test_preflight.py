import math
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
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


def test_rows_of_validation_data_are_looked_at_too() -> None:
    with pytest.raises(DataError, match=r"^val: site 'x'.*row 37 of the validation data; expected"):
        fit(tiny.data(), broken(37), seed=0)


def test_rows_far_away_whose_mask_does_not_shield_a_network() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(x.isfinite()), obs=x)

    with pytest.raises(DataError, match=r"row 37 of the data set; .*x\.nan_to_num\(\)"):
        fit(broken(37), model=model)


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
    history = svi.fit(broken(3, 37), broken(5), max_epochs=1, batch_size=8, progress=False)
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


def random_parameters(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: torch.randn(1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(weight * x, pyro.param("scale", torch.rand(1)).exp()))


def random_modules() -> Callable[[Tensor], None]:
    made: list[nn.Module] = []

    def guide(x: Tensor) -> None:
        if "net$$$weight" not in pyro.get_param_store():
            made[:] = [nn.Linear(1, 1)]
        net = pyro.module("net", made[0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0))

    return guide


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x.unsqueeze(-1)).squeeze(-1), 1.0))


def minibatch(x: Tensor) -> None:
    with pyro.plate("rows", len(x), subsample_size=3) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def minibatch_guide(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: torch.randn(len(x)))
    with pyro.plate("rows", len(x), subsample_size=3) as rows:
        pyro.sample("z", dist.Normal(weight[rows], 1.0))


BASELINE = {"z": am.ScoreFunction(am.NeuralBaseline())}
RANDOM_STARTS = {
    "param": lambda: (tiny.local_model, random_parameters, None, 16),
    "short last batch": lambda: (tiny.local_model, random_parameters, None, 12),
    "all data": lambda: (tiny.local_model, random_parameters, None, 40),
    "several particles": lambda: (tiny.local_model, random_parameters, am.ELBO(2), 16),
    "module": lambda: (tiny.local_model, random_modules(), None, 16),
    "lazy module": lambda: (tiny.local_model, Lazy(), None, 16),
    "subsampled plate": lambda: (minibatch, minibatch_guide, None, 40),
    "estimator": lambda: (tiny.local_model, tiny.param_guide, None, 16),
}


@pytest.mark.parametrize("name", RANDOM_STARTS)
def test_parameters_start_where_they_start_without_a_check(name: str) -> None:
    histories, tensors = [], []
    for check in (True, False):
        torch.manual_seed(4)
        model, guide, objective, batch_size = RANDOM_STARTS[name]()
        loss = am.VariationalLoss(objective, BASELINE if name == "estimator" else None)
        svi = am.SVI(model, guide, loss)
        options = {"max_epochs": 2, "seed": 0, "batch_size": batch_size, "progress": False}
        history = svi.fit(tiny.data(40), tiny.data(8), check=check, **options)
        histories.append({k: v for k, v in history.items() if k != "epoch_time"})
        tensors.append(svi.params())
    assert histories[0] == histories[1]
    assert all(torch.equal(tensors[0][name], value) for name, value in tensors[1].items())


def long_model(patient: Tensor, x: Tensor) -> None:
    """Visits in rows of five: z ~ N(0, 1), x ~ N(z, 1) for each visit."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("visits", x.numel()):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.flatten())


def long_guide(patient: Tensor, x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))


@pytest.mark.parametrize("check", [True, False])
def test_long_data_with_a_data_plate_of_their_own(check: bool) -> None:
    x = 3.0 + torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    svi = am.SVI(long_model, long_guide, lr=0.05, data_plate=am.DataPlate("visits", 60))
    options = {"batch_size": 4, "seed": 0, "progress": False, "check": check}
    svi.fit((torch.arange(12), x), max_epochs=100, **options)
    found = svi.params()["loc"].item()
    assert found == pytest.approx(60 / 61 * x.mean().item(), abs=0.1)
    wrong = am.SVI(long_model, long_guide, data_plate=None)
    with pytest.raises(am.AmortizedError, match=r"'visits'.*20 elements.*DataPlate\('visits', N\)"):
        wrong.fit((torch.arange(12), x), max_epochs=1, **options)


def test_a_data_plate_by_name_alone_has_the_size_of_the_data_set() -> None:
    svi = am.SVI(long_model, long_guide, data_plate="visits")
    with pytest.raises(am.AmortizedError, match="20 elements"):
        svi.fit((torch.arange(12), torch.randn(12, 5)), max_epochs=1, batch_size=4, progress=False)


def test_programs_that_write_into_their_batch_do_not_reach_the_data() -> None:
    def guide(x):
        x += 1.0
        tiny.param_guide(x)

    x = tiny.data(16).clone()
    svi = am.SVI(tiny.local_model, guide)
    with pytest.warns(am.CheckWarning, match="writes into its argument batch"):
        svi.fit(x, max_epochs=1, batch_size=5, seed=0, progress=False)
    assert torch.equal(x, tiny.data(16))


@pytest.mark.parametrize(
    ("val", "found"),
    [(torch.zeros(6, 3), r"\(\*, 3\) float32"), (torch.zeros(6, 2).double(), "64")],
)
def test_validation_data_on_which_the_programs_fail(val: Tensor, found: str) -> None:
    net = nn.Linear(2, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        loc = pyro.module("net", net)(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    svi = am.SVI(model, guide)
    with pytest.raises(
        DataError, match=rf"val: found .*{found}.* where train has \(\*, 2\) float32"
    ):
        svi.fit(torch.randn(8, 2), val, max_epochs=1, progress=False)


@pytest.mark.parametrize(("size", "warned"), [(16, True), (8, False)])
def test_a_parameter_with_the_rows_of_every_batch(size: int, warned: bool) -> None:
    def guide(x):
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    svi = am.SVI(tiny.local_model, guide)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        svi.fit(tiny.data(size), max_epochs=1, batch_size=8, progress=False)
    assert [str(w.message)[:27] for w in shown] == ["parameter 'loc' has a row f"] * warned
