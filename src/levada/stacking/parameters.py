"""Parameters of layers that are alike, held as one tensor of each kind: `[depth, ...]`."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.stacking.alike import require_alike
from levada.stacking.sharded import is_divided_by_depth, layers_of, stacked_as, write_layers

__all__ = ["LayerParameters", "StackedParameters"]


@final
class LayerParameters(dict[str, Any]):
    """What a module of a layer has instead of its own parameters: found by name, and listed by nobody.

    `module.weight` is the layer's slice of the stacked tensor, with the graph that leads there; `module.parameters()`
    has nothing, since the stacked tensor is what optimizers are given.

    Args:
        names: names of the parameters.
        source: the module that holds the stacked ones under the same names.
        layer: index of the layer.
    """

    def __init__(self, names: Sequence[str], source: nn.Module, layer: int) -> None:
        super().__init__(dict.fromkeys(names))
        self.source, self.layer = source, layer

    def __getitem__(self, name: str) -> Any:
        installed = super().__getitem__(name)
        if installed is not None:
            return installed
        stacked = self.source._parameters[name]
        return None if stacked is None else stacked[self.layer]

    def install(self, name: str, value: Tensor | None) -> None:
        """Let the name stand for a tensor; None gives it back.

        Args:
            name: of the parameter.
            value: what it stands for.
        """
        super().__setitem__(name, value)

    def names(self) -> Iterator[str]:
        """Yield the names of the parameters, those included that are None."""
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the slice, or the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        """Return nothing."""
        return {}.items()

    def keys(self) -> Any:
        """Return nothing."""
        return {}.keys()

    def values(self) -> Any:
        """Return nothing."""
        return {}.values()

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def _refuse(self, name: str, *_: object) -> NoReturn:
        raise UsageError(
            f"Stack: the parameters of stacked layers cannot be replaced one by one, got {name!r} for layer "
            f"{self.layer}. Write into the tensor, or call arrange(stacked=False) before."
        )

    __setitem__ = __delitem__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ([*self.names()], self.source, self.layer)


class _Held(nn.Module):
    """A module of the tree that holds stacked parameters, and what was made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["cache"] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    def run(self, function: Callable[..., Any], *given: Any) -> Any:
        """Return what a function returns: a call that sharding may put something around.

        Args:
            function: is called.
            given: its arguments.
        """
        return function(*given)


@final
class StackedParameters(_Held):
    """The parameters of all layers of a stack: a tree of modules as in one layer, its tensors `[depth, ...]`.

    Args:
        layers: of one structure, whose modules from now on find their parameters here.

    Raises:
        UsageError: if the layers' parameters are not alike, or are used elsewhere too.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        trees = [dict(layer.named_modules()) for layer in layers]
        require_alike(trees)
        self.owners: dict[tuple[str, str], list[nn.Module]] = {}  # by module and name: whose parameters they are
        for path, first in trees[0].items():
            if not first._parameters:
                continue
            container, modules = self._container(path), [tree[path] for tree in trees]
            for name, parameter in first._parameters.items():
                self.owners[path, name] = modules
                own = [module._parameters[name] for module in modules]
                container.register_parameter(name, None if parameter is None else _stacked(f"{path}.{name}", own))
            for i, module in enumerate(modules):
                module._parameters = LayerParameters([*module._parameters], container, i)
        held = dict(self.named_modules())
        self.parts = [layers, *(module for tree in trees for path, module in tree.items() if path in held)]
        self._guard(held=True)

    def _guard(self, *, held: bool) -> None:
        """Let the parts of the stack, in which torch finds no parameter, refuse to be frozen, or no longer so."""
        for part in self.parts:
            if held:
                part.__dict__["requires_grad_"] = _refuse_to_freeze
            else:
                part.__dict__.pop("requires_grad_", None)

    def _container(self, path: str) -> nn.Module:
        module: nn.Module = self
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, _Held())
            module = module._modules[name]  # type: ignore[assignment]
        return module

    def of(self, path: str, name: str) -> nn.Parameter | None:
        """Return a stacked tensor.

        Args:
            path: name of the module in a layer.
            name: name of the parameter there.

        Raises:
            UsageError: if it is no longer a parameter.
        """
        held = self.get_submodule(path)._parameters
        if name not in held:
            raise UsageError(
                f"Stack: the layers read the stacked parameter {f'{path}.{name}'!r}, which is no parameter now. Let it "
                "be one, or call arrange(stacked=False) before a layer is parametrized or pruned."
            )
        return held[name]

    def each(self) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
        """Yield what there is, by module and name, as in a layer."""
        for key in self.owners:
            stacked = self.of(*key)
            if stacked is not None:
                yield key, stacked

    @property
    def lock(self) -> contextlib.AbstractContextManager[bool]:
        """Held while the layers' modules are not as they are read elsewhere: of one thread at a time."""
        lock: threading._RLock = self.__dict__["cache"].setdefault("lock", threading.RLock())
        return lock

    def around(self, function: Callable[..., Any], *given: Any) -> Any:
        """Call a function while the connections' parameters are whole, where they are sharded apart from the others.

        Args:
            function: is called.
            given: its arguments.
        """
        connections: Any = self._modules.get("connection")
        return function(*given) if connections is None else connections.run(function, *given)

    @contextlib.contextmanager
    def installed(self, parameters: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Let layers find slices that were made at once: their gradients are put together at once too.

        Args:
            parameters: stand for the stacked ones, in their order.
        """
        tables: list[tuple[Any, str]] = []
        with self.lock:
            each = [*self.each()]
            try:
                for i, ((path, name), stacked) in enumerate(each):
                    value = stacked if parameters is None else parameters[i]
                    for module, view in zip(self.owners[path, name], value.unbind(0), strict=True):
                        table: Any = module._parameters
                        if not isinstance(table, LayerParameters):
                            raise UsageError(
                                f"Stack: {path!r} of a layer holds parameters of its own now, and not the stacked "
                                "ones. Write into these, or call arrange(stacked=False) before."
                            )
                        table.install(name, view)
                        tables.append((table, name))
                yield
            finally:
                for table, name in tables:
                    table.install(name, None)

    def spread(self, *, sharded: bool = False, copied: bool = False) -> dict[tuple[str, str], list[nn.Parameter]]:
        """Give the layers parameters of their own that share the stacked memory, gradients included.

        Of tensors of which each process holds some layers whole, they are copies without gradients, for which all
        processes must call this.

        Args:
            sharded: whether tensors may be divided among processes, since nothing is computed with what is spread.
            copied: whether layers of these get memory of their own.

        Returns:
            The layers' parameters, by module and name.

        Raises:
            UsageError: if they are, and must not be.
        """
        self.state_dict()  # asks sharding, in the midst of a pass, for what is stored
        if not sharded:
            _require_whole(self.each())
        spread = {}
        for key, stacked in self.each():
            values, gradients = _apart(stacked, copied)
            spread[key] = [nn.Parameter(value, stacked.requires_grad) for value in values]
            for parameter, gradient in zip(spread[key], gradients, strict=False):
                parameter.grad = gradient
        for (path, name), modules in self.owners.items():
            own = spread.get((path, name), [None] * len(modules))
            for module, given in zip(modules, own, strict=True):
                if isinstance(module._parameters, LayerParameters):
                    module._parameters = dict.fromkeys(module._parameters.names())
                module._parameters[name] = given
        self._guard(held=False)
        return spread

    def gather(self, spread: Mapping[tuple[str, str], list[nn.Parameter]], *, written: bool = True) -> None:
        """Undo `spread`: take over what was replaced meanwhile, and the gradients.

        Args:
            spread: what it returned.
            written: whether values may have been written into copies; all processes must call this then.

        Raises:
            UsageError: if what the layers have now is not alike.
        """
        replaced: dict[tuple[str, str], nn.Parameter] = {}
        try:
            for (path, name), before in spread.items():
                held = self.of(path, name)
                own: list[Any] = [module._parameters[name] for module in self.owners[path, name]]
                divided = hasattr(held, "placements")
                if any(new is not old for new, old in zip(own, before, strict=True)):
                    made = (
                        nn.Parameter(stacked_as(held, own), own[0].requires_grad)
                        if divided
                        else _stacked(f"{path}.{name}", own)
                    )
                    replaced[path, name] = made
                elif held is not None:
                    held.requires_grad_(own[0].requires_grad)
                    if not divided:
                        _take_gradients(held, own)
                    elif written and is_divided_by_depth(held):
                        write_layers(held, own)
        finally:  # what is not alike is refused, and the stack stays one
            self._hold()
        for (path, name), made in replaced.items():
            self.get_submodule(path)._parameters[name] = made
        if any(hasattr(made, "placements") for made in replaced.values()):
            self.load_state_dict({}, strict=False)  # tells sharding to look at what it holds again

    def _hold(self) -> None:
        """Let the layers find their parameters here."""
        for path in dict.fromkeys(path for path, _ in self.owners):
            container = self.get_submodule(path)
            for i, module in enumerate(self.owners[path, next(iter(container._parameters))]):
                module._parameters = LayerParameters([*container._parameters], container, i)
        self._guard(held=True)


def _apart(stacked: nn.Parameter, copied: bool) -> tuple[Iterable[Tensor], Iterable[Tensor | None]]:
    """Return the layers of a stacked tensor, and of its gradient."""
    gradient = stacked.grad
    if not hasattr(stacked, "placements"):
        return stacked.detach().unbind(0), itertools.repeat(None) if gradient is None else gradient.unbind(0)
    without = gradient is None or copied or is_divided_by_depth(stacked)
    return layers_of(stacked, copied=copied), itertools.repeat(None) if without else layers_of(gradient)


def _require_whole(each: Iterable[tuple[tuple[str, str], nn.Parameter]]) -> None:
    """Raise if each process holds a part, where layers are to compute, or to keep what they are given."""
    for (path, name), stacked in each:
        if any(placement.is_shard() for placement in getattr(stacked, "placements", ())):
            raise UsageError(
                f"Stack: sharding has divided the stacked {path}.{name} {tuple(stacked.shape)} among processes, where "
                "each layer must hold its own parameters, whole. Call arrange(stacked=False) before fully_shard."
            )


def _refuse_to_freeze(requires_grad: bool = True) -> NoReturn:
    """Stand in for `requires_grad_` of a part of a stack, which would do nothing without a word."""
    raise UsageError(
        f"Stack: stacked layers learn together or not at all, got requires_grad_({requires_grad}) for a part of them. "
        "Call it on the stack or on its `stacked` for all layers, or call arrange(stacked=False) before."
    )


def _stacked(name: str, own: Sequence[Any]) -> nn.Parameter:
    shapes = ["missing" if p is None else tuple(p.shape) for p in own]
    for i, shape in enumerate(shapes):
        if shape != shapes[0] or shape == "missing":
            raise UsageError(
                f"Stack: stacked needs layers whose parameters are alike, but {name!r} is {shapes[0]} in layer 0 and "
                f"{shape} in layer {i}. Give all layers one of the same shape."
            )
    stacked = nn.Parameter(torch.stack([p.detach() for p in own]), own[0].requires_grad)
    _take_gradients(stacked, own)
    return stacked


def _take_gradients(stacked: nn.Parameter, own: Sequence[nn.Parameter]) -> None:
    gradients, step = [p.grad for p in own], stacked[0].numel()
    if all(g is None for g in gradients):
        stacked.grad = None
        return
    there = stacked.grad
    if there is not None:
        starts = [None if g is None else g.data_ptr() for g in gradients]
        if starts == [there.data_ptr() + i * step * there.element_size() for i in range(len(own))]:
            return
    stacked.grad = torch.stack(
        [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, own, strict=True)]
    ).detach()
