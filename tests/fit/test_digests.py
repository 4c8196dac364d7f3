from __future__ import annotations

import numpy as np
import torch

from amortized.fit.digests import digest_of, digest_of_batch


def test_every_bit_and_the_form_count() -> None:
    x = torch.arange(6.0).view(2, 3)
    others = [x.view(3, 2), x.double(), x + 1e-6, x.t().contiguous()]
    digests = [digest_of(x), *map(digest_of, others), digest_of("x"), digest_of(1)]
    assert len(set(digests)) == len(digests)
    assert digest_of(x.t()) == digest_of(x.t().contiguous())
    assert digest_of(np.arange(3)) != digest_of(np.arange(3.0))
    for kind in (torch.bfloat16, torch.bool, torch.int16, torch.complex64):
        assert digest_of(x.to(kind)) == digest_of(x.to(kind).clone())
    assert digest_of(torch.zeros(3, 0)) != digest_of(torch.zeros(0, 3))


def test_a_batch_is_its_tensors_by_name() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    assert digest_of_batch({"a": x, "b": y}) == digest_of_batch({"a": x.clone(), "b": y})
    assert digest_of_batch({"a": x, "b": y}) != digest_of_batch({"b": x, "a": y})
    assert digest_of_batch((x, y)) != digest_of_batch((y, x))
