"""The measurements on which a choice of estimators rests."""
