"""This package against its peers, side by side: ``python -m tests.benchmarks.peers``."""
