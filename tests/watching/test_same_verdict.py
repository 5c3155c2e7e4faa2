"""Watch, account, live view and page tell one verdict of a watched run, whatever came to pass in it."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada._names import CALLED
from levada.diagnose.finding import Finding
from levada.report.watch import watch_view
from levada.runs import Run, SignalWriter
from levada.runs.codes import encode
from levada.runs.findings import findings_of
from levada.watching import Continue
from levada.watching.record.news import News
from levada.watching.record.recording import Recording
from levada.watching.show.live import Live
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.ledger import APART, OVER, Ledger, case_of


def page(folder: Path, *, killed: bool = False) -> dict[str, Any]:
    run = Run(folder)
    events = list(run.events())
    if killed:  # as the record was before it was closed
        closed = max(i for i, event in enumerate(events) if event["type"] == "overhead")
        assert events[closed - 1]["type"] == "judged"
        events = events[: closed - 1]
    return watch_view(run, "mine", events)


def rule(severity: Any, place: str = "") -> Any:
    where = {"first": place, "last": place} if place else {}
    return lambda view: [Finding("mine", severity, "fired", "a rule of mine holds", where)]


class Loop:
    """A training to which a case does something at its steps."""

    def __init__(self, run: Any, case: str, max_overhead: float = math.inf) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)], nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)
        self.case, self.odd, self.out = case, False, io.StringIO()
        self.watch = levada.watch(self.net, self.optimizer, run=run, every=1, max_overhead=max_overhead)
        self.watch.listen(Live(self.watch, plain=True, stream=self.out))
        self.net[2].register_forward_hook(lambda m, given, out: out * math.nan if self.odd else out)
        if case == "two rule listeners":
            self.watch.listen(Judge(self.watch, rules={"mine": rule("error")}))

    def train(self, steps: int) -> None:
        with self.watch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the watching that breaks
            for step in range(steps):
                self.before(step)
                self.optimizer.zero_grad()
                x = torch.randn(16, 8)
                (self.net(x) - x.sum(1, keepdim=True)).square().mean().backward()
                if self.odd:
                    self.optimizer.zero_grad()  # a loop that leaves the step out
                self.optimizer.step()

    def before(self, step: int) -> None:
        judge = self.watch.judge
        assert judge is not None
        self.odd = self.case == "cleared" and 40 <= step < 43
        if step == 40 and self.case in ("error", "continued"):
            nn.init.constant_(self.net[2][0].bias, math.nan)
        if step == 40 and self.case in ("warn", "place"):
            judge.rules = {**judge.rules, "mine": rule("warn", "3")}
        if step == 60 and self.case == "place":
            judge.rules = {**judge.rules, "mine": rule("error", "2")}
        if step == 90 and self.case == "place":
            judge.rules = {**judge.rules, "mine": lambda view: []}
        if step == 90 and self.case == "broken":
            self.watch._engine._structure.norms.after = None  # raises when it is called
        if step == 90 and self.case == "deaf":
            judge.sampled = None


CASES = {
    "warn": "warn",
    "error": "error",
    "cleared": "healthy",
    "place": "healthy",
    "continued": "healthy",
    "broken": "unknown",
    "deaf": "unknown",
    "two rule listeners": "error",
}


@pytest.mark.parametrize(("case", "verdict"), CASES.items(), ids=list(CASES))
def test_all_places_tell_the_same_verdict(case: str, verdict: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    loop = Loop(folder, case)
    loop.train(140)
    if case == "continued":
        loop = Loop(Continue(folder, 30), "healthy")
        loop.train(140)
    watch, told = loop.watch, loop.watch.report()
    assert (watch.standing.verdict, told.verdict) == (verdict, verdict)
    shown = page(folder)
    assert shown["verdict"] == page(folder, killed=True)["verdict"] == verdict
    said = loop.out.getvalue()
    if verdict in ("warn", "error"):
        fired = [finding for finding in watch.findings if finding.status == "fired"]
        assert [finding.rule for finding in told.findings if finding.status == "fired"] == [fired[0].rule]
        assert shown["findings"][0]["rule"] == fired[0].rule
        assert fired[0].claim[:20] in said.rpartition("watched")[2]
        assert "healthy" not in said
    else:
        assert f"{CALLED[verdict]}: nothing found" in said
    over = [finding for finding in watch.findings if finding.status == "clear"]
    shown_over = [one for one in shown["findings"] if one["kind"].endswith(", over")]
    assert len(shown_over) == (1 if case == "continued" else len(over))
    assert bool(over) == (case in ("cleared", "place"))


def test_what_a_process_before_found_is_superseded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Loop(folder, "error").train(60)
    assert page(folder)["verdict"] == "error"
    again = Loop(Continue(folder, 30), "healthy")
    again.watch.close()
    shown = page(folder)
    assert shown["verdict"] == "unknown"  # by nothing that this process found, and nothing that the other judged
    assert shown["headline"] != "The learning signal reached every block"
    (finding,) = findings_of(Run(folder).events())
    assert (finding["status"], finding["over"]) == ("clear", 30)
    assert finding["claim"].endswith("Superseded from step 30 on, where another process went on with the run.")


def test_entering_a_watch_again_supersedes_nothing(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", "error")
    loop.train(60)
    loop.train(10)
    assert page(tmp_path / "run")["verdict"] == loop.watch.standing.verdict == "error"


def test_up_to_where_a_continued_run_was_seen_counts_from_where_it_went_on(tmp_path: Path) -> None:
    loop = Loop(Continue(tmp_path / "run", 10_000), "healthy", max_overhead=1e-9)
    loop.train(140)
    told = loop.watch.standing
    assert told.until == ", up to step 10,010 of 10,140"  # the eleventh sample, and none was paid for since
    assert (told.verdict, told.wanted) == ("healthy", "")  # the losses behind it were judged at the end
    assert told.told in loop.watch.report().notes
    shown = page(tmp_path / "run")
    assert told.told in shown["notes"]
    assert shown["headline"].endswith(" up to step 10,010 of 10,140")
    assert shown["claim"].startswith("What came after was not sampled, but every trained block still had some gradient")


def test_a_case_keeps_its_name_however_it_is_told() -> None:
    ledger = Ledger(1, lambda finding: None)
    names, events = [], []

    def kept(step: int) -> None:
        (finding,) = ledger.findings
        names.append(case_of(finding))
        fields = {"rule": finding.rule, "status": finding.status, "where": finding.where, "evidence": finding.evidence}
        events.append({"type": "finding", "step": step, "severity": finding.severity, **fields})

    for step, (severity, place) in enumerate([("warn", "l.3"), ("error", "l.2")]):
        where = {"first": place, "last": "z"}
        found = Finding("vanishing_gradient", severity, "fired", "it shrinks", where)  # type: ignore[arg-type]
        ledger.hold(("vanishing_gradient", ""), found, step)
        kept(step)
    ledger.miss_others((), 2)
    kept(2)
    assert len(set(names)) == 1
    assert [(one["rule"], one["status"]) for one in findings_of(events)] == [("vanishing_gradient", "clear")]
    # Of two blocks that have units that are dead, one is over: the other stands.
    dead = [
        {**event, "rule": "dead_units", "where": {"first": place}} for event, place in zip(events, "ab", strict=False)
    ]
    dead.append({**events[2], "rule": "dead_units", "where": {"first": "b"}})
    assert [(one["where"]["first"], one["status"]) for one in findings_of(dead)] == [("a", "fired"), ("b", "clear")]


def test_of_many_findings_that_are_over_the_latest_are_kept_and_none_is_told_twice() -> None:
    ledger, news, told = Ledger(1, lambda finding: None), News(), []
    stays = Finding("dead_units", "warn", "fired", "they stay dead")
    for step in range(0, 2 * 1500, 2):
        ledger.hold(("vanishing_gradient", ""), Finding("vanishing_gradient", "warn", "fired", f"{step}"), step)
        ledger.hold(("dead_units", ""), stays, step)
        told += news.of(ledger.findings)
        ledger.miss_others({("dead_units", "")}, step + 1)
        told += news.of(ledger.findings)
    assert ledger.count == 1501
    assert [one.claim.split()[0] for one in ledger.findings] == [
        "they",
        *(f"{2 * n}" for n in range(1500 - OVER, 1500)),
    ]
    seen = [(one.claim.split()[0], one.status) for one in told if one.rule == "vanishing_gradient"]
    assert seen == [(f"{2 * n}", status) for n in range(1500) for status in ("fired", "clear")]


def test_what_stands_again_and_again_shares_an_entry_also_when_that_was_let_go() -> None:
    ledger = Ledger(1, lambda finding: None)
    for times in range(40):
        ledger.stand(Finding("skipped_steps", "error", "fired", "it stands still.", evidence={"told_at": times}))
        ledger.over("skipped_steps", times)
    assert [one.evidence.get("times") for one in ledger.findings] == [None] * (APART - 1) + [40]
    for step in range(OVER + 8):
        ledger.hold(("dead_units", ""), Finding("dead_units", "warn", "fired", f"{step}"), step)
        ledger.miss_others((), step)
    assert {one.rule for one in ledger.findings} == {"dead_units"}
    ledger.stand(Finding("skipped_steps", "error", "fired", "it stands still.", evidence={"told_at": 99}))
    assert (ledger.findings[-1].evidence["times"], ledger.findings[-1].status) == (41, "fired")


def test_of_a_pipeline_the_first_stage_is_not_called_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    loop = Loop(folder, "healthy")
    loop.train(140)
    assert page(folder)["verdict"] == "healthy"
    with SignalWriter(folder, rank=1, sites=[{"name": "6", "order": 0}], signals=["gradient_rms"]) as other:
        other.append(0, 0.0, encode([1.0]), {})
    shown = page(folder)
    assert shown["verdict"] == "unknown"
    assert shown["headline"] == "Not judged: only 6 of 7 blocks were judged"


def test_what_no_rule_tells_any_more_is_not_called_over() -> None:
    out = io.StringIO()
    loop = Loop(None, "healthy")
    live = Live(loop.watch, plain=True, stream=out)
    found = Finding("mine", "error", "fired", "a rule of mine holds", {}, {"told_at": 3})
    listener: Any = type("Rules", (), {"findings": [found]})()
    loop.watch._listeners.append(listener)
    live.found_between_samples(3)
    loop.watch._listeners.remove(listener)  # as where it raises
    live.found_between_samples(4)
    assert "over" not in out.getvalue()
    cleared = Finding("mine", "error", "clear", "a rule of mine holds", {}, {"told_at": 3})
    listener.findings = [cleared]
    loop.watch._listeners.append(listener)
    live.found_between_samples(5)
    assert out.getvalue().splitlines() == [
        "levada: step 3, error: mine: a rule of mine holds",
        "levada: step 5, over: mine",
    ]
    loop.watch._listeners.remove(listener)
    loop.watch.close()


def test_a_finding_whose_place_becomes_known_is_not_over() -> None:
    out = io.StringIO()
    loop = Loop(None, "healthy")
    live = Live(loop.watch, plain=True, stream=out)
    listener: Any = type("Rules", (), {"findings": []})()
    loop.watch._listeners.append(listener)
    for step, where in enumerate([{}, {"first": "2", "last": "2"}, {"first": "2", "last": "2"}]):
        listener.findings = [Finding("numerical_overflow", "error", "fired", "NaN", where, {"told_at": 0})]
        live.found_between_samples(step)
    assert out.getvalue().splitlines() == [
        "levada: step 0, error: numerical_overflow: NaN",
        "levada: step 1, error: numerical_overflow: NaN",
    ]
    loop.watch._listeners.remove(listener)
    loop.watch.close()


def test_reasons_that_are_stored_have_no_count_that_is_soon_another(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", "healthy")
    recording = next(one for one in loop.watch._listeners if isinstance(one, Recording))
    loop.train(10)
    stored = [event for event in Run(tmp_path / "run").events() if event["type"] == "judged"]
    assert "8 for a baseline and 3 that confirm, and 10 are there" in stored[-1]["unjudged"]["dead_units"]
    assert stored[-2]["unjudged"]["dead_units"].endswith("3 that confirm")
    assert len(stored) <= 4
    assert recording.problem is None


def test_rules_that_raise_between_two_samples_have_no_verdict_on_the_page(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", "healthy")
    loop.train(100)
    with loop.watch:
        loop.watch.judge.before_update = None  # type: ignore[union-attr, method-assign]
        with pytest.warns(UserWarning, match=r"Judge\.before_update raised"):
            loop.watch._before_update(100, None)
        recording = next(one for one in loop.watch._listeners if isinstance(one, Recording))
        assert recording.flush()
        assert page(tmp_path / "run")["verdict"] == loop.watch.standing.verdict == "unknown"


KILLED = """
    import math, os, signal, sys, warnings, torch, levada
    from torch import nn

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)], nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watch = levada.watch(net, optimizer, run=sys.argv[1], every=1, max_overhead=math.inf)
    for step in range(100):
        if step == 80 and sys.argv[2] == "broken":
            watch._engine._structure.norms.after = None
        if step == 80 and sys.argv[2] == "deaf":
            watch.judge.before_update = None
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        if sys.argv[2] == "gradient not measured":
            for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
                parameter.grad = gradient
        else:
            loss.backward()
        optimizer.step()
    for listener in watch._listeners:
        if hasattr(listener, "flush"):
            listener.flush()
    print(watch.standing.verdict, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("healthy", "healthy"), ("broken", "unknown"), ("deaf", "unknown"), ("gradient not measured", "unknown")],
)
def test_the_page_of_a_process_that_was_killed_tells_what_its_watch_told(
    case: str, verdict: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))
    done = subprocess.run([sys.executable, script, tmp_path / "run", case], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    shown = page(tmp_path / "run")
    assert (done.stdout.strip(), shown["verdict"]) == (verdict, verdict)
    assert shown["state"].startswith("Not ended: last recorded step ")
    assert "The run was cut off: its process was killed" in shown["state"]
