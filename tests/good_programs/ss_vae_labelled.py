"""The same pair on a labelled batch: the class is observed, a second term trains its encoder."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair
from tests.good_programs.ss_vae_unlabelled import SSVAE


class Labelled(SSVAE):
    """With the auxiliary classification term of the tutorial, so that every part learns."""

    def model(self, xs, ys=None):
        super().model(xs, ys)
        with pyro.plate("data_aux", len(xs)):
            law = dist.OneHotCategorical(logits=self.encoder_y(xs))
            pyro.sample("y_aux", law, obs=ys)


def program() -> Pair:
    net = Labelled()
    xs, ys = torch.bernoulli(torch.full((20, 8), 0.5)), torch.eye(3)[torch.arange(20) % 3]
    return Pair(net.model, net.guide, (xs, ys))
