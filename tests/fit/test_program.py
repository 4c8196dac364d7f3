import dataclasses

import pytest

from amortized.fit.program import Program


def test_only_model_guide_and_train_are_needed() -> None:
    program = Program(print, print, ())
    assert (program.val, program.test, program.image_shape, program.labels) == (None,) * 4


def test_a_program_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Program(print, print, ()).train = 1  # pyright: ignore[reportAttributeAccessIssue]
