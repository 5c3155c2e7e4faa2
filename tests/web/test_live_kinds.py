"""The live page of a check, a study, a training, and a run whose last sample is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.web.folder import identity

from .conftest import HOSTILE, write_check, write_pictures, write_study, write_training
from .live import Served, needs_page, server, visit
from .visiting import Visit, boxes, browser, expect, wait

__all__ = ["browser", "server", "visit"]
pytestmark = needs_page


def write_broken(folder: Path) -> None:
    """Write a run whose gradient is NaN from layer 3 on at the last of its samples, of step 90."""
    sites = [{"name": f"layers.{i}", "order": i} for i in range(6)]
    signals = ["signal_rms", "gradient_rms", "gradient_nonfinite"]
    with RunWriter.create(folder, kind="watch", name=folder.name) as writer:
        writer.append("loss", steps=list(range(100)), values=[2.0] * 100)
        with SignalWriter(folder, sites=sites, signals=signals) as held:
            for step in range(0, 100, 10):
                broken = [float(step == 90 and i >= 3) for i in range(6)]
                gradient = [math.nan if one else 0.5**i for i, one in enumerate(broken)]
                held.append(step, 1.7e9 + step, encode([1.0] * 6 + gradient + broken), {})
                held.flush()
        writer.append("end", steps=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    write_check(root / "checked")
    write_check(root / "again")
    write_study(root / "study")
    write_pictures(root / "pictures")
    write_training(root / "training")
    write_broken(root / "broken")
    return root


def test_a_check_is_shown_with_its_figures_and_their_numbers(visit: Visit, server: Served) -> None:
    page = visit(server.run("checked"))
    figure = page.get_by_role("figure", name="The gradient, block by block", exact=True)
    cursor = figure.get_by_role("slider")
    cursor.focus()
    page.keyboard.press("End")
    for text in ("layers.2", "measured", "0.25", "predicted by theory", "0.0625"):
        expect(figure.locator(".legend")).to_contain_text(text)
    heard: list[str] = []
    page.on("request", lambda request: heard.append(request.url))
    with RunWriter.open(server.root / "checked") as writer:
        writer.append("note")  # what is shown is asked for again, and the cursor stays where it is
    wait(page, lambda: any(url.endswith("/drawings") for url in heard))
    expect(page.locator("main")).to_contain_text("checked")
    expect(figure.locator(".legend")).to_contain_text("layers.2")
    figure.locator("summary").click()
    expect(figure.locator("thead th")).to_have_text(["block", "measured", "predicted by theory"])
    expect(figure.locator("tbody tr").nth(1).locator("th, td")).to_have_text(["layers.1", "0.5", "0.25"])
    finding = page.locator("article", has_text="It forgets.")
    expect(finding.get_by_role("figure")).to_have_count(1)  # what its rule read


def test_pictures_of_a_study_are_shown_with_words_for_who_does_not_see_them(visit: Visit, server: Served) -> None:
    page = visit(server.run("pictures"))
    headings = page.get_by_role("figure").locator("h2")
    expect(headings).to_have_text(["Edges", "Lines", "Others"])
    images = page.get_by_role("figure").get_by_role("img", name=f"Edges, {HOSTILE}", exact=True)
    expect(images).to_have_count(2)
    size = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert [image.evaluate(size) for image in images.all()] == [[5, 5], [5, 5]]
    edges = page.get_by_role("figure", name="Edges", exact=True)
    expect(edges.get_by_role("listitem")).to_have_text(["fused 10\N{MINUS SIGN}3"])
    expect(edges.locator("figcaption")).to_have_text("Black: an edge.")
    expect(page.get_by_role("figure", name="Others", exact=True)).to_contain_text("“not this” is no PNG")


def test_two_checks_stand_beside_each_other(visit: Visit, server: Served) -> None:
    page = visit(server.run("checked", f"?with={identity('again')}"), 1440)
    figures = []
    for name in ("checked", "again"):
        figure = page.get_by_role("figure", name=f"The gradient, block by block: {name}", exact=True)
        figure.get_by_role("slider").wait_for()
        figures.append(figure)
    first, second = boxes(page, *figures)
    assert first["x"] + first["width"] <= second["x"]
    assert first["y"] == pytest.approx(second["y"], abs=1)


def test_a_claim_says_when_it_holds_and_why_it_ended_so(visit: Visit, server: Served) -> None:
    card = visit(server.run("study")).locator("article")
    for text in ("✓ held", "It decays.", "It holds if by 3 %", "Here: It fell by 2 %.", "Seeds 0."):
        expect(card).to_contain_text(text)
    expect(card.locator("tbody tr").first.locator("th, td")).to_have_text(["tanh", "0.19", "0.2", "0.95"])
    expect(card.locator(".pairs tr")).to_have_text(["slope0.5 [0.4, 0.6]"])


def test_a_training_is_called_as_its_newest_watched_run_and_says_how_it_stands(visit: Visit, server: Served) -> None:
    page = visit(server.run("training"))
    expect(page.locator(".eyebrow").first.locator(".badge")).to_have_text(["! warning", "ended"])


def test_lines_by_layer_begin_at_the_last_sample_that_is_finite_and_say_so(visit: Visit, server: Served) -> None:
    page = visit(server.run("broken"))
    told = page.locator(".passed")
    expect(told).to_contain_text("The last sample, of step 90, holds NaN or infinity: by layer, step 80 is shown")
    figure = page.get_by_role("figure", name="By layer, at step 80", exact=True)
    figure.locator("summary").click()
    expect(figure.locator("tbody tr").nth(4)).to_contain_text("0.0625")
    told.get_by_role("button", name="Show step 90").click()
    expect(page.get_by_role("figure", name="By layer, at step 90", exact=True)).to_contain_text("NaN")
    expect(told).to_have_count(0)
