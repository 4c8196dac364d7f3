"""Several processes that train together, for the tests."""
