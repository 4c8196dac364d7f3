"""Names: every latent in both programs, each once, observed where it belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from amortized.checks.places import names_words, place, similar
from amortized.checks.report import Finding
from amortized.estimators.base import base_of
from amortized.programs.survey import Statement, Survey


def name_findings(guide: Survey, model: Survey) -> Iterator[Finding]:
    """All mistakes in the names of sites."""
    yield from _repeated(guide)
    yield from _repeated(model)
    yield from _plates_named_like_sites(guide, model)
    yield from _observed(guide, model)
    # what a program would have sampled after it raised is not known
    if guide.error is None:
        yield from _missing_in_guide(guide, model)
    if model.error is None:
        renamed = {} if guide.error else _renamed(guide, model)
        yield from _missing_in_model(guide, model, renamed.values())


def nothing_observed_findings(model: Survey, has_data: bool) -> Iterator[Finding]:
    """A model that is given data and looks at none of it."""
    if model.error is None and has_data and not any(s.observed for s in model.statements.values()):
        yield Finding(
            "warning",
            "nothing-observed",
            None,
            "the model",
            f"it is given data and observes nothing (its sites: {names_words(model.statements)})",
            "an observed site or a factor: without one the guide is fitted to the prior",
            "pass the data to the likelihood: pyro.sample(name, distribution, obs=x)",
        )


def _repeated(survey: Survey) -> Iterator[Finding]:
    for name in dict.fromkeys(survey.repeated):
        yield Finding(
            "error",
            "duplicate-site",
            name,
            place(survey.statements[name]),
            f"the {survey.side} samples it {survey.repeated.count(name) + 1} times",
            "one statement for each name",
            f"give every site its own name, for instance f'{name}_{{i}}' in a loop",
        )


def _plates_named_like_sites(guide: Survey, model: Survey) -> Iterator[Finding]:
    """Pyro has one name for the rows of a plate and for a site, and refuses the second one."""
    for survey in (model, guide):
        for name in survey.plates.keys() & survey.statements.keys():
            yield Finding(
                "error",
                "duplicate-site",
                name,
                place(survey.statements[name]),
                f"a plate of the {survey.side} has this name too, under which Pyro keeps its rows",
                "one name for each site and each plate",
                f"rename the plate, for instance pyro.plate('{name}_rows', len(x))",
            )


def _observed(guide: Survey, model: Survey) -> Iterator[Finding]:
    for name, statement in guide.statements.items():
        if statement.observed and statement.factor:
            if vars(_unit(statement)).get("has_rsample") is None:
                yield _factor(statement)
        elif statement.observed:
            yield Finding(
                "error",
                "observed-in-guide",
                name,
                place(statement),
                "the guide observes it",
                "observations in the model only",
                "take obs= out of the guide; to use the data there, feed them to a network",
            )
        elif name in model.statements and model.statements[name].observed:
            yield Finding(
                "error",
                "observed-latent",
                name,
                place(statement),
                "the guide samples it, but the model observes it",
                "guide sites that are latent in the model",
                "remove it from the guide, or the obs= from the model",
            )


def _factor(statement: Statement) -> Finding:
    return Finding(
        "error",
        "guide-factor",
        statement.name,
        place(statement),
        "a factor that does not say what draw it belongs to",
        "has_rsample=True or has_rsample=False",
        f"write pyro.factor({statement.name!r}, ..., has_rsample=True) if its draw is "
        "differentiable in the parameters, else has_rsample=False",
    )


def _unit(statement: Statement) -> object:
    fn = statement.fn
    while type(fn).__name__ != "Unit":
        fn = fn.base_dist
    return fn


def _missing_in_guide(guide: Survey, model: Survey) -> Iterator[Finding]:
    renamed = _renamed(guide, model)
    for name, statement in model.latents.items():
        if name in guide.statements:
            continue
        if _summed_out(statement):
            continue
        close = renamed.get(name)
        hint = f"did you mean {close!r} in the guide? " if close else ""
        instead = f", and has {close!r}, which the model does not sample" if close else ""
        computed = " (there it is a pyro.deterministic)" if close in model.deterministic else ""
        yield Finding(
            "error",
            "missing-in-guide",
            name,
            place(statement),
            "the model samples it, but the guide does not (it has "
            f"{names_words(guide.latents)}){instead}{computed}",
            "a guide site for every latent of the model",
            f"{hint}give the guide a pyro.sample({name!r}, ...); if it is data, observe it in "
            "the model with obs=, and pass the data"
            + (
                "; or let the model sum it out, infer={'enumerate': 'parallel'}"
                * _finite(statement)
            ),
        )


def _finite(statement: Statement) -> bool:
    return bool(getattr(base_of(statement.fn), "has_enumerate_support", False))


def _summed_out(statement: Statement) -> bool:
    """Whether the model sums a site out that the guide lacks."""
    return _finite(statement) and bool(statement.infer.get("enumerate"))


def _renamed(guide: Survey, model: Survey) -> dict[str, str]:
    """Latents of the model that the guide seems to sample under another name."""
    strangers = {name for name, s in guide.latents.items() if not s.auxiliary}
    strangers -= model.statements.keys()
    found: dict[str, str] = {}
    absent = {n: s for n, s in model.latents.items() if n not in guide.statements}
    for name in [n for n, s in absent.items() if not _summed_out(s)]:
        # the missing part of what is observed with obs_mask=
        whole = name.removesuffix("_unobserved")
        close = whole if whole in strangers else similar(name, strangers)
        if close is not None:
            found[name] = close
            strangers.discard(close)
    return found


def _missing_in_model(guide: Survey, model: Survey, known: Collection[str]) -> Iterator[Finding]:
    """``known`` are said to be a latent of the model under another name."""
    wanting = model.latents.keys() - guide.latents.keys()
    for name, statement in guide.latents.items():
        if name in model.statements or statement.auxiliary or name in known:
            continue
        close = similar(name, wanting)
        hint = f"did you mean {close!r}? " if close else ""
        computed = " (there it is a pyro.deterministic)" if name in model.deterministic else ""
        yield Finding(
            "error",
            "missing-in-model",
            name,
            place(statement),
            f"the guide samples it, but the model does not{computed} "
            f"(it has {names_words(model.latents)})",
            "guide sites that the model samples too",
            f"{hint}let the model draw it with pyro.sample({name!r}, ...), or mark it "
            "infer={'is_auxiliary': True}",
        )
