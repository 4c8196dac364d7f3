"""What can be compared: a loss, ours or Pyro's, and one evaluation of its gradient."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, final

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor

from amortized.checks.gradients import gradients_aside
from amortized.errors import AmortizedError, EstimatorError, UsageError
from amortized.estimators.base import Estimator
from amortized.estimators.choice import Spec
from amortized.loss import VariationalLoss
from amortized.programs.batches import aliases, as_arguments
from amortized.programs.leaves import leaves_under
from amortized.programs.modules import buffers_aside, modules_of
from amortized.programs.run import Program

CandidateSpec = VariationalLoss | PyroELBO | Mapping[str, Spec] | Spec | None
"""What the caller gives: a loss, a mapping of estimators, or one estimator for all sites."""

THE_ELBO: Final = "the ELBO"
# what an evaluation of a candidate may fail with, so that others can go on
FAILURES: Final = (
    AmortizedError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    NotImplementedError,
    ArithmeticError,
)
# for the own parameters of estimators, in a warm-up
_LEARNING_RATE = 1e-2


@final
class Pair:
    """The programs on a batch."""

    def __init__(self, model: Program, guide: Program, batch: Any) -> None:
        self.model, self.guide, self.batch = model, guide, batch
        self.args, self.kwargs = aliases(*as_arguments(batch))

    def registered(self) -> list[Tensor]:
        """All parameters, of the programs and of Pyro's store, trained or not."""
        modules = modules_of(self.model, self.guide)
        named = pyro.get_param_store().named_parameters()
        own = (p for module in modules for p in module.parameters(recurse=False))
        return [*own, *(leaf for _, leaf in named)]


class Candidate(ABC):
    """A loss whose gradient is measured; its state is a copy."""

    #: the bound whose gradient is estimated, in words
    target: str

    @property
    @abstractmethod
    def bias(self) -> str:
        """Why the mean of the gradient is not the gradient of the bound; empty: it is."""

    @abstractmethod
    def prepare(self, pair: Pair, steps: int) -> None:
        """Makes the estimators, and moves what they remember by some steps; nothing else moves."""

    @abstractmethod
    def gradient(self, pair: Pair, leaves: Sequence[Tensor]) -> Tensor:
        """One draw of the gradient of the loss, shape ``[P]``; no state moves."""

    def quiet(self) -> AbstractContextManager[None]:
        """Without comparing copies, which the first evaluation did."""
        return nullcontext()

    @abstractmethod
    def model_evaluations(self, pair: Pair) -> int | None:
        """How often one draw evaluates the model, a datum; None: unknown."""


@final
class Ours(Candidate):
    """A `VariationalLoss`."""

    def __init__(self, loss: VariationalLoss) -> None:
        self.loss = loss
        self.target = THE_ELBO if loss.objective.additive else repr(loss.objective)
        self._backward: Backward | None = None

    @property
    def bias(self) -> str:
        """What its estimators say of themselves."""
        own = self.loss.estimators.by_site.values()
        return "; ".join(sorted({e.bias for e in own if isinstance(e, Estimator) and e.bias}))

    def prepare(self, pair: Pair, steps: int) -> None:
        """The own parameters of estimators are moved by Adam."""
        programs, loss = (pair.model, pair.guide), self.loss
        loss.warm_up(*programs, pair.batch)
        own = [p for p in loss.parameters() if p.requires_grad]
        self._backward = Backward(pair, loss)
        learns = own and loss.training and steps > 0
        optimizer = torch.optim.Adam(own, lr=_LEARNING_RATE) if learns else None
        for _ in range(steps):
            with buffers_aside(*programs):
                estimate = loss.estimate(*programs, pair.args, pair.kwargs)
                if optimizer is not None:
                    found = self._backward(estimate.loss, own)
                    for parameter, gradient in zip(own, found, strict=True):
                        parameter.grad = gradient
                loss.learn(estimate)
            if optimizer is not None:
                optimizer.step()

    def gradient(self, pair: Pair, leaves: Sequence[Tensor]) -> Tensor:
        """Without what estimators would learn of it."""
        backward = self._backward or Backward(pair, self.loss)
        with buffers_aside(pair.model, pair.guide):
            loss = self.loss.estimate(pair.model, pair.guide, pair.args, pair.kwargs).loss
            return flat(backward(loss, leaves), leaves)

    def quiet(self) -> AbstractContextManager[None]:
        """Without comparing copies."""
        return self.loss.looking("never")

    def model_evaluations(self, pair: Pair) -> int | None:
        """As `VariationalLoss.describe` counts them."""
        return self.loss.describe(pair.model, pair.guide, pair.batch).model_evaluations


@final
class Pyros(Candidate):
    """A loss of Pyro's."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        kind = type(loss).__name__
        if isinstance(loss, Trace_ELBO | TraceGraph_ELBO | TraceEnum_ELBO):
            self.target = THE_ELBO
        elif isinstance(loss, RenyiELBO):
            # its weights are those of the whole batch, so it is another bound than am.Renyi's
            self.target = f"{kind}(alpha={loss.alpha:g}, num_particles={loss.num_particles})"
        else:
            self.target = f"{kind}(num_particles={loss.num_particles})"

    @property
    def bias(self) -> str:
        """None is declared."""
        return ""

    def prepare(self, pair: Pair, steps: int) -> None:
        """Running means of baselines lie in Pyro's store."""
        for _ in range(steps):
            with buffers_aside(pair.model, pair.guide), gradients_aside(pair.registered()):
                self.loss.loss_and_grads(pair.model, pair.guide, *pair.args, **pair.kwargs)

    def gradient(self, pair: Pair, leaves: Sequence[Tensor]) -> Tensor:
        """By ``loss_and_grads``, which all of them have."""
        store = pyro.get_param_store()
        with (
            store.scope(store.get_state()),
            buffers_aside(pair.model, pair.guide),
            gradients_aside([*leaves, *pair.registered()]),
        ):
            self.loss.loss_and_grads(pair.model, pair.guide, *pair.args, **pair.kwargs)
            return flat([leaf.grad for leaf in leaves], leaves)

    def model_evaluations(self, pair: Pair) -> int | None:
        """The particles; unknown where copies are enumerated inside."""
        return None if isinstance(self.loss, TraceEnum_ELBO) else self.loss.num_particles


def as_candidate(name: str, spec: object) -> Candidate:
    """A copy of what the caller named.

    Raises:
        UsageError: it is nothing that can be compared, or its name is no text.
        EstimatorError: an estimator in it is unknown.
    """
    if not isinstance(name, str):
        raise UsageError(
            f"candidates: found {name!r} ({type(name).__name__}) as a name; expected text, such as "
            f"{str(name)!r}"
        )
    if isinstance(spec, VariationalLoss):
        return Ours(copy.deepcopy(spec))
    if isinstance(spec, PyroELBO):
        return Pyros(copy.deepcopy(spec))
    if spec is None or isinstance(spec, Estimator | Mapping | str):
        with naming(f"candidate {name!r}"):
            return Ours(VariationalLoss(estimators=spec))
    raise UsageError(
        f"candidate {name!r}: found {spec!r}; expected a loss such as am.VariationalLoss(...) or "
        "pyro.infer.Trace_ELBO(), a mapping of estimators by site, or one estimator"
    )


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Errors say whom they are about.

    Raises:
        AmortizedError: of the same class, with the name.
        EstimatorError: in the place of an error of Pyro or torch.
    """
    try:
        yield
    except AmortizedError as error:
        raise type(error)(f"{who}: {error}") from error
    except FAILURES as error:
        text = " ".join(str(error).split())[:300]
        raise EstimatorError(
            f"{who}: its gradient cannot be computed here "
            f"({type(error).__name__}: {text}); am.check(model, guide, batch) tells mistakes of "
            "the programs from those of a candidate"
        ) from error


def flat(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    """All gradients in one row, zeros where there is none."""
    pairs = zip(gradients, leaves, strict=True)
    filled = (torch.zeros_like(leaf) if g is None else g for g, leaf in pairs)
    return torch.cat([g.detach().reshape(-1) for g in filled])


@final
class Backward:
    """Gradients by a plain backward pass, as training takes them.

    With ``inputs=``, or by ``torch.autograd.grad``, a reentrant checkpoint silently has none.
    """

    def __init__(self, pair: Pair, loss: VariationalLoss) -> None:
        self._beside = [*pair.registered(), *loss.parameters()]
        self._met: list[Tensor] | None = None

    def __call__(self, loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """Of these leaves; what any leaf had before stays its gradient."""
        if not loss.requires_grad:
            return [None] * len(leaves)
        if self._met is None:  # tensors that nobody registered
            self._met = [*leaves_under(loss).values()]
        with gradients_aside([*leaves, *self._beside, *self._met]):
            loss.backward()
            return [leaf.grad for leaf in leaves]
