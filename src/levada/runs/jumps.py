"""Jumps of a loss that follow each other without its coming back: one divergence, which is told once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from levada.runs.findings import gravity

__all__ = ["at_steps", "more", "onset", "told_together"]

# Half of the losses whose median is what is usual: within so many steps a jump is still one from before the first.
NEAR: Final = 64
SOME: Final = 6  # steps that are all named


def told_together(found: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, ...]]:
    """Give, by its place, each finding that is told by itself, with the places of those that are told with it.

    Of jumps of a loss that did not come back before the next, within 64 steps, the gravest stands for all; of several
    as grave, the first.

    Args:
        found: findings: their rule, severity, status and evidence.

    Example:
        >>> def jump(step, severity, ended_at=None, back_at=None):
        ...     evidence = {"step": step, "ended_at": ended_at, "back_at": back_at}
        ...     return {"rule": "loss_spike", "severity": severity, "status": "fired", "evidence": evidence}
        >>> later, first = jump(758, "error", 760), jump(745, "warn", 747)
        >>> told_together([later, first, jump(749, "warn", 750), jump(20, "warn", 22)])
        {0: (1, 2), 3: ()}
        >>> told_together([jump(745, "warn", 747, back_at=748), jump(749, "warn", 750)])
        {0: (), 1: ()}
    """
    lasting = [i for i, one in enumerate(found) if _lasts(one)]
    lasting.sort(key=lambda i: (_rank(found[i]), onset(found[i])))
    chains = [lasting[:1]] if lasting else []
    for before, i in pairwise(lasting):
        first, then = found[before], found[i]
        near = _rank(first) == _rank(then) and onset(then) - onset(first) <= NEAR
        if near and first["evidence"].get("ended_at") is not None:
            chains[-1].append(i)
        else:
            chains.append([i])
    told: dict[int, tuple[int, ...]] = dict.fromkeys(range(len(found)), ())
    for chain in chains:
        lead = min(chain, key=lambda i: (gravity(found[i]), onset(found[i])))
        told[lead] = tuple(i for i in chain if i != lead)
    beside = {i for others in told.values() for i in others}
    return {i: others for i, others in told.items() if i not in beside}


def at_steps(steps: Sequence[int]) -> str:
    """Name steps; of many the first and the last.

    Args:
        steps: at least one, in order.

    Example:
        >>> at_steps([99]), at_steps([99, 199]), at_steps([1, 2, 3]), at_steps(range(0, 9000, 1000))
        ('step 99', 'steps 99 and 199', 'steps 1, 2 and 3', 'steps 0, 1,000, 2,000, ... and 8,000')
    """
    named = [f"{step:,}" for step in steps]
    if len(named) == 1:
        return f"step {named[0]}"
    first = named[:-1] if len(named) <= SOME else [*named[:3], "..."]
    return f"steps {', '.join(first)} and {named[-1]}"


def more(others: Sequence[Any]) -> str:
    """Say behind a finding how many are told with it; "" of none.

    Args:
        others: what is told with it.

    Example:
        >>> more(()), more((1, 2))
        ('', ' and 2 more')
    """
    return f" and {len(others)} more" if others else ""


def onset(one: Mapping[str, Any]) -> int:
    """Give the step of a jump.

    Args:
        one: its finding.
    """
    return int(one["evidence"]["step"])


def _lasts(one: Mapping[str, Any]) -> bool:
    """Say whether a finding is a jump that holds and from which the loss was not back."""
    evidence = one.get("evidence")
    if one.get("rule") != "loss_spike" or one.get("status", "fired") != "fired" or not isinstance(evidence, Mapping):
        return False
    return isinstance(evidence.get("step"), int) and evidence.get("back_at") is None


def _rank(one: Mapping[str, Any]) -> str:
    return str(one["evidence"].get("rank", ""))
