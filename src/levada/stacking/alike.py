"""Which layers can be stacked: those whose parameters are alike, and are used by nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from levada._errors import UsageError

__all__ = ["require_alike"]


def require_alike(trees: Sequence[Mapping[str, nn.Module]]) -> None:
    """Raise unless the layers' parameters can be stacked, and nothing else uses them.

    Args:
        trees: of each layer its modules, by name.

    Raises:
        UsageError: if so.
    """
    kinds = [
        {
            f"{path}.{name}": None if p is None else _kind(p)
            for path, module in tree.items()
            for name, p in module._parameters.items()
        }
        for tree in trees
    ]
    if not any(kinds[0].values()):
        raise UsageError("Stack: stacked needs layers with parameters, and these have none. Leave stacked out.")
    for i, kind in enumerate(kinds):
        if kind != kinds[0]:
            name = next(n for n in {**kinds[0], **kind} if kind.get(n) != kinds[0].get(n))
            raise UsageError(
                f"Stack: stacked needs layers whose parameters are alike, but {name!r} is "
                f"{_told(kinds[0].get(name))} in layer 0 and {_told(kind.get(name))} in layer {i}. Leave stacked out."
            )
    for name, first in kinds[0].items():
        if first is not None and first[-1] is not nn.Parameter:
            raise UsageError(
                f"Stack: stacked needs plain parameters, but {name!r} is a {first[-1].__name__}. Initialise lazy "
                "modules before; shard or quantise a stack that is not stacked."
            )
    seen: set[int] = set()
    for i, tree in enumerate(trees):
        for path, module in tree.items():
            for name, parameter in module._parameters.items():
                if id(parameter) in seen:
                    raise UsageError(
                        f"Stack: stacked needs layers that share no parameter, but '{path}.{name}' of layer {i} is "
                        "used before. Leave stacked out: a shared parameter is one tensor already."
                    )
                if parameter is not None:
                    seen.add(id(parameter))
    for path, module in trees[0].items():
        for attribute, value in module.__dict__.items():
            if attribute != "_parameters" and any(id(item) in seen for item in _items(value)):
                raise UsageError(
                    f"Stack: stacked needs parameters that are read by their names alone, but {path!r} "
                    f"({type(module).__name__}) holds them in {attribute!r} too. Leave stacked out."
                )


def _kind(p: nn.Parameter) -> tuple[Any, ...]:
    shape = () if nn.parameter.is_lazy(p) else tuple(p.shape)
    return shape, p.dtype, p.device, p.requires_grad, type(p)


def _told(kind: Any) -> str:
    return "missing" if kind is None else f"{kind[0]} of {kind[1]}" + ("" if kind[3] else ", frozen")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value
