"""Training on a GPU; left out where there is none."""

import math
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized as am
from tests.fit import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 9)
        )

    def forward(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=x.new_zeros(3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            kind = c.unsqueeze(-1).to(z.dtype)
            shape = torch.broadcast_shapes(z.shape[:-1], c.shape)
            code = torch.cat([z.expand(*shape, 2), kind.expand(*shape, 1)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.layers(code)).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 7))

    def forward(self, x):
        loc, log_scale, logits = self.net(x).split([2, 2, 3], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def images(size: int = 64) -> torch.Tensor:
    return (torch.rand(size, 9, generator=torch.Generator().manual_seed(2)) > 0.5).float()


def fitted(device: str, folder: Path | None = None, estimator: str = "moving_average", **options):
    pyro.set_rng_seed(0)
    svi = am.SVI(Decoder(), Encoder(), am.VariationalLoss(estimators={"c": estimator}), lr=0.01)
    callbacks = [] if folder is None else [am.ModelCheckpoint(folder, every_n_steps=1)]
    options = {"max_epochs": 3, "batch_size": 16, "progress": False, "seed": 1} | options
    return svi, svi.fit(images(), images(16), callbacks=callbacks, device=device, **options)


@pytest.mark.parametrize("estimator", ["moving_average", "neural_baseline"])
def test_everything_is_on_the_gpu(estimator: str) -> None:
    svi, history = fitted("auto", estimator=estimator)
    assert {t.device.type for t in svi._stepper.parameters.tensors().values()} == {"cuda"}
    assert all(math.isfinite(value) for value in history["train_loss"])
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert math.isfinite(svi.evaluate(images(16), num_particles=3)["elbo"])


def test_training_without_noise_agrees_with_the_cpu() -> None:
    """A point guide: the same numbers to rounding, the noise being none."""

    def guide(x):
        pyro.sample("m", dist.Delta(pyro.param("loc", lambda: x.new_tensor(0.5))))

    found = []
    for device in ("cpu", "cuda"):
        svi = am.SVI(tiny.global_model, guide, lr=0.05)
        x = tiny.data(40, torch.float64)
        options = {"max_epochs": 3, "batch_size": 16, "seed": 0, "device": device}
        history = svi.fit(x, progress=False, **options)
        found.append(history["train_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_file_from_the_gpu_opens_on_the_cpu(tmp_path: Path) -> None:
    svi, _ = fitted("cuda", tmp_path)
    opened = am.load(tmp_path, (Decoder(), Encoder()), batch=images(16))
    for name, tensor in svi._stepper.parameters.tensors().items():
        if not name.startswith("loss."):
            other = opened._stepper.parameters.tensors()[name]
            assert other.device.type == "cpu" and torch.equal(other, tensor.cpu())
    again = am.load(tmp_path, (Decoder(), Encoder()), batch=images(16), device="cuda")
    assert again._stepper.parameters.first().device.type == "cuda"


def test_training_is_resumed_on_the_gpu(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class StopAt(am.Callback):
        def on_train_batch_end(self, state) -> None:
            if state.step == 6:
                raise Stop

    whole, expected = fitted("cuda")
    pyro.set_rng_seed(0)
    cut = am.SVI(
        Decoder(), Encoder(), am.VariationalLoss(estimators={"c": "moving_average"}), lr=0.01
    )
    fit = {"max_epochs": 3, "batch_size": 16, "progress": False, "seed": 1, "device": "cuda"}
    with pytest.raises(Stop):
        saving = am.ModelCheckpoint(tmp_path, every_n_steps=1)
        cut.fit(images(), images(16), callbacks=[saving, StopAt()], **fit)
    again, found = fitted("cuda", resume_from=tmp_path)
    for name, tensor in whole._stepper.parameters.tensors().items():
        other = again._stepper.parameters.tensors()[name]
        assert torch.allclose(tensor, other, rtol=1e-5, atol=1e-7), name
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


def test_a_run_moves_from_the_gpu_to_the_cpu(tmp_path: Path) -> None:
    fitted("cuda", tmp_path, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, history = fitted("cpu", resume_from=tmp_path)
    assert history.epochs == 3 and math.isfinite(history["train_loss"][-1])


def test_the_check_runs_on_the_gpu() -> None:
    report = am.check(Decoder().cuda(), Encoder().cuda(), images(16).cuda())
    assert not report.errors


def test_enumeration_and_particles_on_the_gpu() -> None:
    loss = am.VariationalLoss(am.ELBO(num_particles=4, kl="analytic"), {"c": "enumerate"})
    decoder = Decoder()
    # batch norm in training mode would mix the copies
    decoder.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 9))
    svi = am.SVI(decoder, Encoder(), loss, lr=0.01, device="cuda")
    history = svi.fit(images(), max_epochs=2, batch_size=16, seed=0, progress=False)
    assert history["train_loss"][1] < history["train_loss"][0]


def test_a_captured_step_on_the_gpu() -> None:
    ends = []
    for mode in ("off", "graph"):
        pyro.set_rng_seed(0)
        svi = am.SVI(Decoder(), Encoder(), lr=0.01, device="cuda", compile=mode)
        history = svi.fit(images(), max_epochs=3, batch_size=16, seed=1, progress=False)
        ends.append(history["train_loss"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
