"""The harness: fits the two programs, and keeps what belongs to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import pyro
import torch
from torch import Tensor

from amortized.description import Description
from amortized.errors import UsageError
from amortized.fit.callbacks import Callback, FitState, as_callbacks
from amortized.fit.data import as_batches
from amortized.fit.evaluate import Evaluation
from amortized.fit.history import History
from amortized.fit.loop import Loop, Plan
from amortized.fit.optimizer import DEFAULT_LR, GroupedOptimizer, LearningRate, OptimizerFactory
from amortized.fit.parameters import Bound
from amortized.fit.rng import seeded
from amortized.fit.step import Stepper
from amortized.loss import VariationalLoss
from amortized.programs.records import DataPlate


@final
class SVI:
    """Stochastic variational inference: fits a model and its guide together.

    The pair owns its parameters. Modules are trained in place, as in torch; what a program declares
    with ``pyro.param`` lives in a store of this object's own, and Pyro's global store is neither
    read nor written. The loss is copied, so that one loss can serve many pairs.

    All numbers are in nats per data point: divided by the full size of the data plate. A program
    without one has totals instead.

    Args:
        model: the generative program, a function or a module.
        guide: the program of the approximate posterior, with the same arguments.
        loss: the objective and its estimators; by default ``VariationalLoss()``.
        lr: a learning rate, or one each for ``"model"``, ``"guide"`` and ``"estimators"``; None
            leaves it to the optimizer.
        optimizer: called with torch parameter groups: a class, or a ``functools.partial`` of one.
        data_plate: the plate whose elements are data points, by name, or a `DataPlate` with the
            size of the data set; by default the sole outermost plate that holds observations.
        validate: Pyro's checks at every step, not only at the first (a third slower).

    Raises:
        UsageError: an argument of another kind.
        ProgramError: the programs hold parameters that Pyro would mix up.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
    >>> svi = SVI(model, guide, lr=0.05)
    >>> x = torch.full((64,), 3.0)
    >>> history = svi.fit(x, max_epochs=200, seed=0, progress=False)
    >>> svi.params()["loc"].round(decimals=1)
    tensor(3.)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: VariationalLoss | None = None,
        *,
        lr: LearningRate = DEFAULT_LR,
        optimizer: OptimizerFactory = torch.optim.Adam,
        data_plate: str | DataPlate | None = None,
        validate: bool = False,
    ) -> None:
        for name, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise UsageError(f"{name}: found {type(program).__name__}; expected a Pyro program")
        if not isinstance(loss, VariationalLoss | None):
            raise UsageError(
                f"loss: found {type(loss).__name__}; expected am.VariationalLoss(...) (Pyro's own "
                "losses go with pyro.infer.SVI)"
            )
        # A copy, because an estimator's state belongs to one pair.
        self.loss = VariationalLoss() if loss is None else copy.deepcopy(loss)
        self._asked = data_plate if isinstance(data_plate, DataPlate) else DataPlate(data_plate)
        self._data = self._asked
        self._stepper = Stepper(
            model, guide, self.loss, GroupedOptimizer(optimizer, lr), validate=validate
        )
        self.model = Bound(model, self._stepper.parameters)
        self.guide = Bound(guide, self._stepper.parameters)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer with its named groups; None before the first step."""
        return self._stepper.optimizer.torch_optimizer

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Makes the parameters of this pair Pyro's current ones, for code that calls the programs.

        `model` and `guide` of this object do so by themselves.
        """
        with self._stepper.parameters.scope():
            yield

    def params(self) -> dict[str, Tensor]:
        """The values of what the programs declare with ``pyro.param``, by name: detached copies.

        They are in the constrained space; empty before the first step.
        """
        with self.scope():
            return {name: p.detach().clone() for name, p in pyro.get_param_store().items()}

    def describe(self, batch: Any) -> Description:
        """One row a site: its estimator, why, copies and plates; see `VariationalLoss.describe`."""
        self._stepper.warm_up(batch)
        with self.scope():
            return self.loss.describe(self._stepper.model, self._stepper.guide, batch)

    def step(self, batch: Any) -> float:
        """Takes one optimizer step and returns the loss per data point, in nats.

        A tensor is passed to the programs as ``(x,)``, a tuple as ``*batch``, a dict as
        ``**batch``. Where the data plate declares only the minibatch, pass
        ``data_plate=DataPlate(name, size)`` to the constructor, or use `fit`, which knows the size.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the parameters stay as they were.
        """
        return float(self._stepper.step(batch, self._data).values["loss"])

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 128,
        seed: int | None = None,
        callbacks: Iterable[Callback | Callable[[FitState], Any]] = (),
        progress: bool = True,
    ) -> History:
        """Trains on ``train``, validating on ``val`` after each epoch; may be called again.

        Data are a tensor, a numpy array, a tuple or dict of those, a Dataset or a DataLoader (which
        keeps its own batch size and order); the first dim counts data points. The size of ``train``
        scales every minibatch, so a short last one weighs right and global latents count once.
        Ctrl-C ends training and keeps what was learned.

        Args:
            train: data to learn from.
            val: held-out data; their bound is computed in eval mode with the same noise at each
                epoch, and scaled as the training data are.
            max_epochs: passes over ``train``.
            max_steps: optimizer steps, of this call.
            batch_size: data points a step; not for a DataLoader.
            seed: for shuffling and noise in this call; the global generators are restored after.
                None: they decide, and go on.
            callbacks: `Callback` objects, or functions called with the state after each epoch.
            progress: a live line on standard error, or a plain one now and then.

        Returns:
            `History`: a dict of lists, one float an epoch.

        Raises:
            UsageError: unfit data or options, or no end given.
            NonFiniteError: the loss became NaN or infinite, with epoch and step.
        """
        batches = as_batches(train, batch_size)
        if self._asked.size is None:
            self._data = DataPlate(self._asked.name, batches.size)
        plan = Plan(
            train=batches,
            val=None if val is None else as_batches(val, batch_size),
            data=self._data,
            max_epochs=max_epochs,
            max_steps=max_steps,
            callbacks=as_callbacks(callbacks),
            progress=progress,
        )
        with seeded(seed):
            return Loop(self._stepper, plan).run()

    def evaluate(
        self,
        test: Any,
        num_particles: int = 100,
        *,
        batch_size: int = 128,
        seed: int | None = None,
        max_rows: int = 8192,
    ) -> dict[str, float]:
        """The bound on held-out data and what it is made of, in nats per data point.

        ``elbo = reconstruction - kl`` are means over plain draws from the guide, in eval mode.
        ``log_evidence`` is the importance-weighted bound ``E log 1/K sum_k p(x, z_k) / q(z_k|x)``:
        it is at least the ELBO, and tends to ``log p(x)`` as K grows. It is absent with global
        latents or without a data plate, where a data point has no evidence of its own. Global
        latents are charged once over the training data, as in `fit`.

        Args:
            test: data as for `fit`.
            num_particles: K, draws for each data point.
            batch_size: data points at a time.
            seed: for the noise of this call; the global generators are restored after.
            max_rows: particles times data points at a time, which bounds memory.

        Returns:
            ``elbo``, ``reconstruction``, ``kl``, ``log_evidence`` where there is one,
            ``num_particles``, and ``per_datum`` (False: the numbers are totals).
        """
        batches = as_batches(test, batch_size)
        size = batches.size if self._data.size is None else self._data.size
        data = DataPlate(self._data.name, size)
        with seeded(seed):
            return Evaluation(
                self._stepper, data, num_particles=num_particles, max_rows=max_rows
            ).run(batches)

    def __repr__(self) -> str:
        """One line."""
        return f"SVI(steps={self._stepper.steps}, loss={self.loss!r})"
