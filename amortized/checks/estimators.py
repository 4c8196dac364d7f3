"""The estimators that a loss chose, and those that it cannot give."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from amortized.checks.places import names_words, place, similar
from amortized.checks.refusals import split
from amortized.checks.report import Finding
from amortized.errors import AmortizedError
from amortized.estimators.base import Site
from amortized.loss import VariationalLoss
from amortized.programs.placement import unmasked
from amortized.programs.survey import Statement, Survey
from amortized.sites import escaped

# what Pyro and this package read in infer={...}
_KEYS = (
    "enumerate",
    "expand",
    "is_auxiliary",
    "is_observed",
    "num_samples",
    "obs",
    "prior",
    "tmc",
    "was_observed",
    "estimator",
    "baseline_input",
    "baseline",
)


def refusal_findings(loss: VariationalLoss, guide: Survey) -> Iterator[Finding]:
    """Sites that their estimator refuses, all of them."""
    particles = loss.objective.num_particles if loss.vectorize else 1
    for statement in guide.latents.values():
        dim = -len(statement.fn.batch_shape) - 1 if particles > 1 else None
        site = Site(statement.name, unmasked(statement.fn), particles, dim)
        infer = statement.infer
        try:
            choice = loss.estimators.recipes.choose(
                site, infer.get("estimator"), bool(infer.get("enumerate"))
            )
        except AmortizedError as error:
            yield _refused(statement, f"infer={{'estimator': ...}}: {error}", None)
            continue
        reason = choice.recipe.refusal(site)
        if reason is not None:
            found, advice = split(reason)
            yield _refused(
                statement, f"{choice.reason} asks for {choice.recipe!r}: {found}", advice
            )


def _refused(statement: Statement, found: str, advice: str | None) -> Finding:
    return Finding(
        "error",
        "estimator-unsupported",
        statement.name,
        place(statement),
        found,
        "an estimator that can serve the site",
        advice
        or "name one of the estimators, 'pathwise', 'score_function', 'enumerate', ..., or "
        "pass an instance",
    )


def key_findings(loss: VariationalLoss, names: set[str], model: Survey) -> Iterator[Finding]:
    """Keys of the mapping that name no latent site of the guide."""
    for key in loss.estimators.recipes.unmatched(names):
        if _observed(key, model):
            continue
        close = similar(key, names)
        yield Finding(
            "error",
            "estimator-key",
            None,
            f"estimators[{key!r}]",
            f"it matches no latent site of the guide, which has {names_words(names)}",
            "keys that name latent sites of the guide",
            f"did you mean {close!r}?" if close else "name a latent site, or drop the key",
        )


def idle_findings(loss: VariationalLoss, model: Survey, optional: bool) -> Iterator[Finding]:
    """Keys of the mapping that name what the model observes, in this batch at least."""
    for key in loss.estimators.recipes.unmatched(set()):
        if _observed(key, model):
            yield Finding(
                "note" if optional else "warning",
                "estimator-key",
                None,
                f"estimators[{key!r}]",
                "the model observes this site in this batch, so the estimator is not used",
                "keys that name latent sites of the guide",
                "name a latent site, or drop the key; nothing to do if other batches lack this "
                "observation",
            )


def _observed(key: str, model: Survey) -> bool:
    return key in model.statements and model.statements[key].observed


def asked_findings(loss: VariationalLoss, pair: tuple[Survey, Survey]) -> Iterator[Finding]:
    """Enumeration that a program asks for, and that does not happen; misspelt wishes."""
    guide, model = pair
    for name, statement in guide.latents.items():
        key = escaped(name)
        prior = model.statements.get(name)
        both = [s for s in (statement, prior) if s is not None]
        marked = [s for s in both if s.infer.get("enumerate")]
        if marked and key in loss.estimators.by_site:
            own = loss.estimators.by_site[key]
            if getattr(own, "label", None) != "enumerate":
                reason = loss.estimators.reasons.get(name)
                yield _not_enumerated(marked[0], f"its estimator is {own!r} ({reason})")
        for where in both:
            yield from _misspelt(where)


def _misspelt(statement: Statement) -> Iterator[Finding]:
    for key in statement.infer:
        if key in _KEYS or key.startswith("_"):
            continue
        close = next(iter(get_close_matches(key, _KEYS, 1, 0.75)), None)
        if close == "enumerate":
            yield _not_enumerated(statement, f"infer={{{key!r}: ...}} is read by nobody")
        elif close is not None:
            yield Finding(
                "warning",
                "estimator-key",
                statement.name,
                place(statement),
                f"infer={{{key!r}: ...}} is read by nobody",
                "a key that is known",
                f"did you mean {close!r}?",
            )


def _not_enumerated(statement: Statement, found: str) -> Finding:
    return Finding(
        "warning",
        "enumeration-not-happening",
        statement.name,
        place(statement),
        f"it asks to be enumerated, but {found}",
        "am.Enumerate(), or no mark",
        f"give {statement.name!r} am.Enumerate() in the mapping, or mark the guide's statement "
        "infer={'enumerate': 'parallel'}; or drop the mark",
    )
