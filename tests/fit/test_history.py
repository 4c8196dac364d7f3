import csv
import math
import sys
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest

from amortized.errors import UsageError
from amortized.fit.history import History


def history() -> History:
    found = History(max_epochs=5)
    found.record({"train_loss": 3.0, "kl": 1.0})
    found.record({"train_loss": 2.0, "val_elbo": -2.5, "kl/a": 0.5})
    return found


def test_lists_stay_aligned_whatever_comes_and_goes() -> None:
    found = history()
    assert {len(values) for values in found.values()} == {2} and found.epochs == 2
    assert math.isnan(found["val_elbo"][0]) and math.isnan(found["kl"][1])
    assert all(type(v) is float for values in found.values() for v in values)
    assert found.last()["val_elbo"] == -2.5 and History().last() == {}


def test_the_repr_has_what_matters() -> None:
    found = history()
    assert repr(found) == "History(epochs=2/5, train_loss=2.00, val_elbo=-2.50)"
    found.stopped = "early stopped"
    assert repr(found) == "History(epochs=2/5, early stopped, train_loss=2.00, val_elbo=-2.50)"
    assert repr(History()) == "History(epochs=0)"
    found.record({"train_loss": 1.5})  # an epoch that Ctrl-C ended has no validation
    assert repr(found) == "History(epochs=3/5, early stopped, train_loss=1.50)"


def test_csv_has_a_row_an_epoch_and_empty_cells(tmp_path) -> None:
    history().write_csv(tmp_path / "h.csv")
    with (tmp_path / "h.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["val_elbo"] == "" and float(rows[1]["val_elbo"]) == -2.5


def test_pandas_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        history().to_frame()


def test_a_frame_is_indexed_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(
        DataFrame=lambda data, index: (data, index),
        RangeIndex=lambda start, stop, name: (range(start, stop), name),
    )
    monkeypatch.setitem(sys.modules, "pandas", fake)
    columns, index = history().to_frame()
    assert index == (range(1, 3), "epoch") and columns["train_loss"] == [3.0, 2.0]


def test_it_plots_itself() -> None:
    found = history()
    found.record({"train_elbo": -1.0, "val_elbo": -1.5})
    ax = found.plot()
    assert [line.get_label() for line in ax.get_lines()] == ["train", "validation"]
    assert found.plot(ax) is ax
    plt.close("all")


def test_a_state_brings_everything_back() -> None:
    found = history()
    found.stopped, found.per_datum, found.notices = "early stopped", False, ["look here"]
    again = History(max_epochs=9)
    again.record({"strange": 1.0})
    state = found.state_dict()
    again.load_state_dict(state)
    assert list(again) == list(found) and again.epochs == 2 and again.max_epochs == 9
    for name, values in found.items():
        assert np.array_equal(again[name], values, equal_nan=True)
    assert (again.per_datum, again.notices) == (False, ["look here"])
    assert again.stopped is None, "it goes on"
    again.record({"train_loss": 1.0})
    found.notices.append("and there")
    for values in (*found.values(), *state["values"].values()):
        assert len(values) == 2, "nothing is shared"
    assert state["notices"] == again.notices == ["look here"]
