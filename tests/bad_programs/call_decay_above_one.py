"""A moving average that grows: its decay is above one."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("decay=1.5", "< 1"))


def call() -> None:
    am.MovingAverage(decay=1.5)
