"""Pathwise gradients: the value is a differentiable function of noise and parameters."""

from __future__ import annotations

from amortized.estimators.base import Draw, Estimator, Noise, Site
from amortized.estimators.elements import is_straight_through


class Pathwise(Estimator):
    r"""Reparameterization, explicit or implicit, as the distribution's ``rsample`` offers it.

    .. math:: \nabla_\phi E_q f = E_\varepsilon[\partial_z f \cdot \partial_\phi z(\varepsilon)]

    Unbiased when the cost is differentiable in the value (a branch on the value makes it biased,
    silently: use `ScoreFunction` there), except for distributions whose ``rsample`` rounds
    (``...StraightThrough``), which tables then call biased. One copy, no state, all objectives.

    Refuses a distribution without ``rsample`` (`EstimatorError`, before the first step).

    Kingma & Welling 2013 (1312.6114); Rezende et al. 2014 (1401.4082); implicit: Figurnov et al.
    2018 (1805.08498), Jankowiak & Obermeyer 2018 (1806.01851).

    >>> Pathwise()
    Pathwise()
    """

    label = "pathwise"
    scores = False
    needs = "a model that is differentiable in the value"
    attached = True

    def draw(self, site: Site, noise: Noise) -> Draw:
        """One reparameterized draw, shape ``[*batch, *event]``."""
        return Draw(site, noise.rsample(site.law, site=site.name))

    def refusal(self, site: Site) -> str | None:
        """Only distributions with ``rsample``."""
        return _without_rsample(site)

    def bias_of(self, site: Site, *, weighted: bool = False) -> str:
        """None, unless ``rsample`` rounds."""
        return _rounding(site)


class DoublyReparameterized(Estimator):
    r"""Sticking the landing: pathwise, without the direct gradient of the site's own log q.

    .. math:: \nabla_\phi = E[\partial_z (\log p(x, z) - \log q_{\bar\phi}(z)) \, \partial_\phi z]

    phi is frozen inside log q, wherever it stands: the guide is run once more on the values that
    were drawn, as constants, and the gradient of log q there, of mean zero, is subtracted. Values
    stay attached as parents of later sites, so hierarchical guides are right too.

    Unbiased under the ELBO, and exactly zero, draw by draw, where q is the posterior and every site
    is differentiated so. Far from there it can vary more than `Pathwise`: measure. One copy, no
    state, one more run of the guide a step. A guide that is random outside its sample statements
    (dropout) is refused at the first step.

    Refuses a distribution without ``rsample`` (`EstimatorError`, before the first step).

    Roeder et al. 2017 (1703.09194); Tucker et al. 2018 (1810.04152).

    >>> DoublyReparameterized()
    DoublyReparameterized()
    """

    label = "doubly_reparameterized"
    needs = "a model that is differentiable in the value"
    attached = True
    frozen = True

    def draw(self, site: Site, noise: Noise) -> Draw:
        """One reparameterized draw, shape ``[*batch, *event]``."""
        return Draw(site, noise.rsample(site.law, site=site.name))

    def refusal(self, site: Site) -> str | None:
        """Only distributions with ``rsample``."""
        return _without_rsample(site)

    def bias_of(self, site: Site, *, weighted: bool = False) -> str:
        """None, unless ``rsample`` rounds."""
        return _rounding(site)


def _rounding(site: Site) -> str:
    if not is_straight_through(site.law):
        return ""
    return (
        f"{site.family} rounds what it draws and gives the result the gradient of what was rounded"
    )


def _without_rsample(site: Site) -> str | None:
    if site.law.has_rsample:
        return None
    return (
        f"{site.family} has no reparameterized draw (has_rsample is False); "
        "use am.ScoreFunction(am.LeaveOneOut()), or am.Enumerate() if its support is finite"
    )
