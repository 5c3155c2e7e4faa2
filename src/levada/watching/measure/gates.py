"""What the gates of recurrences keep of a memory at a sampled step, and how far back that alone reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.probe.memory import BACK, horizon
from levada.probe.recurrence import LEAST_CALLS
from levada.probe.recurrences import ROWS
from levada.runs.inside import GATES
from levada.watching.loop.method import MethodTap, unseen
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.compiled import find_regions

__all__ = ["GateTaps", "Gated", "SentGates"]

_MOST: Final = 64  # recurrences of a sample
_GATES: Final = {"LSTM": "forget gate", "GRU": "update gate", "LSTMCell": "forget gate", "GRUCell": "update gate"}
_QUANTILES: Final = (0.05, 0.95)


@final
@dataclass(frozen=True, slots=True)
class Gated:
    r"""What the gates of a model's recurrences were at one sampled step: the factor on each unit's own memory.

    With $f_t$ the factors of the last 512 steps, the gates alone leave $\sqrt{\operatorname{mean}\prod_t f_t^2}$ of a
    gradient; the mean is over units and rows.

    Attributes:
        sites: the module, with layer and direction where it has several.
        kinds: of each, its class.
        gates: of each, "forget gate", "update gate" or "carry gate": all are 1 where the memory is kept.
        signals: a name of `GATES` -> float32 tensor `(sites,)`.
        unseen: recurrent modules whose gates cannot be seen -> why.
    """

    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    gates: tuple[str, ...]
    signals: Mapping[str, Tensor]
    unseen: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One recurrence: the factors, `(steps, rows, units)`, one tensor or one a step."""

    kind: str
    gate: str
    factors: list[Tensor]

    @property
    def steps(self) -> int:
        return len(self.factors[0]) if self.factors[0].dim() == 3 else len(self.factors)


@final
class SentGates:
    """Numbers of a sampled step on their way to the host, as `GateTaps.pack` lays them out.

    Args:
        values: one after the other: of each site mean, quantiles, and the logarithms of what is left, by steps back.
        sites: names, classes and gates.
        lengths: how many steps back there are.
        unseen: as of `Gated`.
    """

    def __init__(
        self,
        values: Tensor,
        sites: Sequence[tuple[str, str, str]],
        lengths: Sequence[int],
        unseen: Mapping[str, str],
    ) -> None:
        self.values = values
        self._sites, self._lengths, self._unseen = sites, lengths, unseen

    def host(self, values: Tensor) -> Gated:
        """Return what was sent.

        Args:
            values: on the host.
        """
        rows = []
        for part in torch.split(values.double(), [3 + length for length in self._lengths]):
            reach = horizon(part[3:])[0] if bool(part[3:].isfinite().all()) else torch.nan
            rows.append([*part[:3].tolist(), reach])
        names, kinds, gates = zip(*self._sites, strict=True) if self._sites else ((), (), ())
        table = torch.tensor(rows).reshape(-1, len(GATES))
        return Gated(names, kinds, gates, dict(zip(GATES, table.unbind(1), strict=True)), self._unseen)


@final
class GateTaps:
    """Taps on recurrences whose gates are known: torch's LSTM and GRU and their cells, and the cells of `levada.cells`.

    Taken are 16 rows of the batch. A module of torch's with one layer is followed by what it returned; of one with
    several the layers below the last are run once more on these rows.

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
        self._seen: dict[tuple[int, str], _Seen] = {}
        self._last: dict[str, tuple[Any, list[Tensor]]] = {}  # of cells in a loop: what was returned, and the gates
        self._handles: list[RemovableHandle] = []
        self._compiled: dict[str, str] = {}
        self.unseen: dict[str, str] = {}
        self.modules: list[tuple[str, nn.Module]] = []
        _, inside, whole = find_regions(model)
        for name, module in original(model).named_modules():
            if not isinstance(module, nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell) and not _tells(module):
                continue
            if id(module) in inside or id(module) in whole:
                self._compiled[plain_name(name)] = "it runs compiled"
            else:
                self.modules.append((plain_name(name), module))
        self._taps = [
            MethodTap(module, "unroll", self._of_unroll(name, module))
            for name, module in self.modules
            if callable(getattr(type(module), "unroll", None))
        ]

    def other(self, found: GateTaps) -> bool:
        """Return whether another look at the model found other modules."""
        held = [[(name, id(module)) for name, module in taps.modules] for taps in (self, found)]
        return held[0] != held[1] or self._compiled != found._compiled

    def attach(self) -> None:
        """Put the taps on the modules."""
        for tap in self._taps:
            tap.put()
        for name, module in self.modules:
            take = self._sequence if isinstance(module, nn.RNNBase) else self._step
            self._handles.append(module.register_forward_hook(Hook(self._hook(name, take)), with_kwargs=True))

    def detach(self) -> None:
        """Take them off, and forget what was taken."""
        for tap in self._taps:
            tap.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()
        self._last.clear()
        self.unseen = dict(self._compiled)

    def _hook(self, name: str, take: Callable[..., None]) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, made: Any) -> None:
            if not torch.compiler.is_compiling():
                self._heard(take, name, module, [*args, *kwargs.values()], made)

        return hook

    def _of_unroll(self, name: str, module: Any) -> Callable[[Any, Any], None]:
        return lambda args, made: self._heard(self._unrolled, name, module, args, made)

    def _unrolled(self, name: str, cell: Any, args: Sequence[Any], made: Any) -> None:
        """Take a sequence that a cell of `levada.cells` ran."""
        number = self._running()
        if number is None:
            return
        x, state = args
        with unseen(x.device.type):
            first, h = state[0][:ROWS], made[0][:, :ROWS]
            before = torch.cat([first[None], h[:-1]])
            known = (before, *([None] * (len(state) - 1)))
            try:
                factors = cell.carry(cell.project(x[:, :ROWS]), known)
            except TypeError:
                self.unseen[name] = "its gate reads more of the state than h"
                return
        if factors is not None:
            self._keep(number, name, _Seen(type(cell).__name__, cell.gate, [factors.detach()]))

    def _step(self, name: str, cell: Any, args: Sequence[Any], made: Any) -> None:
        """Take a step of a cell in a loop, which goes on if it was given what it returned."""
        number = self._running()
        if number is None or not args or not isinstance(args[0], Tensor) or args[0].dim() != 2:
            return
        x, state = args[0], args[1] if len(args) > 1 else None
        given = state[0] if isinstance(state, tuple | list) else state
        with unseen(x.device.type):
            factor = _gate_of(cell, x[:ROWS], None if given is None else given[:ROWS])
        if factor is None:
            return
        returned, factors = self._last.get(name, (None, []))
        factors = [*factors, factor] if given is not None and given is returned else [factor]
        self._last[name] = made[0] if isinstance(made, tuple) else made, factors
        if len(factors) > LEAST_CALLS:
            kind = type(cell).__name__
            self._keep(number, name, _Seen(kind, _GATES.get(kind, getattr(cell, "gate", "")), factors))

    def _keep(self, number: int, site: str, seen: _Seen) -> None:
        """Keep the longest stretch of a pass."""
        held = self._seen.get((number, site))
        if held is None or seen.steps > held.steps:
            self._seen[number, site] = seen

    def _sequence(self, name: str, module: nn.RNNBase, args: Sequence[Any], made: Any) -> None:
        """Take a sequence that a module of torch's ran."""
        number = self._running()
        if number is None:
            return
        x = args[0]
        if isinstance(x, PackedSequence):
            self.unseen[name] = "its sequences are packed"
        elif module.proj_size:
            self.unseen[name] = "it has projections"
        elif module.num_layers > 1 and module.dropout and module.training:
            self.unseen[name] = "what its layers drop between them is not known"
        else:
            with unseen(x.device.type):
                for site, factors in _layers(module, x.detach(), args[1] if len(args) > 1 else None, made[0].detach()):
                    seen = _Seen(type(module).__name__, _GATES[module.mode], [factors])
                    self._keep(number, f"{name}{site}", seen)

    def pack(self, counted: set[int], device: torch.device) -> SentGates | None:
        """Return what was taken in the last pass that counts, on the device; None if there is no recurrence.

        Args:
            counted: numbers of the passes that count.
            device: where to.
        """
        told = {**self._compiled, **self.unseen}
        numbers = [number for number, _ in self._seen if number in counted]
        if not numbers:
            return SentGates(torch.empty(0, device=device), [], [], told) if told else None
        every = [(site, seen) for (number, site), seen in self._seen.items() if number == max(numbers)]
        found = every[:_MOST]
        told |= {site: f"of each sample {_MOST} are kept" for site, _ in every[_MOST:]}
        with unseen(device.type):
            rows = [_numbers(seen.factors, device) for _, seen in found]
        lengths = [len(row) - 3 for row in rows]
        return SentGates(torch.cat(rows), [(s, seen.kind, seen.gate) for s, seen in found], lengths, told)


def _tells(module: nn.Module) -> bool:
    """Whether a cell says what its gate is, as those of `levada.cells` do."""
    kind = type(module)
    told = isinstance(getattr(module, "gate", None), str) and bool(module.gate)
    return told and all(callable(getattr(kind, name, None)) for name in ("project", "carry"))


def _gate_of(cell: Any, x: Tensor, h: Tensor | None) -> Tensor | None:
    """Return the factor on each unit's memory in one step; None where it cannot be told."""
    if not isinstance(cell, nn.LSTMCell | nn.GRUCell):
        if h is None:
            return None
        try:
            made = cell.carry(cell.project(x), (h, *([None] * (len(cell.state_shapes) - 1))))
        except TypeError:
            return None
        return made if made is None else made.detach()
    rows = slice(cell.hidden_size, 2 * cell.hidden_size)
    h = x.new_zeros(len(x), cell.hidden_size) if h is None else h
    return _gate(cell.weight_ih[rows], cell.weight_hh[rows], cell.bias_ih, cell.bias_hh, x, h, rows)


def _gate(w: Tensor, u: Tensor, b: Any, c: Any, x: Tensor, h: Tensor, rows: slice) -> Tensor:
    biases = (None, None) if b is None else (b[rows], c[rows])
    kind = w.dtype
    return (nn.functional.linear(x.to(kind), w, biases[0]) + nn.functional.linear(h.to(kind), u, biases[1])).sigmoid()


def _layers(module: nn.RNNBase, x: Tensor, state: Any, output: Tensor) -> list[tuple[str, Tensor]]:
    """Return each layer's and direction's gate, `(steps, rows, units)`, in the order in which it runs."""
    if x.dim() == 2:
        x, output = x[:, None], output[:, None]
    elif module.batch_first:
        x, output = x.transpose(0, 1), output.transpose(0, 1)
    x, output, size = x[:, :ROWS], output[:, :ROWS], module.hidden_size
    ways = 2 if module.bidirectional else 1
    lstm = isinstance(module, nn.LSTM)
    shape = (module.num_layers * ways, x.shape[1], size)
    given = state if isinstance(state, tuple) else (state,) * (1 + lstm)
    first = [x.new_zeros(shape) if s is None else s.reshape(shape[0], -1, size)[:, :ROWS].detach() for s in given]
    weights: list[list[Tensor]] = module.all_weights  # type: ignore[assignment]
    found = []
    for layer in range(module.num_layers):
        mine = slice(layer * ways, (layer + 1) * ways)
        if layer < module.num_layers - 1:
            flat = [w for each in weights[mine] for w in each]
            begin = [s[mine].contiguous().to(flat[0].dtype) for s in first]
            options = module.bias, 1, 0.0, False, module.bidirectional, False
            run: Any = torch.lstm if lstm else torch.gru
            h = run(x.to(flat[0].dtype), begin if lstm else begin[0], flat, *options)[0]
        else:
            h = output
        for way in range(ways):
            w, u, *biases = weights[layer * ways + way][:4]
            mark = first[0][layer * ways + way][None].to(h.dtype)
            own, read = h[..., way * size : (way + 1) * size], x
            own, read = (own.flip(0), read.flip(0)) if way else (own, read)
            rows = slice(size, 2 * size)
            b, c = biases if module.bias else (None, None)
            site = f"[layer {layer}{', ' + ('backward' if way else 'forward') if ways > 1 else ''}]"
            whole = module.num_layers * ways == 1
            before = torch.cat([mark, own[:-1]])
            found.append(("" if whole else site, _gate(w[rows], u[rows], b, c, read, before, rows)))
        x = h
    return found


def _numbers(factors: list[Tensor], device: torch.device) -> Tensor:
    """Return mean and quantiles over units, and the logarithm of what the gates leave, from 0 steps back on."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    stack = (factors[0] if factors[0].dim() == 3 else torch.stack(factors)).to(device, wide, non_blocking=True)
    units = stack.mean((0, 1))
    spread = torch.quantile(units, units.new_tensor(_QUANTILES))
    back = stack[-BACK:].log().flip(0).cumsum(0)
    left = (2 * back).flatten(1).logsumexp(1) - torch.log(units.new_tensor(float(back[0].numel())))
    return torch.cat([units.mean()[None], spread, left.new_zeros(1), left / 2])
