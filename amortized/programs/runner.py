"""Runs pairs of programs, and remembers per input signature what must be learned only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from amortized.estimators.as_data import AS_DATA
from amortized.estimators.base import Estimator, Noise, Site
from amortized.objectives.base import Observed
from amortized.programs.batches import signature_of
from amortized.programs.erasure import refuse_erased_axes
from amortized.programs.frozen import refuse_random_guides
from amortized.programs.handlers import Context
from amortized.programs.modules import modules_of
from amortized.programs.records import DataPlate, Layout, MoreRowsError, Run, Sharing
from amortized.programs.run import Program, run_pair, with_room
from amortized.programs.sequential import Tree, explore
from amortized.programs.simulation import refuse_one_for_many, simulated_run, stored_values
from amortized.programs.study import Study, identity, probe, undisturbed

# more signatures than any program has, and a bound for scripts that make a program at every step
_REMEMBERED = 256
# the runs of one structure at which its copies are compared
_LOOK_AGAIN = (0, 10, 100, 1_000, 10_000)

Choose = Callable[[Site, Mapping[str, Any]], Estimator]
Looks = Literal["never", "now and then", "always"]


class Runner:
    """Vectorized runs of a pair, with one probe per signature and one check per structure."""

    def __init__(self, min_nesting: int) -> None:
        self.min_nesting = min_nesting
        self.sites: set[str] = set()
        self.observed: set[str] = set()
        self.looks: Looks = "now and then"
        """When copies are compared again as a structure recurs."""
        self._studies: dict[Any, Study] = {}
        self._modules: dict[Any, tuple[Program, list[nn.Module]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start afresh: what was learned belongs to the programs."""
        return {"min_nesting": self.min_nesting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle."""
        Runner.__init__(self, state["min_nesting"])

    def study(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        noise: Noise,
        data: DataPlate | None = None,
    ) -> Study:
        """What is known of the pair on inputs of this signature; a probe run the first time."""
        key = self._key(model, guide, args, kwargs, data)
        study = self._studies.get(key)
        if study is None:
            wanted = data or DataPlate()
            study = probe(model, guide, args, kwargs, wanted, nesting=self.min_nesting, noise=noise)
            _keep(self._studies, key, study)
            self.sites |= study.sites
            self.observed |= study.observed
        return study

    def look(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        noise: Noise,
    ) -> None:
        """One more probe, for sites that only some runs reach."""
        found = probe(
            model, guide, args, kwargs, DataPlate(), nesting=self.min_nesting, noise=noise
        )
        self.sites |= found.sites

    def run(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        noise: Noise,
        choose: Choose | None,
        num_particles: int = 1,
        data: DataPlate | None = None,
        closed_form: bool = False,
        sharing: Sharing = "axes",
        leaves: bool = False,
    ) -> tuple[Run, DataPlate]:
        """One run of the pair, and the data plate by name.

        Raises:
            ProgramError: names, plates or shapes do not fit, or copies are mixed.
        """
        study = self.study(model, guide, args, kwargs, noise, data)
        plate = study.data if data is None else data.found(study.data.name)

        def attempt(room: int) -> tuple[Run, Context]:
            layout = Layout(room, num_particles, rows=study.rows.get(num_particles, 1))
            context = Context(layout, noise, choose, plate, sharing=sharing, leaves=leaves)
            context = replace(context, reads=self.looks != "never")
            return run_pair(model, guide, args, kwargs, context, closed_form), context

        def fits() -> tuple[Run, Context]:
            while True:
                try:
                    found, study.nesting = with_room(study.nesting, attempt)
                    study.rows.setdefault(num_particles, 1)
                    return found
                except MoreRowsError as more:
                    study.rows[num_particles] = more.rows

        if sharing != "axes" and choose is not None and num_particles not in study.rows:
            with undisturbed(model, guide), torch.no_grad():
                fits()  # how many rows there are is learned aside: draws are the same ever after
        run, context = fits()
        self.sites.update(latent.name for latent in run.latents)
        copies = run.layout.axes or num_particles > 1 or run.layout.rows > 1 or run.factors
        axes = (*run.layout.axes, *run.layout.spans)
        if (copies or run.direct) and self._looks_at(study, run, (num_particles, *axes)):
            refuse_random_guides(run)
            if copies:
                refuse_erased_axes(model, guide, args, kwargs, run, context)
        return run, plate

    def _looks_at(self, study: Study, run: Run, shape: tuple[Any, ...]) -> bool:
        """Whether a run is one of those of its structure at which copies are compared."""
        key = (tuple(run.guide), tuple(run.model), *shape)
        times = study.structures.get(key, 0)
        _keep(study.structures, key, times + 1)
        # weights that start at zero hide a mixture of copies: look again as they grow
        wanted = self.looks == "always" or times in _LOOK_AGAIN
        return wanted and self.looks != "never"

    def run_sequentially(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        noise: Noise,
        choose: Choose,
        num_particles: int = 1,
        data: DataPlate | None = None,
        closed_form: bool = False,
    ) -> tuple[list[Tree], DataPlate]:
        """A tree of runs for each particle, copy by copy, and the data plate by name."""
        study = self.study(model, guide, args, kwargs, noise, data)
        plate = study.data if data is None else data.found(study.data.name)

        def attempt(room: int) -> list[Tree]:
            context = Context(Layout(room), noise, choose, plate, reads=self.looks != "never")
            return [
                explore(model, guide, args, kwargs, context, closed_form)
                for _ in range(num_particles)
            ]

        trees, study.nesting = with_room(study.nesting, attempt)
        runs = [run for tree in trees for run in tree.runs()]
        if self.looks != "never":
            for run in runs:
                refuse_random_guides(run)
        for run in runs:
            if run.factors and self._looks_at(study, run, ("one by one",)):
                context = Context(run.layout, noise, choose, plate)
                refuse_erased_axes(model, guide, args, kwargs, run, context)
        self.sites.update(latent.name for tree in trees for latent in tree.run.latents)
        return trees, plate

    def simulate(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        noise: Noise,
        data: DataPlate | None = None,
        observed: Observed = None,
        stored: bool = False,
    ) -> tuple[Run, DataPlate]:
        """A run at values that the model drew, or that are stored; and the data plate by name.

        Raises:
            ProgramError: the model cannot simulate, or the guide cannot be given what it simulated.
            UsageError: no argument carries an observed site.
        """
        study = self.study(model, guide, args, kwargs, noise, data)
        plate = study.data if data is None else data.found(study.data.name)
        compare = self.looks != "never"

        def attempt(room: int) -> Run:
            context = Context(Layout(room), noise, data=plate)
            if not stored:
                return simulated_run(model, guide, args, kwargs, context, observed, compare=compare)
            values = stored_values(guide, model, args, kwargs, study.sites)
            held = dict.fromkeys(values, AS_DATA)
            held_context = replace(context, fixed=values, drawn_by=held)
            found = run_pair(model, guide, args, kwargs, held_context)
            refuse_one_for_many(found.guide)
            return found

        run, study.nesting = with_room(study.nesting, attempt)
        return run, plate

    def _modes(self, program: Program) -> tuple[bool, ...]:
        """Train or eval mode of the modules of a program."""
        key = identity(program)
        if key not in self._modules:
            _keep(self._modules, key, (program, modules_of(program)))
        return tuple(module.training for module in self._modules[key][1])

    def _key(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        data: DataPlate | None,
    ) -> Any:
        name = None if data is None else data.name
        return (
            identity(model),
            identity(guide),
            signature_of(args, kwargs),
            self._modes(model),
            self._modes(guide),
            name,
        )


def _keep(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """Remember, and forget the oldest when there is too much."""
    if key not in memory and len(memory) >= _REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = value
