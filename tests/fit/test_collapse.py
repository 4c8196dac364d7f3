import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.fit.collapse import collapse_notices
from amortized.fit.history import History
from tests.fit import tiny
from tests.fit.harness import Do, Stop, fit, stop


def history(*kls: float, notices: tuple[str, ...] = ()) -> History:
    found = History()
    for kl in kls:
        found.record({"kl/z": kl, "kl/other": 1.0})
    found.notices += notices
    return found


def test_a_latent_near_its_prior_is_named_with_what_to_do() -> None:
    (notice,) = collapse_notices(history(0.002), ["z"], epoch=5, kl_weight=1.0)
    assert notice.startswith("site 'z': its KL is 2.0e-03 nats per data point at epoch 5")
    assert "posterior collapse" in notice and "n_epochs_kl_warmup" in notice


@pytest.mark.parametrize(
    ("recorded", "local", "epoch", "weight"),
    [
        (history(0.02), ["z"], 5, 1.0),
        (history(-0.02), ["z"], 5, 1.0),
        (history(0.0), ["z"], 4, 1.0),
        (history(0.0), [], 5, 1.0),
        (history(0.0), ["z"], 5, 0.9),
        (history(math.nan), ["z"], 5, 1.0),
        (history(0.0), ["another"], 5, 1.0),
        (history(0.0, notices=("site 'z': its KL is 0",)), ["z"], 5, 1.0),
        (History(), ["z"], 5, 1.0),
    ],
    ids=["large", "noise", "early", "global", "warm-up", "nan", "absent", "known", "empty"],
)
def test_otherwise_there_is_none(recorded, local, epoch, weight) -> None:
    assert collapse_notices(recorded, local, epoch, weight) == []


def test_similar_names_are_kept_apart() -> None:
    known = history(0.0, notices=("site 'z2': its KL is 0",))
    assert len(collapse_notices(known, ["z"], 5, 1.0)) == 1


def ignored(x: Tensor) -> None:
    """The data do not depend on z, only on m and w."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m + w, 1.0), obs=x)


def prior_guide(x: Tensor) -> None:
    """z is exactly as in the prior; m, a global latent, is almost."""
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.01)), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(x / 2, 0.7))


def train(epochs: int, **options) -> History:
    loss = am.VariationalLoss(am.ELBO(kl="analytic"))
    return fit(am.SVI(ignored, prior_guide, loss, lr=1e-4), max_epochs=epochs, **options)


def test_one_notice_a_training_for_latents_of_data_points() -> None:
    assert train(4).notices == []
    (notice,) = train(9).notices
    assert notice.startswith("site 'z': its KL is 0.0e+00") and "epoch 5" in notice


def test_during_a_warm_up_nothing_is_said() -> None:
    assert train(6, n_epochs_kl_warmup=9).notices == []
    assert "epoch 8" in train(9, n_epochs_kl_warmup=7).notices[0]


def test_the_notice_is_not_repeated_after_a_resume(tmp_path) -> None:
    with pytest.raises(Stop):
        saving: list[Callable | am.Callback] = [am.ModelCheckpoint(tmp_path), Do(stop, 27)]
        train(9, callbacks=saving)
    found = train(9, resume_from=tmp_path)
    assert len(found.notices) == 1 and "epoch 5" in found.notices[0]


def test_a_useful_latent_is_left_alone() -> None:
    assert fit(am.SVI(tiny.local_model, tiny.param_guide, lr=0.1), max_epochs=8).notices == []
