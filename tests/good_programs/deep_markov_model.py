"""The deep Markov model: an RNN reads the sequence backwards, masks cut the short ones."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from tests.catalogue import Pair


class DMM(nn.Module):
    def __init__(self):
        super().__init__()
        self.transition, self.emitter = nn.Linear(2, 4), nn.Linear(2, 6)
        self.rnn, self.combiner = nn.GRU(6, 5, batch_first=True), nn.Linear(5 + 2, 4)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def model(self, x, mask, annealing=1.0):
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), 2)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, raw = self.transition(z).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    law = dist.Normal(loc, raw.exp()).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t + 1}", law)
                pixels = dist.Bernoulli(logits=self.emitter(z)).mask(mask[:, t : t + 1])
                pyro.sample(f"obs_x_{t + 1}", pixels.to_event(1), obs=x[:, t])

    def guide(self, x, mask, annealing=1.0):
        pyro.module("dmm", self)
        hidden = self.rnn(x.flip(1))[0].flip(1)
        z = self.z_q_0.expand(len(x), 2)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, raw = self.combiner(torch.cat([hidden[:, t], z], -1)).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    law = dist.Normal(loc, raw.exp()).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t + 1}", law)


def program() -> Pair:
    dmm, lengths = DMM(), torch.arange(12) % 4 + 1
    mask = (torch.arange(4) < lengths.unsqueeze(-1)).float()
    x = torch.bernoulli(torch.full((12, 4, 6), 0.5)) * mask.unsqueeze(-1)
    return Pair(dmm.model, dmm.guide, (x, mask > 0))
