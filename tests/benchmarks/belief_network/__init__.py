"""Discrete estimators on a sigmoid belief network: training by the clock, and gradient variance."""
