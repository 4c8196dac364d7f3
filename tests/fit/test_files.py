import sys
from pathlib import Path

import pytest

from amortized.errors import UsageError
from amortized.fit.files import build, pairs, program_file, read_value
from amortized.fit.program import Program


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_loaded_with_its_folder_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("ANSWER = 42", encoding="utf-8")
    path = written(tmp_path, "from beside_it import ANSWER\ndef program(): return ANSWER")
    before, modules = list(sys.path), set(sys.modules)
    with program_file(path) as function:
        assert function() == 42
    assert sys.path == before and set(sys.modules) - modules == {"beside_it"}
    del sys.modules["beside_it"]


def test_a_missing_file_or_function_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no program file"), program_file(tmp_path / "no.py"):
        pass
    path = written(tmp_path, "x = 1")
    with pytest.raises(UsageError, match=r"mine.py has no function program"), program_file(path):
        pass
    text = tmp_path / "notes.txt"
    text.write_text("hello", encoding="utf-8")
    with pytest.raises(UsageError, match="no Python file"), program_file(text):
        pass


def options(size: int = 2, rate: float = 0.1, flag: bool = False, path: str = "", any=None):
    return Program(print, print, {"size": size, "rate": rate, "flag": flag, "path": path, "a": any})


def test_options_take_the_type_of_their_default() -> None:
    given = {"size": "8", "rate": "1", "flag": "true", "path": "8", "any": "1e-3"}
    assert build(options, given).train == {
        "size": 8,
        "rate": 1.0,
        "flag": True,
        "path": "8",
        "a": 0.001,
    }
    assert type(build(options, {"rate": "1"}).train["rate"]) is float
    assert build(lambda **o: Program(print, print, o), {"x": "yes"}).train == {"x": "yes"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": "8"}, r"--set sise: .*options are size, rate, .*did you mean size\?"),
        ({"size": "big"}, "--set size=big: expected a whole number"),
        ({"size": "2.5"}, "expected a whole number"),
        ({"size": "true"}, "expected a whole number"),
        ({"rate": "fast"}, "expected a number"),
        ({"flag": "1"}, "expected true or false"),
    ],
)
def test_wrong_options_are_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(options, given)


def test_needed_options_and_wrong_results_are_named() -> None:
    def needy(size: int) -> Program:
        return Program(print, print, size)

    with pytest.raises(UsageError, match="needs the option size"):
        build(needy, {})
    with pytest.raises(UsageError, match="returned NoneType"):
        build(lambda: None, {})
    with pytest.raises(UsageError, match="it takes none"):
        build(lambda: None, {"x": "1"})


def test_pairs_are_name_and_value() -> None:
    assert pairs("--set", ["a=1", " b = x=y"]) == {"a": "1", "b": "x=y"}
    for wrong in ("a", "=1"):
        with pytest.raises(UsageError, match=f"--set {wrong}: expected name=value"):
            pairs("--set", [wrong])
    with pytest.raises(UsageError, match="a is given twice"):
        pairs("--set", ["a=1", "a=2"])


def test_values_without_a_default_look_like_what_they_are() -> None:
    texts = ("8", "0.5", "False", "fast")
    assert [read_value("x", text, None) for text in texts] == [8, 0.5, False, "fast"]


def test_defaults_that_text_cannot_replace_are_refused() -> None:
    def program(sizes: tuple[int, ...] = (64, 32), needed=...):
        return Program(print, print, {})

    with pytest.raises(UsageError, match=r"--set sizes=32,16: the default of sizes is a tuple"):
        build(program, {"sizes": "32,16"})

    def asks(size):
        return Program(print, print, {"size": size})

    assert build(asks, {"size": "3"}).train == {"size": 3}
