"""The page of a watched run, from what the writers of signals left."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_page import HOSTILE, Page

from levada.report import render_report, write_html
from levada.report.grid import MAX_COLUMNS, MAX_ROWS, Grid, Row, gather
from levada.report.heat import NUM_LEVELS, heat
from levada.report.watch import watch_view
from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal
from levada.runs.codes import encode
from levada.runs.segments import Cut, Place, salvaged
from levada.watching.bundle import Bundle, write_bundle

NAMES = ("signal_rms", "gradient_rms", "update_ratio", "nonfinite", "gradient_nonfinite")


def write_watch(
    folder: Path, *, depth: int = 12, samples: int = 40, ranks: int = 1, stages: bool = False, noise: float = 0.05
) -> Path:
    """Write a run: the gradient falls to the input, is zero at block 1 of the middle sample, and ends in no number."""
    with RunWriter.create(folder, kind="watch", name="train.py", config={"every": 20}) as writer:
        writer.append("loss", steps=list(range(20 * samples)), values=[2.0 / (1 + i) for i in range(20 * samples)])
        fired = {
            "rule": "vanishing_gradient",
            "severity": "error",
            "status": "fired",
            "claim": "From layers.9 to layers.0 the gradient shrinks by five decades.",
            "where": {"first": "layers.0", "last": "layers.3"},
            "evidence": {"decades": 5.0},
        }
        spike = {"rule": "loss_spike", "severity": "warn", "claim": "The loss rose to 4.1.", "where": {}}
        writer.append("finding", step=200, **spike, status="fired")
        writer.append("finding", step=300, **spike, status="clear")
        writer.append("finding", step=400, **fired)
        write_bundle(folder, Bundle(400, "vanishing_gradient", "why"))
        writer.append("bundle", step=400, path="bundles/step-000400-vanishing_gradient")
        writer.append("overhead", step=20 * samples, share=0.0042)
        writer.append("end", steps=20 * samples, samples=samples, dropped=3, problem=None)
    for rank in range(ranks):
        draw = random.Random(rank)
        start = depth * rank if stages else 0
        sites = [{"name": f"layers.{start + i}", "order": i, "kind": "Block"} for i in range(depth)]
        with SignalWriter(folder, rank=rank, sites=sites, signals=NAMES) as signals:
            for j in range(samples):
                gradient = [10 ** (-6 + 3 * i / depth + draw.gauss(0, noise)) for i in range(depth)]
                if j == samples // 2:
                    gradient[1] = 0.0
                last = float(j == samples - 1)
                rows = {
                    "signal_rms": [1.0 + 0.1 * i for i in range(depth)],
                    "gradient_rms": gradient,
                    "update_ratio": [1e-3] * depth,
                    "nonfinite": [0.0] * depth,
                    "gradient_nonfinite": [last * (i == depth - 1) for i in range(depth)],
                }
                signals.append(20 * j, float(j), b"".join(encode(rows[name]) for name in NAMES), {"loss": 1.0})
                if j % 200 == 199:
                    signals.flush(30.0)
    return folder


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    return write_watch(tmp_path / "run")


def test_the_step_of_a_watched_run_is_not_called_the_first_of_the_optimizer(tmp_path: Path) -> None:
    evidence = {"law": 0.94, "first_update_ratio": 2e-5, "samples": 3}
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
        writer.append(
            "finding", step=60, rule="vanishing_gradient", severity="warn", status="fired", where={}, evidence=evidence
        )
    run = Run(tmp_path / "run")
    (finding,) = watch_view(run, "run", list(run.events()))["findings"]
    assert finding["evidence"][1:] == [
        ("what one factor for all blocks explains of the change", "94 %"),
        ("first of these blocks, optimizer's step / weights", "2.00×10⁻⁵"),
        ("samples in a row on which it held", "3"),
    ]


def test_the_page_says_what_was_found_what_it_cost_and_what_was_lost(watched: Path) -> None:
    page = Page(render_report([watched]))
    words = " ".join(page.text.split())
    assert "The learning signal dies on its way back through layers.0 to layers.3." in words
    assert "steps80040 samples kept" in words
    assert "overhead0.42 %sampled every 20 steps" in words
    assert "blocks12" in words
    for title in ("The loss", "The gradient, by block and step", "The signal, by block and step"):
        assert title in words
    assert "The gradient by block, at some steps" in words
    assert "told at step400" in words
    assert "told at step200 over at step300" in words
    assert "3 samples came faster than they could be written, and were dropped." in words
    assert "bundles/step-000400-vanishing_gradient" in words
    # Evidence is drawn from the blocks as they were when the finding was told.
    assert "The gradient that the rule reads" in words


def test_nan_is_drawn_as_nan_and_inf_as_inf_and_what_was_not_measured_not_at_all(tmp_path: Path) -> None:
    """In the figure of the gradient by block, and in the table of the last sample."""
    sites = [{"name": f"layers.{i}", "order": i, "kind": "Block"} for i in range(6)]
    gradient = [math.nan, math.nan, math.nan, math.inf, math.nan, 1.0]  # the fifth was not measured
    rows = {"signal_rms": [1.0] * 6, "gradient_rms": gradient, "gradient_nonfinite": [1.0] * 4 + [math.nan, 0.0]}
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
        writer.append("loss", steps=[0], values=[math.nan])
    with SignalWriter(tmp_path / "run", sites=sites, signals=tuple(rows)) as signals:
        signals.append(0, 0.0, b"".join(encode(values) for values in rows.values()), {})
    page = render_report([tmp_path / "run"])
    words = " ".join(Page(page).text.split())
    assert "× 3 values are NaN, drawn above the axis." in words
    assert "△ 1 value is infinite, drawn above the axis." in words
    table = watch_view(Run(tmp_path / "run"), "run", list(Run(tmp_path / "run").events()))["table"]
    column = table["head"].index("gradient of the loss")
    assert [row["cells"][column] for row in table["rows"]] == ["NaN", "NaN", "NaN", "∞", "—", "1"]


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("level", ["full", "samples", "tail", "aside"])
def test_damaged_signals_are_told_above_the_figures_with_the_steps_that_are_missing(tmp_path: Path, level: str) -> None:
    sites = [{"name": "layers.0", "order": 0}, {"name": "layers.1", "order": 1}]
    with RunWriter.create(tmp_path / "run", kind="watch", name="hurt") as events:
        events.append("judged", step=0, rules=["loss_spike", "vanishing_gradient"], unjudged={}, waiting=[])
    for start in (0, 10, 20):
        with SignalWriter(tmp_path / "run", sites=sites, signals=["gradient_rms"]) as writer:
            for step in range(start, start + 10):
                writer.append(20 * step, 0.0, encode([0.5, 1.0]), {"loss": 1.0})
                writer.flush(30.0)
            (tail,) = writer.folder.glob("tail-*")
            kept = tail.read_bytes()
    assert "This run is damaged" not in render_report([tmp_path / "run"])
    if level == "tail":
        for path in writer.folder.glob("*-000003-*"):
            path.unlink()
        tail.write_bytes(kept)
        flip(tail, 0.5)
        where = "after step 460 and before step 500"
    elif level == "aside":
        (path,) = writer.folder.glob("full-000002-*")
        path.rename(path.with_suffix(".torn"))
        where = "steps 200 to 380"
    else:
        (path,) = writer.folder.glob(f"{level}-000002-*")
        flip(path, 0.5)
        where = "steps 200 to 380" if level == "full" else "after step 180 and before step 400"
    page = render_report([tmp_path / "run"])
    words = " ".join(Page(page).text.split())
    assert f"Missing or shown in less detail: all series, {where}." in words
    assert "Signals: " in words
    # The doctor says the same, with the file, a line each; after the signals are sealed again, of what is still lost.
    told = f"missing or shown in less detail: {path.name if level == 'full' else ''}"
    lines = [line for line in str(doctor(tmp_path / "run")).splitlines() if told in line]
    assert [line.endswith(f": all series, {where}") for line in lines] == [True], lines
    reseal(tmp_path / "run")
    left = [lost for rank in doctor(tmp_path / "run").signals for lost in rank.lost]
    assert [lost.taken for lost in left] == [lost.taken for lost in Run(tmp_path / "run").signals().lost()] != []
    for lost in left:
        assert f"missing or shown in less detail: {lost.file}: {lost.taken}" in str(doctor(tmp_path / "run"))
        assert lost.taken in " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert page.index("This run is damaged") < page.index('<dl class="facts">') < page.index("<figure")
    assert "The learning signal reached every block, in what can be read." in words


def test_steps_whose_detail_is_lost_are_drawn_once_as_the_mean_that_they_are(tmp_path: Path) -> None:
    sites = [{"name": "layers.0", "order": 0}, {"name": "layers.1", "order": 1}]
    with RunWriter.create(tmp_path / "run", kind="watch", name="hurt") as events:
        events.append("judged", step=0, rules=["loss_spike"], unjudged={}, waiting=[])
    with SignalWriter(tmp_path / "run", sites=sites, signals=["gradient_rms"]) as writer:
        for step in range(10):
            writer.append(20 * step, 0.0, encode([0.5 + step, 1.0]), {"loss": 1.0})

    def labels() -> list[str]:
        return re.findall(r"(?:mean of steps|step) [\d,]+(?: to [\d,]+)?", render_report([tmp_path / "run"]))

    assert "step 60" in labels()
    (path,) = writer.folder.glob("full-000001-*")
    flip(path, 0.5)
    assert "mean of steps 0 to 180" in labels()
    assert "step 60" not in labels()


@pytest.mark.parametrize(("level", "other_bytes"), [("by16", False), ("by16", True), ("full", False)])
def test_a_damaged_copy_beside_a_good_file_is_no_damage_of_the_run(
    watched: Path, level: str, other_bytes: bool
) -> None:
    (path,) = (watched / "signals" / "rank-00000").glob(f"{level}-*")
    whole = render_report([watched])
    flip(path, 0.5)  # of the full detail, where only statistics stand
    reseal(watched)
    (torn,) = path.parent.glob("*.torn")
    if other_bytes:  # as another version of pyarrow makes them
        torn = torn.rename(torn.with_name("by16-000001-0badc0de.parquet.2.torn"))
    page = render_report([watched])
    note = f"Damaged copies lie beside the signals, and nothing is missing by them: {torn.name}."
    assert "This run is damaged" not in page
    assert Page(page).text.replace(note, "").split() == Page(whole).text.split()
    assert note in Page(page).text


def hurt_and_mended(run: Path, level: str, lost: int) -> Path:
    """Damage the file of a level so that so many of its series cannot be kept, seal it again; give the old file."""
    (path,) = (run / "signals" / "rank-00000").glob(f"{level}-*")
    signals = Run(run).signals()
    good, cut = path.read_bytes(), Cut.of(level, signals.steps, len(signals.sites))
    for at in range(0, len(good), 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        if len(salvaged(Place(path, level, 1, -1), cut, len(signals.names))[1]) == lost:
            break
    assert any(f"{level}: {len(signals.names) * len(signals.sites) - lost:,} of " in told for told in reseal(run))
    return max(path.parent.glob(f"{level}-*.torn"), key=lambda torn: torn.stat().st_mtime_ns)


def test_what_was_sealed_again_with_all_that_it_held_is_not_missing(watched: Path) -> None:
    torn = hurt_and_mended(watched, "full", lost=0)
    page = render_report([watched])
    assert "This run is damaged" not in page
    assert f"nothing is missing by them: {torn.name}." in " ".join(Page(page).text.split())


def test_of_what_was_sealed_again_in_part_the_lost_series_alone_are_missing(watched: Path) -> None:
    signals = Run(watched).signals()
    torn = hurt_and_mended(watched, "full", lost=len(signals.sites))  # those of one signal lie together
    (gone,) = [name for name in signals.names if all(map(math.isnan, Run(watched).signals().read(name)[0]))]
    words = " ".join(Page(render_report([watched])).text.split())
    where = f"{gone} of all blocks, steps {signals.steps[0]} to {signals.steps[-1]}"
    told = f"{torn.name} was damaged, and is moved aside. Missing or shown in less detail: {where}."
    assert f"Signals: {told}" in words
    assert f"  missing or shown in less detail: {torn.name}: {where}" in str(doctor(watched)).splitlines()
    # What is made again of the full detail lacks by now what that lacks.
    coarse = hurt_and_mended(watched, "by16", lost=0)
    words = " ".join(Page(render_report([watched])).text.split())
    assert f"{coarse.name} was damaged, and is moved aside. Missing or shown in less detail: {where}." in words


def test_of_samples_whose_steps_alone_are_known_again_the_times_and_scalars_are_missing(watched: Path) -> None:
    (path,) = (watched / "signals" / "rank-00000").glob("samples-*")
    flip(path, 0.5)
    reseal(watched)
    words = " ".join(Page(render_report([watched])).text.split())
    told = "Missing or shown in less detail: times and scalars, steps 0 to 780."
    assert f"{path.name}.torn was damaged, and is moved aside. {told}" in words
    assert f"{path.name}.torn: times and scalars, steps 0 to 780" in str(doctor(watched))


@pytest.mark.parametrize(("frame", "where"), [(0, ""), (2, "after step 0 and before step 40")])
def test_of_a_tail_that_was_sealed_without_a_sample_that_one_alone_is_missing(
    tmp_path: Path, frame: int, where: str
) -> None:
    RunWriter.create(tmp_path, kind="watch", name="hurt").close()
    with SignalWriter(tmp_path, sites=[{"name": "0", "order": 0}], signals=["gradient_rms"]) as writer:
        for step in (0, 20, 40):
            writer.append(step, 0.0, encode([0.5]), {"loss": 1.0})
            writer.flush(30.0)
        (tail,) = writer.folder.glob("tail-*")
        kept = tail.read_bytes()
    for path in writer.folder.glob("*-000001-*"):
        path.unlink()
    starts = [match.start() for match in re.finditer(re.escape(kept[8:12]), kept)]
    at = starts[frame] + 15
    tail.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
    reseal(tmp_path)
    words = " ".join(Page(render_report([tmp_path])).text.split())
    assert ("This run is damaged" in words) == bool(where)
    assert not where or f"Missing or shown in less detail: all series, {where}." in words


def test_a_damaged_log_is_told_above_the_figures_with_the_steps_that_are_missing(watched: Path) -> None:
    flip(watched / "events.log", 0.995)
    words = " ".join(Page(render_report([watched])).text.split())
    assert "its checksum differs. Missing: what it told after step 400." in words
    with RunWriter.open(watched) as writer:
        writer.append("loss", steps=[900, 901], values=[1.0, 1.0])
    page = render_report([watched])
    assert page.index("moved to events.torn-1. Missing: what it told after step 400 and before step 900.") < page.index(
        "<figure"
    )


def test_each_damage_of_a_mended_log_is_told_with_its_own_steps(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="hurt twice") as writer:
        for step in range(20):
            writer.append("loss", steps=[step], values=[1.0])
    for step in (6, 14):
        content = bytearray((tmp_path / "events.log").read_bytes())
        content[content.index(f"[{step}]".encode())] ^= 1
        (tmp_path / "events.log").write_bytes(content)
    reseal(tmp_path)
    words = " ".join(Page(render_report([tmp_path])).text.split())
    moved = "bytes could not be read, and were moved to events.torn-1."
    first = f"{moved} Missing: what it told after step 5 and before step 7. Of what follows, 12 events could be kept."
    assert re.search(rf"The event log: 5\d {re.escape(first)}", words)
    second = f"{moved} Missing: what it told after step 13 and before step 15. Of what follows, 5 events could be kept."
    assert re.search(rf"The event log: 5\d {re.escape(second)}", words)


def test_a_log_of_which_no_event_was_lost_says_so(watched: Path) -> None:
    content = (watched / "events.log").read_bytes()
    (watched / "events.log").write_bytes(b"\0" + content[1:])
    reseal(watched)
    words = " ".join(Page(render_report([watched])).text.split())
    assert "8 bytes could not be read, and were moved to events.torn-1. No event is missing." in words
    (watched / "events.log").write_bytes(b"")
    RunWriter.open(watched).close()
    words = " ".join(Page(render_report([watched])).text.split())
    assert "The event log: it was empty. Missing: what it told there." in words


def test_heat_pictures_tell_in_words_what_they_show(watched: Path) -> None:
    page = Page(render_report([watched]))
    told = [dict(attrs) for tag, attrs in page.tags if tag == "svg" and "cells" in (dict(attrs).get("class") or "")]
    assert len(told) == 2
    gradient = str(told[0]["aria-label"])
    assert gradient.startswith("gradient, root mean square per element by block and step; lowest ")
    assert re.search(r"lowest \d\S* at layers\.0, step \d+; highest \d\S* at layers\.1\d, step \d+", gradient)
    assert gradient.endswith("1 of 480 cells exactly zero; 1 of 480 cells NaN or infinite")
    assert told[0]["viewbox"] == "0 0 40 12"


def cells_of(drawn: str, rows: int, columns: int) -> list[list[str]]:
    """Read the picture back: the level of each cell."""
    found = [["" for _ in range(columns)] for _ in range(rows)]
    body = drawn[drawn.index('class="cells"') :]
    for level, path in re.findall(r'<path class="(h\w+)" d="([^"]+)"/>', body):
        for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
            for j in range(int(x), int(x) + int(length)):
                assert found[int(y)][j] == ""
                found[int(y)][j] = level
    return found


def test_a_heat_picture_holds_every_cell_once() -> None:
    draw = random.Random(0)
    values = (math.nan, math.inf, -math.inf, -5.0, -4.9, 0.0, -2.5)
    cells = tuple(tuple(draw.choice(values) for _ in range(23)) for _ in range(7))
    names = tuple((f"b{i}", f"b{i}") for i in range(7))
    grid = Grid(names, tuple((j, j) for j in range(23)), cells)
    levels = {math.inf: "hx", -math.inf: "hz", -5.0: "h0", -4.9: "h0", 0.0: f"h{NUM_LEVELS - 1}", -2.5: "h8"}
    wanted = [["" if math.isnan(v) else levels[v] for v in row] for row in cells]
    assert cells_of(heat(grid, "gradient"), 7, 23) == wanted


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40, 101, 200])
def test_labels_of_a_heat_picture_are_as_far_apart_as_their_cells(count: int) -> None:
    grid = Grid((("a", "a"),), tuple((20 * j, 20 * j) for j in range(count)), ((0.0,) * count,))
    drawn = heat(grid, "gradient")
    items = re.findall(r"<li>(?:<span[^>]*>([^<]*)</span>)?</li>", drawn[drawn.index("heat-columns") :])
    labelled = [j for j, text in enumerate(items) if text]
    assert len(items) == count
    assert labelled[0] == 0
    assert len({b - a for a, b in pairwise(labelled)}) <= 1
    assert min(count, 3) - 1 <= len(labelled) <= 5
    assert all(items[j] == f"{20 * j:,}" for j in labelled)


def test_what_hardly_changes_looks_as_if_it_hardly_changes() -> None:
    grid = Grid((("a", "a"), ("b", "b")), ((0, 0),), ((0.0,), (0.1,)))
    levels = {cells_of(heat(grid, "signal"), 2, 1)[i][0] for i in range(2)}
    assert levels in ({"h7"}, {"h8"}, {"h7", "h8"})


@pytest.mark.parametrize("sites", [1, MAX_ROWS, MAX_ROWS + 1, 1000])
@pytest.mark.parametrize("steps", [1, MAX_COLUMNS, MAX_COLUMNS + 1, 777])
def test_merging_keeps_the_size_and_hides_nothing_bad(sites: int, steps: int) -> None:
    def values(j: int) -> list[float]:
        return [0.0 if (i, j) == (sites // 3, steps // 3) else 100.0 for i in range(sites)]

    bad = [0.0] * (sites - 1) + [0.5]
    rows = [Row(2 * j, 2 * j, values(j), bad if j == steps - 1 else ()) for j in range(steps)]
    grid = gather([f"b{i}" for i in range(sites)], rows, steps)
    assert len(grid.rows) <= MAX_ROWS
    assert len(grid.columns) <= MAX_COLUMNS
    assert grid.columns[0][0] == 0
    assert grid.columns[-1][1] == 2 * (steps - 1)
    assert grid.rows[-1][1] == f"b{sites - 1}"
    assert grid.count(math.inf) == 1
    assert grid.cells[-1][-1] == math.inf
    assert grid.count(-math.inf) == (0 if (sites, steps) == (1, 1) else 1)
    rest = {cell for row in grid.cells for cell in row if math.isfinite(cell)}
    assert all(cell == pytest.approx(2.0) for cell in rest)


def test_a_stretch_shows_the_zeros_and_infinities_that_its_mean_hides() -> None:
    rows = [Row(0, 300, [1.0, 1.0, 1.0], (), [0.0, 0.5, 0.5], [2.0, math.inf, 2.0])]
    assert gather(["a", "b", "c"], rows, 1).cells == ((-math.inf,), (math.inf,), (0.0,))


def test_what_was_not_measured_is_left_empty() -> None:
    rows = [Row(0, 0, [math.nan, 1.0], [math.nan, 0.0]), Row(20, 20, [10.0, math.nan], [0.0, math.nan])]
    grid = gather(["a", "b"], rows, 2)
    assert [[repr(cell) for cell in row] for row in grid.cells] == [["nan", "1.0"], ["0.0", "nan"]]


def test_the_largest_page_stays_small(tmp_path: Path) -> None:
    # Noise, in which hardly any neighbours are alike.
    folder = write_watch(tmp_path / "run", depth=240, samples=400, noise=2.0)
    size = write_html([folder], tmp_path / "page.html").stat().st_size
    assert 200_000 < size < 1_000_000


def test_of_equal_ranks_the_first_is_shown_with_the_spread(tmp_path: Path) -> None:
    run = Run(write_watch(tmp_path / "run", ranks=3))
    view = watch_view(run, "mine", list(run.events()))
    titles = {drawn["title"]: drawn for drawn in view["figures"]}
    assert {"label": "processes", "value": "3", "note": ""} in view["facts"]
    assert "Of the first of 3 processes" in titles["The gradient, by block and step"]["caption"]
    profile = titles["The gradient by block, at some steps"]
    assert "range over 3 processes" in profile["caption"]
    assert profile["svg"].count('class="whisker') == 2 * 11  # in both drawings, at all blocks but the last, no number


def test_stages_follow_each_other(tmp_path: Path) -> None:
    run = Run(write_watch(tmp_path / "run", ranks=2, stages=True))
    view = watch_view(run, "mine", list(run.events()))
    assert len(view["table"]["rows"]) == 24
    assert view["table"]["rows"][-1]["site"] == "layers.23"
    (gradient,) = (drawn["svg"] for drawn in view["figures"] if drawn["title"].startswith("The gradient, by"))
    assert 'viewBox="0 0 40 24"' in gradient
    assert cells_of(gradient, 24, 40)[13][20] == "hz"


def test_a_run_without_a_sample_says_so(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="short"):
        pass
    words = " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert "Too few samples to judge." in words


def test_a_run_is_shown_while_it_is_written_and_when_nothing_was_found(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sites = [{"name": "layers.0", "order": 0}, {"name": "layers.1", "order": 1}]
    with (
        RunWriter.create(folder, kind="watch", name="goes on") as events,
        SignalWriter(folder, sites=sites, signals=["gradient_rms"]) as writer,
    ):
        for step in (0, 7, 14, 20):
            writer.append(step, 0.0, encode([0.5, 1.0]), {"loss": 1.0 / (1 + step), "overhead": 0.003})
        writer.flush(30.0)
        words = " ".join(Page(render_report([folder])).text.split())
        assert "The record does not say which rules judged it." in words
        why = {"lost_update": "2 more samples are needed", "dead_units": "there are no zeros"}
        events.append("judged", step=13, rules=["loss_spike"], unjudged=why, waiting=["lost_update"])
        assert "Not judged: 2 more samples are needed." in " ".join(Page(render_report([folder])).text.split())
        few = ["lost_update"]
        events.append("judged", step=14, rules=["loss_spike"], unjudged=why, waiting=few, few=few)
        assert "Too few samples to judge." in " ".join(Page(render_report([folder])).text.split())
        events.append("judged", step=19, rules=["loss_spike"], unjudged=why, waiting=[])
        assert "The rules that could judge it found nothing." in " ".join(Page(render_report([folder])).text.split())
        rules = ["loss_spike", "lost_update", "vanishing_gradient"]
        events.append("judged", step=20, rules=rules, unjudged=why, waiting=[])
        words = " ".join(Page(render_report([folder])).text.split())
    assert "The learning signal reached every block." in words
    assert "Not judged: lost_update: 2 more samples are needed; dead_units: there are no zeros." in words
    assert "overhead0.3 %sampled every 6 to 7 steps" in words
    assert "loss0.0476at step 0: 1" in words


def test_a_finding_that_comes_again_is_told_again(tmp_path: Path) -> None:
    rule = {
        "rule": "loss_spike",
        "severity": "warn",
        "claim": "The loss rose.",
        "where": {},
        "evidence": {"told_at": 60},
    }
    with RunWriter.create(tmp_path / "run", kind="watch", name="again") as writer:
        for step, status in ((10, "fired"), (20, "fired"), (30, "clear"), (40, "clear"), (50, "fired")):
            told = {**rule, "evidence": {"told_at": step}}
            writer.append("finding", step=step + 7, **told, status=status)  # the record may hear of it later
        for i in range(40):
            writer.append("finding", step=60, **{**rule, "rule": f"rule_{i}"}, status="fired")
            writer.append("finding", step=70, **{**rule, "rule": f"rule_{i}"}, status="clear")
    run = Run(tmp_path / "run")
    view = watch_view(run, "again", list(run.events()))
    assert [one["rule"] for one in view["findings"][:2]] == ["loss_spike", "rule_39"]
    assert view["findings"][0]["evidence"] == [("told at step", "50")]
    assert view["findings"][1]["evidence"] == [("told at step", "60"), ("over at step", "70")]
    assert "18 more findings are over." in view["notes"]
    assert view["verdict"] == "warn"


def test_names_are_escaped(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name=HOSTILE) as writer:
        writer.append("finding", step=0, rule=HOSTILE, severity="error", status="fired", claim=HOSTILE, where={})
    sites = [{"name": f"{HOSTILE}.{i}", "order": i, "kind": HOSTILE} for i in range(3)]
    with SignalWriter(tmp_path / "run", sites=sites, signals=["gradient_rms"]) as signals:
        for step in (0, 20):
            signals.append(step, 0.0, encode([1.0, 0.1, 0.01]), {})
    page = Page(render_report([tmp_path / "run"]))
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()


CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_in_a_browser_the_pictures_have_their_colours_and_nothing_is_cut(
    browser: Any, watched: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    file = write_html([watched], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.eval_on_selector_all("svg.cells", "all => all.map(one => [one.clientWidth, one.clientHeight])")
    assert len(boxes) == 2
    assert all(0.5 * min(width, 900) < wide <= width and high > 200 for wide, high in boxes)
    colours = page.eval_on_selector_all(
        "svg.cells path", "all => Object.fromEntries(all.map(one => [one.classList[0], getComputedStyle(one).stroke]))"
    )
    assert len(set(colours.values())) == len(colours) > 8
    labels = page.eval_on_selector_all(
        ".heat-columns span",
        "all => all.filter(l => l.checkVisibility()).map(l => l.getBoundingClientRect()).map(b => [b.left, b.right])",
    )
    for (_, right), (left, _) in pairwise(labels):
        assert right < left or left < right - 100  # they do not touch; the next picture begins anew
    for axis, end in (("columns", "left"), ("rows", "top")):
        ends = page.eval_on_selector_all(
            ".heat",
            """(all, [axis, end]) => all.map(one => {
                const box = one.querySelector("svg.cells").getBoundingClientRect(), size = axis == "rows" ? box.height
                    : box.width, items = [...one.querySelectorAll(`.heat-${axis} li`)];
                return [items.length, items.map(li => (li.getBoundingClientRect()[end] - box[end]) / size)];
            })""",
            [axis, end],
        )
        for count, places in ends:
            assert count == {"columns": 40, "rows": 12}[axis]
            assert all(abs(place - i / count) < 0.01 for i, place in enumerate(places))
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    page.close()


def test_a_watched_run_whose_name_is_a_number_is_named_after_its_training(tmp_path: Path) -> None:
    folders = [tmp_path / "mine" / "watch" / number for number in ("1", "2")]
    for folder in folders:
        RunWriter.create(folder, kind="watch", name=folder.name).close()
    words = Page(render_report(folders)).text
    assert all(f"mine/watch/{number}" in words for number in ("1", "2"))


def test_numbers_that_are_no_steps_break_no_page(tmp_path: Path) -> None:
    odd = ("inf", "nan", "-inf", 10**400, "x", None, [1])
    with RunWriter.create(tmp_path / "run", kind="watch", name="odd") as writer:
        writer.append("loss", steps=[0, 1, 2], values=[3.0, 2.0, 1.0])
        for i, (came, over) in enumerate((came, over) for came in odd for over in (..., *odd)):
            told = {"rule": "loss_spike", "severity": "warn", "claim": "It rose.", "where": {}, "case": f"{i}"}
            writer.append("finding", step=came, **told, status="fired")
            if over is not ...:
                writer.append("finding", step=over, **told, status="clear")
        kept = {"rules": 5, "unjudged": [], "waiting": {}, "few": [[1]], "lacking": {"samples": "inf", "losses": 1e300}}
        writer.append("judged", step="inf", **kept, first="inf", stages=[10**30, "a", -1], num_stages="inf")
    run = Run(tmp_path / "run")
    sites = [{"name": "a", "order": 0}, {"name": "b", "order": 1}]
    with SignalWriter(tmp_path / "run", sites=sites, signals=["gradient_rms"]) as signals:
        signals.append(0, 0.0, encode([1.0, 1.0]), {})
    view = watch_view(run, "odd", list(run.events()))
    assert view["verdict"] == "warn"
    assert not any("told at step" in row[0] for one in view["findings"] for row in one["evidence"])
    assert "It rose." in render_report([tmp_path / "run"])


def test_what_was_not_sampled_is_not_called_healthy(tmp_path: Path) -> None:
    with (
        RunWriter.create(tmp_path / "run", kind="watch", name="early") as events,
        SignalWriter(tmp_path / "run", sites=[{"name": "a", "order": 0}], signals=["gradient_rms"]) as signals,
    ):
        for step in range(5):
            signals.append(step, 0.0, encode([1.0]), {})
        events.append("loss", steps=list(range(100)), values=[1.0] * 100)
        events.append("judged", step=4, rules=["loss_spike", "vanishing_gradient"], unjudged={}, waiting=[])
    words = " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert "healthy up to step 4 of 100, not ended" in words
    assert "reached every block up to step 4 of 100; what came after was not sampled" in words
    assert "5 samples kept, the last of step 4" in words


def test_no_share_is_drawn_of_what_samples_only_flag(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="nan") as writer:
        writer.append(
            "finding", step=20, rule="numerical_overflow", severity="error", status="fired", claim="NaN.", where={}
        )
    run = Run(tmp_path / "run")
    assert watch_view(run, "nan", list(run.events()))["findings"][0]["picture"] is None


def test_the_loss_of_steps_that_are_lost_is_a_gap_and_is_named(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="train.py") as writer:
        writer.append("loss", steps=list(range(40)), values=[2.0 - step / 100 for step in range(40)])
        writer.append("loss", steps=list(range(80, 99)), values=[1.0] * 19)
    with SignalWriter(tmp_path / "run", sites=[{"name": "0", "order": 0}], signals=["signal_rms"]) as signals:
        signals.append(0, 0.0, encode([1.0]), {})
    page = render_report([tmp_path / "run"])
    assert len(re.findall(r'<path class="line measured c0 thick" d="[^"]*"><title>', page)) == 4  # two, wide and narrow
    assert "The line is broken where losses are missing: steps 40 to 79." in page


def test_the_losses_of_a_spike_and_of_a_first_step_have_words_of_their_own(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="spiked") as writer:
        for rule in ("loss_spike", "exploding_gradient"):
            evidence = {"loss_before": 2.5, "loss_peak": 7.25} if rule == "loss_spike" else {"loss_before": 1.5}
            told = {"claim": f"a claim of {rule}", "where": {}, "evidence": evidence}
            writer.append("finding", step=200, rule=rule, severity="warn", status="fired", **told)
    words = " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert "median of the losses before the jump2.5 largest loss of the jump7.25" in words
    assert "loss before the optimizer's first step1.5" in words
    assert words.count("optimizer's first step") == 1
