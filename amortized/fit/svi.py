"""The harness: fits the two programs, and keeps what belongs to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pyro
import torch
from torch import Tensor

from amortized.checks.check import refuse_no_program
from amortized.description import Description
from amortized.errors import UsageError
from amortized.fit import checkpoint
from amortized.fit.alike import refuse_other_kinds
from amortized.fit.arguments import known_names, path_of, refuse_no_seed
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.checkpoint import Checkpoint
from amortized.fit.compiled.steps import Compile, compile_of
from amortized.fit.culprits import blamed_on_batch
from amortized.fit.data import as_batches
from amortized.fit.device import device_of
from amortized.fit.distributed import current_group
from amortized.fit.evaluating import evaluated
from amortized.fit.history import History
from amortized.fit.loggers import Logger
from amortized.fit.lone import lone_step
from amortized.fit.loop import Loop
from amortized.fit.optimizer import DEFAULT_LR, GroupedOptimizer, LearningRate, OptimizerFactory
from amortized.fit.parameters import Bound
from amortized.fit.plan import Plan, in_order, on_trial
from amortized.fit.precision import Precision, precision_of
from amortized.fit.recovery import Policy
from amortized.fit.resume import plate_and_choice, refuse_other_program
from amortized.fit.rng import preserved_rng, seeded
from amortized.fit.schedule import Interval, KLWeight, SchedulerFactory, schedule_of
from amortized.fit.selecting import adopt
from amortized.fit.shards import sharded
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
        device: where the pair is moved; ``"auto"`` takes a GPU if there is one, None leaves it.
        compile: ``"graph"`` captures the step at the second batch of each shape and replays it, bit
            for bit the same and three times as fast where networks are small; ``"inductor"`` has
            torch's compiler compile it, which takes seconds and needs a C++ compiler; ``"auto"``
            does what pays for itself in the steps to come; ``"off"`` runs the programs each time.
            Captured programs must do the same at every step: replays are compared with them at the
            start and now and then.
        precision: ``"bf16-mixed"`` computes linear layers, convolutions and attention in bfloat16;
            their results, samples and all log-probabilities are float32.

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

    @known_names
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
        device: str | torch.device | None = None,
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        mode = compile_of(compile, validate=validate)
        for name, program in (("model", model), ("guide", guide)):
            refuse_no_program(name, program)
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
            model,
            guide,
            self.loss,
            GroupedOptimizer(optimizer, lr),
            validate=validate,
            compile=mode,
            precision=precision_of(precision),
        )
        if device is not None:
            self._stepper.to(device_of(device))
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
        ``**batch``. Under ``torch.distributed`` each process passes its part of the batch, and the
        loss is that of all. Where the data plate declares only the minibatch, pass
        ``data_plate=DataPlate(name, size)`` to the constructor, or use `fit`, which knows the size.

        Raises:
            DataError: the batch holds values that the likelihood excludes, by row.
            NonFiniteError: the loss is NaN or infinite; the parameters stay as they were.
        """
        with blamed_on_batch(batch, self._stepper):
            return lone_step(self._stepper, batch, self._data)

    @known_names
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
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        kl_weight: float | Callable[[int], float] = 1.0,
        n_epochs_kl_warmup: int | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        check_val_every_n_epoch: int = 1,
        fast_dev_run: bool | int = False,
        check: bool = True,
        detect_anomaly: bool = False,
        non_finite: Policy = "raise",
        non_finite_limit: int = 10,
        logger: Logger | Iterable[Logger] | None = None,
        resume_from: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> History:
        """Trains on ``train``, validating on ``val`` after each epoch; may be called again.

        Data are a tensor, a numpy array, a tuple or dict of those, a Dataset or a DataLoader (which
        keeps its own batch size and order); the first dim counts data points. The size of ``train``
        scales every minibatch, so a short last one weighs right and global latents count once.
        Under ``torch.distributed`` each process calls this with the same arguments, and takes its
        part of each batch of ``batch_size``. Ctrl-C ends training after the step and keeps what was
        learned; so does SIGTERM, which then ends the process too. Nothing is written unless a
        callback or a logger does.

        Args:
            train: data to learn from.
            val: held-out data; their bound is computed in eval mode with the same noise at each
                epoch and with full weight on the KL, and scaled as the training data are.
            max_epochs: passes over ``train``.
            max_steps: optimizer steps, of this call.
            batch_size: data points a batch; not for a DataLoader.
            seed: for shuffling and noise in this call; the global generators are restored after.
                None: they decide, and go on.
            callbacks: `Callback` objects, or functions called with the state after each epoch.
            progress: a live line on standard error, or a plain one now and then.
            scheduler: called with the torch optimizer, makes a torch learning-rate scheduler;
                ``ReduceLROnPlateau`` watches ``val_loss``, or ``train_loss`` without ``val``.
            scheduler_interval: ``"epoch"`` or ``"step"``: when the scheduler moves.
            gradient_clip_val: the largest norm of model and guide's gradient (not of each element).
            accumulate_grad_batches: batches whose mean gradient makes one step.
            kl_weight: how often the terms of latents count in the loss, or a function of the step
                (from 0) that says so.
            n_epochs_kl_warmup: over so many epochs that weight grows linearly from 0.
            limit_train_batches: at most so many batches an epoch, or a fraction of them.
            limit_val_batches: the same for validation.
            check_val_every_n_epoch: epochs between two validations.
            fast_dev_run: a trial of one batch (or so many) of training and validation; early
                stopping, checkpoints and loggers are left out.
            check: look for mistakes in programs and data before the first step, see `check`;
                errors end the call, warnings are shown once.
            detect_anomaly: name the first site whose gradient is not finite (slow).
            non_finite: at a loss or gradient that is not finite: ``"raise"``; ``"skip"`` the batch;
                or ``"rollback"`` to a good moment with half the learning rate.
            non_finite_limit: so many skips in a row, or so many rollbacks, before it raises.
            logger: one object or several with ``log_metrics(metrics, step)``.
            resume_from: a folder of checkpoints (the newest good one is taken) or one of them: go
                on with that training as if it had not been interrupted, bit for bit on a CPU.
            device: where to train; ``"auto"`` takes a GPU if there is one. Batches are moved there.

        Returns:
            `History`: a dict of lists, one float an epoch.

        Raises:
            UsageError: unfit data or options, or no end given.
            ProgramError: what `check` found in the programs.
            DataError: a DataLoader failed, with epoch and batch; data that are not finite, or that
                the likelihood excludes, with their rows.
            NonFiniteError: a loss or gradient is not finite, with epoch, batch, step and sites.
            CheckpointError: a checkpoint cannot be written, read, or fits another program.
        """
        refuse_no_seed(seed)
        group = current_group()
        given = as_batches(train, batch_size)
        held_out = None if val is None else as_batches(val, batch_size)
        refuse_other_kinds(group, train=given, val=held_out)
        batches = sharded(given, group)
        if self._asked.size is None:
            self._data = DataPlate(self._asked.name, batches.size, counted=True)
        if device is not None:
            self._stepper.to(device_of(device))
        chosen = in_order(callbacks, logger if group.writes else None)
        limits = {
            "max_epochs": max_epochs,
            "limit_train_batches": limit_train_batches,
            "limit_val_batches": limit_val_batches,
        }
        if fast_dev_run:
            chosen, limits = on_trial(chosen, limits, fast_dev_run)
        plan = Plan(
            train=batches,
            val=None if held_out is None else sharded(held_out, group),
            data=self._data,
            max_steps=max_steps,
            callbacks=chosen,
            progress=progress,
            kl_weight=KLWeight(kl_weight, n_epochs_kl_warmup),
            schedule=schedule_of(scheduler, scheduler_interval),
            gradient_clip_val=gradient_clip_val,
            accumulate_grad_batches=accumulate_grad_batches,
            check_val_every_n_epoch=check_val_every_n_epoch,
            detect_anomaly=detect_anomaly,
            non_finite=non_finite,
            non_finite_limit=non_finite_limit,
            resume_from=None if resume_from is None else path_of("resume_from", resume_from),
            check=check,
            config={**self._config(), "batch_size": batch_size, "seed": seed},
            **limits,
        )
        with seeded(seed) if resume_from is None else preserved_rng():
            return Loop(self._stepper, plan).run()

    def save(self, folder: str | Path) -> Path:
        """Writes parameters, estimators and optimizer below a folder; `load` reads them.

        Returns the new checkpoint's own folder. To go on with an interrupted training bit for bit,
        use `ModelCheckpoint` in `fit`.

        Raises:
            UsageError: nothing was trained yet.
            CheckpointError: the folder cannot be written.
        """
        return checkpoint.write(
            folder,
            {**self._stepper.state_dict(), **plate_and_choice(self._data, self.loss)},
            step=self._stepper.steps,
            epoch=0,
            metrics={},
            config=self._config(),
            parameters=self._stepper.parameters.tensors(),
        )

    def load(
        self, path: str | Path | Checkpoint, batch: Any = None, *, estimators: bool = True
    ) -> None:
        """Takes parameters, buffers and estimators from a checkpoint; the optimizer stays as it is.

        Args:
            path: a checkpoint, or a folder of them: the newest good one is read.
            batch: one batch, if nothing was trained yet: programs may declare parameters only when
                they run.
            estimators: whether the estimators' state is read too; without, any loss will do.

        Raises:
            CheckpointError: no good checkpoint, or one of another program, named by parameter.
        """
        found = path if isinstance(path, Checkpoint) else checkpoint.read(path)
        if estimators:
            adopt(self._stepper, found.state)
        if batch is not None:
            self._stepper.warm_up(batch, again=True)
        parameters = self._stepper.parameters
        refuse_other_program(found, parameters.tensors(), estimators=estimators)
        saved = found.state["parameters"].items()
        parameters.restore({n: t for n, t in saved if estimators or not n.startswith("loss.")})
        self._stepper.steps = int(found.metadata["step"])
        data = found.state["data"]
        self._data = DataPlate(data["plate"], data["size"])

    def _config(self) -> dict[str, Any]:
        """What a checkpoint says of this object, for people."""
        return {"loss": repr(self.loss), "lr": self._stepper.optimizer.lr}

    @known_names
    def evaluate(
        self,
        test: Any,
        num_particles: int | Sequence[int] = 100,
        *,
        batch_size: int | None = None,
        seed: int | None = None,
        max_rows: int = 8192,
    ) -> dict[str, float]:
        """The bound on held-out data and what it is made of, in nats per data point.

        ``elbo = reconstruction - kl`` are means over plain draws from the guide, in eval mode.
        ``log_evidence`` is the importance-weighted bound ``E log 1/K sum_k p(x, z_k) / q(z_k|x)``:
        it is at least the ELBO, and tends to ``log p(x)`` as K grows. ``ess`` is the effective
        sample size ``(sum w)^2 / sum w^2`` of these K draws, between 1 and K. Both are absent with
        global latents or without a data plate, where a data point has no evidence of its own.
        Global latents are charged once over the training data, as in `fit`.

        Args:
            test: data as for `fit`.
            num_particles: K, draws for each data point; or several K, each in groups of the draws.
            batch_size: data points at a time; None: 128, or more where the particles are few. Not
                for a DataLoader.
            seed: for the noise of this call; the global generators are restored after.
            max_rows: particles times data points at a time. Where so many do not fit into the
                memory that is free, fewer are taken, with other noise of the same law.

        Returns:
            ``elbo``, ``reconstruction``, ``kl``; ``log_evidence``, ``ess`` and ``num_particles`` of
            the largest K, ``log_evidence/K`` of each of several; ``per_datum`` (False: totals).

        Raises:
            UsageError: unfit data or options.
            DataError: the model observes values that its likelihood excludes, by row.
        """
        options = {"num_particles": num_particles, "batch_size": batch_size, "seed": seed}
        return evaluated(self._stepper, self._data, test, **options, max_rows=max_rows)

    def __repr__(self) -> str:
        """One line."""
        return f"SVI(steps={self._stepper.steps}, loss={self.loss!r})"
