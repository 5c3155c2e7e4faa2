"""The explorer in a browser, from the one file that opens from a disk: controls, keys, links, what is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.web.explorer_page import PAGE, browser, needs_page, settled

__all__ = ["browser"]
pytestmark = needs_page
Open = Callable[..., Any]

DEAD = "depth=120"  # a sigmoid stack whose gradient leaves the range of float32


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open the page with a link; nothing may be asked of a network, and nothing may go wrong."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def opened(link: str = "", width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{PAGE.as_uri()}#{link}")
        page.wait_for_selector(".reading, [role=alert]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url.split("#")[0] for url in asked if not url.startswith(("data:", "blob:"))} <= {PAGE.as_uri()}


def link(page: Any) -> str:
    return str(page.evaluate("location.hash"))


def picture(page: Any) -> str:
    """Everything that is drawn."""
    return str(page.eval_on_selector_all(".plot .line", "all => all.map(one => one.getAttribute('d')).join('|')"))


def readings(page: Any) -> list[str]:
    return list(page.locator(".reading").all_inner_texts())


def changes(page: Any, act: Callable[[], Any]) -> None:
    """Wait until what is drawn is another picture than before."""
    before = picture(page)
    act()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.plot .line')].map(one => one.getAttribute('d')).join('|') != before",
        arg=before,
    )


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


def use(page: Any, label: str, value: Any) -> None:
    control = page.get_by_label(label, exact=True)
    if isinstance(value, bool):
        control.set_checked(value)
    elif isinstance(value, str):
        control.select_option(value)
    else:
        control.fill(str(value))


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
    assert page.get_by_label(label, exact=True).count() == 0
    page = visit(f"expert=1&connections={name}&depth=20")
    changes(page, lambda: use(page, label, value))
    settled(page, key)


def test_variances_and_the_optimizer_have_an_effect(visit: Open) -> None:
    page = visit("expert=1&init=gaussian&depth=20")
    changes(page, lambda: use(page, "Weight variance σw², exactly", 3))
    changes(page, lambda: use(page, "Bias variance σb², exactly", 0.5))
    page.get_by_label("first update").check()
    changes(page, lambda: use(page, "Optimizer", "adamw"))
    before = page.inner_text(".told tbody td")  # all steps change alike, and the axis with them
    use(page, "Learning rate, exactly", 0.003)
    page.wait_for_function("before => document.querySelector('.told tbody td').textContent != before", arg=before)
    settled(page, "optimizer=adamw&lr=0.003")


def both(page: Any) -> Any:
    """The page, when its two connections are drawn."""
    page.wait_for_function("() => document.querySelectorAll('.reading').length == 2")
    return page


def test_a_link_gives_the_page_back(visit: Open) -> None:
    page = visit("connections=residual,attention&depth=37&activation=gelu&expert=1&gain=1.5&view=signal")
    assert page.get_by_label("Depth, exactly").input_value() == "37"
    assert page.get_by_label("Activation", exact=True).input_value() == "gelu"
    assert page.get_by_label("AttnRes", exact=True).is_checked()
    assert not page.get_by_label("plain", exact=True).is_checked()
    assert page.get_by_label("signal", exact=True).is_checked()
    drawn = picture(both(page))
    use(page, "Depth, exactly", 40)
    settled(page, "depth=40")
    other = visit(link(page).removeprefix("#"))
    assert picture(both(other)) != drawn
    use(other, "Depth, exactly", 37)
    settled(other, "depth=37")
    assert picture(both(visit(link(other).removeprefix("#")))) == drawn


def test_a_wrong_link_is_said_and_the_rest_is_taken(visit: Open) -> None:
    page = visit("depth=20&width=many&colour=red")
    told = page.get_by_role("alert").all_inner_texts()
    assert told == [
        'In the address: width must be a whole number from 1 to 256, got "many": it is 32.',
        'In the address: There is no setting "colour".',
    ]
    assert page.get_by_label("Depth, exactly").input_value() == "20"


def test_underflow_is_named_and_float64_shows_what_was_lost(visit: Open) -> None:
    page = visit(DEAD)
    plain = readings(page)[0]
    assert "the gradient is exactly zero" in plain
    assert "the smallest number that float32 holds (underflow)" in plain
    assert re.search(r"plain: \d+ values \(the input to layer \d+\) are exactly zero", page.inner_text(".stage"))
    assert page.locator(".measured .edge").last.count() == 1
    changes(page, lambda: use(page, "Precision", "float64"))
    assert "zero" not in readings(page)[0]
    assert re.search(r"at layer 1 the gradient is \d\.\d×10⁻⁷. of", readings(page)[0])


def test_prediction_and_measurement_are_compared_in_words(visit: Open) -> None:
    page = visit("activation=relu&init=pytorch_default&precision=float64&connections=plain,manifold")
    assert re.fullmatch(r"plain: at layer 1 .* × 0\.4\d+ per layer, as predicted \(0\.408\)\.", readings(page)[0])
    page.wait_for_function("() => document.querySelectorAll('.reading').length == 2")
    assert "No prediction for mHC." in page.inner_text(".told")
    page = visit("gain=5&precision=float64")
    assert "0.25" in page.inner_text(".key")


def test_the_line_of_a_quarter_is_there_for_the_sigmoid_alone_and_can_be_exceeded(visit: Open) -> None:
    page = visit("gain=4&precision=float64&connections=plain")
    rate = re.search(r"× (0\.\d+) per layer", readings(page)[0])
    assert rate is not None
    assert float(rate[1]) > 0.3
    assert page.locator(".plot .reference").count() == 1
    changes(page, lambda: use(page, "Activation", "tanh"))
    assert page.locator(".plot .reference").count() == 0


def test_what_cannot_be_computed_is_said(visit: Open) -> None:
    page = visit("depth=1000&width=256&connections=residual")
    assert "take fewer layers or features" in page.get_by_role("alert").inner_text()
    use(page, "Depth, exactly", 10)
    page.wait_for_selector(".reading")
    assert page.get_by_role("alert").count() == 0


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
    assert figure.get_attribute("aria-valuenow") == "3"
    assert re.match(r"layer 3: plain \d", figure.get_attribute("aria-valuetext") or "")
    assert page.inner_text(".told thead th").lower() == "at layer 3"
    keys.press("End")
    assert figure.get_attribute("aria-valuenow") == "51"
    page.get_by_label("both").focus()
    keys.press("ArrowRight")
    settled(page, "view=signal")


def test_the_cursor_follows_mouse_and_touch(visit: Open) -> None:
    page = visit()
    box = page.locator(".plot").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    middle = int(page.get_by_role("slider", name="Signal forward").get_attribute("aria-valuenow"))
    assert 20 <= middle <= 30
    assert page.inner_text(".told thead th").lower() == f"at layer {middle}"
    page = visit(has_touch=True, width=360, height=640)
    box = page.locator(".plot").first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 14, box["y"] + 50)
    assert page.locator(".plot").first.get_attribute("aria-valuenow") == "50"


def test_tabs_are_changed_by_keys_and_kept_in_the_link(visit: Open) -> None:
    page = visit()
    page.get_by_role("tab", name="Depth").focus()
    page.keyboard.press("End")
    last = page.get_by_role("tab", selected=True)
    assert last.inner_text() != "Depth"
    assert page.get_by_role("tabpanel").get_attribute("aria-labelledby") == last.get_attribute("id")
    settled(page, "tab=")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", selected=True).inner_text() == "Depth"
    page.get_by_role("tab", name="Mixing").click()
    settled(page, "tab=mixing")
    assert "Through all 50 layers free mixing" in visit("tab=mixing").inner_text(".reading")


def test_mixing_is_followed_away_from_its_start(visit: Open) -> None:
    page = visit("tab=mixing&connections=plain")
    assert "mixes no streams" in page.inner_text("main")
    for label, value, key in (
        ("Distance from the start, exactly", 1, "spread=1"),
        ("Number of streams, exactly", 3, "streams=3"),
        ("Iterations of Sinkhorn, exactly", 2, "iterations=2"),
        ("Depth, exactly", 20, "depth=20"),
    ):
        changes(page, lambda label=label, value=value: use(page, label, value))
        settled(page, key)
    assert re.match(r"Through all 20 layers free mixing multiplies by up to \d", readings(page)[0])
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
        assert told.inner_text() == f"A whole number from 1 to 1,000, not {typed}."
        assert field.get_attribute("aria-describedby") == told.get_attribute("id")
        assert field.input_value() == "50"
        assert "depth=" not in link(page)
    field.fill("40")
    settled(page, "depth=40")
    assert page.get_by_role("alert").count() == 0
    page.get_by_label("Gain of the weights, exactly").fill("1000")
    page.get_by_label("Depth, exactly").focus()
    assert page.get_by_role("alert").inner_text() == "A number from 0.01 to 100, not 1000."


def test_there_is_one_control_of_streams(visit: Open) -> None:
    page = visit("tab=mixing&expert=1&connections=manifold,hyper&depth=10")
    assert page.get_by_role("slider", name=re.compile("streams", re.I)).count() == 1
    assert page.get_by_role("slider", name=re.compile("Sinkhorn", re.I)).count() == 1
    page.get_by_role("tab", name="Depth").click()
    assert page.get_by_role("slider", name=re.compile("streams", re.I)).count() == 1


def test_every_connection_has_a_sentence(visit: Open) -> None:
    page = visit(
        "connections=residual,highway,dense,hyper,manifold,identity,attention&activation=relu&init=he&depth=12"
    )
    page.wait_for_function("() => document.querySelectorAll('.reading').length == 7")
    assert "The jump at the end is the sum over 4 streams" in readings(page)[3]


def test_reset_gives_the_first_page_back(visit: Open) -> None:
    page = visit("depth=20&expert=1&gain=3&view=signal")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => location.hash == ''")
    assert page.get_by_label("Depth, exactly").input_value() == "50"
    assert page.get_by_label("Seed, exactly").count() == 0


def test_waiting_is_said_when_it_is_long_and_not_before(visit: Open) -> None:
    page = visit("depth=3&width=48&rows=32&connections=plain")  # of which 1,000 layers of mHC take a second
    page.evaluate(
        """() => { window.seen = []; const one = document.querySelector('.state');
          new MutationObserver(() => window.seen.push(one.textContent))
            .observe(one, {subtree: true, characterData: true, childList: true}) }"""
    )
    use(page, "Depth, exactly", 4)
    settled(page, "depth=4")
    quick = page.evaluate("window.seen.length")
    use(page, "Depth, exactly", 1000)
    use(page, "mHC", True)
    page.wait_for_function("() => document.querySelectorAll('.reading').length == 2", timeout=60_000)
    assert "computing …" in page.evaluate("window.seen")
    assert quick == 0
    page.wait_for_function("() => document.querySelector('.state').textContent == ''")
