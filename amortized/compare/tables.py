"""Results as tables: for a terminal, a paper, a notebook, a spreadsheet, a program."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from amortized.breakdown import terminal_width
from amortized.compare.terminal import Layout
from amortized.errors import UsageError

Format = Literal["text", "markdown", "latex", "html", "csv", "json"]
_WIDTH = 150
_MARKS = re.compile(r"[\\`*_|$]")
# what TeX would take for commands, and what its usual font would show as other characters
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@final
@dataclass(frozen=True)
class Sheet:
    """Cells as text, with the columns that are words, and what the heads mean."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str]
    legend: Sequence[tuple[str, str]] = ()
    keys: int = 1
    """So many columns at the left say whose row it is."""
    text: bool = False
    """The last column holds sentences."""

    def rich(self) -> Layout:
        """With its layout, for ``rich.print``."""
        return Layout(self.heads, self.rows, self.words, self.keys, self.text)

    def markdown(self) -> str:
        """Of GitHub's kind."""
        rules = [":--" if head in self.words else "--:" for head in self.heads]
        heads, *rows = ([_markdown(cell) for cell in line] for line in (self.heads, *self.rows))
        escaped = [heads, rules, *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

    def latex(self) -> str:
        """A ``tabular`` with the rules of the package booktabs."""
        columns = "".join("l" if head in self.words else "r" for head in self.heads)
        lines = [" & ".join(map(_tex, line)) + r" \\" for line in (self.heads, *self.rows)]
        rows = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        begin = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}"]
        return "\n".join([*begin, *rows, r"\end{tabular}"])

    def html(self) -> str:
        """A table that a page may style; numbers are right-aligned."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ["left" if head in self.words else "right" for head in self.heads]
            pairs = zip(cells, sides, strict=True)
            made = (f'<{tag} style="text-align:{s}">{html.escape(c)}</{tag}>' for c, s in pairs)
            return f"<tr>{''.join(made)}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        head = line(self.heads, "th")
        return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


class Tabled(ABC):
    """A result with a table: what it says, and how it is shown."""

    @abstractmethod
    def sheet(self) -> Sheet:
        """The table for people."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The rows for programs: all with the same keys, one number or text each."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data: all that was measured."""

    @abstractmethod
    def notes(self) -> list[str]:
        """What a reader of the table must know, a sentence each."""

    def table(self, format: Format = "text") -> str:
        """The table as ``"text"`` for a terminal, ``"markdown"``, ``"latex"`` or ``"html"``.

        ``"csv"`` has more columns and unrounded numbers, ``"json"`` is `to_dict` (None stands for
        what is not finite).

        Raises:
            UsageError: another format.
        """
        if format == "text":
            return self.__rich__().plain(terminal_width(_WIDTH))
        if format == "markdown":
            return self.sheet().markdown()
        if format == "latex":
            return self.sheet().latex()
        if format == "html":
            return self.sheet().html()
        if format == "csv":
            return _csv(self.records())
        if format == "json":
            return json.dumps(plain(self.to_dict()), indent=2, allow_nan=False)
        raise UsageError(f"table(format={format!r}): expected one of {get_args(Format)}")

    def to_frame(self) -> Any:
        """The rows as a ``pandas.DataFrame``.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            # pandas is no dependency
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("to_frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.records())

    def __rich__(self) -> Layout:
        """The table with its layout, for ``rich.print``."""
        return self.sheet().rich()

    def __str__(self) -> str:
        """The table, and below it what one must know."""
        return f"{self.table()}\n\n" + "\n".join(self.notes())

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        notes = "<br>\n".join(map(html.escape, self.notes()))
        return f"{self.sheet().html()}\n<p>{notes}</p>"


def bytes_text(count: float) -> str:
    """Bytes with a unit.

    >>> bytes_text(84), bytes_text(11144), bytes_text(2.5e9)
    ('84 B', '11.1 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def plain(value: Any) -> Any:
    """JSON knows no infinity and no NaN: None stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _tex(cell: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in _one_line(cell))


def _markdown(cell: str) -> str:
    """As it is shown: no emphasis, no code, no element of HTML, no further column."""
    return _MARKS.sub(r"\\\g<0>", html.escape(_one_line(cell), quote=False))


def _one_line(cell: str) -> str:
    return " ".join(cell.split())
