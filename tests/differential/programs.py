"""Random small programs: a spec that prints, shrinks and can be pasted, and what it stands for.

A `Spec` is pure data. `build` turns it into a model, a guide, their leaf tensors and the arguments.
All numbers come from the spec's seed, so a failing spec is a complete reproducer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

# --- what a program can be made of ---------------------------------------------------------------

# plate -> dim, None for a loop over the plate; every plate has two elements
LAYOUTS: dict[str, dict[str, int | None]] = {
    "none": {},
    "one": {"a": -1},
    "nested": {"o": -2, "i": -1},
    "sequential": {"a": -1, "b": -1},
    "subsampled": {"s": -1},
    "loop": {"l": None},
}
SUBSAMPLED = {"s": (5, (1, 3)), "l": (3, (0, 1))}  # plate -> full size, indices

CONTINUOUS = ("normal", "lognormal", "normals")
SUPPORT = {"bernoulli": 2, "categorical": 3, "bernoullis": 4}  # joint over the event
EVENT = {"normals": 2, "bernoullis": 2}
FAMILIES = (*CONTINUOUS, *SUPPORT)

# of finite sites; "twice" has two samples and a moving average, "particles" is leave-one-out
# over the particles
SINGLE = ("score", "constant", "moving", "neural", "particles")
ESTIMATORS = ("enumerate", "loo", "twice", *SINGLE)


@dataclass(frozen=True)
class Site:
    """A latent. `where` of a mask or scale: "", "both", "model" or "guide"."""

    name: str
    family: str
    plates: tuple[str, ...] = ()
    guide_parents: tuple[str, ...] = ()
    model_parents: tuple[str, ...] = ()
    estimator: str = "pathwise"
    masked: str = ""
    scaled: str = ""
    auxiliary: bool = False  # in the guide only
    partial: bool = False  # half of the plate's elements are observed in the model

    @property
    def names(self) -> list[str]:
        """The names in the guide: one, or one for each turn of a loop."""
        turns = [f"{self.name}_0", f"{self.name}_1"] if looped(self.plates) else [self.name]
        return [f"{name}_unobserved" if self.partial else name for name in turns]

    @property
    def copies(self) -> int:
        if self.estimator == "enumerate":
            return SUPPORT[self.family]
        return 2 if self.estimator in ("loo", "twice") else 1

    @property
    def elements(self) -> int:
        return 2 ** len(self.plates)


@dataclass(frozen=True)
class Term:
    """What the model adds that is not a latent. A "branch" is Python control flow on a latent."""

    name: str
    kind: str  # "normal", "bernoulli", "factor", "branch"
    plates: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    masked: bool = False
    scaled: bool = False


@dataclass(frozen=True)
class Spec:
    layout: str = "none"
    sites: tuple[Site, ...] = ()  # in the guide's order
    model_order: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    num_particles: int = 1
    kl: str = "sample"
    vectorize: bool = True
    kl_weight: float = 1.0
    seed: int = 0

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)


def looped(plates: tuple[str, ...]) -> bool:
    return "l" in plates


# --- what is legal, and how much it costs --------------------------------------------------------


def ancestors(sites: Iterable[Site], names: Iterable[str]) -> list[Site]:
    """The named sites and all that they depend on in the guide."""
    by_name = {site.name: site for site in sites}
    found: dict[str, Site] = {}
    rest = list(names)
    while rest:
        site = by_name[rest.pop()]
        if site.name not in found:
            found[site.name] = site
            rest += site.guide_parents
    return list(found.values())


def may_depend(sites: Iterable[Site], parent: str, plates: tuple[str, ...]) -> bool:
    """Whether something in `plates` may use the value of `parent`.

    Copies made in parallel for the elements of a plate (enumeration) cannot be told apart outside
    of it. A single draw, joint draws of all elements (samples), and turns of a loop can.
    """
    return all(
        set(site.plates) <= set(plates) or looped(site.plates) or site.estimator != "enumerate"
        for site in ancestors(sites, [parent])
    )


def may_branch(sites: Iterable[Site], parent: str, num_particles: int) -> bool:
    """Whether Python may look at the value: one single draw of a finite site."""
    chain = ancestors(sites, [parent])
    single = num_particles == 1 and all(site.copies == 1 for site in chain)
    return single and any(s.name == parent and s.family not in CONTINUOUS for s in chain)


def copy_by_copy(spec: Spec) -> bool:
    """Whether a run for each copy can serve it: there dependence is execution order.

    After an enumerated site in a plate, nothing outside of that plate may come: it might depend.
    """
    order = {name: number for number, name in enumerate(spec.model_order)}
    for number, site in enumerate(spec.sites):
        if site.estimator == "enumerate" and not looped(site.plates):
            after = spec.sites[number:]
            first = min((order[s.name] for s in after if s.name in order), default=len(order))
            late = [spec.site(name) for name in spec.model_order[first:]]
            if any(set(site.plates) - set(each.plates) for each in (*after, *late, *spec.terms)):
                return False
    return True


def log_outcomes(
    sites: tuple[Site, ...], site: Site, num_particles: int, vectorize: bool = True
) -> float:
    """An upper bound on the log of the joint outcomes of what the estimator draws at the site."""
    if site.family in CONTINUOUS or site.estimator == "enumerate":
        return 0.0
    # copy by copy, everything after a site is drawn again for each of its copies
    before = ancestors(sites, site.guide_parents) if vectorize else sites
    width = math.prod(s.copies ** len(s.names) for s in before)
    draws = site.elements * width * site.copies * num_particles
    return draws * math.log(SUPPORT[site.family])


def log_exact(site: Site) -> float:
    """The log of the joint outcomes that the oracle goes through at the site."""
    return site.elements * math.log(SUPPORT.get(site.family, 1))


# --- from a spec to programs ---------------------------------------------------------------------


Values = dict[str, list[Tensor]]  # of each site, one value or one for each turn of a loop


@dataclass(frozen=True)
class Built:
    model: Callable[..., None]
    guide: Callable[..., None]
    params: dict[str, Tensor]
    args: tuple[Tensor]


class _Builder:
    """Holds a spec's numbers; `guide` and `model` are the programs."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.dims = LAYOUTS[spec.layout]
        self.generator = torch.Generator().manual_seed(spec.seed)
        self.params: dict[str, Tensor] = {}
        for site in spec.sites:
            self._leaves(f"q.{site.name}", site.family, site.guide_parents)
            if not site.auxiliary:
                self._leaves(f"p.{site.name}", site.family, site.model_parents)
        for term in spec.terms:
            self._leaves(f"p.{term.name}", term.kind, term.parents)
        self.observed = {term.name: self._observation(term) for term in spec.terms}
        self.x = self.randn(self.shape(tuple(self.dims)))

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        return 0.7 * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _leaves(self, prefix: str, family: str, parents: tuple[str, ...]) -> None:
        width = {"categorical": (3,), "normals": (2,), "bernoullis": (2,)}.get(family, ())
        shapes: dict[str, tuple[int, ...]] = {"base": width}
        if family in CONTINUOUS:
            shapes["scale"] = width
        shapes |= {parent: () for parent in parents}
        for name, shape in shapes.items():
            self.params[f"{prefix}.{name}"] = self.randn(shape).requires_grad_()

    def _observation(self, term: Term) -> list[Tensor]:
        values = [self.randn(self.shape(term.plates)) for _ in range(2)]
        return [(v > 0).to(v) if term.kind == "bernoulli" else v for v in values]

    def shape(self, plates: tuple[str, ...]) -> tuple[int, ...]:
        dims = {self.dims[name] for name in plates} - {None}
        return tuple(2 if dim in dims else 1 for dim in range(min(dims, default=0), 0))

    def made(self) -> dict[str, Any]:
        """The plates of one run of a program; entered as often as needed."""
        plates = {}
        for name, dim in self.dims.items():
            size, rows = SUBSAMPLED.get(name, (2, None))
            rows = None if rows is None else torch.tensor(rows)
            plates[name] = pyro.plate(name, size, subsample=rows, dim=dim)
        return plates

    def feature(self, value: Tensor, site: Site, plates: tuple[str, ...]) -> Tensor:
        """What others see of a value: one number per element of their own plates."""
        value = value.to(torch.float64)
        if site.family in EVENT:
            value = (value * torch.tensor([1.0, -0.6], dtype=value.dtype)).sum(-1)
        if site.family == "lognormal":
            value = value / (1 + value)
        for name in site.plates:
            if name not in plates and self.dims[name] is not None:
                value = value.sum(self.dims[name], keepdim=True)
        return torch.sin(value + 0.4)

    def linear(self, prefix: str, values: Values, of: Site | Term, turn: int) -> Tensor:
        """Parents and position in the plates, mixed; without event dims."""
        parents = of.parents if isinstance(of, Term) else of.guide_parents
        if isinstance(of, Site) and prefix.startswith("p."):
            parents = of.model_parents
        shape = self.shape(of.plates)
        total = 0.3 * torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
        total = total + 0.3 * turn
        for parent in parents:
            site, seen = self.spec.site(parent), values[parent]
            turns = seen[turn : turn + 1] if looped(site.plates) and looped(of.plates) else seen
            for value in turns:
                slope = self.params[f"{prefix}.{parent}"]
                total = total + slope * self.feature(value, site, of.plates)
        return total

    def law(self, prefix: str, family: str, linear: Tensor) -> Any:
        base = self.params[f"{prefix}.base"]
        scale = self.params.get(f"{prefix}.scale")
        if family in ("normal", "lognormal"):
            made = dist.Normal if family == "normal" else dist.LogNormal
            return made(base + linear, (0.5 * scale).exp())
        if family == "bernoulli":
            return dist.Bernoulli(logits=base + linear)
        slope = torch.tensor([0.5, -1.0, 0.8][: base.shape[-1]], dtype=base.dtype)
        vector = base + slope * linear.unsqueeze(-1)
        if family == "categorical":
            return dist.Categorical(logits=vector)
        if family == "bernoullis":
            return dist.Bernoulli(logits=vector).to_event(1)
        return dist.Normal(vector, (0.5 * scale).exp()).to_event(1)

    def mask(self, of: Site | Term, turn: int) -> Tensor:
        """Every second element is kept."""
        shape = self.shape(of.plates)
        return (torch.arange(math.prod(shape)) % 2 == 1 - turn).reshape(shape)

    def turns(self, plates: dict[str, Any], of: Site | Term) -> Iterable[int]:
        """The turns of the loop that a statement is in, or the only one."""
        return map(int, plates["l"]) if looped(of.plates) else [0]

    def around(self, plates: dict[str, Any], of: Site | Term, side: str, turn: int) -> ExitStack:
        """The plates, the scale and the masks of a statement."""
        stack = ExitStack()
        for name in of.plates:
            if self.dims[name] is not None:
                stack.enter_context(plates[name])
        if of.scaled in (True, "both", side):
            stack.enter_context(poutine.scale(scale=0.6))
        if of.masked in (True, "both", side):
            stack.enter_context(poutine.mask(mask=self.mask(of, turn)))
        if side == "guide" and isinstance(of, Site) and of.partial:
            stack.enter_context(poutine.mask(mask=~self.mask(of, turn)))
        return stack

    def guide(self, x: Tensor) -> None:
        plates, values = self.made(), {}
        for site in self.spec.sites:
            values[site.name] = []
            for turn in self.turns(plates, site):
                linear = self.linear(f"q.{site.name}", values, site, turn)
                if self.shape(site.plates) == tuple(x.shape):
                    linear = linear + 0.3 * x
                fn = self.law(f"q.{site.name}", site.family, linear)
                infer = {"is_auxiliary": True} if site.auxiliary else {}
                with self.around(plates, site, "guide", turn):
                    values[site.name].append(pyro.sample(site.names[turn], fn, infer=infer))

    def model(self, x: Tensor) -> None:
        plates, values = self.made(), {}
        for name in self.spec.model_order:
            site = self.spec.site(name)
            values[name] = []
            for turn in self.turns(plates, site):
                linear = self.linear(f"p.{name}", values, site, turn)
                fn, seen = self.law(f"p.{name}", site.family, linear), {}
                if site.partial:
                    dtype = torch.long if site.family == "categorical" else x.dtype
                    ones = torch.ones(self.shape(site.plates) + fn.event_shape, dtype=dtype)
                    seen = {"obs": ones, "obs_mask": self.mask(site, turn)}
                with self.around(plates, site, "model", turn):
                    full = site.names[turn].removesuffix("_unobserved")
                    values[name].append(pyro.sample(full, fn, **seen))
        for term in self.spec.terms:
            for turn in self.turns(plates, term):
                linear = self.linear(f"p.{term.name}", values, term, turn)
                high = term.kind == "branch" and bool(values[term.parents[0]][0].sum() > 0.5)
                with self.around(plates, term, "model", turn):
                    self.observe(term, linear, turn, high)

    def observe(self, term: Term, linear: Tensor, turn: int, high: bool) -> None:
        name = f"{term.name}_{turn}" if looped(term.plates) else term.name
        loc = linear + self.params[f"p.{term.name}.base"]
        if term.kind == "factor" or high:
            pyro.factor(f"{name}_high" if high else name, -((loc - 0.3) ** 2))
            return
        fn = dist.Bernoulli(logits=loc)
        if term.kind != "bernoulli":
            fn = dist.Normal(loc, torch.tensor(0.8, dtype=loc.dtype))
        pyro.sample(name, fn, obs=self.observed[term.name][turn])


def build(spec: Spec) -> Built:
    """The programs of a spec; the arguments are one tensor, in all plates of the layout."""
    builder = _Builder(spec)
    return Built(builder.model, builder.guide, builder.params, (builder.x,))
