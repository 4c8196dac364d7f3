"""``python -m amortized``: the command line."""

from amortized.cli import main

main()
