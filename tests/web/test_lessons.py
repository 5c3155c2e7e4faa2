"""The explorer's lessons in a browser: all seven by keys, their answers, two readings, links, a phone, and axe-core."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.web.explorer_page import AXE, PAGE, Visit, browser, needs_page, settled, violations_by_scheme, visit
from tests.web.visiting import boxes, expect, rests, wait

pytestmark = needs_page
__all__ = ["browser", "visit"]

WEB = Path(__file__).parents[2] / "web"
ESBUILD, NODE = WEB / "node_modules/.bin/esbuild", shutil.which("node")
TITLES = [
    "One neuron",
    "Many layers",
    "How to begin",
    "Normalisation",
    "Residual connections",
    "Gates, and depth in time",
    "Many streams",
]
TRAINED = {"5.a": {"rel": 0.3}, "5.d": {"abs": 1.0}, "5.e": {"rel": 0.3}}  # losses, points of accuracy, layers
FOCUSED = "element => element === document.activeElement"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[], dict[str, dict[str, Any]]]]:
    """Give what the engine says outside of the page: question -> its kind, and a number for it or for each option.

    It computes while the page does; asked for its answers, it is waited for.
    """
    if NODE is None or not ESBUILD.exists():
        pytest.skip("the engine is run by Node.js: cd web && npm ci")
    bundle, answers = tmp_path / "emit.mjs", tmp_path / "answers.json"
    command = [ESBUILD, WEB / "test/emit_lessons.ts", "--bundle", "--platform=node", "--format=esm"]
    subprocess.run([*map(str, command), f"--outfile={bundle}", "--log-level=error"], check=True)
    with answers.open("w") as out, subprocess.Popen([NODE, str(bundle)], stdout=out) as process:

        def ended() -> dict[str, dict[str, Any]]:
            assert process.wait() == 0
            found: dict[str, dict[str, Any]] = json.loads(answers.read_text())
            return found

        yield ended
        process.kill()


def opened(page: Any, title: str) -> None:
    page.get_by_role("heading", name=re.compile(rf"\d\. {title}$")).wait_for()


def tab_to(page: Any, target: Any) -> None:
    """Press Tab until the target has the focus."""
    for _ in range(150):
        if target.evaluate(FOCUSED):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no key leads to {target}")


def verdict(page: Any, name: str) -> Any:
    return page.locator(f"[data-question={name}] .verdict")


def found(page: Any, name: str) -> list[float]:
    verdict(page, name).wait_for(timeout=120_000)
    return [float(one) for one in verdict(page, name).get_attribute("data-found").split()]


def close(values: list[float], key: str) -> Any:
    """Of the same numbers: exp and log of two browsers differ in their last bits, which a training amplifies."""
    return pytest.approx(values, **TRAINED.get(key, {"rel": 1e-9, "abs": 1e-12}))


@pytest.mark.timeout(900)  # many draws of each answer, by the engine and by the page
def test_all_seven_by_keys_with_the_answers_of_the_engine(
    visit: Visit, engine: Callable[[], dict[str, dict[str, Any]]]
) -> None:
    page = visit("tab=lessons")
    told: dict[str, list[float]] = {}
    for chapter, title in enumerate(TITLES, 1):
        opened(page, title)
        if chapter > 1:  # turned to by a key: reading goes on at the heading
            expect(page.locator("#lesson-title")).to_be_focused()
        names = page.locator("[data-question]").evaluate_all("all => all.map(one => one.dataset.question)")
        for name in names:
            question = page.locator(f"[data-question={name}]")
            button = question.get_by_role("button", name="Compute it")
            expect(button).to_be_disabled()  # no answer before a prediction
            if question.locator("input[type=range]").count() == 1:
                tab_to(page, question.locator("input[type=range]"))
                page.keyboard.press("ArrowRight")
            else:
                tab_to(page, question.locator("input[type=radio]").first)
                page.keyboard.press("Space")
            tab_to(page, button)
            page.keyboard.press("Enter")
            told[f"{chapter}.{name}"] = found(page, name)
            expect(question.get_by_role("status")).to_contain_text(verdict(page, name).inner_text())
        mark = page.get_by_role("navigation", name="Chapters").locator("[aria-current=page]")
        expect(mark).to_contain_text(f"{len(names)} of {len(names)}")
        if chapter < len(TITLES):
            tab_to(page, page.get_by_role("button", name=f"Next: {TITLES[chapter]}"))
            page.keyboard.press("Enter")
    expected = engine()
    assert told.keys() == expected.keys()
    for key, values in told.items():
        assert values == close(expected[key]["found"], key), key


def test_each_chapter_is_fetched_by_itself_and_no_typesetter_with_it() -> None:
    scripts = {file.name: file.read_text() for file in (PAGE.parents[1] / "assets").glob("*.js")}
    phrases = ["The sigmoid's quarter", "Break the quarter", "The edge of chaos", "What it mends", "Deeper is worse"]
    homes = []
    for phrase in [*phrases, "Depth in time", "On a manifold"]:
        homes += [name for name, script in scripts.items() if phrase in script]
    assert len(homes) == len(set(homes)) == len(TITLES)
    assert not any("explore" in name or "essons" in name for name in homes)
    assert not any("temml" in script.lower() for script in scripts.values())


def test_a_link_brings_back_predictions_and_figures(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2")
    opened(page, "Many layers")
    question = page.locator("[data-question=b]")
    question.get_by_label("Your prediction, exactly").fill("0.001")
    question.get_by_role("button", name="Compute it").click()
    (value,) = found(page, "b")
    said = verdict(page, "b").inner_text()
    assert "you said 0.001" in said
    assert "too low" in said
    settled(page, "lesson=gain:8")  # the figure shows what was asked
    expect(page.get_by_label("Weights times, exactly")).to_have_value("8")
    page.get_by_label("Depth, exactly").fill("40")
    settled(page, "depth:40")
    again = visit(page.evaluate("location.hash.slice(1)"))
    assert found(again, "b") == [value]
    assert verdict(again, "b").inner_text() == said
    expect(again.get_by_label("Depth, exactly")).to_have_value("40")
    again.locator("[data-question=b]").get_by_role("button", name="Ask again").click()
    again.wait_for_function("() => !location.hash.includes('answers')")
    expect(again.locator("[data-question=b]").get_by_role("button", name="Compute it")).to_have_count(1)


FIGURES = [  # a chapter, what its figure says is not drawn, questions that ask for it, and what is drawn then
    (1, "The slope is drawn when you have predicted it.", "a:0.1", "Steepest: 0.25"),
    (2, "plain is drawn when you have predicted it.", "a:1e-9", "plain: at layer 1"),
    (4, "plain is drawn when you have predicted it.", "b:0,c:1", "plain: at layer 1"),
    (6, "RNN, LSTM and GRU are drawn when you have predicted them.", "d:5,e:0", "LSTM: "),
    (7, "HC and mHC are drawn when you have predicted them.", "a:3,b:0,c:0", "HC has a gain of"),
    (7, "HC is drawn when you have predicted it.", "d:0", "HC: at layer 1"),
    (7, "HC is drawn when you have predicted it.", "d:0", "HC's line is parallel to that of the residual network"),
]


@pytest.mark.parametrize(("chapter", "says", "answers", "drawn"), FIGURES, ids=[one[3] for one in FIGURES])
def test_a_figure_tells_nothing_that_is_not_predicted(
    visit: Visit, chapter: int, says: str, answers: str, drawn: str
) -> None:
    page = visit(f"tab=lessons&chapter={chapter}")
    opened(page, TITLES[chapter - 1])
    page.get_by_text(says, exact=True).wait_for()
    page.wait_for_timeout(1000)
    assert drawn not in page.inner_text("article")
    for key in [one.split(":")[0] for one in answers.split(",")]:
        assert page.locator(f"[data-question={key}] .verdict").count() == 0
    page = visit(f"tab=lessons&chapter={chapter}&answers={','.join(f'{chapter}.{one}' for one in answers.split(','))}")
    page.locator(".beside", has_text=drawn).first.wait_for()
    expect(page.get_by_text(says, exact=True)).to_have_count(0)


def test_the_figure_that_comes_with_the_answer_has_its_number_and_is_reached_by_keys(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2")
    opened(page, "Many layers")
    assert page.locator(".beside .plot").count() == 0
    question = page.locator("[data-question=c]")
    question.get_by_role("radio").last.check()
    tab_to(page, question.get_by_role("button", name="Compute it"))
    page.keyboard.press("Enter")
    (value,) = found(page, "c")
    expect(question).to_contain_text("49 of them lie between")
    grown = page.locator(".beside .reading", has_text=f"the gradient is {value:.0f} times")
    grown.wait_for()  # of the draw in the middle, and not of the first
    tab_to(page, page.get_by_role("slider", name="gradient"))
    page.keyboard.press("Home")
    expect(page.get_by_role("slider", name="gradient")).to_have_attribute("aria-valuenow", "0")


def test_a_correction_waits_for_the_prediction_that_it_would_give_away(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2")
    opened(page, "Many layers")
    correction = page.get_by_label(re.compile("Correction of: Losses in the middle of a network"))
    assert "Predict above; then it is said what is true." in correction.inner_text()
    assert "Nobody has shown" not in page.inner_text("article")
    question = page.locator("[data-question=e]")
    question.get_by_label("Your prediction, exactly").fill("0.01")
    question.get_by_role("button", name="Compute it").click()
    found(page, "e")
    expect(correction).to_contain_text("Nobody has shown")
    # Of convolutions the explorer has no figure, and no button leads there.
    page = visit("tab=lessons&chapter=6&answers=6.f:5,6.c:10")
    assert found(page, "f") == [17]
    found(page, "c")
    for name, count in (("c", 1), ("f", 0)):
        button = page.locator(f"[data-question={name}]").get_by_role("button", name="Open in the explorer")
        expect(button).to_have_count(count)


def test_nothing_is_trained_before_the_prediction(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=5")
    opened(page, "Residual connections")
    button = page.get_by_role("button", name="Train both at 32 layers")
    assert button.is_disabled()
    page.get_by_text("The training is drawn when you have predicted it.").wait_for()
    question = page.locator("[data-question=a]")
    question.get_by_role("radio").first.check()
    question.get_by_role("button", name="Compute it").click()
    found(page, "a")
    page.get_by_role("slider", name="Training loss by step").wait_for(timeout=120_000)
    page.get_by_text("The accuracy without each layer is drawn when you have predicted it.").wait_for()
    assert "without one layer (the median)" not in page.inner_text("article")


def test_the_figure_shows_the_option_that_was_right(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=6")
    opened(page, TITLES[5])
    question = page.locator("[data-question=a]")
    question.get_by_role("radio").last.check()
    question.get_by_role("button", name="Compute it").click()
    values = found(page, "a")
    assert min(values) == values[1]
    assert verdict(page, "a").inner_text().startswith("Not so: it is “0, gates half open”")
    settled(page, "lesson=gateBias:0")
    expect(page.get_by_label("Bias of the gates, exactly")).to_have_value("0")
    page.get_by_role("button", name="Back to the start").first.click()
    page.wait_for_function("() => !location.hash.includes('lesson=')")
    expect(page.get_by_label("Bias of the gates, exactly")).to_have_value("-2")


def test_the_explorer_opens_with_the_same_settings(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=3&answers=3.a:0.5")
    (rate,) = found(page, "a")
    page.locator("[data-question=a]").get_by_role("button", name="Open in the explorer").click()
    page.locator("#tab-depth[aria-selected=true]").wait_for()
    settled(page, "init=pytorch_default")
    page.wait_for_function("rate => document.querySelector('.reading')?.innerText.includes(rate)", arg=f"{rate:.3f}")
    page.go_back()  # and the lesson is as it was left
    opened(page, "How to begin")
    assert found(page, "a") == [rate]
    time = visit("tab=lessons&chapter=6&answers=6.c:5")
    found(time, "c")
    time.locator("[data-question=c]").get_by_role("button", name="Open in the explorer").click()
    time.locator("#tab-time[aria-selected=true]").wait_for()
    expect(time.get_by_label("Forget bias, exactly")).to_have_value("0")


def test_a_place_is_gone_back_to_with_what_was_answered_since(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2&answers=2.a:0.1")
    page.get_by_role("button", name="Next: How to begin").click()
    opened(page, "How to begin")
    question = page.locator("[data-question=a]")
    question.locator("input[type=range]").press("ArrowRight")
    question.get_by_role("button", name="Compute it").click()
    answered = found(page, "a")
    page.go_back()
    opened(page, "Many layers")
    settled(page, "3.a")  # the answers of the chapter that was left are in the link
    page.go_forward()
    opened(page, "How to begin")
    assert found(page, "a") == answered


def test_one_switch_tells_it_to_experts(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2")
    opened(page, "Many layers")
    simple = page.locator("article").inner_text()
    formulas = page.get_by_role("group", name="Formula: ")
    expect(formulas.or_(page.get_by_role("math"))).to_have_count(0)
    page.get_by_label("expert").check()
    for one in (formulas, page.get_by_role("math")):
        expect(one).to_have_count(3)
    expert = page.locator("article").inner_text()
    assert "Jacobians" in expert
    assert "Jacobians" not in simple
    labels = formulas.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert "the product over the layers" in labels[0]
    # A formula takes room: it is typeset, and not its text alone.
    assert boxes(page, page.locator("article mfrac").first)[0]["height"] > 20


def test_training_takes_layers_away(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=5&lesson=trainDepth:6")
    opened(page, "Residual connections")
    page.get_by_role("button", name="Train both at 6 layers").click()
    page.get_by_role("slider", name="Accuracy without each layer").wait_for(timeout=120_000)
    told = page.locator(".beside .reading").all_inner_texts()
    assert [one.split(",")[0] for one in told[:2]] == ["plain", "residual"]
    assert all("6 layers: a training loss of" in one for one in told[:2])
    expect(page.get_by_role("button", name="Train both at 6 layers")).to_be_disabled()


def test_a_figure_higher_than_the_window_is_seen_to_its_end_and_back(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=7&answers=7.a:3,7.b:0,7.c:0,7.d:0,7.e:0", height=400)
    opened(page, TITLES[6])
    figure = page.locator(".beside").first
    figure.locator(".plot").wait_for()
    first, last = figure.get_by_role("group", name="Settings of the figure"), figure.get_by_role("button").last
    inside = "one => { const { top, bottom } = one.getBoundingClientRect(); return top >= 0 && bottom <= innerHeight }"
    group = "figure => scrollTo(0, scrollY + figure.parentElement.getBoundingClientRect().{})"
    rests(page)
    figure.evaluate(group.format("bottom - innerHeight - 100"))
    wait(page, lambda: last.evaluate(inside))
    assert not first.evaluate(inside)
    page.evaluate("scrollBy(0, -600)")
    wait(page, lambda: first.evaluate(inside))
    assert figure.evaluate("one => one.parentElement.getBoundingClientRect().top") < -100  # far from where it began
    assert figure.evaluate("one => one.scrollHeight <= one.clientHeight")


def test_what_a_link_says_wrong_is_said(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=1&answers=1.a:x,9.z:1&lesson=gain:900")
    expect(page.get_by_role("alert")).to_contain_text("gain must be")
    assert page.locator("[data-question] .verdict").count() == 0


def test_a_phone_shows_it_without_a_scroll_sideways(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=3&expert=1&answers=3.b:0", width=360, height=740)
    found(page, "b")
    for chapter in range(1, 8):
        page.get_by_role("navigation", name="Chapters").get_by_role("button").nth(chapter - 1).click()
        opened(page, TITLES[chapter - 1])
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        small = page.locator("article button:visible, nav button:visible").evaluate_all(
            "all => all.filter(one => one.getBoundingClientRect().height < 36).map(one => one.innerText)"
        )
        assert small == []


def test_on_paper_there_is_the_text_and_no_button(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=4&answers=4.b:0")
    found(page, "b")
    page.emulate_media(media="print")
    expect(page.locator("article button:visible")).to_have_count(0)
    expect(page.get_by_role("navigation", name="Chapters")).to_be_hidden()
    expect(verdict(page, "b")).to_be_visible()


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: cd web && npm ci")
def test_axe_finds_nothing(visit: Visit) -> None:
    answers = "1.a:0.1,2.a:0.1,3.b:0,4.b:0,6.c:10,7.b:1"
    page = visit(f"tab=lessons&chapter=1&answers={answers}")
    for chapter in range(1, 8):
        page.get_by_role("navigation", name="Chapters").get_by_role("button").nth(chapter - 1).click()
        opened(page, TITLES[chapter - 1])
        page.get_by_label("expert").set_checked(chapter % 2 == 1)
        for name in re.findall(rf"{chapter}\.(\w):", answers):
            found(page, name)
        assert violations_by_scheme(page) == {}
