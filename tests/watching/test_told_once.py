"""A report's text has one line for jumps of the loss that are over, and one for those of one divergence."""

from __future__ import annotations

from typing import Any

from levada.diagnose.finding import Finding
from levada.diagnose.report import Report
from levada.watching.verdict.account import report
from levada.watching.verdict.judge import Judge


def jump(step: int, status: Any = "fired", severity: Any = "warn", **more: Any) -> Finding:
    evidence = {"step": step, "ended_at": step + 2, "back_at": None, **more}
    return Finding("loss_spike", severity, status, f"It rose at {step}.", {}, evidence, "", "", (), "")


def over(step: int) -> Finding:
    return jump(step, "clear", cleared_at=step + 40, back_at=step + 4)


def lines(*found: Finding) -> list[str]:
    text = str(Report("warn", found, (), {}))
    return [line.strip() for line in text.splitlines() if "loss_spike" in line]


def test_what_is_over_is_one_line_with_its_count_and_the_last() -> None:
    assert lines(over(100), over(300), over(200)) == [
        "over loss_spike, 3 times, at steps 140, 240 and 340; the last: It rose at 300."
    ]
    assert lines(over(100)) == ["over loss_spike: It rose at 100."]


def test_jumps_of_one_divergence_are_one_line_and_others_their_own() -> None:
    told = lines(jump(745), jump(749), jump(758, severity="error"), jump(2000), over(10), over(20))
    assert told == [
        "error loss_spike and 2 more, at steps 745 and 749: It rose at 758.",
        "warning loss_spike: It rose at 2000.",
        "over loss_spike, 2 times, at steps 50 and 60; the last: It rose at 20.",
    ]


def test_all_of_them_are_in_the_findings_and_the_note_names_each_rule_once() -> None:
    told = report(Judge(lambda: ()), findings=[over(100), over(200)])
    assert len(told.findings) == 2
    assert "Ended: loss_spike at steps 140 and 240." in told.notes
