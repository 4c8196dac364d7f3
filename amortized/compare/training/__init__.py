"""Comparisons of whole trainings: learning curves of several candidates over several seeds."""
