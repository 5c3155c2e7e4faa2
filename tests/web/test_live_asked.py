"""The live page where an address asks for what a run has not, two runs differ, or a run is short or being written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode

from .conftest import write_watched
from .live import Served, needs_page, server, write_deep
from .visiting import Visit, boxes, browser, expect, visits, wait

__all__ = ["browser", "server"]
pytestmark = needs_page


def write_short(writer: RunWriter, signals: SignalWriter) -> None:
    """Write eight losses, and one sample at the first step: as many as the overhead allows of a run that is short."""
    writer.append("loss", steps=list(range(8)), values=[2.0 - step / 10 for step in range(8)])
    signals.append(0, 1.7e9, encode([1.0] * 4 + [0.5**i for i in range(4)]), {})
    signals.flush()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("asked")
    write_watched(root / "one")
    write_watched(root / "two", name="yours")
    write_deep(root / "left", 0.5, names=["a", "shared"])
    write_deep(root / "right", 0.25, names=["shared", "z"])
    sites = [{"name": f"layers.{i}", "order": i} for i in range(4)]
    what = {"sites": sites, "signals": ["signal_rms", "gradient_rms"]}
    with RunWriter.create(root / "short", kind="watch", name="short") as writer:
        with SignalWriter(root / "short", **what) as signals:
            write_short(writer, signals)
        writer.append("end", steps=8)
    # This one is being written while the page looks at it.
    with (
        RunWriter.create(root / "growing", kind="watch", name="growing") as writer,
        SignalWriter(root / "growing", **what) as signals,
    ):
        write_short(writer, signals)
        yield root


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Visit]:
    with visits(browser, f"http://127.0.0.1:{server.port}/", "h1", quiet=False, height=900) as opened:
        yield opened


def test_what_a_run_has_not_is_told_above_it_with_what_is_shown(visit: Visit, server: Served) -> None:
    page = visit(server.run("one", "?signal=foo&step=99999999&layer=77&with=zzz"))
    notices = page.locator("main .notice")
    for text in (
        "The run to compare with, zzz, is not shown: There is no run named",
        "The address asks for the signal foo, which one does not keep: shown is “gradient of the loss”.",
        "The address asks for step 99,999,999. The run has 400 steps: no step is chosen",
        "The address asks for layer 77. Its layers are 0 to 4: shown is the nearest, layers.4.",
    ):
        expect(notices.filter(has_text=text)).to_have_count(1)
    expect(page.get_by_role("button", name="Exchange the two")).to_have_count(0)
    *above, heading = boxes(page, notices, page.locator("h1"))
    assert max(box["y"] for box in above) < heading["y"]
    page.get_by_label("Signal").first.select_option("signal_rms")  # what is chosen is meant
    expect(notices.filter(has_text="asks for the signal")).to_have_count(0)


def test_of_two_runs_the_notes_are_both_and_each_says_whose_it_is(visit: Visit, server: Served) -> None:
    page = visit(server.run("one", f"?with={server.run('two').rpartition('/')[2]}"))
    for what in ("Notes of one", "Notes of two", "On the command line: two", "Where two comes from"):
        expect(page.get_by_role("heading", name=what, exact=True)).to_be_visible()
    expect(page.locator("pre", has_text="levada report")).to_have_text(
        ["levada report one -o report.html", "levada report two -o report.html"]
    )


def test_one_layer_in_common_is_told_as_one_and_the_scale_of_ratios_is_explained(visit: Visit, server: Served) -> None:
    page = visit(server.run("left", f"?with={server.run('right').rpartition('/')[2]}"))
    expect(page.locator("main")).to_contain_text("Compared is the one layer that both have, of 2 and 2.")
    expect(page.locator("main")).to_contain_text(
        "The ratio's scale is symmetric: 1, where the runs are equal, is in its"
    )
    legend = page.get_by_role("figure", name="Gradient of the loss: left over right", exact=True).locator(".legend")
    expect(legend).to_contain_text("0.1 (right is larger)")
    expect(legend).to_contain_text("1 (equal)")
    expect(legend).to_contain_text("10 (left is larger)")


def test_maps_beside_each_other_begin_at_the_same_height_and_say_that_steps_go_across(
    visit: Visit, server: Served
) -> None:
    page = visit(server.run("left", f"?with={server.run('right').rpartition('/')[2]}"), 1440)
    maps = page.locator(".maps canvas")
    maps.nth(2).wait_for()
    left, right, *_ = boxes(page, maps)
    assert left["x"] < right["x"]
    assert left["y"] == right["y"]
    expect(page.locator(".maps .axis")).to_have_text(["step"] * 3)


def painted(page: Any, share: float) -> bool:
    """Whether the first map has a colour there, from its left edge on."""
    script = """(canvas, share) => canvas.getContext("2d").getImageData(
        Math.floor(canvas.width * share), Math.floor(canvas.height / 2), 1, 1).data[3] > 0"""
    return bool(page.locator(".heat canvas").first.evaluate(script, share))


def test_the_one_sample_of_a_short_run_fills_its_map(visit: Visit, server: Served) -> None:
    page = visit(server.run("short", "?step=7&layer=2"))
    expect(page.locator(".read").first).to_have_text("layers.2, step 0: 0.25")
    wait(page, lambda: all(painted(page, share) for share in (0.05, 0.5, 0.98)))
    expect(page.locator(".until")).to_have_count(0)


def test_what_is_shown_of_a_run_that_is_written_says_up_to_which_step(visit: Visit, server: Served) -> None:
    page = visit(server.run("growing"))
    expect(page.locator(".eyebrow").first).to_contain_text("as of step 7")
    expect(page.locator(".until")).to_have_text(["as of step 0", "as of step 0"])
