"""Put around a new watch who hears of it: the rules, what keeps the record, and what shows it."""

from __future__ import annotations

from collections.abc import MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from levada._errors import UsageError
from levada.watching.engine import Engine
from levada.watching.verdict.judge import Judge

if TYPE_CHECKING:
    from levada.watching.watch import Watch

__all__ = ["surround"]


def surround(
    made: Watch,
    engine: Engine,
    listeners: MutableSequence[Any],
    *,
    record: str | Path | None,
    new: bool,
    live: bool | Literal["plain"],
) -> None:
    """Add them.

    Args:
        made: the watch.
        engine: its own.
        listeners: its own.
        record: folder or address of the record; None keeps none.
        new: whether it must hold no run yet.
        live: as of `watch`.

    Raises:
        UsageError: if the folder holds a run and must not, or cannot be written.
    """
    recording = None
    if record is not None:
        from levada.watching.record.recording import Recording

        try:
            recording = Recording(record, made, resume=not new)
        except OSError as error:
            rule = f"watch: run must name a folder that can be written to, got {str(record)!r}"
            raise UsageError(f"{rule}: {error.strerror or error}. Name another, or make room.") from error
        made.run = recording.folder
    made.judge = judge = Judge(made, keep=made.run, every=engine.cadence.every)
    engine.passes.left_out, engine.unfit = judge.left_out, lambda: judge.left_out.unfit
    judge.between.spent = lambda seconds: None if engine.pauses.on else engine.spend(seconds)
    listeners.insert(0, judge)  # whoever hears of a sample finds what was found in it
    if recording is not None:
        made.listen(recording)
    if live:
        from levada.watching.show.live import Live

        made.listen(Live(made, plain=True if live == "plain" else None))
