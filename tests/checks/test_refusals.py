from __future__ import annotations

import pytest
import torch
from torch import nn

from amortized.checks.calls import Calls
from amortized.checks.refusals import left_dim_failure, refusal, split
from amortized.errors import EstimatorError, NonFiniteError, ProgramError, UsageError


@pytest.mark.parametrize(
    ("error", "code", "site"),
    [
        (
            ProgramError("site 'x' of the model mixes the particles: so. Do that"),
            "erased-axes",
            "x",
        ),
        (
            ProgramError(
                "site 'x' of the guide: its log-probability has shape (3,), but the "
                "plates around it are none; a batch dim must be declared: do that"
            ),
            "undeclared-batch-dim",
            "x",
        ),
        (
            UsageError("data_plate='rows': no site of the model is in it; it has []"),
            "data-plate",
            None,
        ),
        (UsageError("plate 'rows' was taken for the data plate, but it has 3"), "plate-size", None),
        (EstimatorError("site 'z': it refuses; use another"), "estimator-unsupported", "z"),
        (EstimatorError("estimators['y'] matches no latent site: none"), "estimator-key", None),
        (NonFiniteError("the loss is nan; stop"), "non-finite-loss", None),
        (UsageError("something else; mend it"), "objective", None),
        (ProgramError("something else; mend it"), "program-raises", None),
    ],
)
def test_errors_of_this_package_have_codes(error: Exception, code: str, site: str | None) -> None:
    finding = refusal(error)
    assert (finding.severity, finding.code, finding.site) == ("error", code, site)
    assert finding.found and finding.expected and finding.advice


def test_the_parts_of_a_sentence() -> None:
    finding = refusal(EstimatorError("site 'z' (mapping 'z') asks for much; ask for less"))
    assert finding.where == "site 'z'"
    assert finding.found == "asks for much"
    assert finding.advice == "ask for less"
    assert split("found. Do this; or that") == ("found", "Do this; or that")
    assert split("nothing to split") == ("nothing to split", "")


def failed(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_program_that_fails_only_under_copies() -> None:
    error = failed(
        ProgramError(
            "the model failed while 3 particles gave its values extra dims on the left: "
            "RuntimeError: no. Programs must broadcast"
        ),
        RuntimeError("no"),
    )
    finding = left_dim_failure(error, [], Calls())
    assert finding.code == "program-raises"
    assert finding.where == "the model" and "vectorize=False" in finding.advice


def test_a_network_for_one_batch_dim_is_named() -> None:
    net, calls = nn.Flatten(), Calls()
    with calls.recorded("guide"):
        net(torch.zeros(2, 3))
    finding = left_dim_failure(RuntimeError("shapes"), [net], calls)
    assert (finding.code, finding.where) == ("module-left-dims", "Flatten in the guide")
    assert "am.Fold" in finding.advice and "RuntimeError: shapes" in finding.found
    mixing = left_dim_failure(ProgramError("site 'x' of the model mixes: so"), [net], Calls())
    assert mixing.site == "x" and "in the model, at site 'x'" in mixing.where
