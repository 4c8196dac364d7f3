"""One check, in the order in which later questions need earlier answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import pyro
import torch
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger
from torch import Tensor

from amortized.checks import gradients as grads
from amortized.checks.calls import Calls, left_dim_findings
from amortized.checks.consequences import by_cause
from amortized.checks.data import (
    non_finite_findings,
    observation_findings,
    own_copy,
    rows_of,
    wide_findings,
)
from amortized.checks.densities import density_findings, leaves_of_programs, log_density
from amortized.checks.detached import detached_findings
from amortized.checks.estimators import (
    asked_findings,
    idle_findings,
    key_findings,
    refusal_findings,
)
from amortized.checks.failures import Facts, data_causes, failure_findings
from amortized.checks.inventory import (
    Inventory,
    announced_findings,
    held_parameters,
    inventory,
    no_parameter_findings,
    remade_findings,
    strays_among,
    untrained_findings,
)
from amortized.checks.isolation import seed_torch
from amortized.checks.masks import mask_findings
from amortized.checks.names import name_findings, nothing_observed_findings
from amortized.checks.options import excused, may_vary
from amortized.checks.places import shortened
from amortized.checks.refusals import left_dim_failure, refusal
from amortized.checks.report import Finding, Report
from amortized.checks.shapes import shape_findings
from amortized.checks.structure import (
    Pair,
    branch_findings,
    noise_findings,
    structure_findings,
    writes,
    written_findings,
)
from amortized.checks.supports import support_findings
from amortized.checks.values import loss_findings
from amortized.errors import AmortizedError, EstimatorError, UsageError
from amortized.estimate import Estimate
from amortized.loss import VariationalLoss
from amortized.programs.batches import aliases, as_arguments, leaves_of
from amortized.programs.leaves import leaves_under
from amortized.programs.modules import modules_of
from amortized.programs.records import DataPlate
from amortized.programs.run import Program, values_of
from amortized.programs.survey import Survey, survey_guide, survey_model

# mistakes with which the loss can still be computed, validation off, to see who gets a gradient
_COMPUTABLE = ("data-nan", "data-inf", "data-support", "support-mismatch", "parameter-collision")
_LOOKS = 3


@final
class Examination:
    """Surveys a pair, asks the loss, and looks at gradients; to be run in isolation."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        batch: Any,
        loss: VariationalLoss,
        data: DataPlate,
        *,
        frozen: set[int],
        known: Sequence[Finding] = (),
    ) -> None:
        self.model, self.guide, self.loss = model, guide, loss
        self.leaves = leaves_of(batch)
        own = own_copy(batch)
        self.given = leaves_of(own)
        self.args, self.kwargs = aliases(*as_arguments(own))
        self.written: dict[tuple[str, str], bool] = {}
        self.rows = rows_of(self.leaves)
        self.data = data if data.size is None else replace(data, rows=self.rows or 1)
        self.frozen = frozen
        self.calls = Calls(modules_of(model, guide))
        self.findings = [*known]
        self.seed = int(torch.randint(2**62, ()))

    def report(self) -> Report:
        """Everything that was found."""
        seed_torch(self.seed)
        pair = self._survey()
        known = self._inventory(pair)
        self._programs(pair, known)
        errors = {f.code for f in self.findings if f.severity == "error"}
        raised = any(survey.error is not None for survey in pair)
        if not raised and errors <= set(_COMPUTABLE):
            self._loss(pair, validate=not errors)
        else:
            self._without_loss(pair, known, raised)
        sites = {name for survey in pair for name in survey.statements}
        return Report.of(by_cause(self.findings), len(sites), self._inventory(pair).count)

    def _survey(self, values: Mapping[str, Tensor] | None = None) -> Pair:
        with self.calls.recorded("guide"), writes("guide", self.given, {}, self.written):
            guide = survey_guide(self.guide, self.args, self.kwargs, values)
        drawn = {name: s.value for name, s in guide.latents.items()}
        with self.calls.recorded("model"), writes("model", self.given, drawn, self.written):
            return guide, survey_model(self.model, self.args, self.kwargs, guide, values)

    def _lenient(self, in_model: bool) -> Survey:
        seed_torch(self.seed)
        with pyro.validation_enabled(False):
            return self._survey()[in_model]

    def _inventory(self, pair: Sequence[Survey], reached: Collection[int] = ()) -> Inventory:
        return inventory(self.model, self.guide, self.loss, pair, self.frozen, reached)

    def _ask(self, answers: Iterable[Finding]) -> None:
        """Take findings in; a question that fails on an unusual program stops nobody."""
        try:
            for finding in answers:
                self.findings.append(finding)
        except Exception as error:
            self.findings.append(_unanswered(error))

    def _programs(self, pair: Pair, known: Inventory) -> None:
        """What the programs say, without asking the loss."""
        guide, model = pair
        facts = Facts(self.leaves, known.dtype, self._lenient)
        for survey in pair:
            self._ask(failure_findings(survey, facts))
        self._ask(name_findings(guide, model))
        self._ask(nothing_observed_findings(model, bool(self.leaves)))
        self._ask(support_findings(guide, model))
        self._ask(shape_findings(guide, model, self.rows, self.data))
        self._ask(mask_findings(guide, model))
        self._ask(observation_findings(model))
        self._ask(announced_findings(self.model, self.guide, pair))
        if guide.error is None and model.error is None:
            self._ask(wide_findings(self.leaves, known.dtype))
            self._ask(written_findings(self.written))
            self._ask(structure_findings(pair, self._survey, self.seed))

    def _loss(self, pair: Pair, validate: bool) -> None:
        """What the loss and its gradient say."""
        before, held = dict(self.calls.dims), held_parameters(self.model, self.guide)
        # elsewhere than the surveys, so that equal draws tell of a seed inside the programs
        seed_torch(self.seed ^ 1)
        try:
            estimate = self._estimate(validate)
        except Exception as error:
            self._refused(error, pair, before)
            return
        reached = leaves_under(estimate.loss)
        known = self._inventory(pair, reached)
        self._ask(asked_findings(self.loss, pair))
        self._ask(idle_findings(self.loss, pair[1], self._optional()))
        self._ask(left_dim_findings(self.calls.suspects(before)))
        # estimators have leaves of their own; surveys saw branches that this run did not take
        theirs = {*leaves_of_programs(estimate.run), *leaves_under(log_density(pair))}
        self._untrained({k: leaf for k, leaf in reached.items() if k in theirs}, known, pair)
        self._ask(remade_findings(held, held_parameters(self.model, self.guide)))
        self._ask(self._unreached(reached, known, estimate))
        if validate:
            self._ask(self._branches(estimate, pair))
            self._ask(self._values(estimate, known))
        if not self._has_error():
            self._ask(detached_findings(self.model, self.args, self.kwargs, estimate, self.seed))

    def _estimate(self, validate: bool = True) -> Estimate:
        with self.calls.recorded(), pyro.validation_enabled(validate), torch.enable_grad():
            return self.loss.estimate(
                self.model, self.guide, self.args, self.kwargs, data=self.data
            )

    def _branches(self, estimate: Estimate, pair: Pair) -> Iterator[Finding]:
        """Sites that come and go without a latent's leave, and noise that never changes."""
        run = estimate.run
        if not run.layout.axes and run.layout.num_particles == 1:
            yield from noise_findings(run, pair[0])
            values, ran = values_of(run), [*run.guide, *run.model]
            yield from branch_findings(ran, pair, lambda: self._survey(values))

    def _values(self, estimate: Estimate, known: Inventory) -> Iterator[Finding]:
        """A loss that is not finite, with the data as its cause where they are; else gradients."""
        bad = [*loss_findings(estimate)]
        if not bad:
            yield from self._gradients(estimate, known)
            return
        causes = [*non_finite_findings(self.leaves)]
        if not any(f.code in ("data-nan", "data-inf") for f in self.findings):
            yield from causes or bad

    def _refused(self, error: Exception, pair: Pair, before: Mapping[int, int]) -> None:
        """What the loss refused, or what failed only there."""
        known = self._inventory(pair)
        new = [*refusal_findings(self.loss, pair[0])]
        if isinstance(error, EstimatorError):
            new += key_findings(self.loss, set(pair[0].latents), pair[1])
        if not new or not isinstance(error, EstimatorError | UsageError):
            new += self._failed(error, pair, known, before)
        taken = {(f.code, f.site) for f in self.findings}
        new = [replace(f, error=f.error or error) for f in new]
        self.findings += [f for f in new if (f.code, f.site) not in taken]
        self._untrained(leaves_under(log_density(pair)), known, pair)

    def _failed(
        self, error: Exception, pair: Pair, known: Inventory, before: Mapping[int, int]
    ) -> list[Finding]:
        suspects = self.calls.suspects(before)
        if any(f.code == "structure-varies" for f in self.findings):
            return []  # model and guide chose differently this time
        if isinstance(error, AmortizedError):
            finding = refusal(error)
            extra = "extra dims on the left" in str(error)
            if extra or (finding.code == "erased-axes" and suspects):
                return [left_dim_failure(error, suspects, self.calls)]
            return [finding]
        if self._has_error():
            return []  # most likely a consequence of what is known already
        found = [*density_findings(pair, known.dtype)]
        found = found or [*data_causes(error, self.leaves, known.dtype)]
        return found or [left_dim_failure(error, suspects, self.calls)]

    def _has_error(self) -> bool:
        return any(f.severity == "error" for f in self.findings)

    def _without_loss(self, pair: Pair, known: Inventory, raised: bool) -> None:
        """What can be said of estimators and networks where the loss cannot be computed."""
        guide, model = pair
        self._ask(refusal_findings(self.loss, guide))
        if guide.error is None:
            self._ask(key_findings(self.loss, self._latents(guide), model))
        self._ask(idle_findings(self.loss, model, self._optional()))
        self._ask(asked_findings(self.loss, pair))
        if not raised:
            self._untrained(leaves_under(log_density(pair)), known, pair)

    def _latents(self, guide: Survey) -> set[str]:
        """The names of the guide's latents, over a few runs where keys are left over."""
        names = set(guide.latents)
        for _ in range(_LOOKS):
            if self.loss.estimators.recipes.unmatched(names):
                names |= set(survey_guide(self.guide, self.args, self.kwargs).latents)
        return names

    def _untrained(self, reached: Mapping[int, Tensor], known: Inventory, pair: Pair) -> None:
        strays = strays_among(reached, known, self.leaves.values())
        # of two parameters of one name, which is said, the store keeps one
        for announced in (a for survey in pair for a in survey.announced):
            if announced.offered is not announced.leaf:
                strays.pop(id(announced.offered), None)
        programs = (self.model, self.guide)
        self._ask(untrained_findings(strays, known, self.calls, programs))
        self._ask(no_parameter_findings(known, bool(strays)))

    def _unreached(
        self, reached: Mapping[int, Tensor], known: Inventory, first: Estimate
    ) -> Iterator[Finding]:
        """Parameters without a path to the loss, in this run and in a few more."""
        fitted = {id(tensor) for tensor in known.fitted.values()}
        paths = {(frozenset(fitted & reached.keys()), frozenset(first.run.model))}
        found = set(reached)
        if not fitted <= found:
            found |= grads.hidden_under(first.loss, known.fitted)
        for _ in range(_LOOKS):
            if fitted <= found:
                return
            again = self._estimate(validate=False)
            now = leaves_under(again.loss).keys()
            paths.add((frozenset(fitted & now), frozenset(again.run.model)))
            found |= now
        if len(paths) > 1:
            # latents decide who takes part: the rest may have its turn another time
            yield from grads.rare_findings(found, known)
        else:
            programs = (self.model, self.guide)
            others = excused(programs, self.args, self.kwargs, known, self.calls)
            if not first.loss.requires_grad and not fitted <= others:
                yield grads.nothing_learns_finding()
                return
            called = self.calls.modules.keys()
            yield from grads.no_gradient_findings(found, known, called, others)

    def _gradients(self, estimate: Estimate, known: Inventory) -> Iterator[Finding]:
        try:
            found = grads.gradients_of(estimate.loss, known.fitted)
        except RuntimeError as error:
            impossible = grads.backward_finding(error)
            if impossible is None:
                raise
            yield impossible
            return
        bad = [*grads.non_finite_gradient_findings(found)]
        yield from bad
        zero = [name for name in grads.zero_names(found) if not _of_the_prior(name, self.guide)]
        if zero and not bad and not _switched_off(estimate):
            yield from grads.zero_findings(self._still_zero(zero, known), known)

    def _still_zero(self, names: list[str], known: Inventory) -> list[str]:
        """The parameters whose gradient stays 0 for other noise, and then for other values."""
        # far away a value may leave its support, where torch clamps it and nothing moves
        for distance in (0.0, 0.05, 1.0, 1.0):
            if not names:
                break
            wanted = {name: known.fitted[name] for name in names}
            try:
                with grads.moved(known.fitted.values(), distance):
                    found = grads.gradients_of(self._estimate(validate=False).loss, wanted)
            except Exception:  # other values may be impossible: then nothing is known
                return []
            names = grads.zero_names(found)
        return names

    def _optional(self) -> bool:
        return may_vary((self.model, self.guide), self.args, self.kwargs)


def _of_the_prior(name: str, guide: Program) -> bool:
    """Whether Pyro multiplies a parameter with the prior's mean alone, which often is 0."""
    kind = AutoHierarchicalNormalMessenger
    return isinstance(guide, kind) and name.startswith("guide.weights.")


def _unanswered(error: Exception) -> Finding:
    return Finding(
        "note",
        "check-failed",
        None,
        "the check",
        f"a question of it failed on this pair: {type(error).__name__}: {shortened(str(error))}",
        "programs that it understands",
        "this does not concern training; everything else was looked at",
        error,
    )


def _switched_off(estimate: Estimate) -> bool:
    """Whether a term is scaled or masked away, as in a warm-up that starts at 0."""
    records = (*estimate.run.guide.values(), *estimate.run.model.values())
    return any(_nothing(r.scale) or _nothing(r.mask) for r in records)


def _nothing(factor: Any) -> bool:
    return factor is not None and not bool(torch.as_tensor(factor).any())
