"""A run, read once and kept for the next questions about it until something is written to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

from levada._errors import MissingExtraError, UsageError
from levada.report.staged import read_together
from levada.runs import Damage, Run, Signals
from levada.runs.curves import curve
from levada.runs.ending import State, ended, training_state
from levada.runs.lock import is_held
from levada.runs.processes import Together
from levada.web.folder import Fingerprint, RefusedError, inspect

__all__ = ["Opened", "forget", "opened"]

_KEPT: Final = 2  # runs in memory
Losses = Sequence[tuple[int, float]]


@final
class Opened:
    """What is read of a run, each part when it is first asked for.

    Args:
        path: the run's folder.
        fingerprint: of its files.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.run = Run(path)
        self.manifest = self.run.manifest
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._signals: dict[tuple[int, str], Signals] = {}

    @property
    def ranks(self) -> tuple[int, ...]:
        """The processes that wrote signals."""
        return self.run.ranks

    def events(self, *, rank: int = 0) -> Iterator[dict[str, Any]]:
        """Give what a process says."""
        if rank not in self._events:
            self._events[rank] = list(self.run.events(rank=rank))
        return iter(self._events[rank])

    def parts(self, rank: int = 0) -> tuple[str, ...]:
        """Name what a process kept beside the signals of its blocks."""
        return self.run.parts(rank)

    def signals(self, rank: int = 0, part: str = "") -> Signals:
        """Give the signals of a process, or a part that it kept beside them."""
        if (rank, part) not in self._signals:
            self._signals[rank, part] = self.run.signals(rank, part)
        return self._signals[rank, part]

    def holders(self, part: str) -> list[int]:
        """Give the processes that together hold all of a part, in the order of a pipeline's stages."""
        return [rank for rank in self.together.holders if rank in self.ranks and part in self.parts(rank)]

    @cached_property
    def _losses(self) -> list[tuple[int, float]]:
        return self.run.losses()

    def losses(self) -> list[tuple[int, float]]:
        """Give the loss of each step, as far as it is known."""
        if self.manifest.kind == "train":
            return self._curves[0]
        if not self._losses and self.ranks:
            return self.signals(self.ranks[0]).losses()
        return self._losses

    def losses_by_optimizer(self) -> dict[str, list[tuple[int, float]]]:
        """Give the losses of each optimizer, where those that take turns have losses of their own; else nothing."""
        return self.run.losses_by_optimizer() if self.manifest.kind == "watch" else {}

    @cached_property
    def _curves(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        events = list(self.run.events(numbers=("loss",)))
        return sorted(curve(events, "losses").items()), sorted(curve(events, "evaluation").items())

    def held_out(self) -> list[tuple[int, float]]:
        """Give the losses on what is held out, by the number of steps done."""
        return self._curves[1] if self.manifest.kind == "train" else []

    @cached_property
    def damage(self) -> Damage | None:
        """What keeps the log from being read to its end."""
        return self.run.damage

    @cached_property
    def together(self) -> Together:
        """What the processes of a watched run say."""
        return read_together(self, list(self.events()))

    @cached_property
    def reports(self) -> list[Mapping[str, Any]]:
        """The reports of checks that it holds."""
        held = (event.get("report") for event in self.events() if event["type"] == "report")
        return [report for report in held if isinstance(report, Mapping)]

    @property
    def _wanted(self) -> int | None:
        """How many steps a training was to do."""
        table = self.manifest.config.get("run")
        steps = table.get("steps") if isinstance(table, Mapping) else None
        return steps if isinstance(steps, int) else None

    @property
    def state(self) -> State:
        """Whether the run goes on: by its writer's lock, and by what it said last."""
        held, events = is_held(self.path), list(self.events())
        if self.manifest.kind == "train":
            return training_state(events, self._wanted, held=held)
        if held:
            return "running"
        last = events[-1] if events else {"type": ""}
        if self.manifest.kind == "watch":
            return "ended" if ended(events) else "not ended"
        over = bool(self.reports) or last["type"] in ("claim", "figure")
        return "ended" if over else "not ended"


_open: OrderedDict[Path, Opened] = OrderedDict()


def opened(path: Path) -> Opened:
    """Give a run as it is now.

    Args:
        path: its folder.

    Raises:
        RefusedError: if it is not to be read, or cannot be.
    """
    try:
        fingerprint = inspect(path)
        known = _open.get(path)
        if known is None or known.fingerprint != fingerprint:
            _open.pop(path, None)
            while len(_open) >= _KEPT:
                _open.popitem(last=False)
            known = _open[path] = Opened(path, fingerprint)
        _open.move_to_end(path)
    except MissingExtraError:
        raise
    except (UsageError, OSError) as error:
        raise RefusedError(409, f"The run cannot be read: {error}") from error
    return known


def forget() -> None:
    """Let go of all runs, as memory is short."""
    _open.clear()
