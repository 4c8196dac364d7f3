"""Attend, infer, repeat: two steps, each with a discrete presence, masks and neural baselines."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class AIR(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.decode = nn.LSTMCell(16 + 1 + 3 + 2, 8), nn.Linear(2, 4)
        self.predict, self.encode = nn.Linear(8, 1 + 6), nn.Linear(16 + 3, 4)

    def paint(self, where, what):
        """A 2 x 2 patch, put softly into a 4 x 4 image."""
        left = torch.softmax(where[..., :1] + torch.arange(4.0), -1)
        top = torch.softmax(where[..., 1:2] + torch.arange(4.0), -1)
        patch = torch.sigmoid(self.decode(what)).mean(-1, keepdim=True)
        return (left.unsqueeze(-1) * top.unsqueeze(-2)).flatten(-2) * patch

    def model(self, x):
        pyro.module("air", self)
        with pyro.plate("data", len(x)):
            canvas, present = torch.zeros_like(x), x.new_ones(len(x), 1)
            for t in range(2):
                law = dist.Bernoulli(0.3 * present)
                present = pyro.sample(f"z_pres_{t}", law.to_event(1))
                where = pyro.sample(
                    f"z_where_{t}", dist.Normal(x.new_zeros(3), 1.0).mask(present).to_event(1)
                )
                what = pyro.sample(
                    f"z_what_{t}", dist.Normal(x.new_zeros(2), 1.0).mask(present).to_event(1)
                )
                canvas = canvas + present * self.paint(where, what)
            pyro.sample("obs", dist.Normal(canvas, 0.3).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("air", self)
        with pyro.plate("data", len(x)):
            state = (x.new_zeros(len(x), 8), x.new_zeros(len(x), 8))
            present, where, what = (
                x.new_ones(len(x), 1),
                x.new_zeros(len(x), 3),
                x.new_zeros(len(x), 2),
            )
            for t in range(2):
                state = self.rnn(torch.cat([x, present, where, what], -1), state)
                probs, loc, raw = self.predict(state[0]).split([1, 3, 3], -1)
                law = dist.Bernoulli(torch.sigmoid(probs) * present)
                inputs = {"baseline_input": torch.cat([x, state[0].detach()], -1)}
                present = pyro.sample(f"z_pres_{t}", law.to_event(1), infer=inputs)
                where = pyro.sample(
                    f"z_where_{t}", dist.Normal(loc, raw.exp()).mask(present).to_event(1)
                )
                loc, raw = self.encode(torch.cat([x, where], -1)).chunk(2, -1)
                what = pyro.sample(
                    f"z_what_{t}", dist.Normal(loc, raw.exp()).mask(present).to_event(1)
                )


def program() -> Pair:
    air = AIR()
    loss = am.VariationalLoss(
        estimators={"z_pres_*": am.ScoreFunction(am.NeuralBaseline(hidden=8))}
    )
    return Pair(air.model, air.guide, torch.rand(12, 16), loss)
