"""Pictures: their images are in the page, with words for who does not see them; a missing one is said."""

from __future__ import annotations

import base64
import re
import struct
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from levada.report import render_report
from levada.report.terminal import print_claims
from levada.runs import Run, RunWriter


def image(png: bytes | str, **changes: Any) -> dict[str, Any]:
    text = png if isinstance(png, str) else base64.b64encode(png).decode()
    return {"label": "fused", "alternative": 'Edges of "a" face.', "png": text, **changes}


def rendered(folder: Path, *figures: dict[str, Any]) -> str:
    with RunWriter.create(folder / "run", kind="study", name="s") as writer:
        writer.append("claim", name="c", statement="It is seen.", status="held")
        for figure in figures:
            writer.append(
                "figure", **{"kind": "picture", "id": "edges", "title": "Edges", "caption": "Black", **figure}
            )
    return render_report([folder / "run"])


def told(folder: Path) -> str:
    out = StringIO()
    print_claims(Run(folder / "run"), Console(file=out, width=80))
    return out.getvalue()


def test_an_image_is_in_the_page_whole_with_its_size_and_words(tmp_path: Path, make_png: Any) -> None:
    png = make_png(7, 3)
    text = rendered(tmp_path, {"images": [image(png)]})
    (tag,) = re.findall(r"<img [^>]*>", text)
    found = {name: unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}
    assert base64.b64decode(found["src"].removeprefix("data:image/png;base64,")) == png
    assert (found["width"], found["height"], found["alt"]) == ("7", "3", 'Edges of "a" face.')
    assert "<figcaption>Black</figcaption>" in text
    assert "The numbers of this figure" not in text
    assert "Edges: a picture of 1 image, in the report." in told(tmp_path)


def test_a_missing_picture_is_one_sentence(tmp_path: Path) -> None:
    text = rendered(tmp_path, {"missing": "left out. HED is not installed."})
    assert '<p class="muted">Edges: left out. HED is not installed.</p>' in text
    assert "<figure" not in text
    assert "Edges: left out. HED is not installed." in told(tmp_path)


def test_of_one_id_the_last_picture_counts(tmp_path: Path, make_png: Any) -> None:
    text = rendered(tmp_path, {"missing": "left out."}, {"images": [image(make_png(2, 2)), image(make_png(4, 4))]})
    assert text.count("<img") == 2
    assert "left out." not in text
    assert told(tmp_path).endswith("Edges: a picture of 2 images, in the report.\n1 held\n")


@pytest.mark.parametrize(
    "png", ["", "not base64 !", b"<svg onload=alert(1)>" + bytes(40), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"]
)
def test_what_is_no_png_is_said_and_takes_nothing_else_with_it(tmp_path: Path, png: bytes | str, make_png: Any) -> None:
    text = rendered(tmp_path, {"images": [image(png, label="a <b>"), image(make_png(2, 2))]})
    assert text.count("<img") == 1
    assert "The image “a &lt;b&gt;” is no PNG in base64, and is not shown. Run its study again." in text
    assert "It is seen." in text


def test_an_image_of_more_pixels_than_a_browser_should_be_asked_for_is_said(tmp_path: Path, make_png: Any) -> None:
    png = bytearray(make_png(2, 2))
    png[16:24] = struct.pack(">II", 4096, 4096)
    assert "<img" in rendered(tmp_path / "as many", {"images": [image(bytes(png))]})
    png[16:24] = struct.pack(">II", 4096, 4097)
    text = rendered(tmp_path / "more", {"images": [image(bytes(png))]})
    assert "<img" not in text
    assert "Edges: The image “fused” has 4,096 x 4,097 pixels, and a page shows 16,777,216 at most." in text


def test_a_figure_without_a_kind_is_of_lines(tmp_path: Path) -> None:
    series = [{"label": "a", "style": "measured", "x": [0, 1], "y": [1, 2]}]
    with RunWriter.create(tmp_path / "run", kind="study", name="s") as writer:
        writer.append("figure", id="f", title="t", x={"label": "x"}, y={"label": "y"}, series=series)
    text = render_report([tmp_path / "run"])
    assert "The numbers of this figure" in text
    assert "<img" not in text
