"""`compare_gradients`: which estimator is unbiased, and which has the least variance a second."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from amortized.checks.isolation import isolated, seed_torch
from amortized.compare.bias import bias_of, is_rare
from amortized.compare.candidates import Candidate, CandidateSpec, Pair, as_candidate, naming
from amortized.compare.draws import Sampler
from amortized.compare.groups import Group, Trained, trained
from amortized.compare.measure import (
    LEAST_DRAWS,
    Measured,
    Timed,
    measured,
    pace_of,
    prepared,
    seconds_a_draw,
)
from amortized.compare.moments import GroupSums, Interval
from amortized.compare.reference import Reference, ReferenceKind, reference_of
from amortized.compare.result import GradientComparison, GradientRow, unjudged
from amortized.errors import UsageError
from amortized.loss import VariationalLoss
from amortized.programs.run import Program

# how often a comparison of unbiased candidates flags any of its rows, at most
LEVEL: Final = 0.01
# of a logarithm: beyond it there is no end
_LARGE: Final = 100.0
# pairs of candidates that contradict each other, by name
_MOST_SAID: Final = 4


def compare_gradients(
    model: Program,
    guide: Program,
    batch: Any,
    candidates: Mapping[str, CandidateSpec],
    *,
    num_draws: int = 1000,
    budget_seconds: float | None = None,
    warmup_steps: int = 0,
    reference: ReferenceKind = "auto",
    parameters: Sequence[str] | str | None = None,
    seed: int | None = None,
) -> GradientComparison:
    r"""Measure the gradient estimates of several losses at the present parameters.

    For each candidate and group of parameters, over draws :math:`g` of the gradient of the loss
    (of minus the bound, summed over data with the program's scales, in nats):

    .. math::
        \text{bias} = \lVert E\,g - \nabla\mathcal L \rVert, \quad
        \text{variance} = \operatorname{tr} \operatorname{Cov} g, \quad
        \text{SNR} = \lVert E\,g \rVert / \sqrt{\text{variance}}, \quad
        \text{work} = \text{variance} \times \text{seconds}

    Groups are the model's parameters, the guide's, for several sites those of the guide that enter
    the law of one site only, and single parameters on request. The noise that the mean of
    draws has itself, variance over ``num_draws``, is taken out of the squared norm in the SNR,
    which is 0 where nothing is left: more draws tell small ratios apart.

    The reference is exact where enumeration of all finite sites leaves nothing to chance; else it
    is the mean of ten times as many draws of a loss that is right by construction, with finite
    sites enumerated and a score function with leave-one-out at others, whose error is part of z,
    p-value and interval. Candidates that declare no bias and contradict each other are named in the
    notes. Losses with other bounds have references of their own; a bound of Pyro's own, or a site
    without a score, has none but draws of a candidate, and rows get no verdict.

    Nothing is disturbed: parameters, buffers, generators, Pyro's store and the state of the given
    losses stay as they are.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: what both are called with: a tensor, a tuple or a dict.
        candidates: by name: a `VariationalLoss`, a loss of Pyro's, a mapping of estimators by site,
            or one estimator (or its name) for all sites.
        num_draws: of each candidate, at least 50.
        budget_seconds: of a clock; fewer draws are made where so many would last longer, of each
            candidate as many and at least 50, for half of it, and those of a long reference for the
            rest. ``num_draws`` of the result says how many, and that many give the same draws.
        warmup_steps: as many draws move what estimators remember before the first one counts.
        reference: ``"exact"`` refuses anything but enumeration; ``"long"`` does without it.
        parameters: names or globs of parameters that get rows of their own.
        seed: of all draws; default one that follows from the state of torch's generator.

    Raises:
        UsageError: a wrong argument, nothing to compare, no parameter, no exact reference.
        ProgramError: a program fails on the batch.
        NonFiniteError: a gradient that is not finite.
        AmortizedError: as the candidate's loss raises it, with the name of the candidate.

    >>> import amortized as am, pyro, pyro.distributions as dist
    >>> def model(): pyro.factor("f", (pyro.sample("b", dist.Bernoulli(0.3)) - 0.45) ** 2)
    >>> def guide(): pyro.sample("b", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.))))
    >>> found = compare_gradients(model, guide, (), {"arm": "arm", "disarm": "disarm"}, seed=0)
    >>> found.row("arm", "guide").flagged, found.how
    (False, {'the ELBO': 'exact, by enumeration'})
    """
    asked = _asked(parameters)
    _refuse(candidates, num_draws, budget_seconds, warmup_steps, reference, seed=seed)
    until = None if budget_seconds is None else time.perf_counter() + budget_seconds
    _refuse_choices(candidates)
    made = {name: as_candidate(name, spec) for name, spec in candidates.items()}
    pair = Pair(model, guide, batch)
    with isolated(model, guide):
        _seed(seed)
        streams = torch.randint(2**62, (2, len(made) + 1)).tolist()
        known = trained(pair, asked)
        samplers = {}
        for stream, (name, candidate) in zip(streams[0], made.items(), strict=False):
            seed_torch(stream)
            with naming(f"candidate {name!r}"):
                samplers[name] = prepared(candidate, pair, known, warmup_steps)
        count = num_draws if until is None else _affordable(made, samplers, num_draws, until)
        found = {}
        for stream, (name, candidate) in zip(streams[1], made.items(), strict=False):
            seed_torch(stream)
            with naming(f"candidate {name!r}"):
                found[name] = measured(candidate, samplers[name], pair, known, count)
        seed_torch(streams[1][-1])
        references = {
            target: reference_of(target, found, pair, known, reference, until=until)
            for target in dict.fromkeys(candidate.target for candidate in made.values())
        }
        seconds = seconds_a_draw(found)
    fewer = f"as many draws as {budget_seconds} s allow, of {num_draws} asked for"
    return _result(found, references, known, seconds, [fewer] if count < num_draws else [])


def _affordable(
    made: Mapping[str, Candidate], samplers: Mapping[str, Sampler], most: int, until: float
) -> int:
    """Draws of each candidate for half of the time that is left."""
    pace = sum(pace_of(candidate, samplers[name]) for name, candidate in made.items())
    left = until - time.perf_counter()
    return min(most, max(LEAST_DRAWS, int(left / 2 / pace)))


def _asked(parameters: Sequence[str] | str | None) -> list[str]:
    if parameters is None:
        return []
    names = [parameters] if isinstance(parameters, str) else list(parameters)
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"parameters={parameters!r}: expected names or globs, such as 'guide.*'")
    return names


def _refuse(
    candidates: object,
    num_draws: object,
    budget_seconds: object,
    warmup_steps: object,
    reference: object,
    *,
    seed: object,
) -> None:
    if not isinstance(candidates, Mapping) or not candidates:
        raise UsageError(
            f"candidates={candidates!r}: expected a dict of losses or estimators by name, such as "
            "{'disarm': 'disarm', 'pyro': pyro.infer.Trace_ELBO()}"
        )
    if type(num_draws) is not int or num_draws < LEAST_DRAWS:
        raise UsageError(
            f"num_draws={num_draws!r}: expected an int, at least {LEAST_DRAWS}, since intervals "
            "and p-values rest on the central limit theorem"
        )
    number = type(budget_seconds) in (int, float) and not math.isnan(float(str(budget_seconds)))
    if budget_seconds is not None and not (number and float(str(budget_seconds)) > 0):
        raise UsageError(f"budget_seconds={budget_seconds!r}: expected seconds above 0, or None")
    if type(warmup_steps) is not int or warmup_steps < 0:
        raise UsageError(f"warmup_steps={warmup_steps!r}: expected an int, at least 0")
    if reference not in ("auto", "exact", "long"):
        raise UsageError(f"reference={reference!r}: expected 'auto', 'exact' or 'long'")
    if seed is not None and type(seed) is not int:
        raise UsageError(f"seed={seed!r}: expected an int or None")


def _refuse_choices(candidates: Mapping[str, CandidateSpec]) -> None:
    """A loss that is to choose has only its defaults here, which nobody asked about."""
    for name, spec in candidates.items():
        recipes = spec.estimators.recipes if isinstance(spec, VariationalLoss) else None
        if (isinstance(spec, str) and spec == "auto") or (recipes is not None and recipes.auto):
            raise UsageError(
                f"candidate {name!r}: estimators='auto' is a choice that training makes by "
                "measuring, and no estimator; expected one to compare; choose first, with "
                "am.select_estimators(model, guide, batch), and compare what it returns"
            )


def _seed(seed: int | None) -> None:
    """All generators, which the caller has put back."""
    if seed is not None:
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)


def _result(
    measured: Mapping[str, Measured],
    references: Mapping[str, Reference],
    known: Trained,
    seconds: Mapping[str, Timed],
    about: list[str],
) -> GradientComparison:
    tests = len(measured) * len(known.groups)
    sums = {target: known.sums(reference.blocks) for target, reference in references.items()}
    judges = {target: reference.judges for target, reference in references.items()}
    rows = []
    for name, m in measured.items():
        pairs = zip(known.sums(m.blocks), sums[m.candidate.target], strict=True)
        for group, (found, reference) in zip(known.groups, pairs, strict=True):
            row = _row((name, group), found, reference, m, seconds[name], known=known, tests=tests)
            rows.append(row if judges[m.candidate.target] else unjudged(row))
    return GradientComparison(
        rows=rows,
        means={name: known.by_name(m.blocks.mean) for name, m in measured.items()},
        references={t: known.by_name(r.blocks.mean) for t, r in references.items()},
        how={target: r.how for target, r in references.items()},
        targets={name: m.candidate.target for name, m in measured.items()},
        sampling={name: m.sampler.reason for name, m in measured.items()},
        num_draws=next(iter(measured.values())).blocks.count,
        level=LEVEL,
        about=[*about, *_contradictions(measured, references, known)],
    )


def _contradictions(
    measured: Mapping[str, Measured], references: Mapping[str, Reference], known: Trained
) -> list[str]:
    """Pairs of candidates of one bound that declare no bias, and whose means are too far apart."""
    said = []
    for target, reference in references.items():
        fair = {n: known.sums(m.blocks) for n, m in measured.items() if _fair(m, target)}
        pairs = [] if reference.exact else [*itertools.combinations(fair, 2)]
        tests = len(pairs) * len(known.groups)
        for one, other in pairs:
            found = [bias_of(a, b) for a, b in zip(fair[one], fair[other], strict=True)]
            place = min(range(len(found)), key=lambda index: found[index].carried)
            if found[place].carried * tests < LEVEL:
                said.append(
                    f"candidates {one!r} and {other!r} declare no bias and contradict each other "
                    f"({known.groups[place].name}, z = {found[place].z:.1f}): one of them is biased"
                )
    more = len(said) - _MOST_SAID
    return said if more <= 0 else [*said[:_MOST_SAID], f"so do {more} other pairs of candidates"]


def product_interval(work: tuple[float, float, float], timed: Timed) -> Interval:
    """Of variance times seconds: errors of independent logarithms add as squares.

    Args:
        work: the product, and its ends were the seconds known.
        timed: the seconds.
    """
    value, low, high = work
    if value == 0.0 or timed.seconds == 0.0:
        return low, high
    pairs = zip((low, high), timed.interval, strict=True)
    away = [math.hypot(*map(_log, (a / value, b / timed.seconds))) for a, b in pairs]
    end = value * math.exp(away[1]) if away[1] < _LARGE else math.inf
    return value * math.exp(-away[0]), end


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -_LARGE


def _fair(measured: Measured, target: str) -> bool:
    return measured.candidate.target == target and not measured.candidate.bias


def _row(
    place: tuple[str, Group],
    found: GroupSums,
    reference: GroupSums,
    measured: Measured,
    timed: Timed,
    *,
    known: Trained,
    tests: int,
) -> GradientRow:
    bias = bias_of(found, reference)
    low, high = found.variance_interval()
    if is_rare(found):
        high = math.inf
    norm, seconds = float(found.mean.norm()), timed.seconds
    work = found.variance * seconds
    return GradientRow(
        candidate=place[0],
        group=place[1].name,
        size=found.elements,
        norm=norm,
        bias=bias.norm,
        bias_interval=bias.interval,
        z=bias.z,
        p_value=bias.p_value,
        flagged=bias.carried * tests < LEVEL,
        declared_bias=measured.candidate.bias,
        variance=found.variance,
        variance_interval=(low, high),
        snr=found.signal_to_noise,
        seconds=seconds,
        model_evaluations=measured.evaluations,
        peak_bytes=measured.peak_bytes,
        work=math.nan if found.unseen else work,
        work_interval=product_interval((work, low * seconds, high * seconds), timed),
        undecided="too few draws" if not bias.least * tests < LEVEL else "",
        worst=known.name_at(int(place[1].columns[bias.worst])),
    )
