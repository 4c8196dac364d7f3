"""The measured choice of estimators against every fixed one, on six programs."""
