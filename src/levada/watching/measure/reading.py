"""What one sampled step measured: sums and counts by block, on the device until the step is over."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor

from levada.probe.collector import Slot
from levada.watching.loop.arrivals import Arrival, hear_gradient
from levada.watching.loop.losses import graph_task, in_backward
from levada.watching.loop.own import OwnPasses
from levada.watching.measure.statistics import Statistics

__all__ = ["TABLE", "Reading", "plain"]

TABLE: Final = ("signal", "signal_count", "gradient", "gradient_count", "zeros", "zeros_count")
"""Columns of a block's row: sums of squares and of zeros, and over how many elements."""

_KEPT = 1 << 26  # bytes of gradients that wait for more, where a graph is gone through again


def plain(tensor: Tensor) -> Tensor:
    """Return what of a tensor is in this process."""
    if type(tensor) is Tensor:  # `hasattr` is slow where there is none
        return tensor
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@final
class Reading:
    """One sampled step.

    Args:
        step: its number.
        statistics: the collectors.
        own: the backward passes that are the loop's.
        careful: measure each tensor when it comes, and learn which are overwritten later.
        fail: told if measuring a gradient raises.
    """

    def __init__(
        self,
        step: int,
        statistics: Statistics,
        own: OwnPasses,
        *,
        careful: bool,
        fail: Callable[[Exception], None],
    ) -> None:
        self.step = step
        self.passes = 0
        self._of: dict[int, int] = {}  # thread -> the pass that it began last
        self.counted = set[int]()  # the passes that led to the update, when the table was made
        self.late = False  # it was opened when its step had begun
        self.calls: dict[int, tuple[int, ...]] = {}  # block -> shape of its output, in order of first call
        self.tanh: set[int] = set()  # blocks whose output a tanh has made
        self._statistics, self._own = statistics, own
        self._careful = careful
        self._fail = fail
        self._open = True
        self._between = True  # no pass has begun since the last backward pass
        self._task: int | None = None  # the backward pass in which blocks run that did not run before it
        self._forward: set[int] = set()  # blocks that ran outside of a backward pass
        self._failed: set[int] = set()
        self._cleared: set[int] = set()
        self._reached: set[int] = set()
        self._expected: dict[int, tuple[Slot, int]] = {}  # calls through whose output a gradient may come
        self._arrived: set[int] = set()
        self._kept: dict[int, Tensor] = {}  # gradients of outputs through which more may come
        self._unknown: set[int] = set()  # blocks where more came, and the first part was not kept
        self._without_graph: set[Slot] = set()
        self._versions: list[tuple[int, Tensor, int]] = []
        self._handles: list[Any] = []
        self._number = 0
        self.seconds = 0.0  # in hooks of gradients

    @property
    def outside(self) -> bool:
        """Whether a block that runs now begins a pass, if the model was not called: its parts were, one by one."""
        return self._between and not in_backward()

    @property
    def number(self) -> int:
        """The pass that is under way in this thread."""
        return self._of.get(threading.get_ident(), self.passes)

    def begin(self) -> None:
        """Begin a pass."""
        self.passes += 1
        self._of[threading.get_ident()] = self.passes
        self._between = False

    def backward(self) -> None:
        """Hear of a backward pass that is about to begin."""
        if self._versions or not self._between:
            self.end(True)
        self._between, self._task = True, None

    def see(self, place: int, tensor: Tensor, *, activation: bool, block: bool) -> None:
        """Take the output of an activation in a block, of the block, or of what is both."""
        if in_backward():
            if not self._is_new(place):
                if block:
                    self._see_again((self.passes, place), tensor)
                return
        elif block:
            self._forward.add(place)
        slot = self.passes if in_backward() else self.number, place
        if block and place not in self.calls:
            self.calls[place] = tuple(tensor.shape)
            if tensor.grad_fn is not None and tensor.grad_fn.name() == "TanhBackward0":
                self.tanh.add(place)
        if tensor.is_floating_point():
            value = tensor if type(tensor) is Tensor else plain(tensor)
            with self._statistics.lock:
                if not self._open:  # another thread has ended the step
                    return
                self._measure(slot, value, activation=activation, block=block)
        if not block:
            return
        if tensor.requires_grad and torch.is_grad_enabled():
            self._expect(slot, tensor)
        else:
            self._without_graph.add(slot)

    def _measure(self, slot: Slot, value: Tensor, *, activation: bool, block: bool) -> None:
        if self._careful and not value.is_inference():
            self._versions.append((slot[1], value, value._version))
        if activation and block:
            self._statistics.see(slot, value, at_once=self._careful)
        else:
            kind = self._statistics.zeros if activation else self._statistics.signal
            kind.add(slot, value, at_once=self._careful)

    def _see_again(self, slot: Slot, tensor: Tensor) -> None:
        """Take what a checkpoint computes again: what it made under no_grad first has its graph only now."""
        if slot in self._without_graph and tensor.requires_grad:
            self._without_graph.discard(slot)
            self._expect(slot, tensor)

    def _is_new(self, place: int) -> bool:
        """Whether a block that runs in a backward pass was not seen before it, as if all of the model is recomputed."""
        if place in self._forward:
            return False
        if self._task is None:
            self._task = graph_task()
            self.passes += 1
        return self._task == graph_task()  # else a checkpoint inside computes it once more

    def _expect(self, slot: Slot, tensor: Tensor) -> None:
        with self._statistics.lock:
            self._number = number = self._number + 1
            self._expected[number] = slot, tensor.numel()
        handle = hear_gradient(tensor, Arrival(self._arrive, number, slot))
        if handle is not None:
            self._handles.append(handle)

    def _arrive(self, number: int, slot: Slot, gradient: Tensor | None) -> None:
        if (
            not self._open or gradient is None or not self._own.counted
        ):  # None where not all outputs of a function are used
            return
        begun = time.perf_counter()
        try:
            with self._statistics.lock:
                self._reached.add(slot[0])
                gradient = gradient.detach() if gradient.requires_grad else gradient
                self._take(number, slot, gradient if type(gradient) is Tensor else plain(gradient))
        except Exception as error:  # in a backward pass that must go on
            self._fail(error)
        self.seconds += time.perf_counter() - begun

    def _take(self, number: int, slot: Slot, gradient: Tensor) -> None:
        """Measure a gradient, or keep it, where the graph is kept too, until all that is added to it has come."""
        if number in self._arrived:
            if number in self._kept:
                self._kept[number] += gradient
            else:
                self._unknown.add(slot[1])
        elif self._own.retains and sum(map(_bytes, self._kept.values())) + _bytes(gradient) <= _KEPT:
            self._kept[number] = gradient.clone()
        else:
            self._statistics.gradient.add(slot, gradient, at_once=self._careful)
        self._arrived.add(number)

    def end(self, completed: bool) -> None:
        """End a pass: measure what is held of it before it can be overwritten; forget it if it failed."""
        with self._statistics.lock:
            self._statistics.signal.flush()
            self._statistics.zeros.flush()
            for place, tensor, version in self._versions:
                if tensor._version != version:
                    self._statistics.signal.hasty.add(place)
                    self._statistics.zeros.hasty.add(place)
            self._versions.clear()
        if not completed:
            self._failed.add(self.number)
            self._between = True

    def restart(self) -> None:
        """Forget the passes whose gradients were cleared before the update."""
        with self._statistics.lock:
            self._cleared |= self._reached
            self._statistics.gradient.clear()
            for told in (self._reached, self._arrived, self._kept, self._unknown):
                told.clear()

    def close(self) -> None:
        """Take nothing more."""
        with self._statistics.lock:
            self._open = False
            self._versions.clear()
            self._kept.clear()
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._statistics.clear()

    def table(self, places: int, device: torch.device) -> Tensor:
        """Return what was measured, on the device.

        Args:
            places: number of blocks.
            device: where to.

        Shape:
            `(places, len(TABLE))`
        """
        if self._versions:
            self.end(True)
        wide = torch.float32 if device.type == "mps" else torch.float64
        with self._statistics.lock:
            for number, gradient in self._kept.items():
                self._statistics.gradient.add(self._expected[number][0], gradient)
            for kind in self._statistics.all():
                kind.flush()
            expected = [*self._expected.items()]
            # Within the lock: another thread that adds meanwhile would leave slots without their sums.
            measured = [kind.rows(device, wide) for kind in self._statistics.all()]
        table = torch.zeros(places, len(TABLE), dtype=wide)
        reached = self._reached or set(range(self.passes + 1))
        those = self.counted = reached - self._failed - (self._cleared - self._reached)
        for number, (slot, count) in expected:
            if number not in self._arrived and slot[0] in those & self._reached:  # no gradient reached it: it is zero
                table[slot[1], 3] += count
        result = table.to(device, non_blocking=True)
        for place, found in enumerate(measured):
            self._sum(result[:, 2 * place : 2 * place + 2], *found, those)
        if self._unknown:
            result[sorted(self._unknown), 2:4] = 0.0  # nothing was counted: NaN
        return result

    @staticmethod
    def _sum(columns: Tensor, slots: list[Slot], counts: list[int], sums: Tensor, those: set[int]) -> None:
        rows = [row for row, slot in enumerate(slots) if slot[0] in those]
        if not rows:
            return
        numbers = array("q", rows)
        numbers.extend(slots[row][1] for row in rows)
        numbers.extend(counts[row] for row in rows)
        # A tensor of a list takes longer.
        found = torch.frombuffer(numbers, dtype=torch.int64).view(3, len(rows)).to(columns.device, non_blocking=True)
        index, sites, weight = found.unbind(0)
        columns.index_add_(0, sites, torch.stack((sums[index], weight.to(columns.dtype)), dim=1))


def by_block(table: Tensor, scale: float) -> dict[str, Tensor]:
    """Return the signals of blocks from their sums, on the host.

    Args:
        table: from `Reading.table`.
        scale: what the loss was multiplied by; NaN if unknown.
    """
    missing = torch.tensor(math.nan, dtype=torch.float64)
    result = {}
    for name, kind in (("signal_rms", 0), ("gradient_rms", 2), ("zero_fraction", 4)):
        total, count = table[:, kind], table[:, kind + 1]
        mean = total / count  # 0 / 0 is NaN
        result[name] = mean if kind == 4 else mean.sqrt()
        if kind < 4:
            flag = (~torch.isfinite(total)).double()
            result["nonfinite" if kind == 0 else "gradient_nonfinite"] = torch.where(count > 0, flag, missing)
    result["gradient_rms"] = result["gradient_rms"] / scale
    return result
