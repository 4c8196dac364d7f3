"""Runs the user's programs: the only place that touches Pyro's handlers."""

from amortized.estimators.base import Noise as Noise
