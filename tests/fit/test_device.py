import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.errors import UsageError
from amortized.fit.data import map_tensors
from amortized.fit.device import device_of
from amortized.fit.parameters import Parameters
from tests.fit import tiny
from tests.fit.harness import fit


def test_names_and_devices() -> None:
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("available", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, available: bool, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device_of("auto") == torch.device(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"device='gpu': there is no such device; expected 'auto', 'cpu'"),
        ("", "there is no such device"),
        (3.5, r"device=3.5: there is no such device"),
        ("meta", r"device='meta': it holds no numbers"),
        (torch.device("meta"), "it holds no numbers"),
        ("cuda:99", r"device='cuda:99': this machine has \d+ GPUs .* pass device='auto'"),
        ("xla", r"device='xla': torch cannot use it here"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_moves(name, message: str) -> None:
    model, guide = tiny.ModuleModel(), tiny.ModuleGuide()
    with pytest.raises(UsageError, match=message):
        am.SVI(model, guide, device=name)
    svi = am.SVI(model, guide)
    with pytest.raises(UsageError, match=message):
        fit(svi, max_epochs=1, device=name)
    assert svi._stepper.steps == 0 and {p.device.type for p in guide.parameters()} == {"cpu"}
    fit(svi, max_epochs=1)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu"), None])
def test_training_on_a_device(monkeypatch, device) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.manual_seed(0)
    svi = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide(), device=device)
    history = fit(svi, None, tiny.data(8), max_epochs=2, device=device, seed=0)
    torch.manual_seed(0)
    plain = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide())
    assert history["val_loss"] == fit(plain, None, tiny.data(8), max_epochs=2, seed=0)["val_loss"]


def test_the_device_may_change_between_trainings() -> None:
    svi = am.SVI(tiny.ModuleModel(), tiny.ModuleGuide())
    fit(svi, max_epochs=1)
    optimizer, before = svi.optimizer, svi.guide.layer.weight
    fit(svi, max_epochs=1, device="cpu")
    assert svi.optimizer is optimizer and svi.guide.layer.weight is before
    assert optimizer is not None and optimizer.state[before]["step"] == 10


def test_batches_of_every_structure_are_moved(monkeypatch) -> None:
    """To the device that was asked for, although no parameter exists yet."""
    seen: list[object] = []

    def structure(tree: object) -> object:
        return map_tensors(lambda tensor: ("moved", tuple(tensor.shape)), tree)

    class Elsewhere(Tensor):
        """Stands for a tensor on another device."""

        device = torch.device("cuda")  # pyright: ignore

        def to(self, *args, **options):
            seen.append(args)
            return self.as_subclass(Tensor)

    def model(batch, more) -> None:
        tiny.local_model(batch["x"][0])

    def guide(batch, more) -> None:
        for value in (batch["x"][0], batch["y"]["deep"], *more):
            assert type(value) is Tensor
        tiny.param_guide(batch["x"][0])

    x = tiny.data(6)
    inner = {"x": [x.as_subclass(Elsewhere)], "y": {"deep": x.as_subclass(Elsewhere)}, "n": 3}
    batch = (inner, (x.as_subclass(Elsewhere), x))
    svi = am.SVI(model, guide, device="cpu")
    placed = svi._stepper.placed(batch)
    assert seen == [(torch.device("cpu"),)] * 3 and placed[0]["n"] == 3
    row = ("moved", (6,))
    assert structure(placed) == ({"x": (row,), "y": {"deep": row}, "n": 3}, (row, row))
    svi.step(batch)
    assert placed[1][1] is x  # what is there already is not copied


def test_without_a_device_batches_follow_the_parameters() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0))

    svi = am.SVI(tiny.local_model, guide)
    x = tiny.data(4)
    assert svi._stepper.placed(x) is x  # nobody knows yet
    svi.step(x)
    assert svi._stepper.placed((x, {"y": x}))[1]["y"] is x


def test_what_the_programs_declare_follows_to_the_device(monkeypatch) -> None:
    """Parameters of functions exist only after a run."""
    moved: list[object] = []
    monkeypatch.setattr(Parameters, "to", lambda self, device: moved.append(len(self.tensors())))
    svi = am.SVI(tiny.local_model, tiny.param_guide, device="cpu")
    svi.step(tiny.data(4))
    svi.step(tiny.data(4))
    assert moved == [0, 2]
    plain = am.SVI(tiny.local_model, tiny.param_guide)
    plain.step(tiny.data(4))
    assert moved == [0, 2]
