from __future__ import annotations

from dataclasses import replace

from amortized.checks.consequences import by_cause
from amortized.checks.report import Finding


def finding(code: str, where: str = "somewhere", *, site: str | None = None, found: str = "this"):
    return Finding("error", code, site, where, found, "that", "do something")


def codes(*findings: Finding) -> list[str]:
    return [f.code for f in by_cause([*findings])]


def test_findings_that_have_nothing_to_do_with_each_other_stay() -> None:
    found = [
        finding("data-nan", "site 'x' of the model", site="x", found="NaN in row 3, which it sees"),
        finding("data-nan", "batch[1]", found="NaN in row 4, which the programs do not handle"),
        finding("data-support", "site 'y' of the model", site="y"),
        finding("event-shape-mismatch", "site 'x' of the model", site="x"),
        finding("no-parameters"),
        finding("nothing-observed"),
        finding("program-raises", "the guide, before its first site", found="TypeError: one"),
        finding("program-raises", "the model, before its first site", found="TypeError: two"),
    ]
    assert by_cause(found) == found


def test_nan_that_is_observed_and_fails_elsewhere() -> None:
    error = ValueError("nan")
    batch = finding("data-nan", "batch", found="NaN in row 3, which the programs do not handle")
    seen = finding("data-nan", "site 'x'", site="x", found="NaN in row 3, which it observes")
    (one,) = by_cause([replace(batch, error=error), seen])
    assert one.site == "x" and one.error is error
    assert one.found.startswith("NaN in row 3, which it observes, and ")


def test_consequences_are_left_out() -> None:
    shape = finding("event-shape-mismatch", site="y")
    assert codes(shape, finding("data-support", site="y")) == ["event-shape-mismatch"]
    missing = finding("missing-in-guide", site="y")
    assert codes(finding("nothing-observed"), missing) == ["missing-in-guide"]
    varies = [finding("structure-varies", f"site {n!r}", site=n) for n in "ab"]
    assert by_cause(varies) == varies[:1]


def test_networks_that_nobody_registered_are_why_nothing_trains() -> None:
    nets = [finding("untrained-module", f"network {n!r}") for n in ("encoder", "decoder")]
    (one,) = by_cause([*nets, finding("no-parameters")])
    assert one.code == "no-parameters" and "'encoder', network 'decoder'" in one.found
    assert codes(nets[0]) == ["untrained-module"]


def test_one_mistake_in_both_programs() -> None:
    call = "TypeError: f.<locals>.{0}() got an unexpected keyword argument 'y'"
    both = [
        finding("program-raises", f"the {side}, before its first site", found=call.format(side))
        for side in ("guide", "model")
    ]
    (one,) = by_cause(both)
    assert one.where == "the guide, before its first site, and likewise the model"
    sites = [
        finding("duplicate-site", f"site 'z' of the {s}", site="z") for s in ("guide", "model")
    ]
    (one,) = by_cause(sites)
    assert one.where == "site 'z' of the guide, and likewise the model"
    assert len(by_cause([sites[0], replace(sites[1], site="y")])) == 2


def test_several_places_in_one_sentence() -> None:
    names = ["parameter 'net.weight'", "parameter 'net.bias'"]
    (one,) = by_cause([finding("parameter-collision", name) for name in names])
    assert one.where == "parameter 'net.weight', parameter 'net.bias'"
