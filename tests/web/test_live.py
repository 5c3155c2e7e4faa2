"""The live page in a browser, against `levada serve` in a process of its own."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.web.explorer_page import AXE, violations_by_scheme
from torch import nn

import levada
from levada.runs import RunWriter
from levada.web.folder import identity

from .conftest import HOSTILE, write_check, write_watched
from .live import Served, needs_page, server, visit, write_deep
from .visiting import Visit, boxes, browser, expect, wait

__all__ = ["browser", "server", "visit"]
pytestmark = needs_page
HEATS = "[aria-roledescription='heat map']"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("live")
    write_watched(root / "watched")
    write_watched(root / "cut", ends=False)
    write_check(root / "checked")
    write_deep(root / "deep" / "half", 0.5)
    write_deep(root / "deep" / "quarter", 0.25, names=[f"layers.{i}" for i in range(40)])
    write_deep(root / "named", 0.5, names=[f"{HOSTILE}{i}" for i in range(4)])
    return root


def at(served: Served) -> dict[str, Any]:
    """How to open the page of a server that will be killed: a browser says so on the console."""
    return {"url": f"http://127.0.0.1:{served.port}/", "quiet": False}


def read(page: Any, number: int = 0) -> Any:
    """Give the sentence that reads a heat map, once it has come."""
    return page.locator(".read").nth(number)


def came(page: Any) -> None:
    """Wait until each map has cells."""
    page.locator(".read").first.wait_for()
    expect(page.locator(".read[aria-busy=true]")).to_have_count(0)


def numbers(url: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", url)}


def width_of(url: str) -> int:
    return numbers(url)["to"] - numbers(url)["from"]


def listed(page: Any, names: Sequence[str]) -> None:
    """Wait until the list has these runs, in this order."""
    expect(page.locator("tbody th a")).to_have_text(names)


def listed_somehow(page: Any, names: set[str]) -> None:
    """Wait until the list has these runs, in any order."""
    wait(page, lambda: {text.strip() for text in page.locator("tbody th a").all_inner_texts()} == names)


def until(page: Any, locator: Any, text: str) -> None:
    """Wait for a text."""
    locator.filter(has_text=text).first.wait_for()
    expect(page.locator("[role=alert]")).to_have_count(0)


def test_the_list_is_filtered_sorted_and_walked_through_by_keys(visit: Visit) -> None:
    page = visit()
    listed_somehow(page, {"watched", "cut", "checked", "deep/half", "deep/quarter", "named"})
    page.get_by_role("button", name="run", exact=True).click()
    listed(page, ["checked", "cut", "deep/half", "deep/quarter", "named", "watched"])
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("run")
    row = page.locator("tr", has_text="cut")
    for text in ("not ended", "warning", "0.01"):
        expect(row).to_contain_text(text)
    page.keyboard.press("/")
    page.keyboard.type("deep watch")
    listed(page, ["deep/half", "deep/quarter"])
    until(page, page.locator("[aria-live]"), "2 of 6 runs.")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_url("**#/?text=deep+watch&sort=name")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**#/run/{identity('deep/quarter')}")
    page.go_back()
    listed(page, ["deep/half", "deep/quarter"])
    page.get_by_label("Verdict").select_option("warn")
    until(page, page.locator(".empty"), "No run is like that.")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("step=0&layer=3", "layers.3, step 0: 0.125"),
        ("step=137&layer=1", "layers.1, step 135: 0.25"),
        ("step=100&layer=1", "layers.1, step 100: zero"),
        ("step=200&layer=2", "layers.2, step 200: infinite"),
        ("step=300&layer=3", "layers.3, step 300: NaN"),
    ],
)
def test_a_link_shows_a_run_with_the_number_of_its_cell(visit: Visit, server: Served, place: str, told: str) -> None:
    page = visit(server.run("watched", f"?{place}"))
    until(page, read(page), told)
    expect(page.locator(".badge.warn").first).to_contain_text("warning")
    expect(page.locator("main")).to_contain_text("The run ended after 400 steps.")
    for mark in ("exactly zero", "infinite", "NaN"):
        expect(page.locator(".legend li", has_text=mark).first).to_be_visible()


def test_findings_have_their_evidence_and_lead_to_their_step(visit: Visit, server: Served) -> None:
    page = visit(server.run("watched"))
    card = page.locator("article")
    expect(card).to_contain_text(HOSTILE)
    expect(card.locator(".pairs")).to_contain_text("0.5")
    card.get_by_role("button", name="at step 20").click()
    page.wait_for_url("**?step=20")
    until(page, read(page), "step 20")
    expect(page.locator("pre", has_text="levada report")).to_have_text("levada report watched -o report.html")


def test_a_map_is_moved_and_zoomed_by_keys_and_the_wheel_and_all_figures_follow(visit: Visit, server: Served) -> None:
    page = visit(server.run("deep/half", "?step=300&layer=10"))
    until(page, read(page), "layers.10, step 300: 9.77×10⁻⁴")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator(HEATS).first.focus()
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.wait_for_url(lambda url: "from=" in url and width_of(url) < 300)
    link = page.url
    told = numbers(link)
    assert told["from"] < 300 < told["to"]
    assert told["first"] < 10 < told["last"]
    assert told["last"] - told["first"] < 15
    for what in ("/loss?", "/heat?signal=gradient_rms", "/heat?signal=signal_rms"):
        seen = f"from={told['from']}&to={told['to']}"
        wait(page, lambda what=what, seen=seen: any(what in url and seen in url for url in asked))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    until(page, read(page), "layers.11, step 310: 4.88×10⁻⁴")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_url(re.compile(rf"from=(?!{told['from']}&)\d+"))
    page.keyboard.press("0")
    page.wait_for_url("**?step=310&layer=11")
    (box,) = boxes(page, page.locator(HEATS).first)
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    page.wait_for_url(re.compile(r"from=\d+&to=\d+"))
    again = visit(link.partition("/#")[2].join(["#", ""]))
    until(again, read(again), "layers.10, step 300: 9.77×10⁻⁴")
    assert again.url == link


def test_without_the_focus_the_wheel_moves_the_page(visit: Visit, server: Served) -> None:
    page = visit(server.run("deep/half"))
    page.locator(HEATS).first.hover()
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 300)
    wait(page, lambda: page.evaluate("scrollY") > before + 100)
    assert "from=" not in page.url


def test_two_runs_are_compared_where_their_layers_agree(visit: Visit, server: Served) -> None:
    page = visit()
    button = page.get_by_role("button", name="Compare two")
    expect(button).to_be_disabled()
    page.get_by_label("Compare deep/half").check()
    page.get_by_label("Compare deep/quarter").check()
    button.click()
    page.wait_for_url("**?with=*")
    page.goto(page.url + "&step=300&layer=3")
    until(page, page.locator("main p"), "Compared are the 30 layers that both have in the same order, of 30 and 40.")
    for number, told in enumerate(["0.125", "0.0156", "× 8"]):
        until(page, read(page, number), f"layers.3, step 300: {told}")
    until(page, page.locator("figure", has_text="By layer, at step 300"), "deep/quarter")
    expect(page.get_by_role("heading", name="deep/half beside deep/quarter")).to_be_visible()
    again = visit(f"#{page.url.partition('#')[2]}")
    until(again, read(again, 2), "layers.3, step 300: × 8")
    legend = again.get_by_role("figure", name="The loss", exact=True).locator(".legend")
    expect(legend).to_contain_text("loss, deep/half")
    expect(legend).to_contain_text("loss, deep/quarter")
    again.get_by_role("button", name="Exchange the two").click()
    until(again, again.locator("h1"), "deep/quarter beside deep/half")


def test_streams_and_memory_are_shown_where_they_were_recorded(visit: Visit, server: Served) -> None:
    page = visit(server.run("checked"))
    until(page, page.locator("main p"), "After 8 steps 1/1000 of the memory is left (interval 7 to 9)")
    expect(page.locator(".mixes li")).to_have_count(2)
    expect(page.locator(".mixes svg").first).to_have_attribute("aria-label", "layers.0, rows: 1 0; 0.5 0.5")
    told = "equal streams by up to 2, and a gradient that is equal in all streams by up to ∞"
    expect(page.locator("main")).to_contain_text(told)
    # Once: they are the evidence of a finding, and stand with it.
    expect(page.locator("article").get_by_role("figure", name="How far back the gradient reaches")).to_have_count(1)
    expect(page.get_by_role("figure", name=re.compile("Memory of|arrives at each step,"))).to_have_count(0)


def test_what_a_run_is_called_is_text(visit: Visit, server: Served) -> None:
    page = visit(server.run("named", "?step=100&layer=2"))
    until(page, read(page), f"{HOSTILE}2, step 100: 0.25")
    figure = page.get_by_role("figure", name="Gradient of the loss", exact=True)
    figure.locator("summary").click()
    expect(figure.locator("table")).to_contain_text(HOSTILE)
    page.goto(f"http://127.0.0.1:{server.port}/{server.run('checked')}")
    until(page, page.locator(".eyebrow"), HOSTILE)
    expect(page.locator("main script, main img")).to_have_count(0)


def test_dark_or_light_is_chosen_and_kept(visit: Visit) -> None:
    page = visit(color_scheme="dark")
    dark, light = "rgb(18, 23, 26)", "rgb(252, 251, 248)"
    body = page.locator("body")
    expect(body).to_have_css("background-color", dark)
    page.get_by_label("Colours").select_option("light")
    expect(body).to_have_css("background-color", light)
    page.reload()
    page.wait_for_selector("h1")
    expect(body).to_have_css("background-color", light)
    page.get_by_label("Colours").select_option("system")
    expect(body).to_have_css("background-color", dark)


def test_a_phone_needs_no_sideways_scrolling_and_has_room_for_a_finger(visit: Visit, server: Served) -> None:
    other = identity("deep/quarter")
    for link in ("#/", server.run("watched"), server.run("named"), server.run("deep/half", f"?with={other}")):
        page = visit(link, width=360, height=740, has_touch=True)
        page.wait_for_selector("tbody a" if link == "#/" else HEATS)
        if link != "#/":
            came(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        small = page.eval_on_selector_all(
            "button, select, input[type=text], .pick label, .under label",
            "all => all.filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 35.9)"
            ".map(one => one.outerHTML.slice(0, 80))",
        )
        assert small == []


def test_a_finger_taps_a_cell(visit: Visit, server: Served) -> None:
    page = visit(server.run("deep/half"), width=360, height=740, has_touch=True)
    came(page)
    page.locator(HEATS).first.tap()
    page.wait_for_url(re.compile(r"step=\d+&layer=\d+"))
    assert int(re.search(r"layer=(\d+)", page.url)[1]) in (14, 15)


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: cd web && npm ci")
def test_axe_finds_no_violation(visit: Visit, server: Served) -> None:
    other = identity("deep/quarter")
    half = server.run("deep/half", f"?with={other}&step=300&layer=3")
    for link in ("#/", server.run("watched", "?step=100&layer=1"), half, server.run("checked")):
        page = visit(link)
        page.wait_for_selector("tbody a" if link == "#/" else ".eyebrow")
        if link not in ("#/", server.run("checked")):
            came(page)
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        assert violations_by_scheme(page) == {}, link


def train(folder: Path, go: threading.Event) -> None:
    """Train a small model slowly until told to end, watched."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with levada.watch(model, optimizer, run=folder, every=2, max_overhead=1.0):
        while not go.is_set():
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
            time.sleep(0.02)


def steps_of(page: Any) -> int:
    told = page.locator("dl div", has_text="steps").first.locator("strong")
    expect(told).to_have_text(re.compile(r"\d"))
    return int(told.inner_text().split()[-1].replace(",", ""))


def test_a_run_that_is_written_is_followed_and_a_server_that_is_killed_is_told(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    served, go = Served(tmp_path / "runs"), threading.Event()
    training = threading.Thread(target=train, args=(tmp_path / "runs" / "mine", go))
    try:
        page = visit(**at(served))
        until(page, page.locator(".empty"), f"There is no run below {tmp_path / 'runs'} yet.")
        write_deep(tmp_path / "runs" / "removed", 0.5)
        training.start()
        page.locator("tbody a", has_text="removed").wait_for()
        page.locator("tbody a", has_text="mine").click()  # it appears by itself
        until(page, page.locator(".badge"), "running")
        page.wait_for_selector(HEATS)
        before = steps_of(page)
        wait(page, lambda: steps_of(page) > before + 20)
        expect(page.locator(".connection")).to_contain_text("live")

        served.kill()
        until(page, page.locator(".connection"), "not connected")
        expect(page.locator(".notice").first).to_contain_text("what is shown is as it was")
        write_deep(tmp_path / "runs" / "meanwhile", 0.5)
        shutil.rmtree(tmp_path / "runs" / "removed")
        go.set()
        training.join()
        served.start()
        until(page, page.locator(".connection"), "live")
        until(page, page.locator("main p"), "The run ended after")
        wait(page, lambda: steps_of(page) > before + 20)
        page.get_by_role("link", name="Runs").click()
        listed_somehow(page, {"mine", "meanwhile"})  # what came while nobody listened
    finally:
        go.set()
        if training.ident is not None:
            training.join()
        served.kill()


def test_a_run_that_is_deleted_while_it_is_looked_at_is_told(visit: Visit, tmp_path: Path) -> None:
    served = Served(tmp_path)
    writer = RunWriter.create(tmp_path / "mine", kind="watch", name="mine")
    try:
        writer.append("loss", steps=[0, 1], values=[2.0, 1.0])
        page = visit(served.run("mine"), **at(served))
        until(page, page.locator(".badge"), "running")
        shutil.rmtree(tmp_path / "mine")
        page.locator("[role=alert]", has_text="What is shown is as it was. There is no run ").wait_for()
        expect(page.locator(".badge", has_text="running")).to_have_count(0)
        expect(page.locator("h1")).to_have_count(1)
    finally:
        writer.close()
        served.kill()


def test_the_token_is_taken_out_of_the_address(visit: Visit, server: Served) -> None:
    page = visit(server.token)
    page.wait_for_url("**/#/")
    assert page.evaluate("sessionStorage.getItem('levada-token')") == server.token.partition("=")[2]
    address = f"http://127.0.0.1:{server.port}/api"
    wait(page, lambda: bool(page.context.cookies(address)))
    assert [cookie["name"] for cookie in page.context.cookies(address)] == [f"levada-session-{server.port}"]


def test_an_address_with_a_token_begins_anew_in_a_page_that_is_open(visit: Visit, server: Served) -> None:
    page = visit()
    assert page.evaluate("sessionStorage.getItem('levada-token')") is None
    page.evaluate("hash => { location.hash = hash }", server.token)
    page.wait_for_url("**/#/")
    wait(page, lambda: page.evaluate("sessionStorage.getItem('levada-token')") == server.token.partition("=")[2])
