"""Controls that no other file's tests use, each by what it changes in the figure and in the link."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.web.explorer_page import (
    Visit,
    browser,
    changes,
    link,
    needs_page,
    picture,
    sentences,
    settled,
    use,
    visit,
)
from tests.web.visiting import boxes, expect, rests

pytestmark = needs_page
__all__ = ["browser", "visit"]

SILENT = "window.Worker = class extends Worker { postMessage() {} }"  # nothing that is asked comes back


def drawn(page: Any) -> None:
    page.locator(".plot .line[d^=M]").first.wait_for(state="attached")


def test_the_switch_shows_what_is_for_experts_and_the_link_keeps_it(visit: Visit) -> None:
    page = visit("depth=10")
    drawn(page)
    for label in ("Seed", "Learning rate", "Rows of the batch", "biases", "activation before the weights"):
        expect(page.get_by_label(label, exact=True)).to_have_count(0)
    simple = page.locator(".caption").first.inner_text()
    page.get_by_label("expert").check()
    settled(page, "expert=1")
    for label in ("Seed", "Learning rate", "Rows of the batch", "biases", "activation before the weights"):
        expect(page.get_by_label(label, exact=True)).to_be_visible()
    expect(page.locator(".caption").first).not_to_have_text(simple)
    page.get_by_label("expert").uncheck()
    expect(page.get_by_label("Seed", exact=True)).to_have_count(0)
    page.wait_for_function("() => !location.hash.includes('expert')")


def test_without_biases_the_lines_are_others(visit: Visit) -> None:
    page = visit("expert=1&depth=20&init=pytorch_default")
    drawn(page)
    changes(page, lambda: use(page, "biases", False))
    settled(page, "bias=0")


def test_each_view_has_its_own_figures(visit: Visit) -> None:
    page = visit("depth=10")
    figures = page.locator(".stage .plot")
    expect(figures).to_have_count(2)
    for view, named, key in (
        ("signal", "Signal forward", "view=signal"),
        ("gradient", "Gradient backward", "view=gradient"),
        ("first update", "First update", "view=update"),
    ):
        page.get_by_role("radio", name=view, exact=True).check()
        settled(page, key)
        expect(figures).to_have_count(1)
        expect(figures).to_have_attribute("aria-label", re.compile(f"^{named}"))
        expect(page.get_by_role("button", name="Play backward")).to_have_count(int(view == "gradient"))
    page.get_by_role("radio", name="both", exact=True).check()
    expect(figures).to_have_count(2)
    page.wait_for_function("() => !location.hash.includes('view')")


def test_connections_stand_in_the_order_in_which_they_were_chosen(visit: Visit) -> None:
    page = visit("depth=10&connections=residual")
    expect(page.get_by_label("residual", exact=True)).to_be_disabled()  # one stays
    for label in ("highway", "plain"):
        use(page, label, True)
    settled(page, "connections=residual,highway,plain")
    rows = page.locator(".told tbody th")
    expect(rows).to_have_text(["residual", "highway", "plain"])
    use(page, "residual", False)
    use(page, "residual", True)
    expect(rows).to_have_text(["highway", "plain", "residual"])


def test_what_is_more_than_a_slider_reaches_can_be_typed(visit: Visit) -> None:
    page = visit("expert=1&depth=10&seed=123456")
    drawn(page)
    seed = page.get_by_label("Seed, exactly")
    expect(seed).to_have_value("123456")
    expect(page.get_by_role("slider", name="Seed", exact=True)).to_have_attribute("aria-valuetext", "123,456")
    changes(page, lambda: seed.fill("5000"))
    settled(page, "seed=5000")
    seed.fill("1000000")
    seed.blur()
    expect(page.get_by_role("alert")).to_have_text("A whole number from 0 to 999,999, not 1000000.")
    assert "seed=5000" in link(page)


def test_a_slider_of_factors_goes_by_equal_factors(visit: Visit) -> None:
    page = visit("depth=10")
    slider = page.get_by_role("slider", name="Gain of the weights", exact=True)
    slider.focus()
    found = []
    for _ in range(2):
        before = link(page)
        page.keyboard.press("PageUp")
        page.wait_for_function("before => location.hash !== before", arg=before)
        found.append(float(page.get_by_label("Gain of the weights, exactly").input_value()))
    assert found[0] > 1
    assert found[1] / found[0] == pytest.approx(found[0], rel=0.02)


def test_the_gradient_is_played_by_keys(visit: Visit) -> None:
    page = visit("depth=20", reduced_motion="reduce")
    drawn(page)
    button = page.get_by_role("button", name="Play backward")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".front")).to_have_count(1)
    figure = page.get_by_role("slider", name="Gradient backward")
    expect(figure).to_have_attribute("aria-valuenow", "20")
    page.keyboard.press("Space")
    expect(figure).to_have_attribute("aria-valuenow", "18")


def test_theory_is_named_only_where_it_is_drawn(visit: Visit) -> None:
    page = visit("depth=10&connections=plain,highway")
    expect(page.locator(".key").first).to_contain_text("predicted by theory")
    use(page, "plain", False)
    expect(page.locator(".plot .predicted")).to_have_count(0)
    expect(page.locator(".key").first).not_to_contain_text("predicted by theory")


def test_no_chart_is_drawn_before_anything_is_computed(visit: Visit) -> None:
    page = visit("tab=time", prepare=lambda page: page.add_init_script(SILENT))
    page.locator(".figure[aria-busy=true]").wait_for()
    expect(page.get_by_role("status")).to_have_text(["computing …"])
    assert page.locator(".figure .plot").count() == 0
    page = visit("tab=time&cells=gru&timeSteps=10")
    expect(page.locator(".figure .plot")).to_have_count(1)


def test_a_theory_that_leaves_the_measured_is_cut_and_that_is_said(visit: Visit) -> None:
    page = visit("tab=time&cells=rnn&recurrentGain=1.6&timeSteps=200")
    drawn(page)
    told = re.compile(r"RNN, theory: \d+ values \(\d+ steps back to 200 steps back\) lie above the axis")
    expect(page.locator(".figure .missing")).to_have_text(told)
    box, line = boxes(page, page.locator(".figure .plot"), page.locator(".plot .measured .line"))
    assert line["height"] > 0.2 * box["height"]  # and not 0.06, as with the whole of it
    use(page, "Recurrent gain, exactly", 0.9)
    expect(page.locator(".figure .missing")).to_have_count(0)


@pytest.mark.parametrize(
    ("label", "value", "key"),
    [
        ("Seed, exactly", 7, "seed=7"),
        ("Units, exactly", 12, "units=12"),
        ("Forget bias, exactly", 3, "forgetBias=3"),
        ("Recurrent gain, exactly", 0.3, "recurrentGain=0.3"),
        ("orthogonal recurrent weights", True, "orthogonal=1"),
        ("RNN", False, "cells=gru"),
    ],
)
def test_a_control_of_time_changes_its_figure(visit: Visit, label: str, value: Any, key: str) -> None:
    page = visit("tab=time&expert=1&cells=rnn,gru&timeSteps=20")
    drawn(page)
    changes(page, lambda: use(page, label, value))
    settled(page, key)


def test_the_seed_of_mixing_draws_other_matrices(visit: Visit) -> None:
    page = visit("tab=mixing&expert=1&depth=10")
    drawn(page)
    before = page.locator(".mixes svg").first.get_attribute("aria-label")
    changes(page, lambda: use(page, "Seed, exactly", 4))
    expect(page.locator(".mixes svg").first).not_to_have_attribute("aria-label", before)


def test_mixing_names_its_colours_and_draws_no_rounding(visit: Visit) -> None:
    page = visit("tab=mixing&spread=0.5")
    expect(page.locator("main")).to_contain_text("Blue is above zero, brown (orange on a dark page) below.")
    colours = page.locator(".mixes rect").evaluate_all(
        "all => all.map(one => [one.classList.contains('negative'), getComputedStyle(one).fill])"
    )
    assert {tuple(one) for one in colours} == {(False, "rgb(11, 106, 140)"), (True, "rgb(148, 47, 2)")}
    figure = page.get_by_role("figure", name="How far sums are from 1")
    expect(figure.locator(".plot .measured .line")).to_have_count(1)
    expect(figure).to_contain_text("8.9×10⁻¹⁶ or less do so by the rounding of float64, and are not drawn: rows")
    for tick in figure.locator(".tick").all_text_contents():
        assert not re.match("10⁻¹[⁰-⁹¹²³]", tick), tick


TRAINING = {
    "Width, exactly": (8, "trainWidth=8"),
    "Learning rate (AdamW), exactly": (0.01, "trainLr=0.01"),
    "Activation": ("tanh", "trainActivation=tanh"),
    "Normalisation": ("none", "trainNorm=none"),
    "Seed, exactly": (3, "seed=3"),
}


def test_what_is_trained_is_what_experts_chose(visit: Visit) -> None:
    page = visit("tab=train&expert=1&trainDepth=2&trainSteps=20&trainWidth=12&connections=residual")
    told = []
    for label, (value, key) in {"": ("", ""), **TRAINING}.items():
        if label:
            use(page, label, value)
            settled(page, key)
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("button", name="Train again").wait_for()
        told += sentences(page)
    assert len(set(told)) == 1 + len(TRAINING), told  # every one of them trains another network
    use(page, "Steps, exactly", 24)
    page.get_by_text("2 layers, 24 steps of 32 digits").wait_for()


LESSONS = [  # a chapter, predictions that its figure asks for, and a control with what it is set to
    (1, "a:0.1", {"Activation": "tanh", "Weights times, exactly": 3, "Depth, exactly": 3}),
    (2, "a:1e-9", {"Activation": "tanh", "Weights times, exactly": 3, "Depth, exactly": 9}),
    (
        3,
        "a:0.5,b:0,c:0,d:0",
        {"Initialisation": "he", "Activation": "tanh", "Weights times, exactly": 2, "Depth, exactly": 9},
    ),
    (
        4,
        "b:0,c:1",
        {
            "residual": False,
            "Normalisation": "layer",
            "normalise and activate before the weights": True,
            "Initialisation": "glorot",
        },
    ),
    (6, "d:5,e:0", {"GRU": False, "Forget bias, exactly": 4, "Sequence length, exactly": 40}),
    (
        7,
        "a:3,b:0,c:0",
        {
            "Distance from the start, exactly": 0.5,
            "Streams, exactly": 3,
            "Depth, exactly": 9,
        },
    ),
]


@pytest.mark.parametrize(("chapter", "answers", "controls"), LESSONS, ids=[f"chapter {one[0]}" for one in LESSONS])
def test_every_control_of_a_lesson_changes_its_figure(
    visit: Visit, chapter: int, answers: str, controls: dict[str, Any]
) -> None:
    page = visit(f"tab=lessons&chapter={chapter}&answers={','.join(f'{chapter}.{one}' for one in answers.split(','))}")
    drawn(page)
    for key in [one.split(":")[0] for one in answers.split(",")]:
        page.locator(f"[data-question={key}] .verdict").wait_for()
    rests(page)  # what was predicted is drawn too
    for label, value in controls.items():
        own = page.get_by_role("group", name="Settings of the figure").filter(has=page.get_by_label(label, exact=True))
        changes(page, lambda own=own, label=label, value=value: use(own.first, label, value))


def test_iterations_move_what_goes_back_in_the_lesson_on_streams(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=7&answers=7.a:3,7.b:0,7.c:0")
    told = page.locator(".beside .reading").first
    expect(told).to_have_text(re.compile(r"mHC has a gain of 1; back to the first layer mHC has 1\.0\d+\."))
    use(page, "Iterations of Sinkhorn, exactly", 1)
    expect(told).to_have_text(re.compile(r"mHC has a gain of 1; back to the first layer mHC has 1\.[1-9]\d*\."))


def test_a_figure_shows_again_what_a_question_asked(visit: Visit) -> None:
    page = visit("tab=lessons&chapter=2&answers=2.b:0.001")
    question = page.locator("[data-question=b]")
    question.locator(".verdict").wait_for()
    gain = page.get_by_label("Weights times, exactly")
    expect(gain).to_have_value("1")  # as the link says
    question.get_by_role("button", name="Show in the figure").click()
    settled(page, "lesson=gain:8")
    expect(gain).to_have_value("8")
    use(page, "Weights times, exactly", 2)
    settled(page, "lesson=gain:2")
    before = picture(page)
    question.get_by_role("button", name="Show in the figure").click()
    expect(gain).to_have_value("8")
    page.wait_for_function(
        "before => [...document.querySelectorAll('.plot .line')].map(one => one.getAttribute('d')).join('|') != before",
        arg=before,
    )
