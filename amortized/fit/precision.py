"""In which precision networks are computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amortized.fit.arguments import one_of

Precision = Literal["float32", "bf16-mixed"]
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bf16-mixed")

# what layers of networks call, and densities do not
_LAYERS: Final = frozenset(
    (
        functional.linear,
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
        functional.scaled_dot_product_attention,
    )
)


def layers_in(precision: Precision) -> AbstractContextManager[Any]:
    """A context in which layers are computed so; ``"float32"`` leaves them as they are."""
    return nullcontext() if precision == "float32" else MixedLayers()


def precision_of(name: str) -> Precision:
    """A precision by its name.

    Raises:
        UsageError: there is no such precision.

    >>> precision_of("bf16-mixed")
    'bf16-mixed'
    """
    return one_of("precision", name, PRECISIONS)


@final
class MixedLayers(TorchFunctionMode):
    """Linear layers, convolutions and attention take bfloat16 factors and give float32.

    Everything else stays as it is, samples, log-probabilities and their weights among it: a
    log-weight in bfloat16 has three digits, and the sum over pixels would be lost. Layers of other
    types than float32 are left alone, float64 and those under a ``torch.autocast`` of the user.

    >>> layer, x = torch.nn.Linear(64, 64), torch.randn(8, 64)
    >>> with MixedLayers():
    ...     mixed = layer(x)
    >>> mixed.dtype, bool((mixed - layer(x)).abs().max() > 1e-4)
    (torch.float32, True)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch in the programs."""
        kwargs = kwargs or {}
        if func not in _LAYERS:
            return func(*args, **kwargs)
        return _mixed(func, args, kwargs)


def _mixed(func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    kinds = {value.dtype for value in given if value.is_floating_point()}
    device = given[0].device.type if given else "cpu"
    if kinds != {torch.float32} or torch.is_autocast_enabled(device):
        return func(*args, **kwargs)
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        return func(*args, **kwargs).float()
