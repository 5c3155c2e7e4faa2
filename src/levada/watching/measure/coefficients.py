"""What lies inside of layers at a sampled step: how streams are mixed, and what gates keep of a memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import require_switch
from levada.watching.loop.telling import warn
from levada.watching.measure.gates import Gated, GateTaps, SentGates
from levada.watching.measure.mixing import Mixed, MixingTaps, SentMixing
from levada.watching.uncopied import Uncopied

__all__ = ["Coefficients", "SentCoefficients", "Taken"]


@final
@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of the inside of layers at one sampled step.

    Attributes:
        mixing: how the streams were mixed; None if no layer that could be seen mixes some.
        compiled: number of layers with streams that run compiled, and cannot be seen.
        gates: what the gates of recurrences were; None if there is no recurrence with gates.
    """

    mixing: Mixed | None
    compiled: int = 0
    gates: Gated | None = None


@final
class SentCoefficients:
    """The same on its way to the host.

    Args:
        mixing: numbers of the layers that mix streams.
        compiled: as of `Taken`.
        gates: numbers of recurrences.
    """

    def __init__(self, mixing: SentMixing | None, compiled: int, gates: SentGates | None = None) -> None:
        self._mixing, self._compiled, self._gates = mixing, compiled, gates

    @property
    def tensors(self) -> list[Tensor]:
        """The numbers, on their device."""
        return [one.values for one in (self._mixing, self._gates) if one is not None]

    def host(self, values: Tensor) -> Taken:
        """Return what was sent.

        Args:
            values: `tensors`, one after the other, on the host.
        """
        sizes = [0 if one is None else one.values.numel() for one in (self._mixing, self._gates)]
        mixing, gates = torch.split(values, sizes)
        return Taken(
            None if self._mixing is None else self._mixing.host(mixing),
            self._compiled,
            None if self._gates is None else self._gates.host(gates),
        )


@final
class Coefficients(Uncopied):
    """Takes, with every sample, the mixing matrices of layers with several streams, and the gates of recurrences.

    Args:
        model: as the loop calls it.
        running: returns the number of the pass that is under way; None if what runs does not count.
        spent: told the seconds that it takes while the model runs.

    Attributes:
        on: whether it does; to be set at any time.

    Raises:
        UsageError: if `on` is set to something else than True or False.
    """

    def __init__(self, model: nn.Module, running: Callable[[], int | None], spent: Callable[[float], None]) -> None:
        self._on = True
        self._model, self._running, self._spent = model, running, spent
        self._mixing: MixingTaps | None = None
        self._gates: GateTaps | None = None
        self._attached = False

    @property
    def on(self) -> bool:
        """Whether it does."""
        return self._on

    @on.setter
    def on(self, value: bool) -> None:
        self._on = require_switch("watch.coefficients", "on", value)

    def attach(self, *, searching: bool) -> None:
        """Put taps on the layers.

        Args:
            searching: look at the model anew: it may have been compiled, or have other layers.
        """
        if not self.on:
            return
        if self._mixing is None or self._gates is None or searching:
            found = MixingTaps(self._model, self._running, self._heard)
            gates = GateTaps(self._model, self._running, self._heard)
            self._mixing = found if self._mixing is None or self._mixing.other(found) else self._mixing
            self._gates = gates if self._gates is None or self._gates.other(gates) else self._gates
        self._attached = True
        self._mixing.attach()
        self._gates.attach()

    def detach(self) -> None:
        """Take them off, and forget what was taken."""
        if self._attached and self._mixing is not None and self._gates is not None:
            self._mixing.detach()
            self._gates.detach()
        self._attached = False

    def pack(self, counted: set[int], device: torch.device) -> SentCoefficients | None:
        """Return what was taken, on its way; None if nothing is to be.

        Args:
            counted: numbers of the passes that count.
            device: where to.
        """
        if not self._attached or not self.on or self._mixing is None or self._gates is None:
            return None
        try:
            mixing, gates = self._mixing.pack(counted, device), self._gates.pack(counted, device)
            return SentCoefficients(mixing, self._mixing.compiled, gates)
        except Exception as error:  # whatever it is, the rest is measured
            self._fail(error)
            return None

    def _heard(self, take: Callable[..., None], *args: Any) -> None:
        """Let a tap take what it saw; an error ends the taking, and not the training."""
        if not self.on:
            return
        begun = time.perf_counter()
        try:
            take(*args)
        except Exception as error:  # whatever it is, training goes on
            self._fail(error)
        self._spent(time.perf_counter() - begun)

    def _fail(self, error: Exception) -> None:
        self.on = False
        warn(
            f"watch: taking the layers' coefficients raised {type(error).__name__}: {error}. Mixing matrices and gates "
            "are taken no more; the rest is measured, and training goes on.",
            of=self._model,
            stacklevel=3,
        )
