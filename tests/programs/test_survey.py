from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormalMessenger
from torch import nn

from amortized.programs.survey import (
    Survey,
    fits,
    outside_support,
    survey_guide,
    survey_model,
)


def pair(guide: object, model: object) -> tuple[Survey, Survey]:
    theirs = survey_guide(guide, (), {})  # type: ignore[arg-type]
    return theirs, survey_model(model, (), {}, theirs)  # type: ignore[arg-type]


def test_statements_are_recorded_as_they_are() -> None:
    def model() -> None:
        with pyro.plate("data", 10, subsample_size=2), poutine.scale(scale=3.0):
            pyro.sample("z", dist.Normal(0.0, 1.0), infer={"mark": 1})
        for _ in pyro.plate("steps", 2):
            pyro.deterministic("d", torch.tensor(1.0))
        pyro.factor("f", torch.tensor(2.0))
        pyro.param("p", torch.tensor(1.0))

    survey = survey_guide(model, (), {})
    z = survey.statements["z"]
    (frame,) = z.frames
    assert (frame.name, frame.dim, frame.size, frame.full) == ("data", -1, 2, 10)
    assert z.scale == 15.0 and z.infer == {"mark": 1} and not z.observed and z.value.shape == (2,)
    assert survey.deterministic == {"d"}
    assert survey.statements["f"].factor and survey.statements["f"].auxiliary
    assert survey.plates["data"].drawn and len(survey.plates["data"].indices) == 2
    assert [a.name for a in survey.announced] == ["p"]
    assert list(survey.latents) == ["z"] and survey.side == "guide"


def test_the_model_takes_what_fits_and_draws_the_rest() -> None:
    def guide() -> None:
        pyro.sample("same", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("shape", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("support", dist.Normal(-5.0, 0.1))

    def model() -> None:
        pyro.sample("same", dist.Normal(torch.ones(2), 1.0).to_event(1))
        pyro.sample("shape", dist.Normal(0.0, 1.0))
        scale = pyro.sample("support", dist.Exponential(1.0))
        pyro.sample("alone", dist.Normal(0.0, scale))

    theirs, ours = pair(guide, model)
    assert ours.error is None and ours.side == "model"
    assert {n for n, s in ours.statements.items() if s.replayed} == {"same"}
    assert ours.statements["same"].value is theirs.statements["same"].value


def test_a_survey_goes_on_after_a_repeated_name_and_stops_at_an_error() -> None:
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, -1.0))

    survey = survey_guide(program, (), {})
    assert survey.repeated == ["z"] and list(survey.statements) == ["z"]
    assert isinstance(survey.error, ValueError)


def test_minibatches_are_shared_where_the_plates_agree() -> None:
    def minibatch(size: int) -> None:
        with pyro.plate("data", size, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    theirs, ours = pair(lambda: minibatch(50), lambda: minibatch(50))
    assert torch.equal(theirs.plates["data"].indices, ours.plates["data"].indices)
    assert not ours.plates["data"].drawn
    assert pair(lambda: minibatch(50), lambda: minibatch(40))[1].plates["data"].drawn


def test_a_guide_on_given_values() -> None:
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    value = torch.tensor(2.0)
    assert survey_guide(program, (), {}, {"z": value}).statements["z"].value is value


def test_what_a_guide_messenger_observes_is_the_model_s() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    theirs, ours = pair(AutoNormalMessenger(model), model)
    assert list(theirs.statements) == ["z"] and ours.statements["x"].observed


def test_leaves_behind_parameter_statements() -> None:
    net = nn.Linear(1, 1)

    def program() -> None:
        pyro.module("net", net)
        pyro.param("s", torch.tensor(2.0), constraint=dist.constraints.positive)

    announced = {a.name: a for a in survey_guide(program, (), {}).announced}
    assert announced["net$$$weight"].leaf is net.weight is announced["net$$$weight"].offered
    assert announced["s"].leaf is pyro.get_param_store()._params["s"]


def test_values_that_fit() -> None:
    law = dist.Normal(torch.zeros(3), 1.0)
    assert fits(law, torch.zeros(3)) and fits(law, torch.zeros(()))
    assert not fits(law, torch.zeros(2, 3)) and not fits(law, torch.zeros(2)) and not fits(law, 0.0)
    assert not fits(dist.Exponential(1.0), torch.tensor(-1.0))
    assert outside_support(dist.Poisson(1.0), torch.tensor([1.0, 0.5])).tolist() == [False, True]
    assert outside_support(object(), torch.zeros(())) is None
