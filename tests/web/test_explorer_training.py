"""The tab that trains, in a browser: degradation as it happens, a sweep that is stopped, lesions, paths, weights."""

from __future__ import annotations

import math
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
from tests.web.visiting import expect, rests

pytestmark = needs_page
__all__ = ["browser", "visit"]

SMALL = "tab=train&trainDepth=6&trainSteps=60&trainWidth=12"


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def trained(page: Any) -> None:
    press(page, "Train")
    page.get_by_role("button", name="Train again").wait_for(timeout=120_000)


# How many layers have been taken away, as the page says it.
FAR = "/mHC ([0-9]+) of 48 layers/.exec(document.querySelector('.progress')?.innerText)?.[1] ?? '0'"


def pressed_at(page: Any, name: str, when: str) -> None:
    """Let the page itself press a button as soon as something holds: its workers do not wait for this test."""
    page.evaluate(
        f"""name => {{
          const holds = {when};
          const observer = new MutationObserver(() => {{
            const button = [...document.querySelectorAll('button')].find(one => one.innerText === name);
            if (!button || !holds()) return;
            observer.disconnect();
            button.click();
          }});
          observer.observe(document.body, {{ subtree: true, childList: true, characterData: true }});
        }}""",
        name,
    )


def table(page: Any, section: str) -> list[list[str]]:
    """The numbers beside a figure, opened."""
    region = page.get_by_role("region", name=section, exact=True)
    region.get_by_text("Numbers", exact=True).click()
    region.locator("details tr").nth(1).wait_for()
    expect(region.locator("details [aria-busy=true]")).to_have_count(0)  # where it comes in pieces
    return [row.locator("th, td").all_inner_texts() for row in region.locator("details tr").all()]


def test_the_defaults_show_degradation_while_it_happens(visit: Visit) -> None:
    page = visit("tab=train")
    press(page, "Train")
    stop = page.get_by_role("button", name="Stop", exact=True)
    stop.wait_for()
    # Live: there is a sentence before the last step.
    page.wait_for_selector(".reading")
    page.get_by_role("button", name="Train again").wait_for(timeout=120_000)
    (sentence,) = sentences(page)
    assert "plain has learned nothing yet" in sentence
    of_each = r" has a training loss of ([\d.]+) and knows ([\d.]+)\s%"
    found = re.search(f"plain{of_each}.*residual{of_each}", sentence)
    assert found is not None
    plain_loss, plain_accuracy, residual_loss, residual_accuracy = map(float, found.groups())
    assert plain_loss > 0.9 * math.log(10)
    assert residual_loss < 0.3
    assert residual_accuracy > 80 > 20 > plain_accuracy
    rows = table(page, "Training")
    names = ("plain", "residual")
    series = [(part, what) for part in ("training", "held out") for what in ("loss", "accuracy in %")]
    assert rows[0] == ["step", *[f"{name}, {what}, {part}" for part, what in series for name in names]]
    assert [row[0] for row in rows[1:]] == [str(step) for step in range(6, 301, 6)]
    assert numbers(rows[-1][2])[0] == pytest.approx(residual_loss, rel=0.01)


def test_a_training_is_stopped_and_resumed(visit: Visit) -> None:
    page = visit("tab=train&trainDepth=24&trainSteps=400&connections=residual")
    pressed_at(page, "Stop", "() => document.querySelector('.reading')")
    press(page, "Train")
    page.get_by_role("button", name="Resume", exact=True).wait_for()
    step = numbers(sentences(page)[0])[1]
    assert 0 < step < 400
    press(page, "Resume")
    page.get_by_role("button", name="Train again").wait_for(timeout=120_000)
    assert "after 400 steps" in sentences(page)[0]


def test_a_sweep_fills_in_is_stopped_and_resumed(visit: Visit) -> None:
    page = visit("tab=train&trainSteps=200")
    press(page, "Sweep")
    region = page.get_by_role("region", name="Sweep over depth")
    region.locator(".plot").wait_for()
    press(page, "Stop the sweep")
    status = region.get_by_role("status")
    page.get_by_role("button", name="Resume the sweep").wait_for()
    done, total = numbers(status.inner_text())
    assert 0 < done < total == 12
    press(page, "Resume the sweep")
    page.get_by_role("button", name="Sweep again").wait_for(timeout=240_000)
    rows = table(page, "Sweep over depth")
    assert rows[0] == [
        "depth, layers",
        "plain, training",
        "residual, training",
        "plain, held out",
        "residual, held out",
    ]
    assert [row[0] for row in rows[1:]] == ["2", "4", "8", "16", "32", "64"]
    plain, residual = ([numbers(row[place])[0] for row in rows[1:]] for place in (1, 2))
    # Without the skip the deepest learns nothing, on the very digits that it is trained on; with it, it does.
    assert plain[-1] > 0.9 * math.log(10) > plain[0]
    assert residual[-1] < plain[-1] / 2
    assert any(sentence.startswith("plain") and sentence.endswith("degradation.") for sentence in sentences(page))


def test_blocks_are_taken_away_by_mouse_and_keys_and_put_back(visit: Visit) -> None:
    page = visit(SMALL + "&connections=residual")
    trained(page)
    region = page.get_by_role("region", name="Take blocks away")
    found = region.locator(".found")

    def after(words: str) -> float:
        page.wait_for_function("words => document.querySelector('.found').innerText.startsWith(words)", arg=words)
        return numbers(found.inner_text().split(":")[1])[1]

    whole = after("All layers run")
    first = region.get_by_role("button", name="Layer 1", exact=True)
    first.click()
    expect(first).to_have_attribute("aria-pressed", "false")
    without = after("The network without layer 1:")
    assert without != whole
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    both = after("The network without layer 1 and 2:")
    assert both != without
    press(page, "All back")
    assert after("All layers run") == whole
    region.get_by_label("Swap place").fill("2")
    region.get_by_label("with", exact=True).fill("5")
    press(page, "Swap")
    assert after("The network in another order") != whole
    order = [button.inner_text() for button in region.get_by_role("toolbar").get_by_role("button").all()]
    assert order == ["1", "5", "3", "4", "2", "6"]


def test_what_is_seen_inside_agrees_with_itself(visit: Visit) -> None:
    page = visit(SMALL)
    trained(page)
    lesions = page.get_by_role("region", name="Each block taken away")
    lesions.locator(".plot").wait_for()
    page.wait_for_function("() => document.querySelectorAll('section[aria-label^=Each] > p').length === 2")
    rows = table(page, "Each block taken away")
    assert rows[0][1:] == ["plain", "plain, whole", "residual", "residual, whole"]
    region = page.get_by_role("region", name="Take blocks away")
    region.get_by_role("button", name="Layer 3", exact=True).click()
    page.wait_for_function("() => document.querySelector('.found').innerText.includes('without layer 3')")
    # The one that is taken away by hand, and the same of all.
    assert numbers(region.locator(".found").inner_text())[1] == pytest.approx(numbers(rows[3][3])[0], abs=0.06)
    paths = table(page, "Paths")
    shares = [numbers(row[1])[0] for row in paths[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    counts = [numbers(row[2])[0] for row in paths[1:]]
    assert counts == pytest.approx([100 * math.comb(6, k) / 64 for k in range(7)], rel=1e-3)
    text = page.get_by_role("region", name="Paths", exact=True).inner_text()
    mean = sum(length * share / 100 for length, share in enumerate(shares))
    assert numbers(text[text.index("Effective depth") :])[0] == pytest.approx(mean, abs=0.02)
    assert "All 64 paths were followed" in text
    # Plain networks have no such paths, and say so.
    page.get_by_role("radio", name="plain", exact=True).check()
    paths_of_plain = page.get_by_role("region", name="Paths", exact=True)
    expect(paths_of_plain).to_contain_text("Paths are counted in a residual network")


def test_weights_are_images_with_numbers(visit: Visit) -> None:
    page = visit(SMALL + "&connections=residual")
    trained(page)
    region = page.get_by_role("region", name="Weights", exact=True)
    region.locator("canvas").first.wait_for()
    expect(region.get_by_role("img", name=re.compile(r"Weights of unit \d+"))).to_have_count(12)
    assert region.locator("canvas").first.evaluate("one => [one.width, one.height]") == [8, 8]
    painted = "one => new Set(one.getContext('2d').getImageData(0, 0, one.width, one.height).data).size"
    assert region.locator("canvas").first.evaluate(painted) > 20
    region.get_by_role("slider").fill("4")
    expect(region.get_by_role("img", name=re.compile("Weight matrix of layer 4"))).to_be_visible()
    looked = region.get_by_role("img", name=re.compile(r"What unit \d+ of layer 4 looks for"))
    expect(looked).to_have_count(12)
    assert looked.first.locator("canvas").evaluate(painted) > 20
    rows = table(page, "Weights")
    assert rows[1][:2] == ["stem.weight", "12 × 64"]
    assert len(rows) == 1 + 7 + 12 + 12
    # A residual network passes the first layer's view on: deeper units still look at pixels, and all of them differ.
    patterns = rows[-12:]
    assert {len(row) for row in patterns} == {1 + 64}
    assert len({tuple(row[1:]) for row in patterns}) == 12
    region.get_by_label("only what training changed").check()
    page.wait_for_function(
        "() => document.querySelector('section[aria-label=Weights] p').innerText.startsWith('How training')"
    )
    changed = [row.locator("td").all_inner_texts() for row in region.locator("details tr").all()[1:8]]
    # Training moved every matrix, by less than what it started from.
    assert all(0 < numbers(row[1])[0] < numbers(before[2])[0] for row, before in zip(changed, rows[1:8], strict=True))


def test_settings_are_kept_in_the_link_and_make_old_networks_go(visit: Visit) -> None:
    page = visit(SMALL)
    trained(page)
    page.get_by_label("Depth, exactly").fill("8")
    settled(page, "trainDepth=8")
    page.get_by_role("button", name="Train", exact=True).wait_for()
    assert sentences(page) == []
    page.get_by_label("highway").check()
    settled(page, "highway")
    again = visit(page.evaluate("location.hash.slice(1)"))
    expect(again.get_by_label("Depth, exactly")).to_have_value("8")
    trained(again)
    assert "highway" in sentences(again)[0]


# Answers of what units look for are held, to be told when the test says so.
LATE = """
  window.late = []
  window.Worker = class extends Worker {
    addEventListener(type, told) {
      super.addEventListener(type, (event) => {
        if (event.data?.type === "preferred") window.late.push(() => told(event))
        else told(event)
      })
    }
  }
"""


def test_an_answer_for_a_figure_that_has_gone_is_not_read(visit: Visit) -> None:
    page = visit(SMALL + "&connections=residual", prepare=lambda page: page.add_init_script(LATE))
    trained(page)
    page.wait_for_function("window.late.length > 0")
    page.get_by_label("Depth, exactly").fill("8")
    expect(page.get_by_role("region", name="Weights", exact=True)).to_have_count(0)
    page.evaluate("window.late.forEach(tell => tell())")
    rests(page)  # and nothing is said on the console


def test_held_out_digits_are_another_measure(visit: Visit) -> None:
    page = visit(SMALL + "&connections=residual")
    trained(page)
    header, *rows = table(page, "Training")
    last = dict(zip(header[1:], (numbers(one)[0] for one in rows[-1][1:]), strict=True))
    legends = page.get_by_role("region", name="Training", exact=True).locator(".legend")
    for part, label in (("training", "the digits it trains on"), ("held out", "held-out digits")):
        page.get_by_role("radio", name=label).check()
        for measure, legend in (("loss", legends.first), ("accuracy in %", legends.last)):
            shown = f"{last[f'residual, {measure}, {part}']:.3g}"
            expect(legend.get_by_role("listitem").filter(has_text="residual")).to_have_text(f"residual {shown}")
    # What is held out is another set of digits, of which the page says how many the network knows.
    assert last["residual, loss, held out"] != last["residual, loss, training"]
    (sentence,) = sentences(page)
    assert f"and knows {last['residual, accuracy in %, held out']:.3g}\u00a0% of the held-out digits" in sentence


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm ci in web")
def test_axe_finds_nothing_wrong_and_nothing_is_wider_than_a_phone(visit: Visit, width: int) -> None:
    page = visit(SMALL + "&expert=1", width=width)
    trained(page)
    page.locator("canvas").first.wait_for()
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations_by_scheme(page) == {}


def test_taking_each_layer_away_says_how_far_it_is_and_can_be_stopped(visit: Visit) -> None:
    page = visit("tab=train&trainDepth=48&trainSteps=20&trainWidth=32&connections=manifold")
    twice = f"() => {{ (window.far ??= new Set()).add({FAR}); return window.far.size > 2 }}"  # 0, and two more
    pressed_at(page, "Stop taking away", twice)
    trained(page)
    region = page.get_by_role("region", name="Each block taken away")
    status = region.get_by_role("status")
    expect(status).to_contain_text("mHC")
    expect(status).to_contain_text("stopped")
    expect(region.get_by_role("alert")).to_have_count(0)
    # The worker is free: another question is answered.
    blocks = page.get_by_role("region", name="Take blocks away")
    blocks.get_by_role("button", name="Layer 3", exact=True).click()
    page.wait_for_function("() => document.querySelector('.found').innerText.includes('without layer 3')")
    stopped = status.inner_text()
    page.wait_for_timeout(300)
    assert status.inner_text() == stopped
    page.evaluate("window.far.clear()")
    pressed_at(page, "Stop taking away", twice)
    press(page, "Begin again")
    expect(status).to_contain_text("stopped")
