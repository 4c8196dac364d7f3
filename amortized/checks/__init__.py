"""Checks of a pair of programs, its data and its loss, before training."""
