"""The page of a watched run, from what the writers of signals left."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from tests.report.test_page import HOSTILE, Page
from tests.report.watched import cells_of, write_watch

from levada.report import render_report
from levada.report.standing import headline_read
from levada.report.watch import watch_view
from levada.runs import Run, RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.runs.standing import Standing


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


def test_a_headline_gives_the_first_reason_in_few_words_and_the_line_below_all_of_it(tmp_path: Path) -> None:
    lost = "the loss is 1.059 and was 0.6376 at its best, and what is measured does not tell why"
    why = {"wrong_loss": lost, "a": "no loss was seen", "b": "no loss was seen", "c": "no block ran", "d": "no step"}
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as events:
        events.append("loss", steps=[0, 1], values=[1.0] * 2)
        events.append("judged", step=1, rules=["loss_spike"], unjudged=why, waiting=["wrong_loss"])
        events.append("end", steps=2, samples=0, dropped=0)

    def head() -> str:
        page = render_report([tmp_path / "run"])
        return page[page.index("<h1") : page.index("The run ended")]

    assert ">Not judged: the loss is 1.059 and was 0.6376 at its best.<" in head()
    assert f">T{lost[1:]}.<" in head()
    with RunWriter.open(tmp_path / "run") as events:
        events.append("judged", step=1, rules=["loss_spike"], unjudged=why, waiting=sorted(why))
        events.append("end", steps=2, samples=0, dropped=0)
    assert ">Not judged: no loss was seen.<" in head()
    assert f">No loss was seen; {lost}; no block ran; for 1 more see the notes.<" in head()


def test_jumps_of_one_divergence_are_told_once_with_their_steps(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="diverged") as writer:
        writer.append("loss", steps=[0, 1, 2], values=[3.0, 2.0, 1.0])
        for step, severity in ((745, "warn"), (749, "warn"), (758, "error"), (2000, "warn")):
            evidence = {"step": step, "ended_at": step + 2, "back_at": None, "told_at": step}
            told = {"rule": "loss_spike", "severity": severity, "claim": f"It rose at {step}.", "where": {}}
            writer.append("finding", step=step, **told, status="fired", evidence=evidence, case=f"loss_spike {step}")
    run = Run(tmp_path / "run")
    findings = watch_view(run, "diverged", list(run.events()))["findings"]
    assert [one["claim"] for one in findings] == ["It rose at 758.", "It rose at 2000."]
    assert [one["title"] for one in findings] == ["Loss spike, and 2 more", "Loss spike"]
    assert ("not back from jumps at steps", "745, 749") in findings[0]["evidence"]
    assert not any("jumps" in row[0] for row in findings[1]["evidence"])


def test_beside_a_note_the_headline_does_not_say_that_nothing_was_found() -> None:
    note = {"rule": "frozen_layers", "severity": "info", "status": "fired", "claim": "No gradient reaches 4."}
    standing = Standing(("info",), ("loss_spike", "vanishing_gradient"), sampled=81, steps=300)
    assert headline_read(standing, [note], [], None) == "There was no alarm up to step 81 of 300"
    fewer = Standing(("info",), ("loss_spike",), sampled=299, steps=300)
    assert headline_read(fewer, [note], [], None) == "There was no alarm"


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
    assert "reached every block up to step 4 of 100. What came after was not sampled." in words
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


def test_numbers_of_a_finding_say_of_which_step_they_are(tmp_path: Path) -> None:
    def told(writer: RunWriter, step: int, claim: str) -> None:
        writer.append(
            "finding", step=step, rule="vanishing_gradient", severity="warn", status="fired", claim=claim, where={},
            evidence={"told_at": 20},
        )  # fmt: skip

    def view() -> dict[str, Any]:
        run = Run(tmp_path / "run")
        return dict(watch_view(run, "run", list(run.events())))

    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
        told(writer, 20, "It shrinks by 0.5.")
        first = view()
        told(writer, 3000, "It shrinks by 0.4.")
        told(writer, 3000, "It shrinks by 0.3, at step 3,000.")
    again = view()
    assert first["claim"] == "It shrinks by 0.5. So it was at step 20."
    assert again["claim"] == "It shrinks by 0.3, at step 3,000."  # which says it itself
    assert first["findings"][0]["evidence"] == [("told at step", "20")]
    assert again["findings"][0]["evidence"][:2] == [("told at step", "20"), ("renewed at step", "3,000")]
