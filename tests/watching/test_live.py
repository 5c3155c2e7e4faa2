"""The live view: what is seen, what is printed meanwhile, and how the terminal is left."""

from __future__ import annotations

import io
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.watching.terminal import Terminal

from levada.diagnose import Finding
from levada.runs.standing import Standing
from levada.watching import Sample
from levada.watching.show.among import Among
from levada.watching.show.drawing import RAMP, Course, Strip, loss_lines, strip_lines
from levada.watching.show.lines import finding_lines
from levada.watching.show.live import Live, summary
from levada.watching.show.screen import Screen


def make_watch(depth: int = 12) -> Any:
    sites = [SimpleNamespace(name=f"model.layers.{i}.block") for i in range(depth)]
    cost = {"overhead": 0.0042, "cost": "overhead 0.42 %"}
    return SimpleNamespace(sites=sites, steps=40, **cost, findings=[], run="runs/a", dropped=0)


def make_sample(step: int, depth: int = 12, rank: int = 0, **scalars: float) -> Sample:
    gradient = torch.logspace(-8, -2, depth, dtype=torch.float64)
    return Sample(step, 0.0, {"gradient_rms": gradient}, {"loss": 2.0 / (step + 1), **scalars}, (), rank)


def make_finding(rule: str = "vanishing_gradient", status: Any = "fired") -> Finding:
    return Finding(rule, "error", status, "The gradient shrinks by six decades.", {"first": "model.layers.0.block"})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    if Screen.active is not None:
        Screen.active.close()
    made.close()


def test_the_view_shows_what_is_found_between_samples(terminal: Terminal) -> None:
    watch = make_watch()
    live = Live(watch, stream=terminal.stream)
    live.sampled(make_sample(0))
    watch.findings.append(make_finding("skipped_steps"))
    live.found_between_samples(7)
    terminal.feed()
    assert "skipped_steps" in terminal.text
    assert "step 7" in terminal.text


def test_the_view_shows_loss_depth_findings_cost_and_record(terminal: Terminal) -> None:
    watch = make_watch()
    watch.findings.append(make_finding())
    live = Live(watch, stream=terminal.stream)
    for step in range(0, 400, 20):
        live.sampled(make_sample(step))
    live._redraw()
    terminal.feed()
    shown = terminal.text
    assert "step 380 · loss 0.005249 · overhead 0.42 % · sampled every 20 steps" in shown
    assert "loss 2 " in shown  # the largest, at the top of its axis
    assert "downwards model.layers.0.block to 11.block, steps 0 to 380" in shown
    rows = [line for line in shown.splitlines() if line.split()[:1] in (["0"], ["11"])]
    assert [row.split()[-1] for row in rows] == ["1.0e-8", "0.01"]
    assert "✕ vanishing_gradient  The gradient shrinks by six decades." in shown
    assert "record: runs/a" in shown
    live.close()


def test_rows_are_coloured_and_without_colour_their_heights_say_the_same() -> None:
    strip = Strip([f"layers.{i}" for i in range(8)])
    strip.add(make_sample(0, 8))
    coloured = strip_lines(strip, 80, 8, fine=True, coloured=True)
    assert [line[1][1] for line in coloured] == [f"on {RAMP[round(i / 7 * 13)]}" for i in range(8)]
    plain = strip_lines(strip, 80, 8, fine=True, coloured=False)
    assert "".join(line[1][0] for line in plain) == "▁▂▃▄▅▆▇█"
    letters = strip_lines(strip, 80, 8, fine=False, coloured=False)
    assert all(text.isascii() for line in letters for text, _ in line)


def test_the_colours_rise_in_lightness_as_all_kinds_of_eyes_see_them() -> None:
    def linear(colour: str) -> list[float]:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]

    # Viénot, Brettel and Mollon 1999: what is left of red, green and blue without long or middle cones.
    eyes = (
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    )
    for eye in eyes:
        seen = [[sum(a * b for a, b in zip(row, linear(c), strict=True)) for row in eye] for c in RAMP]
        lightness = [116 * (0.2126 * r + 0.7152 * g + 0.0722 * b) ** (1 / 3) - 16 for r, g, b in seen]
        assert all(b - a > 3 for a, b in pairwise(lightness)), lightness


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 1000])
def test_of_many_blocks_none_that_is_bad_is_hidden(depth: int) -> None:
    strip = Strip([f"layers.{i}" for i in range(depth)])
    values = torch.ones(depth, dtype=torch.float64)
    values[depth // 2] = 0.0
    bad = torch.zeros(depth, dtype=torch.float64)
    bad[depth - 1] = 0.5
    strip.add(Sample(0, 0.0, {"gradient_rms": values, "gradient_nonfinite": bad}))
    for rows in (1, 5, 12, 64):
        (_, column), *_ = strip.cells(rows)
        assert len(column) <= rows
        assert column[-1] == math.inf
        assert -math.inf in column or depth == 1 or rows == 1
    assert strip.label(0, 1).endswith(f"{depth - 1}" if depth > 1 else "0")


def test_what_was_not_measured_is_empty_and_weights_stand_in() -> None:
    strip = Strip(["a", "b"])
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    strip.add(Sample(0, 0.0, {"gradient_rms": nothing, "weight_gradient_rms": torch.tensor([0.1, 1.0])}))
    assert strip.columns[0][1] == pytest.approx([-1.0, 0.0])
    strip.add(Sample(1, 0.0, {"gradient_rms": nothing}))
    assert all(math.isnan(value) for value in strip.columns[1][1])
    strip.add(Sample(2, 0.0, {"gradient_rms": torch.ones(3)}))  # of another model
    assert len(strip.columns) == 2


def test_losses_stay_bounded_and_a_loss_that_is_no_number_is_seen() -> None:
    course = Course(64)
    for step in range(10_000):
        course.add(step, float(step))
    assert 32 <= len(course.values) <= 64
    assert course.last == (9999, 9999.0)
    course.add(10_000, math.nan)
    assert any("×" in text for line in loss_lines(course, 80, 4, fine=True) for text, _ in line)
    assert loss_lines(Course(), 80, 4, fine=True) == []


def test_all_that_is_printed_is_there_afterwards_whoever_printed_it(terminal: Terminal) -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    live = Live(make_watch(), stream=terminal.stream)
    terminal.stream.write("before\n")
    bar = tqdm(total=200, file=terminal.stream, mininterval=0, ncols=60)
    for i in range(200):
        live.sampled(make_sample(i))
        live._redraw()
        bar.update()
        if i % 10 == 0:
            tqdm.write(f"line {i}", file=terminal.stream)
        if i % 50 == 0:
            os.write(terminal.slave, b"\nfrom C\n")  # past Python's streams, as C code and other processes do
        terminal.feed()
    bar.close()
    terminal.stream.write("after\n")
    live.close()
    terminal.feed()
    lines = [line.rstrip() for line in terminal.text.splitlines()]
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(0, 200, 10)]
    assert [lines.count(one) for one in ("from C", "before", "after")] == [4, 1, 1]
    assert sum("200/200" in line for line in lines) == 1
    # The view is gone but for its summary, and nothing of it scrolled away among the lines.
    assert sum("gradient by block" in line for line in lines) == 0
    assert sum("steps watched" in line for line in lines) == 1
    assert terminal.region == (0, terminal.lines - 1)


def test_a_line_that_is_not_ended_goes_on_where_it_was(terminal: Terminal) -> None:
    live = Live(make_watch(), stream=terminal.stream)
    terminal.stream.write("epoch 1: ")
    live.sampled(make_sample(0))
    terminal.stream.write("done\n")
    live._redraw()
    terminal.feed()
    assert "epoch 1: done" in [line.rstrip() for line in terminal.screen]
    assert "gradient by block" in terminal.text
    live.close()


@pytest.mark.parametrize("lines", [60, 30])
def test_a_terminal_of_another_size_is_drawn_anew(terminal: Terminal, lines: int) -> None:
    live = Live(make_watch(), stream=terminal.stream)
    for i in range(50):
        terminal.stream.write(f"line {i}\n")
    live.sampled(make_sample(0))
    terminal.resize(lines)
    live._redraw()
    terminal.stream.write("more\n")
    terminal.feed()
    seen = [line.rstrip() for line in terminal.screen]
    assert sum("gradient by block" in line for line in seen) == 1
    assert seen[-1].startswith("record: runs/a")
    assert "more" in seen
    assert "line 49" in terminal.text
    live.close()
    terminal.feed()
    assert terminal.region == (0, lines - 1)


@pytest.mark.parametrize("lines", [24, 25, 30, 50])
@pytest.mark.parametrize("depth", [1, 3, 500])
def test_a_usual_terminal_has_room_for_the_view_and_for_prints(
    monkeypatch: pytest.MonkeyPatch, depth: int, lines: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(80, lines)
    watch = make_watch(depth)
    watch.findings += [make_finding(str(i)) for i in range(5)]
    live = Live(watch, stream=terminal.stream)
    live.sampled(make_sample(0, depth))
    terminal.feed()
    assert "gradient by block" in terminal.text
    assert "more" in terminal.text
    assert terminal.region[1] >= 7
    assert all(len(line) == 80 for line in terminal.screen)
    live.close()
    terminal.close()


def test_a_terminal_that_became_too_small_gets_plain_lines(terminal: Terminal) -> None:
    live = Live(make_watch(), stream=terminal.stream)
    live.sampled(make_sample(0))
    terminal.resize(12)
    live._redraw()
    live._next = 0.0
    live.sampled(make_sample(20))
    terminal.feed()
    assert "levada: step 20, loss 0.0952" in terminal.text
    assert terminal.region == (0, 11)


def test_elsewhere_plain_lines_come_seldom_and_findings_at_once() -> None:
    out, watch = io.StringIO(), make_watch()
    live = Live(watch, stream=out)
    for step in range(0, 200, 20):
        if step == 100:
            watch.findings.append(make_finding())
        if step == 160:
            watch.findings[0] = make_finding(status="clear")
        live.sampled(make_sample(step))
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "levada: step 0, loss 2, gradient 1e-08 at model.layers.0.block to 0.01 at model.layers.11.block, "
        "overhead 0.42 %, sampled once, at step 0"
    )
    assert lines[1:] == [
        "levada: step 100, error: vanishing_gradient: The gradient shrinks by six decades.",
        "levada: step 160, over: vanishing_gradient",
    ]
    assert "\x1b" not in out.getvalue()
    live._next = 0.0
    live.sampled(make_sample(200))
    assert out.getvalue().splitlines()[-1].startswith("levada: step 200")


def test_plain_lines_come_between_samples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now, out = 0.0, io.StringIO()
    monkeypatch.setattr("levada.watching.show.live.time", SimpleNamespace(monotonic=lambda: now))
    live = Live(make_watch(), stream=out)
    live.before_update(0, torch.tensor(2.0))
    live.sampled(make_sample(0))
    for step in range(1, 600):  # the first sample stays the only one for a minute
        now += 0.125
        live.before_update(step, torch.tensor(1.0 / step))
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"levada: step {step}" for step in (0, 88, 216, 404)]
    assert lines[1] == "levada: step 88, loss 0.01136, overhead 0.42 %, sampled once, at step 0"
    live.close()
    live.before_update(600, torch.tensor(1.0))
    now += 1000.0
    live.before_update(601, torch.tensor(1.0))
    assert "step 601" not in out.getvalue()


def test_the_curve_goes_on_between_samples(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    watch, ended = make_watch(), list[tuple[int, torch.Tensor]]()
    watch.ended_losses = lambda: ended
    live = Live(watch, stream=terminal.stream)

    def end(step: int, loss: float) -> None:
        live.before_update(step, torch.tensor(loss))
        ended.append((step, torch.tensor(loss)))

    for step in range(1, 9):
        end(step, 2.0)
        ended.clear()
        live.sampled(Sample(step, 0.0, {"gradient_rms": torch.ones(12)}, {}, ((step, 2.0),)))
    for step in range(9, 17):  # without a sample
        end(step, 1.0)
    live._redraw()
    terminal.feed()
    assert "loss 2 " in terminal.text
    curve = loss_lines(live._curve().whole, 80, 4, fine=True)
    assert live._curve().whole.values == [2.0] * 8 + [1.0] * 8
    assert curve[-1][0][0].split() == ["1"]  # the smallest loss, on the left
    # A sample brings what is known better, as steps that were skipped, and all of it stands once.
    known = ((9, 1.0), *((step, 0.5) for step in range(10, 18)))
    ended.clear()
    live.sampled(Sample(17, 0.0, {"gradient_rms": torch.ones(12)}, {}, known))
    assert live._curve().whole.values == [2.0] * 8 + [1.0] + [0.5] * 8
    live.close()


def test_the_curve_waits_for_no_device_between_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, sent = False, list[torch.Tensor]()

    class Way:
        def __init__(self, numbers: torch.Tensor) -> None:
            sent.append(numbers)

        def ready(self) -> bool:
            return arrived

        def host(self) -> torch.Tensor:
            assert arrived
            return sent[-1]

    class OnDevice(torch.Tensor):
        is_cpu, is_cuda = False, True

        def __float__(self) -> float:
            raise AssertionError("waited for the device")

    monkeypatch.setattr("levada.watching.show.live.OnItsWay", Way)
    watch, live = make_watch(), None
    watch.ended_losses = lambda: [(step, torch.tensor(float(step)).as_subclass(OnDevice)) for step in range(1, 5)]
    live = Live(watch, plain=True, stream=io.StringIO())
    live.sampled(make_sample(0))
    assert live._curve().whole.values == live._curve().whole.values == [2.0]
    assert len(sent) == 1  # one copy at a time
    arrived = True
    assert live._curve().whole.values == [2.0, 1.0, 2.0, 3.0, 4.0]
    assert len(sent) == 1


def test_only_the_first_process_shows_anything(terminal: Terminal) -> None:
    live = Live(make_watch(), stream=terminal.stream)
    live.sampled(make_sample(0, rank=1))
    live.close()
    terminal.feed()
    assert terminal.raw == b""


def test_drawing_takes_a_small_share_of_the_time(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = 0.0, []

    def lines(self: Live, width: int, height: int, console: Any) -> list[Any]:
        nonlocal now
        now += 0.3 if not drawn else 0.002  # the first time rich is imported
        drawn.append(now)
        return [[("drawn", "")]] * 10

    monkeypatch.setattr("levada.watching.show.live.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Live, "lines", lines)
    live = Live(make_watch(), stream=terminal.stream)
    for step in range(20_000):
        now += 0.001
        live.before_update(step, None)
        if step % 10 == 0:
            live.sampled(make_sample(step))
    terminal.feed()
    # 2 ms each, in 20 s of which 1/500 may be spent: 20 frames, and a few before the cost was known.
    assert 15 < len(drawn) < 30
    assert all(b - a > 0.25 for a, b in pairwise(drawn))
    live.close()


def test_two_watches_share_a_terminal(terminal: Terminal) -> None:
    watches = make_watch(), make_watch()
    watches[1].run = "runs/a-2"
    first, second = (Live(watch, stream=terminal.stream) for watch in watches)
    first.sampled(make_sample(0))
    second.sampled(make_sample(7))
    terminal.feed()
    assert "levada a-2: step 7, loss 0.25" in terminal.text
    assert sum("gradient by block" in line for line in terminal.screen) == 1
    assert any(line.startswith("levada a  step 0") for line in terminal.screen)
    second.close()
    first.close()
    terminal.feed()
    assert "levada a  40 steps watched" in terminal.text
    assert "levada a-2  33 steps watched" in terminal.text


def test_a_line_names_its_watch_where_another_is_shown() -> None:
    out = io.StringIO()

    def told(run: str | None) -> tuple[Live, Any]:
        watch = make_watch()
        watch.run = run
        return Live(watch, plain=True, stream=out), watch

    alone, _ = told("runs/alone")
    alone.sampled(make_sample(0))
    alone.close()
    (first, watch), (second, _), (third, _), (fourth, _) = told("runs/g"), told(None), told("x/d"), told("y/d")
    for live in (first, second, third, fourth):
        live.sampled(make_sample(0))
    watch.findings.append(make_finding())
    first.found_between_samples(3)
    for live in (second, third, fourth, first):
        live.close()
    alone._next = 0.0
    alone.sampled(make_sample(20))  # its watch is entered again, when the others are over
    begins = [line.split(", ")[0] for line in out.getvalue().splitlines() if line.startswith("levada")]
    assert begins == [
        "levada: step 0",
        "levada  40 steps watched",
        *("levada g: step 0", "levada 2: step 0", "levada x/d: step 0", "levada y/d: step 0", "levada g: step 3"),
        *(f"levada {name}  40 steps watched" for name in ("2", "x/d", "y/d", "g")),
        "levada: step 20",
    ]


def test_of_two_networks_each_line_says_which_one_it_is_of() -> None:
    class Generator(torch.nn.Linear): ...

    out, lives = io.StringIO(), []
    for model in (Generator(1, 1), torch.nn.DataParallel(torch.nn.Tanh())):
        watch = make_watch()
        watch.model, watch.run = model, None
        lives.append(Live(watch, plain=True, stream=out))
    for live in lives:
        live.sampled(make_sample(0))
        live.close()
    begins = [line.split(", ")[0] for line in out.getvalue().splitlines() if line.startswith("levada")]
    assert begins[::2] == ["levada 1 (Generator): step 0", "levada 2 (Tanh): step 0"]


def test_a_watch_that_is_entered_again_is_shown_again(terminal: Terminal) -> None:
    live = Live(make_watch(), stream=terminal.stream)
    live.sampled(make_sample(0))
    live.close()
    live.before_update(1, None)
    terminal.feed()
    assert "gradient by block" not in terminal.text
    live._next = 0.0
    live.sampled(make_sample(20))
    terminal.feed()
    assert "step 20" in terminal.text
    live.close()
    live.close()
    terminal.feed()
    assert terminal.text.count("steps watched") == 2
    assert terminal.region == (0, terminal.lines - 1)


def test_names_cannot_move_the_cursor(terminal: Terminal) -> None:
    watch = make_watch(2)
    watch.sites = [SimpleNamespace(name="a\x1b[2J\nb"), SimpleNamespace(name="c")]
    live = Live(watch, stream=terminal.stream)
    live.sampled(make_sample(0, 2))
    live.close()
    terminal.feed()
    assert b"\x1b[2J" not in terminal.raw
    out = io.StringIO()
    Live(watch, stream=out).sampled(make_sample(0, 2))
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_a_process_that_is_told_to_end_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    child = os.fork()
    if child == 0:
        live = Live(make_watch(), stream=terminal.stream)
        live.sampled(make_sample(0))
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    terminal.feed()
    assert b";1H" in terminal.raw
    assert terminal.region == (0, terminal.lines - 1)
    assert "gradient by block" not in terminal.text


def test_a_child_of_the_watched_process_leaves_the_terminal_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, out, watch = 0.0, io.StringIO(), make_watch()
    monkeypatch.setattr("levada.watching.show.live.time", SimpleNamespace(monotonic=lambda: now))
    live = Live(watch, stream=out)
    live.before_update(0, torch.tensor(2.0))
    live.sampled(make_sample(0))
    begun = out.getvalue()
    calls = (
        lambda: live.before_update(20, torch.tensor(1.0)),
        lambda: live.sampled(make_sample(20)),
        lambda: live.found_between_samples(20),
        live.close,
    )
    now = 1000.0  # a line is due
    watch.findings.append(make_finding())
    for call in calls:
        child = os.fork()
        if child == 0:
            try:
                call()
                os._exit(int(out.getvalue() != begun))
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for call in calls:
        length = len(out.getvalue())
        call()
        assert len(out.getvalue()) > length
        watch.findings.append(make_finding(f"rule_{length}"))
        now += 1000.0


def test_what_is_found_between_samples_is_shown_by_the_first_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out, watch = io.StringIO(), make_watch()
    live = Live(watch, stream=out)
    watch.findings.append(make_finding("skipped_steps"))
    with monkeypatch.context() as patch:
        patch.setattr("levada.watching.show.live.is_first", lambda: False)
        live.found_between_samples(7)
    assert out.getvalue() == ""
    live.found_between_samples(7)
    assert "skipped_steps" in out.getvalue()


def test_a_stream_that_nobody_reads_any_more_is_no_failure() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    live = Live(make_watch(), stream=Closed())
    live.sampled(make_sample(0))
    live.close()


def test_the_summary_says_what_was_found_and_where_the_record_is() -> None:
    watch = make_watch()
    watch.dropped = 3

    def text(**options: bool) -> list[str]:
        return ["".join(piece for piece, _ in line) for line in summary(watch, **options)]

    assert text()[1:3] == [
        "  ? not judged: nothing found, which rules judged it is not known",
        "  overhead 0.42 % · no step was sampled · record: runs/a · 3 samples were dropped",
    ]
    watch.samples = [make_sample(step) for step in (0, 10, 20, 39)]
    why = {"lost_update": "8 more samples are needed", "dead_units": "there are no zeros"}
    watch.standing = Standing((), ("loss_spike",), why, frozenset({"lost_update"}), 20, 40)
    assert text()[1:4] == [
        "  ? not judged: nothing found, 1 of 3 rules judged it, up to step 20 of 40; not",
        "    judged: lost_update: 8 more samples are needed; dead_units: there are no",
        "    zeros",
    ]
    watch.standing = Standing(
        (), ("loss_spike", "lost_update"), {"dead_units": "there are no zeros"}, sampled=39, steps=40
    )
    assert text() == [
        "levada  40 steps watched",
        "  ✓ healthy: nothing found, 2 of 3 rules judged it",
        "  overhead 0.42 % · sampled every 10 to 19 steps · record: runs/a · 3 samples were dropped",
        "  levada report runs/a -o report.html",
    ]
    watch.findings, watch.run = [make_finding()], None
    watch.standing = Standing(("error",), ("loss_spike",))
    assert text(fine=False)[1:] == [
        "  x vanishing_gradient  The gradient shrinks by six decades.",
        "  overhead 0.42 %, sampled every 10 to 19 steps, no record is kept, 3 samples were dropped",
    ]


def make_jumps() -> list[Finding]:
    """Give one divergence: the loss jumped from the level of before again and again, and did not come back."""
    known = ((745, "warn", 747), (749, "warn", 750), (758, "error", 760))
    return [
        Finding(
            "loss_spike",
            severity,
            "fired",
            f"The loss jumped at step {step}.",
            evidence={"step": step, "ended_at": ended, "back_at": None, "told_at": ended},
        )
        for step, severity, ended in known
    ]


def test_jumps_of_one_divergence_are_told_once() -> None:
    out, watch = io.StringIO(), make_watch()
    live = Live(watch, plain=True, stream=out)
    live.sampled(make_sample(744))
    for step, jump in zip((747, 750, 760), make_jumps(), strict=True):
        watch.findings.append(jump)
        live.found_between_samples(step)
    watch.findings[:] = [replace(one, status="clear", evidence=one.evidence) for one in watch.findings]
    live.found_between_samples(900)
    assert out.getvalue().splitlines()[1:] == [
        "levada: step 747, warning: loss_spike: The loss jumped at step 745.",
        "levada: step 760, error: loss_spike and 2 more: The loss jumped at step 758.",
        "levada: step 900, over: loss_spike and 2 more",
    ]


def test_the_summary_and_the_view_tell_a_divergence_once_and_what_is_apart_by_itself() -> None:
    watch = make_watch()
    watch.findings = [*make_jumps(), make_finding()]
    text = ["".join(part for part, _ in line) for line in summary(watch)]
    assert sum("loss_spike" in line for line in text) == 1
    assert any(line.startswith("  ✕ loss_spike and 2 more  The loss jumped at step 758.") for line in text)
    drawn = finding_lines(watch.findings, [], Standing(("error",)), 80, 2, True)
    assert ["".join(part for part, _ in line)[:24] for line in drawn] == [
        "✕ loss_spike and 2 more ",
        "✕ vanishing_gradient  Th",
    ]
    watch.findings[2] = replace(watch.findings[2], evidence={**watch.findings[2].evidence, "step": 2000})
    text = ["".join(part for part, _ in line) for line in summary(watch)]
    assert [line.split("  ")[1] for line in text if "loss_spike" in line] == ["✕ loss_spike", "! loss_spike and 1 more"]


@pytest.mark.parametrize(("steps", "told"), [(8, "7 steps watched, 1 to 7, loss 2 to 128"), (10, "128 at step 7")])
def test_the_losses_of_the_summary_are_those_of_the_steps_that_it_names(steps: int, told: str) -> None:
    watch, course = make_watch(), Course(2)
    watch.steps = steps
    for step in range(1, 8):  # in stretches of four steps, whose means are no loss of a step
        course.add(step, float(2**step))
    assert "".join(text for text, _ in summary(watch, [("", course)])[0]).endswith(told)


def test_the_last_loss_is_that_of_the_last_step_however_rare_samples_are() -> None:
    out = io.StringIO()
    live = Live(make_watch(), plain=True, stream=out)
    live.sampled(make_sample(0, loss=2.0))
    for step in range(1, 40):
        live.before_update(step, torch.tensor(1.0 / step))
    assert "loss 0.02564" in "".join(piece for piece, _ in live._heading(80, True))
    live.close()
    assert "loss 2 to 0.02564" in out.getvalue()


def test_a_watch_that_is_shown_twice_is_one() -> None:
    watch = SimpleNamespace(run=None)
    twice = [Among(watch), Among(watch)]
    for one in twice:
        one.open()
    assert [one.called for one in twice] == ["", ""]
    for one in twice:
        one.close()
