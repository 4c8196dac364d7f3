"""Which modules a run calls, and which of them cannot take extra left dims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from amortized.checks.report import Finding
from amortized.programs.fold import Fold

# Seen: these raise on inputs with one more left dim, or silently mix it into the batch.
_ONE_BATCH_DIM = (
    nn.Flatten,
    nn.Unflatten,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Upsample,
)


@final
class Calls:
    """The modules called so far: by which program, and the most dims of their first input."""

    def __init__(self, networks: Iterable[nn.Module] = ()) -> None:
        # a compiled module would be compiled anew with the hook and without it
        self._off = any(type(m).__name__ == "OptimizedModule" for m in networks)
        self.modules: dict[int, nn.Module] = {}
        self.sides: dict[int, str] = {}
        self.dims: dict[int, int] = {}
        self._folded: set[int] = set()
        self._side = ""
        if self._off:
            self.modules = {id(m): m for m in networks}

    @contextmanager
    def recorded(self, side: str = "") -> Iterator[None]:
        """Record what is called inside, by the model or the guide if one of them runs alone."""
        self._side = side
        if self._off:
            yield
            return
        handle = register_module_forward_pre_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.modules[id(module)] = module
        if self._side:
            self.sides.setdefault(id(module), self._side)
        if isinstance(module, Fold):
            self._folded |= {id(inner) for inner in module.modules()}
        first = next((value for value in inputs if isinstance(value, Tensor)), None)
        if first is not None:
            self.dims[id(module)] = max(first.dim(), self.dims.get(id(module), 0))

    def suspects(self, before: Mapping[int, int]) -> list[nn.Module]:
        """Modules for one batch dim that met more dims than they had ``before``, without copies."""
        return [
            module
            for key, module in self.modules.items()
            if isinstance(module, _ONE_BATCH_DIM)
            and key not in self._folded
            and self.dims.get(key, 0) > before.get(key, self.dims.get(key, 0))
        ]


def left_dim_findings(modules: list[nn.Module]) -> Iterator[Finding]:
    """What to know of such modules where nothing went wrong so far."""
    kinds = sorted({type(module).__name__ for module in modules})
    if kinds:
        yield Finding(
            "note",
            "module-left-dims",
            None,
            f"module {', '.join(kinds)}",
            "it is made for one batch dim, and copies or particles add more on the left; the "
            "copies agreed when each was evaluated alone",
            "modules that treat left dims alike, as Linear does",
            "wrap the network in am.Fold(network, event_dim) to be sure",
        )
