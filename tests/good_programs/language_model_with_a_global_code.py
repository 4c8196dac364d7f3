"""An LSTM over words, and one code for a sentence (Bowman et al.)."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    words, reader, code = nn.Embedding(7, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 4)
    net = nn.ModuleDict({"words": words, "reader": reader, "out": nn.Linear(7, 7)})

    def model(x):
        pyro.module("net", net)
        with pyro.plate("sentences", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            states, _ = reader(words(x[:, :-1]))
            wide = z.unsqueeze(-2).expand(*z.shape[:-1], states.shape[1], 2)
            logits = net["out"](torch.cat([states.expand(*wide.shape[:-1], 5), wide], -1))
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x[:, 1:])

    def guide(x):
        pyro.module("code", code)
        states, _ = reader(words(x))
        loc, scale = code(states[:, -1]).chunk(2, -1)
        scale = nn.functional.softplus(scale)
        with pyro.plate("sentences", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, torch.arange(120).reshape(20, 6) % 7)
