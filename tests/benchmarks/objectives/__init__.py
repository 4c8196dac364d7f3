"""Objectives of several weights: what training with them reaches, their gradients, their seconds."""
