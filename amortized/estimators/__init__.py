"""How one latent site is differentiated: one family of estimators a file."""
