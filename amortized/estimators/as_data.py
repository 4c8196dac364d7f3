"""Samples that are data: what stands at a site under objectives that do not differentiate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch

from amortized.errors import EstimatorError
from amortized.estimators.base import Draw, Estimator, Noise, Site, base_of


@final
class AsData(Estimator):
    """One plain draw, a constant, whose log q stays attached to its parameters."""

    attached = True
    scores = False

    def draw(self, site: Site, noise: Noise) -> Draw:
        """A draw without a gradient, shape ``[*batch, *event]``."""
        return Draw(site, noise.sample(site.law, site=site.name))

    def __repr__(self) -> str:
        """What a table of sites says."""
        return "none: samples are data"


AS_DATA = AsData()


def as_data(site: Site, infer: Mapping[str, Any]) -> Estimator:
    """The same for every site.

    Raises:
        EstimatorError: the program names an estimator at the site, or it is a point mass.
    """
    if infer.get("estimator") is not None:
        raise EstimatorError(
            f"site {site.name!r}: its infer= asks for {infer['estimator']!r}, and this objective "
            "takes samples as data: it differentiates log p and log q at constant values, so there "
            "is no gradient of a sample to estimate; leave the estimator out"
        )
    if site.family == "Delta" and torch.is_grad_enabled() and _moves(site.law):
        raise EstimatorError(
            f"site {site.name!r}: a Delta that moves with parameters has no density, so log q "
            "teaches them nothing, and this objective takes samples as data; give the site a "
            "distribution, or use am.ELBO()"
        )
    return AS_DATA


def _moves(law: Any) -> bool:
    return bool(base_of(law).v.requires_grad)
