"""What was found in a watched run, of its events: what holds, what is over, and what another process took over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from levada.runs.standing import CONTINUED, EVENT, PLACED

__all__ = ["findings_of", "first_of", "gravity", "process_name", "said_of", "superseded", "tellings"]

_GRAVITY: Final = {"error": 0, "warn": 1, "info": 2}


def tellings(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Yield step, case and finding of each telling in turn, as a tracker hears of it.

    What stood when another process went on with the run stands no more: it is that process that is judged now.

    Args:
        events: of a process of a watched run.
    """
    stand: dict[str, dict[str, Any]] = {}
    for event in events:
        step = event.get("step")
        if event.get("type") == CONTINUED:
            yield from ((step, case, superseded(one, step)) for case, one in stand.items())
            stand.clear()
        if event.get("type") != "finding":
            continue
        held = event.get("finding")
        one = {**(held if isinstance(held, Mapping) else event)}
        case = str(event.get("case") or _case(one))
        if one.get("status") == "clear":
            stand.pop(case, None)
        else:
            stand[case] = one
        yield step, case, one


def findings_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each finding as it was told last, the worst first: with the steps at which it came, was renewed and ended.

    Args:
        events: of a process of a watched run.
    """
    stand: dict[str, dict[str, Any]] = {}
    past = []
    for step, case, one in tellings(events):
        before = stand.pop(case, None)
        if one.get("status") != "clear":
            evidence = one.get("evidence")
            known = evidence.get("told_at") if isinstance(evidence, Mapping) else None
            came = step if known is None else known  # the record may hear of it later
            stand[case] = {**one, "came": came if before is None else before["came"]}
            if before is not None and step != stand[case]["came"]:
                stand[case]["renewed"] = step
        elif before is not None:
            past.append({**before, **{key: one[key] for key in ("claim",) if "over" in one}, "status": "clear"})
            past[-1]["over"] = step
    return [*sorted(stand.values(), key=gravity), *reversed(past)]


def gravity(one: Mapping[str, Any]) -> int:
    """Give the place of a finding among others: the worst come first.

    Args:
        one: the finding.
    """
    return _GRAVITY.get(str(one.get("severity")), len(_GRAVITY))


def superseded(one: Mapping[str, Any], step: Any, start: int = 0) -> dict[str, Any]:
    """Give a finding that stood when others went on with the training, as one that is over: they are judged now.

    Args:
        one: the finding; what is over stays as it is.
        step: from which on; anything else if that is not known.
        start: the step of the training at which its record began to count.
    """
    if one.get("status") == "clear":
        return {**one}
    known = isinstance(step, int)
    told = f"Superseded{f' from step {step} on' if known else ''}, where another process went on with the run."
    claim = f"{one.get('claim') or ''} {told}".lstrip()
    return {**one, "status": "clear", "over": step - start if known else None, "claim": claim}


def _case(one: Mapping[str, Any]) -> str:
    """Tell the cases of a record apart that does not name them: of most rules one stands at a time."""
    rule, where = str(one.get("rule")), one.get("where")
    return f"{rule} {(where if isinstance(where, Mapping) else {}).get('first') or ''}" if rule in PLACED else rule


def _now(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Give the events of the process that goes on with the run."""
    begun = max((i for i, event in enumerate(events) if event.get("type") == CONTINUED), default=-1)
    return events[begun + 1 :]


def said_of(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Give the last event that says which rules have judged the run; None if the process that goes on said nothing yet.

    Args:
        events: of a process of the run.
    """
    return next((event for event in reversed(_now(events)) if event.get("type") == EVENT), None)


def first_of(events: Sequence[Mapping[str, Any]]) -> int:
    """Give the step from which on the process watches that goes on with the run.

    Args:
        events: of a process of the run.

    Example:
        >>> judged = {"type": "judged", "first": 300}
        >>> first_of([]), first_of([judged]), first_of([judged, {"type": "continued", "step": 400}])
        (0, 300, 400)
    """
    begun = next((event.get("step") for event in reversed(events) if event.get("type") == CONTINUED), None)
    step = (said_of(events) or {}).get("first") if begun is None else begun
    return step if isinstance(step, int) else 0


def process_name(rank: int, stages: Sequence[int] = (), num_stages: int = 0) -> str:
    """Name a process of a run, with the stages of a pipeline that it holds.

    Args:
        rank: its number.
        stages: the stages, counted from 0.
        num_stages: of the pipeline.

    Example:
        >>> process_name(3), process_name(1, [1, 3], 4)
        ('process 3', 'process 1, stages 2 and 4 of 4')
    """
    if not stages:
        return f"process {rank}"
    which = " and ".join(f"{stage + 1}" for stage in stages)
    return f"process {rank}, stage{'s' if len(stages) > 1 else ''} {which} of {num_stages}"
