"""The mixing matrices of a watched run, as the server gives them and as the page shows them while it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.web.explorer_page import AXE, violations_by_scheme
from torch import nn

import levada
from levada.probe.trace import Site
from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.runs.inside import GATES
from levada.runs.standing import Standing
from levada.watching.measure.coefficients import Taken
from levada.watching.measure.gates import Gated
from levada.watching.measure.mixing import MIXED, Mixed
from levada.watching.measure.sample import Sample
from levada.watching.record.recording import Recording
from levada.web.folder import identity

from .conftest import served
from .live import Served, needs_page, server, visit
from .visiting import browser, expect, visits, wait

__all__ = ["browser", "server", "visit"]


class Told:
    """What a recording asks of a watch."""

    findings: tuple[Any, ...] = ()
    overhead, steps, standing = 0.004, 0, Standing()

    def __init__(self, *names: str) -> None:
        self.sites = tuple(Site(name, i, "Layer", (4, 8), (f"{name}.w",)) for i, name in enumerate(names))


def sample(step: int, *names: str, gain: float = 1.0) -> Sample:
    """A sample whose matrix at layer i and step s is [[1 - s/1000, s/1000], [i/10, 1]]."""
    matrices = tuple(torch.tensor([[1 - step / 1000, step / 1000], [i / 10, 1.0]]) for i in range(len(names)))
    signals = {name: torch.tensor([gain * (k + 1) * 2.0**i for i in range(len(names))]) for k, name in enumerate(MIXED)}
    layers = tuple(f"{name}.connection" for name in names)
    mixing = Mixed(layers, ("HyperConnection",) * len(names), (0,) * len(names), matrices, signals, len(names))
    values = {"gradient_rms": torch.ones(len(names), dtype=torch.float64)}
    return Sample(step, 1.7e9 + step, values, taken=Taken(mixing))


def write_mixed(folder: Path, *names: str, steps: range = range(0, 100, 10), rank: int = 0) -> None:
    recording = Recording(folder, Told(*names), rank=rank)
    for step in steps:
        recording.sampled(sample(step, *names))
    recording.close()


def write_gated(folder: Path) -> None:
    """Write a run with a mean of 0.9 + s / 10,000 at step s, and horizons of 10 and 100 times 2^(s / 10)."""
    recording = Recording(folder, Told("rnn"))
    for i in range(4):
        reach = torch.tensor([10.0 * 2**i, 100.0 * 2**i])
        signals = dict(zip(GATES, torch.stack([*torch.full((3, 2), 0.9 + i / 1000), reach]), strict=True))
        gates = Gated(("rnn[layer 0]", "rnn[layer 1]"), ("LSTM",) * 2, ("forget gate",) * 2, signals, {})
        values = {"gradient_rms": torch.ones(1, dtype=torch.float64)}
        recording.sampled(Sample(10 * i, 1.7e9, values, taken=Taken(None, 0, gates)))
    recording.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    write_mixed(root / "mixed", "layers.0", "layers.1", "layers.2")
    write_gated(root / "gated")
    write_mixed(root / "stages", "a.0", "a.1")
    write_mixed(root / "stages", "b.0", rank=1)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, run=root / "plain", every=1):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return root


def test_the_matrices_of_a_step_are_answered(folder: Path) -> None:
    with served(folder) as client:
        client.runs()
        found = client.json(client.run("mixed", "/mixing?step=47"))
        assert (found["watched"], found["steps"]) == (True, list(range(0, 100, 10)))
        assert (found["step"], found["last_step"], found["total"]) == (40, 40, 3)
        for i, layer in enumerate(found["layers"]):
            assert layer["name"] == f"layers.{i}.connection"
            assert layer["matrix"][0] == pytest.approx([0.96, 0.04], rel=1e-5)
            assert layer["matrix"][1] == pytest.approx([i / 10, 1.0], rel=1e-5)
            assert layer["row_deviation"] == pytest.approx(2.0**i)
            assert layer["backward_gain"] == pytest.approx(4 * 2.0**i, rel=0.003)
        (chain,) = found["chains"]
        assert (chain["layers"][-1], chain["forward_gain"]) == ("layers.2.connection", pytest.approx(12.0, rel=0.003))
        assert client.json(client.run("mixed", "/mixing"))["step"] == 90
        assert client.json(client.run("mixed", "/mixing?step=0"))["step"] == 0


def test_each_process_has_its_own_layers_and_products(folder: Path) -> None:
    with served(folder) as client:
        client.runs()
        found = client.json(client.run("stages", "/mixing"))
        assert [layer["name"] for layer in found["layers"]] == ["a.0.connection", "a.1.connection", "b.0.connection"]
        assert [chain["layers"] for chain in found["chains"]] == [
            ["a.0.connection", "a.1.connection"],
            ["b.0.connection"],
        ]
        assert "mixing" in client.json(client.run("stages"))["has"]


def test_where_there_are_none_it_is_said_why(folder: Path) -> None:
    with served(folder) as client:
        client.runs()
        summary = client.json(client.run("plain"))
        assert "mixing" not in summary["has"]
        assert summary["lacks"]["mixing"] == "The model has no layers that mix streams."
        told = client.json(client.run("plain", "/mixing"), 404)["detail"]
        assert told == "The run has no record of mixing matrices. The model has no layers that mix streams."


def test_gates_are_answered_by_step_to_three_digits_behind_the_point(folder: Path) -> None:
    with served(folder) as client:
        client.runs()
        found = client.json(client.run("gated", "/gates?from=10"))
        assert found["total"] == 2
        for layer, one in enumerate(found["recurrences"]):
            assert (one["site"], one["gate"], one["steps"]) == (f"rnn[layer {layer}]", "forget gate", [10, 20, 30])
            assert one["mean"] == pytest.approx([0.901, 0.902, 0.903], rel=1e-5)
            assert one["horizon"] == pytest.approx([10.0 ** (layer + 1) * 2**i for i in (1, 2, 3)], rel=1e-5)
        assert client.json(client.run("gated", "/gates?points=2"))["recurrences"][0]["steps"] == [0, 30]
        assert client.json(client.run("gated"))["has"] == ["heat", "gates"]
        told = client.json(client.run("mixed", "/gates"), 404)["detail"]
        assert told == "The run has no record of gates. The model has no recurrence with gates."


def test_a_run_that_is_not_there_is_named_as_it_was_asked_for_and_the_folder_is_not(folder: Path) -> None:
    with served(folder) as client:
        client.runs()
        for asked in ("nosuch", identity("gone")):
            told = client.json(f"/api/1/runs/{asked}", 404)["detail"]
            assert asked in told
            assert folder.name not in told


def test_a_run_that_was_seen_to_a_step_is_called_healthy_up_to_there(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "seen", kind="watch", name="seen") as writer:
        writer.append("judged", step=0, rules=["loss_spike"], unjudged={}, waiting=[])
        writer.append("loss", steps=list(range(300)), values=[1.0] * 300)
        with SignalWriter(tmp_path / "seen", sites=[{"name": "a", "order": 0}], signals=["signal_rms"]) as signals:
            for step in range(0, 203, 2):
                signals.append(step, 1.7e9, encode([1.0]), {})
        writer.append("end", steps=300)
    with served(tmp_path) as client:
        (row,) = client.runs()["runs"]
        assert (row["verdict"], row["until"]) == ("healthy", "up to step 202 of 300")


FIRST = ".mixes svg >> nth=0"


def shows(page: Any, rows: str) -> None:
    expect(page.locator(FIRST)).to_have_attribute("aria-label", f"layers.0.connection, rows: {rows}")


@pytest.mark.usefixtures("browser")
class TestPage:
    pytestmark = needs_page

    def test_a_link_shows_a_step_and_keys_go_to_others(self, visit: Any, server: Served) -> None:
        page = visit(server.run("mixed", "?step=40"))
        slider = page.get_by_role("slider", name="Step", exact=True)
        expect(slider).to_have_attribute("aria-valuetext", "step 40")
        shows(page, "0.96 0.04; 0 1")
        slider.press("ArrowRight")
        shows(page, "0.95 0.05; 0 1")
        wait(page, lambda: "step=50" in page.url)
        slider.press("Home")
        shows(page, "1 0; 0 1")
        slider.press("End")
        shows(page, "0.91 0.09; 0 1")
        wait(page, lambda: "step=" not in page.url)
        figure = page.locator("figure", has=page.get_by_role("heading", name="Matrices by layer, step 90"))
        figure.locator("summary").click()
        expect(figure.locator("tbody tr")).to_have_count(3)
        expect(figure.locator("tbody tr").nth(2)).to_contain_text("layers.2.connection")
        expect(page.locator("figure", has_text="How far the sums of rows and columns are from 1")).to_have_count(1)

    def test_a_run_without_says_why(self, visit: Any, server: Served) -> None:
        page = visit(server.run("plain"))
        expect(page.locator("main")).to_contain_text("No mixing matrices. The model has no layers that mix streams.")
        expect(page.locator("main")).to_contain_text("No gates. The model has no recurrence with gates.")

    def test_of_two_runs_the_matrices_of_both_are_shown_each_with_its_name(self, visit: Any, server: Served) -> None:
        page = visit(server.run("mixed", f"?with={identity('stages')}&step=40"))
        for name, layers in (("mixed", 3), ("stages", 3)):
            figure = page.get_by_role("figure", name=f"Matrices of {name} by layer, step 40", exact=True)
            expect(figure.locator(".mixes svg")).to_have_count(layers)
        expect(page.locator("main")).to_contain_text("No gates of stages. The model has no recurrence with gates.")

    def test_of_two_runs_one_without_gates_says_so_beside_those_of_the_other(self, visit: Any, server: Served) -> None:
        page = visit(server.run("plain", f"?with={identity('gated')}"))
        expect(page.get_by_role("figure", name="Gates of gated", exact=True)).to_be_visible()
        expect(page.locator("main")).to_contain_text("No gates of plain.")

    def test_horizons_and_gates_are_shown_by_step(self, visit: Any, server: Served) -> None:
        page = visit(server.run("gated"))
        for name, row in (("Memory horizon", ["30", "80", "800"]), ("Gates", ["30", "0.903", "0.903"])):
            figure = page.get_by_role("figure", name=name, exact=True)
            figure.locator("summary").click()
            expect(figure.locator("tbody tr").last.locator("th, td")).to_have_text(row)

    @pytest.mark.parametrize("run", ["mixed", "gated"])
    def test_axe_finds_nothing_and_no_screen_is_too_small(self, visit: Any, server: Served, run: str) -> None:
        if not AXE.exists():
            pytest.skip("axe-core is not installed: cd web && npm ci")
        page = visit(server.run(run, "?step=20"), width=360)
        page.locator("h2", has_text="streams" if run == "mixed" else "gates").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        assert violations_by_scheme(page) == {}

    def test_a_run_that_is_written_is_followed(self, browser: Any, tmp_path: Path) -> None:
        names = ("layers.0", "layers.1")
        recording = Recording(tmp_path / "grows", Told(*names))
        for step in (0, 10):
            recording.sampled(sample(step, *names))
        assert recording.flush()
        served = Served(tmp_path)
        try:
            with visits(browser, f"http://127.0.0.1:{served.port}/", "h1", height=900) as visit:
                page = visit(f"#/run/{identity('grows')}")
                shows(page, "0.99 0.01; 0 1")
                recording.sampled(sample(20, *names))
                recording.sampled(Sample(21, 1.7e9, {}, {}, ((20, 1.0), (21, 1.0))))
                assert recording.flush()
                expect(page.locator(FIRST)).to_have_attribute(
                    "aria-label", "layers.0.connection, rows: 0.98 0.02; 0 1", timeout=30_000
                )
                page.get_by_role("slider", name="Step", exact=True).press("Home")
                shows(page, "1 0; 0 1")
                page.get_by_role("button", name="Follow the last").click()
                shows(page, "0.98 0.02; 0 1")
        finally:
            recording.close()
            served.kill()
