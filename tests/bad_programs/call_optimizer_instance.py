"""A torch optimizer that was already built, on parameters that it was told."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("optimizer=Adam", "torch optimizer class"))


def call() -> None:
    parameters = [torch.zeros(3, requires_grad=True)]
    am.SVI(model, guide, optimizer=torch.optim.Adam(parameters))
