"""Objectives of several weights: evidence after training, noise of gradients, and seconds."""
