"""Forward passes that a loop leaves out, because something of them is not finite: no optimizer step tells of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding, Severity
from levada.probe.recorder import tensors
from levada.watching.reading import plain
from levada.watching.transfer import Sent

__all__ = ["Skips"]

RULE: Final = "skipped_steps"
# Passes that a verdict looks back on, and of these the least that were left out: a guard may meet an odd batch.
WINDOW, ENOUGH = 64, 8
MOST: Final = 0.5  # from this share on, what is trained is hardly the data
_REST: Final = 1024  # passes after which outputs are looked at again, at the latest, while passes lack a backward pass
_BATCH: Final = 8  # outputs whose numbers leave an accelerator together
_OUTPUTS: Final = 4  # of one pass, at which the gradient is waited for
_TYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(slots=True, eq=False)
class _Left:
    """A pass that may have been left out, by its output or its loss, and whether a gradient came back."""

    number: int
    bad: Tensor  # 1 if that is not finite
    kind: str
    reached: bool = False

    def arrived(self, gradient: Tensor) -> None:
        self.reached = True


@final
class Skips:
    """Counts the passes of training whose output or loss is not finite, and which no update used.

    A loop that goes on to the next batch where the loss is not finite steps no optimizer then. Such a pass has no
    backward pass, which is seen as another begins: from then on the outputs of the next 64 are looked at, for NaN and
    +Inf (a mask writes -Inf), and whether a gradient comes back through them. While that finds nothing, as with passes
    of validation, with a rehearsal, or with two passes for one backward pass, it is done ever more rarely. Or it had a
    backward pass, and its gradients were cleared before an update: then its loss is known.

    Counted are passes with gradients, in that mode of the model, training or not, in which it last learned. A loss that
    is not finite, though the output is, and that has no backward pass, is not seen.

    Attributes:
        tell: called with a finding where it is new or has become worse, and with None when it is over.

    Example:
        >>> found, skips = [], Skips()
        >>> skips.tell = found.append
        >>> for _ in range(12):
        ...     skips.begun(0, training=True)
        ...     skips.returned(torch.full((2,), math.nan, requires_grad=True) * 1.0)
        >>> found[0].severity, found[0].evidence["skipped"], found[0].evidence["passes"]
        ('error', 8, 10)
    """

    def __init__(self) -> None:
        self.tell: Callable[[Finding | None], None] | None = None
        self._step = 0
        self._count = 0
        self._mode: bool | None = None  # in which the model last learned
        self._training = self._counts = False
        self._waits = False  # a pass, for its backward pass
        self._until = self._again = 0  # pass up to which outputs are looked at, and from which on they may be again
        self._rest = WINDOW
        self._fresh: deque[_Left] = deque(maxlen=4 * WINDOW)
        self._sent: deque[tuple[Sent, list[_Left]]] = deque()
        self._bad: deque[_Left] = deque()
        self._severity: Severity | None = None

    def begun(self, step: int, *, training: bool) -> None:
        """Hear that a pass with gradients begins.

        Args:
            step: that it belongs to.
            training: the model's mode.
        """
        self._step, self._training = step, training
        self._counts = training == (self._mode is None or self._mode)
        if not self._counts:
            return
        self._count += 1
        if self._count == self._until:
            self._rest = min(2 * self._rest, _REST) if not self._bad else WINDOW
            self._again = self._count + self._rest * (not self._bad)
        if self._waits and self._count >= max(self._until, self._again):
            self._until = self._count + WINDOW
        self._waits = True
        if self._fresh or self._sent or self._bad:
            self._look()

    def returned(self, output: Any) -> None:
        """Hear what a pass with gradients gave.

        Args:
            output: any nest.
        """
        if not self._counts or self._count >= self._until:
            return
        found = [t for t in tensors(output) if t.requires_grad and not t.is_leaf and t.dtype in _TYPES][:_OUTPUTS]
        if not found or not found[0].numel():
            return
        left = _Left(self._count, _above(plain(found[0].detach()).amax()), "output")
        for each in found:
            each.register_hook(left.arrived)  # type: ignore[no-untyped-call]
        self._fresh.append(left)

    def learned(self) -> None:
        """Hear that a backward pass was this model's."""
        self._mode, self._waits = self._training, False

    def dropped(self, loss: Tensor) -> None:
        """Hear that the gradients of a loss were cleared before an update.

        Args:
            loss: on its device.
        """
        self._fresh.append(_Left(self._count, _above(loss.detach().abs()), "loss"))

    def _look(self) -> None:
        """Take what is known of the passes before this one."""
        before = [left for left in self._fresh if left.number < self._count]
        if before and (before[0].bad.device.type == "cpu" or len(before) >= _BATCH):
            for _ in before:
                self._fresh.popleft()
            flags, numbers = [left.bad.reshape(1) for left in before], [left.number for left in before]
            self._sent.append((Sent(0, flags, None, numbers, [], {}), before))
        while self._sent and self._sent[0][0].ready():
            sent, passes = self._sent.popleft()
            self._bad += [left for left, (_, bad) in zip(passes, sent.host(0)[2], strict=True) if bad]
        while self._bad and (self._bad[0].reached or self._bad[0].number <= self._count - WINDOW):
            self._bad.popleft()
        self._judge([left for left in self._bad if not left.reached])

    def _judge(self, bad: list[_Left]) -> None:
        passes = min(self._count, WINDOW)
        severity: Severity | None = None
        if len(bad) >= ENOUGH:
            severity = "error" if len(bad) >= MOST * passes else "warn"
        if self.tell is None:
            return
        if severity is not None and severity != self._severity and self._severity != "error":
            self._severity = severity
            self.tell(_finding(bad, passes, severity, self._step))
        elif not bad and self._severity is not None:
            self._severity = None
            self.tell(None)


def _above(size: Tensor) -> Tensor:
    return (size < math.inf).logical_not().float()  # NaN is not below


def _finding(bad: list[_Left], passes: int, severity: Severity, step: int) -> Finding:
    kinds = sorted({left.kind for left in bad})
    what = "model's output" if kinds == ["output"] else "loss" if kinds == ["loss"] else "model's output or the loss"
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"The {what} was not finite in {len(bad)} of the last {passes} forward passes, up to step {step}, and no "
            "update came of them: the loop leaves them out."
        ),
        evidence={
            "step": step,
            "skipped": len(bad),
            "passes": passes,
            "reference": "each pass of training leads to an update",
            "explained_by": "theory",
            "tests": {"of": kinds, "values": "looked at exactly"},
        },
        consequence=(
            "The weights hardly move any more, and the run looks alive."
            if severity == "error"
            else "What is in these batches is not learned."
        ),
        falsify="Print the loss of each pass: if it is finite, or if its step is made all the same, this is wrong.",
        source="IEEE 754: a NaN stays one through every sum and product",
    )
