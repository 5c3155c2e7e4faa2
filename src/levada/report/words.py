"""Verdicts and numbers in plain words: the same on the page, in the terminal and in SARIF."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from levada._names import CALLED
from levada._numbers import NONFINITE
from levada.report.vocabulary import EVIDENCE, GROUPS, LOOKS, OF_RULE, OF_TENSOR, OF_WATCH, OF_WEIGHTS, PHRASES, REASONS

__all__ = [
    "COTANGENT",
    "SIGNS",
    "cell",
    "count",
    "evidence_name",
    "evidence_rows",
    "fired",
    "headline",
    "human",
    "interval",
    "number",
    "phrase",
    "place",
    "plain",
    "precise",
    "sentence",
    "short",
    "trust",
]

_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

COTANGENT: Final = "a cotangent: a random vector of size 1, sent backwards from the output"
SIGNS: Final = {"error": "✕", "warn": "!", "info": "i", "healthy": "✓", "unknown": "?"}
_RANK: Final = {"error": 0, "warn": 1, "info": 2}
# Rules whose notes say of a block that the learning signal does not get there, or not through it.
_AGAINST: Final = ("frozen_layers", "vanishing_gradient", "vanishing_signal")


def number(value: Any) -> float | None:
    """Read a number of a report: floats, and the names of the three that JSON lacks; None for what is no number.

    Example:
        >>> number("-inf"), number(2), number("layers.0"), number(None), number(-(10**400))
        (-inf, 2.0, None, None, -inf)
    """
    if isinstance(value, str):
        return NONFINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def superscript(exponent: int) -> str:
    """Write a power of ten.

    Example:
        >>> superscript(-12)
        '10⁻¹²'
    """
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def _form(value: Any, power: str, digits: int = 3) -> str:
    amount = number(value)
    if amount is None:
        return "—" if value is None else str(value)
    if not math.isfinite(amount):
        return "NaN" if math.isnan(amount) else ("−" if amount < 0 else "") + "∞"
    sign, size = ("−" if amount < 0 else ""), abs(amount)
    if size < 1e6 and size == int(size):
        return f"{sign}{int(size):,}"
    if 1e-3 <= size < 1e5:
        return sign + (f"{size:,.0f}" if size >= 1000 else f"{size:.{digits}g}")
    mantissa, exponent = f"{size:.{digits - 2}e}".split("e")
    tens = str(int(exponent))
    return f"{sign}{mantissa}{power}{tens.translate(_SUPERSCRIPTS) if '×' in power else tens}"


def short(value: Any) -> str:
    """Write a number with three digits that matter.

    Example:
        >>> short(0.40812), short(4.13e-19), short(12345678.0), short("nan"), short(None)
        ('0.408', '4.1×10⁻¹⁹', '1.2×10⁷', 'NaN', '—')
    """
    return _form(value, "×10")


def precise(value: Any) -> str:
    """As `short`, with one digit more: for evidence, where two numbers are compared.

    Example:
        >>> precise(2.3021), precise(4.134e-19)
        ('2.302', '4.13×10⁻¹⁹')
    """
    return _form(value, "×10", 4)


def cell(value: Any, power: str = "×10") -> str:
    """As `short`, with its zeros, for columns.

    Example:
        >>> cell(0.53), cell(24.0), cell(0.0), cell(2e-9, "e")
        ('0.530', '24', '0', '2.0e-9')
    """
    amount = number(value)
    if amount is None or not 1e-3 <= abs(amount) < 1000 or amount == int(amount):
        return _form(value, power)
    return f"{amount:#.3g}".rstrip(".").replace("-", "−")


def plain(value: Any, digits: int = 3) -> str:
    """As `short`, in the letters of a terminal.

    Example:
        >>> plain(4.13e-19)
        '4.1e-19'
    """
    return _form(value, "e", digits)


def interval(value: Any, write: Any = short) -> str:
    """Write a number, or a mapping of value, low and high; where these say nothing, of the least and the most.

    Example:
        >>> interval({"value": 0.41, "low": 0.4, "high": 0.42, "predicted": 0.408})
        '0.41 [0.40, 0.42]'
    """
    if not isinstance(value, Mapping):
        return str(write(value))
    texts = [str(write(value.get(key))) for key in ("value", "low", "high")]
    if value.get("least") is not None and value.get("most") is not None:
        return f"{texts[0]} (no one factor can be told: blocks have {write(value['least'])} to {write(value['most'])})"
    if value.get("low") is None or value.get("high") is None:
        return texts[0]
    if texts[1] == texts[2] and value["low"] != value["high"] and write in (short, plain):
        return interval(value, precise if write is short else partial(plain, digits=4))
    if all(re.fullmatch(r"[-−]?[\d,]+(\.\d+)?", text) for text in texts):
        # As many digits behind the point for all three, so that they can be compared.
        most = max(len(text.partition(".")[2]) for text in texts)
        numbers = (number(value.get(key)) or 0.0 for key in ("value", "low", "high"))
        texts = [f"{amount:,.{most}f}".replace("-", "−") for amount in numbers]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def human(name: str) -> str:
    """Turn a key into words; a qualified name, of a parameter or a remedy, stays as it can be typed.

    Example:
        >>> human("gradient_rms"), human("encoder.layer_norm.weight")
        ('gradient rms', 'encoder.layer_norm.weight')
    """
    return name if "." in name else name.replace("_", " ")


def evidence_name(key: str) -> str:
    """Say what a key of evidence means, in words.

    Example:
        >>> evidence_name("dead_fraction"), evidence_name("loss after 100 steps")
        ('share of units that are dead', 'loss after 100 steps')
    """
    return EVIDENCE.get(key, (human(key), ""))[0]


def count(amount: int, noun: str) -> str:
    """Write a count with its noun.

    Example:
        >>> count(1, "block"), count(1200, "block")
        ('1 block', '1,200 blocks')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def sentence(told: Any) -> str:
    """Turn what a command says of its end into a sentence of a page: without the command's name, with a capital.

    Example:
        >>> sentence("train: the loss is NaN at step 1; the run is kept."), sentence(None)
        ('The loss is NaN at step 1; the run is kept.', '')
    """
    text = str(told or "").removeprefix("MeasurementError: ").removeprefix("train: ")
    return f"{text[:1].upper()}{text[1:]}"


def place(where: Mapping[str, Any] | None) -> str:
    """Say the span of a finding.

    Example:
        >>> place({"first": "layers.0", "last": "layers.30"}), place({"first": "8"}), place({"first": "stem"})
        ('layers.0 to layers.30', 'module 8', 'module stem')
    """
    first, last = (str((where or {}).get(key) or "") for key in ("first", "last"))
    several = bool(first and last and first != last)
    name = f"{first} to {last}" if several else first or last
    # The modules of a Sequential are called "0", "1", ..., others "first": alone, they would read as common words.
    bare = any(one and (one[0].isdigit() or "." not in one) for one in (first, last))
    return f"module{'s' if several else ''} {name}" if bare else name


def fired(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the findings that speak, the gravest first, in their order."""
    found = [finding for finding in report.get("findings") or () if finding.get("status", "fired") == "fired"]
    return sorted(found, key=lambda finding: _RANK.get(finding.get("severity", "info"), 3))


def phrase(finding: Mapping[str, Any]) -> str:
    """Say a finding's rule and place as a sentence.

    Example:
        >>> phrase({"rule": "numerical_overflow", "where": {"first": "layers.2"}, "evidence": {"tensor": "signal"}})
        'The signal becomes NaN or Inf at layers.2'
        >>> phrase({"rule": "frozen_layers", "where": {"first": "body.1"}, "evidence": {"parameters": ["body.1.w"]}})
        'Some weights get no gradient in body.1'
    """
    rule = str(finding.get("rule", "finding"))
    evidence = finding.get("evidence")
    evidence = evidence if isinstance(evidence, Mapping) else {}
    where = finding.get("where")
    what, link = PHRASES.get(rule, (human(rule).capitalize(), "at"))
    if rule == "numerical_overflow":
        what, link = OF_TENSOR.get(str(evidence.get("tensor")), (what, link))
        if evidence.get("behind") and evidence["behind"] == (where or {}).get("first"):
            link = "behind"  # what it returns is finite
    elif rule == "frozen_layers" and "parameters" in evidence:
        what, link = OF_WEIGHTS
    named = place(where) if link else ""
    return f"{what} {link} {named}" if named else what


def trust(remedy: Mapping[str, Any]) -> str:
    """Say what is known of a repair; one that only looks for the cause promises nothing.

    Example:
        >>> trust({"name": "rezero", "verified": True}), trust({"name": "look at the data"})
        ('tried on this model and data', 'what to look at')
    """
    if remedy.get("verified"):
        return "tried on this model and data"
    if remedy.get("name") in LOOKS:
        return "what to look at"
    return "expected, not verified: levada fix tries it"


def headline(report: Mapping[str, Any]) -> str:
    """Say the verdict as one sentence.

    Example:
        >>> headline({"verdict": "healthy", "findings": []})
        'The learning signal reaches every block'
        >>> cut = {"rule": "frozen_layers", "severity": "info", "where": {"first": "a"}, "evidence": {"parameters": []}}
        >>> headline({"verdict": "healthy", "findings": [cut]})
        'No alarm, but a note: some weights get no gradient in module a'
        >>> headline({"verdict": "healthy", "findings": [{**cut, "where": {}}]})  # requires_grad is False
        'The learning signal reaches every block that trains'
    """
    verdict = report.get("verdict")
    found = fired(report)
    if verdict in ("error", "warn") and found:
        return phrase(found[0])
    if verdict == "healthy":
        against = [one for one in found if one.get("rule") in _AGAINST]
        placed = next((phrase(one) for one in against if one.get("where")), "")
        if placed:
            return f"No alarm, but a note: {placed[0].lower()}{placed[1:]}"
        return f"The learning signal reaches every block{' that trains' if against else ''}"
    return (
        "The check could not decide" if verdict == "unknown" else f"The verdict is: {CALLED.get(str(verdict), verdict)}"
    )


def evidence_rows(
    evidence: Mapping[str, Any],
    write: Any = precise,
    path: str = "",
    unit: str = "",
    *,
    rule: str = "",
    watched: bool = False,
) -> Iterator[tuple[str, str]]:
    """Give evidence as rows of two: what, in words and with its unit, and its value; what is empty has no row.

    Example:
        >>> list(evidence_rows({"decay": {"value": 0.41, "low": 0.4, "high": 0.42, "predicted": 0.408}, "blocks": 31}))
        [('decay', '0.41 [0.40, 0.42]; predicted 0.408'), ('blocks', '31')]
        >>> list(evidence_rows({"tests": {"standing_still": 41, "of": 43, "first_gradient_over_eps": None}}))
        [("layers that the optimizer's first step all but leaves as they are", '41 of 43')]
        >>> list(evidence_rows({"loss_before": 2.5}, rule="loss_spike"))
        [('median of the losses before the jump', '2.5')]
        >>> list(evidence_rows({"law": 0.94}, watched=True))
        [('what one factor for all blocks explains of the change', '94 %')]
    """
    own_words = {**(OF_WATCH if watched else {}), **OF_RULE.get(rule, {})}
    for key, value in evidence.items():
        if _is_empty(value) or (key == "of" and "standing_still" in evidence):
            continue
        words, own = own_words.get(str(key)) or EVIDENCE.get(str(key), (human(str(key)), unit))
        label = f"{path}, {words}" if path else words
        if key == "standing_still" and "of" in evidence:
            yield label, f"{_written(value, write, own)} of {_written(evidence['of'], write, own)}"
        elif not isinstance(value, Mapping):
            yield label, _written(value, write, own)
        elif key in GROUPS:
            yield from evidence_rows(value, write, path, rule=rule, watched=watched)
        else:
            yield from _mapping_rows(label, value, write, own)


def _mapping_rows(label: str, value: Mapping[str, Any], write: Any, unit: str) -> Iterator[tuple[str, str]]:
    told = [interval(value, write)] if "value" in value else []
    rest = {k: v for k, v in value.items() if not told or k not in ("value", "low", "high", "least", "most")}
    flat = {k: v for k, v in rest.items() if not isinstance(v, Mapping) and not _is_sentence(v) and not _is_empty(v)}
    for k, v in flat.items():
        words, own = EVIDENCE.get(str(k), ("", unit))
        if str(k) == "draws":  # of a random cotangent, of the loss's gradient, or of a signal
            words = "measurements"
        told.append(f"{words or human(str(k))}{':' * bool(words or isinstance(v, str))} {_written(v, write, own)}")
    if told:
        yield label, "; ".join(told)
    yield from evidence_rows({k: v for k, v in rest.items() if k not in flat}, write, label, unit)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, Sequence, Mapping)) and not value)


def _is_sentence(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 24


def _written(value: Any, write: Any, unit: str = "") -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(str(write(item)) for item in value[:12])
        return f"[{shown}{', …' if len(value) > 12 else ''}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    amount = number(value)
    if not unit or amount is None:
        return str(REASONS.get(value, write(value)) if isinstance(value, str) else write(value))
    return f"{write(100 * amount)} %" if unit == "%" else f"{write(value)} {unit}"
