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
    return [(float(x), float(y)) for x, y in re.findall(r'class="dot c0 thick" cx="([\d.]+)" cy="([\d.]+)"', wide)]


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
    assert '<p class="of-panel">right</p>' in figure(named)


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


def lines(groups: int, points: int = 3) -> list[dict[str, object]]:
    """Give that many groups, in three families, each with two seeds and a prediction."""
    made: list[dict[str, object]] = []
    for i in range(groups):
        group = f"{('plain', 'residual', 'dense')[i % 3]}, {i // 3}/n"
        line = {"group": group, "x": list(range(points)), "y": [10.0 ** (-i * k) for k in range(points)]}
        made += [{**line, "label": f"{group}, seed {seed}", "seed": seed} for seed in (0, 1)]
        made.append({**line, "label": f"{group}, predicted", "style": "predicted"})
    return [*made, {"label": "0.25^n", "style": "bound", "x": [0, 2], "y": [1, 0.0625]}]


def legend(drawn: str) -> list[str]:
    entries = re.findall(r"<li[^>]*>(.*?)</li>", drawn)
    return [re.sub(r"<svg.*?</svg>|<[^>]+>", "", entry) for entry in entries]


def test_a_group_has_one_entry_and_the_styles_are_said_once() -> None:
    drawn = figure({"title": "t", "series": lines(2)})
    keys = ["measured", "predicted", "thin: each of 2 seeds; thick: their median"]
    assert legend(drawn) == ["plain, 0/n", "residual, 0/n", "0.25n", *keys]
    assert "0.25<sup>n</sup>" in drawn


def test_many_groups_are_divided_by_the_first_part_of_their_names_on_equal_axes() -> None:
    spec = {"title": "t", "x": {"label": "layer"}, "y": {"scale": "log"}, "series": lines(9)}
    panels = read_panels(spec)
    assert [panel.title for panel in panels] == ["plain", "residual", "dense"]
    assert len({(panel.y.low, panel.y.high, panel.x.low, panel.x.high) for panel in panels}) == 1
    assert panels[0].x.label == "layer, input on the left, output on the right"
    values = [p.y for panel in panels for one in panel.series if one.seed == 0 for p in one.points]
    assert sorted(values) == sorted(10.0 ** (-i * k) for i in range(9) for k in range(3))
    hues = [{one.group: one.colour for one in panel.series} for panel in panels]
    assert hues[0] == hues[1] == hues[2]  # 1/n has one colour in every panel
    assert all(sum(one.style == "bound" for one in panel.series) == 1 for panel in panels)
    assert legend(figure(spec))[:4] == ["0/n", "1/n", "2/n", "0.25n"]
    assert len(read_panels({**spec, "series": lines(6)})) == 1


def test_groups_that_share_a_colour_differ_in_their_marks() -> None:
    series = [{"label": f"g{i}", "x": [i], "y": [i + 1]} for i in range(20)]
    drawn = figure({"title": "t", "series": series})
    swatches = re.findall(r'<svg class="swatch"[^>]*>(.*?)</svg>', drawn)
    assert len(set(swatches)) == len(swatches) == 20


def test_seeds_with_positions_of_their_own_have_no_median() -> None:
    runs = [{"label": "a", "group": "g", "x": [k], "y": [k], "seed": k} for k in range(3)]
    assert [one.weight for one in read_panels({"series": runs})[0].series] == ["thick"] * 3
    shared = [{"label": "b", "x": [1], "y": [k], "seed": k} for k in range(3)]
    assert "median" not in figure({"title": "t", "series": runs + shared})
    assert "median" in figure({"title": "t", "series": shared})


def test_names_stand_at_their_lines_where_they_do_not_collide() -> None:
    ends = [{"label": f"line {i}", "x": [0, 1], "y": [0, i]} for i in range(4)]
    drawn = figure({"title": "t", "series": ends})
    heights = [float(y) for y in re.findall(r'<text class="name c\d" x="[\d.]+" y="([\d.]+)">', drawn)]
    assert len(heights) == 4
    assert min(abs(a - b) for a in heights for b in heights if a != b) >= 14
    together = [{**one, "y": [0, 1 + 1e-3 * i]} for i, one in enumerate(ends)] + [
        {"label": "b", "x": [0, 1], "y": [0, 99]}
    ]
    assert 'class="name' not in figure({"title": "t", "series": together})


def test_dense_lines_have_no_marks_and_single_predictions_are_drawn() -> None:
    dense = {"label": "a", "x": list(range(500)), "y": [1.0 + i for i in range(500)]}
    alone = {"label": "p", "style": "predicted", "x": list(range(3)), "y": [None, 2.0, None]}
    drawn = figure({"title": "t", "series": [dense, alone]})
    assert 'class="dot' not in drawn
    assert drawn.count('predicted single"') == 2  # wide and narrow


def test_names_stay_inside_the_plot_and_points_are_not_called_lines() -> None:
    ends = [{"label": f"line {i}", "x": [0, 1], "y": [10, y]} for i, y in enumerate((9, 0.01, 0))]
    drawn = figure({"title": "t", "y": {"label": "error"}, "series": ends})
    heights = [float(y) for y in re.findall(r'<text class="name c\d" x="[\d.]+" y="([\d.]+)">', drawn)]
    assert len(heights) == 3
    assert max(heights) <= WIDE.height - 44 - 4
    assert min(abs(a - b) for a in heights for b in heights if a != b) >= 14
    points = [{"label": "a", "x": [1], "y": [k], "seed": k} for k in range(5)]
    told = figure({"title": "t", "series": points})
    assert "small: one point for each of 5 seeds; large: their median" in told
    assert "thin" not in re.sub(r'class="[^"]*"', "", told)
    apart = [{"label": "a", "x": [k], "y": [k], "seed": k} for k in range(5)]
    assert "<li>one point for each of 5 seeds</li>" in figure({"title": "t", "series": apart})
