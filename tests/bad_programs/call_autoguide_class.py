"""The class of an autoguide, not one built on the model."""

import torch
from pyro.infer.autoguide import AutoNormal

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("guide", "AutoNormal", "AutoNormal(model)"))


def call() -> None:
    svi = am.SVI(model, AutoNormal)
    svi.fit((torch.randn(20, 3), torch.randn(20)), max_epochs=1, progress=False)
