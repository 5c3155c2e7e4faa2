"""Checks and claims in the terminal: at 80 columns, with and without colour, also when piped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from levada._names import CALLED
from levada._numbers import sampled
from levada.report.account import calibration
from levada.report.claim import STATUSES, Pair, failed, numbers, pairs, read_claims, statistic, status, value, wanted
from levada.report.depth import depth_lines
from levada.report.picture import told_pictures
from levada.report.profile import column, decay, gradient_key
from levada.report.words import (
    COTANGENT,
    SIGNS,
    cell,
    count,
    evidence_name,
    fired,
    headline,
    human,
    interval,
    phrase,
    plain,
    trust,
)
from levada.runs import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["print_check", "print_claims"]

MAX_ROWS: Final = 60
DYING: Final = 1e-3
MAX_PAIRS: Final = 4
MAX_NUMBERS: Final = 8
_COLOURS: Final = {"error": "red", "warn": "yellow", "info": "cyan", "healthy": "green", "unknown": "magenta"}
_PLAIN_SIGNS: Final = {"error": "x", "warn": "!", "info": "i", "healthy": "ok", "unknown": "?"}
_exact = partial(plain, digits=4)
_CLAIM_COLOURS: Final = dict(zip(STATUSES, ("green", "red", "cyan", "magenta"), strict=True))
_CORRECTIONS: Final = {"held": "more exactly", "not decided": "correction proposed, not decided by this run"}
_PLAIN: Final = str.maketrans({"−": "-", "…": "...", "“": '"', "”": '"', "’": "'", "×": "x", "±": "+-"})
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def print_check(report: Mapping[str, Any], console: Console) -> None:
    """Print one check: its blocks, the measured decay beside the predicted, the verdict and what repairs it.

    Args:
        report: the JSON of `levada check`.
        console: where to.

    Example:
        >>> from rich.console import Console
        >>> print_check({"verdict": "healthy", "blocks": [], "findings": []}, Console(width=80))
        ✓ healthy  The learning signal reaches every block.
    """
    blocks = list(report.get("blocks") or ())
    if blocks:
        _print_blocks(report, blocks, console)
    _print_summary(report, console)
    _print_verdict(report, console)


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf") and not console.legacy_windows


def _spans(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give each block the severity of the gravest finding that names it, or ""."""
    order = {str(block.get("site")): i for i, block in enumerate(blocks)}
    marks = [""] * len(blocks)
    for finding in reversed(fired(report)):
        where = finding.get("where") or {}
        places = [order[site] for key in ("first", "last") if (site := str(where.get(key))) in order]
        if places:
            for i in range(min(places), max(places) + 1):
                marks[i] = str(finding.get("severity", "info"))
    return marks


def _bar(value: float | None, low: float, high: float, width: int, fine: bool) -> str:
    """Draw a value between two logarithms; whatever has none is said in words."""
    if value is None:
        return ""
    if not math.isfinite(value) or value <= 0:
        return "zero" if value == 0 else plain(value)
    share = (math.log10(value) - low) / (high - low) if high > low else 1.0
    eighths = max(1, round(share * width * 8))
    if not fine:
        return "#" * max(1, round(share * width))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _logs(values: Sequence[float | None]) -> list[float]:
    return [math.log10(v) for v in values if v is not None and math.isfinite(v) and v > 0]


def _range(values: Sequence[float | None]) -> tuple[float, float]:
    logs = _logs(values)
    # At least three decades, so that what hardly changes looks as if it hardly changes.
    return (min(*logs, max(logs) - 3.0), max(logs)) if logs else (-3.0, 0.0)


def dying_spread(blocks: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Give the difference between inputs by block, if it falls by decades more than the signal; [] otherwise.

    Example:
        >>> dying_spread([{"signal_rms": 1.0, "signal_spread": 0.5}, {"signal_rms": 0.9, "signal_spread": 1e-6}])
        [0.5, 1e-06]
    """
    spread = column(blocks, "signal_spread")
    shares = [s / v for s, v in zip(spread, column(blocks, "signal_rms"), strict=True) if s is not None and v]
    known = [share for share in shares if math.isfinite(share)]
    return spread if known and min(known) < DYING * known[0] else []


def _print_blocks(report: Mapping[str, Any], blocks: list[Mapping[str, Any]], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    fine, kept, marks = _unicode(console), sampled(len(blocks), MAX_ROWS), _spans(report, blocks)
    signs = SIGNS if fine else _PLAIN_SIGNS
    key = gradient_key(blocks)
    signal, gradient, spread = column(blocks, "signal_rms"), column(blocks, key), dying_spread(blocks)
    predicted = column(blocks, "gradient_predicted")
    width = max(6, min(24, (console.width - 58 - 9 * bool(spread)) // 2))
    drawn = console.width >= 56 + 9 * bool(spread)  # below that, bars would take the room of the numbers
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True, width=1)
    table.add_column(
        "block", no_wrap=True, overflow="ellipsis", max_width=max(12, console.width - 42 - 9 * bool(spread) - 2 * width)
    )
    table.add_column("signal", justify="right", no_wrap=True)
    if spread:
        table.add_column("spread", justify="right", no_wrap=True)
    scale = "log scale" if width >= 9 else "log"
    if drawn:
        table.add_column(scale, no_wrap=True, width=width + 1)
    table.add_column("gradient", justify="right", no_wrap=True)
    with_theory = any(value is not None for value in predicted)
    if with_theory:
        table.add_column("predicted", justify="right", no_wrap=True)
    if drawn:
        table.add_column(scale, no_wrap=True, width=width)
    barred = spread or signal
    ranges = _range(barred), _range(gradient)
    for i in kept:
        colour = _COLOURS.get(marks[i], "")
        cells = [
            Text(signs.get(marks[i], ""), colour),
            Text(str(blocks[i].get("site", "")), colour),
            Text(cell(signal[i], "e") if signal[i] is not None else ""),
            *([Text(cell(spread[i], "e") if spread[i] is not None else "", colour)] if spread else []),
            *([Text(_bar(barred[i], *ranges[0], width, fine), "blue")] if drawn else []),
            Text(cell(gradient[i], "e") if gradient[i] is not None else "", colour),
            *([Text(cell(predicted[i], "e") if predicted[i] is not None else "", "dim")] if with_theory else []),
            *([Text(_bar(gradient[i], *ranges[1], width, fine), colour or "green")] if drawn else []),
        ]
        table.add_row(*cells)
    console.print(table, highlight=False)
    if len(kept) < len(blocks):
        console.print(f"{len(kept):,} of {len(blocks):,} blocks shown, evenly spaced.", style="dim", highlight=False)
    names = "spread" if spread else "signal", "gradient"
    told = [
        f"{name} {plain(10.0 ** max(low, -307.0))} (empty) to {plain(10.0**high)} (full)"
        for name, (low, high), values in zip(names, ranges, (barred, gradient), strict=True)
        if drawn and _logs(values)  # else there is no bar
    ]
    if told:
        _say(console, f"Bars are logarithmic: {', '.join(told)}.", "dim")
    if spread:
        _say(console, "The spread is how far the inputs of the batch differ there; it is what dies.", "dim")
    if key == "cotangent_rms":
        _say(console, f"The gradient is that of {COTANGENT}, as theory predicts it.", "dim")
    console.print()


def _print_summary(report: Mapping[str, Any], console: Console) -> None:
    spread = (report.get("summary") or {}).get("signal_decay_per_block")
    for words, rate in (("gradient", decay(report)), ("spread between inputs", spread)):
        if isinstance(rate, Mapping) and rate.get("value") is not None:
            theory = f"; predicted {plain(rate['predicted'])}" if rate.get("predicted") is not None else ""
            _say(console, f"{words} per block: measured {interval(rate, plain)}{theory}", "")
    lines = depth_lines(report.get("summary") or {})
    for line in lines:
        _say(console, line, "")
    if lines or decay(report).get("value") is not None:
        console.print()


def _print_verdict(report: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    verdict = str(report.get("verdict", "unknown"))
    signs = SIGNS if _unicode(console) else _PLAIN_SIGNS
    style = f"bold {_COLOURS.get(verdict, '')}"
    line = Text.assemble(
        (f"{signs.get(verdict, '?')} {CALLED.get(verdict, verdict)}", style), "  ", (f"{headline(report)}.", "bold")
    )
    found = fired(report)
    if found:
        line.append(f"  {found[0].get('rule')}", "dim")
    console.print(line, highlight=False)
    for number, finding in enumerate(found):
        if number:
            severity = str(finding.get("severity", "info"))
            sign = Text(
                f"{signs.get(severity, 'i')} {CALLED.get(severity, severity)}", f"bold {_COLOURS.get(severity, '')}"
            )
            console.print()
            told = Text.assemble(sign, "  ", f"{phrase(finding)}.", (f"  {finding.get('rule')}", "dim"))
            console.print(told, highlight=False)
        _print_finding(finding, console)
    for finding in report.get("findings") or ():
        if finding.get("status") == "unknown":
            _say(console, f"not decided: {finding.get('rule')}: {finding.get('claim')}", "dim", 2)
    for note in report.get("notes") or ():
        _say(console, f"note: {note}", "dim", 2)


def _print_finding(finding: Mapping[str, Any], console: Console) -> None:
    for key, label in (("claim", ""), ("consequence", "what follows: ")):
        if finding.get(key):
            _say(console, f"{label}{finding[key]}", "", 2)
    if finding.get("ruled_out"):
        _say(console, f"ruled out: {' '.join(map(str, finding['ruled_out']))}", "dim", 2)
    if calibration(finding):
        _say(console, f"false alarms: {calibration(finding)}", "dim", 2)
    for remedy in finding.get("remedies") or ():
        _say(console, f"repair: {human(str(remedy.get('name', '')))} ({trust(remedy)})", "bold", 2)
        before, after = remedy.get("before") or {}, remedy.get("after") or {}
        arrow = "→" if _unicode(console) else "->"
        for key in (key for key in before if key in after):
            _say(
                console,
                f"{evidence_name(str(key))}: {interval(before[key], _exact)} {arrow} {interval(after[key], _exact)}",
                "",
                4,
            )
        if remedy.get("patch"):
            console.print(_indented(str(remedy["patch"]), 6, "cyan"), highlight=False, soft_wrap=True)
    if finding.get("falsify"):
        _say(console, f"to show this wrong: {finding['falsify']}", "dim", 2)


def _indented(text: str, indent: int, style: str) -> Text:
    from rich.text import Text

    return Text("\n".join(" " * indent + line for line in text.splitlines()), style)


def _say(console: Console, text: str, style: str, indent: int = 0) -> None:
    """Print a sentence, wrapped and indented; brackets in it are letters, not markup."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(_letters(text, console), style), (0, 0, 0, indent), expand=False), highlight=False)


def print_claims(claims: Run | Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print the claims of a study: held, not held, corrected or not decided, with their numbers.

    Args:
        claims: a run, or events of type "claim".
        console: where to.

    Example:
        >>> from rich.console import Console
        >>> print_claims([{"name": "rate", "statement": "It decays.", "status": "held"}], Console(width=60))
        ✓ held         It decays. (rate)
        <BLANKLINE>
        1 held
    """
    from rich.table import Table
    from rich.text import Text

    events = list(claims.events() if isinstance(claims, Run) else claims)
    missing = failed(events)
    if missing:
        sign = "✕" if _unicode(console) else "x"
        of = f"{len(missing)} of {count(wanted(events, missing), 'result')} failed"
        _say(console, f"{sign} {of}: {next(iter(missing.values())).get('error') or 'no reason is known'}", "bold red")
        console.print()
    read = read_claims(events)
    if not read:
        console.print("This run decides no claim.", highlight=False)
        return
    signs = STATUSES if _unicode(console) else dict(zip(STATUSES, "+x~?", strict=True))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=13, max_width=13)
    table.add_column(overflow="fold")
    for i, claim in enumerate(read):
        if i:
            table.add_row()
        decided, name = status(claim), str(claim.get("name") or "")
        said = Text(_letters(str(claim.get("statement") or name), console)).append(
            _letters(f" ({name})", console), "dim"
        )
        for line, style in _claim_lines(claim):
            said.append(_letters(f"\n{line}", console), style)
        table.add_row(Text(f"{signs[decided]} {decided}", f"bold {_CLAIM_COLOURS[decided]}"), said)
    console.print(table, highlight=False)
    console.print()
    if any(number.each for claim in read for number in numbers(claim)):
        _say(console, "Medians and ranges; every seed is in the report.", "dim")
    for line in told_pictures(events):
        _say(console, line, "dim")
    counts = [f"{n} {s}" for s in STATUSES if (n := sum(status(claim) == s for claim in read))]
    console.print("; ".join(counts), highlight=False)


def _claim_lines(claim: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what stands below a claim's statement: what is true instead, the criterion, the numbers, the statistic."""
    if claim.get("correction"):
        yield f"{_CORRECTIONS.get(status(claim), 'correction')}: {value(claim['correction'])}", ""
    for key, label in (("criterion", "holds if: "), ("reason", "")):
        if claim.get(key):
            yield f"{label}{claim[key]}", ""
    if claim.get("paper_value") not in (None, ""):
        yield f"in the paper: {value(claim['paper_value'])}", "dim"
    found, told = pairs(claim, _exact), numbers(claim, _exact)
    if len(found) > MAX_PAIRS:
        worst = max(found, key=lambda pair: abs(math.log(pair.ratio)) if pair.ratio > 0 else math.inf)
        yield f"measured / predicted in {len(found)} cases; furthest from 1: {_pair(worst)}", "dim"
    else:
        yield from ((_pair(pair), "dim") for pair in found)
    for number in told[:MAX_NUMBERS]:
        yield f"{number.label}: {number.text}", "dim"
    if len(told) > MAX_NUMBERS:
        yield f"and {len(told) - MAX_NUMBERS} more numbers, in the report", "dim"
    line = statistic(claim.get("statistic"), plain)
    if line:
        yield f"statistic: {line}", "dim"


def _pair(pair: Pair) -> str:
    label = f"{pair.label}: " if pair.label else ""
    return f"{label}measured {pair.measured.text}, predicted {pair.predicted.text}, ratio {plain(pair.ratio)}"


def _letters(text: str, console: Console) -> str:
    """Write what the console's encoding lacks in letters that it has."""
    if _unicode(console):
        return text
    return text.translate(_PLAIN).encode(console.encoding, "replace").decode(console.encoding)
