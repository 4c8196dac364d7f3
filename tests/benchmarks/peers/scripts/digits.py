"""scikit-learn's digits, split as in ``examples/data.py``."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits


def digits() -> list[torch.Tensor]:
    """Training, validation and test images ``[n, 64]``, black and white."""
    pixels, _ = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.tensor(pixels > 8, dtype=torch.float32)
    return [x[part] for part in np.split(order, [1257, 1437])]
