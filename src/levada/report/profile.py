"""Two figures of a check: how gradient and signal go through the blocks, and what theory says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from levada._names import NONFINITE
from levada.report.series import Span
from levada.report.words import COTANGENT, fired, interval, number, phrase, place, short

__all__ = ["column", "decay", "gradient_figure", "gradient_key", "signal_figure"]

FLOAT32_EPS: Final = 2.0**-23  # the distance of 1 from the next number of float32
FLOAT32_TINY: Final = 2.0**-149  # the smallest number above zero that float32 holds


def column(blocks: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    """Give one signal over the blocks; all None where it was never measured.

    Nothing but NaN counts as that, unless the blocks say that their numbers are not finite.

    Example:
        >>> column([{"signal_rms": math.nan}], "signal_rms")
        [None]
        >>> column([{"signal_rms": math.nan, "nonfinite": 0.5}], "signal_rms")
        [nan]
    """
    values = [number(block.get(key)) for block in blocks]
    measured = any(value is not None and not math.isnan(value) for value in values)
    if key in NONFINITE:
        measured |= any((number(block.get(NONFINITE[key])) or 0.0) > 0 for block in blocks)
    return values if measured else [None] * len(values)


def gradient_key(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Say which signal shows the gradient: that of a random cotangent, which theory predicts, or else the loss's."""
    return "cotangent_rms" if any(v is not None for v in column(blocks, "cotangent_rms")) else "gradient_rms"


def decay(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the summary's decay per block as a mapping, also where it is a bare number or absent."""
    value = (report.get("summary") or {}).get("gradient_decay_per_block")
    return value if isinstance(value, Mapping) else {"value": value}


def _spans(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], rules: tuple[str, ...]) -> list[Span]:
    """Mark where the gravest finding of these rules stands."""
    order = {str(block.get("site")): float(i) for i, block in enumerate(blocks)}
    for one in fired(report):
        where = one.get("where") or {}
        first, last = (order.get(str(where.get(key))) for key in ("first", "last"))
        first, last = (last if first is None else first), (first if last is None else last)
        if (
            one.get("severity") in ("error", "warn")
            and one.get("rule") in rules
            and first is not None
            and last is not None
        ):
            return [Span(min(first, last), max(first, last), phrase({**one, "where": {}}), phrase(one))]
    return []


def _line(
    blocks: Sequence[Mapping[str, Any]],
    label: str,
    style: str,
    group: str,
    values: Sequence[float | None],
    key: str = "",
) -> list[dict[str, Any]]:
    if all(value is None for value in values):
        return []
    names = [str(block.get("site", "")) for block in blocks]
    made: dict[str, Any] = {"label": label, "style": style, "group": group, "names": names}
    made |= {"x": list(range(len(blocks))), "y": list(values)}
    low, high = column(blocks, f"{key}_low"), column(blocks, f"{key}_high")
    if key and any(value is not None for value in low):
        made |= {"low": list(low), "high": list(high)}
    return [made]


def gradient_figure(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Give the figure of the gradient, as a study gives one: measured, its interval, predicted."""
    measured = column(blocks, key)
    predicted = column(blocks, "gradient_predicted")
    if all(value is None for value in predicted):
        predicted = _extended(measured, number(decay(report).get("predicted")))
    label = "measured" if key == "gradient_rms" else f"measured, of {COTANGENT}"
    series = [
        *_interval_of_slope(report, blocks, measured, key),
        *_line(blocks, label, "measured", "measured", measured, key),
        *_line(blocks, "predicted by theory", "predicted", "predicted", predicted),
    ]
    loss = column(blocks, "gradient_rms") if key == "cotangent_rms" else []
    series += _line(blocks, "gradient of the loss", "measured", "loss", loss, "gradient_rms")
    shown = [v for v in (*measured, *predicted, *loss) if v is not None and math.isfinite(v) and v > 0]
    if shown and min(shown) < FLOAT32_TINY * 1e8:
        series.append(_limit("float32 has nothing smaller above zero", FLOAT32_TINY, len(blocks)))
    unit = "loss / signal" if key == "gradient_rms" else "1 at the output"
    rules = ("vanishing_gradient", "frozen_layers", "exploding_gradient", "shattered_gradient", "numerical_overflow")
    return {
        "title": "The gradient, block by block",
        "caption": _gradient_caption(report, blocks, measured),
        "x": {"label": "block, input on the left, output on the right"},
        "y": {"label": f"gradient, root mean square per element ({unit})", "scale": "log"},
        "series": series,
        "spans": _spans(report, blocks, rules),
    }


def _limit(label: str, value: float, count: int) -> dict[str, Any]:
    return {"label": label, "style": "reference", "x": [0, count - 1], "y": [value, value]}


def _extended(measured: Sequence[float | None], rate: float | None) -> list[float | None]:
    """Draw the predicted decay per block from the last measured block backwards."""
    known = [i for i, v in enumerate(measured) if v is not None and math.isfinite(v) and v > 0]
    if rate is None or not known or not math.isfinite(rate) or rate <= 0:
        return [None] * len(measured)
    last = known[-1]
    start = math.log10(measured[last] or 1.0)
    logs = [start + (last - i) * math.log10(rate) for i in range(len(measured))]
    return [10.0**value if -307 < value < 307 else None for value in logs]


def _interval_of_slope(
    report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], measured: Sequence[float | None], key: str
) -> list[dict[str, Any]]:
    """Draw the interval of the measured decay as lines through the middle of the points, where blocks have none."""
    low, high = number(decay(report).get("low")), number(decay(report).get("high"))
    points = [(i, math.log10(v)) for i, v in enumerate(measured) if v is not None and math.isfinite(v) and v > 0]
    own = any(value is not None for value in column(blocks, f"{key}_low"))
    own |= decay(report).get("least") is not None  # an interval that says nothing
    if own or low is None or high is None or not 0 < low <= high < math.inf or len(points) < 3:
        return []
    centre = sum(i for i, _ in points) / len(points)
    level = sum(v for _, v in points) / len(points)
    ends = [[level + (centre - i) * math.log10(rate) for rate in (low, high)] for i in range(len(measured))]
    kept = [(i, 10.0 ** min(pair), 10.0 ** max(pair)) for i, pair in enumerate(ends) if max(map(abs, pair)) < 307]
    x, lows, highs = (list(values) for values in zip(*kept, strict=True))
    return [
        {
            "label": "interval of the measured slope",
            "style": "band",
            "group": "measured",
            "x": x,
            "low": lows,
            "high": highs,
        }
    ]


def _gradient_caption(
    report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> str:
    ends = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v) and v > 0]
    zeros = sum(v == 0 for v in values)
    nothing = f" It is exactly zero at {zeros} of {len(values)} blocks." if zeros else ""
    if len(ends) < 2:
        return "No gradient above zero was measured at two blocks." + nothing
    (first, at_first), (last, at_last) = ends[0], ends[-1]
    change = math.log10(at_first) - math.log10(at_last)
    largest, smallest = (find(v for _, v in ends) for find in (max, min))
    apart = math.log10(largest) - math.log10(smallest)
    way = "goes" if abs(change) < 0.05 else "grows" if change > 0 else "shrinks"
    how = f"{way} from {short(at_last)} to {short(at_first)}"
    if abs(change) >= 0.301:
        how += f", {_times(change)}"
    if apart > abs(change) + 0.05 or abs(change) < 0.301:
        how += f", its largest value {short(10**apart)} times its smallest" if apart < 3 else ""
    rate = decay(report)
    per = ""
    if rate.get("value") is not None:
        per = f" Fitted over the blocks, the head left out, that is a factor of {interval(rate)} per block"
        per += f", where theory predicts {short(rate['predicted'])}" if rate.get("predicted") is not None else ""
        per += "."
    site = [place({"first": blocks[i].get("site")}) for i in (first, last)]
    return f"On its way back from {site[1]} to {site[0]} the gradient {how}.{per}{nothing}"


def _times(change: float) -> str:
    factor = f"by a factor of {short(10 ** abs(change))}"
    return factor if abs(change) < 3 else f"by {abs(change):.1f} orders of magnitude"


def _ends(blocks: Sequence[Mapping[str, Any]]) -> str:
    first, last = (place({"first": blocks[i].get("site")}) for i in (0, -1))
    return f"{first} to {last}" if first and last else "the first block to the last"


def signal_figure(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the figure of the signal and of its spread between inputs, with the rounding in which a spread ends."""
    rms, spread = column(blocks, "signal_rms"), column(blocks, "signal_spread")
    series = [
        *_line(blocks, "signal", "measured", "signal", rms, "signal_rms"),
        *_line(blocks, "signal, predicted", "predicted", "signal", column(blocks, "signal_predicted")),
        *_line(blocks, "spread between inputs", "measured", "spread", spread, "signal_spread"),
        *_line(blocks, "spread, predicted", "predicted", "spread", column(blocks, "spread_predicted")),
    ]
    rounding = _rounding(rms, spread)
    if rounding:
        series.append({"label": "float32 rounding: 2^-23 of the signal", "style": "reference", **rounding})
    told = []
    for name, values in (("signal", rms), ("spread between inputs", spread)):
        known = [v for v in values if v is not None and math.isfinite(v)]
        if known:
            told.append(f"the {name} goes from {short(known[0])} to {short(known[-1])}")
    text = " and ".join(told)
    rules = (
        "vanishing_signal",
        "exploding_signal",
        "rank_collapse",
        "saturated_activation",
        "dead_units",
        "numerical_overflow",
    )
    return {
        "title": "The signal, block by block",
        "caption": (f"From {_ends(blocks)} {text}." if text else "") + _below_rounding(blocks, rounding),
        "x": {"label": "block, input on the left, output on the right"},
        "y": {"label": "root mean square per element (units of the activations)", "scale": "log"},
        "series": series,
        "spans": _spans(report, blocks, rules),
    }


def _rounding(rms: Sequence[float | None], spread: Sequence[float | None]) -> dict[str, Any]:
    """Give float32's rounding of the signal where the spread between inputs comes down to it, else nothing."""
    known = [(i, v, s) for i, (v, s) in enumerate(zip(rms, spread, strict=True)) if v is not None and s is not None]
    held = [(i, v * FLOAT32_EPS, s) for i, v, s in known if 0 < v < math.inf]
    if not any(s < eps for _, eps, s in held):
        return {}
    return {"x": [i for i, _, _ in held], "y": [eps for _, eps, _ in held]}


def _below_rounding(blocks: Sequence[Mapping[str, Any]], rounding: Mapping[str, Any]) -> str:
    """Say what a spread below the rounding of the signal is; that it levels off, only where theory goes on falling."""
    if not rounding:
        return ""
    spread, predicted = column(blocks, "signal_spread"), column(blocks, "spread_predicted")
    lines = dict(zip(rounding["x"], rounding["y"], strict=True))
    both = [
        (s, p)
        for i, (s, p) in enumerate(zip(spread, predicted, strict=True))
        if s is not None and p is not None and i in lines and s < lines[i]
    ]
    text = " Below the line of float32 rounding, inputs differ by less than one rounding of the signal itself"
    if both and both[-1][0] > 10 * both[-1][1]:
        return f"{text}: theory goes on falling, and what levels off is rounding error, not signal."
    return f"{text}."
