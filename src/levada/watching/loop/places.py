"""Where a model is watched: the blocks that its tree of modules shows, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from levada.connection import Connection, Layer
from levada.stacking import LayerParameters, parameters_of

__all__ = ["ACTIVATIONS", "Place", "class_of", "find_places", "in_order", "listed", "original", "plain_name"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink)
"""Modules whose output has exact zeros where they are shut."""

_LISTING = "parameters", "named_parameters", "named_modules", "_named_members"
_LARGEST_LEAF_CHAIN = 4  # weighted leaves in a Sequential that is one block and not a network of its own

Container: TypeAlias = nn.ModuleList | nn.ModuleDict | nn.Sequential


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A block.

    Attributes:
        name: qualified name of the module with its weights, as in the model that was not compiled or wrapped.
        kind: that module's class.
        modules: the modules whose parameters are the block's.
        boundary: the module whose output is the block's.
        activations: the ReLU-like modules of this block alone.
        container: qualified name of what holds it.
    """

    name: str
    kind: str
    modules: tuple[nn.Module, ...]
    boundary: nn.Module
    activations: tuple[nn.Module, ...]
    container: str

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the block's parameters, those of two or more modules once."""
        for module in self.modules:
            yield from (parameter for _, parameter in parameters_of(module))


def class_of(watch: Any) -> str:
    """Return the name of the class of what is watched, as the user wrote it; "" of what has no model.

    Args:
        watch: what may have a `model`.

    Example:
        >>> from types import SimpleNamespace
        >>> class_of(SimpleNamespace(model=nn.DataParallel(nn.Linear(1, 1)))), class_of(SimpleNamespace())
        ('Linear', '')
    """
    model = getattr(watch, "model", None)
    return type(original(model)).__name__ if isinstance(model, nn.Module) else ""


def original(module: nn.Module) -> nn.Module:
    """Return what `torch.compile` or a data-parallel wrapper was put around.

    Example:
        >>> inner = nn.Linear(1, 1)
        >>> original(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        inner = module._modules["_orig_mod"] if "_orig_mod" in module._modules else None  # noqa: SIM401
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def listed(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return what `model.parameters()` does, in a quarter of the time; of stacked layers, the parameters of each.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 2))
        >>> [*map(id, listed(model))] == [*map(id, model.parameters())]
        True
    """
    if any(getattr(type(model), name) is not getattr(nn.Module, name) for name in _LISTING):
        return tuple(model.parameters())  # who lists them otherwise has a reason
    found: dict[int, nn.Parameter] = {}
    seen, stack = set[int](), list[nn.Module | None]((model,))
    while stack:
        module = stack.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        parameters, children = module._parameters, module._modules
        if type(parameters) is not dict and isinstance(parameters, LayerParameters):  # which holds none of its own
            return tuple(parameter for _, parameter in parameters_of(model))
        if parameters:
            for parameter in parameters.values():
                if parameter is not None:
                    found[id(parameter)] = parameter
        if children:
            stack.extend(reversed(children.values()))
    return tuple(found.values())


def plain_name(name: str) -> str:
    """Return a qualified name without the parts that `torch.compile` adds.

    Example:
        >>> plain_name("_orig_mod.layers.0._orig_mod.weight")
        'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def find_places(model: nn.Module) -> list[Place]:
    """Return the blocks of a model, in the order of its tree.

    A block is an element of the outermost containers (`ModuleList`, `ModuleDict`, `Sequential`) of modules of one
    class; containers of containers, such as the stages of a ResNet, are opened. Elsewhere it is a child that has
    weights. In a `Sequential`, leaves after a leaf with weights (its norm, its activation) are part of its block. A
    model without any of these is one block, "(root)".

    Args:
        model: any module, not run.

    Example:
        >>> def block():
        ...     return nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Sequential(*(block() for _ in range(2))))
        >>> [place.name for place in find_places(model)]
        ['0', '2.0', '2.1']
    """
    model = original(model)
    tree = _Tree(model)
    places = tree.inside("", model)
    while len(places) == 1 and _has_children(places[0].boundary):  # a wrapper around the model proper
        inner = tree.inside(places[0].name, original(places[0].boundary))
        if not inner:
            break
        places = inner
    unique = {id(place.boundary): place for place in reversed(places)}  # a layer that is used again is one block
    return list(reversed(unique.values())) or [tree.place("(root)", [model], "")]


def in_order(places: Sequence[Place], called: Iterable[int]) -> list[int]:
    """Return the indices of the places in order of execution.

    What was not called comes after its neighbour in the tree if one of its container was called (layers that are
    dropped at random); else it is left out.

    Args:
        places: in the order of the tree.
        called: indices in the order of their first call.
    """
    order = list(dict.fromkeys(called))
    alive = {places[i].container for i in order}
    for i, place in enumerate(places):
        if i not in order and place.container in alive:
            before = [j for j in range(i) if places[j].container == place.container and j in order]
            order.insert(order.index(before[-1]) + 1 if before else order.index(_next(places, i, order)), i)
    return order


def _next(places: Sequence[Place], i: int, order: Sequence[int]) -> int:
    return next(j for j in range(i, len(places)) if places[j].container == places[i].container and j in order)


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in original(module).children())


def _weighted(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(p) or p.dim() >= 2 for _, p in parameters_of(module))  # a lazy one has no shape yet


def _owns(module: nn.Module) -> bool:
    return any(True for _ in parameters_of(module))


def _is_deep(module: nn.Module) -> bool:
    """Whether a container holds a network: two or more composite modules of one class, or a long chain of leaves."""
    if not isinstance(module, Container):
        return False
    children = [c for c in map(original, module.children()) if not isinstance(c, Connection)]  # of a converted block
    composite = Counter(type(child) for child in children if _has_children(child) and _owns(child))
    leaves = sum(not _has_children(child) and _weighted(child) for child in children)
    return any(count > 1 for count in composite.values()) or leaves > _LARGEST_LEAF_CHAIN


class _Tree:
    """The modules of a model, and how often each of them is in it."""

    def __init__(self, model: nn.Module) -> None:
        self._uses = Counter(id(child) for module in model.modules() for child in module._modules.values())

    def inside(self, name: str, module: nn.Module) -> list[Place]:
        """Return the blocks inside of a module."""
        module = original(module)
        element = isinstance(module, Container)
        places: list[Place] = []
        group: list[nn.Module] = []
        start = ""
        leading: list[nn.Module] = []

        def close() -> None:
            if group:
                places.append(self.place(start, group, name))
            group.clear()

        for key, child in module._modules.items():
            if child is None:
                continue
            path = f"{name}.{key}".lstrip(".")
            if self._is_opened(child, element=element):
                close()
                places += self.inside(path, child)
            elif isinstance(module, nn.Sequential) and not _has_children(child):
                if group and not _weighted(child):
                    group.append(child)
                elif _weighted(child):
                    close()
                    start, group, leading = path, [*leading, child], []
                elif places and _has_children(places[-1].boundary) and _owns(child):  # the norm after the last block
                    places.append(self.place(path, [child], name))
                else:
                    leading.append(child)
            elif _owns(child):
                close()
                places.append(self.place(path, [child], name))
        close()
        return places

    def place(self, name: str, modules: list[nn.Module], container: str) -> Place:
        """Return the block of these modules, which follow one another."""
        anchor = next((m for m in modules if _weighted(m)), modules[0])
        after = modules[modules.index(anchor) :]
        # What other blocks call too cannot tell whose output it is.
        own = [anchor, *(m for m in after[1:] if self._uses[id(m)] == 1)]
        inside: dict[nn.Module, Any] = dict.fromkeys(m for module in modules for m in module.modules())
        activations = tuple(m for m in inside if isinstance(m, ACTIVATIONS) and self._uses[id(m)] <= 1)
        kind = type(original(anchor)).__name__
        return Place(plain_name(name), kind, tuple(modules), own[-1], activations, container)

    def _is_opened(self, child: nn.Module, *, element: bool) -> bool:
        """Whether the blocks are inside of a child. What is in a container is a block if it can be one."""
        child = original(child)
        if isinstance(child, Layer | torch.jit.ScriptModule):  # inside of the latter nothing calls hooks
            return False
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # these cannot be called
            return _owns(child)
        if not element:
            return isinstance(child, nn.Sequential) or any(_is_deep(m) for m in child.modules())
        return _is_deep(child) or (not isinstance(child, Container) and any(map(_is_deep, child.children())))
