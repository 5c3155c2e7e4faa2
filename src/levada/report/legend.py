"""What lines and marks mean: one entry a group, and once for all what solid, dashed, thin and thick are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from levada.report.palette import NUM_COLOURS
from levada.report.series import Panel, Series
from levada.report.typeset import typeset

__all__ = ["NUM_COLOURS", "classes", "hue", "legend", "marker"]


def legend(panels: Sequence[Panel], marked: bool, named: Iterable[int] = ()) -> str:
    """Draw what each group's line and mark is, once for all panels, and below what the styles are.

    Args:
        panels: what is shown.
        marked: whether points have marks.
        named: groups whose names stand at their lines where the screen is wide: there, the legend leaves them out.
    """
    entries: dict[tuple[str, str, int], Series] = {}
    drawn = [one for panel in panels for one in panel.series if one.style != "reference"]
    solid = {one.colour for one in drawn if one.style == "measured"}
    merged = {one.colour for one in drawn if one.style == "predicted"} & solid
    for one in drawn:
        if one.style == "predicted" and one.colour in merged:
            continue
        key = (one.label, one.style, one.colour)
        if key not in entries or one.num_seeds:
            entries[key] = one
    direct = {one.colour for one in entries.values() if one.style == "measured"} & set(named)
    items = []
    for one in sorted(entries.values(), key=lambda one: one.style == "bound"):
        if one.label:
            where = ' class="at-line"' if one.colour in direct and one.style == "measured" else ""
            items.append(f"<li{where}>{_swatch(one, marked)}<span>{typeset(one.label)}</span></li>")
    keys = [_key("measured", "measured"), _key("predicted", "predicted")] if merged else []
    counts = sorted({one.num_seeds for one in drawn if one.num_seeds})
    if counts:
        most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        points = all(len(one.points) < 2 for one in drawn if one.style == "measured")
        one_each = f"small: one point for each of {most} seeds; large: their median"
        keys.append(f"<li>{one_each if points else f'thin: each of {most} seeds; thick: their median'}</li>")
    elif seeded := len({one.seed for one in drawn if one.seed is not None and len(one.points) < 2}):
        keys.append(f"<li>one point for each of {seeded} seeds</li>" if seeded > 1 else "")
    made = f'<ul class="legend">{"".join(items)}</ul>' if items else ""
    return made + (f'<ul class="legend key">{"".join(keys)}</ul>' if keys else "")


def _key(style: str, words: str) -> str:
    swatch = (
        f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true"><path class="line {style} ref" d="M1 6H29"/></svg>'
    )
    return f"<li>{swatch}{words}</li>"


def _swatch(one: Series, marked: bool) -> str:
    if one.style in ("band", "bar"):
        form = "area" if one.style == "band" else "bar"
        inner = f'<rect class="{form} {hue(one)}" x="1" y="1" width="28" height="10" rx="2"/>'
    elif one.style == "measured" and len(one.points) < 2:
        inner = marker(one, 15, 6, "")
    else:
        inner = f'<path class="line {classes(one)}" d="M1 6H29"/>'
        if one.style == "measured" and marked:
            inner += marker(one, 15, 6, "")
    return f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">{inner}</svg>'


def hue(one: Series) -> str:
    """Name the class of a series' colour."""
    return f"c{one.colour % NUM_COLOURS}" if one.colour >= 0 else "ref"


def classes(one: Series) -> str:
    """Name the classes of a series' line."""
    return f"{one.style} {hue(one)} {one.weight}"


def marker(one: Series, x: float, y: float, title: str) -> str:
    """Draw a point; its form repeats what its colour says, and tells apart groups that share a colour."""
    colour, form = hue(one), max(one.colour, 0) % 4
    r = 2.4 if one.weight == "thin" else 3.4
    told = f"<title>{escape(title)}</title>" if title else ""
    if form == 0:
        return f'<circle class="dot {colour} {one.weight}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{told}</circle>'
    d = r * 1.3
    outline = {
        1: f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        2: f"M{x:.1f} {y - d:.1f}l{d:.1f} {1.7 * d:.1f}h{-2 * d:.1f}z",
        3: f"M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z",
    }[form]
    return f'<path class="dot {colour} {one.weight}" d="{outline}">{told}</path>'
