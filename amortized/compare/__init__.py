"""Comparisons of estimators by measurement: bias, variance, seconds."""
