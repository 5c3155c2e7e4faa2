"""The losses of a recorded run on their way to its log: with samples, and between them by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final, final

import torch
from torch import Tensor

from levada._ranks import process_rank
from levada.runs.losses import ALL, OF, TURNS
from levada.watching.measure.sample import Sample
from levada.watching.measure.transfer import Sent

__all__ = ["KeptLosses"]

MOST: Final = 1_000  # steps whose losses wait for a sample, or are written without one
SECONDS: Final = 0.25  # after which they are written all the same, so that a process that is killed loses no more


@final
class KeptLosses:
    """Hears of the loss of each step, and hands it on with a sample, or after 0.25 s, or a thousand steps.

    Of several processes a sample brings the means; what is written before it is the loss of this one, and the sample
    tells it again. Readers give what came later; each event says of whom its losses are.

    Of several optimizers that take turns it also says which made each step. That is not known of the step that is under
    way: where its loss is written, it is told again.

    Args:
        add: takes an event, as `Events.add`.
        ended: gives step and loss of what has ended since the last sample, in order.
        shared: whether samples bring the means over several processes.
        turn_of: gives which optimizers made a step, by the sum of 1, 2, 4, ... of them; 0 if all did, None of one that
            was not made.
    """

    def __init__(
        self,
        add: Callable[..., None],
        ended: Callable[[], Sequence[tuple[int, Tensor]]],
        *,
        shared: bool,
        turn_of: Callable[[int], int | None] = lambda step: 0,
    ) -> None:
        self._add, self._ended, self._shared = add, ended, shared
        self._turn_of = turn_of
        self._means: dict[str, str | int] = {OF: ALL} if shared else {}
        self._own: dict[str, str | int] = {OF: process_rank()} if shared else {}
        self._later: dict[int, Tensor] = {}
        self._written = self._early = -1
        self._at = time.monotonic()

    def __len__(self) -> int:
        return len(self._later)

    def hear(self, step: int, loss: Tensor) -> None:
        """Remember the loss of a step on its device, and write those before it if it is time.

        Args:
            step: which is under way.
            loss: as far as it is known.
        """
        if step <= self._written:  # it was left, and is made again
            self._written = step - 1
        self._early = min(self._early, step - 1)
        self._later[step] = loss.detach()
        if len(self._later) >= MOST and self._shared:
            self._keep_early(step)
            self._later = dict(list(self._later.items())[-MOST // 2 :])
        elif len(self._later) >= MOST:
            self.keep(step)
        elif time.monotonic() - self._at >= SECONDS:
            self._keep_early(step)

    def sampled(self, sample: Sample) -> None:
        """Write the losses of a sample, and those before them that it does not bring.

        Args:
            sample: of a step.
        """
        new = [(step, float(loss)) for step, loss in sample.losses if step > self._written]
        self.keep(new[0][0] - 1 if new else self._written)
        if new:
            steps, values = zip(*new, strict=True)
            whose = {**self._means, **self._by(steps)}
            self._add("loss", steps=list(steps), time=sample.time, values=list(values), **whose)
            self._written, self._at = steps[-1], time.monotonic()
        # A sample arrives after the update that follows it.
        self._later = {step: loss for step, loss in self._later.items() if step > self._written}
        self._early = self._written  # what was written early of the steps behind it is superseded

    def keep(self, last: int) -> None:
        """Write the losses of steps up to this one.

        Args:
            last: the step.

        Raises:
            RuntimeError: if the device has failed.
        """
        # What has ended is known better than while it was under way, and may be a step that a scaler skipped.
        ended = {} if self._shared else self._newly_ended()
        known = {**self._later, **ended}
        self._write({step: known[step] for step in sorted(known) if self._written < step <= last})
        last = min([last, *(step - 1 for step in known if self._turn_of(step) is None)])  # that is told again
        self._later = {step: loss for step, loss in self._later.items() if step > last}
        self._written = max([self._written, *(step for step in known if step <= last)])

    def found(self, step: int) -> None:
        """Write the losses that led to what was found between samples; those of several processes come with the next.

        Args:
            step: the last of them.

        Raises:
            RuntimeError: if the device has failed.
        """
        if self._shared:
            self._keep_early(step)
        else:
            self.keep(step)

    def _keep_early(self, last: int) -> None:
        """Write what no sample is about to bring."""
        if self._shared:
            self._write({step: loss for step, loss in self._later.items() if self._early < step <= last})
            self._early = max(self._early, last)
            return
        ended = self._newly_ended()
        if ended and min(ended) <= min(self._later):  # else a sample is on its way, and what it brings comes first
            self.keep(max(ended))

    def _newly_ended(self) -> dict[int, Tensor]:
        return dict(takewhile(lambda one: one[0] > self._written, reversed(self._ended())))

    def _by(self, steps: Sequence[int]) -> dict[str, list[int | None]]:
        """Say which optimizers made these steps, where not all made each; of a step that was not made, None."""
        turns = [self._turn_of(step) for step in steps]
        return {TURNS: turns} if any(turn != 0 for turn in turns) else {}

    def _write(self, losses: dict[int, Tensor]) -> None:
        """Hand losses on; the thread of the events waits for the device, not the training."""
        if not losses:
            return
        steps, held, now = list(losses), [loss.detach() for loss in losses.values()], time.time()
        device = held[-1].device
        self._at = time.monotonic()
        whose = {**self._own, **self._by(steps)}
        if device.type == "cpu":
            self._add("loss", steps=steps, time=now, values=lambda: [float(loss) for loss in held], **whose)
            return
        form = torch.float32 if device.type == "mps" else torch.float64
        values = torch.stack([loss.reshape(()).to(device, form) for loss in held])
        sent = Sent(steps[-1], [values], None, steps, {})
        self._add("loss", steps=steps, time=now, values=lambda: [x for _, x in sent.host(0)[2]], **whose)
