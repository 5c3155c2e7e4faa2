"""How the tensors of a sampled step are measured: many in one call where loops take them, else in stacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Final, Literal, final

import torch
from torch import Tensor

from levada.ops._loading import import_kernels
from levada.ops.statistics import cpu
from levada.ops.statistics.reference import COLUMNS, SQUARES, ZEROS
from levada.probe.collector import Collector, Slot
from levada.probe.statistics import mean_square
from levada.watching.measure.listed import loops

__all__ = ["Kind", "Pool", "Statistics"]

_ROOM: Final = 1 << 18  # elements that wait to be measured together: they fit into a cache
_LOADING = 1.0  # seconds that it takes to load the loops; a few more once, when they are compiled
_HALVES: Final = torch.float16, torch.bfloat16
_LISTED: Final = {torch.float32, torch.float64, *_HALVES}
_VERSION: Final = attrgetter("_version")
_COLUMN: Final = {SQUARES: COLUMNS.index("squares"), ZEROS: COLUMNS.index("zeros")}


def _squares(stack: Tensor) -> Tensor:
    """Return mean squares, `(rows, ...) -> (rows, 1)`; half precision is added up in float32."""
    if stack.device.type == "cuda" and stack.dtype in _HALVES:
        dims = tuple(range(1, stack.dim())) or None
        norm: Tensor = torch.linalg.vector_norm(stack, dim=dims, dtype=torch.float32)
        return (norm.double().square() / stack[0].numel()).reshape(-1, 1)
    return mean_square(stack)[:, None]


def _zeros(stack: Tensor) -> Tensor:
    """Return shares of exact zeros, `(rows, ...) -> (rows, 1)`."""
    if stack.device.type != "cpu":
        return (stack == 0).flatten(1).double().mean(1)[:, None] if stack.dim() > 1 else (stack == 0).double()[:, None]
    # Comparing into floats is faster than into booleans, and memory that is new costs more than both.
    if stack.numel() <= _ROOM:
        rows = stack.flatten(1) if stack.dim() > 1 else stack[:, None]
        return torch.eq(rows, 0.0, out=_scratch(stack.numel()).view(rows.shape)).mean(1)[:, None]
    shares = []
    for row in stack.flatten(1):
        counts = [torch.eq(piece, 0.0, out=_scratch(piece.numel())).sum() for piece in row.split(_ROOM)]
        shares.append(torch.stack(counts).sum(dtype=torch.float64) / row.numel())
    return torch.stack(shares)[:, None]


def _both(stack: Tensor) -> Tensor:
    """Return mean squares and shares of exact zeros, `(rows, ...) -> (rows, 2)`."""
    return torch.cat((_squares(stack), _zeros(stack)), 1)


_memory: Final = threading.local()  # loops that are watched in several threads write to it at once


def _scratch(count: int) -> Tensor:
    if not hasattr(_memory, "tensor"):
        _memory.tensor = torch.empty(_ROOM, dtype=torch.float32)
    scratch: Tensor = _memory.tensor
    return scratch[:count]


@final
class Pool:
    """Tensors of any shape on a CPU that wait to be measured in one call; one that is told twice is measured once."""

    def __init__(self) -> None:
        self.on = False
        self.clear()

    def takes(self, tensor: Tensor) -> bool:
        """Return whether a tensor can wait here."""
        return (
            self.on
            and type(tensor) is Tensor
            and tensor.is_cpu
            and tensor.dtype in _LISTED
            and tensor.layout is torch.strided
            and not tensor.is_inference()
            and not tensor.is_nested
        )

    def add(self, kinds: tuple[Kind, ...], wanted: int, slot: Slot, tensor: Tensor) -> None:
        """Take a tensor, and measure what waits if it is enough."""
        held = self._held
        if held and held[-1] is tensor and self._slots[-1] == slot and self._versions[-1] == tensor._version:
            self._wanted[-1] |= wanted
            self._kinds.update(kinds)
            return
        held.append(tensor)
        self._wanted.append(wanted)
        self._slots.append(slot)
        self._versions.append(tensor._version)
        self._kinds.update(kinds)
        self._counts.append(count := tensor.numel())
        self._elements += count
        if self._elements >= _ROOM:
            self.flush()

    def flush(self) -> None:
        """Measure what is held; what was overwritten meanwhile is left out, and from then on measured at once."""
        if not self._held:
            return
        rows = cpu.statistics(self._held, self._wanted)
        good = [*map(_VERSION, self._held)] == self._versions
        for kind in self._kinds:
            kind.take(rows, self._slots, self._counts, [w & kind.wanted for w in self._wanted], good or self._intact())
        self.clear()

    def _intact(self) -> list[bool]:
        return [tensor._version == version for tensor, version in zip(self._held, self._versions, strict=True)]

    def clear(self) -> None:
        """Let go of what waits."""
        self._held: list[Tensor] = []
        self._wanted: list[int] = []
        self._slots: list[Slot] = []
        self._versions: list[int] = []
        self._counts: list[int] = []
        self._kinds: set[Kind] = set()
        self._elements = 0


@final
class Kind:
    """One statistic of the tensors of a sampled step: mean squares, or shares of zeros.

    Args:
        wanted: which of them.
        pool: where they wait.
        both: stacks of which `_both` are measured, if any.
    """

    def __init__(self, wanted: int, pool: Pool, both: Collector | None = None) -> None:
        self.wanted = wanted
        self.column, self._pool = _COLUMN[wanted], pool
        self._stacks = Collector(_squares if wanted == SQUARES else _zeros, room=_ROOM)
        self._sources = [(self._stacks, 0)] if both is None else [(self._stacks, 0), (both, int(wanted == ZEROS))]
        if both is not None:
            self._stacks.hasty = both.hasty
        self.hasty = self._stacks.hasty  # blocks whose tensor is overwritten later
        self.clear()

    def add(self, slot: Slot, tensor: Tensor, *, at_once: bool = False) -> None:
        """Take a tensor of a block.

        Args:
            slot: the pass, and the block.
            tensor: of floating point.
            at_once: whether to measure it now, as where it may be overwritten.
        """
        if at_once or slot[1] in self.hasty or not self._pool.takes(tensor):
            self._stacks.add(slot, tensor, at_once=at_once)
        else:
            self._pool.add((self,), self.wanted, slot, tensor)

    def take(
        self,
        rows: Tensor,
        slots: list[Slot],
        counts: list[int],
        wanted: Sequence[int],
        intact: Literal[True] | Sequence[bool],
    ) -> None:
        """Take rows of `cpu.statistics`.

        Args:
            rows: of all tensors.
            slots: of each.
            counts: elements of each.
            wanted: of each whether this statistic is.
            intact: of each whether it was not overwritten; True if none was.
        """
        sums: list[float] = rows[:, self.column].tolist()
        if intact is True and all(wanted):
            self.slots += slots
            self.counts += counts
            self.sums += sums
            return
        whole = repeat(True, len(slots)) if intact is True else intact
        for slot, count, total, one, good in zip(slots, counts, sums, wanted, whole, strict=True):
            if one and good:
                self.slots.append(slot)
                self.counts.append(count)
                self.sums.append(total)
            elif one:
                self.hasty.add(slot[1])

    def flush(self) -> None:
        """Measure what is held."""
        self._pool.flush()
        for stacks, _ in self._sources:
            stacks.flush()

    def rows(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Slot], list[int], Tensor]:
        """Return of all tensors the slot, the number of elements, and the sum of the statistic over them."""
        measured = [(slots, n, block[:, at]) for stacks, at in self._sources for slots, n, block in stacks.rows]
        values = [torch.tensor(self.sums, dtype=dtype).to(device, non_blocking=True)] if self.sums else []
        slots = self.slots + [slot for held, _, _ in measured for slot in held]
        counts = self.counts + [count for held, count, _ in measured for _ in held]
        values += [column.to(device, dtype, non_blocking=True) * count for _, count, column in measured]
        return slots, counts, torch.cat(values) if values else torch.empty(0, dtype=dtype, device=device)

    def clear(self) -> None:
        """Forget everything but what was learned about overwriting."""
        self._pool.clear()
        for stacks, _ in self._sources:
            stacks.clear()
        self.slots: list[Slot] = []  # of what was measured: the pass and the block,
        self.counts: list[int] = []  # how many elements,
        self.sums: list[float] = []  # and the sum over them


@final
class Statistics:
    """What measures in all sampled steps: what it learned about tensors that are overwritten stays."""

    def __init__(self) -> None:
        self._forward, self._backward = Pool(), Pool()
        self._stacks = Collector(_both, room=_ROOM)
        self.signal, self.zeros = (Kind(wanted, self._forward, self._stacks) for wanted in (SQUARES, ZEROS))
        self.gradient = Kind(SQUARES, self._backward)
        self._kinds = self.signal, self.zeros
        # Gradients arrive in a thread for each device, others run the model, and a signal may end the watch anywhere.
        self.lock = threading.RLock()

    def all(self) -> tuple[Kind, Kind, Kind]:
        """Return them in the order of the table."""
        return self.signal, self.gradient, self.zeros

    def see(self, slot: Slot, tensor: Tensor, *, at_once: bool) -> None:
        """Take the output of a block that ends with an activation: both of its statistics are measured in one go.

        Args:
            slot: the pass, and the block.
            tensor: of floating point.
            at_once: as of `Kind.add`.
        """
        if at_once or slot[1] in self._stacks.hasty or not self._forward.takes(tensor):
            self._stacks.add(slot, tensor, at_once=at_once)
        else:
            self._forward.add(self._kinds, SQUARES | ZEROS, slot, tensor)

    def load(self, affords: Callable[[float], bool]) -> None:
        """Load the loops, where the time that it takes is paid for; something else may have loaded them.

        Args:
            affords: whether so many seconds are.
        """
        if not self._forward.on and (loops() is not None or affords(_LOADING)):
            kernels = import_kernels("levada.ops.statistics.loops", "numba")
            self._forward.on = self._backward.on = kernels is not None

    def clear(self) -> None:
        """Drop what is held."""
        for kind in self.all():
            kind.clear()
