from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from amortized.checks.names import name_findings, nothing_observed_findings
from amortized.programs.survey import Survey, survey_guide, survey_model

LAW = dist.Normal(0.0, 1.0)


def surveyed(guide: list[str], model: list[str]) -> tuple[Survey, Survey]:
    theirs = survey_guide(lambda: [pyro.sample(name, LAW) for name in guide], (), {})
    return theirs, survey_model(lambda: [pyro.sample(name, LAW) for name in model], (), {}, theirs)


def test_a_misspelt_name_is_one_mistake() -> None:
    (finding,) = name_findings(*surveyed(["theta"], ["thetta"]))
    assert (finding.code, finding.site) == ("missing-in-guide", "thetta")
    assert "has 'theta', which the model does not sample" in finding.found
    assert "did you mean 'theta' in the guide?" in finding.advice


def test_names_that_are_not_alike_are_two() -> None:
    found = list(name_findings(*surveyed(["scale"], ["loc"])))
    assert [(f.code, f.site) for f in found] == [
        ("missing-in-guide", "loc"),
        ("missing-in-model", "scale"),
    ]


def test_every_name_is_mistaken_for_one_other() -> None:
    found = list(name_findings(*surveyed(["z0", "z1", "rest"], ["z_0", "z_1", "z_2"])))
    assert [(f.code, f.site) for f in found] == [
        ("missing-in-guide", "z_0"),
        ("missing-in-guide", "z_1"),
        ("missing-in-guide", "z_2"),
        ("missing-in-model", "rest"),
    ]
    hints = ["'z0' in the guide?", "'z1' in the guide?", None]
    assert [h is None or h in f.advice for h, f in zip(hints, found, strict=False)] == [True] * 3


def test_auxiliary_sites_and_factors_are_fine() -> None:
    def guide() -> None:
        pyro.sample("a", LAW, infer={"is_auxiliary": True})
        pyro.factor("f", torch.tensor(0.0), has_rsample=True)

    theirs = survey_guide(guide, (), {})
    assert list(name_findings(theirs, survey_model(lambda: None, (), {}, theirs))) == []


def test_a_deterministic_of_the_model_is_named() -> None:
    theirs = survey_guide(lambda: pyro.sample("z", LAW), (), {})
    model = survey_model(lambda: pyro.deterministic("z", torch.tensor(1.0)), (), {}, theirs)
    (finding,) = name_findings(theirs, model)
    assert "pyro.deterministic" in finding.found


def test_a_program_that_raised_accuses_nobody_of_missing_sites() -> None:
    def broken() -> None:
        raise RuntimeError

    theirs, ours = surveyed(["z"], ["z", "y"])
    assert list(name_findings(survey_guide(broken, (), {}), ours)) == []
    assert list(name_findings(theirs, survey_model(broken, (), {}, theirs))) == []


def test_a_name_used_three_times_is_said_once() -> None:
    (finding,) = name_findings(*surveyed(["z", "z", "z"], ["z"]))
    assert "samples it 3 times" in finding.found


def test_a_factor_is_an_observation() -> None:
    theirs = survey_guide(lambda: None, (), {})
    model = survey_model(lambda: pyro.factor("f", torch.tensor(0.0)), (), {}, theirs)
    assert list(nothing_observed_findings(model, has_data=True)) == []
    empty = survey_model(lambda: pyro.sample("z", LAW), (), {}, theirs)
    assert list(nothing_observed_findings(empty, has_data=False)) == []
    assert len(list(nothing_observed_findings(empty, has_data=True))) == 1


def test_a_plate_and_a_site_of_one_name() -> None:
    def program() -> None:
        with pyro.plate("z", 3):
            pyro.sample("z", LAW)

    guide = survey_guide(lambda: None, (), {})
    (finding, _) = name_findings(guide, survey_model(program, (), {}, guide))
    assert (finding.code, finding.site) == ("duplicate-site", "z")
    assert "pyro.plate('z_rows', len(x))" in finding.advice


def test_discrete_latents_that_the_guide_lacks_are_summed_out_where_they_are_marked() -> None:
    mark, theirs = {"enumerate": "parallel"}, survey_guide(lambda: None, (), {})

    def of(law: dist.Distribution, **infer: str) -> list[str]:
        model = survey_model(lambda: pyro.sample("c", law, infer=infer), (), {}, theirs)
        return [f"{f.code}: {f.advice}" for f in name_findings(theirs, model)]

    assert of(dist.Bernoulli(0.5), **mark) == []
    (unmarked,) = of(dist.Bernoulli(0.5))
    assert unmarked.endswith("or let the model sum it out, infer={'enumerate': 'parallel'}")
    (endless,) = of(dist.Poisson(2.0), **mark)
    assert endless.startswith("missing-in-guide") and "sum it out" not in endless


def test_a_misspelt_guide_site_is_no_other_name_of_what_is_summed_out() -> None:
    theirs = survey_guide(lambda: pyro.sample("stat", dist.Bernoulli(0.5)), (), {})
    marked = {"enumerate": "parallel"}
    model = survey_model(
        lambda: pyro.sample("state", dist.Bernoulli(0.5), infer=marked), (), {}, theirs
    )
    (finding,) = name_findings(theirs, model)
    assert (finding.code, finding.site) == ("missing-in-model", "stat")
    assert "did you mean 'state'?" in finding.advice
