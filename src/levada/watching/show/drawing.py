"""What the live view shows, as lines of styled text: no terminal here, and nothing of rich."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from levada._names import bare_names, printable, span_name
from levada.watching.measure.sample import Sample

__all__ = [
    "RAMP",
    "Course",
    "Line",
    "Strip",
    "columns_of",
    "fitting",
    "heading_line",
    "legend_line",
    "loss_lines",
    "strip_lines",
]

Line: TypeAlias = list[tuple[str, str]]  # pieces of text with their styles

MAX_ROWS: Final = 64
MAX_COLUMNS: Final = 240
DECADES: Final = 3.0  # the least that the colours span, so that what hardly changes looks as if it hardly changes
# From dark blue to light yellow: lightness rises throughout, so that it reads in grey and without red or green.
RAMP: Final = (
    "#10285a", "#16386a", "#24476f", "#365573", "#496376", "#5c7178", "#6f7f79", "#838d78",
    "#979b74", "#aba96d", "#c0b763", "#d5c557", "#ead44a", "#fbe566",
)  # fmt: skip
_BARS: Final = "▁▂▃▄▅▆▇█"
_LETTERS: Final = ".:-=+*#%"
_BRAILLE: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BAD: Final = "bold #ffffff on #a03a86"


@final
class Course:
    """Losses of all steps so far in bounded memory: when it is full, neighbours are merged.

    Args:
        most: how many stretches are kept.

    Attributes:
        began: the first step, and its loss.
        last: the last step, and its loss.

    Example:
        >>> course = Course(4)
        >>> for step in range(8):
        ...     course.add(step, float(step))
        >>> course.values
        [0.5, 2.5, 4.5, 6.5]
        >>> course.began, course.last
        ((0, 0.0), (7, 7.0))
    """

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._size = 1
        self._sums: list[float] = []
        self._counts: list[int] = []
        self.began: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None

    def add(self, step: int, loss: float) -> None:
        """Add the loss of a step."""
        self.began = self.began or (step, loss)
        self.last = (step, loss)
        if not self._counts or self._counts[-1] == self._size:
            if len(self._counts) == self._most:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._counts = [a + b for a, b in zip(self._counts[::2], self._counts[1::2], strict=True)]
                self._size *= 2
            self._sums.append(0.0)
            self._counts.append(0)
        self._sums[-1] += loss
        self._counts[-1] += 1

    def copy(self) -> Course:
        """Return another with the same losses, to which more can be added."""
        made = Course(self._most)
        made._size, made._sums, made._counts = self._size, [*self._sums], [*self._counts]
        made.began, made.last = self.began, self.last
        return made

    @property
    def values(self) -> list[float]:
        """The mean loss of each stretch; not a number where one loss of it was none."""
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]


@final
class Strip:
    """Gradients of recent samples by depth, as logarithms, in at most `MAX_ROWS` groups of blocks.

    A group shows the mean of its logarithms, unless a block of it is worse: no finite number (`inf`) hides all, and
    exactly zero (`-inf`) hides what is finite. What was not measured is NaN.

    Args:
        names: the blocks, from the first on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.size = math.ceil(len(self.names) / MAX_ROWS) if self.names else 1
        self.rows = math.ceil(len(self.names) / self.size)
        self.columns: deque[tuple[int, list[float]]] = deque(maxlen=MAX_COLUMNS)
        self._group = torch.arange(len(self.names)) // self.size
        self._merged: tuple[int, deque[tuple[int, list[float]]]] = (self.rows, self.columns)
        self._bare = bare_names(self.names)

    def add(self, sample: Sample) -> None:
        """Add a sample; one of another number of blocks is passed over."""
        values = sample.values.get("gradient_rms")
        if values is None or bool(values.isnan().all()):
            values = sample.values.get("weight_gradient_rms", values)
        if values is None or values.numel() != len(self.names):
            return
        bad = sample.values.get("gradient_nonfinite")
        logs = values.detach().double().cpu().log10()
        if bad is not None:
            logs = logs.masked_fill(bad.cpu() > 0, torch.inf)
        self.columns.append((sample.step, _grouped(logs, self._group, self.rows)))
        rows, merged = self._merged
        if merged is not self.columns:
            merged.append((sample.step, self._merge(self.columns[-1][1], rows)))

    def label(self, row: int, rows: int) -> str:
        """Name a row of `rows` by its block, or by the first and the last of it, without what all names share."""
        each = math.ceil(self.rows / rows) * self.size
        first, last = row * each, min((row + 1) * each, len(self.names)) - 1
        return span_name(self._bare[first], self._bare[last])

    def cells(self, rows: int) -> Sequence[tuple[int, list[float]]]:
        """Give the columns with at most `rows` rows."""
        if rows >= self.rows:
            return self.columns
        if self._merged[0] != rows:
            merged = deque(((step, self._merge(one, rows)) for step, one in self.columns), maxlen=MAX_COLUMNS)
            self._merged = (rows, merged)
        return self._merged[1]

    def _merge(self, column: list[float], rows: int) -> list[float]:
        size = math.ceil(self.rows / rows)
        group = torch.arange(self.rows) // size
        return _grouped(torch.tensor(column, dtype=torch.float64), group, math.ceil(self.rows / size))


def _grouped(logs: Tensor, group: Tensor, count: int) -> list[float]:
    finite, known = logs.isfinite(), ~logs.isnan()
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, group, logs.double().where(finite, torch.tensor(0.0)))
    number = torch.zeros(count, dtype=torch.float64).index_add_(0, group, finite.double())
    mean = total / number  # 0/0: a group of which nothing was measured
    for bad in (-torch.inf, torch.inf):
        hit = torch.zeros(count).index_add_(0, group, (known & (logs == bad)).float())
        mean = mean.masked_fill(hit > 0, bad)
    return mean.tolist()


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width // 2 - 1] + "…" + text[len(text) - (width - width // 2) :]


def _scale(columns: Iterable[tuple[int, list[float]]]) -> tuple[float, float, float]:
    """Give the logarithms between which the colours run, and their median."""
    finite = sorted(value for _, column in columns for value in column if math.isfinite(value))
    if not finite:
        return -DECADES, 0.0, -DECADES / 2
    low, high, median = finite[0], finite[-1], finite[len(finite) // 2]
    room = max(0.0, DECADES - (high - low)) / 2
    return low - room, high + room, median


def _cell(value: float, low: float, high: float, fine: bool, coloured: bool) -> tuple[str, str]:
    if math.isnan(value):
        return " ", ""
    if value == math.inf:
        return ("×" if fine else "X"), (_BAD if coloured else "")
    if value == -math.inf:
        return "0", "dim"
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    if coloured:
        return " ", f"on {RAMP[round(share * (len(RAMP) - 1))]}"
    letters = _BARS if fine else _LETTERS
    return letters[round(share * (len(letters) - 1))], ""


def _joined(cells: Iterable[tuple[str, str]]) -> Line:
    """Join neighbours of one style."""
    line: Line = []
    for text, style in cells:
        if line and line[-1][1] == style:
            line[-1] = (line[-1][0] + text, style)
        else:
            line.append((text, style))
    return line


def _power(value: float) -> str:
    """Write a logarithm as a number: of two digits, in eight letters at most.

    Example:
        >>> _power(-4.6), _power(0.0), _power(float("-inf")), _power(float("nan"))
        ('2.5e-5', '1', '0', '')
    """
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "NaN/Inf" if value > 0 else "0"
    if abs(value) < 300:
        number = 10.0**value
        if 1e-2 <= number < 1e3:
            return f"{number:.2g}" if number < 100 else f"{number:.0f}"
        mantissa, exponent = f"{number:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"1e{round(value)}"


def columns_of(width: int) -> tuple[int, int]:
    """Say how wide a row's label and its cells are in a view of this width."""
    label = min(22, max(8, width // 5))
    return label, max(4, width - label - 11)


def strip_lines(strip: Strip, width: int, rows: int, *, fine: bool, coloured: bool) -> list[Line]:
    """Draw the heat strip: a line for each row, its name before and its latest value behind.

    Args:
        strip: what is drawn.
        width: of the view.
        rows: at most as many.
        fine: whether letters beyond ASCII can be shown.
        coloured: whether cells are coloured; else their heights say the same.
    """
    cells = strip.cells(rows)
    low, high, _ = _scale(cells)
    label, room = columns_of(width)
    shown = list(cells)[-room:]
    count = len(cells[-1][1]) if cells else 0
    lines = []
    for row in range(count):
        drawn = _joined(_cell(column[row], low, high, fine, coloured) for _, column in shown)
        last = shown[-1][1][row]
        name = _cut(strip.label(row, rows), label - 1)
        name = name if fine else name.replace("…", "~")
        padding = " " * (room - len(shown) + 1)
        style = "bold" if math.isinf(last) else ""
        lines.append([(f"{name:<{label}}", "dim"), *drawn, (padding, ""), (f"{_power(last):>8}", style)])
    return lines


def heading_line(strip: Strip, width: int) -> Line:
    """Say what the strip shows: which blocks, and which steps."""
    _, room = columns_of(width)
    steps = [step for step, _ in strip.columns][-room:]
    blocks = printable(span_name(strip.names[0], strip.names[-1]))
    told = ["gradient by block", f"downwards {blocks}", f"steps {steps[0]:,} to {steps[-1]:,}" if steps else ""]
    return [(fitting([text for text in told if text], ", ", width), "dim")]


def fitting(pieces: Sequence[str], between: str, width: int) -> str:
    """Join pieces, without those from the first on that would not fit."""
    told = ""
    for piece in pieces:
        longer = f"{told}{between}{piece}" if told else piece
        if told and len(longer) > width:
            break
        told = longer
    return told


def legend_line(strip: Strip, width: int, rows: int, *, fine: bool, coloured: bool) -> Line:
    """Say what colours or heights mean."""
    cells = strip.cells(rows)
    low, high, median = _scale(cells)
    label, room = columns_of(width)
    count = len(RAMP) if coloured else len(_BARS)
    ramp = [_cell(low + (high - low) * i / (count - 1), low, high, fine, coloured) for i in range(count)]
    marks = {value for _, column in list(cells)[-room:] for value in column if math.isinf(value)}
    told = [_power(high), f"median {_power(median)}"]
    told += ["0 exactly zero"] if -math.inf in marks else []
    told += [f"{'×' if fine else 'X'} NaN or Inf"] if math.inf in marks else []
    begun = label + len(_power(low)) + count + 2
    return [
        (" " * label, ""),
        (f"{_power(low)} ", "dim"),
        *_joined(ramp),
        (f" {fitting(told, '  ', width - begun)}", "dim"),
    ]


def loss_lines(course: Course, width: int, height: int, *, fine: bool, of: str = "") -> list[Line]:
    """Draw the loss of all steps so far, with the largest and the smallest on the left.

    Where all are positive and two decades apart, the height is their logarithm.

    Args:
        course: the losses.
        width: of the view.
        height: number of lines.
        fine: whether letters beyond ASCII can be shown.
        of: whose losses these are, behind a space, where others have theirs.
    """
    values = course.values
    label, room = columns_of(width)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    scaled = math.log10 if min(finite) > 0 and max(finite) > 100 * min(finite) else float
    low, high = scaled(min(finite)), scaled(max(finite))
    grid = [[0] * room for _ in range(height)]
    levels, before = 4 * height - 1, None
    for x in range(2 * room):
        value = values[min(x * len(values) // (2 * room), len(values) - 1)]
        if not math.isfinite(value):
            grid[0][x // 2] = -1
            before = None
            continue
        y = round((scaled(value) - low) / (high - low) * levels) if high > low else levels // 2
        # A steep place is a line without gaps.
        for level in range(*((y, y + 1) if before is None else (min(y, before + 1), max(y, before - 1) + 1))):
            cell = grid[height - 1 - level // 4]
            if cell[x // 2] >= 0:
                cell[x // 2] |= _BRAILLE[x % 2][3 - level % 4]
        before = y
    ends = {height - 1: _short(min(finite)), 0: f"loss{of} {_short(max(finite))}"}
    return [
        [
            (f"{ends.get(i, ''):>{label - 1}} ", "dim"),
            *_joined((_dot(bits, fine), "bold #a03a86" if bits < 0 else "cyan") for bits in row),
        ]
        for i, row in enumerate(grid)
    ]


def _dot(bits: int, fine: bool) -> str:
    if bits < 0:
        return "×" if fine else "X"
    if fine:
        return chr(0x2800 + bits) if bits else " "
    return "*" if bits else " "


def _short(value: float) -> str:
    return f"{value:.3g}"
