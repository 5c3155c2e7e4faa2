"""The page's view of one claim: what was said, what was measured, what the statistic says, what is true instead."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from levada.report.words import evidence_rows, human, interval, number, precise, short

__all__ = [
    "STATUSES",
    "Number",
    "Pair",
    "claim_view",
    "compared",
    "failed",
    "numbers",
    "pairs",
    "ratio_text",
    "read_claims",
    "statistic",
    "status",
    "value",
    "wanted",
]

STATUSES: Final = {"held": "✓", "not held": "✕", "not held, corrected": "≠", "not decided": "?"}
_PAIR: Final = re.compile(r"(?:(.*): )?(measured|predicted)")
_CORRECTION: Final = {
    "held": "More exactly.",
    "not held, corrected": "Correction.",
    "not decided": "The correction that is proposed, and not decided by this run.",
}

Write = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a claim in one line, and where it sums up several, each of them by name."""

    label: str
    text: str
    each: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """What was measured beside what was predicted: both in words, their ratio, and the size of the measured one."""

    label: str
    measured: Number
    predicted: Number
    ratio: float
    size: float


def read_claims(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Give the claims of a run; of one that was decided again, the last word."""
    last: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("type", "claim") == "claim":
            last[str(event.get("name"))] = event
    return list(last.values())


def failed(events: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Give the failures of a run's last call that no later result has mended, by key."""
    found: dict[str, Mapping[str, Any]] = {}
    for event in events:
        kind = event.get("type")
        if kind == "study":
            found.clear()  # what is missing is tried again by every call
        elif kind == "failure":
            found[str(event.get("key"))] = event
        elif kind == "result":
            found.pop(str(event.get("key")), None)
    return found


def wanted(events: Iterable[Mapping[str, Any]], missing: Mapping[str, Any]) -> int:
    """Count the results that a run has or should have."""
    there = {str(event.get("key")) for event in events if event.get("type") == "result"}
    return len(there | missing.keys())


def status(claim: Mapping[str, Any]) -> str:
    """Give one of `STATUSES`: a sentence that does not hold, and for which the study knows better, is corrected.

    Example:
        >>> status({"status": "not held", "correction": "It is four times as much."})
        'not held, corrected'
    """
    told = str(claim.get("status") or "not decided")
    if told == "not held" and claim.get("correction"):
        return "not held, corrected"
    return told if told in STATUSES else "not decided"


def statistic(told: Any, write: Write = short) -> str:
    """Write a statistic as one line.

    Example:
        >>> statistic({"name": "sign test, exact, 5 of 5", "value": 5.0, "p": 0.0625})
        'sign test, exact, 5 of 5: p = 0.0625 (smallest possible with 5: 0.0625)'
        >>> statistic({"name": "bootstrap interval, 95%", "value": -0.01464, "low": -0.02517, "high": -0.004998})
        'bootstrap interval, 95 %: −0.0146 [−0.0252, −0.0050]'
    """
    if not isinstance(told, Mapping):
        return write(told) if told else ""
    rest = {key: item for key, item in told.items() if item is not None}
    name = re.sub(r"(\d)%", r"\1 %", str(rest.pop("name", "") or rest.pop("test", "")))
    parts = []
    if "value" in rest and f"{write(rest['value'])} of " not in name:
        parts.append(interval(rest, write))
    if "p" in rest:
        parts.append(f"p = {write(rest['p'])}{_least_p(name, write)}")
    known = ("value", "low", "high", "p")
    parts += [f"{key} {text}" for key, text in evidence_rows({k: v for k, v in rest.items() if k not in known}, write)]
    return f"{name}: {', '.join(parts)}" if name and parts else name or ", ".join(parts)


def _least_p(name: str, write: Write) -> str:
    """Say how small the p of a test by signs can be at all: 2^-n, twice that if two-sided."""
    found = re.search(r"sign(?: test\b(.*?)\d+ of|-flip test\b(.*?)) (\d+)(?: pairs|\b)", name)
    if found is None:
        return ""
    sides = 1 if "one-sided" in (found[1] or found[2] or "") else 2
    return f" (smallest possible with {found[3]}: {write(sides * 0.5 ** int(found[3]))})"


def numbers(claim: Mapping[str, Any], write: Write = precise) -> list[Number]:
    """Give the numbers of a claim that are no pair of measured and predicted, one line each."""
    told = claim.get("numbers") or {}
    paired = {key for keys in _paired(told).values() for key in keys.values()}
    lines: list[Number] = []
    for key, item in told.items():
        if key in paired:
            continue
        if _is_list(item):
            lines.append(_summed(human(str(key)), item, claim.get("seeds") or (), write))
        else:
            lines += [Number(label, text) for label, text in evidence_rows({key: item}, write)]
    return lines


def pairs(claim: Mapping[str, Any], write: Write = precise) -> list[Pair]:
    """Give what is told as "x: measured" and "x: predicted", by x.

    Example:
        >>> pairs({"numbers": {"tanh: measured": 0.19, "tanh: predicted": 0.2}})[0].ratio
        0.95
    """
    told = claim.get("numbers") or {}
    made = []
    for label, keys in _paired(told).items():
        measured, predicted = told[keys["measured"]], told[keys["predicted"]]
        seeds = claim.get("seeds") or ()
        lines = [_summed("", item, seeds, write) for item in (measured, predicted)]
        above, below = _middle(measured), _middle(predicted)
        ratio = above / below if below and math.isfinite(above) and math.isfinite(below) else math.nan
        made.append(Pair(human(label), lines[0], lines[1], ratio, 0.0 if math.isnan(ratio) else above))
    return made


def compared(made: Sequence[Pair]) -> str:
    """Say how pairs are compared: in decades where all ratios are above zero and lie on a scale of decades."""
    return "log10 of measured / predicted" if _in_decades(made) else "measured / predicted"


def ratio_text(pair: Pair, made: Sequence[Pair], write: Write = short) -> str:
    """Write the ratio of a pair, as its neighbours' are: in decades with its sign, or as it is."""
    if math.isnan(pair.ratio):
        return "—"
    if not _in_decades(made):
        return write(pair.ratio)
    return f"{math.log10(pair.ratio):+.3f}".replace("-", "−")


def _in_decades(made: Sequence[Pair]) -> bool:
    ratios = [pair.ratio for pair in made if not math.isnan(pair.ratio)]
    sizes = [abs(pair.size) for pair in made if pair.size]
    return bool(ratios) and min(ratios) > 0 and max(sizes) > 100 * min(sizes)


def _paired(told: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key in told:
        match = _PAIR.fullmatch(str(key))
        if match:
            found.setdefault(match[1] or "", {})[match[2]] = key
    return {label: keys for label, keys in found.items() if len(keys) == 2}


def _is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, str)


def _middle(item: Any) -> float:
    """Give the number, the value of an interval, or the median of a list; NaN for what is none of them."""
    if isinstance(item, Mapping):
        item = item.get("value")
    amounts = [number(one) for one in item] if _is_list(item) else [number(item)]
    known = [amount for amount in amounts if amount is not None]
    return statistics.median(known) if known and len(known) == len(amounts) else math.nan


def _summed(label: str, item: Any, seeds: Sequence[Any], write: Write) -> Number:
    """Write a list as its range and median, with all of it beside; anything else as it is."""
    if not _is_list(item):
        return Number(label, interval(item, write))
    by_seed = len(item) == len(seeds)
    names = [f"seed {seed}" for seed in seeds] if by_seed else [str(i + 1) for i in range(len(item))]
    each = tuple((name, interval(one, write)) for name, one in zip(names, item, strict=True))
    amounts = [amount for one in item if (amount := number(one)) is not None and math.isfinite(amount)]
    if len(item) < 3 or not amounts:
        return Number(label, ", ".join(text for _, text in each) or "—")
    num = f"{len(item)} {'seeds' if by_seed else 'values'}"
    odd = f"; {len(item) - len(amounts)} of them no finite number" if len(amounts) < len(item) else ""
    if min(amounts) == max(amounts):
        return Number(label, f"{write(amounts[0])} ({'all of ' if not odd else ''}{num}{odd})", each)
    middle = f"median {write(statistics.median(amounts))}"
    return Number(label, f"{write(min(amounts))} … {write(max(amounts))} ({middle}; {num}{odd})", each)


def claim_view(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Make what the template shows of one claim."""
    found, decided = pairs(claim), status(claim)
    return {
        "name": str(claim.get("name") or ""),
        "statement": str(claim.get("statement") or claim.get("name") or ""),
        "criterion": str(claim.get("criterion") or ""),
        "reason": str(claim.get("reason") or ""),
        "seeds": ", ".join(map(str, claim.get("seeds") or ())),
        "status": decided,
        "sign": STATUSES[decided],
        "pairs": [(pair, ratio_text(pair, found)) for pair in found],
        "compared": compared(found),
        "numbers": numbers(claim),
        "statistic": statistic(claim.get("statistic")),
        "correction": value(claim.get("correction")),
        "correction_label": _CORRECTION.get(decided, "Correction."),
        "paper_value": value(claim.get("paper_value")),
        "source": value(claim.get("source")),
    }


def value(told: Any) -> str:
    """Write what a study gives as a text, a number, a list or a mapping."""
    if told is None or told == "":
        return ""
    if isinstance(told, Mapping):
        return "; ".join(f"{key}: {text}" for key, text in evidence_rows(told))
    return ", ".join(map(short, told)) if isinstance(told, list) else short(told)
