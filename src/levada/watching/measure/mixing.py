"""How layers mix their streams at a sampled step: the matrices as the layers made them, and what their product does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada._numbers import sampled
from levada.probe.chains import chains_of
from levada.probe.streams import MAX_TOKENS
from levada.probe.streams import Sample as Streams
from levada.runs.inside import DEVIATIONS, GAINS
from levada.watching.loop.method import MethodTap, unseen
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.compiled import find_regions
from levada.watching.measure.reading import plain

__all__ = ["MIXED", "Mixed", "MixingTaps", "SentMixing"]

MIXED: Final = (*DEVIATIONS, *GAINS)
"""What is told of a layer beside its matrix; what it means is in `levada.probe.mixing.MIXING_SIGNALS`."""

_NUMBERS: Final = 8192  # of all matrices of a sample; of more, an even choice of layers is kept


@final
@dataclass(frozen=True, slots=True)
class Mixed:
    """How the layers of a model mixed their streams at one sampled step.

    Attributes:
        layers: qualified names of the connections, in the order in which they ran; an even choice of very many.
        kinds: of each, its class.
        chains: of each, the number of its chain: the layers of one hand the same streams on.
        matrices: of each, the mean over tokens, float32, `(n, n)`: row i is what stream i gets of each; NaN where it
            did not run.
        signals: a name of `MIXED` -> float32 tensor `(layers,)`. The gains go over all layers of a chain.
        total: number of layers.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    chains: tuple[int, ...]
    matrices: tuple[Tensor, ...]
    signals: Mapping[str, Tensor]
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    name: str
    module: Any


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What one call gave: number of tokens, mean matrix, and the matrices of a few tokens."""

    count: int
    mean: Tensor
    few: Tensor


@final
class SentMixing:
    """Numbers of a sampled step on their way to the host, as `MixingTaps.pack` lays them out.

    Args:
        values: one after the other.
        layers: names, classes and chains.
        streams: of each layer.
        total: number of layers.
    """

    def __init__(
        self, values: Tensor, layers: Sequence[tuple[str, str, int]], streams: Sequence[int], total: int
    ) -> None:
        self.values = values
        self._layers, self._streams, self._total = layers, streams, total

    def host(self, values: Tensor) -> Mixed:
        """Return what was sent.

        Args:
            values: on the host.
        """
        sizes = [n * n for n in self._streams]
        *matrices, told = torch.split(values, [*sizes, len(MIXED) * len(sizes)])
        names, kinds, chains = zip(*self._layers, strict=True)
        return Mixed(
            names,
            kinds,
            chains,
            tuple(m.reshape(n, n) for m, n in zip(matrices, self._streams, strict=True)),
            dict(zip(MIXED, told.view(len(MIXED), -1), strict=True)),
            self._total,
        )


@final
class MixingTaps:
    """Taps on the layers that mix streams: those with a method `coefficients` and an integer `streams`.

    The first call of each layer in a pass is taken. Where one operation makes the coefficients and reads with them, its
    result is: the layer computes what it does unwatched.

    Args:
        model: as the loop calls it.
        running: returns the number of the pass that is under way; None if what runs does not count.
        heard: called with a function and its arguments, to call it.
    """

    def __init__(
        self, model: nn.Module, running: Callable[[], int | None], heard: Callable[..., None] | None = None
    ) -> None:
        self._running = running
        self._heard = heard or (lambda take, *args: take(*args))
        self._calls: dict[tuple[int, int], _Call] = {}
        self._known: list[int] = []  # the layers in the order of their first call
        self._chain: dict[int, int] = {}
        self._grouped: dict[tuple[int, ...], list[list[int]]] = {}
        self._index: dict[tuple[int, torch.device], Tensor] = {}
        self.layers: list[_Layer] = []
        self.compiled = 0  # layers that run compiled, and cannot be seen
        _, inside, whole = find_regions(model)
        for name, module in original(model).named_modules():
            if (
                not callable(getattr(type(module), "coefficients", None))
                or type(getattr(module, "streams", None)) is not int
            ):
                continue
            if id(module) in inside or id(module) in whole:
                self.compiled += 1
            else:
                self.layers.append(_Layer(plain_name(name), module))
        self._taps = [tap for i, layer in enumerate(self.layers) for tap in self._taps_of(i, layer.module)]

    def _taps_of(self, index: int, module: Any) -> Iterator[MethodTap]:
        if hasattr(type(module), "one_pass"):  # read in one operation, and written with what came of that
            yield MethodTap(module, "open", lambda args, made: self._heard(self._see, index, made[1]))
            yield MethodTap(module, "update", lambda args, made: self._heard(self._see, index, *args[:1]))
        else:
            yield MethodTap(module, "coefficients", lambda args, made: self._heard(self._see, index, made))

    def other(self, found: MixingTaps) -> bool:
        """Return whether another look at the model found other layers."""
        layers = [[(layer.name, id(layer.module)) for layer in taps.layers] for taps in (self, found)]
        return layers[0] != layers[1] or self.compiled != found.compiled

    def attach(self) -> None:
        """Put the taps on the layers."""
        for tap in self._taps:
            tap.put()

    def detach(self) -> None:
        """Take them off, and forget what was taken."""
        for tap in self._taps:
            tap.remove()
        self._calls.clear()

    def _see(self, index: int, coefficients: Any = None) -> None:
        if coefficients is None:
            return
        number = self._running()
        if number is None or (number, index) in self._calls:
            return
        _, mix, _ = coefficients
        streams = self.layers[index].module.streams
        if mix is None:
            self._calls[number, index] = _identity(streams, next(iter(coefficients)).device)
            return
        mix = plain(mix).detach()
        if mix.is_floating_point() and mix.shape[-2:] == (streams, streams) and mix.numel():
            with unseen(mix.device.type):
                self._calls[number, index] = self._measured(mix if mix.dim() > 2 else mix[None])

    def _measured(self, mix: Tensor) -> _Call:
        flat = mix.flatten(0, -3)
        # A copy: it may be a parameter, which is updated before the numbers are packed.
        few = flat.index_select(0, self._tokens(min(len(flat), MAX_TOKENS), len(flat), flat.device))
        return _Call(len(flat), flat.mean(0, dtype=_wide(flat.device)), few)

    def _tokens(self, kept: int, count: int, device: torch.device) -> Tensor:
        if (count, device) not in self._index:
            self._index[count, device] = torch.arange(kept, device=device) * count // kept
        return self._index[count, device]

    def pack(self, counted: set[int], device: torch.device) -> SentMixing | None:
        """Return what was taken, on the device; None if nothing was.

        Args:
            counted: numbers of the passes that count.
            device: where to.
        """
        calls = {key: call for key, call in self._calls.items() if key[0] in counted}
        if not calls:
            return None
        self._known += [index for index in dict.fromkeys(index for _, index in calls) if index not in self._known]
        last = max(number for number, _ in calls)
        in_last = [index for number, index in calls if number == last]
        with unseen(device.type):
            gains: dict[int, Tensor] = {}
            deviations = _deviations(calls, device)
            for number, group in enumerate(self._groups(in_last, calls, last)):
                few = [calls[last, index].few.to(device, _wide(device), non_blocking=True) for index in group]
                told = _gains(few)
                gains.update(zip(group, told, strict=True))
                for index in group:
                    self._chain.setdefault(index, number)
            order = [*self._known, *(i for i in range(len(self.layers)) if i not in set(self._known))]
            streams = [self.layers[index].module.streams for index in order]
            chosen = sampled(len(order), max(2, _NUMBERS // max(streams) ** 2))
            missing = torch.full((2,), math.nan, dtype=_wide(device), device=device)
            numbers = [torch.stack([held.get(order[i], missing) for i in chosen], 1) for held in (deviations, gains)]
            means = [_mean([call for (_, i), call in calls.items() if i == order[at]], streams[at]) for at in chosen]
            means = [mean.flatten().to(device, _wide(device), non_blocking=True) for mean in means]
            values = torch.cat([*means, *(one.flatten() for one in numbers)])
        named = [(self.layers[i].name, type(self.layers[i].module).__name__, self._chain.get(i, 0)) for i in order]
        return SentMixing(values, [named[i] for i in chosen], [streams[i] for i in chosen], len(order))

    def _groups(
        self, order: Sequence[int], calls: Mapping[tuple[int, int], _Call], number: int
    ) -> Sequence[Sequence[int]]:
        """Return the chains of a pass."""
        key = tuple(order)
        if key not in self._grouped:
            if len(self._grouped) > 16:  # layers that are dropped at random
                self._grouped.clear()
            samples = [self._stand_in(index, calls[number, index].few.shape[-1]) for index in order]
            self._grouped[key] = [[order[place] for place in chain.places] for chain in chains_of(samples)]
        return self._grouped[key]

    def _stand_in(self, index: int, streams: int) -> Streams:
        module, one = self.layers[index].module, torch.ones(1, streams)
        layer, depth = (getattr(module, name, None) for name in ("layer", "depth"))
        return Streams(
            self.layers[index].name,
            layer if type(layer) is int else None,
            None,
            one,
            one,
            one,
            one,
            depth if type(depth) is int else None,
            getattr(module, "width", 0),
        )


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _identity(streams: int, device: torch.device) -> _Call:
    eye = torch.eye(streams, dtype=_wide(device), device=device)
    return _Call(1, eye, eye[None])


def _mean(calls: Sequence[_Call], streams: int) -> Tensor:
    """Return the mean over the tokens of several calls; NaN without any."""
    if not calls:
        return torch.full((streams, streams), math.nan)
    if len(calls) == 1:
        return calls[0].mean
    total = sum(call.count for call in calls)
    return torch.stack([call.mean * (call.count / total) for call in calls]).sum(0)


def _deviations(calls: Mapping[tuple[int, int], _Call], device: torch.device) -> dict[int, Tensor]:
    """Return by layer how far the sums of rows and of columns are from 1, at most, over all of its calls: `(2,)`."""
    alike: dict[Any, list[tuple[int, Tensor]]] = {}
    for (_, index), call in calls.items():
        alike.setdefault((call.few.shape, call.few.dtype, call.few.device), []).append((index, call.few))
    found: dict[int, Tensor] = {}
    for held in alike.values():
        stack = torch.stack([few for _, few in held]).to(device, _wide(device), non_blocking=True)
        told = torch.stack([(stack.sum(axis) - 1).abs_().amax((1, 2)) for axis in (-1, -2)], 1)
        for (index, _), row in zip(held, told, strict=True):
            found[index] = torch.maximum(found[index], row) if index in found else row
    return found


def _gains(chain: Sequence[Tensor]) -> Tensor:
    """Return the largest row sum of the product to each layer, and column sum of that from it: `(layers, 2)`.

    Sums of a product are products with a vector of ones.
    """
    if len({len(m) for m in chain} - {1}) > 1:  # pooled in between: no token is the same before and after
        chain = [m.mean(0, keepdim=True) for m in chain]
    rows, columns = chain[0].new_ones(1, chain[0].shape[-1], 1), chain[0].new_ones(1, 1, chain[0].shape[-1])
    forward, backward = [], []
    for m in chain:
        rows = m @ rows
        forward.append(rows.mean(0).flatten())
    for m in reversed(chain):
        columns = columns @ m
        backward.append(columns.mean(0).flatten())
    both = torch.stack((torch.stack(forward), torch.stack(backward[::-1])), 1)
    return both.abs().amax(-1)
