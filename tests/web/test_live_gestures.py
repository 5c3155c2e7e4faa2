"""What pointers, fingers and keys do to the figures of the live page, and what a link keeps of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from levada.web.folder import identity

from .conftest import write_watched
from .live import Served, needs_page, server, visit, write_deep
from .visiting import Visit, boxes, browser, expect, wait

__all__ = ["browser", "server", "visit"]
pytestmark = needs_page
STEPS = 595  # of the run, up to where its last sample is drawn
MAP = "[aria-roledescription='heat map']"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gestures")
    write_watched(root / "watched")
    write_deep(root / "half", 0.5)
    write_deep(root / "quarter", 0.25)
    return root


def shown(page: Any) -> Any:
    """Wait until the loss and the maps are drawn."""
    page.locator(".plot canvas").wait_for()
    page.locator(".read").first.wait_for()
    expect(page.locator(".read[aria-busy=true]")).to_have_count(0)
    return page


def place(page: Any) -> dict[str, int]:
    """Give the numbers of the address."""
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", page.url)}


def comes(page: Any, **wanted: Any) -> dict[str, int]:
    """Wait until the address says something: a number, or None for nothing."""
    wait(page, lambda: all(place(page).get(key) == value for key, value in wanted.items()))
    return place(page)


def zoomed(page: Any, *keys: str) -> dict[str, int]:
    """Wait until the address has a stretch."""
    wait(page, lambda: all(key in place(page) for key in keys or ("from", "to")))
    return place(page)


def at(box: dict[str, float], x: float, y: float) -> tuple[float, float]:
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def pinch(page: Any, box: dict[str, float], from_: float, to: float) -> None:
    """Put two fingers on a figure, and move them apart or together, about its middle."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, apart: float) -> None:
        ends = [at(box, 0.5 - apart / 2, 0.5), at(box, 0.5 + apart / 2, 0.5)]
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(ends)] if kind != "touchEnd" else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", from_)
    for i in range(1, 6):
        touch("touchMove", from_ + (to - from_) * i / 5)
    touch("touchEnd", to)


def test_a_drag_over_the_loss_shades_a_range_and_zooms_to_it_and_a_double_click_shows_all(
    visit: Visit, server: Served
) -> None:
    page = shown(visit(server.run("half")))
    over = page.locator(".plot .u-over")
    (box,) = boxes(page, over)
    page.mouse.move(*at(box, 0.25, 0.5))
    page.mouse.down()
    page.mouse.move(*at(box, 0.5, 0.5), steps=4)
    range_ = page.locator(".plot .u-select")
    (chosen,) = boxes(page, range_)
    assert chosen["width"] == pytest.approx(box["width"] / 4, abs=3)
    assert not range_.evaluate("one => getComputedStyle(one).backgroundColor").endswith((", 0)", "/ 0)"))
    page.mouse.up()
    told = zoomed(page)
    assert told["from"] == pytest.approx(STEPS / 4, abs=8)
    assert told["to"] == pytest.approx(STEPS / 2, abs=8)
    expect(page.get_by_role("button", name="Show all steps and layers")).to_be_visible()
    over.dblclick(position={"x": box["width"] / 2, "y": box["height"] / 2})
    wait(page, lambda: "from" not in place(page))


def test_a_map_is_dragged_and_a_double_click_shows_all(visit: Visit, server: Served) -> None:
    page = shown(visit(server.run("half", "?from=100&to=300&first=5&last=14")))
    page.locator(MAP).first.scroll_into_view_if_needed()
    (box,) = boxes(page, page.locator(MAP).first)
    page.mouse.move(*at(box, 0.7, 0.5))
    page.mouse.down()
    page.mouse.move(*at(box, 0.5, 0.5), steps=4)  # a fifth to the left: what is seen moves a fifth to the right
    page.mouse.up()
    wait(page, lambda: abs(place(page)["from"] - 140) <= 3)
    told = place(page)
    assert told["to"] - told["from"] == 200
    assert (told["first"], told["last"]) == (5, 14)
    page.locator(MAP).first.dblclick()
    comes(page, **{"from": None, "first": None})


@pytest.mark.parametrize("what", [MAP, ".plot .u-over"], ids=["map", "loss"])
def test_two_fingers_zoom(visit: Visit, server: Served, what: str) -> None:
    page = shown(visit(server.run("half"), width=400, height=800, has_touch=True))
    figure = page.locator(what).first
    figure.scroll_into_view_if_needed()
    pinch(page, *boxes(page, figure), 0.2, 0.6)
    told = zoomed(page)
    near = told["to"] - told["from"]
    assert near == pytest.approx(STEPS / 3, rel=0.25)
    shown(page)  # a plot of other numbers is another one
    figure.scroll_into_view_if_needed()
    pinch(page, *boxes(page, figure), 0.6, 0.3)
    wait(page, lambda: "from" not in place(page) or place(page)["to"] - place(page)["from"] > 1.5 * near)


def test_keys_do_to_the_loss_what_a_pointer_does(visit: Visit, server: Served) -> None:
    page = shown(visit(server.run("half")))
    page.get_by_role("figure", name="The loss", exact=True).locator("[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    comes(page, step=0)
    page.keyboard.press("ArrowRight")
    comes(page, step=10)
    page.keyboard.press("+")
    told = zoomed(page)
    assert told["to"] - told["from"] == pytest.approx(STEPS / 1.5, abs=8)
    page.keyboard.press("Shift+ArrowRight")
    wait(page, lambda: place(page)["from"] > told["from"])
    moved = place(page)
    assert moved["to"] - moved["from"] == told["to"] - told["from"]
    page.keyboard.press("-")
    wait(page, lambda: "from" not in place(page) or place(page)["to"] - place(page)["from"] > 500)
    page.keyboard.press("0")
    comes(page, **{"from": None, "step": 10})


def test_steps_at_which_a_finding_stood_are_shaded(visit: Visit, server: Served) -> None:
    page = shown(visit(server.run("watched"), quiet=False))  # its finding came at step 20 of 400 and still stands
    script = """(canvas, share) => {
        const across = 58 + share * (canvas.width - 58 - 28);  // between the axis and the right edge
        const column = canvas.getContext("2d").getImageData(across, 0, 1, canvas.height).data;
        const wash = [179, 38, 26].join();
        return column.some((_, i) => i % 4 === 0 && column.slice(i, i + 3).join() === wash);
    }"""
    canvas = page.locator(".plot canvas")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--wash')") == "#b3261e14"
    shares = (0.02, 0.08, 0.6, 0.98)
    wait(page, lambda: [canvas.evaluate(script, share) for share in shares] == [False, True, True, True])
    expect(page.locator("figcaption").first).to_contain_text("Shaded are steps at which a finding stood.")


def test_a_link_keeps_zoom_choice_and_comparison(visit: Visit, server: Served) -> None:
    asked = f"?with={identity('quarter')}&from=100&to=299&first=5&last=14&step=200&layer=7"
    requests: list[str] = []
    page = visit(
        server.run("half", asked), prepare=lambda page: page.on("request", lambda request: requests.append(request.url))
    )
    shown(page)
    for number, told in enumerate(["layers.7, step 200: 0.00781", "layers.7, step 200: 6.10×10⁻⁵", "× 128"]):
        expect(page.locator(".read").nth(number)).to_contain_text(told)
    for run in ("half", "quarter"):
        wait(page, lambda run=run: any(f"{identity(run)}/loss?from=100&to=299" in url for url in requests))
        heat = f"{identity(run)}/heat?signal=gradient_rms&from=100&to=299&first=5&last=14"
        wait(page, lambda heat=heat: any(heat in url for url in requests))
    assert page.url.endswith(asked)
    seen = visit(server.run("half", "?from=100&to=299"))  # without a choice, of the last sample that is seen
    expect(seen.get_by_role("figure", name="By layer, at step 290", exact=True)).to_be_visible()
    page.get_by_role("button", name="Show all steps and layers").click()
    comes(page, **{"from": None, "first": None, "step": 200, "layer": 7})
    page.go_back()
    wait(page, lambda: page.url.endswith(asked))
