"""`select_estimators`: the library chooses by measuring."""
