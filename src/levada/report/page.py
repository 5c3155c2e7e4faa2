"""One self-contained HTML page: no request, no script but its own, a content-security policy that holds it to that."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from levada import __version__
from levada._errors import UsageError
from levada.report.apart import tell_apart
from levada.report.check import check_view
from levada.report.damage import of_events, of_manifest
from levada.report.mending import fix_view
from levada.report.palette import style_sheet
from levada.report.script import Script, page_script
from levada.report.study import study_view
from levada.report.summary import summary_view
from levada.report.training import training_view
from levada.report.typeset import typeset
from levada.report.watch import watch_view
from levada.report.words import evidence_rows
from levada.runs import Damage, Run
from levada.runs.lock import is_held
from levada.runs.manifest import name_of

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Source", "render_report", "sections_of", "write_html", "write_page"]

_START, _MARK = 2048, b'<meta name="generator" content="levada '

_KINDS: Final = (
    ("fix", "repairs"),
    ("check", "checks"),
    ("train", "trainings"),
    ("watch", "watched runs"),
    ("study", "studies"),
)
Source: TypeAlias = Run | Mapping[str, Any] | str | Path


def render_report(sources: Iterable[Source]) -> str:
    """Make one HTML page of repairs, checks, trainings, watched runs and studies.

    Args:
        sources: reports of `levada check` or `levada fix` as mappings, runs, or paths of runs.

    Raises:
        UsageError: if there is no source, or one is neither a report nor a run.

    Example:
        >>> page = render_report([{"schema": 1, "verdict": "healthy", "model": "net", "blocks": [], "findings": []}])
        >>> "The learning signal reaches every block" in page
        True
    """
    return _rendered(sorted((section for source in sources for section in _sections(source)), key=_order))


def _rendered(sections: list[dict[str, Any]]) -> str:
    if not sections:
        raise UsageError("render_report: a page needs at least one report or run, got none.")
    earlier = _earlier(sections)
    for number, (section, where) in enumerate(zip(sections, tell_apart(sections), strict=True), 1):
        section |= {"anchor": f"part-{number}", "where": where, "folded": section["path"] in earlier}
    views = [section["view"] for section in sections]
    pictures = [one["picture"] for view in views for one in view.get("findings") or () if one["picture"]]
    live = any(figure.get("data") for figure in [*pictures, *(one for view in views for one in view["figures"])])
    template, shared = _template(page_script() if live else None)
    shared = {**shared, "version": __version__, "title": _title(sections)}
    several = sum(section["kind"] == "study" for section in sections) > 1
    return template.render(sections=sections, summary=summary_view(sections) if several else None, **shared)


def _earlier(sections: list[dict[str, Any]]) -> set[str]:
    """Give the watched runs, by path, that a later one of the same training went on from: the page folds them."""
    trainings = {Path(section["path"]) for section in sections if section["kind"] == "train"}
    inside: dict[Path, list[tuple[int, str]]] = {}
    for section in sections:
        path = Path(section["path"])
        if section["kind"] == "watch" and path.name.isdecimal() and path.parent.parent in trainings:
            inside.setdefault(path.parent, []).append((int(path.name), section["path"]))
    return {path for held in inside.values() for _, path in sorted(held)[:-1]}


def write_page(sources: Iterable[Source], path: str | Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Write a page as `write_html` does, and say what is missing on it.

    Args:
        sources: as for `render_report`.
        path: the file.

    Returns:
        Of each run that is damaged, by its path, what of it cannot be read: sentences. Of each that did not end, what
        was recorded last.

    Raises:
        UsageError: as `write_html`.
    """
    target = Path(path)
    _require_free(target)
    sections = sorted((section for source in sources for section in _sections(source)), key=_order)
    text = _rendered(sections)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(target), None  # not the draft's name, which nobody gave
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
    damaged = {section["path"]: section["damage"] for section in sections if section["damage"]}
    open_ends = {section["path"]: str(told) for section in sections if (told := section["view"].get("open_end"))}
    return damaged, open_ends


def write_html(runs_or_dicts: Iterable[Source], path: str | Path) -> Path:
    """Write the page of `render_report` to a file; it is whole or absent.

    Args:
        runs_or_dicts: as for `render_report`.
        path: the file.

    Raises:
        UsageError: as `render_report`, and if the folder does not exist or belongs to a run, or the file exists and is
            no such page.
    """
    write_page(runs_or_dicts, path)
    return Path(path)


def _require_free(target: Path) -> None:
    """Raise unless a page may be written there: it replaces pages, and nothing else that somebody keeps."""
    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(f"{target}: a page is a file in a folder that exists. Make the folder, or give a file's name.")
    run = next((folder for folder in target.resolve().parents if (folder / "run.json").exists()), None)
    if run is not None:
        raise UsageError(f"{target}: a page does not go into the folder of a run, {run}. Give a path beside it.")
    if target.exists():
        with target.open("rb") as file:
            start = file.read(_START)
        if start and _MARK not in start:
            raise UsageError(
                f"{target}: a page replaces only a page of levada, and this is another file. Name one by -o."
            )


@cache
def _template(script: Script | None) -> tuple[Template, dict[str, Any]]:
    """Give the template, and what all pages of it share: style, script and policy."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("levada.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A page is read elsewhere than where it was made.
    environment.filters["absolute"] = lambda path: shlex.quote(str(Path(path).absolute()))
    environment.filters["typeset"] = lambda text: Markup(typeset(text))
    environment.globals["interactive"] = script is not None
    style = style_sheet() + (script.style if script else "")
    # The hashes let in this style, this script and no other; attributes of styles are refused with everything else.
    sources = f"style-src {_digest(style)};" + (f" script-src {_digest(script.code)};" if script else "")
    policy = f"default-src 'none'; {sources} img-src data:; base-uri 'none'; form-action 'none'"
    shared = {"style": Markup(style), "script": Markup(script.code if script else ""), "policy": policy}
    return environment.get_template("report.html.j2"), shared


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(sections: list[dict[str, Any]]) -> str:
    if len(sections) == 1:
        return str(sections[0]["view"]["title"])
    counts = [(sum(section["kind"] == kind for section in sections), kind, many) for kind, many in _KINDS]
    named = {"train": "training", "watch": "watched run"}
    return ", ".join(
        f"{count} {named.get(kind, kind) if count == 1 else many}" for count, kind, many in counts if count
    )


def _order(section: Mapping[str, Any]) -> tuple[Any, ...]:
    """Put repairs first, then checks, trainings and watched runs as they were made, then studies, R2 before R10."""
    if section["kind"] == "fix":
        return (-1, section["created"])
    if section["kind"] in ("check", "train", "watch"):
        return (0 if section["kind"] == "check" else 0.5, section["created"])
    parts = re.split(r"(\d+)", section["view"]["name"])
    return (1, [(int(part), "") if part.isdigit() else (-1, part) for part in parts])


def _sections(source: Source) -> list[dict[str, Any]]:
    if isinstance(source, (str, Path)):
        source = Run(source)
    if isinstance(source, Run):
        return sections_of(source)
    if isinstance(source, Mapping) and "outcome" in source and isinstance(source.get("before"), Mapping):
        return _fix_sections(source)
    if not isinstance(source, Mapping) or "verdict" not in source:
        raise UsageError(
            f"render_report: a source is a report of `levada check` or a run, got {type(source).__name__}"
            f"{' without a verdict' if isinstance(source, Mapping) else ''}. Give report.to_dict() or a Run."
        )
    if isinstance(source.get("schema"), int) and source["schema"] > 1:
        raise UsageError(
            f"render_report: this levada shows reports of schema 1, got {source['schema']}. Update levada."
        )
    shared = {"provenance": [], "damage": [], "created": "", "path": ""}
    return [{"kind": "check", "view": _safe(check_view(source)), **shared}]


def _fix_sections(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give a repair, and the checks of the model as it is and as the best remedy makes it."""
    shared = {"provenance": [], "damage": [], "created": "", "path": ""}
    sections: list[dict[str, Any]] = [{"kind": "fix", "view": _safe(fix_view(told)), **shared}]
    for side, words in (("before", "as it is"), ("after", f"with {told.get('remedy')}")):
        report = told.get(side)
        if isinstance(report, Mapping):
            view = check_view(report, f"{report.get('model') or 'check'}, {words}")
            sections.append({"kind": "check", "view": _safe(view), **shared})
    return sections


def _safe(view: dict[str, Any]) -> dict[str, Any]:
    """Mark the drawings, which escape what they contain, as HTML; everything else is escaped by the template."""
    from markupsafe import Markup

    for drawn in view["figures"]:
        if "svg" in drawn:
            drawn["svg"] = Markup(drawn["svg"])
    for finding in view.get("findings") or ():
        if finding["picture"]:
            finding["picture"]["svg"] = Markup(finding["picture"]["svg"])
    return view


def _damage(run: Run) -> Damage | None:
    """Give what is damaged of the log; the frame that a writer is at work on at this moment is not."""
    damage = run.damage
    return None if damage is not None and damage.kind == "incomplete" and is_held(run.path) else damage


def sections_of(run: Run, *, drawn: bool = True) -> list[dict[str, Any]]:
    """Give what a page says of a run: a section for each report, and one for what else it is.

    Args:
        run: the run.
        drawn: whether a watched run's figures are drawn, which take most of the time.
    """
    events = list(run.events())
    told = run.manifest
    versions = [(name, value) for name, value in told.versions.items()]
    config = {key: value for key, value in told.config.items() if key not in ("command", *told.versions)}
    # Of a study that was run again, what the last call was asked for.
    last: Mapping[str, Any] = next((event for event in reversed(events) if event["type"] == "study"), {})
    config |= {key: last[key] for key in ("scale", "settings") if key in last}
    settings = evidence_rows(config)
    came = [("command", told.command), *([("in", told.cwd)] if told.cwd else [])]
    provenance = [("run", told.name), ("created", told.created), *versions, *settings, *came]
    damage = _damage(run)
    lost = [*of_manifest(told.uncertain), *of_events(events, damage.message if damage else "")]
    shared = {"provenance": provenance, "damage": lost, "created": told.created, "path": str(run.path)}
    sections: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "report" and isinstance(event.get("report"), Mapping):
            view = check_view(event["report"], str(event.get("title") or ""))
            sections.append({"kind": "check", "view": _safe(view), **shared})
    if told.kind == "watch":
        folder = run.path.resolve()
        name = name_of(folder) if told.name == folder.name else told.name
        if isinstance(kind := told.config.get("model"), str):
            name = f"{name} ({kind})"  # the networks of one script differ by little else
        view = watch_view(run, name, events, damage, drawn=drawn)
        shared["damage"] = [*view.pop("damage"), *lost]
        sections.append({"kind": "watch", "view": _safe(view), **shared})
    elif told.kind == "train":
        # The view has the configuration as it is now.
        shared["provenance"] = [("run", told.name), ("created", told.created), *versions, *came]
        sections.append({"kind": "train", "view": _safe(training_view(run, told.name, events)), **shared})
    elif not sections or any(event["type"] in ("study", "claim", "figure", "result") for event in events):
        sections.append({"kind": "study", "view": _safe(study_view(told.name, events)), **shared})
    return sections
