"""What a watched run may be called, of its record alone: the findings that hold, and which rules have judged it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from levada.report.words import headline
from levada.runs.standing import CONTINUED, EVENT, PLACED, Standing

__all__ = ["ended", "findings_of", "headline_of", "stages_of", "standing_of"]

_GOES_ON: Final = (CONTINUED, EVENT, "finding", "loss")


def findings_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each finding as it was told last, with the step at which it came and, if it did, ended; the worst first.

    What stood when another process went on with the run stands no more: it is that process that is judged now.

    Args:
        events: of a watched run.
    """
    stand: dict[str, dict[str, Any]] = {}
    past = []
    for event in events:
        if event.get("type") == CONTINUED:
            step = event.get("step")
            why = f"Superseded from step {step} on, where another process went on with the run."
            told = ({**one, "claim": f"{one.get('claim') or ''} {why}".lstrip()} for one in stand.values())
            past += [{**one, "status": "clear", "over": step} for one in told]
            stand.clear()
        if event.get("type") != "finding":
            continue
        held = event.get("finding")
        one = {**(held if isinstance(held, Mapping) else event)}
        key = str(event.get("case") or _case(one))
        before = stand.pop(key, None)
        if one.get("status") != "clear":
            evidence = one.get("evidence")
            known = evidence.get("told_at") if isinstance(evidence, Mapping) else None
            came = event.get("step") if known is None else known  # the record may hear of it later
            stand[key] = {**one, "came": (before or {}).get("came", came)}
        elif before is not None:
            past.append({**before, "status": "clear", "over": event.get("step")})
    rank = {"error": 0, "warn": 1, "info": 2}
    return [*sorted(stand.values(), key=lambda one: rank.get(str(one.get("severity")), 3)), *reversed(past)]


def _case(one: Mapping[str, Any]) -> str:
    """Tell the cases of a record apart that does not name them: of most rules one stands at a time."""
    rule, where = str(one.get("rule")), one.get("where")
    return f"{rule} {(where if isinstance(where, Mapping) else {}).get('first') or ''}" if rule in PLACED else rule


def _now(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Give the events of the process that goes on with the run."""
    begun = max((i for i, event in enumerate(events) if event.get("type") == CONTINUED), default=-1)
    return events[begun + 1 :]


def ended(events: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a run has said its end, and was not gone on with.

    Args:
        events: of a watched run.
    """
    types = (event.get("type") for event in reversed(events))
    return next((type for type in types if type in ("end", *_GOES_ON)), "") == "end"


def standing_of(
    events: Sequence[Mapping[str, Any]],
    findings: Sequence[Mapping[str, Any]],
    *,
    sampled: int | None,
    steps: int,
    stages: Sequence[int] = (),
) -> Standing:
    """Give what a run may be called: as the watch said it last, with what holds by now.

    Args:
        events: of the run.
        findings: of them, as `findings_of` gives them.
        sampled: the last sampled step; None without one.
        steps: steps that were made.
        stages: blocks of each stage, where processes hold different ones: the first is that which was judged.
    """
    said = next((event for event in reversed(_now(events)) if event.get("type") == EVENT), None)
    severities = [str(one.get("severity")) for one in findings if one.get("status", "fired") == "fired"]
    standing = Standing.of(said, severities, sampled=sampled, steps=steps)
    if len(stages) < 2:
        return standing
    why = f"only the {stages[0]:,} of {sum(stages):,} blocks that the first process holds were judged"
    return standing.withheld(why)


def stages_of(ranks: Iterable[Any]) -> list[Any]:
    """Give the signals of those processes that hold other blocks than the ones before them, as a pipeline's stages do.

    Args:
        ranks: the signals of each process.
    """
    found, seen = list[Any](), set[str]()
    for signals in ranks:
        names = {str(site["name"]) for site in signals.sites}
        if names and not seen & names:
            found.append(signals)
            seen |= names
    return found


def headline_of(standing: Standing, fired: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line what a run may be called.

    Args:
        standing: of the run.
        fired: the findings that hold.
    """
    if standing.verdict == "healthy":
        rest = f"{standing.until[1:]}; what came after was not sampled" if standing.until else ""
        seen = "vanishing_gradient" in standing.judged  # else no gradient was measured, or of too few blocks
        told = "The learning signal reached every block" if seen else "The rules that could judge it found nothing"
        return f"{told}{rest}"
    if standing.verdict == "unknown":
        return standing.headline
    return headline({"verdict": standing.verdict, "findings": fired})
