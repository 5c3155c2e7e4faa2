"""The picture of the mixing matrices: the right numbers, at the right place, and nothing where there are none."""

from __future__ import annotations

import re
import xml.dom.minidom
from typing import Any

import pytest

from levada.report import render_report
from levada.report.mixing import MAX_LAYERS, mixing_figure
from levada.report.palette import BROKEN, SIGNS


def report(matrices: Any, **told: Any) -> dict[str, Any]:
    return {"schema": 1, "verdict": "healthy", "model": "net", "summary": {"mixing": {"matrices": matrices, **told}}}


def rectangles(svg: str) -> list[tuple[int, int, str, float, str]]:
    """Give row, column, class, opacity and text of every cell."""
    cells = []
    for document in re.findall(r"<svg.*?</svg>", svg):
        for one in xml.dom.minidom.parseString(document).getElementsByTagName("rect"):
            if one.getAttribute("class") != "frame":
                place = [int(one.getAttribute(key)) // 10 for key in ("y", "x")]
                text = one.firstChild.firstChild.data  # type: ignore[union-attr]
                opacity = float(one.getAttribute("fill-opacity") or "nan")
                cells.append((place[0], place[1], one.getAttribute("class"), opacity, text))
    return cells


def test_each_cell_has_its_place_size_sign_and_number() -> None:
    drawn = mixing_figure(report({"layers.0": [[2.0, -0.5], [0.0, 1.0]]}))
    assert drawn is not None
    assert rectangles(drawn["svg"]) == [
        (0, 0, "c0", 1.0, "to stream 0 from stream 0: 2"),
        (0, 1, "c1", 0.25, "to stream 0 from stream 1: −0.500"),
        (1, 0, "c0", 0.0, "to stream 1 from stream 0: 0"),
        (1, 1, "c0", 0.5, "to stream 1 from stream 1: 1"),
    ]
    assert 'aria-label="layers.0, rows: 2 −0.500; 0 1"' in drawn["svg"]
    assert "<td>2 −0.500</td><td>0 1</td>" in drawn["svg"]
    assert drawn["caption"].endswith(f"Full colour is 2, none 0. {SIGNS}")
    assert "style=" not in drawn["svg"]  # the page's policy refuses it


def test_the_caption_tells_what_the_product_does() -> None:
    gains = {"composite_forward_gain": 3.0, "composite_backward_gain": "inf"}
    drawn = mixing_figure(report({"a": [[1.0]]}, chains=[{"layers": ["a"], **gains}]))
    assert drawn is not None
    assert "Over 1 layer their product multiplies equal streams by up to 3 and a gradient" in drawn["caption"]
    assert "by up to ∞." in drawn["caption"]
    assert "product multiplies" not in drawn["svg"]


def test_each_chain_is_drawn_under_its_name_with_its_own_product() -> None:
    names = ["b.0", "a.0", "a.1", "left"]
    chains = [{"layers": ["a.0", "a.1"], "composite_forward_gain": 190.0}, {"layers": ["b.0", "unknown"]}]
    told = report({name: [[float(i)]] for i, name in enumerate(names)}, chains=chains, composite_forward_gain=190.0)
    drawn = mixing_figure(told)
    assert drawn is not None
    parts = re.findall(r'<p class="chain">(.*?)</p><ol class="mixes">(.*?)</ol>', drawn["svg"])
    assert [head for head, _ in parts] == [
        "2 layers, a.0 to a.1: the product multiplies equal streams by up to 190.",
        "1 layer, b.0.",
        "1 layer, left.",
    ]
    assert [re.findall(r"<span>(.*?)</span>", maps) for _, maps in parts] == [["a.0", "a.1"], ["b.0"], ["left"]]
    assert "The 3 chains of layers share no streams" in drawn["caption"]
    assert "multiplies" not in drawn["caption"]


@pytest.mark.parametrize("chains", [None, "no", [None], [{}], [{"layers": "no"}], [{"layers": [3]}]])
def test_what_names_no_chain_leaves_one(chains: Any) -> None:
    drawn = mixing_figure(report({"a": [[1.0]], "b": [[1.0]]}, chains=chains))
    assert drawn is not None
    assert drawn["svg"].count("<ol") == 1
    assert 'class="chain"' not in drawn["svg"]


def test_of_many_layers_some_are_drawn_and_that_is_said() -> None:
    deep = mixing_figure(report({f"layers.{i}": [[float(i)]] for i in range(100)}))
    assert deep is not None
    drawn = [text for *_, text in rectangles(deep["svg"])]
    assert len(drawn) == MAX_LAYERS
    assert drawn[0].endswith(": 0")
    assert drawn[-1].endswith(": 99")
    assert f"{MAX_LAYERS} of 100 layers are drawn, evenly chosen." in deep["caption"]
    wide = mixing_figure(report({f"layers.{i}": [[0.0] * 16] * 16 for i in range(60)}))
    assert wide is not None
    assert len(rectangles(wide["svg"])) == 4096
    few = mixing_figure(report({f"layers.{i}": [[0.0]] for i in range(60)}))
    assert few is not None
    assert "evenly" not in few["caption"]


@pytest.mark.parametrize(
    "matrices", [None, {}, [], "no", {"a": []}, {"a": [[1.0, 2.0]]}, {"a": [["x"]]}, {"a": [1.0]}, {"a": None}]
)
def test_what_is_no_matrix_is_not_drawn(matrices: Any) -> None:
    assert mixing_figure(report(matrices)) is None


def test_a_number_that_is_not_finite_is_said() -> None:
    drawn = mixing_figure(report({"a": [["nan", 1.0], ["-inf", "inf"]]}))
    assert drawn is not None
    told = [(kind, text.rpartition(": ")[2]) for *_, kind, _, text in rectangles(drawn["svg"])]
    assert told == [("c3", "NaN"), ("c0", "1"), ("c3", "−∞"), ("c3", "∞")]
    assert drawn["caption"].endswith(f"{SIGNS} {BROKEN}")


def test_the_page_has_the_picture_where_there_are_streams_and_only_there() -> None:
    hostile = "<script>alert(1)</script>"
    page = render_report([report({hostile: [[1.0, 0.0], [0.0, 1.0]]})])
    assert page.count('<svg class="mix"') == 1
    assert "How the streams are mixed, layer by layer" in page
    assert hostile not in page
    without = render_report([{**report({}), "summary": {"depth": 3}}])
    assert 'class="mix' not in without
    assert "streams are mixed" not in without


def test_a_layer_has_its_own_name_under_its_matrix_and_the_connection_s_in_the_table() -> None:
    drawn = mixing_figure(report({"stack.layers.10.connection": [[1.0, 0.0], [0.0, 1.0]]}))
    assert drawn is not None
    assert "<span>stack.layers.10</span>" in drawn["svg"]
    assert '<th scope="row">stack.layers.10.connection</th>' in drawn["svg"]
