"""What one evaluation of the objective gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from amortized.breakdown import first_non_finite, site_table
from amortized.estimators.base import Cost, base_of
from amortized.programs.records import DataPlate, LatentSite, Run, Term
from amortized.programs.study import size_of
from amortized.surrogate.assemble import Assembled
from amortized.surrogate.costs import padded
from amortized.surrogate.totals import expectation
from amortized.surrogate.weights import Weight


@dataclass(frozen=True, eq=False)
class Estimate:
    """One evaluation of the objective, in nats, summed over data with the program's scales.

    ``loss = kl_weight * kl - reconstruction`` under the ELBO; its gradient is the estimate. The
    parts are computed on demand, detached: ``elbo = reconstruction - kl``, whatever the weight and
    the objective. ``costs`` is what each site that owes a surrogate was charged.
    """

    loss: Tensor
    run: Run
    data: DataPlate
    kl_weight: Weight = 1.0
    costs: list[tuple[LatentSite, Cost]] = field(default_factory=list)
    is_elbo: bool = True
    """Whether the loss is minus the ELBO, up to one weight of the KL; else another bound's."""
    on_data: bool = True
    """Whether the run is of the guide on the data, so that it has an ELBO."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """What ``"model"`` and ``"guide"`` minimize, where that is not the same."""

    @property
    def elbo(self) -> Tensor:
        """The value of the evidence lower bound, whatever the objective."""
        if not self.is_elbo:
            return self.reconstruction - self.kl
        if not isinstance(self.kl_weight, Tensor) and self.kl_weight == 1.0:
            return -self.loss.detach()
        return self.reconstruction - self.kl

    @cached_property
    def reconstruction(self) -> Tensor:
        """The expected log-probability of what was observed, factors included."""
        if not self.is_elbo:
            terms = [t for t in self.run.terms if t.role == "likelihood"]
            parts = [expectation(term, self.run) for term in terms]
            return torch.stack(parts).sum() if parts else torch.zeros_like(self.loss)
        return self.kl_weight * self.kl - self.loss.detach()

    @cached_property
    def kl(self) -> Tensor:
        """E[log q - log p] over all latents, auxiliary ones included."""
        parts = list(self.kl_per_site.values())
        return torch.stack(parts).sum() if parts else torch.zeros_like(self.loss)

    @cached_property
    def kl_per_site(self) -> dict[str, Tensor]:
        """E[log q - log p] of each latent of the guide."""
        found: dict[str, Tensor] = {}
        for term in self.run.terms:
            if term.role != "likelihood":
                share = -expectation(term, self.run)
                found[term.name] = found[term.name] + share if term.name in found else share
        return found

    @property
    def data_plate(self) -> str | None:
        """The plate whose elements are data points, if there is one."""
        return self.data.name

    @property
    def data_size(self) -> int | None:
        """How many data points the loss stands for; None: no data plate, the loss is a total."""
        return size_of(self.run.model, self.data.name)

    def non_finite_report(self) -> str:
        """One sentence naming the sites whose terms are NaN or infinite."""
        bad = [_where(t) for t in self.run.terms if not bool(t.value.isfinite().all())]
        places = ", ".join(bad) if bad else "no single term (their sum overflows)"
        first = first_non_finite(self.run)
        begins = "" if first is None else f" (first: {first})"
        return (
            f"the loss is {self.loss.item()}: non-finite log-probability at {places}{begins}; "
            "lower the learning rate, clip gradients (gradient_clip_val), use softplus instead of "
            "exp for scales, or check the data"
        )

    def site_table(self) -> str:
        """One row a site: its log-probability, how much of it is not finite, its values' range."""
        return site_table(self.run)


def estimated(
    run: Run,
    data: DataPlate,
    assembled: Assembled,
    kl_weight: Weight = 1.0,
    *,
    is_elbo: bool,
    on_data: bool = True,
) -> Estimate:
    """Of the bound of a run."""
    return Estimate(
        loss=-assembled.bound,
        run=run,
        data=data,
        kl_weight=kl_weight,
        costs=assembled.costs,
        is_elbo=is_elbo,
        on_data=on_data,
        parts={whose: -part for whose, part in assembled.parts.items()},
    )


def _where(term: Term) -> str:
    return f"site {term.name!r} of the {term.side}"


@dataclass(frozen=True, eq=False)
class LogWeights:
    """log p and log q of plain draws, in nats.

    Shapes: ``[particles, data]`` if ``per_datum``, else ``[particles]``. Per datum, the scale of a
    subsampled data plate is taken out; a total carries all scales of the program.
    """

    log_joint: Tensor
    log_guide: Tensor
    log_likelihood: Tensor
    per_datum: bool
    is_evidence: bool = True
    """False: the mean weight is not p(x), since a latent has no density in the guide (a Delta that
    is no transformed draw) or terms carry a scale that is not subsampling's."""


def log_weights_of(run: Run, data: DataPlate) -> LogWeights:
    """Sum a run's terms per particle and, if every term is in the data plate, per datum."""
    per_datum = data.name is not None and all(
        data.name in {name for name, _ in term.plates} for term in run.terms
    )
    sums = [
        _sum(run, [t for t in run.terms if t.role in roles], data.name if per_datum else None)
        for roles in (("likelihood", "prior"), ("guide",), ("likelihood",))
    ]
    return LogWeights(sums[0], -sums[1], sums[2], per_datum, _weighs_evidence(run))


def _weighs_evidence(run: Run) -> bool:
    latents = [r for r in run.guide.values() if not r.observed]
    points = [r for r in latents if type(base_of(r.fn)).__name__ == "Delta"]
    if points and not any(r.auxiliary for r in latents):
        return False
    records = (*run.guide.values(), *run.model.values())
    return all(abs(float(r.scale) - float(r.plate_scale)) < 1e-6 * r.plate_scale for r in records)


def stacked(parts: list[LogWeights]) -> LogWeights:
    """Particles that ran one by one, together."""
    return LogWeights(
        log_joint=torch.cat([part.log_joint for part in parts]),
        log_guide=torch.cat([part.log_guide for part in parts]),
        log_likelihood=torch.cat([part.log_likelihood for part in parts]),
        per_datum=all(part.per_datum for part in parts),
        is_evidence=all(part.is_evidence for part in parts),
    )


def _sum(run: Run, terms: list[Term], plate: str | None) -> Tensor:
    """The sum of terms, shape ``[particles]`` or ``[particles, data]``."""
    layout = run.layout
    rows = layout.num_particles
    size = (
        None
        if plate is None
        else next(r.sizes[plate][0] for r in run.model.values() if plate in r.sizes)
    )
    like = run.terms[0].value if run.terms else torch.zeros(())
    total = like.new_zeros((rows,) if size is None else (rows, size))
    for term in terms:
        value = term.value
        value = padded(value, layout.particle_dim)
        dims = dict(term.plates)
        if plate is None:
            value = value.expand(rows, *value.shape[1:]).reshape(rows, -1).sum(-1)
        else:
            record = run.model.get(term.name) if term.in_model else run.guide[term.name]
            size, full = record.sizes[plate] if record is not None else (1, 1)
            others = [d for d in range(-layout.nesting, 0) if d != dims[plate]]
            value = value.sum(others, keepdim=True) if others else value
            value = value.expand(rows, *value.shape[1:]).reshape(rows, size) * (size / full)
        total = total + value
    return total
