from __future__ import annotations

import csv
import io
import json
import math
from html.parser import HTMLParser
from typing import Any

import pytest

from amortized.compare.tables import Format, Sheet, Tabled, bytes_text, plain
from amortized.errors import UsageError


class Odd(Tabled):
    """Cells with every sign that some format would take for its own."""

    def sheet(self) -> Sheet:
        rows = [["relaxed|hard", "3 [2, 4]"], ["a_b & 50 % <i>", "-"]]
        return Sheet(["candidate", "|bias|"], rows, ("candidate",))

    def records(self) -> list[dict[str, Any]]:
        return [{"candidate": "a,b", "bias": math.inf}, {"candidate": "c", "bias": 0.5}]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.records(), "none": math.nan}

    def notes(self) -> list[str]:
        return ["1 < 2", "the end"]


class Cells(HTMLParser):
    """The texts of all cells, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_markdown_keeps_its_columns():
    lines = Odd().table("markdown").splitlines()
    assert lines[1] == "| :-- | --: |"
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


def test_markdown_and_latex_show_names_as_they_are():
    names = ["two\nlines", "<z> & co", "_a_ *b* `c`", "$x$", "a\\|b"]
    sheet = Sheet(["name"], [[name] for name in names], ("name",))
    assert sheet.markdown().splitlines()[2:] == [
        "| two lines |",
        "| &lt;z&gt; &amp; co |",
        r"| \_a\_ \*b\* \`c\` |",
        r"| \$x\$ |",
        r"| a\\\|b |",
    ]
    assert r"two lines \\" in sheet.latex().splitlines()


def test_latex_escapes_what_tex_would_read():
    lines = Odd().table("latex").splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lr}", r"\toprule"]
    assert lines[3] == r"candidate & \textbar{}bias\textbar{} \\"
    assert r"a\_b \& 50 \% \textless{}i\textgreater{} & - \\" in lines
    assert [line.count(" & ") for line in lines if line.endswith(r"\\")] == [1, 1, 1]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_html_shows_cells_as_they_are():
    found = Cells()
    found.feed(Odd()._repr_html_())
    assert found.open == []
    assert found.cells == ["candidate", "|bias|", "relaxed|hard", "3 [2, 4]", "a_b & 50 % <i>", "-"]
    assert "1 &lt; 2<br>\nthe end" in Odd()._repr_html_()
    assert Odd().table("html") in Odd()._repr_html_()


def test_csv_and_json_are_for_programs():
    read = list(csv.DictReader(io.StringIO(Odd().table("csv"))))
    assert read == [{"candidate": "a,b", "bias": "inf"}, {"candidate": "c", "bias": "0.5"}]
    data = json.loads(Odd().table("json"))
    assert data == {
        "rows": [{"candidate": "a,b", "bias": None}, {"candidate": "c", "bias": 0.5}],
        "none": None,
    }


def test_text_is_the_table_and_then_the_notes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = str(Odd()).splitlines()
    assert lines[0].split() == ["candidate", "|bias|"]
    assert lines[-2:] == ["1 < 2", "the end"]
    assert Odd().table() == "\n".join(lines[:-3])


def test_another_format_is_refused():
    wrong: Any = "xml"
    with pytest.raises(UsageError, match=r"table\(format='xml'\): expected one of \('text', 'mark"):
        Odd().table(wrong)


def test_every_format_that_is_named_is_served():
    kinds: tuple[Format, ...] = ("text", "markdown", "latex", "html", "csv", "json")
    assert all("a" in Odd().table(kind) for kind in kinds)


def test_a_frame_if_pandas_is_there():
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="pip install pandas"):
            Odd().to_frame()
    else:
        assert list(Odd().to_frame().columns) == ["candidate", "bias"]


def test_bytes_have_a_unit():
    assert [bytes_text(n) for n in (0, 999, 1000, 123456789, 5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 MB",
        "5e+03 GB",
    ]


def test_plain_data_have_no_infinity():
    assert plain({"a": (1.0, math.inf), "b": [math.nan]}) == {"a": [1.0, None], "b": [None]}
