"""The explorer in a browser, from the one file that opens from a disk: controls, keys, links, what is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.web.explorer_page import PAGE, browser, changes, link, needs_page, picture, sentences, settled, use
from tests.web.visiting import Visit as Open
from tests.web.visiting import boxes, expect, visits, wait

__all__ = ["browser"]
pytestmark = needs_page

DEAD = "depth=120"  # a sigmoid stack whose gradient leaves the range of float32


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open the page, and wait for what it reads out."""
    with visits(browser, PAGE.as_uri(), ".reading, [role=alert]") as opened:
        yield opened


CONTROLS = [
    ("Activation", "tanh", "activation=tanh"),
    ("Initialisation", "he", "init=he"),
    ("Normalisation", "layer", "norm=layer"),
    ("Depth, exactly", 80, "depth=80"),
    ("Width, exactly", 16, "width=16"),
    ("Gain of the weights, exactly", 2.5, "gain=2.5"),
    ("post-norm", True, "connections=plain,residual,post_norm"),
    ("highway", True, "connections=plain,residual,highway"),
    ("dense", True, "connections=plain,residual,dense"),
    ("HC", True, "connections=plain,residual,hyper"),
    ("mHC", True, "connections=plain,residual,manifold"),
    ("identity HC", True, "connections=plain,residual,identity"),
    ("AttnRes", True, "connections=plain,residual,attention"),
    ("plain", False, "connections=residual"),
    ("Rows of the batch, exactly", 16, "rows=16"),
    ("Seed, exactly", 3, "seed=3"),
    ("activation before the weights", True, "preActivation=1"),
    ("Precision", "float64", "precision=float64"),
]


@pytest.mark.parametrize(("label", "value", "key"), CONTROLS, ids=[label for label, *_ in CONTROLS])
def test_a_control_changes_the_picture_and_the_link(visit: Open, label: str, value: Any, key: str) -> None:
    page = visit("expert=1&depth=100")
    changes(page, lambda: use(page, label, value))
    settled(page, key)


OPTIONS = [
    ("hyper", "Streams, exactly", 2, "streams=2"),
    ("dense", "Growth of dense, exactly", 3, "growth=3"),
    ("attention", "Blocks of AttnRes, exactly", 2, "blocks=2"),
    ("highway", "Gate bias of highway, exactly", 1.5, "gateBias=1.5"),
    ("post_norm", "Skip factor of post-norm, exactly", 2, "alpha=2"),
]


@pytest.mark.parametrize(("name", "label", "value", "key"), OPTIONS, ids=[name for name, *_ in OPTIONS])
def test_options_of_a_connection_are_there_with_it(visit: Open, name: str, label: str, value: Any, key: str) -> None:
    page = visit("expert=1")
    expect(page.get_by_label(label, exact=True)).to_have_count(0)
    page = visit(f"expert=1&connections={name}&depth=20")
    changes(page, lambda: use(page, label, value))
    settled(page, key)


def test_variances_and_the_optimizer_have_an_effect(visit: Open) -> None:
    page = visit("expert=1&init=gaussian&depth=20")
    changes(page, lambda: use(page, "Weight variance σw², exactly", 3))
    changes(page, lambda: use(page, "Bias variance σb², exactly", 0.5))
    changes(page, lambda: page.get_by_label("first update").check())
    changes(page, lambda: use(page, "Optimizer", "adamw"))
    before = page.inner_text(".told tbody td")  # all steps change alike, and the axis with them
    use(page, "Learning rate, exactly", 0.003)
    page.wait_for_function("before => document.querySelector('.told tbody td').textContent != before", arg=before)
    settled(page, "optimizer=adamw&lr=0.003")


def both_drawn(page: Any) -> None:
    """Wait until both connections are drawn: each comes when it is computed."""
    expect(page.locator(".reading")).to_have_count(2)


def test_a_link_gives_the_page_back(visit: Open) -> None:
    page = visit("connections=residual,attention&depth=37&activation=gelu&expert=1&gain=1.5&view=signal")
    expect(page.get_by_label("Depth, exactly")).to_have_value("37")
    expect(page.get_by_label("Activation", exact=True)).to_have_value("gelu")
    expect(page.get_by_label("AttnRes", exact=True)).to_be_checked()
    expect(page.get_by_label("plain", exact=True)).not_to_be_checked()
    expect(page.get_by_label("signal", exact=True)).to_be_checked()
    both_drawn(page)
    drawn = picture(page)
    use(page, "Depth, exactly", 40)
    settled(page, "depth=40")
    other = visit(link(page).removeprefix("#"))
    both_drawn(other)
    assert picture(other) != drawn
    use(other, "Depth, exactly", 37)
    settled(other, "depth=37")
    again = visit(link(other).removeprefix("#"))
    wait(again, lambda: picture(again) == drawn)


def test_a_wrong_link_is_said_and_the_rest_is_taken(visit: Open) -> None:
    page = visit("depth=20&width=many&colour=red")
    expect(page.get_by_role("alert")).to_have_text(
        [
            'In the address: width must be a whole number from 1 to 256, got "many": it is 32.',
            'In the address: There is no setting "colour".',
        ]
    )
    expect(page.get_by_label("Depth, exactly")).to_have_value("20")


def test_underflow_is_named_and_float64_shows_what_was_lost(visit: Open) -> None:
    page = visit(DEAD)
    plain = page.locator(".reading").first
    expect(plain).to_contain_text("the gradient is exactly zero")
    expect(plain).to_contain_text("the smallest number that float32 holds (underflow)")
    told = re.compile(r"plain: \d+ values \(the input to layer \d+\) are exactly zero")
    expect(page.locator(".stage").first).to_contain_text(told)
    expect(page.locator(".measured .edge").last).to_have_count(1)
    changes(page, lambda: use(page, "Precision", "float64"))
    expect(plain).not_to_contain_text("zero")
    expect(plain).to_contain_text(re.compile(r"at layer 1 the gradient is \d\.\d×10⁻⁷. of"))


def test_prediction_and_measurement_are_compared_in_words(visit: Open) -> None:
    page = visit("activation=relu&init=pytorch_default&precision=float64&connections=plain,manifold")
    told = re.compile(r"^\s*plain: at layer 1 .* ×\s0\.4\d+ per layer, as predicted \(0\.408\)\.\s*$")
    expect(page.locator(".reading").first).to_have_text(told)
    both_drawn(page)
    expect(page.locator(".told").first).to_contain_text("No prediction for mHC.")
    page = visit("gain=5&precision=float64")
    expect(page.locator(".key").first).to_contain_text("0.25")


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("gain=50&depth=20&width=100", r"×\s2\.06 per layer, where theory says 2\.18\.$"),
        (
            "gain=8&activation=relu",
            r"×\s5\.49 per layer, where theory says 5\.66 for infinite width; at this depth, 1\.5 ",
        ),
    ],
)
def test_a_measurement_that_is_not_the_prediction_is_said(visit: Open, link: str, told: str) -> None:
    page = visit(f"connections=plain&precision=float64&{link}")
    expect(page.locator(".reading").first).to_have_text(re.compile(told))
    expect(page.locator(".reading").first).not_to_contain_text("as predicted")


def test_the_line_of_a_quarter_is_there_for_the_sigmoid_alone_and_can_be_exceeded(visit: Open) -> None:
    page = visit("gain=4&precision=float64&connections=plain")
    rate = re.search(r"×\s(0\.\d+) per layer", sentences(page)[0])
    assert rate is not None
    assert float(rate[1]) > 0.3
    expect(page.locator(".plot .reference")).to_have_count(1)
    changes(page, lambda: use(page, "Activation", "tanh"))
    expect(page.locator(".plot .reference")).to_have_count(0)


def test_what_cannot_be_computed_is_said(visit: Open) -> None:
    page = visit("depth=1000&width=256&connections=residual")
    expect(page.get_by_role("alert")).to_contain_text("take fewer layers or features")
    use(page, "Depth, exactly", 10)
    page.wait_for_selector(".reading")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_keys_alone_reach_and_change_everything(visit: Open) -> None:
    page = visit()
    keys = page.keyboard
    reached: list[str] = []
    for _ in range(60):
        keys.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const one = document.activeElement; const of = one.labels?.[0]?.textContent;"
                " return one.getAttribute('aria-label') ?? of?.trim() ?? one.textContent.trim() }"
            )
        )
    for name in (
        "Depth",
        "plain",
        "Activation",
        "Optimizer",
        "Precision",
        "Play backward",
        "Copy as PyTorch",
        "expert",
    ):
        assert any(one.startswith(name) for one in reached), (name, reached)
    outlined = "() => getComputedStyle(document.activeElement).outlineStyle"
    page.get_by_role("slider", name="Depth", exact=True).focus()
    changes(page, lambda: keys.press("ArrowRight"))
    settled(page, "depth=51")
    assert page.evaluate(outlined) == "solid"
    figure = page.get_by_role("slider", name="Gradient backward")
    figure.focus()
    keys.press("Home")
    for _ in range(3):
        keys.press("ArrowRight")
    expect(figure).to_have_attribute("aria-valuenow", "3")
    expect(figure).to_have_attribute("aria-valuetext", re.compile(r"^layer 3: plain \d"))
    expect(page.locator(".told thead th").first).to_have_text("at layer 3", ignore_case=True)
    keys.press("End")
    expect(figure).to_have_attribute("aria-valuenow", "51")
    page.get_by_label("both").focus()
    keys.press("ArrowRight")
    settled(page, "view=signal")


def test_the_cursor_follows_mouse_and_touch(visit: Open) -> None:
    page = visit()
    (box,) = boxes(page, page.locator(".plot").first)
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    figure = page.get_by_role("slider", name="Signal forward")
    expect(figure).to_have_attribute("aria-valuenow", re.compile(r"^(2\d|30)$"))
    middle = figure.get_attribute("aria-valuenow")
    expect(page.locator(".told thead th").first).to_have_text(f"at layer {middle}", ignore_case=True)
    page = visit(has_touch=True, width=360, height=640)
    (box,) = boxes(page, page.locator(".plot").first)
    page.touchscreen.tap(box["x"] + box["width"] - 14, box["y"] + 50)
    expect(page.locator(".plot").first).to_have_attribute("aria-valuenow", "50")


def test_tabs_are_changed_by_keys_and_kept_in_the_link(visit: Open) -> None:
    page = visit()
    page.get_by_role("tab", name="Depth").focus()
    page.keyboard.press("End")
    last = page.get_by_role("tab", selected=True)
    settled(page, "tab=")
    expect(last).not_to_have_text("Depth")
    expect(page.get_by_role("tabpanel")).to_have_attribute("aria-labelledby", last.get_attribute("id"))
    page.keyboard.press("ArrowRight")
    expect(last).to_have_text("Depth")
    page.get_by_role("tab", name="Mixing").click()
    settled(page, "tab=mixing")
    expect(visit("tab=mixing").locator(".reading").first).to_contain_text("Through all 50 layers free mixing")


def test_mixing_is_followed_away_from_its_start(visit: Open) -> None:
    page = visit("tab=mixing&connections=plain")
    expect(page.locator("main")).to_contain_text("mixes no streams")
    for label, value, key in (
        ("Distance from the start, exactly", 1, "spread=1"),
        ("Number of streams, exactly", 3, "streams=3"),
        ("Iterations of Sinkhorn, exactly", 2, "iterations=2"),
        ("Depth, exactly", 20, "depth=20"),
    ):
        changes(page, lambda label=label, value=value: use(page, label, value))
        settled(page, key)
    told = re.compile(r"^\s*Through all 20 layers free mixing multiplies by up to \d")
    expect(page.locator(".reading").first).to_have_text(told)
    off = re.compile(r"off by (\S+) at most")
    before = off.search(page.inner_text("main"))
    use(page, "Iteration, exactly", 30)
    page.wait_for_function("before => !document.querySelector('main').textContent.includes(before)", arg=before[0])
    after = off.search(page.inner_text("main"))
    assert before is not None
    assert after is not None
    assert before[1] != after[1]
    use(page, "mHC", True)
    page.get_by_text("mHC has a gain of 1").wait_for()


def test_what_is_out_of_range_is_said_with_the_range(visit: Open) -> None:
    page = visit()
    field = page.get_by_label("Depth, exactly")
    for typed in ("5000", "0", "2.5"):
        field.fill(typed)
        field.blur()
        told = page.get_by_role("alert")
        expect(told).to_have_text(f"A whole number from 1 to 1,000, not {typed}.")
        expect(field).to_have_attribute("aria-describedby", told.get_attribute("id"))
        expect(field).to_have_value("50")
        assert "depth=" not in link(page)
    field.fill("40")
    settled(page, "depth=40")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Gain of the weights, exactly").fill("1000")
    page.get_by_label("Depth, exactly").focus()
    expect(page.get_by_role("alert")).to_have_text("A number from 0.01 to 100, not 1000.")


def test_there_is_one_control_of_streams(visit: Open) -> None:
    page = visit("tab=mixing&expert=1&connections=manifold,hyper&depth=10")
    expect(page.get_by_role("slider", name=re.compile("streams", re.I))).to_have_count(1)
    expect(page.get_by_role("slider", name=re.compile("Sinkhorn", re.I))).to_have_count(1)
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#tab-depth[aria-selected=true]")).to_have_count(1)
    expect(page.get_by_role("slider", name=re.compile("streams", re.I))).to_have_count(1)


def test_every_connection_has_a_sentence(visit: Open) -> None:
    page = visit(
        "connections=residual,highway,dense,hyper,manifold,identity,attention&activation=relu&init=he&depth=12"
    )
    page.wait_for_function("() => document.querySelectorAll('.reading').length == 7")
    assert "The jump at the end is the sum over 4 streams" in sentences(page)[3]


def test_reset_gives_the_first_page_back(visit: Open) -> None:
    page = visit("depth=20&expert=1&gain=3&view=signal")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => location.hash == ''")
    expect(page.get_by_label("Depth, exactly")).to_have_value("50")
    expect(page.get_by_label("Seed, exactly")).to_have_count(0)


# Whether an answer is late is told by the page's clock, which stands but where it is moved, and answers are held until
# they are let go: how fast the machine is has no part in it.
HELD = """
  window.answers = []
  window.hold = false
  window.Worker = class extends Worker {
    addEventListener(type, told) {
      super.addEventListener(type, (event) => {
        if (type === "message" && window.hold) window.answers.push(() => told(event))
        else told(event)
      })
    }
  }
  window.release = () => { window.hold = false; window.answers.splice(0).forEach((tell) => tell()) }
"""


def hold(page: Any) -> None:
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)  # before the page opens: at rest, it prepares for a first change
    page.add_init_script(HELD)


def asked(page: Any, label: str, value: Any) -> None:
    """Change a control, and wait until its answer has come and is held."""
    page.evaluate("window.hold = true")
    use(page, label, value)
    page.wait_for_function("window.answers.length >= 2")  # configured, computed


def test_waiting_is_said_when_it_is_long_and_not_before(visit: Open) -> None:
    page = visit("depth=3&connections=plain", prepare=hold)
    page.evaluate(
        """() => { window.seen = []; const one = document.querySelector('.state');
          new MutationObserver(() => window.seen.push(one.textContent))
            .observe(one, {subtree: true, characterData: true, childList: true}) }"""
    )
    asked(page, "Depth, exactly", 4)
    page.clock.run_for(100)
    page.evaluate("window.release()")
    page.clock.run_for(10_000)
    assert page.evaluate("window.seen") == [], "said of what was quick"
    asked(page, "Depth, exactly", 5)
    page.clock.run_for(100)
    assert page.evaluate("window.seen") == [], "said too early"
    page.clock.run_for(900)
    assert page.evaluate("window.seen") == ["computing …"]
    page.evaluate("window.release()")
    page.wait_for_function("() => window.seen.length == 2")
    assert page.evaluate("window.seen") == ["computing …", ""]


COUNTED = """
  window.made = 0
  window.Worker = class extends Worker { constructor(...how) { super(...how); window.made++ } }
"""


def test_a_tab_that_is_left_ends_its_worker(visit: Open) -> None:
    page = visit("depth=10", prepare=lambda page: page.add_init_script(COUNTED))
    before = page.evaluate("window.made")  # all of them are made at once, and come to run one after the other
    wait(page, lambda: len(page.workers) == before > 0)
    page.get_by_role("tab", name="Time").click()
    page.locator(".figure[aria-busy=false]").wait_for()
    wait(page, lambda: len(page.workers) == before + 1)
    page.get_by_role("tab", name="Depth").click()
    wait(page, lambda: len(page.workers) == before)
