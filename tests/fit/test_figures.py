from pathlib import Path

import pytest
import torch

import amortized as am
from amortized.fit.figures import write_figures
from tests.fit import tiny


@pytest.mark.parametrize("test", [None, tiny.data(4)], ids=["no test data", "no images"])
def test_curves_alone_where_there_are_no_images(tmp_path: Path, test: torch.Tensor | None) -> None:
    program = am.Program(tiny.local_model, tiny.exact_guide, tiny.data(8), test=test)
    history = am.History()
    history.record({"train_loss": 2.0, "train_elbo": -2.0})
    svi = am.SVI(program.model, program.guide)
    write_figures(svi, program, history, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
