"""The events of a run that is recorded while it trains: written beside it, and kept while the disk is full."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, final

from levada.runs import RunWriter
from levada.runs.background import Background
from levada.runs.rank_log import RankLog

__all__ = ["Events"]

WAITING: Final = 10_000  # events that wait for a disk that is full, before losses are dropped
CLOSE_SECONDS: Final = 60.0


@final
class Events:
    """Events of a run, written by a thread; what the disk refuses waits and is tried again with the next.

    Args:
        writer: of the run, or of a process of it.
        at_exit: called when the process ends.

    Attributes:
        problem: why something is not stored, or None.
        losses_dropped: how many losses are not stored.
    """

    def __init__(self, writer: RunWriter | RankLog, at_exit: Any) -> None:
        self._writer = writer
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self.problem: str | None = None
        self.losses_dropped = 0
        self._thread = Background(self._write, capacity=64, name="levada-events", at_exit=at_exit)

    def add(self, type: str, **payload: Any) -> None:
        """Hand on an event.

        Args:
            type: of the event.
            payload: its fields; what can be called is called by the thread.
        """
        if type == "loss" and len(self._waiting) > WAITING:  # verdicts are few, and all wait
            self.losses_dropped += len(payload["steps"])
            return
        self._waiting.append((type, payload))
        self._thread.put("more")

    def _write(self, _: Any) -> None:
        while self._waiting:
            type, payload = self._waiting[0]
            try:
                fields = {key: value() if callable(value) else value for key, value in payload.items()}
                self._writer.append(type, **fields)
            except OSError as error:
                self.problem = f"{error}"
                return
            except Exception as error:
                self.losses_dropped += len(payload["steps"]) if type == "loss" else 0
                self.problem = f"an event {type!r} was not stored: {error}"
            self._waiting.popleft()

    def flush(self, seconds: float) -> bool:
        """Wait until all is handed to the operating system; False if it is not in so many seconds."""
        return self._thread.flush(seconds)

    def close(self) -> None:
        """Write what waits, and let the next writer in."""
        if self._thread.stop(CLOSE_SECONDS):
            self._write(None)
            try:
                self._writer.close()
            except OSError as error:
                self.problem = f"{error}"

    @property
    def waiting(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Events that the disk has not taken yet: type and fields."""
        return tuple(self._waiting)
