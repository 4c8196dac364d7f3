"""From terms to one scalar with the right value and the right gradient."""
