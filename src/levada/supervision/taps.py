"""Hooks that keep what sites return during one forward pass, and compute nothing in it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from levada._errors import UsageError
from levada.connection import Layer, Outputs
from levada.conversion.stream import Stream, finish
from levada.supervision.head import Select, find_site, select_from

__all__ = ["Tap", "Taps"]


@final
class Tap:
    """The hook at one site: keeps what the site returns while it is open, one value for each call.

    What a head is given is computed after the pass: a segment that checkpointing runs again then does what it did the
    first time, though the hook is gone. A copy or pickle of it is a function of Python's own that does nothing, so that
    copies of the model keep nothing of levada.
    """

    def __init__(self) -> None:
        self.open = False
        self.thread: int | None = None
        self.outputs: list[Any] = []
        self.versions: list[tuple[Tensor, int]] = []
        self.without_gradient = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the output: of a levada layer its state."""
        compiling = torch.compiler.is_compiling()
        if not self.open or (not compiling and self.thread not in (None, threading.get_ident())):
            return
        self.without_gradient = not torch.is_grad_enabled()
        if isinstance(module, Layer) and type(output) is Outputs:
            output = output.state
        # Versions are not counted while compiling; where nothing changes a tensor, its copy is compiled away.
        kept = _kept(output, compiling)
        if not compiling:
            self.versions += [(own, own._version) for own in _tensors(kept, set()) if not own.is_inference()]
        self.outputs.append(kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")

    def begin(self, thread: int | None) -> None:
        """Forget the last forward pass, and open to one thread, or to all."""
        self.outputs, self.versions = [], []
        self.without_gradient, self.thread, self.open = False, thread, True

    def end(self) -> None:
        """Close, and let go of everything."""
        self.open, self.outputs, self.versions = False, [], []

    def values(self, module: nn.Module, select: Select | None, site: str) -> list[Any]:
        """Return what a head is given for each call.

        Of a levada layer this is what the stream would end in here, of a converted model what the next branch reads.

        Args:
            module: the site.
            select: which part of its output.
            site: its name.

        Raises:
            UsageError: if a later layer changed it.
        """
        outputs = [module.connection.end(own) for own in self.outputs] if isinstance(module, Layer) else self.outputs
        values = [select_from(finish(module, (), own), select, site) for own in outputs]
        changed = {id(own) for own, version in self.versions if own._version != version}
        if changed:
            known = {id(own) for own, _ in self.versions}
            given = {id(own) for own in _tensors(values, set())}
            if given & changed or not given <= known:  # what was computed may come from what was changed
                raise UsageError(
                    f"Supervision: a later layer changes the output of site {site!r} in place. Name that layer as the "
                    "site, or make it work out of place (inplace=False)."
                )
        return values


@final
class Taps:
    """A tap for each site: hung on the sites of a model for a forward pass.

    Args:
        sites: names of the sites.
    """

    def __init__(self, sites: Iterable[str]) -> None:
        self.taps = {site: Tap() for site in sites}
        self.handles: dict[str, RemovableHandle] = {}

    def hang(self, model: nn.Module) -> None:
        """Hang each tap behind all other hooks of its site, by the number that it had before."""
        for site, tap in self.taps.items():
            module = _module(model, site)
            hooks, handle = module._forward_hooks, self.handles.get(site)
            if handle is None or handle.hooks_dict_ref() is not hooks:
                self.handles[site] = module.register_forward_hook(tap)
            elif handle.id not in hooks:
                hooks[handle.id] = tap

    def take_down(self) -> None:
        """Take the taps off their sites."""
        for handle in self.handles.values():
            handle.remove()

    def begin(self, thread: int | None) -> None:
        """Open all to a thread, or to all threads."""
        for tap in self.taps.values():
            tap.begin(thread)

    def end(self) -> None:
        """Close all, and let go of what they kept."""
        for tap in self.taps.values():
            tap.end()

    def take(self, site: str, select: Select | None, model: nn.Module) -> list[Any]:
        """Return what the head of a site is given, one value for each call.

        Args:
            site: its name.
            select: which part of its output.
            model: the model, whose pass is over.

        Raises:
            UsageError: if there is none, if it has no graph, or if a later layer changed it.
        """
        tap = self.taps[site]
        if not tap.outputs:
            raise UsageError(
                f"Supervision: site {site!r} did not run in this forward pass of {type(model).__name__}. Choose a "
                "module that every pass calls (one whose weights are only used, or that was compiled before this, is "
                "not seen)."
            )
        if tap.without_gradient and torch.is_grad_enabled():
            raise UsageError(
                f"Supervision: site {site!r} ran without gradients, so its loss would reach nothing below it. "
                "In checkpointing pass use_reentrant=False; under no_grad choose a later site."
            )
        return tap.values(_module(model, site), select, site)


def _module(model: nn.Module, site: str) -> nn.Module:
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    try:
        return inner.get_submodule(site)
    except AttributeError:
        return find_site(model, site)  # which says what there is


def _kept(value: Any, copying: bool) -> Any:
    """Return a value whose containers and streams no later layer can change, and whose tensors neither if copied."""
    if isinstance(value, Tensor):
        return value.clone() if copying or value.is_inference() else value  # of these versions are not counted
    if isinstance(value, Stream):
        stream = Stream(value.route, _kept(value.state, copying), value.position, value.passed)
        stream.read = _kept(value.read, copying)
        return stream
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_kept(item, copying) for item in value))
    parts, spec = tree_flatten(value, is_leaf=lambda part: part is not value)
    if not (len(parts) == 1 and parts[0] is value):
        return tree_unflatten([_kept(part, copying) for part in parts], spec)
    if copying and dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _kept(getattr(value, field.name), copying) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    return value


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Give the tensors of containers, of streams, and of what other objects have as attributes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Stream):
        parts: Iterable[Any] = (value.state, value.read)
    elif isinstance(value, tuple | list):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    else:
        parts = tree_flatten(value, is_leaf=lambda part: part is not value)[0]
        if len(parts) == 1 and parts[0] is value:
            parts = _attributes(value)
    for part in parts:
        yield from _tensors(part, seen)


def _attributes(value: Any) -> list[Any]:
    if isinstance(value, nn.Module | type):
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return [own for own in getattr(value, "__dict__", {}).values() if isinstance(own, Tensor | tuple | list | dict)]
