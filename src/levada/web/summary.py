"""A run in words and numbers: its row of the list, and its summary; in the words of the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from levada._names import CALLED, NONFINITE
from levada.report.check import COLUMNS
from levada.report.curve import of_whom
from levada.report.record import logged_in
from levada.report.words import fired, number, phrase
from levada.runs.bundles import bundles_of
from levada.runs.losses import told_alone
from levada.runs.standing import CONTINUED
from levada.runs.tables import read_tables
from levada.web.drawings import drawn_in, last_section
from levada.web.inside import INSIDE, absent
from levada.web.opened import Opened, opened
from levada.web.shapes import Change, Claim, Fact, Found, Part, Row, Signal, Site, Summary, Table, TableRow, plain, told

__all__ = ["facts_of", "findings_of", "row_of", "summary_of", "table_of"]

_VERDICTS: Final = ("healthy", "warn", "error", "unknown")
_SEVERITIES: Final = ("error", "warn", "info")
_MAX_FINDINGS: Final = 200


def row_of(path: Path, id: str, name: str) -> Row:
    """Give a run's row of the list.

    Args:
        path: its folder.
        id: its opaque name.
        name: its path from the served folder on.
    """
    return Row(**_row(opened(path), id, name))


def _row(run: Opened, id: str, name: str) -> dict[str, Any]:
    losses = run.losses()
    return {
        "id": id,
        "name": plain(name),
        "title": plain(run.manifest.name),
        "kind": plain(run.manifest.kind),
        "state": run.state,
        **_verdict(run),
        "steps": _steps(run, losses),
        "depth": _depth(run),
        "loss": _last(run, losses),
        "modified": max((changed for _, _, changed in run.fingerprint), default=0) / 1e9,
        "problem": "",
    }


def _last(run: Opened, losses: Sequence[tuple[int, float]]) -> Any:
    """Give the last loss: of several processes the last that is a mean over all, as a training's own losses are."""
    means, alone = told_alone(run.events()) if run.manifest.kind == "watch" else (False, [])
    own = set(alone) if means else ()
    return next((told(loss) for step, loss in reversed(losses) if step not in own), None)


def _whose(run: Opened) -> list[str]:
    """Say of which of several processes the losses are."""
    whose = of_whom(run.events()) if run.manifest.kind == "watch" else ""
    return [whose.replace(" They", "The losses", 1)] if whose else []


def _kept(path: Path, name: str) -> list[str]:
    """Say that steps were kept, and what names them; their bytes, which may be gigabytes, are not looked at."""
    count = len(bundles_of(path))
    steps = "1 step is" if count == 1 else f"{count:,} steps are"
    return [f"{steps} kept, to be run again: `{shlex.join(['levada', 'replay', name])}`."] if count else []


def _steps(run: Opened, losses: Sequence[tuple[int, float]]) -> int:
    if run.manifest.kind == "watch":
        return run.together.steps(losses)
    ends = [*(step + 1 for step, _ in losses[-1:]), *(step for step, _ in run.held_out()[-1:])]
    return max(ends, default=0)


def _verdict(run: Opened) -> dict[str, Any]:
    """Give the verdict, and up to which step one that is called healthy was seen."""
    within: Opened | None = run
    if run.manifest.kind != "watch":
        if run.reports:
            found = run.reports[-1].get("verdict")
            return {"verdict": found if found in _VERDICTS else None, "until": ""}
        watched = _newest(run) if run.manifest.kind == "train" else None
        within = Opened(watched, ()) if watched is not None else None
    if within is None:
        return {"verdict": None, "until": ""}
    standing = within.together.standing(within.together.steps(within.losses()))
    until = standing.called.removeprefix(CALLED["healthy"]).strip() if standing.verdict == "healthy" else ""
    return {"verdict": standing.verdict, "until": until}


def _newest(run: Opened) -> Path | None:
    """Give the last watched run inside of a training."""
    inside = [
        path for path in (run.path / "watch").glob("*") if path.name.isdecimal() and (path / "run.json").is_file()
    ]
    return max(inside, key=lambda path: int(path.name), default=None)


def _depth(run: Opened) -> int:
    if run.manifest.kind == "watch":
        return sum(len(run.signals(rank).sites) for rank in run.together.holders if rank in run.together.signals)
    if run.reports:
        return len(_blocks(run.reports[-1]))
    if run.manifest.kind == "train" and (watched := _newest(run)) is not None:
        tables = [table for rank in Opened(watched, ()).run.ranks for table in _tables(watched, rank)]
        return len(dict.fromkeys(str(site["name"]) for table in tables for site in table.sites))
    return 0


def _tables(path: Path, rank: int) -> list[Any]:
    return [table for _, table in sorted(read_tables(path / "signals" / f"rank-{rank:05d}")[0].items())[-1:]]


def _blocks(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    held = report.get("blocks")
    return [block for block in held if isinstance(block, Mapping)] if isinstance(held, list) else []


def summary_of(path: Path, id: str, name: str) -> Summary:
    """Give what is known of a run, without its curves.

    Args:
        path: its folder.
        id: its opaque name.
        name: its path from the served folder on.
    """
    run = opened(path)
    section = last_section(run)
    view = section["view"]
    watched = run.manifest.kind == "watch"
    signals = [run.together.signals[rank] for rank in run.together.holders if rank in run.ranks] if watched else []
    steps = signals[0].steps if signals else ()
    manifest = run.manifest
    return Summary(
        **_row(run, id, name),
        created=plain(manifest.created),
        command=plain(manifest.command),
        versions={plain(str(key)): plain(str(value)) for key, value in manifest.versions.items()},
        config=plain(dict(manifest.config)),
        told=plain(str(view.get("state") or "")) if watched else "",  # of others the headline says it
        headline=plain(str(view.get("headline") or view.get("question") or view.get("title") or "")),
        claim=plain(str(view.get("claim") or view.get("why") or "")),
        facts=facts_of(view),
        sites=_sites(run, signals),
        signals=[Signal(name=plain(one), label=COLUMNS.get(one, one.replace("_", " "))) for one in _names(signals)],
        logged=[plain(one) for one in logged_in(signals[0] if signals else None)],
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
        reached=[one.steps[-1] for one in signals if one.steps],
        rewritten=_rewritten(run) if watched else 0,
        samples=len(steps),
        overhead=_overhead(run, signals),
        ranks=list(run.ranks),
        findings=_findings(run, view),
        claims=[_claim(one) for one in view.get("claims") or ()],
        notes=[plain(note) for note in (*_whose(run), *map(str, view.get("notes") or ()), *_kept(path, name))],
        damage=[plain(str(one)) for one in section["damage"]],
        table=table_of(view.get("table")),
        has=[*_has(run, signals), *(("drawings",) if drawn_in(section) else ())],
        lacks={part: absent(run, part) for part in INSIDE if watched and not run.holders(part)},
    )


def _rewritten(run: Opened) -> int:
    """Count what changes samples that were shown, and not only adds some."""
    told = sum(event["type"] in (CONTINUED, "repaired") for rank in {0, *run.ranks} for event in run.events(rank=rank))
    return told + sum(".torn" in name.rpartition("/")[2] for name, _, _ in run.fingerprint)


def _names(signals: Sequence[Any]) -> list[str]:
    """Name the signals, those last that count what is not finite in others."""
    names = dict.fromkeys(str(name) for one in signals for name in one.names)
    return sorted(names, key=lambda name: name in NONFINITE.values())


def facts_of(view: Mapping[str, Any]) -> list[Fact]:
    """Give the numbers in words that a view begins with.

    Args:
        view: of the report's page.
    """
    rows = [(one["label"], one["value"], one["note"]) for one in view.get("facts") or ()]
    rows += [(one["where"], one["verdict"], one["told"]) for one in view.get("watched") or ()]
    return [Fact(label=plain(a), value=plain(b), note=plain(c)) for a, b, c in rows]


def _sites(run: Opened, signals: Sequence[Any]) -> list[Site]:
    if signals:
        held = run.together
        named = [
            (held.site(rank, str(site["name"])), site) for rank in held.holders for site in run.signals(rank).sites
        ]
    else:
        named = [(str(block.get("site")), block) for block in (_blocks(run.reports[-1]) if run.reports else ())]
    return [
        Site(name=plain(name), kind=plain(str(site.get("kind") or "")), shape=_shape(site.get("shape")))
        for name, site in named
    ]


def _shape(held: Any) -> list[int]:
    good = isinstance(held, list) and len(held) < 16 and all(isinstance(size, int) for size in held)
    return list(held) if good else []


def _overhead(run: Opened, signals: Sequence[Any]) -> Any:
    shares = [told(event.get("share")) for event in run.events() if event["type"] == "overhead"]
    sampled = [told(value) for _, value in signals[0].scalars("overhead")[-1:]] if signals else []
    return next((one for one in [*shares[-1:], *sampled] if isinstance(one, float)), None)


def _findings(run: Opened, view: Mapping[str, Any]) -> list[Found]:
    if run.manifest.kind == "train":
        return [
            _found({**one, "status": "clear" if one.get("over") else "fired", "over": None}, one)
            for one in view["told"][:_MAX_FINDINGS]
        ]
    if run.manifest.kind == "watch":
        return _paired([one for one in run.together.findings if one.get("status") != "unknown"], view)
    return findings_of(run.reports[-1], view) if run.reports else []


def findings_of(report: Mapping[str, Any], view: Mapping[str, Any]) -> list[Found]:
    """Give the findings of a check.

    Args:
        report: the JSON of `levada check`.
        view: what the report's page shows of it.
    """
    return _paired(fired(report), view)


def _paired(every: Sequence[Mapping[str, Any]], view: Mapping[str, Any]) -> list[Found]:
    shown = [_found(one, words) for one, words in zip(every, view.get("findings") or (), strict=False)]
    rest = [_found(one, {"title": phrase(one), "claim": one.get("claim")}) for one in view.get("open") or ()]
    return [*shown, *rest][:_MAX_FINDINGS]


def _found(one: Mapping[str, Any], shown: Mapping[str, Any]) -> Found:
    where = one.get("where")
    held: Mapping[str, Any] = where if isinstance(where, Mapping) else {}
    severity, status = one.get("severity"), one.get("status", "fired")
    words = {
        key: plain(str(shown.get(key) or ""))
        for key in ("title", "claim", "consequence", "falsify", "calibration", "source")
    }
    return Found(
        rule=plain(str(one.get("rule") or "")),
        severity=severity if severity in _SEVERITIES else "info",
        status=status if status in ("fired", "clear", "unknown") else "unknown",
        first=plain(str(held.get("first") or "")),
        last=plain(str(held.get("last") or "")),
        came=_step(one.get("came")),
        renewed=_step(one.get("renewed")),
        over=_step(one.get("over")),
        evidence=[Fact(label=plain(label), value=plain(value)) for label, value in shown.get("evidence") or ()],
        ruled_out=[plain(str(sentence)) for sentence in shown.get("ruled_out") or ()],
        remedies=[
            Change(
                name=plain(remedy["name"]),
                patch=plain(remedy["patch"]),
                verified=remedy["verified"],
                trust=plain(remedy["trust"]),
                rows=plain(remedy["rows"]),
            )
            for remedy in shown.get("remedies") or ()
        ],
        **words,
    )


def _step(value: Any) -> int | None:
    step = number(value)
    return int(step) if step is not None and abs(step) < 2**53 else None


def table_of(held: Any) -> Table | None:
    """Give the table of a view; None without rows.

    Args:
        held: as the view has it.
    """
    if not isinstance(held, Mapping) or not held["rows"]:
        return None
    rows = [
        TableRow(site=plain(r["site"]), kind=plain(r["kind"]), cells=list(map(plain, r["cells"]))) for r in held["rows"]
    ]
    return Table(head=list(map(plain, held["head"])), rows=rows, total=held["total"])


def _claim(one: Mapping[str, Any]) -> Claim:
    told = {key: value for key, value in one.items() if key in Claim.model_fields}
    told |= {
        "pairs": [(pair.label, pair.measured.text, pair.predicted.text, ratio) for pair, ratio in one["pairs"]],
        "numbers": [{"label": number.label, "value": number.text} for number in one["numbers"]],
    }
    return Claim(**plain(told))


def _has(run: Opened, signals: Sequence[Any]) -> list[Part]:
    found: list[Part] = []
    if run.losses():
        found.append("loss")
    if run.held_out():
        found.append("held_out")
    if any(one.names and one.steps for one in signals):
        found.append("heat")
    if run.manifest.kind == "watch":
        found += [part for part in INSIDE if run.holders(part)]
    for report in run.reports:
        held = report.get("summary")
        for name, key in (("mixing", "mixing"), ("memory", "memory_horizon")):
            if isinstance(held, Mapping) and held.get(key) and name not in found:
                found.append(name)  # type: ignore[arg-type]
    return found
