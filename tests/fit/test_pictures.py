import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.effect import AutoNormalMessenger

from amortized.fit.pictures import codes, imagined, posterior_run, prior_run, reconstructed
from tests.fit import tiny

SHAPE = (2, 3)


def model(x):
    pyro.sample("global", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        logits = (z.sum(-1) + c).unsqueeze(-1).expand(len(x), 6)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x):
    pyro.sample("global", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])))
        pyro.sample("z", dist.Normal(x[:, :2] * 10, 0.001).to_event(1))


X = torch.tensor([[0.0] * 6, [1.0] * 6, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])


def test_reconstructions_come_from_the_guide() -> None:
    found = reconstructed(model, guide, X, SHAPE)
    assert found is not None
    originals, means = found
    assert torch.equal(originals, X.reshape(3, 2, 3)) and means.shape == (3, 2, 3)
    expected = torch.sigmoid(X[:, :2].sum(-1) * 10 + 1)
    assert torch.allclose(means[:, 0, 0], expected, atol=0.01)


def test_samples_come_from_the_prior() -> None:
    found = imagined(model, X.repeat(40, 1), SHAPE)
    assert found is not None and found.shape == (120, 2, 3)
    # under the guide only these values could occur
    near = torch.tensor([torch.sigmoid(torch.tensor(v)) for v in (1.0, 11.0, 21.0)])
    assert ((found[:, 0, 0, None] - near).abs().min(-1).values > 0.05).float().mean() > 0.5


def test_codes_are_the_means_of_the_continuous_latent_of_each_datum() -> None:
    found = codes(model, guide, X)
    assert found is not None and torch.equal(found, X[:, :2] * 10)


def test_a_prior_run_has_every_site() -> None:
    assert set(prior_run(model, X)) == {"global", "c", "z", "x"}


@pytest.mark.parametrize("shape", [(8, 8), (1, 5)])
def test_other_data_have_no_pictures(shape: tuple[int, int]) -> None:
    assert reconstructed(model, guide, X, shape) is None and imagined(model, X, shape) is None


def test_discrete_and_global_latents_are_no_codes() -> None:
    def discrete(x):
        pyro.sample("global", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(3)))

    def its_model(x):
        discrete(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(torch.full((3, 6), 0.5)).to_event(1), obs=x)

    assert codes(its_model, discrete, X) is None


def test_eval_mode_is_used_and_restored() -> None:
    modes = []

    class Guide(tiny.ModuleGuide):
        def forward(self, x):
            modes.append(self.training)
            super().forward(x)

    module = Guide()
    posterior_run(tiny.ModuleModel(), module, tiny.data(4))
    assert not any(modes) and module.training


def test_guide_messengers_are_no_exception() -> None:
    auto = AutoNormalMessenger(tiny.local_model)
    found = codes(tiny.local_model, auto, tiny.data(4))
    assert found is not None and found.shape == (4, 1)
