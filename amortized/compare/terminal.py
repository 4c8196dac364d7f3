"""Tables in a terminal: what is too wide is laid out anew, and no word is cut where it can be kept.

Reasons stand below the table where there is no room beside it, and columns that are left over come
in further bands, each with the columns that say whose row it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from amortized.breakdown import plain_text

# between two columns, and at both edges together
_GAP: Final = 2
_EDGES: Final = 2
# sentences in a narrower column are hard to read
_LEAST_TEXT: Final = 40


@final
@dataclass(frozen=True)
class Layout:
    """Heads and rows of text that fit into any terminal.

    Args:
        heads: of the columns.
        rows: cells.
        words: the columns that are aligned left.
        keys: how many columns at the left say whose row it is.
        text: the last column holds sentences, which may stand below.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str]
    keys: int = 1
    text: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables one below the other, then the sentences."""
        tables, sentences = self.parts(options.max_width)
        yield from tables
        yield from (Text(line) for line in sentences)

    def plain(self, width: int) -> str:
        """The same as lines, with an empty one between two parts."""
        tables, sentences = self.parts(width)
        parts = [plain_text(table, width) for table in tables]
        return "\n\n".join([*parts, *(["\n".join(sentences)] if sentences else [])])

    def parts(self, width: int) -> tuple[list[Table], list[str]]:
        """Tables no wider than that, and the sentences that stand below them."""
        widths = self._widths(width - _EDGES)
        columns, room = list(range(len(self.heads))), width - _EDGES
        below = self.text and sum(widths) + _GAP * (len(widths) - 1) > room
        if below:
            columns.pop()
        elif self.text:
            widths[-1] = min(
                self._natural(columns[-1]), room - sum(widths[:-1]) - _GAP * columns[-1]
            )
        tables = [self._table(band, widths) for band in self._bands(columns, widths, room)]
        return tables, list(self._sentences(width)) if below else []

    def _widths(self, room: int) -> list[int]:
        """What columns need: names of rows are wrapped where a number would not fit beside them."""
        widths = [self._natural(column) for column in range(len(self.heads))]
        if self.text:
            widths[-1] = min(widths[-1], _LEAST_TEXT)
        keys = range(self.keys)
        others = widths[self.keys : -1 if self.text else None]
        most = room - max(others, default=0) - _GAP * self.keys
        while sum(widths[: self.keys]) > most:
            widest = max(keys, key=lambda key: widths[key] - cell_len(self.heads[key]))
            if widths[widest] <= cell_len(self.heads[widest]):
                break
            widths[widest] -= 1
        return widths

    def _bands(self, columns: list[int], widths: list[int], room: int) -> Iterator[list[int]]:
        """As many columns as fit, each time behind the keys."""
        keys, rest = columns[: self.keys], columns[self.keys :]
        start = sum(widths[key] + _GAP for key in keys)
        band, used = list(keys), start
        for column in rest:
            # the last column has no gap behind it
            if used + widths[column] > room and len(band) > len(keys):
                yield band
                band, used = list(keys), start
            band.append(column)
            used += widths[column] + _GAP
        yield band

    def _table(self, columns: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            left = self.heads[column] in self.words
            table.add_column(
                Text(self.heads[column]),
                justify="left" if left else "right",
                overflow="fold",
                no_wrap=not left,
                width=widths[column],
            )
        for row in self.rows:
            table.add_row(*(Text(row[column]) for column in columns))
        return table

    def _sentences(self, width: int) -> Iterator[str]:
        """The last column, a paragraph each, behind the other words of its row."""
        words = [i for i, head in enumerate(self.heads[:-1]) if head in self.words]
        for row in self.rows:
            text = f"{', '.join(row[i] for i in words)}: {row[-1]}"
            yield from textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)

    def _natural(self, column: int) -> int:
        return max(map(cell_len, (self.heads[column], *(row[column] for row in self.rows))))
