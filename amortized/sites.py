"""The estimators of a loss: one copy of a recipe for every latent site, with its state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from amortized.errors import EstimatorError, UsageError
from amortized.estimators.base import Estimator, Site, parameters_of
from amortized.estimators.choice import Recipes, Spec
from amortized.estimators.elements import support_moves
from amortized.estimators.running import complete


class SiteEstimators(nn.Module):
    """Chooses an estimator for a site when it is first met, and keeps it from then on."""

    def __init__(self, given: Mapping[str, Spec] | Spec | None, *, weighted: bool = False) -> None:
        """With recipes, and whether the objective weights draws by each other."""
        super().__init__()
        self._weighted = weighted
        self.recipes = Recipes(given)
        self.in_rows = any(recipe.in_rows for recipe in self.recipes.by_pattern.values())
        """Whether any site's copies may lie in rows."""
        self.by_site = nn.ModuleDict()
        self.reasons: dict[str, str] = {}
        self._families: dict[str, str] = {}
        self.learns = False
        """Whether any site's estimator has parameters of its own."""
        self.switches = 0
        """How often `switch` was called: what was captured before serves no longer."""

    def choose(self, site: Site, infer: Mapping[str, Any]) -> Estimator:
        """The site's estimator.

        Raises:
            EstimatorError: the recipe cannot serve the site, or the site changed its distribution.
        """
        key = escaped(site.name)
        if key not in self.by_site:
            self._make(key, site, infer)
        elif self._families[site.name] != site.family:
            raise EstimatorError(
                f"site {site.name!r}: this loss knows it as {self._families[site.name]}, and now "
                f"it is {site.family}; use one loss for each pair of programs, and "
                "other names for other distributions"
            )
        found = self.by_site[key]
        if not isinstance(found, Estimator):
            raise EstimatorError(f"site {site.name!r}: {found!r} is no estimator")
        # a first run may be without gradients, so this is asked again
        if found.scores and torch.is_grad_enabled() and support_moves(site.law):
            raise EstimatorError(
                f"site {site.name!r}: the support of its {site.family} moves with its parameters, "
                f"so a score does not have mean zero and {found!r} would be biased; use "
                "am.Pathwise(), or detach the bounds"
            )
        return found

    def advance(self) -> None:
        """One training step more, for every site: a branch that was not taken ages as well."""
        for own in self.by_site.values():
            if isinstance(own, Estimator):
                own.advance()

    def chosen(self) -> dict[str, Estimator]:
        """What measuring chose under ``"auto"``, by site."""
        return dict(self.recipes.by_pattern) if self.recipes.auto else {}

    def by_name(self) -> dict[str, Estimator]:
        """The estimator of each site that was met."""
        found = {name: self.by_site[escaped(name)] for name in self._families}
        return {name: own for name, own in found.items() if isinstance(own, Estimator)}

    def switch(self, chosen: Mapping[str, Estimator]) -> list[nn.Parameter]:
        """Other estimators for sites from now on: they are made when their site is next met.

        Returns:
            The parameters that nothing uses any more.
        """
        gone: list[nn.Parameter] = []
        self.switches += 1
        for name, recipe in chosen.items():
            self.recipes.by_pattern[name] = recipe
            if escaped(name) in self.by_site:
                gone += self.by_site.pop(escaped(name)).parameters()
            self._families.pop(name, None)
        known = [*self.recipes.by_pattern.values(), *self.by_site.values()]
        self.in_rows = any(isinstance(own, Estimator) and own.in_rows for own in known)
        self.learns = any(next(own.parameters(), None) is not None for own in self.by_site.values())
        return gone

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of sites that this loss has not met yet."""
        start = f"{prefix}by_site."
        sites = {k.removeprefix(start).split(".")[0] for k in state_dict if k.startswith(start)}
        unmet = sorted(sites - set(self.by_site))
        if unmet:
            raise UsageError(
                f"the state holds estimators of {unmet}, and this loss has not met these sites: "
                "call loss.warm_up(model, guide, batch) before load_state_dict"
            )
        complete(state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make(self, key: str, site: Site, infer: Mapping[str, Any]) -> None:
        choice = self.recipes.choose(site, infer.get("estimator"), bool(infer.get("enumerate")))
        reason = choice.recipe.refusal(site)
        if reason is not None:
            raise EstimatorError(
                f"site {site.name!r} ({choice.reason}) asks for {choice.recipe!r}: {reason}"
            )
        own = copy.deepcopy(choice.recipe).train(self.training)
        own.bias = own.bias_of(site, weighted=self._weighted)
        like = next((p for p in parameters_of(site.law) if p.is_floating_point()), None)
        if like is not None:
            own = own.to(device=like.device, dtype=like.dtype)
        self.by_site[key] = own
        self.in_rows = self.in_rows or own.in_rows
        self.learns = self.learns or next(own.parameters(), None) is not None
        self.reasons[site.name] = choice.reason
        self._families[site.name] = site.family


def escaped(name: str) -> str:
    """A site name as a key of an ``nn.ModuleDict``, which refuses dots and method names.

    >>> escaped("layer.z")
    'site:layer%2Ez'
    """
    return "site:" + name.replace("%", "%25").replace(".", "%2E")
