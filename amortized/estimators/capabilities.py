"""Which estimator serves which distribution, computed from what estimators say of themselves.

The same declarations refuse a site at its first step, fill the page ``docs/capabilities.md`` and
choose the cells of the laws, so the three cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyro.distributions as dist
import torch
from torch.distributions import Distribution

from amortized.estimators.base import Estimator, Site, TorchNoise, beside_weights
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


@dataclass(frozen=True)
class Setting:
    """What a site may stand in, beyond its distribution, and who does not serve that."""

    name: str
    refusal: Callable[[Estimator], str | None]
    """Why an estimator does not, as a clause; None: it does."""


def settings() -> list[Setting]:
    """Objectives by what they declare of themselves, then structures of programs.

    >>> [s.name for s in settings() if s.refusal(estimator_of("enumerate"))]
    ['samples as data', 'a later term outside its plate']
    """
    return [
        Setting("a sum of terms", _nothing),
        Setting("draws weighted by each other", beside_weights),
        Setting("samples as data", _no_sites),
        Setting("a later term outside its plate", _apart),
        Setting("a prior that depends on a later site", _closed_form),
        Setting("a mask inside its event", _relaxes),
        Setting("a guide that is random elsewhere", _again),
    ]


def _nothing(estimator: Estimator) -> str | None:
    return None


def _no_sites(estimator: Estimator) -> str | None:
    return "no gradient of a draw is taken, so there is nothing to estimate at a site"


def _apart(estimator: Estimator) -> str | None:
    if estimator.joint_copies:
        return None
    return "elements of the plate are weighted each for itself, and all stand at the same copy"


def _closed_form(estimator: Estimator) -> str | None:
    if estimator.kl != "analytic":
        return None
    return "its KL in closed form would depend on what is not drawn yet"


def _relaxes(estimator: Estimator) -> str | None:
    for law in laws().values():
        site = Site("z", law)
        if estimator.refusal(site) is None:
            with _preserved(), torch.no_grad():
                ordinary = estimator.draw(site, TorchNoise()).ordinary
            return None if ordinary is None else "a masked law has no density at relaxed values"
    return None


def _again(estimator: Estimator) -> str | None:
    return "it runs the guide twice, which has to give the same" if estimator.frozen else None


@contextmanager
def _preserved() -> Iterator[None]:
    """Around draws that nobody is to notice."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


_HEAD: Final = """# What serves what

Computed from what the estimators declare: `python -m amortized.estimators.capabilities` writes this
page. A site that an estimator does not serve is refused before the first step, with a sentence that
says why and what would work instead.

"""


_SETTINGS: Final = (
    "Objectives by what they declare: sums of terms (`additive`), bounds whose draws are weighted "
    "by each other, and those that take samples as data (`site_estimators = False`). Then what a "
    "site may stand in. A dash where it is refused, for the reason below."
)


def markdown() -> str:
    """The page: the estimators' properties, and how many values each evaluates of each law."""
    known = {name: estimator_of(name) for name in NAMES}
    lines = [
        "## Estimators",
        "",
        "| name | class | mean of the gradient | needs | copies in rows | runs the guide twice |",
        "|---|---|---|---|---|---|",
    ]
    for name, e in known.items():
        mean = f"biased: {e.bias}" if e.bias else "unbiased"
        answers = [_yes(e.in_rows), _yes(e.frozen)]
        cells = [f"`{name}`", f"`{e!r}`", mean, e.needs or "nothing", *answers]
        lines.append(f"| {' | '.join(cells)} |")
    lines = [*lines, *_by_law(known), "", *_by_setting(known)]
    return _HEAD + "\n".join(lines) + "\n"


def _by_law(known: Mapping[str, Estimator]) -> list[str]:
    columns = list(laws())
    lines = [
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
    return lines + [f"| `{name}` | {' | '.join(cells)} |" for name, cells in cells_of.items()]


def _by_setting(known: Mapping[str, Estimator]) -> list[str]:
    columns = settings()
    lines = [
        "## Objectives and structures",
        "",
        _SETTINGS,
        "",
        f"| estimator | {' | '.join(s.name for s in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, e in known.items():
        cells = ["yes" if s.refusal(e) is None else "-" for s in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines.append("")
    for s in columns:
        reasons = sorted({r for r in map(s.refusal, known.values()) if r is not None})
        lines += [f"- {s.name}: {'; or '.join(reasons)}."] if reasons else []
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    print(markdown(), end="")
