from __future__ import annotations

import io

import pytest
from rich.console import Console

from amortized.compare.terminal import Layout

HEADS = ["site", "candidate", "verdict", "variance [95 %]", "steps", "ms", "work (ms)", "why"]
WORDS = ("site", "candidate", "verdict", "why")
WHY = (
    "Normal has no finite support to enumerate; use am.ScoreFunction(am.LeaveOneOut()) or another "
    "sampled estimator"
)
ROWS = [
    [
        "y_unobserved",
        "pathwise",
        "kept",
        "2.96e+03 [2.6e+03, 3.5e+03]",
        "1",
        "10.5",
        "10.5",
        "in use",
    ],
    ["y_unobserved", "doubly_reparameterized", "not measured", "-", "-", "-", "-", "no time"],
    ["z", "enumerate", "refused", "-", "-", "-", "-", WHY],
]
WIDTHS = (70, 80, *range(98, 112), 120, 150, 300)


def layout(**options: bool | int) -> Layout:
    return Layout(HEADS, ROWS, WORDS, **{"keys": 2, "text": True, **options})  # pyright: ignore


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_nothing_too_wide(width: int) -> None:
    text = layout().plain(width)
    assert all(len(line) <= width for line in text.splitlines())
    flowing = " ".join(text.split())
    for word in (*HEADS[:-1], "y_unobserved", "not measured", "2.96e+03 [2.6e+03, 3.5e+03]"):
        assert word in flowing, word
    assert "doubly_reparameterized" in flowing or width == 70
    # words of the sentences stand whole, wherever lines end
    assert all(word in text.split() for word in WHY.split())


def test_sentences_stand_beside_the_table_where_there_is_room_and_else_below() -> None:
    wide, narrow = layout().plain(150), layout().plain(120)
    assert wide.splitlines()[0].endswith("why")
    assert "why" not in narrow.splitlines()[0]
    last = narrow.split("\n\n")[-1].splitlines()
    assert last[0] == "y_unobserved, pathwise, kept: in use"
    assert last[2].startswith("z, enumerate, refused: Normal has")
    assert all(line.startswith("  ") for line in last[3:]) and len(last) == 4


def test_columns_that_do_not_fit_come_below_behind_their_keys() -> None:
    bands = layout().plain(70).split("\n\n")[:-1]
    assert len(bands) > 1
    heads = [band.splitlines()[0] for band in bands]
    assert all(head.split()[:2] == ["site", "candidate"] for head in heads)
    assert all(
        " ".join(heads).count(head) == 1 for head in ("verdict", "variance", "steps", "work (ms)")
    )


def test_long_names_are_wrapped_and_numbers_are_not() -> None:
    name = "a name of a candidate with many words, of which each stands for something"
    text = Layout(["candidate", "ms"], [[name, "1.25"]], ("candidate",)).plain(60)
    assert all(len(line) <= 60 for line in text.splitlines()) and "1.25" in text
    assert all(word in text.split() for word in name.split())


def test_rich_shows_the_same_at_its_own_width() -> None:
    found = io.StringIO()
    Console(file=found, width=80).print(layout())
    shown = [line.strip() for line in found.getvalue().splitlines() if line.strip()]
    plain = [line.strip() for line in layout().plain(80).splitlines() if line.strip()]
    assert shown == plain
