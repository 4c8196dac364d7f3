from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from amortized.checks.report import CODES, Finding, Report, Severity
from amortized.errors import DataError, ProgramError


def finding(severity: Severity = "error", code: str = "no-gradient", site: str | None = None):
    where = "somewhere" if site is None else f"site {site!r}"
    return Finding(severity, code, site, where, "this was found", "that", "do something")


def test_errors_come_first_and_every_sentence_once() -> None:
    note, warning, error = finding("note"), finding("warning"), finding("error")
    report = Report.of([note, warning, error, error], 3, 5)
    assert report.findings == [error, warning, note]
    assert (report.errors, report.warnings, report.notes) == ([error], [warning], [note])
    assert not report.ok


def test_notes_are_fine() -> None:
    assert Report.of([finding("note")], 1, 1).ok
    Report.of([finding("note"), finding("warning")], 1, 1).raise_errors()


def test_sites_of_a_loop_are_said_together() -> None:
    found = [finding(site=f"x_{t}") for t in range(9)] + [finding(site="y")]
    report = Report.of(found, 10, 1)
    assert [f.site for f in report.findings] == ["x_0", "y"]
    assert "and likewise 'x_1', 'x_2', 'x_3' and 5 more" in report.findings[0].where


def test_a_finding_is_one_sentence() -> None:
    assert str(finding()) == "somewhere: this was found; expected that; do something"


@pytest.mark.parametrize(
    ("code", "error"), [("no-gradient", ProgramError), ("data-nan", DataError)]
)
def test_errors_are_raised_as_what_they_are(code: str, error: type[Exception]) -> None:
    report = Report.of([finding(code=code), finding(code="objective", site="z")], 1, 1)
    with pytest.raises(error, match=r"(?s)somewhere: .*\n.*site 'z'"):
        report.raise_errors()


def test_the_page_fits_a_terminal() -> None:
    long = Finding("error", "data-nan", "x", "site 'x'", "word " * 60, "an_endless_name" * 2, "x")
    page = str(Report.of([long, finding("warning")], 2, 1))
    assert max(map(len, page.splitlines())) <= 80
    assert page.startswith("1 error, 1 warning: 2 sites, 1 parameter checked\n\nERROR data-nan\n")
    assert "  to do     do something" in page


def test_a_clean_page_is_one_line() -> None:
    assert str(Report.of([], 1, 2)) == "no findings: 1 site, 2 parameters checked"


def test_codes_are_kebab_case() -> None:
    assert all(code == code.lower().replace("_", "-").replace(" ", "-") for code in CODES)


def test_to_dict_is_plain() -> None:
    found = Report.of([finding()], 1, 2).to_dict()
    assert found["ok"] is False and found["findings"][0]["code"] == "no-gradient"
    assert set(found["findings"][0]) == {
        "severity", "code", "site", "where", "found", "expected", "advice"
    }  # fmt: skip


def test_what_was_raised_is_the_cause_of_what_is_raised() -> None:
    cause = RuntimeError("a line of the user's")
    caused = replace(finding(code="program-raises", site="z"), error=cause)
    assert caused == finding(code="program-raises", site="z") and "user" not in repr(caused)
    report = Report.of([finding("warning"), finding(), caused], 1, 1)
    with pytest.raises(ProgramError) as found:
        report.raise_errors()
    assert found.value.__cause__ is cause
    assert "error" not in report.to_dict()["findings"][0] and copy.copy(report) == report
    with pytest.raises(ProgramError) as found:
        Report.of([finding()], 1, 1).raise_errors()
    assert found.value.__cause__ is None
