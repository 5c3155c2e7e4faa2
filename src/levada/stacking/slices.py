"""One layer's part of stacked parameters, as those read it that look at every layer: watches, probes, checks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, final

from torch import Tensor, nn

from levada.stacking.parameters import LayerParameters, StackedParameters
from levada.stacking.sharded import part_of, parts_of

__all__ = ["LayerSlice", "parameters_of", "whole_of"]


@final
class LayerSlice(nn.Parameter):
    """A layer's part of a stacked parameter, in the same memory. It is to be read: its gradient is the stacked one's.

    Where the stacked one is divided among processes, it is what this process has of the layer, if anything, and has
    `device_mesh` and `placements` as the stacked one does.

    Attributes:
        layer: index of the layer.
        whole: number of elements of the layer in all processes.
    """

    layer: int
    whole: int

    def __new__(cls, source: nn.Parameter, value: Tensor, layer: int) -> LayerSlice:
        """Return the slice; `value` is its memory."""
        made: LayerSlice = super().__new__(cls, value, source.requires_grad)
        made._source, made.layer = weakref.ref(source), layer  # type: ignore[attr-defined]
        made.whole = source.numel() // len(source)
        if hasattr(source, "placements"):
            made.device_mesh, made.placements = source.device_mesh, source.placements  # type: ignore[attr-defined]
        return made

    @property
    def source(self) -> nn.Parameter | None:
        """The stacked parameter, as long as there is one."""
        return self._source()  # type: ignore[attr-defined, no-any-return]

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """The layer's part of the stacked gradient."""
        source = self.source
        if source is None or source.grad is None:
            return None
        return part_of(source.grad, self.layer) if hasattr(source.grad, "placements") else source.grad[self.layer]


def parameters_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a module's parameters by name, each once, and those of stacked layers by layer.

    Args:
        module: any module.
        prefix: goes before the names.

    Example:
        >>> import levada
        >>> net = levada.Stack([nn.Linear(2, 2) for _ in range(2)], levada.Residual, dim=2, stacked=True)
        >>> [(name, tuple(p.shape)) for name, p in net.named_parameters()][0]
        ('stacked.branch.weight', (2, 2, 2))
        >>> [(name, tuple(p.shape)) for name, p in parameters_of(net)][0]
        ('layers.0.branch.weight', (2, 2))
    """
    seen: set[nn.Parameter] = set()
    stacks = [m for m in module.modules() if isinstance(m, StackedParameters)]
    holders = {inner for stack in stacks for inner in stack.modules()}
    for path, inner in module.named_modules(prefix=prefix):
        table = inner._parameters
        if isinstance(table, LayerParameters):
            yield from ((f"{path}.{name}".lstrip("."), part) for name, part in _slices(table))
        elif inner not in holders:
            for name, parameter in table.items():
                if parameter is not None and parameter not in seen:
                    seen.add(parameter)
                    yield f"{path}.{name}".lstrip("."), parameter


def _slices(table: LayerParameters) -> Iterator[tuple[str, LayerSlice]]:
    cache: dict[Any, Any] = table.source.cache  # type: ignore[assignment]
    for name in table.names():
        stacked: Any = table.source._parameters[name]
        if stacked is None:
            continue
        divided = hasattr(stacked, "placements")
        memory = stacked.to_local() if divided else stacked
        key = id(stacked), memory.untyped_storage()._cdata, stacked.requires_grad
        place = name, divided  # sharding puts another tensor there for a pass
        if place not in cache or cache[place][0] != key:
            values = parts_of(stacked) if divided else stacked.detach().unbind(0)
            cache[place] = key, [LayerSlice(stacked, value, i) for i, value in enumerate(values)]
        yield name, cache[place][1][table.layer]


def whole_of(values: Sequence[Tensor]) -> Tensor | None:
    """Return the stacked parameter that these are the layers of, all and in order; None if they are something else.

    Args:
        values: parameters.
    """
    first = values[0] if values else None
    if not isinstance(first, LayerSlice) or first.source is None or len(first.source) != len(values):
        return None
    alike = all(isinstance(v, LayerSlice) and v.source is first.source and v.layer == i for i, v in enumerate(values))
    return first.source if alike else None
