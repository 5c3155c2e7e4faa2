"""The colours: readable on every ground, and apart for who does not tell all colours apart."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from docs.colours import SIGHTS, contrast, distances, seen

from levada.report.palette import BROKEN, NUM_COLOURS, SIGNS, palette, style_sheet

ROOT = Path(__file__).parents[1]
THEMES = sorted(palette())
WORDS = ["ink", "soft", "water", "error", "warn", "good", "corrected"]
LINES = [f"{kind}{i}" for kind in "cp" for i in range(NUM_COLOURS)]


def test_the_measures_are_those_that_are_known():
    # Sharma, Wu and Dalal 2005 hold CIEDE2000 in scikit-image; ends of the scales, and what WCAG says of #767676.
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert distances(["#000000", "#ffffff"], "all colours")[0][0] == pytest.approx(100, abs=0.01)
    # Red and green of one lightness are nearly one colour to a deuteranope, and none that is grey changes.
    apart, near = (distances(["#b45050", "#6e7800"], sight)[0][0] for sight in ("all colours", "deuteranopia"))
    assert apart > 30 > 15 > near
    for sight in SIGHTS:
        assert seen("#808080", sight)[0] == pytest.approx(seen("#808080", "all colours")[0], abs=0.1)


@pytest.mark.parametrize("theme", THEMES)
def test_words_and_lines_stand_out_from_every_ground(theme: str):
    colours = palette()[theme]
    for ground in ("paper", "raised", "code"):
        for name in WORDS:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)  # WCAG 2.2, 1.4.3
    for name in LINES:  # the name of a line may stand at it, in its colour
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("theme", THEMES)
def test_lines_differ_for_every_sight(theme: str, sight: str):
    colours = [palette()[theme][f"c{i}"] for i in range(NUM_COLOURS)]
    least, one, other = distances(colours, sight)[0]
    assert least >= (16 if sight == "all colours" else 10.9), (one, other)


@pytest.mark.parametrize("sight", SIGHTS)
def test_a_heat_map_gets_lighter_with_its_values_for_every_sight(sight: str):
    drawn = re.findall(r"\.h\d+ \{ stroke: (#\w{6});", style_sheet())
    shown = re.search(r"RISING = \(([^)]+)\)", (ROOT / "web/src/figures/ramp.ts").read_text(encoding="utf-8"))
    assert shown is not None
    assert drawn == re.findall(r"#\w{6}", shown[1])
    lightness = [seen(colour, sight)[0] for colour in drawn]
    assert len(lightness) == 16
    assert all(after - before > 2 for before, after in pairwise(lightness))


def test_both_themes_have_the_same_names_and_no_style_sheet_has_colours_of_its_own():
    assert palette()["light"].keys() == palette()["dark"].keys()
    sheets = [ROOT / "web/src/page/theme.css", ROOT / "src/levada/report/templates/report.css"]
    for sheet in sheets:
        assert not re.findall(r"--\w+: #(?!fff;)\w+", sheet.read_text(encoding="utf-8")), sheet


def test_every_page_calls_the_colours_of_signs_alike():
    words = (ROOT / "web/src/page/signs.ts").read_text()
    assert re.findall(r'= "(.*)";', words) == [SIGNS, BROKEN]
    # Hues of CIELCH, degrees: blue, the brown that is orange on a dark page, purple.
    for theme in THEMES:
        labs = [seen(palette()[theme][name], "all colours") for name in ("c0", "c1", "c3")]
        hues = [math.degrees(math.atan2(b, a)) % 360 for _, a, b in labs]
        assert hues == pytest.approx([235, 50, 335], abs=25), theme
    held = [path for folder in ("web/src", "src/levada/report") for path in (ROOT / folder).rglob("*")]
    texts = {path.name: path.read_text() for path in held if path.suffix in (".py", ".ts", ".svelte", ".j2")}
    assert {name for name, text in texts.items() if re.search("other colour is|zero, brown", text)} == {
        "palette.py",
        "signs.ts",
    }
