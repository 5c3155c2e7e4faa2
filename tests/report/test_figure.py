"""Figures: values stand where the axis says, and what has no place is marked at the edge."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levada._errors import UsageError
from levada.report.axis import linear_axis, log_axis
from levada.report.figure import WIDE, figure
from levada.report.series import NUM_DRAWN, read_panels


def spec(**series: object) -> dict[str, object]:
    one = {"label": "a", "style": "measured", "x": [0, 1, 2], "y": [1.0, 10.0, 100.0], **series}
    return {"title": "t", "x": {"label": "depth"}, "y": {"label": "g", "scale": "log"}, "series": [one]}


def dots(drawn: str) -> list[tuple[float, float]]:
    wide = drawn[drawn.index(f'viewBox="0 0 {WIDE.width}') : drawn.index('class="chart narrow"')]
    return [(float(x), float(y)) for x, y in re.findall(r'class="dot c0" cx="([\d.]+)" cy="([\d.]+)"', wide)]


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    (x0, y0), (x1, y1), (x2, y2) = dots(figure(spec()))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 - y1 > 100


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(5e-324, 1.7e308), min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_every_positive_number(values: list[float]) -> None:
    axis = log_axis("g", values)
    for value in values:
        place = axis.place(value)
        assert isinstance(place, float)
        assert -0.03 <= place <= 1.03
    labels = [tick.label for tick in axis.ticks if tick.label]
    assert 1 <= len(labels) <= 12
    assert len(set(labels)) == len(labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5))
def test_a_linear_axis_holds_every_number(values: list[float]) -> None:
    axis = linear_axis("v", values)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)  # type: ignore[operator]
    assert 1 <= len(axis.ticks) <= 15


def test_powers_of_ten_have_superscripts() -> None:
    labels = [tick.label for tick in log_axis("g", [1e-19, 1.0]).ticks if tick.label]
    assert labels == ["10⁻¹⁵", "10⁻¹⁰", "10⁻⁵", "1"]


def test_zero_nan_and_infinity_are_marked_and_counted() -> None:
    drawn = figure(spec(x=[0, 1, 2, 3, 4, 5], y=[1.0, 0.0, "nan", "inf", -2.0, 1e-3]))
    assert "1 value is exactly zero" in drawn
    assert "1 value is NaN" in drawn
    assert "1 value is infinite" in drawn
    assert "1 value is below what the axis can show" in drawn
    assert drawn.count('class="edge c0"') == 2 * 4  # in the wide drawing and in the narrow one
    assert len(dots(drawn)) == 2


def test_a_gap_is_a_gap() -> None:
    lines = re.findall(
        r'class="line measured c0 thick" d="(M[^"]+)"', figure(spec(x=[0, 1, 2, 3, 4], y=[1, 2, None, 4, 5]))
    )
    wide = [line for line in lines if not line.startswith("M1 6H29")][:2]
    assert [line.count("L") for line in wide] == [1, 1]


def test_seeds_are_thin_and_their_median_is_thick() -> None:
    runs = [{"label": "a", "group": "g", "x": [0, 1], "y": [1.0, 10.0**k], "seed": k} for k in range(3)]
    panel = read_panels({"series": runs, "y": {"scale": "log"}})[0]
    assert [one.weight for one in panel.series] == ["thin", "thin", "thin", "thick"]
    assert [point.y for point in panel.series[-1].points] == [1.0, 10.0]
    assert panel.series[-1].num_seeds == 3


def test_groups_share_a_colour_and_a_reference_has_none() -> None:
    series = [
        {"label": "a", "style": "measured", "group": "plain", "x": [0], "y": [1]},
        {"label": "b", "style": "measured", "group": "residual", "x": [0], "y": [1]},
        {"label": "a, predicted", "style": "predicted", "group": "plain", "x": [0], "y": [1]},
        {"label": "limit", "style": "reference", "x": [0], "y": [1]},
    ]
    assert [one.colour for one in read_panels({"series": series})[0].series] == [0, 1, 0, -1]


def test_panels_take_from_the_figure_what_they_leave_out() -> None:
    base = {**spec(), "panels": [{"title": "one"}, {"title": "two", "y": {"label": "h", "scale": "linear"}}]}
    one, two = read_panels(base)
    assert (one.y.scale, two.y.scale, one.x.label, two.x.label) == ("log", "linear", "depth", "depth")
    named = {**spec(panel="left"), "panels": ["left", "right"]}
    left, right = read_panels(named)
    assert (len(left.series), len(right.series)) == (1, 0)
    assert "<h5>right</h5>" in figure(named)


def test_names_on_the_x_axis_are_not_joined_by_lines() -> None:
    drawn = figure(spec(x=["plain", "residual", "dense"], low=[0.5, 5, 50], high=[2, 20, 200]))
    assert ">residual</text>" in drawn
    assert len(dots(drawn)) == 3
    assert 'class="whisker c0"' in drawn
    assert not re.search(r'class="line measured c0 thick" d="M\d+\.\d', drawn)


def test_long_series_keep_their_extremes() -> None:
    y = [1.0 + 1e-3 * math.sin(i) for i in range(100_000)]
    y[12_345], y[67_890], y[50_000], y[70_000], y[70_001] = 1e9, 1e-9, 0.0, math.inf, math.nan
    one = read_panels(spec(x=list(range(len(y))), y=y))[0].series[0]
    assert len(one.drawn) <= NUM_DRAWN + 4
    assert {1e9, 1e-9, 0.0, math.inf} <= {point.y for point in one.drawn}
    assert any(math.isnan(point.y or 0.0) for point in one.drawn)
    assert [p.x for p in one.drawn] == sorted(p.x for p in one.drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "dotted"}, "style of series 'a' must be one of"),
        ({"y": [1.0]}, "as many values of 'y' as of 'x'"),
    ],
)
def test_an_unusable_series_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        figure(spec(**change))
    with pytest.raises(UsageError, match="'linear' or 'log'"):
        figure({**spec(), "y": {"scale": "cubic"}})


def test_a_figure_without_values_is_drawn_empty() -> None:
    assert 'class="base"' in figure({"title": "t", "series": []})
