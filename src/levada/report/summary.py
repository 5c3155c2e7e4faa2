"""The claims of several studies in one table: each with how it ended, and how many ended so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from levada.report.claim import STATUSES, failed, read_claims, status, wanted
from levada.report.words import count
from levada.runs import Run

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_summary", "summary_view"]

_COLOURS: Final = dict(zip(STATUSES, ("green", "red", "cyan", "magenta"), strict=True))
_PLAIN: Final = dict(zip(STATUSES, "+x~?", strict=True))


def summary_view(sections: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Make what the template shows above several studies: their claims, and how many of each status there are.

    Args:
        sections: of a page; those that are no studies are passed over. Of each are read "kind", "anchor" and the
            view's "name", "title", "claims" and "failed".

    Example:
        >>> claims = [{"status": "held", "sign": "✓"}, {"status": "not decided", "sign": "?"}]
        >>> view = {"name": "R1", "title": "Decay", "claims": claims, "failed": ""}
        >>> found = summary_view([{"kind": "study", "anchor": "part-1", "view": view}])
        >>> found["told"], len(found["studies"])
        ('2 claims of 1 study: 1 held; 1 not decided', 1)
    """
    studies = [section for section in sections if section["kind"] == "study"]
    statuses = Counter(claim["status"] for section in studies for claim in section["view"]["claims"])
    return {"studies": studies, "told": _told(statuses, len(studies))}


def print_summary(runs: Iterable[Run], console: Console) -> None:
    """Print one table of the claims of several studies.

    Args:
        runs: a run of each study.
        console: where to.
    """
    from rich.table import Table
    from rich.text import Text

    whole = console.encoding.lower().startswith("utf") and not console.legacy_windows
    signs: Mapping[str, str] = STATUSES if whole else _PLAIN
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    statuses: Counter[str] = Counter()
    num_studies = 0
    for run in runs:
        num_studies += 1
        events = list(run.events())
        missing, name = failed(events), run.manifest.name
        for claim in read_claims(events):
            decided = status(claim)
            statuses[decided] += 1
            style = f"bold {_COLOURS[decided]}"
            table.add_row(name, Text(f"{signs[decided]} {decided}", style), Text(str(claim.get("name") or "")))
            name = ""
        if missing:
            told = f"{len(missing)} of {count(wanted(events, missing), 'result')} failed"
            table.add_row(name, Text("failed", "bold red"), Text(told))
    console.print(table, highlight=False)
    console.print()
    console.print(_told(statuses, num_studies), highlight=False)


def _told(statuses: Mapping[str, int], num_studies: int) -> str:
    parts = "; ".join(f"{statuses[one]} {one}" for one in STATUSES if statuses.get(one))
    studies = f"{num_studies} {'study' if num_studies == 1 else 'studies'}"
    return f"{count(sum(statuses.values()), 'claim')} of {studies}{f': {parts}' if parts else ''}"
