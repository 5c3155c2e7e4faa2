"""The live view: what a watched run does, in the terminal while it trains."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, TextIO, final

import torch
from torch import Tensor

from levada._errors import UsageError
from levada._names import CALLED, printable
from levada._ranks import is_first, is_one_of_several
from levada.runs import Run
from levada.runs.jumps import more
from levada.watching.measure.sample import Sample
from levada.watching.measure.transfer import OnItsWay
from levada.watching.show.among import Among
from levada.watching.show.courses import Courses, apart, course_lines, of
from levada.watching.show.drawing import (
    Line,
    Strip,
    fitting,
    heading_line,
    legend_line,
    strip_lines,
)
from levada.watching.show.lines import (
    BETWEEN,
    cost_pieces,
    finding_lines,
    fired,
    footing,
    standing_in,
    summary,
    told_once,
)
from levada.watching.show.screen import Screen
from levada.watching.verdict.ledger import case_of

if TYPE_CHECKING:
    from rich.console import Console

    from levada.diagnose import Finding

__all__ = ["Live", "summary"]

SECONDS_BETWEEN: Final = 0.25
SHARE: Final = 0.002  # of the time, at most, that drawing takes
MIN_WIDTH: Final = 40
MAX_WIDTH: Final = 110
HEIGHTS: Final = ((30, 4, 3), (0, 2, 2))  # from so many lines of the terminal on, those of the loss and of findings
MAX_ROWS: Final = 16
MIN_ROWS: Final = 3
MAX_CLEARED: Final = 3
SHARE_OF_LINES: Final = 0.65
PLAIN_SECONDS: Final = (10.0, 300.0)  # between two plain lines: at first, and at most


@final
class Live:
    """Shows a watched run on standard error: loss, gradient by depth and step, findings, what watching costs.

    In a terminal the view stands in the last lines, and all that is printed scrolls above it. It is drawn when a sample
    comes, at most four times a second, and so seldom that drawing takes at most 1/500 of the time; the watch counts it
    as its own. Elsewhere, as in the log of a job, a plain line comes after ten seconds, then ever more seldom, and one
    for each finding. Only the first process shows anything, and none that it forks. Where several watches are shown at
    once, each line names its own.

    Args:
        watch: the watch that this listens to.
        plain: whether lines are printed in place of the view; left out, where there is no terminal that can show it.
        stream: where to; standard error if left out.

    Example:
        >>> import io, torch
        >>> from types import SimpleNamespace
        >>> sites = [SimpleNamespace(name=f"block.{i}") for i in range(3)]
        >>> watch = SimpleNamespace(sites=sites, steps=1, overhead=0.004, cost="overhead 0.4 %", findings=[])
        >>> out = io.StringIO()
        >>> live = Live(watch, stream=out)
        >>> gradient = torch.tensor([1e-6, 1e-4, 1e-2], dtype=torch.float64)
        >>> live.sampled(Sample(0, 0.0, {"gradient_rms": gradient}, {"loss": 2.3}))
        >>> print(out.getvalue().rstrip())
        levada: step 0, loss 2.3, gradient 1e-06 at block.0 to 0.01 at block.2, overhead 0.4 %, sampled once, at step 0
    """

    def __init__(self, watch: Any, *, plain: bool | None = None, stream: TextIO | None = None) -> None:
        self._watch = watch
        self._stream = sys.stderr if stream is None else stream
        self._plain = plain
        self._losses = Courses(getattr(watch, "turn_of", lambda step: 0))
        self._shown: Courses | None = None  # with the losses since the last sample, made anew by the next
        self._sent: tuple[list[int], OnItsWay] | None = None
        self._strip: Strip | None = None
        self._step = -1
        self._sampled: deque[int] = deque(maxlen=64)
        self._newest: tuple[int, Tensor] | None = None
        self._record: Run | None = None
        self._screen: Screen | None = None
        self._console: Console | None = None
        self._next = 0.0
        self._costs: deque[float] = deque(maxlen=3)
        self._drawn = False
        self._pause = PLAIN_SECONDS[0]
        self._told: dict[str, Finding] = {}
        self._cleared: list[Finding] = []
        self._closed = False
        self._process = os.getpid()
        self._among = Among(watch)
        self._among.open()

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Count the step: the view moves, and lines come, between samples too, without waiting for the loss."""
        self._step = step
        self._newest = None if loss is None else (step, loss)
        if self._strip is None or self._closed or self._forked or time.monotonic() < self._next + 1.0:
            return
        if self._screen is not None:
            self._redraw()
        else:
            self._print(step, [])

    def sampled(self, sample: Sample) -> None:
        """Take in a sample, and draw if it is time."""
        if sample.rank != 0 or not is_first() or self._forked:
            return
        self._closed = False  # a watch may be entered again
        self._among.open()
        if self._strip is None or len(self._strip.names) != len(self._watch.sites):
            self._strip = Strip([site.name for site in self._watch.sites])
        self._step = max(self._step, sample.step)
        self._sampled.append(sample.step)
        for step, loss in sample.losses or (
            [(sample.step, sample.scalars["loss"])] if "loss" in sample.scalars else []
        ):
            self._losses.add(step, loss)
        self._hear_others()
        self._shown = self._sent = None
        self._strip.add(sample)
        changed = self._hear_findings()
        if self._showing():
            if time.monotonic() >= self._next:
                self._redraw()
        else:
            self._say(sample.step, changed)
            if time.monotonic() >= self._next:
                self._print(sample.step, self._range(sample))

    def _hear_others(self) -> None:
        """Take in the losses that another process has recorded: of a pipeline the last stage alone sees them."""
        folder = getattr(self._watch, "run", None)
        if folder is None or self._newest is not None or not is_one_of_several():
            return
        with suppress(UsageError, OSError):
            self._record = self._record or Run(folder)
            last = self._losses.last
            for step, loss in self._record.losses(after=-1 if last is None else last[0]):
                self._losses.add(step, loss)

    def found_between_samples(self, step: int) -> None:
        """Show at once what is found, or over, also before the first sample.

        Args:
            step: the present one.
        """
        if self._forked or not is_first():
            return
        self._closed = False  # as above
        self._among.open()
        self._step = max(self._step, step)
        changed = self._hear_findings()
        if self._screen is not None and self._showing():
            self._redraw()
        else:
            self._say(step, changed)

    def close(self) -> None:
        """Give the terminal back and say what was seen; again is harmless."""
        if self._closed or self._forked:
            return
        self._closed = True
        if self._screen is not None:
            self._screen.close()
            self._write("\n")
        if self._strip is not None or self._told:
            self._hear_others()
            last = self._last(wait=True)
            if last is not None and (self._losses.last is None or last[0] > self._losses.last[0]):
                self._losses.add(*last)
            console = self._terminal(min(self._width(), MAX_WIDTH))
            fine, called = _fine(console), self._among.called
            losses = apart(self._watch, self._losses) or [("", self._losses.whole)]
            for line in summary(self._watch, losses, width=console.width, fine=fine, called=called):
                self._write(self._rendered(line, console, None) + "\n")
        self._among.close()

    def _curve(self) -> Courses:
        """Return the losses with those since the last sample, without waiting for the device.

        Of several processes samples alone bring the losses of all.
        """
        if self._shown is None:
            self._shown = self._losses.copy()
        if is_one_of_several():
            return self._shown
        if self._sent is not None and self._sent[1].ready():
            for step, loss in zip(self._sent[0], self._sent[1].host().tolist(), strict=True):
                self._shown.add(step, loss)
            self._sent = None
        after = -1 if self._shown.last is None else self._shown.last[0]
        ended: Sequence[tuple[int, Tensor]] = getattr(self._watch, "ended_losses", tuple)()
        new = [*takewhile(lambda one: one[0] > after, reversed(ended))][::-1]
        if all(loss.is_cpu for _, loss in new):
            for step, loss in new:
                self._shown.add(step, float(loss))
        elif self._sent is None and all(loss.is_cuda for _, loss in new):  # they arrive until a later drawing
            steps, held = zip(*new, strict=True)
            self._sent = [*steps], OnItsWay(torch.stack([loss.detach().reshape(()).double() for loss in held]))
        return self._shown

    def _last(self, *, wait: bool) -> tuple[int, float] | None:
        """Return the newest step whose loss is known: samples bring those of all processes, and come seldom."""
        newest, last = self._newest, self._losses.last
        if newest is None or is_one_of_several() or (last is not None and newest[0] <= last[0]):
            return last
        return (newest[0], float(newest[1])) if wait or newest[1].is_cpu else last

    @property
    def _forked(self) -> bool:
        """Whether this is a copy in a child of the watched process, which shares its terminal."""
        return os.getpid() != self._process

    def _showing(self) -> bool:
        """Say whether the view is shown, beginning it if it can be."""
        if self._screen is not None:
            return Screen.active is self._screen
        if self._plain or Screen.active is not None:
            return False
        size = Screen.size(self._stream)
        if size is None or size[0] < MIN_WIDTH or not Screen.fits(self._stream, sum(self._heights(size[1]))):
            self._plain = True
            return False
        self._screen = Screen(self._stream)
        self._redraw()
        return True

    def _heights(self, lines: int) -> tuple[int, int, int, int]:
        """Divide the lines of a terminal: those of the loss, of the strip, of the findings, and the others."""
        assert self._strip is not None
        loss, findings = next(rest for least, *rest in HEIGHTS if lines >= least)
        others = 5  # a rule, what was measured last, the strip's heading and legend, the record
        room = int(SHARE_OF_LINES * lines) - loss - findings - others
        return loss, min(self._strip.rows, MAX_ROWS, max(room, MIN_ROWS)), findings, others

    def _width(self) -> int:
        size = Screen.size(self._stream)
        return size[0] if size else 80

    def _redraw(self) -> None:
        begun = time.monotonic()
        assert self._screen is not None
        width = min(self._width() - 1, MAX_WIDTH)
        console = self._terminal(width)
        size = Screen.size(self._stream) or (80, 24)
        self._screen.draw([self._rendered(line, console, width) for line in self.lines(width, size[1], console)])
        ended = time.monotonic()
        # The first time rich is imported, and a pause in drawing, of the terminal or the machine, is none of its cost.
        self._costs.append(ended - begun if self._drawn else 0.0)
        self._drawn = True
        self._next = ended + max(SECONDS_BETWEEN, min(self._costs) / SHARE)

    def lines(self, width: int, height: int, console: Console) -> list[Line]:
        """Give the view as lines.

        Args:
            width: of the view.
            height: of the terminal.
            console: which says whether it has colours and more letters than ASCII.
        """
        strip = self._strip
        assert strip is not None
        fine, coloured = _fine(console), console.color_system in ("truecolor", "256")
        rule = ("─" if fine else "-") * width
        loss, rows, findings, _ = self._heights(height)
        drawn = [[(rule, "dim")], self._heading(width, fine)]
        courses = self._curve()
        curve = course_lines(courses.whole, apart(self._watch, courses), width, loss, fine=fine)
        drawn += curve or [[] for _ in range(loss)]
        drawn.append(heading_line(strip, width))
        drawn += strip_lines(strip, width, rows, fine=fine, coloured=coloured)
        drawn.append(legend_line(strip, width, rows, fine=fine, coloured=coloured))
        standing = standing_in(self._watch)
        drawn += finding_lines(list(self._told.values()), self._cleared, standing, width, findings, fine)
        return [*drawn, footing(self._watch, fine)]

    def _heading(self, width: int, fine: bool) -> Line:
        told = [*self._now(self._step), *cost_pieces(self._watch, self._sampled, self._step + 1)]
        name = f"levada{self._among.called}"
        return [(name, "bold cyan"), ("  ", ""), (fitting(told, BETWEEN[fine], width - len(name) - 2), "")]

    def _now(self, step: int) -> list[str]:
        """Say the step and the newest loss that is known, or that of each optimizer that has its own."""
        if each := apart(self._watch, self._shown or self._losses):
            losses = [f"loss{of(name)} {one.last[1]:.4g}" for name, one in each if one.last is not None]
            return [f"step {step:,}", *losses]
        last = self._last(wait=False)
        if last is None:
            return [f"step {step:,}"]
        return [f"step {step:,}", f"loss {last[1]:.4g}" + (f" at step {last[0]:,}" if last[0] < step else "")]

    def _hear_findings(self) -> list[str]:
        """Take in what is found now; say in a line each what is new and what is over."""
        now = {case_of(one): one for one in fired(self._watch)}
        cases, rules = {case_of(one) for one in self._watch.findings}, {one.rule for one in now.values()}
        # Of what is gone, as from rules that raised, nobody said that it is over.
        now |= {key: one for key, one in self._told.items() if key not in cases and one.rule not in rules}
        said = [
            f"{CALLED[one.severity]}: {one.rule}{more(others)}: {one.claim}"
            for one, others in told_once(list(now.values()))
            if self._is_new(case_of(one), one)
        ]
        over = [one for key, one in self._told.items() if key not in now and key in cases]
        stands = {one.rule for one in now.values()}
        past = {one.rule: one for one in (*over, *self._cleared) if one.rule not in stands}
        self._cleared = list(past.values())[:MAX_CLEARED]
        self._told = now
        return said + [f"over: {one.rule}{more(others)}" for one, others in told_once(over)]

    def _is_new(self, key: str, finding: Finding) -> bool:
        """Say whether a finding was not told, or is worse now, or of a place that was not known."""
        told = self._told.get(key)
        return told is None or (told.severity, told.where) != (finding.severity, finding.where)

    def _print(self, step: int, gradient: Sequence[str]) -> None:
        self._next = time.monotonic() + self._pause
        self._pause = min(1.5 * self._pause, PLAIN_SECONDS[1])
        told = [*self._now(step), *gradient, *cost_pieces(self._watch, self._sampled, self._step + 1)]
        self._write(f"levada{self._among.called}: {', '.join(told)}\n")

    def _say(self, step: int, changed: Sequence[str]) -> None:
        for line in changed:
            self._write(f"levada{self._among.called}: step {step:,}, {printable(line)}\n")

    def _range(self, sample: Sample) -> list[str]:
        values = sample.values.get("gradient_rms")
        if values is None or values.numel() == 0 or self._strip is None:
            return []
        names = self._strip.names
        bad = [name for name, value in zip(names, values.tolist(), strict=False) if math.isinf(value)]
        known = [(value, name) for name, value in zip(names, values.tolist(), strict=False) if math.isfinite(value)]
        told = [f"gradient NaN or Inf at {printable(bad[0])}"] if bad else []
        if known:
            (low, where), (high, there) = min(known), max(known)
            told.append(f"gradient {low:.3g} at {printable(where)} to {high:.3g} at {printable(there)}")
        return told

    def _terminal(self, width: int) -> Console:
        if self._console is None or self._console.width != width:
            from rich.console import Console

            self._console = Console(file=self._stream, width=width, height=100)
        return self._console

    def _rendered(self, line: Line, console: Console, width: int | None) -> str:
        from rich.segment import Segment
        from rich.style import Style

        pieces = [Segment(printable(text), Style.parse(style) if style else None) for text, style in line]
        cropped = pieces if width is None else Segment.adjust_line_length(pieces, width, pad=False)
        system = console._color_system
        return "".join(
            piece.style.render(piece.text, color_system=system) if piece.style else piece.text for piece in cropped
        )

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more; training goes on
            self._plain = True


def _fine(console: Console) -> bool:
    return console.encoding.lower().startswith("utf") and not console.legacy_windows
