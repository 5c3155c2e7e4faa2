"""What the page of a watched run says of damage: what is missing, and from which steps on."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from tests.report.test_page import Page

from levada.report import render_report
from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal
from levada.runs.codes import encode
from levada.runs.segments import Cut, Place, salvaged


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
