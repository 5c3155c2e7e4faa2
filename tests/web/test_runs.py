"""What is answered of runs: lists, summaries, losses, heat pictures, streams and memory, by numbers that are known."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from levada.report.page import sections_of
from levada.runs import Run, RunWriter, SignalWriter, reseal
from levada.runs.codes import OFFSET, encode
from levada.runs.rank_log import RankLog
from levada.web.folder import stamp
from levada.web.heat import heat_of
from levada.web.pictures import HeatOf
from levada.web.summary import summary_of

from .conftest import (
    HOSTILE,
    PNG,
    SIGNALS,
    SITES,
    STEPS,
    Client,
    gradient,
    np,
    served,
    write_inside,
    write_pictures,
    write_watched,
)


def plane(held: dict[str, Any], name: str) -> Any:
    kind = "u1" if name == "flags" else "<f4"
    found = np.frombuffer(base64.b64decode(held[name]), kind)
    return found.reshape(len(held["sites"]), len(held["steps"]))


def test_the_list_holds_every_run(client: Client) -> None:
    listed = client.runs()
    rows = {row["name"]: row for row in listed["runs"]}
    assert set(rows) == {"watched", "checks/one", "training", "training/watch/1", "study"}
    assert (listed["waiting"], listed["left_out"]) == (0, 0)
    keys = ("kind", "title", "state", "verdict", "steps", "depth", "loss")
    told = {name: tuple(row[key] for key in keys) for name, row in rows.items()}
    assert told["watched"] == ("watch", "mine", "ended", "warn", 400, 5, pytest.approx(0.01))
    assert told["checks/one"] == ("check", HOSTILE, "ended", "warn", 0, 3, None)
    assert told["training"] == ("train", "training", "ended", "warn", 3, 5, "inf")
    assert told["study"] == ("study", "R1", "ended", None, 0, 0, None)
    assert [row["modified"] for row in listed["runs"]] == sorted((r["modified"] for r in rows.values()), reverse=True)
    assert all(not row["problem"] for row in rows.values())


def test_a_summary_says_what_a_watched_run_is(client: Client, root: Path) -> None:
    told = client.json(client.run("watched"))
    assert [site["name"] for site in told["sites"]] == [site["name"] for site in SITES]
    assert told["sites"][0]["shape"] == [4, 8]
    assert [signal["name"] for signal in told["signals"]] == list(SIGNALS)
    assert (told["first_step"], told["last_step"], told["samples"]) == (0, 395, 80)
    assert (told["config"], told["overhead"]) == ({"depth": 5, "lr": "inf"}, 0.0125)
    assert told["versions"] == dict(Run(root / "watched").manifest.versions)
    assert (told["logged"], told["ranks"], told["has"]) == (["accuracy"], [0], ["loss", "heat", "mixing", "gates"])
    (finding,) = told["findings"]
    assert (finding["rule"], finding["severity"], finding["status"]) == ("vanishing_gradient", "warn", "fired")
    assert (finding["first"], finding["last"], finding["came"], finding["over"]) == ("layers.0", "layers.3", 20, None)
    assert {"label": "decay", "value": "0.5", "note": ""} in finding["evidence"]
    assert told["told"] == "The run ended after 400 steps."
    assert told["table"]["total"] == 5
    assert told["damage"] == []


def test_the_last_loss_of_several_processes_is_a_mean_over_all_and_whose_the_others_are_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunWriter.create(path, kind="watch", name="run") as writer:
        writer.append("loss", steps=[0, 1, 2], values=[2.5, 2.0, 1.5], of=0)
        assert summary_of(path, "a" * 20, "run").loss == 1.5  # no mean is known yet
        writer.append("loss", steps=[0, 1], values=[2.25, 1.75], of="all")
        writer.append("loss", steps=[2, 3], values=[1.5, 1.0], of=0)
    summary = summary_of(path, "a" * 20, "run")
    assert (summary.loss, summary.steps) == (1.75, 4)
    assert summary.notes[0] == (
        "The losses are means over all processes; of steps 2 to 3 they are those of process 0 alone, as no sample came "
        "that brings the means."
    )


@pytest.mark.parametrize(("count", "told"), [(0, None), (1, "1 step is"), (2, "2 steps are")])
def test_steps_that_a_run_kept_are_told_with_what_names_them(tmp_path: Path, count: int, told: str | None) -> None:
    path = tmp_path / "run"
    with RunWriter.create(path, kind="watch", name="run") as writer:
        writer.append("loss", steps=[0, 1], values=[2.5, 2.0])
    for step in range(count):
        (path / f"bundles/step-{step:06d}-loss_spike").mkdir(parents=True)
    notes = [note for note in summary_of(path, "a" * 20, "my runs/one").notes if "kept" in note]
    assert notes == ([f"{told} kept, to be run again: `levada replay 'my runs/one'`."] if told else [])


def test_summaries_of_the_other_kinds(client: Client) -> None:
    check = client.json(client.run("checks/one"))
    assert check["has"] == ["mixing", "memory", "drawings"]
    assert check["findings"][0]["rule"] == "short_memory"
    training = client.json(client.run("training"))
    assert training["has"] == ["loss", "held_out"]
    assert training["findings"][0]["claim"].startswith(HOSTILE)
    study = client.json(client.run("study"))
    (claim,) = study["claims"]
    told = ("name", "status", "statement", "criterion", "reason", "seeds")
    assert [claim[key] for key in told] == ["decays", "held", "It decays.", "by 3 %", "It fell by 2 %.", "0"]
    assert claim["numbers"] == [{"label": "slope", "value": "0.5 [0.4, 0.6]", "note": ""}]
    assert (claim["pairs"], claim["compared"]) == ([["tanh", "0.19", "0.2", "0.95"]], "measured / predicted")


def test_a_check_is_drawn_as_the_report_draws_it(client: Client, root: Path) -> None:
    gradient, memory = client.json(client.run("checks/one", "/drawings"))["drawings"]
    (drawn,) = (one for one in sections_of(Run(root / "checks" / "one"))[-1]["view"]["figures"] if one.get("data"))
    assert {key: gradient[key] for key in ("title", "caption", "data", "table")} == {
        key: drawn[key] for key in ("title", "caption", "data", "table")
    }
    assert gradient["table"]["rows"][1] == ["layers.1", "0.5", "0.25"]
    assert (gradient["finding"], memory["finding"]) == (None, 0)
    assert client.json(client.run("watched", "/drawings"), 404)["detail"].startswith("The run has no figures")


def test_pictures_of_a_study_come_in_the_order_of_the_report(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    with served(tmp_path) as client:
        client.runs()
        assert client.json(client.run("pictures"))["has"] == ["drawings"]
        _, headers, body = client.get(client.run("pictures", "/drawings"))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/json"
    assert b"<" not in body
    first, lines, last = json.loads(body)["drawings"]
    assert [one["title"] for one in (first, lines, last)] == ["Edges", "Lines", "Others"]
    (image,) = first["images"]
    assert base64.b64decode(image["png"]) == PNG
    assert (image["label"], image["alternative"]) == ("fused 10^-3", f"Edges, {HOSTILE}")
    assert (image["width"], image["height"], first["missing"]) == (5, 5, "")
    assert (lines["images"], lines["missing"]) == ([], "")
    assert [one["label"] for one in last["images"]] == ["this"]
    assert last["missing"] == "The image “not this” is no PNG in base64, and is not shown. Run its study again."


def test_losses_in_bins(client: Client) -> None:
    held = client.json(client.run("watched", "/loss?bins=40&from=0&to=399"))["training"]
    assert held["first"] == list(range(0, 400, 10))
    assert held["last"] == list(range(9, 400, 10))
    assert held["count"] == [10] * 40
    assert held["nonfinite"] == [1] + [0] * 39
    assert held["low"][1] == pytest.approx(4 - 0.19)
    assert held["high"][1] == pytest.approx(4 - 0.10)
    assert held["mean"][1] == pytest.approx(4 - 0.145)
    assert client.json(client.run("watched", "/loss?from=390&to=391"))["training"]["first"] == [390, 391]
    assert client.json(client.run("watched", "/loss?from=9&to=3"))["training"]["first"] == []
    train = client.json(client.run("training", "/loss"))
    assert train["training"]["mean"] == [3.0, 2.5, None]
    assert (train["held_out"]["first"], train["held_out"]["mean"]) == ([3], [2.75])
    assert client.json(client.run("study", "/loss"))["training"]["count"] == []


def test_heat_in_full_is_every_number(client: Client) -> None:
    held = client.json(client.run("watched", "/heat?signal=gradient_rms"))
    assert held["steps"] == held["last_steps"] == list(STEPS)
    assert held["sites"] == held["last_sites"] == list(range(5))
    mean, low, high, flags = (plane(held, name) for name in ("mean", "low", "high", "flags"))
    for j, step in enumerate(STEPS):
        for i in range(5):
            value = gradient(step, i)
            expected = {0.0: 1, math.inf: 2}.get(value, 4 if math.isnan(value) else 0)
            assert flags[i, j] == expected
            if expected:
                assert np.isnan([mean[i, j], low[i, j], high[i, j]]).all()
            else:
                assert mean[i, j] == low[i, j] == high[i, j] == pytest.approx(math.log10(value))
    assert held["least"] == pytest.approx(math.log10(2.0**-7))
    assert held["greatest"] == 0.0


def test_sites_that_stand_elsewhere_in_a_later_part_keep_their_rows(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "moved", kind="watch", name="moved").close()
    for first, names in ((0, "abcd"), (10, "dbx")):
        sites = [{"name": name, "order": i} for i, name in enumerate(names)]
        with SignalWriter(tmp_path / "moved", sites=sites, signals=["signal_rms"]) as writer:
            for step in range(first, first + 10):
                writer.append(step, 0.0, encode([2.0 ** (ord(name) - 100) for name in names]), {})
    held = heat_of(tmp_path / "moved", HeatOf(signal="signal_rms")).model_dump()
    mean = plane(held, "mean")
    order = [site["name"] for site in Run(tmp_path / "moved").signals().sites]
    assert sorted(order) == ["a", "b", "c", "d", "x"]
    for i, name in enumerate(order):
        for j, step in enumerate(held["steps"]):
            there = name in ("abcd" if step < 10 else "dbx")
            wanted = (ord(name) - 100) * math.log10(2) if there else math.nan
            assert mean[i][j] == pytest.approx(wanted, abs=1e-6, nan_ok=True), (name, step)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (7, 2), (80, 1), (13, 5), (1000, 500)])
def test_merged_cells_are_of_what_is_in_them(
    root: Path, columns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("levada.web.heat._AT_ONCE", 122)  # of two sites: several blocks go to a cell
    asked = HeatOf(signal="gradient_rms", start=50, stop=350, first=1, last=3, columns=columns, rows=rows)
    held = heat_of(root / "watched", asked).model_dump()
    steps = [step for step in STEPS if 50 <= step <= 350]
    assert (len(held["steps"]), len(held["sites"])) == (min(columns, len(steps)), min(rows, 3))
    mean, low, high, flags = (plane(held, name) for name in ("mean", "low", "high", "flags"))
    seen = 0
    for j, (first, last) in enumerate(zip(held["steps"], held["last_steps"], strict=True)):
        for i, (top, bottom) in enumerate(zip(held["sites"], held["last_sites"], strict=True)):
            values = [gradient(s, site) for s in steps if first <= s <= last for site in range(top, bottom + 1)]
            seen += len(values)
            logs = [math.log10(v) for v in values if v and math.isfinite(v)]
            told = (0.0 in values) + 2 * (math.inf in values) + 4 * any(math.isnan(v) for v in values)
            assert flags[i, j] == told
            assert [low[i, j], high[i, j]] == pytest.approx(
                [min(logs), max(logs)] if logs else [math.nan] * 2, nan_ok=True
            )
            assert mean[i, j] == pytest.approx(sum(logs) / len(logs) if logs else math.nan, nan_ok=True, abs=1e-6)
    assert seen == 3 * len(steps)


def test_old_detail_fills_the_columns_that_its_blocks_reach_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_watched(tmp_path / "run")
    next((run / "signals" / "rank-00000").glob("full-*")).unlink()
    held = heat_of(run, HeatOf(signal="gradient_rms", first=4, last=4)).model_dump()
    assert (len(held["steps"]), held["resolution"]) == (80, 1)
    low, high = plane(held, "low")[0], plane(held, "high")[0]
    for j, step in enumerate(STEPS):  # blocks of 16 samples
        block = [math.log10(gradient(s, 4)) for s in STEPS[j // 16 * 16 : j // 16 * 16 + 16]]
        assert (low[j], high[j]) == pytest.approx((min(block), max(block))), step
    whole = heat_of(run, HeatOf(signal="gradient_rms")).model_dump()
    for step, site, told in ((100, 1, 1), (200, 2, 2), (300, 3, 4)):  # the mean of a block hides what is in it
        block = STEPS.index(step) // 16 * 16
        assert set(plane(whole, "flags")[site, block : block + 16]) == {told}
    assert plane(whole, "flags")[0].max() == 0
    monkeypatch.setattr("levada.web.heat._NUMBERS", 25)  # 400 numbers are asked for
    coarse = heat_of(run, HeatOf(signal="gradient_rms")).model_dump()
    assert (coarse["resolution"], len(coarse["steps"])) == (16, 5)


def test_signals_without_a_count_of_what_is_not_finite_say_what_was_not_measured(client: Client) -> None:
    held = client.json(client.run("watched", "/heat?signal=gradient_nonfinite"))
    flags = plane(held, "flags")
    assert set(np.unique(flags)) == {0, 1}
    assert OFFSET == 16381
    held = client.json(client.run("watched", "/heat?signal=nothing"), 404)
    assert held["detail"].endswith("those that it keeps: signal_rms, gradient_rms, gradient_nonfinite.")
    assert client.json(client.run("study", "/heat?signal=gradient_rms"), 404)["detail"].endswith("keeps: none.")
    empty = client.json(client.run("watched", "/heat?signal=gradient_rms&from=9&to=3&first=4&last=2"))
    assert (empty["steps"], empty["sites"], empty["mean"], empty["least"]) == ([], [], "", None)


def test_blocks_that_two_processes_hold_are_one_picture(tmp_path: Path) -> None:
    from levada.runs import SignalWriter
    from levada.runs.codes import encode

    run = write_watched(tmp_path / "run")
    behind = [{"name": f"layers.{i}", "order": i, "kind": "Linear"} for i in range(5, 8)]
    with SignalWriter(run, sites=behind, signals=["gradient_rms"], rank=1) as writer:
        for step in STEPS:
            writer.append(step, 0.0, encode([2.0**-i for i in range(5, 8)]), {})
            writer.flush()
    held = heat_of(run, HeatOf(signal="gradient_rms", first=4, last=6, columns=1)).model_dump()
    assert held["sites"] == [4, 5, 6]
    assert plane(held, "mean")[1:, 0] == pytest.approx([math.log10(2.0**-5), math.log10(2.0**-6)])


def test_what_any_process_appends_is_seen_though_the_first_says_nothing(tmp_path: Path) -> None:
    run = write_inside(write_watched(tmp_path / "run"))
    behind = [{"name": f"layers.{i}", "order": i, "kind": "Linear"} for i in range(5, 8)]

    def seen() -> tuple[Any, Any]:
        return stamp(run), summary_of(run, "a" * 20, "run").modified

    with contextlib.ExitStack() as open_:
        first, second = (
            open_.enter_context(SignalWriter(run, sites=behind, signals=["gradient_rms"], rank=rank, part=part))
            for rank, part in ((1, ""), (2, "gates"))
        )
        log = RankLog(run / "signals" / "rank-00001")
        open_.callback(log.close)

        def append(writer: SignalWriter, step: int) -> None:
            writer.append(step, 0.0, encode([1.0] * 3))
            writer.flush()

        acts: list[Callable[[], None]] = [
            lambda: append(first, 0),
            lambda: append(first, 5),
            lambda: append(second, 0),
            lambda: append(second, 5),
            lambda: log.append("judged", rules=[]),
            lambda: log.append("judged", rules=[]),
        ]
        for act in acts:
            before = seen()
            assert seen() == before
            act()
            assert [a != b for a, b in zip(before, seen(), strict=True)] == [True, True]
        assert summary_of(run, "a" * 20, "run").reached == [395, 5]
    outside = tmp_path / "outside"
    (run / "signals").rename(outside)
    (run / "signals").symlink_to(outside)
    assert stamp(run)[-1] == ()
    (run / "signals").unlink()
    (run / "signals").mkdir()
    (run / "signals" / "rank-00001").symlink_to(outside / "rank-00001")
    assert stamp(run)[-1] == ()


def test_a_run_that_was_rewritten_is_told_from_one_that_grew(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run")
    behind = [{"name": f"layers.{i}", "order": i, "kind": "Linear"} for i in range(5, 8)]

    def seen() -> int:
        return summary_of(run, "a" * 20, "run").rewritten

    assert seen() == 0
    with SignalWriter(run, sites=behind, signals=["gradient_rms"], rank=1) as signals:
        signals.append(0, 0.0, encode([1.0] * 3))
    with contextlib.closing(RankLog(run / "signals" / "rank-00001")) as log:
        log.append("judged", rules=[])
        assert seen() == 0  # it grew
        log.append("continued", step=3)
    assert seen() == 1
    with RunWriter.open(run) as writer:
        writer.append("continued", step=3)
    assert seen() == 2
    with (run / "events.log").open("ab") as file:
        file.write(b"torn")
    RunWriter.open(run).close()
    assert seen() == 3
    with (run / "signals" / "rank-00001" / "verdicts.log").open("ab") as file:
        file.write(b"torn")
    RankLog(run / "signals" / "rank-00001").close()
    reseal(run)
    assert seen() == 4


def test_mixing_and_memory(client: Client) -> None:
    held = client.json(client.run("checks/one", "/mixing"))
    assert (held["steps"], held["step"], held["total"]) == ([0], 0, 2)
    assert held["layers"][0] == {
        "name": "layers.0",
        "matrix": [[1.0, 0.0], [0.5, 0.5]],
        "forward_gain": 1.0,
        "backward_gain": None,
        "row_deviation": None,
        "column_deviation": None,
    }
    assert held["chains"] == [{"layers": ["layers.0", "layers.1"], "forward_gain": 2.0, "backward_gain": "inf"}]
    memory = client.json(client.run("checks/one", "/memory"))
    assert (memory["value"], memory["steps"], memory["predicted"]) == (8.0, 20.0, None)
    (one,) = memory["recurrences"]
    assert (one["memory"], one["drawn"]) == ([1.0, 0.1, 0.01], True)
    for what in ("/mixing", "/gates", "/memory"):
        assert "has no record" in client.json(client.run("training/watch/1", what), 404)["detail"]


@pytest.mark.parametrize(
    "query",
    [
        "loss?bins=0",
        "loss?bins=x",
        "loss?from=-1",
        "loss?steps=3",
        "heat",
        "heat?signal=a&rows=9999",
        "heat?signal=a&b=c",
    ],
)
def test_questions_that_cannot_be_meant_are_told(client: Client, query: str) -> None:
    assert client.json(client.run("watched", f"/{query}"), 422)["detail"].startswith("The question cannot be used. ")


def test_what_is_not_there_is_told(client: Client) -> None:
    for what in ("", "/loss", "/memory"):
        assert f"There is no run {'a' * 20}:" in client.json(f"/api/1/runs/{'a' * 20}{what}", 404)["detail"]
    assert client.json("/api/1/nothing", 404)["detail"] == "There is no such question."


def test_events_tell_of_runs_that_appear_grow_and_end(tmp_path: Path) -> None:
    with served(tmp_path, every=0.05) as client, client.listening() as stream:
        client.json("/api/1/runs")
        assert stream.getheader("content-type", "").startswith("text/event-stream")

        def next_event() -> tuple[str, Any]:
            while not (line := stream.readline()).startswith(b"event:"):
                assert line
            if line == b"event: heartbeat\n":
                return next_event()
            return line.split(b":")[1].strip().decode(), json.loads(stream.readline().removeprefix(b"data:"))

        writer = RunWriter.create(tmp_path / "new", kind="watch", name="new")
        event, row = next_event()
        assert (event, row["name"], row["state"]) == ("appeared", "new", "running")
        writer.append("loss", steps=[0, 1], values=[2.0, 1.0])
        event, row = next_event()
        assert (event, row["steps"], row["loss"]) == ("grew", 2, 1.0)
        writer.append("end", steps=2)
        writer.close()
        while event == "grew":
            event, row = next_event()
        assert (event, row["state"]) == ("ended", "ended")


def test_only_so_many_listen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("levada.web.scanner.MAX_LISTENERS", 2)
    with served(root) as client, client.listening() as first:
        assert first.readline() == b"retry: 2000\n"
        with client.listening() as second:
            assert second.readline() == b"retry: 2000\n"
            status, headers, _ = client.get("/api/1/events")
            assert (status, headers["retry-after"]) == (503, "5")
