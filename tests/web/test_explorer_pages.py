"""The explorer on screens of any size, in both schemes, in motion and without, for axe-core; and how fast it is."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.web.explorer_page import AXE, PAGE, browser, needs_page, violations
from tests.web.visiting import Visit, boxes, expect, rests, visits, wait

import levada

STATIC = Path(levada.__file__).parent / "web/static"
__all__ = ["browser"]
pytestmark = needs_page
TABS = ["depth", "mixing"]
LIGHT, DARK = "rgb(252, 251, 248)", "rgb(18, 23, 26)"


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open the page from a disk, or with `url` as of a server."""

    def route(page: Any) -> None:
        page.route(f"{ORIGIN}/**/*", served)

    with visits(browser, PAGE.as_uri(), ".reading, [role=alert]", quiet=False) as opened:
        yield functools.partial(opened, prepare=route)


ORIGIN = "http://levada.test"
ANSWER = {
    "verdict": "error",
    "headline": "The <b>signal</b> dies out.",
    "claim": "It shrinks.",
    "findings": [
        {"severity": "error", "status": "fired", "title": "Vanishing gradient", "claim": "By 0.2.", "consequence": ""},
        {"severity": "warn", "status": "clear", "title": "Dead units", "claim": "None.", "consequence": ""},
    ],
    "seconds": 1.0,
}
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src data:; "
    "connect-src 'self'; worker-src blob:"
)
asked: list[Any] = []
answers: list[tuple[int, Any]] = []


def served(route: Any) -> None:
    """Serve the built files under a strict policy, and a check that answers as it is told to."""
    path = route.request.url.removeprefix(ORIGIN).split("#")[0].lstrip("/")
    if path == "api/1/compute/check":
        asked.append((route.request.headers, json.loads(route.request.post_data)))
        status, body = answers.pop(0)
        return route.fulfill(status=status, body=json.dumps(body), content_type="application/json")
    return route.fulfill(path=STATIC / path, headers={"content-security-policy": POLICY})


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("width", [360, 768, 1280, 3840])
def test_no_sideways_scrolling_and_the_scheme_is_that_of_the_system(visit: Visit, width: int, tab: str) -> None:
    page = visit(f"tab={tab}&expert=1&connections=plain,residual,hyper,manifold", width=width)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    for scheme, paper in (("light", LIGHT), ("dark", DARK)):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("background-color", paper)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_chosen_scheme_stays(visit: Visit) -> None:
    page = visit()
    page.get_by_label("Colours").select_option("dark")
    expect(page.locator("body")).to_have_css("background-color", DARK)
    page.reload()
    page.wait_for_selector(".reading")
    expect(page.locator("body")).to_have_css("background-color", DARK)
    expect(page.get_by_label("Colours")).to_have_value("dark")


def shown(page: Any, selector: str) -> bool:
    """Whether all of it is in the window."""
    (box,) = boxes(page, page.locator(selector).first)
    size = page.viewport_size
    return bool(box["y"] >= -1 and box["y"] + box["height"] <= size["height"] + 1)


def test_controls_and_figures_are_seen_together(visit: Visit) -> None:
    page = visit(height=800)
    for label in ("Depth, exactly", "Activation", "Gain of the weights, exactly", "Optimizer", "Precision"):
        (box,) = boxes(page, page.get_by_label(label, exact=True))
        assert box["y"] + box["height"] <= 800, label
    assert shown(page, ".plot")
    assert shown(page, ".reading")


def test_on_a_phone_the_figure_stays_while_a_control_changes(visit: Visit) -> None:
    page = visit(width=360, height=640)
    for label in ("Depth, exactly", "Precision", "Optimizer"):
        control = page.get_by_label(label, exact=True)
        page.evaluate("window.scrollTo(0, 0)")
        control.focus()
        assert shown(page, ".plot"), label
        figure, box = boxes(page, page.locator(".stage"), control)
        assert box["y"] >= figure["y"] + figure["height"] - 1, f"{label} is below the figure"


@pytest.mark.parametrize("width", [360, 1280])
def test_what_is_touched_is_large_enough(visit: Visit, width: int) -> None:
    page = visit("expert=1", width=width, has_touch=True)
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, summary')].filter(one => one.checkVisibility())
          .map(one => [(one.closest('label') ?? one).getBoundingClientRect().height, one])
          .filter(([height]) => height < 35.5).map(([height, one]) => height + one.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_the_gradient_travels_from_the_output_to_the_input(visit: Visit) -> None:
    # The page's clock stands but where it is moved: how often a busy machine draws has no part in it.
    def clock(page: Any) -> None:
        page.clock.install(time=0)
        page.clock.pause_at(3_600_000)

    page = visit("depth=100", reduced_motion="no-preference", prepare=clock)
    page.get_by_role("button", name="Play backward").click()
    figure = page.get_by_role("slider", name="Gradient backward")
    expect(figure).to_have_attribute("aria-valuenow", "100")
    for second in range(1, 6):  # of six
        page.clock.run_for(1000)
        layer = 100 - round(100 * second / 6)
        expect(figure).to_have_attribute("aria-valuenow", re.compile(f"^({layer}|{layer + 1})$"))  # by its last frame
        expect(page.locator(".front")).to_have_count(1)
    page.clock.run_for(1100)
    expect(page.locator(".front")).to_have_count(0)
    expect(figure).to_have_attribute("aria-valuenow", "0")
    page.get_by_role("button", name="Play backward").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".front")).to_have_count(0)


def test_nothing_moves_for_those_who_want_no_motion(visit: Visit) -> None:
    page = visit("depth=100", reduced_motion="reduce")
    page.get_by_role("button", name="Play backward").click()
    figure = page.get_by_role("slider", name="Gradient backward")
    expect(figure).to_have_attribute("aria-valuenow", "100")
    button = page.get_by_role("button", name="Step backward")
    for expected in range(90, -1, -10):
        button.click()
        expect(figure).to_have_attribute("aria-valuenow", str(expected))
    button.click()
    expect(page.locator(".front")).to_have_count(0)


PLACES = {
    "first": ("", 1280, "light"),
    "phone": ("depth=120", 360, "dark"),
    "expert": ("expert=1&connections=plain,highway,dense,hyper,manifold,identity,attention", 1280, "dark"),
    "update": ("view=update&optimizer=adamw", 1280, "light"),
    "mixing": ("tab=mixing&connections=hyper,manifold", 1280, "dark"),
    "mixing on a phone": ("tab=mixing&expert=1", 360, "light"),
    "refused": ("depth=none", 1280, "light"),
}


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: cd web && npm ci")
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing(visit: Visit, place: str) -> None:
    link, width, scheme = PLACES[place]
    page = visit(link, width=width, color_scheme=scheme)
    if (check := page.get_by_role("button", name="Open in check")).count():
        check.click()
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    rests(page)
    assert violations(page) == ""


def test_a_table_has_the_numbers_of_the_figure(visit: Visit) -> None:
    page = visit("depth=5&precision=float64&view=gradient")
    page.get_by_text("Numbers", exact=True).click()
    page.wait_for_selector("figure tbody tr")
    expect(page.locator("figure table tr")).to_have_count(7)
    rows = page.locator("figure table tr").all_inner_texts()
    assert rows[0].split("\t") == [
        "layer", "plain", "plain, predicted", "residual", "residual, predicted", "0.25 per layer",
    ]  # fmt: skip
    assert [row.split("\t")[0] for row in rows[1:]] == list("012345")
    assert rows[-1].split("\t")[-1] == "1"


def test_a_long_table_comes_in_pieces_and_is_whole_for_who_prints_it_at_once(visit: Visit) -> None:
    page = visit("depth=1000&width=4&rows=4&connections=plain&view=gradient")
    page.wait_for_selector(".reading")
    region = page.get_by_role("region", name="Numbers of Gradient backward, by layer")
    # How many rows there are in the first frame that has any, and once the browser says that it prints.
    counts = page.evaluate("""() => new Promise(done => {
      const rows = () => document.querySelectorAll('figure tbody tr').length;
      document.querySelector('figure summary').click();
      const look = () => requestAnimationFrame(() => {
        const first = rows();
        if (!first) return look();
        window.dispatchEvent(new Event('beforeprint'));
        done([first, rows()]);
      });
      look();
    })""")
    assert counts[0] < 1001 == counts[1]
    expect(region).to_have_attribute("aria-busy", "false")
    for depth in (900, 990):  # rows that go, and rows that come, in their order
        page.get_by_label("Depth, exactly").fill(str(depth))
        page.keyboard.press("Enter")
        heads = region.locator("tbody th")
        expect(heads).to_have_count(depth + 1)
        expect(region).to_have_attribute("aria-busy", "false")
        assert heads.all_inner_texts() == [str(layer) for layer in range(depth + 1)]


def test_the_code_is_copied(visit: Visit) -> None:
    page = visit("depth=7", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as PyTorch").click()
    page.get_by_text("PyTorch code copied.").wait_for()
    assert "DEPTH, WIDTH, ROWS, CLASSES, SEED, LR = 7, 32" in page.evaluate("navigator.clipboard.readText()")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save explorer.py").click()
    assert download.value.suggested_filename == "explorer.py"
    assert "levada.Residual" in download.value.path().read_text()


def test_without_a_server_the_command_is_given(visit: Visit) -> None:
    page = visit("connections=plain,residual&seed=4")
    page.get_by_label("Network to check").select_option("residual")
    page.get_by_role("button", name="Open in check").click()
    expect(page.locator(".command pre").first).to_have_text(
        "levada check explorer.py:residual --batch explorer.py:batches --optimizer explorer.py:optimizer --seed 4"
    )


def test_a_server_is_asked_for_its_verdict_with_its_token(visit: Visit) -> None:
    asked.clear()
    answers[:] = [(200, ANSWER), (429, {"detail": "busy"}), (422, {"detail": "It is too large."})]
    page = visit("token=abcdefgh12345678", url=f"{ORIGIN}/explore.html")
    assert "token" not in page.evaluate("location.href")
    page.get_by_label("Network to check").select_option("residual")
    page.get_by_label("Gain of the weights, exactly").fill("2")
    page.get_by_role("button", name="Open in check").click()
    told = page.locator(".verdict")
    told.wait_for()
    expect(told).to_contain_text("residual: The <b>signal</b> dies out.")
    expect(told).to_contain_text("Vanishing gradient. By 0.2.")
    expect(told).not_to_contain_text("Dead units")
    headers, body = asked[0]
    assert headers["authorization"] == "Bearer abcdefgh12345678"
    assert body["connection"] == {"name": "residual"}
    assert body["init"] == {"name": "glorot", "gain": 2}
    page.get_by_label("Depth, exactly").fill("20")
    told.wait_for(state="detached")
    page.get_by_role("button", name="Open in check").click()
    page.get_by_text("Ask again in a moment.").wait_for()
    page.get_by_role("button", name="Open in check").click()
    page.get_by_text("It is too large.").wait_for()


def test_a_verdict_is_that_of_a_network_and_not_of_how_it_is_looked_at(visit: Visit) -> None:
    page = visit("token=abcdefgh12345678", url=f"{ORIGIN}/explore.html")
    held: list[Any] = []
    page.route("**/compute/check", lambda route: held.append(route))
    open_it, told = page.get_by_role("button", name="Open in check"), page.locator(".verdict")
    open_it.click()
    page.get_by_text("levada check is looking at").wait_for()
    page.get_by_label("expert").check()
    wait(page, lambda: len(held) == 1)
    held.pop().fulfill(status=200, body=json.dumps(ANSWER), content_type="application/json")
    told.wait_for()
    page.locator("input[name=view][value=gradient]").check()
    page.wait_for_function("() => location.hash.includes('view=gradient')")
    expect(told).to_be_visible()

    open_it.click()
    wait(page, lambda: len(held) == 1)
    page.get_by_label("Depth, exactly").fill("20")  # of this network nobody has asked
    expect(open_it).to_be_enabled()
    expect(page.get_by_text("levada check is looking at")).to_have_count(0)
    expect(page.locator(".error")).to_have_count(0)


@pytest.mark.parametrize("width", [360, 1280, 3840])
@pytest.mark.parametrize("depth", [1, 50, 1000])
def test_labels_are_whole_and_apart(visit: Visit, depth: int, width: int) -> None:
    page = visit(f"depth={depth}&connections=residual,identity,attention", width=width)
    cut = """() => [...document.querySelectorAll('.tick')].filter(text => {
      const [own, room] = [text, text.closest('.plot')].map(one => one.getBoundingClientRect());
      return own.left < room.left || own.right > room.right;
    }).map(text => text.textContent)"""
    assert page.evaluate(cut) == []
    touching = """() => {
      const boxes = [...document.querySelectorAll('.controls fieldset .check')].map(label => {
        const text = document.createRange();
        text.selectNodeContents(label);
        return [label.innerText, text.getBoundingClientRect()];
      });
      return boxes.flatMap(([name, one]) => boxes.filter(([other, two]) => name !== other
        && one.left <= two.left && two.left < one.right + 4 && one.top < two.bottom && two.top < one.bottom)
        .map(([other]) => `${name} and ${other}`));
    }"""
    assert page.evaluate(touching) == []


@pytest.mark.parametrize("view", ["gradient", "both"])
def test_no_number_of_the_summary_is_cut_on_a_phone(visit: Visit, view: str) -> None:
    page = visit(f"view={view}", width=360)
    expect(page.locator(".scroll tbody tr").first).to_contain_text("10⁻³²")
    cut = """() => [...document.querySelectorAll('.scroll th, .scroll td')]
      .filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
    assert page.evaluate(cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("streams", [2, 8])
def test_numbers_of_a_matrix_stay_in_their_cells(visit: Visit, streams: int) -> None:
    page = visit(f"tab=mixing&streams={streams}&spread=3", width=360)
    page.get_by_label("Iteration, exactly").fill("3")
    wide = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
      const cell = svg.querySelector('rect')?.getBoundingClientRect().width;
      return [...svg.querySelectorAll('.cell, .total')].filter(text => text.getBoundingClientRect().width > cell)
        .map(text => text.textContent);
    })"""
    expect(page.locator("svg .cell")).to_have_count(streams**2)
    assert page.evaluate(wide) == []


COMPILES = """() => {
  try { return new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0])) instanceof WebAssembly.Module; }
  catch { return false; }
}"""


@pytest.mark.parametrize("policy", [POLICY, POLICY.replace(" 'wasm-unsafe-eval'", "")], ids=["allowed", "forbidden"])
def test_workers_compile_where_the_page_may_and_compute_where_it_may_not(browser: Any, policy: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.route(
            f"{ORIGIN}/**/*",
            lambda route: route.fulfill(
                path=STATIC / route.request.url.removeprefix(ORIGIN).lstrip("/"),
                headers={"content-security-policy": policy},
            ),
        )
        page.goto(f"{ORIGIN}/explore.html")
        expect(page.locator(".reading")).to_have_count(2)
        assert {worker.evaluate(COMPILES) for worker in page.workers} == {policy == POLICY}
