"""The pages of results, made when the documentation is built: from `docs/results/*.json` and from the studies.

They are written beside the files that they are made of, and are not committed: a page for each study, one with every
claim, and one with every statement that the studies look into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from docs.result_files import FOLDER, read, stale

from levada.report.claim import STATUSES, Number, claim_view, compared, pairs
from levada.report.figure import figure
from levada.report.picture import is_picture, picture_view
from levada.report.typeset import typeset
from levada.report.words import count, short
from levada.studies import STUDIES
from levada.studies.statements import STATEMENTS, VERDICTS, Statement
from levada.study import Study
from levada.study.study import SCALES

__all__ = ["index_page", "pages", "setup", "statements_page", "study_page", "write_pages"]

DISCUSSIONS = FOLDER.parent / "discussions"
MANY_PAIRS, MANY_NUMBERS = 4, 4
SOURCES = {"T": "a tutorial on residual networks", "E": "an essay on depth"}


def pages(folder: Path = FOLDER) -> dict[str, str]:
    """Return the pages, as Markdown by file name.

    Args:
        folder: where the results are.
    """
    results = {name: read(name, folder) for name in STUDIES}
    made = {f"{name}.md": study_page(study, results[name], _discussion(name)) for name, study in STUDIES.items()}
    return {"index.md": index_page(results), "statements.md": statements_page(results), **made}


def index_page(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return the page of all studies and all claims.

    Args:
        results: by the study's name; None for one without.
    """
    found = {name: result for name, result in results.items() if result is not None}
    counts = Counter(claim_view(claim)["status"] for result in found.values() for claim in result["claims"])
    total = "; ".join(f"{counts[one]} {one}" for one in STATUSES if counts[one]) or "none yet"
    studies = "1 study" if len(found) == 1 else f"{len(found)} studies"
    lines = [
        "# Results",
        "What the [studies](../studies.md) found, each claim with a criterion that was written down before the run. "
        "These pages are made of result files that whole runs of committed code wrote; a test computes a row of each "
        "again. [All statements](statements.md) lists what two documents about depth say, and what is true.",
        f"**{count(sum(counts.values()), 'claim')} of {studies}**: {total}. "
        f"*Corrected* is a claim that does not hold and for which the study says what is true instead.",
        "## Questions and answers",
        _table(("study", "question", "claims"), [_study_row(STUDIES[name], results[name]) for name in results]),
        "## All claims",
    ]
    rows = [row for name, result in found.items() for row in _claim_rows(name, result)]
    lines.append(_table(("study", "claim", "outcome"), rows) if rows else "No study has a result yet.")
    toc = "\n".join(["statements", *results])
    lines.append(f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{toc}\n```")
    return "\n\n".join(lines) + "\n"


def _study_row(study: Study, result: Mapping[str, Any] | None) -> tuple[str, str, str]:
    asked, link = typeset(study.question), f'<a href="{study.name}.html">{study.name}</a>'
    if result is None:
        return link, asked, "not run"
    if study.answer:
        asked += f"<br><strong>{typeset(study.answer)}</strong>"
    counts = Counter(claim_view(claim)["status"] for claim in result["claims"])
    told = " ".join(_chip(one, counts[one]) for one in STATUSES if counts[one])
    return link, asked, told + (" (stale)" if stale(result) else "")


def _claim_rows(name: str, result: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for number, claim in enumerate(result["claims"], 1):
        view = claim_view(claim)
        link = f'<a href="{name}.html#claim-{number}">{typeset(view["statement"])}</a>'
        yield name, link, _chip(view["status"])


def _discussion(name: str) -> str:
    path = DISCUSSIONS / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def study_page(study: Study, result: Mapping[str, Any] | None, discussion: str = "") -> str:
    """Return the page of a study.

    Args:
        study: the study.
        result: its result, if there is one.
        discussion: what somebody wrote of that result, in Markdown.
    """
    told: Mapping[str, Any] = result or {"question": study.question, "method": study.method, "notes": ()}
    lines = [f"# {study.name}: {study.title}", _html(f'<p class="question">{typeset(told["question"])}</p>')]
    if result is not None and study.answer:
        lines.append(_html(f"<p><strong>{typeset(study.answer)}</strong></p>"))
    if told["method"]:
        lines.append(_html(f"<p><strong>Method.</strong> {typeset(told['method'])}</p>"))
    if result is None:
        lines += [":::{note}\nThis study has no result yet: it was not run.\n:::", *_rerun(study, "small")]
        return "\n\n".join(lines) + "\n"
    changed = stale(result)
    if changed:
        said = _html(f"<p>{typeset('; '.join(changed))}.</p>")
        lines.append(f":::{{warning}}\nThis result is stale: the study has changed since.\n\n{said}\n:::")
    lines += [_figure(one) for one in result["figures"]]
    lines += ["## Claims", _claims_table(result)]
    if discussion:
        lines += ["## What it says, and what it does not", discussion]
    if result["notes"]:
        lines += ["## Notes", _html(f"<ul>{''.join(f'<li>{typeset(note)}</li>' for note in result['notes'])}</ul>")]
    lines += [*_rerun(study, result["scale"]), "## Where this comes from", _provenance(result)]
    lines += ["## Sources", _html(f"<ul>{''.join(f'<li>{typeset(one)}</li>' for one in result['sources'])}</ul>")]
    return "\n\n".join(lines) + "\n"


def _figure(spec: Mapping[str, Any]) -> str:
    title, caption = typeset(spec["title"]), typeset(spec["caption"])
    if spec.get("thinned"):
        caption += f" Of each line {spec['thinned']} points are drawn."
    if not is_picture(spec):
        drawn = figure(spec)
    elif spec.get("images"):
        images = "".join(
            f'<li><img src="data:image/png;base64,{one["png"]}" alt="{escape(one["alternative"])}" '
            f'width="{one["width"]}" height="{one["height"]}">{typeset(one["label"])}</li>'
            for one in picture_view(spec)["images"]
        )
        drawn = f'<ul class="pictures">{images}</ul>'
    else:
        drawn = f"<p>{typeset(spec['missing'])}</p>"
    return _html(
        f'<div class="levada-figure"><figure><h4>{title}</h4>{drawn}<figcaption>{caption}</figcaption></figure></div>'
    )


def _claims_table(result: Mapping[str, Any]) -> str:
    rows = []
    for number, claim in enumerate(result["claims"], 1):
        view = claim_view(claim)
        said = f'<span id="claim-{number}">{_chip(view["status"])}</span><br>'
        said += f"<strong>{typeset(view['statement'])}</strong>"
        if view["source"]:
            said += f"<small>{typeset(view['source'])}</small>"
        if view["correction"]:
            label = view["correction_label"]
            said += f'<p class="correction">{label} {typeset(view["correction"])}</p>'
        said += f"<p>It holds if: {typeset(view['criterion'])}.</p>"
        rows.append((said, _ours(claim, view), typeset(view["paper_value"]) or "—"))
    return _table(("claim", "here", "in the source"), rows)


def _ours(claim: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """Say what was measured: the first numbers, and all of them to be opened."""
    if view["reason"]:
        return typeset(view["reason"])
    found = pairs(claim)
    every = [(f"{pair.label}: measured", pair.measured) for pair in found]
    every += [(f"{pair.label}: predicted", pair.predicted) for pair in found]
    every += [(number.label, number) for number in view["numbers"]]
    lines = [f"{typeset(number.label)}: {typeset(number.text)}" for number in view["numbers"][:MANY_NUMBERS]]
    if len(found) > MANY_PAIRS:
        ratios = sorted(pair.ratio for pair in found if pair.ratio == pair.ratio)
        lines.insert(0, f"measured / predicted in {len(found)} cases: {short(ratios[0])} to {short(ratios[-1])}")
    else:
        told = [(pair, ratio) for pair, ratio in view["pairs"]]
        lines = [
            f"{typeset(pair.label)}: measured {typeset(pair.measured.text)}, predicted {typeset(pair.predicted.text)} "
            f"({typeset(compared(found))} {ratio})"
            for pair, ratio in told
        ] + lines
    if view["statistic"]:
        lines.append(typeset(view["statistic"]))
    return "<br>".join(lines) + _every(every)


def _every(numbers: Sequence[tuple[str, Number]]) -> str:
    if not any(number.each for _, number in numbers) and len(numbers) <= MANY_NUMBERS:
        return ""
    items = []
    for label, number in numbers:
        text = ", ".join(f"{seed}: {value}" for seed, value in number.each) or number.text
        items.append(f"<dt>{typeset(label)}</dt><dd>{typeset(text)}</dd>")
    return f"<details><summary>every number</summary><dl>{''.join(items)}</dl></details>"


def _rerun(study: Study, scale: str) -> list[str]:
    commands = f"levada study {study.name} --scale {scale} --out runs\nlevada report runs -o report.html"
    takes = [f"{one} {study.costs[one]}" for one in SCALES if one in study.costs]
    lines = ["## How to run it", f"```sh\n{commands}\n```"]
    if takes:
        lines.append(f"What the scales take: {'; '.join(takes)}.")
    return lines


def _provenance(result: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {short(value)}" for key, value in result["settings"].items())
    seconds = result["seconds"]
    rows = [
        ("scale and seeds", f"{result['scale']}; seeds {', '.join(map(str, result['seeds']))}"),
        ("results", f"{result['results']}" + (f", {seconds / 60:.1f} minutes of a core" if seconds else "")),
        ("date", result["created"][:10]),
        ("code", ", ".join(commit[:12] for commit in result["commits"])),
        ("versions", ", ".join(f"{name} {value}" for name, value in result["versions"].items())),
        ("machine", f"{result['machine']['cpu']}, {result['machine']['cores']} cores"),
        ("settings", settings),
        ("configuration", result["configuration"][:16]),
    ]
    return _html("<dl class='provenance'>" + "".join(f"<dt>{k}</dt><dd>{typeset(v)}</dd>" for k, v in rows) + "</dl>")


def statements_page(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return the page of what two documents about depth say, and what is true.

    Args:
        results: by the study's name.
    """
    lines = [
        "# All statements",
        "This library grew out of two documents about depth. Here is what they say, in short, with a verdict, with "
        "what is true where a sentence is wrong or says too much, and with the claims of the studies that show it.",
    ]
    for letter, title in SOURCES.items():
        chosen = [one for one in STATEMENTS if one.name.startswith(letter)]
        counts = Counter(one.verdict for one in chosen)
        told = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
        rows = [_statement_row(one, results) for one in chosen]
        head = ("", "statement", "verdict", "shown by")
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            f"{len(chosen)} statements, of verdict: {told}.",
            _table(head, rows),
        ]
    return "\n\n".join(lines) + "\n"


def _statement_row(one: Statement, results: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, str, str, str]:
    said = f"<strong>{typeset(one.text)}</strong>"
    if one.correction:
        said += f'<p class="correction">{typeset(one.correction)}</p>'
    shown = "<br>".join(_shown(study, claim, results) for study, claim in one.shown_by) or "—"
    return one.name, said, f'<span class="said {one.verdict}">{one.verdict}</span>', shown


def _shown(study: str, claim: str, results: Mapping[str, Mapping[str, Any] | None]) -> str:
    if study not in results:
        return study
    result = results[study]
    names = [told["name"] for told in result["claims"]] if result else []
    if claim not in names:
        return f'<a href="{study}.html">{study}</a>{f": {typeset(claim)}" if claim else ""}'
    number = names.index(claim) + 1
    status = claim_view(result["claims"][number - 1])["status"] if result else ""
    return f'<a href="{study}.html#claim-{number}">{study}: {typeset(claim)}</a> {_chip(status)}'


def _chip(status: str, number: int = 0) -> str:
    kind = status.replace(",", "").replace(" ", "-")
    count = f"{number} " if number else ""
    return f'<span class="outcome {kind}">{STATUSES[status]} {count}{status}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as HTML, which can be a list of cards on a narrow screen."""
    first = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [f'<div class="table-wrapper"><table class="docutils results"><thead><tr>{first}</tr></thead><tbody>']
    for row in rows:
        cells = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return _html("\n".join([*lines, "</tbody></table></div>"]))


def _html(text: str) -> str:
    """Return HTML as Markdown takes it whole: a block ends at an empty line."""
    return "\n".join(line for line in text.split("\n") if line.strip())


def write_pages(folder: Path = FOLDER) -> None:
    """Write the pages that changed, and remove those that are no more.

    Args:
        folder: where the results are, and the pages go.
    """
    made = pages(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before the sources are read."""
    app.connect("builder-inited", lambda app: write_pages())
    app.add_css_file("results.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
