"""Every error that a user can meet: one class for each kind of mistake.

A message says *where* (site, plates), *what was found*, *what was expected* and *what to do*.
"""

from __future__ import annotations


class AmortizedError(Exception):
    """Base class of all errors raised on purpose by this package."""


class ProgramError(AmortizedError):
    """The model or the guide is wrong: names, plates, shapes, erased axes."""


class EstimatorError(AmortizedError):
    """An estimator cannot serve a site, or a mapping of estimators is wrong."""


class UsageError(AmortizedError):
    """A call, an option or a data set is wrong."""


class NonFiniteError(AmortizedError):
    """A loss or a gradient is NaN or infinite.

    Attributes:
        table: one row a site, where there is one: log-probabilities and the range of values.
    """

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table

    def __str__(self) -> str:
        """The sentence, and the table below it."""
        sentence = super().__str__()
        return f"{sentence}\n\n{self.table}" if self.table else sentence


class DataError(UsageError):
    """Data cannot be used as they are, or their source failed while training."""


class CheckpointError(AmortizedError):
    """A checkpoint cannot be written, or a file cannot be loaded."""


class WorkerError(AmortizedError):
    """Another of the processes that train together failed, or cannot be reached any more.

    Attributes:
        told: whether that process has said why, so that it need not be said again.
    """

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class CheckWarning(UserWarning):
    """What `check` found and what training can live with, though most likely it is a mistake."""


def quoted(names: list[str] | tuple[str, ...], most: int) -> str:
    """Names as a message lists them, the first few of many.

    >>> quoted(["b", "a"], 2)
    "'b', 'a'"
    >>> quoted(["b", "a", "c", "d"], 2)
    "'b', 'a' and 2 more"
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
