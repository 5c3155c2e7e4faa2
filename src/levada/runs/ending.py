"""Whether the record of a watched run has an end, and where it stops if it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from levada.runs.lost import step_of
from levada.runs.standing import CONTINUED, EVENT

__all__ = [
    "TRAINED",
    "State",
    "ended",
    "last_recorded",
    "last_trained",
    "last_word",
    "training_ended",
    "training_state",
]

State: TypeAlias = Literal["running", "ended", "stopped", "failed", "not ended"]
"""How a run stands: "stopped" is one that something ended before its time."""

_GOES_ON: Final = (CONTINUED, EVENT, "finding", "loss")
TRAINED: Final = ("losses", "resumed", "launched")
"""Events of a training that goes on."""
_LOOKED_AT: Final = 8  # of the last events: what they tell is of steps that came one soon after the other


def ended(events: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a run has said its end, and was not gone on with.

    Args:
        events: of a watched run.
    """
    types = (event.get("type") for event in reversed(events))
    return next((type for type in types if type in ("end", *_GOES_ON)), "") == "end"


def last_recorded(events: Sequence[Mapping[str, Any]], sampled: tuple[int, float] | None) -> str:
    """Say what of a run that did not end was recorded last: its step, and when, where that is known.

    Args:
        events: of the run.
        sampled: step and time of the last sample; None without one.

    Example:
        >>> last_recorded([{"type": "loss", "steps": [0, 20], "values": [2.0, 1.0], "time": 86400.0}], (0, 0.0))
        'last recorded step 20 at 1970-01-02 00:00:00 UTC'
        >>> went_on = [{"type": "continued", "step": 20}, {"type": "loss", "steps": [20, 21], "time": 86400.0}]
        >>> last_recorded(went_on, (100, 50.0))  # a sample of before
        'last recorded step 21 at 1970-01-02 00:00:00 UTC'
        >>> last_recorded([], None)
        'no step was recorded'
    """
    place = max((i for i, event in enumerate(events) if event.get("type") == CONTINUED), default=-1)
    since = step_of(events[place : place + 1], -1) if place >= 0 else None
    known: list[tuple[int, float]] = []
    for event in [event for event in reversed(events[place + 1 :]) if event.get("type") in _GOES_ON][:_LOOKED_AT]:
        step, at = step_of([event], -1), event.get("time")
        known += [(step, float(at) if isinstance(at, int | float) else 0.0)] if step is not None else []
    # What was sampled before a run went on, and is of a later step, is superseded.
    timed = [at for _, at in known if at > 0]
    if sampled is not None and (since is None or sampled[0] < since or (timed and sampled[1] >= min(timed))):
        known.append(sampled)
    known = known or ([(since - 1, 0.0)] if since else [])
    if not known:
        return "no step was recorded"
    step, at = max(known)
    if at <= 0:
        return f"last recorded step {step:,}"
    try:
        return f"last recorded step {step:,} at {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"last recorded step {step:,}"


def training_ended(events: Sequence[Mapping[str, Any]], wanted: int | None) -> bool:
    """Say whether a training has said how it ended, and was not continued.

    Args:
        events: of a training.
        wanted: how many steps it was to do: those of an earlier levada did not say their end, but evaluated behind it.

    Example:
        >>> done = [{"type": "losses", "first": 0, "loss": [2.0, 1.5]}, {"type": "evaluation", "step": 2}]
        >>> training_ended(done, 2), training_ended(done, 60), training_ended([*done, {"type": "end"}], 60)
        (True, False, True)
    """
    types = (event.get("type") for event in reversed(events))
    if next((type for type in types if type in ("end", "stopped", *TRAINED)), "") in ("end", "stopped"):
        return True
    steps = [event.get("step") for event in events if event.get("type") == "evaluation"]
    return wanted is not None and max((step for step in steps if isinstance(step, int)), default=0) >= wanted


def training_state(events: Sequence[Mapping[str, Any]], wanted: int | None, *, held: bool | None) -> State:
    """Say how a training stands.

    Args:
        events: of the training.
        wanted: how many steps it was to do, as for `training_ended`.
        held: whether a process writes it; None if that cannot be asked, as of another machine's.

    Example:
        >>> training_state([{"type": "end", "state": "failed"}], None, held=False), training_state([], 60, held=False)
        ('failed', 'stopped')
        >>> training_state([], 60, held=None), training_state([{"type": "end", "state": "ended"}], 60, held=True)
        ('not ended', 'running')
    """
    if held:  # also while it is continued and has no step yet, whatever it said at its end before
        return "running"
    last = last_word(events)
    if last["type"] == "stopped":
        return "stopped"
    if last["type"] == "end":
        state = last.get("state")
        return state if state in ("stopped", "failed") else "ended"
    if training_ended(events, wanted):
        return "ended"
    return "not ended" if held is None else "stopped"


def last_word(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Give the last event of a training that says how it stands; of an empty type if there is none.

    Args:
        events: of the training.
    """
    return next((event for event in reversed(events) if event["type"] in ("end", "stopped", *TRAINED)), {"type": ""})


def last_trained(events: Sequence[Mapping[str, Any]]) -> str:
    """Say which step of a training was recorded last.

    Args:
        events: of a training.

    Example:
        >>> last_trained([{"type": "losses", "first": 20, "loss": [2.0, 1.5]}]), last_trained([])
        ('last recorded step 21', 'no step was recorded')
    """
    for event in reversed(events):
        first, loss = event.get("first"), event.get("loss")
        if event.get("type") == "losses" and isinstance(first, int) and isinstance(loss, list) and loss:
            return f"last recorded step {first + len(loss) - 1:,}"
        if event.get("type") == "resumed" and isinstance(step := event.get("step"), int) and step > 0:
            return f"last recorded step {step - 1:,}"
    return "no step was recorded"
