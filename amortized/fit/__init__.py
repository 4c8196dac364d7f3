"""Fits a model and its guide: steps, epochs, validation, early stopping, evaluation."""
