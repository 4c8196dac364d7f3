"""A small wrong program for every code of `am.check`, with the finding that it must get."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import scale
from torch import Tensor, nn

import amortized as am
from amortized.programs.records import DataPlate

X = torch.linspace(-1.0, 1.0, 6)


@dataclass
class Case:
    """A pair, what it is run on, and the finding."""

    code: str
    model: Any
    guide: Any
    batch: Any = field(default_factory=lambda: X.clone())
    severity: str = "error"
    site: str | None = None
    loss: am.VariationalLoss | None = None
    data_plate: str | DataPlate | None = None

    def report(self) -> am.Report:
        return am.check(
            self.model, self.guide, self.batch, loss=self.loss, data_plate=self.data_plate
        )


def model(x: Tensor) -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1), a z for each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    """z ~ N(slope x, 1)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 1.0))


def named(name: str, law: Callable[[Tensor], Any] | None = None, **infer: Any) -> Callable:
    """A guide of one site of a name and a law."""

    def program(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            fn = dist.Normal(slope * x, 1.0) if law is None else law(slope * x)
            pyro.sample(name, fn, infer=infer)

    return program


def prior(law: Any, **infer: Any) -> Callable:
    """A model whose latent has a law."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", law, infer=infer)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return program


def likelihood(law: Callable[[Tensor], Any], *, plate: int | None = None) -> Callable:
    """A model whose observations have a law."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", plate or len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", law(z), obs=x)

    return program


def network_guide(net: Callable[[Tensor], Tensor], announced: nn.Module | None = None) -> Callable:
    """z ~ N(net(x), 1)."""

    def program(x: Tensor) -> None:
        if announced is not None:
            pyro.module("net", announced)
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1) + slope * x, 1.0))

    return program


def twice(x: Tensor) -> None:
    guide(x)
    guide(x)


def observing_guide(x: Tensor) -> None:
    guide(x)
    pyro.sample("a", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def factor_guide(x: Tensor) -> None:
    guide(x)
    pyro.factor("f", torch.tensor(0.0))


def blind(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def other_plate(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 1.0))


def minibatch(rows: Tensor) -> Callable:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    return program


def minibatch_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x), subsample=torch.tensor([2, 3])):
        pyro.sample("z", dist.Normal(slope, 1.0))


def rowless(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def rowless_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 1.0))


def mixing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)


def switching(x: Tensor) -> None:
    model(x)
    if random.random() < 0.5:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def seeded(x: Tensor) -> None:
    pyro.set_rng_seed(0)
    guide(x)


def two_arguments(x: Tensor, y: Tensor) -> None:
    model(x + y)


def two_arguments_guide(x: Tensor, y: Tensor) -> None:
    guide(x)


def flattening() -> Case:
    net = nn.Sequential(nn.Unflatten(-1, (1, 1)), nn.Flatten(), nn.Linear(1, 1))

    def program(x: Tensor) -> None:
        pyro.module("decoder", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    law = named("z", lambda loc: dist.Normal(loc.unsqueeze(-1), 1.0).to_event(1))
    return Case("module-left-dims", program, law, loss=am.VariationalLoss(am.ELBO(3)))


def root_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x + (slope * slope).sqrt(), 1.0))


def overflowing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * 1e30, 1.0), obs=x)


def masked(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def filled_guide(x: Tensor) -> None:
    guide(x.nan_to_num())


def with_value(place: int, value: float) -> Tensor:
    x = X.clone()
    x[place] = value
    return x


def on_meta() -> Case:
    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1, device="meta")

        def forward(self, x: Tensor) -> None:
            network_guide(self.net)(x)

    decoder = nn.Linear(1, 1)

    def program(x: Tensor) -> None:
        decoder(x.unsqueeze(-1))
        model(x)

    return Case("devices-differ", program, Guide())


def collision() -> Case:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def program(x: Tensor) -> None:
        pyro.module("net", second)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(second(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    return Case("parameter-collision", program, network_guide(first, first))


def detached() -> Case:
    net = nn.Linear(1, 1)
    return Case("no-gradient", model, network_guide(lambda x: net(x).detach(), net), **WARNING)


def deaf(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.detach(), 1.0), obs=x)


def unregistered() -> Case:
    return Case("untrained-module", model, network_guide(nn.Linear(1, 1)), **WARNING)


def in_double() -> Case:
    net = nn.Linear(1, 1)
    return Case("data-dtype", model, network_guide(net, net), X.double())


WARNING: Any = {"severity": "warning"}
BERNOULLI = am.VariationalLoss(estimators={"z": "score_function"})
PARTICLES = am.VariationalLoss(am.ELBO(num_particles=3))

CASES: dict[str, Callable[[], Case]] = {
    "misspelt": lambda: Case("missing-in-guide", model, named("zz"), site="z"),
    "stranger": lambda: Case("missing-in-model", model, named("other"), site="other"),
    "twice": lambda: Case("duplicate-site", model, twice, site="z"),
    "observing": lambda: Case("observed-in-guide", model, observing_guide, site="a"),
    "sampled data": lambda: Case("observed-latent", model, named("x"), site="x"),
    "factor": lambda: Case("guide-factor", model, factor_guide, site="f"),
    "blind": lambda: Case("nothing-observed", blind, guide, **WARNING),
    "outside": lambda: Case("support-mismatch", prior(dist.Exponential(1.0)), guide, site="z"),
    "half": lambda: Case(
        "support-mismatch",
        model,
        named("z", lambda loc: dist.LogNormal(loc, 1.0)),
        site="z",
        **WARNING,
    ),
    "event": lambda: Case(
        "event-shape-mismatch",
        model,
        named("z", lambda loc: dist.Normal(loc.unsqueeze(-1), 1.0).to_event(1)),
        site="z",
    ),
    "undeclared": lambda: Case("undeclared-batch-dim", rowless, rowless_guide, site="z"),
    "column": lambda: Case(
        "broadcast-observation",
        likelihood(lambda z: dist.Normal(z.unsqueeze(-1), 1.0)),
        guide,
        site="x",
    ),
    "plate size": lambda: Case(
        "plate-size", likelihood(lambda z: dist.Normal(0.0, 1.0), plate=9), guide, site="x"
    ),
    "plate name": lambda: Case("plate-mismatch", model, other_plate, site="z"),
    "rows": lambda: Case(
        "subsample-mismatch", minibatch(torch.tensor([0, 1])), minibatch_guide, site="z"
    ),
    "data plate": lambda: Case("data-plate", model, guide, data_plate="images"),
    "negative scale": lambda: Case(
        "invalid-parameter", model, named("z", lambda loc: dist.Normal(loc, -1.0)), site="z"
    ),
    "arguments": lambda: Case("program-raises", two_arguments, guide),
    "mixing": lambda: Case("erased-axes", mixing, guide, site="x", loss=PARTICLES),
    "flattening": flattening,
    "switching": lambda: Case("structure-varies", switching, guide, site="y", **WARNING),
    "masked latent": lambda: Case(
        "mask-mismatch", prior(dist.Normal(0.0, 1.0).mask(X > 0)), guide, site="z", **WARNING
    ),
    "scaled": lambda: Case("scale-mismatch", scale(model, 0.5), guide, site="z", **WARNING),
    "seeded": lambda: Case("fixed-noise", model, seeded, site="z", **WARNING),
    "marked": lambda: Case(
        "enumeration-not-happening",
        prior(dist.Bernoulli(0.5)),
        named("z", lambda loc: dist.Bernoulli(logits=loc), enumerate="parallel"),
        site="z",
        loss=BERNOULLI,
        **WARNING,
    ),
    "a count marked in the model": lambda: Case(
        "missing-in-guide",
        prior(dist.Poisson(2.0), enumerate="parallel"),
        lambda x: None,
        site="z",
    ),
    "pathwise bit": lambda: Case(
        "estimator-unsupported",
        prior(dist.Bernoulli(0.5)),
        named("z", lambda loc: dist.Bernoulli(logits=loc)),
        site="z",
        loss=am.VariationalLoss(estimators={"z": "pathwise"}),
    ),
    "key": lambda: Case(
        "estimator-key", model, guide, loss=am.VariationalLoss(estimators={"code": "pathwise"})
    ),
    "Pyro's loss": lambda: Case("objective", model, guide, loss=pyro.infer.Trace_ELBO()),  # type: ignore
    "nothing to train": lambda: Case("no-parameters", model, lambda x: named_without_parameter(x)),
    "detached": detached,
    "detached latent": lambda: Case("detached-latent", deaf, guide, site="z"),
    "unregistered": unregistered,
    "one name": collision,
    "two devices": on_meta,
    "nan": lambda: Case("data-nan", model, filled_guide, with_value(2, torch.nan), site="x"),
    "inf": lambda: Case(
        "data-inf", model, lambda x: guide(x.clamp(-9, 9)), with_value(4, torch.inf), site="x"
    ),
    "double": in_double,
    "negative": lambda: Case(
        "data-support",
        likelihood(lambda z: dist.Exponential(z.exp())),
        guide,
        with_value(3, -2.0).abs() * torch.tensor([1, 1, 1, -1, 1, 1]),
        site="x",
    ),
    "masked": lambda: Case(
        "nan-behind-mask", masked, filled_guide, with_value(1, torch.nan), severity="note", site="x"
    ),
    "masked, but seen": lambda: Case(
        "nan-behind-mask", masked, guide, with_value(1, torch.nan), site="x"
    ),
    "empty": lambda: Case("data-empty", model, guide, X[:0]),
    "lengths": lambda: Case("data-lengths", two_arguments, two_arguments_guide, (X, X[:4])),
    "overflow": lambda: Case("non-finite-loss", overflowing, guide, site="x"),
    "root": lambda: Case("non-finite-gradient", model, root_guide),
}


def named_without_parameter(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))
