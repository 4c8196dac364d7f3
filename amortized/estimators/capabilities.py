"""Which estimator serves which distribution, computed from what estimators say of themselves.

The same declarations refuse a site at its first step, fill the page ``docs/capabilities.md`` and
choose the cells of the laws, so the three cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyro.distributions as dist
import torch
from torch.distributions import Distribution

from amortized.estimators.base import Estimator, Site
from amortized.estimators.choice import NAMES, estimator_of


def laws() -> dict[str, Distribution]:
    """One law of each kind that guides use, by name; in a plate of two."""
    half, two = torch.full((2,), 0.5), torch.full((2, 3), 1.0)
    return {
        "Bernoulli": dist.Bernoulli(half),
        "Bernoulli, to_event": dist.Bernoulli(0.5 * two).to_event(1),
        "Categorical": dist.Categorical(logits=two),
        "OneHotCategorical": dist.OneHotCategorical(logits=two),
        "OneHotCategorical, to_event": dist.OneHotCategorical(logits=two.expand(2, 2, 3)).to_event(
            1
        ),
        "Binomial": dist.Binomial(4, half),
        "Poisson": dist.Poisson(half),
        "Geometric": dist.Geometric(half),
        "NegativeBinomial": dist.NegativeBinomial(2.0, half),
        "Normal": dist.Normal(half, 1.0),
        "Normal, to_event": dist.Normal(two, 1.0).to_event(1),
        "MultivariateNormal": dist.MultivariateNormal(two, torch.eye(3)),
        "LogNormal": dist.LogNormal(half, 1.0),
        "Exponential": dist.Exponential(half),
        "Gamma": dist.Gamma(half, half),
        "Beta": dist.Beta(half, half),
        "Dirichlet": dist.Dirichlet(two),
        "VonMises": dist.VonMises(half, 1.0),
    }


@dataclass(frozen=True)
class Capability:
    """Whether an estimator serves a distribution, and why not."""

    estimator: str
    law: str
    refusal: str | None
    """A clause that names what is wrong and what would work instead; None: it is served."""
    copies: int = 0
    """Values that are evaluated a step, where it is served."""

    @property
    def served(self) -> bool:
        """Whether it is."""
        return self.refusal is None


def capabilities(estimators: Mapping[str, Estimator] | None = None) -> list[Capability]:
    """Every estimator beside every distribution.

    Args:
        estimators: by name; default every one that has a name.

    >>> [c.law for c in capabilities({"enumerate": estimator_of("enumerate")}) if c.served][:2]
    ['Bernoulli', 'Bernoulli, to_event']
    """
    asked = {name: estimator_of(name) for name in NAMES} if estimators is None else estimators
    found = []
    for name, estimator in asked.items():
        for law_name, law in laws().items():
            site = Site("z", law)
            refusal = estimator.refusal(site)
            copies = estimator.copies(site) if refusal is None else 0
            found.append(Capability(name, law_name, refusal, copies))
    return found


_HEAD: Final = """# What serves what

Computed from what the estimators declare: `python -m amortized.estimators.capabilities` writes this
page. A site that an estimator does not serve is refused before the first step, with a sentence that
says why and what would work instead.

"""


def markdown() -> str:
    """The page: the estimators' properties, and how many values each evaluates of each law."""
    known = {name: estimator_of(name) for name in NAMES}
    lines = [
        "## Estimators",
        "",
        "| name | class | mean of the gradient | needs | copies in rows | "
        "sums over its plate later on | runs the guide twice |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, e in known.items():
        mean = f"biased: {e.bias}" if e.bias else "unbiased"
        answers = [_yes(e.in_rows), _yes(e.joint_copies), _yes(e.frozen)]
        cells = [f"`{name}`", f"`{e!r}`", mean, e.needs or "nothing", *answers]
        lines.append(f"| {' | '.join(cells)} |")
    columns = list(laws())
    lines += [
        "",
        "## Distributions",
        "",
        "Values of the site that one step evaluates; a dash where it is refused.",
        "",
        f"| estimator | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    cells_of: dict[str, list[str]] = {name: [] for name in known}
    for cell in capabilities(known):
        cells_of[cell.estimator].append(str(cell.copies) if cell.served else "-")
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, cells in cells_of.items()]
    return _HEAD + "\n".join(lines) + "\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    print(markdown(), end="")
