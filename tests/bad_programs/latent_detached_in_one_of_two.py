"""The labels are predicted from detached codes, so that they do not shape the codes."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "detached-latent", site="z", names=("'y'", "'x'"), remedy=".detach()", severity="warning"
)


def program() -> Pair:
    encoder, decoder, classifier = nn.Linear(5, 2), nn.Linear(2, 5), nn.Linear(2, 3)

    def model(x, y):
        pyro.module("decoder", decoder)
        pyro.module("classifier", classifier)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Categorical(logits=classifier(z.detach())), obs=y)

    def guide(x, y):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, (torch.randn(20, 5), torch.arange(20) % 3))
