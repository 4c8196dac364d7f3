from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import amortized as am
from amortized.fit.arguments import path_of, refuse_no_count, refuse_no_seed
from tests.fit import tiny


def svi(**options) -> am.SVI:
    return am.SVI(tiny.local_model, tiny.param_guide, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svi().fit(tiny.data(), epochs=3), r"^fit\(epochs=.*did you mean max_epochs\?$"),
        (lambda: svi().fit(tiny.data(), lr=1), r"^fit\(lr=.*; lr is one of am\.SVI\(\.\.\.\)$"),
        (lambda: svi().fit(tiny.data(), xyz=1), r"no such argument; it has train, val, max_epochs"),
        (lambda: svi(learning_rate=1), r"^SVI\(learning_rate=\.\.\.\): it has no such argument"),
        (lambda: svi(optimiser=1), r"did you mean optimizer\?"),
        (lambda: svi().evaluate(tiny.data(), particles=3), r"did you mean num_particles\?"),
        (lambda: svi(compile=["graph"]), r"^compile=\['graph'\]: expected one of off, graph, ind"),
        (lambda: svi(precision=16), r"^precision=16: expected one of float32, bf16-mixed$"),
        (lambda: svi(precision=["float32"]), r"^precision=\['float32'\]: expected one of float32"),
        (lambda: am.ModelCheckpoint("x", every_n_step=3), r"did you mean every_n_steps\?"),
        (lambda: am.EarlyStopping(patients=3), r"^EarlyStopping\(.*did you mean patience\?"),
        (lambda: am.load("x", (print, print), bach=3), r"^load\(bach=.*did you mean batch\?"),
    ],
)
def test_a_keyword_that_a_call_lacks(call, message: str) -> None:
    with pytest.raises(am.UsageError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "a"}, r"^batch_size='a': expected a whole number, at least 1$"),
        ({"batch_size": 2.5}, r"^batch_size=2\.5: "),
        ({"seed": 0.5}, r"^seed=0\.5: expected a whole number from 0 to 4294967295"),
        ({"seed": -1}, r"^seed=-1: "),
        ({"seed": True}, r"^seed=True: "),
        ({"gradient_clip_val": "1"}, r"^gradient_clip_val='1': expected a norm above 0"),
        ({"limit_train_batches": "3"}, r"^limit_train_batches='3': expected a count from 1"),
        ({"non_finite_limit": "3"}, r"^non_finite_limit='3': expected a whole number"),
        ({"non_finite_limit": 2.5}, r"^non_finite_limit=2\.5: expected a whole number"),
        ({"n_epochs_kl_warmup": 2.5}, r"^n_epochs_kl_warmup=2\.5: .*or None"),
        ({"fast_dev_run": "yes"}, r"^fast_dev_run='yes': expected True"),
        ({"fast_dev_run": 0.5}, r"^fast_dev_run=0\.5: expected True"),
        ({"resume_from": 3}, r"^resume_from=3: expected the path of a folder"),
        ({"max_epochs": "3"}, r"^max_epochs='3': expected a whole number"),
    ],
    ids=str,
)
def test_an_argument_of_fit_of_another_kind(options, message: str) -> None:
    with pytest.raises(am.UsageError, match=message):
        svi().fit(tiny.data(), **{"max_epochs": 1, "progress": False} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svi().evaluate(tiny.data(), num_particles=1.5), r"^num_particles=1\.5: "),
        (lambda: svi().evaluate(tiny.data(), max_rows="a"), r"^max_rows='a': "),
        (lambda: svi().evaluate(tiny.data(), batch_size=1.5), r"^batch_size=1\.5: "),
        (lambda: svi().evaluate(tiny.data(), seed="a"), r"^seed='a': "),
        (lambda: am.ModelCheckpoint(3), r"^ModelCheckpoint\(dirpath=3\): expected the path"),
        (lambda: am.ModelCheckpoint("x", every_n_steps=2.5), r"every_n_steps=2\.5\): .*or None"),
        (lambda: am.ModelCheckpoint("x", save_top_k="3"), r"save_top_k='3'\): .*at least 0"),
        (lambda: am.EarlyStopping(patience=2.5), r"^EarlyStopping\(patience=2\.5\): .*or None"),
        (lambda: am.EarlyStopping(min_delta="a"), r"min_delta='a'\): expected a number"),
    ],
)
def test_an_argument_of_another_call_of_another_kind(call, message: str) -> None:
    with pytest.raises(am.UsageError, match=message):
        call()


def test_right_arguments_pass() -> None:
    refuse_no_count("n", np.int64(3))
    refuse_no_seed(np.uint32(3))
    assert path_of("p", Path("a")) == path_of("p", "a") == Path("a")
    history = svi().fit(
        tiny.data(),
        max_epochs=np.int64(1),
        seed=np.int64(1),
        batch_size=np.int32(8),
        gradient_clip_val=np.float32(1),
        progress=False,
    )
    assert history.epochs == 1


def test_signatures_stay_what_they_are() -> None:
    assert [*inspect.signature(am.SVI).parameters][:3] == ["model", "guide", "loss"]
    assert "max_epochs" in inspect.signature(am.SVI.fit).parameters
    assert am.SVI.fit.__doc__ and am.SVI.fit.__doc__.startswith("Trains on")
    with pytest.raises(TypeError, match="missing 1 required positional"):
        am.SVI(tiny.local_model)


def test_the_loss_of_a_step_is_what_it_was() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(svi().step(torch.ones(4)), float)
