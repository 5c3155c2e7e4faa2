"""The numbers of one sampled step on their way from the device to the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from levada.watching.measure.coefficients import SentCoefficients, Taken
from levada.watching.measure.parameters import Packed
from levada.watching.measure.reading import TABLE

__all__ = ["OnItsWay", "Sent"]


@final
class OnItsWay:
    """Numbers on their way from a device to the host: one copy, which nobody waits for.

    Args:
        numbers: on their device; not overwritten later.

    Example:
        >>> way = OnItsWay(torch.ones(2))
        >>> way.ready(), way.host().tolist()
        (True, [1.0, 1.0])
    """

    def __init__(self, numbers: Tensor) -> None:
        self._event: Any = None
        self._values = numbers
        if numbers.device.type == "cuda":
            self._values = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._values.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(numbers.device))

    def ready(self) -> bool:
        """Return whether the numbers have arrived."""
        return self._event is None or bool(self._event.query())

    def host(self) -> Tensor:
        """Return them, in double precision; this waits if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu().double()


@final
class Sent:
    """Numbers on their way from the device to the host: one buffer, one copy, which nobody waits for."""

    def __init__(
        self,
        step: int,
        numbers: list[Tensor],
        packed: Packed | None,
        loss_steps: list[int],
        named: Mapping[str, Tensor | float],
        inside: SentCoefficients | None = None,
        where: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        sent = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        self.step, self.time = step, time.time()
        self.scalars = {name: float(value) for name, value in named.items() if not isinstance(value, Tensor)}
        self._packed, self._loss_steps, self._names = packed, loss_steps, list(sent)
        self._inside, self.where = inside, where  # rows and sites of the parameters, when they were read
        self.micro_batches = 1
        self.tanh: frozenset[int] = frozenset()
        device, wide = numbers[0].device, numbers[0].dtype
        own = [] if inside is None else inside.tensors
        self._taken = sum(tensor.numel() for tensor in own)
        every = [*numbers, *sent.values(), *own]
        flat = torch.cat([n.detach().flatten().to(device, wide, non_blocking=True) for n in every])
        self._way = OnItsWay(flat)

    def ready(self) -> bool:
        """Return whether the numbers have arrived."""
        return self._way.ready()

    def host(
        self, places: int
    ) -> tuple[Tensor, Packed | None, list[tuple[int, float]], dict[str, float], Taken | None]:
        """Return table, parameters, losses, named numbers and coefficients; this waits if they have not arrived."""
        values = self._way.host()
        rows = 0 if self._packed is None else self._packed.values.numel()
        sizes = [places * len(TABLE), rows, len(self._loss_steps), len(self._names), self._taken]
        table, parameters, losses, named, inside = torch.split(values, sizes)
        packed = None
        if self._packed is not None:
            packed = self._packed.host(parameters.view(self._packed.values.shape))
        return (
            table.view(places, len(TABLE)),
            packed,
            list(zip(self._loss_steps, losses.tolist(), strict=True)),
            dict(zip(self._names, named.tolist(), strict=True)),
            None if self._inside is None else self._inside.host(inside.float()),
        )
