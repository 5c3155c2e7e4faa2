"""What another process of a recorded run met before the first one did: the first NaN or Inf of all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from levada._numbers import restore_numbers
from levada._ranks import is_one_of_several
from levada.diagnose.finding import Finding, Proposal
from levada.runs.findings import findings_of
from levada.runs.folders import rank_folders
from levada.runs.frames import Damage, scan
from levada.runs.rank_log import RANK_LOG

__all__ = ["met_elsewhere", "with_others_unknown"]

PATIENCE: Final = 0.25  # seconds, once in a run that has just broken: a thread of the other process writes what it met


def met_elsewhere(finding: Finding, run: Path | None) -> Finding | None:
    """Return the finding of the process that met NaN or Inf at an earlier step and this one as what followed; or None.

    An update brings what one process met to all of them, at the next step; what it was, that process alone has seen.

    Args:
        finding: of the first process, of what is not finite.
        run: the run's folder; None without one.
    """
    alone = run is None or finding.evidence["rank"] or not is_one_of_several()
    if run is None or alone or finding.severity != "error" or finding.evidence["tensor"] in ("inputs", "targets"):
        return None
    until = time.monotonic() + PATIENCE
    while not (found := list(_earlier(finding, run))) and time.monotonic() < until:
        time.sleep(PATIENCE / 16)
    if not found:
        return None
    one = min(found, key=lambda each: each["evidence"]["step"])
    evidence = {**restore_numbers(one["evidence"]), "seen_at": finding.evidence["seen_at"]}
    claim = f"{one['claim']} What followed: {finding.claim[:1].lower()}{finding.claim[1:]}"
    told = {key: one[key] for key in ("where", "consequence", "falsify") if key in one}
    proposals = {field.name for field in fields(Proposal)}
    remedies = tuple(Proposal(**each) for each in one.get("remedies", ()) if set(each) == proposals)
    return replace(finding, claim=claim, evidence=evidence, remedies=remedies, **told)


def with_others_unknown(finding: Finding, run: Path | None) -> Finding:
    """Return a finding of weights that are not finite with a word on what other processes may have met before.

    Without a run's folder a process knows of itself alone: to ask the others would wait for those that are stuck.

    Args:
        finding: of this process, of what is not finite.
        run: the run's folder; None without one.
    """
    brought = finding.severity == "error" and finding.evidence["tensor"] == "weight"
    if run is not None or not brought or not is_one_of_several():
        return finding
    words = (
        "This is what this process alone has seen: another one may have met it first, as an update brings it to all, "
        "and without a run folder that is not known here."
    )
    return replace(finding, claim=f"{finding.claim} {words}")


def _earlier(finding: Finding, run: Path) -> Iterator[dict[str, Any]]:
    """Yield what other processes say of an earlier step."""
    for rank, folder in rank_folders(run).items():
        if not rank:
            continue
        with suppress(OSError), (folder / RANK_LOG).open("rb") as file:
            events = [one.event for one in scan(file) if not isinstance(one, Damage)]
            for one in findings_of(events):
                step = (one.get("evidence") or {}).get("step")
                same = (one.get("rule"), one.get("severity"), one.get("status")) == (finding.rule, "error", "fired")
                if same and isinstance(step, int) and step < finding.evidence["step"]:
                    yield one
