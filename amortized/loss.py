"""One loss for every program: a drop-in ``pyro.infer.ELBO`` with an estimator per latent site."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.enum import get_importance_trace
from torch import Tensor, nn

from amortized.description import Description, describe_run
from amortized.errors import EstimatorError, UsageError
from amortized.estimate import Estimate, LogWeights, estimated, log_weights_of, stacked
from amortized.estimators.base import Noise, TorchNoise
from amortized.estimators.choice import Spec
from amortized.objectives.base import Objective, Reweighted
from amortized.objectives.elbo import ELBO
from amortized.programs.batches import aliases, as_arguments
from amortized.programs.records import DataPlate, Run, Sharing
from amortized.programs.registered import refuse_unregistered
from amortized.programs.run import Program
from amortized.programs.runner import Looks, Runner
from amortized.programs.study import size_of, undisturbed
from amortized.samples_as_data import Asked, weigh_samples
from amortized.sites import SiteEstimators
from amortized.surrogate.assemble import assemble, assemble_trees, averaged
from amortized.surrogate.bound import assemble_bound
from amortized.surrogate.outer import OuterScale, shared_plates
from amortized.surrogate.weights import Weight, Weights, weights_of

# a key may name a site that only some branches reach: look this often before refusing it
_LOOKS = 8


class VariationalLoss(nn.Module, PyroELBO):
    r"""A variational bound whose gradient is estimated per latent site, as the caller chooses.

    .. math:: \mathcal L(\theta, \phi) = E_{q_\phi}[\log p_\theta(x, z) - \log q_\phi(z \mid x)]

    The loss is minus the bound, in nats, summed over data with the program's own scales (Pyro's
    convention). It works with ``pyro.infer.SVI``, as ``loss(model, guide)`` with torch optimizers,
    and under `amortized.SVI`. It is an ``nn.Module``: the state and the parameters of estimators
    are its own, one copy per site, made when the site is first met; they move in training only.

    Args:
        objective: what is bounded; default ``ELBO()``.
        estimators: by site name or glob, tried in that order; or one for all random sites. A site
            that none matches takes ``infer={"estimator": ...}``, then ``infer={"enumerate": ...}``,
            then a default for its distribution. An instance is a recipe, copied for each site.
            ``"auto"``: `SVI.fit` chooses by measuring, see `select_estimators`; without it sites
            have their defaults.
        max_plate_nesting: at least this many plate dims are reserved (else found by a probe run).
        vectorize: evaluate copies and particles on extra left dims (fast); False evaluates copy by
            copy, for programs that cannot broadcast.
        layout: where copies of antithetic and control-variate sites lie. ``"axes"``: each site on a
            dim of its own, so copies of dependent sites multiply. ``"rows"``: on the rows of one
            dim, which add up; later sites are drawn anew on each row. ``"auto"``: axes, and rows
            where a site would be evaluated more than 64 times a datum. Objectives that are no sum
            of terms have axes only.

    Raises:
        UsageError: a wrong argument.
        EstimatorError: a key that matches no site, an estimator that cannot serve its site.
        ProgramError: names, plates or shapes of the programs do not fit, or copies are mixed.

    Unbiased whenever the estimators are; correct to first order only (do not differentiate twice).

    >>> VariationalLoss(ELBO(num_particles=2), {"z": "pathwise"})
    VariationalLoss(ELBO(num_particles=2, kl='sample'), {'z': Pathwise()})
    """

    def __init__(
        self,
        objective: Objective | None = None,
        estimators: Mapping[str, Spec] | Spec | None = None,
        *,
        max_plate_nesting: int | None = None,
        vectorize: bool = True,
        layout: Sharing = "auto",
    ) -> None:
        nn.Module.__init__(self)
        if layout not in get_args(Sharing):
            raise UsageError(f"layout={layout!r}: expected 'auto', 'axes' or 'rows'")
        self.objective = ELBO() if objective is None else objective
        if not isinstance(self.objective, Objective):
            raise UsageError(f"objective={objective!r}: expected an objective such as am.ELBO()")
        if not (self.objective.site_estimators or not estimators):
            raise EstimatorError(
                f"estimators={estimators!r}: {self.objective!r} takes samples as data: it "
                "differentiates log p and log q at constant values, so no gradient of a sample is "
                "estimated at any site; leave estimators= out, or use am.ELBO() or am.IWAE()"
            )
        several = self.objective.num_particles > 1 or self.objective.site_estimators
        if several and not self.objective.additive and not vectorize:
            # one particle has one copy only where no estimator of a site makes others
            raise UsageError(
                f"objective={objective!r} needs all particles at once, with all copies of their "
                "sites, and vectorize=False runs them one by one; use am.ELBO(), or "
                "am.Fold(network) around what cannot broadcast"
            )
        if layout == "rows" and not self.objective.additive:
            raise UsageError(
                f"layout='rows' under {self.objective!r}: copies lie in rows only under a sum of "
                "terms; leave layout out, or use am.ELBO()"
            )
        PyroELBO.__init__(
            self, num_particles=self.objective.num_particles, vectorize_particles=vectorize
        )
        self.estimators = SiteEstimators(estimators, weighted=not self.objective.additive)
        self.vectorize = vectorize
        self.layout: Sharing = layout
        self._runner = Runner(max_plate_nesting or 0)
        self._outer = OuterScale()
        self._checked_keys = False
        if self.objective.scheduled:
            self.register_buffer("steps", torch.zeros(()))
        else:
            self.steps = torch.zeros(())

    def __call__(self, model: Any, guide: Any) -> ELBOModule:
        """The pair as one module: ``loss(model, guide)(*args)`` is the differentiable loss."""
        return PyroELBO.__call__(self, model, guide)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound in nats, without gradients; no state moves."""
        with torch.no_grad():
            return self.estimate(model, guide, args, kwargs).loss.item()

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound as a scalar tensor in nats; its gradient is the estimate."""
        before = len(self.estimators.by_site)
        estimate = self.estimate(model, guide, args, kwargs)
        refuse_unregistered(estimate.loss, (model, guide, self))
        self.learn(estimate)
        made = list(self.estimators.by_site.values())[before:]
        if any(next(own.parameters(), None) is not None for own in made):
            warnings.warn(
                "estimators made parameters of their own in this call; an optimizer built before "
                "it does not train them: call loss.warm_up(model, guide, batch) first",
                stacklevel=2,
            )
        return estimate.loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound in nats; gradients are added to the parameters' ``.grad``."""
        estimate = self.estimate(model, guide, args, kwargs)
        self._announce()
        if estimate.loss.requires_grad:
            estimate.loss.backward(retain_graph=self.retain_graph)
        value = estimate.loss.item()
        if math.isfinite(value):
            self.learn(estimate)
        else:
            warnings.warn(estimate.non_finite_report(), stacklevel=2)
        return value

    def estimate(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        data: DataPlate | None = None,
        noise: Noise | None = None,
        kl_weight: Weight = 1.0,
    ) -> Estimate:
        """One evaluation of the objective: the loss and, on demand, its parts; no state moves.

        Args:
            model: the generative program.
            guide: the inference program.
            args: positional arguments of both.
            kwargs: named arguments of both.
            data: the data plate and the size of the data set, if the programs do not say.
            noise: where randomness comes from; default torch's generator.
            kl_weight: how often the terms of latents count, as in KL warm-up.
        """
        source = TorchNoise() if noise is None else noise
        inputs = (model, guide, args, kwargs)
        if isinstance(self.objective, Reweighted):
            asked = Asked(*inputs, data, source, kl_weight)
            found = weigh_samples(self.objective, asked, self._runner, self._outer)
        else:
            found = self._evaluate(*inputs, data=data, noise=source, kl_weight=kl_weight)
        if not self._checked_keys:
            self._check_keys(*inputs, source)
        return found

    def with_estimators(self, estimators: Mapping[str, Spec] | Spec | None) -> VariationalLoss:
        """The same objective and options with other estimators, whose state is new."""
        nesting = self._runner.min_nesting or None
        other = VariationalLoss(
            self.objective,
            estimators,
            max_plate_nesting=nesting,
            vectorize=self.vectorize,
            layout=self.layout,
        )
        other.steps.copy_(self.steps)
        return other.to(self.steps.device).train(self.training)

    @contextmanager
    def looking(self, looks: Looks) -> Iterator[None]:
        """When copies are compared: never while a step is captured, always while it is audited."""
        before, self._runner.looks = self._runner.looks, looks
        try:
            yield
        finally:
            self._runner.looks = before

    def learn(self, estimate: Estimate) -> None:
        """Moves the state of the estimators by what an estimate cost; in training only."""
        if self.training and torch.is_grad_enabled():
            for latent, cost in estimate.costs:
                latent.estimator.update(latent.draw, cost)
            self.estimators.advance()
            if self.objective.scheduled:
                self.steps.add_(1)

    def _evaluate(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        data: DataPlate | None,
        noise: Noise,
        kl_weight: Weight,
    ) -> Estimate:
        """The estimate of an objective whose sites have estimators."""
        options: dict[str, Any] = {
            "noise": noise,
            "choose": self.estimators.choose,
            "num_particles": self.objective.num_particles,
            "data": data,
            "closed_form": self.objective.analytic_kl,
        }
        objective = self.objective
        if not objective.additive:
            options["leaves"] = True
            run, plate = self._runner.run(model, guide, args, kwargs, **options)
            scale = self._outer.of(run, shared_plates(run), read=self._runner.looks != "never")
            assembled = assemble_bound(run, objective, noise, scale, kl_weight)
            return estimated(run, plate, assembled, kl_weight, is_elbo=False)
        if self.vectorize:
            sharing = self.layout if self.estimators.in_rows else "axes"
            run, plate = self._runner.run(model, guide, args, kwargs, sharing=sharing, **options)
            weights, charged = self._weights(run, plate, kl_weight)
            assembled = assemble(run, weights)
        else:
            trees, plate = self._runner.run_sequentially(model, guide, args, kwargs, **options)
            run = averaged(trees)
            weights, charged = self._weights(run, plate, kl_weight)
            assembled = assemble_trees(trees, weights)
        if charged is not None:
            assembled = replace(assembled, bound=assembled.bound - charged)
        return estimated(run, plate, assembled, kl_weight, is_elbo=not weights.by_site)

    def _weights(self, run: Run, data: DataPlate, kl_weight: Weight) -> tuple[Weights, Any]:
        """How often terms count, and what is charged for sites below their free bits."""
        if not self.objective.by_site:
            return Weights(kl_weight), None
        size = size_of(run.model, data.name) or 1
        return weights_of(run, self.objective, kl_weight, size, self.steps)

    def log_weights(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        num_particles: int,
        data: DataPlate | None = None,
    ) -> LogWeights:
        """log p and log q of plain draws, per particle and, where possible, per data point."""
        rounds, at_once = (1, num_particles) if self.vectorize else (num_particles, 1)
        parts = []
        for _ in range(rounds):
            run, plate = self._runner.run(
                model,
                guide,
                args,
                kwargs,
                noise=TorchNoise(),
                choose=None,
                num_particles=at_once,
                data=data,
            )
            parts.append(log_weights_of(run, plate))
        return stacked(parts)

    def warm_up(self, model: Program, guide: Program, batch: Any) -> None:
        """Run the pair once on a batch: makes parameters, estimators' copies, and all checks.

        Leaves random generators and module buffers as they were.
        """
        self._dry_run(model, guide, batch)

    def describe(
        self, model: Program, guide: Program, batch: Any, *, data: DataPlate | None = None
    ) -> Description:
        """One row a latent site: its estimator, why, copies, plates; printed as a table."""
        estimate = self._dry_run(model, guide, batch, data)
        return describe_run(estimate.run, self.objective, self.estimators.reasons, estimate.data)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Plain Pyro traces of one run, which the base class asks its children for."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _dry_run(
        self, model: Program, guide: Program, batch: Any, data: DataPlate | None = None
    ) -> Estimate:
        args, kwargs = aliases(*as_arguments(batch))
        with undisturbed(model, guide), torch.no_grad():
            return self.estimate(model, guide, args, kwargs, data=data)

    def _check_keys(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        noise: Noise,
    ) -> None:
        """Refuse a key that matches no site; a branch not taken yet gets a few more looks."""
        recipes, runner = self.estimators.recipes, self._runner
        unmatched = self.objective.unmatched
        with undisturbed(model, guide):
            for _ in range(_LOOKS):
                met = runner.sites | runner.observed
                if not (recipes.unmatched(met) or unmatched(met)):
                    break
                torch.rand(1)
                runner.look(model, guide, args, kwargs, noise)
        # semi-supervised programs observe a site in some batches and not in others
        met = runner.sites | runner.observed
        if recipes.unmatched(met):
            recipes.refuse_unmatched(runner.sites)
        if unmatched(met):
            raise UsageError(
                f"{self.objective!r}: the key {unmatched(met)[0]!r} of beta= or free_bits= matches "
                f"no latent site; the guide has {', '.join(map(repr, sorted(runner.sites)))}"
            )
        self._checked_keys = True

    def _announce(self) -> None:
        """Let Pyro's SVI see the estimators' own parameters, under a name that is only theirs."""
        if not self.estimators.learns:
            return
        store, number = pyro.get_param_store(), 0
        while True:
            name = f"amortized{number or ''}"
            taken = (f"{name}$$${key}" for key, _ in self.named_parameters())
            theirs = dict(zip(taken, self.parameters(), strict=True))
            if all(key not in store or store[key] is value for key, value in theirs.items()):
                break
            number += 1
        pyro.module(name, self)

    def extra_repr(self) -> str:
        """What was asked for."""
        recipes = self.estimators.recipes
        return f"{self.objective!r}, {'auto' if recipes.auto else recipes.by_pattern!r}"

    def __repr__(self) -> str:
        """One line, without the per-site copies."""
        return f"VariationalLoss({self.extra_repr()})"
