"""The tab through time, in a browser: cells over each other, what changes them, what is named, keys and a phone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.web.explorer_page import (
    AXE,
    Visit,
    browser,
    needs_page,
    numbers,
    sentences,
    settled,
    violations_by_scheme,
    visit,
)
from tests.web.visiting import boxes, expect

from levada import theory

pytestmark = needs_page
__all__ = ["browser", "visit"]


def horizons(page: Any) -> dict[str, list[str]]:
    """The table of horizons: cell -> measured, theory, gates alone, mean gate, factor per step."""
    rows = page.get_by_role("region", name="Memory horizons").locator("tbody tr")
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows.all()}


def computed(page: Any, cells: int = 3) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('.after tbody tr').length === count"
        " && document.querySelector('.figure[aria-busy=false]')",
        arg=cells,
    )


def test_three_cells_with_the_horizons_that_theory_has(visit: Visit) -> None:
    page = visit("tab=time&precision=float64")
    computed(page)
    found = horizons(page)
    assert list(found) == ["RNN", "LSTM", "GRU"]
    # Near zero a tanh network as PyTorch draws it is 3^(-1/2) per step, and an LSTM's gates alone have their bias.
    assert float(found["RNN"][1]) == pytest.approx(theory.memory_horizon(3**-0.5), abs=0.1)
    gate = 1 / (1 + 2.718281828**-1.0)
    assert float(found["LSTM"][2]) == pytest.approx(theory.memory_horizon(gate), rel=0.1)
    assert f"1/1000 after {theory.memory_horizon(gate):.1f} steps" in page.locator(".controls").inner_text()
    # Measured: states are not zero, so that slopes are smaller.
    assert float(found["RNN"][0]) < float(found["RNN"][1])
    assert float(found["LSTM"][0]) > 2 * float(found["RNN"][0])
    expect(page.locator(".reading")).to_have_count(3)


def test_the_forget_bias_sets_the_memory_and_a_link_keeps_it(visit: Visit) -> None:
    page = visit("tab=time&cells=lstm")
    computed(page, 1)
    before = float(horizons(page)["LSTM"][0])
    page.get_by_label("Forget bias, exactly").fill("2")
    settled(page, "forgetBias=2")
    page.wait_for_function(
        "before => !document.querySelector('.after tbody td').innerText.startsWith(before)", arg=f"{before:g}"
    )
    after = horizons(page)["LSTM"]
    assert float(after[0].split(",")[0]) > 2 * before
    again = visit(page.evaluate("location.hash.slice(1)"))
    computed(again, 1)
    assert horizons(again)["LSTM"] == after


def test_underflow_is_named_and_float64_has_none(visit: Visit) -> None:
    page = visit("tab=time&cells=rnn")
    computed(page, 1)
    (sentence,) = sentences(page)
    assert "the gradient is zero: it has left the range of float32" in sentence
    assert re.search(r"\d+ values .* are exactly zero", page.locator(".figure").inner_text())
    page.get_by_label("float64").check()
    settled(page, "precision=float64")
    page.wait_for_function("() => !document.querySelector('.reading').innerText.includes('range of')")
    expect(page.locator(".figure")).not_to_contain_text("exactly zero")


def test_five_hundred_steps_and_every_control(visit: Visit) -> None:
    page = visit("tab=time&expert=1&timeSteps=500")
    computed(page)
    expect(page.locator(".figure .legend")).to_contain_text("500 steps back")
    page.get_by_label("GRU").uncheck()
    page.get_by_label("orthogonal recurrent weights").check()
    page.get_by_label("Recurrent gain, exactly").fill("1.2")
    page.get_by_label("Units, exactly").fill("16")
    page.get_by_label("Sequence length, exactly").fill("120")
    for key in ("cells=rnn,lstm", "orthogonal=1", "recurrentGain=1.2", "units=16", "timeSteps=120"):
        settled(page, key)
    computed(page, 2)
    page.wait_for_function("() => document.querySelector('.figure .legend').innerText.includes('120 steps back')")
    for name in ("LSTM, gates alone", "LSTM, cell", "LSTM, hidden state", "RNN, independent weights", "1/1000"):
        expect(page.locator(".figure .legend")).to_contain_text(name)
    # One cell must stay.
    page.get_by_label("LSTM").uncheck()
    expect(page.get_by_label("RNN", exact=True)).to_be_disabled()


def test_the_numbers_are_those_of_the_curve(visit: Visit) -> None:
    page = visit("tab=time&cells=gru&timeSteps=40&precision=float64")
    computed(page, 1)
    page.get_by_text("Numbers", exact=True).click()
    rows = page.locator(".figure details tbody tr")
    expect(rows).to_have_count(41)
    curve = [numbers(row.locator("td").first.inner_text())[0] for row in rows.all()]
    assert curve[0] == 1
    measured = numbers(horizons(page)["GRU"][0])[0]
    assert curve[int(measured)] >= 1e-3 > curve[int(measured) + 1]


def test_keys_move_along_the_steps(visit: Visit) -> None:
    page = visit("tab=time&cells=gru&timeSteps=40")
    computed(page, 1)
    plot = page.get_by_role("slider", name=re.compile("Gradient by steps back"))
    plot.focus()
    expect(plot).to_have_attribute("aria-valuenow", "40")
    page.keyboard.press("Home")
    expect(plot).to_have_attribute("aria-valuetext", re.compile("^0 steps back: GRU 1;"))
    page.keyboard.press("ArrowRight")
    expect(plot).to_have_attribute("aria-valuenow", "1")


def test_on_a_phone_the_figure_stays_in_view_beside_a_control(visit: Visit) -> None:
    page = visit("tab=time", width=360, height=780)
    computed(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_label("Recurrent gain, exactly").scroll_into_view_if_needed()
    page.get_by_label("Recurrent gain, exactly").fill("0.9")
    box, control = boxes(page, page.locator(".figure .plot"), page.get_by_label("Recurrent gain, exactly"))
    assert 0 <= box["y"] < 780 - box["height"] / 2
    assert control["y"] >= box["y"] + box["height"]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm ci in web")
def test_axe_finds_nothing_wrong(visit: Visit, width: int) -> None:
    page = visit("tab=time&expert=1&timeSteps=60", width=width)
    computed(page)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert violations_by_scheme(page) == {}
