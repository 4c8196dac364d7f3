"""A training step as a graph: captured, replayed or compiled, compared with the programs."""
