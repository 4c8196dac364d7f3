from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib import image

import amortized as am
from amortized.compare.training.report import page, refuse_unwritable, write_report
from amortized.compare.training.result import TrainingComparison
from tests.compare.test_result import comparison as gradients
from tests.compare.training.test_result import comparison as trainings

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Closed tags, links to elsewhere, and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        found: dict[str, Any] = dict(attrs)
        if tag == "img":
            assert len(found["alt"]) > 20
            kind, data = found["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("found", "pictures"), [(gradients(), 2), (trainings(), 3)], ids=["gradients", "training"]
)
def test_a_page_needs_nothing_from_elsewhere(found: Any, pictures: int):
    text = page(found, "a <b> & c", {"seed": 3, "candidates": "x<y"})
    read = Page(text)
    assert all(address.startswith("data:") for address in read.addresses)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert len(read.pictures) == pictures
    shapes = [image.imread(io.BytesIO(picture)).shape for picture in read.pictures]
    assert all(shape[1] >= 900 for shape in shapes), "legible on paper: 200 dots an inch"
    assert "<title>a &lt;b&gt; &amp; c</title>" in text and "<dd>x&lt;y</dd>" in text
    assert found.sheet().html() in text
    assert all(f"<dt>{head}</dt>" in text for head in ("evals", "seed", "made with"))


def test_a_comparison_without_evidence_has_no_figure_of_it():
    bare = [t for t in trainings().trials if t.candidate == "good"]
    bare = [am.Trial(**{**vars(trial), "log_evidence": []}) for trial in bare]
    found = trainings(trials=bare, evaluations={"good": 1})
    assert len(Page(page(found, "t", {})).pictures) == 2


def test_a_figure_that_fails_does_not_lose_the_report(monkeypatch: pytest.MonkeyPatch):
    def broken(self: Any, ax: Any = None, against: str = "steps", metric: str = "elbo") -> Any:
        _, axes = plt.subplots()
        if against == "seconds":
            raise ValueError("<no> such thing")
        axes.set_title("fine")
        return axes

    monkeypatch.setattr(TrainingComparison, "plot", broken)
    before = plt.get_fignums()
    text = page(trainings(), "t", {})
    assert len(Page(text).pictures) == 2 and trainings().sheet().html() in text
    assert "could not be drawn (ValueError: &lt;no&gt; such thing)" in text
    assert plt.get_fignums() == before


def test_a_report_is_a_file(tmp_path: Path):
    write_report(tmp_path / "r.html", trainings(), "t", {})
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_place_that_is_none_is_refused_at_once(tmp_path: Path):
    refuse_unwritable(tmp_path / "r.html")
    for path in (tmp_path, tmp_path / "no" / "r.html"):
        with pytest.raises(am.UsageError, match=r"--report .*: expected the name of a file"):
            refuse_unwritable(path)
