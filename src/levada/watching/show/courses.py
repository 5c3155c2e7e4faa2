"""The losses that the live view shows: of all steps, and of each optimizer that has losses of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from levada.watching.show.drawing import Course, Line, loss_lines
from levada.watching.verdict.series import MOST, kinds_apart

__all__ = ["Courses", "apart", "course_lines", "named", "of"]


@final
class Courses:
    """The losses of all steps so far, and those of the steps of each optimizer.

    Args:
        turn_of: gives which optimizers made a step, by the sum of 1, 2, 4, ... of them; 0 if all did, None of one that
            was not made.

    Attributes:
        whole: all of them.
        each: those of each turn.

    Example:
        >>> courses = Courses(lambda step: 1 + step % 2)
        >>> for step in range(4):
        ...     courses.add(step, 7.0 if step % 2 else 1.0)
        >>> courses.last, {turn: one.values for turn, one in courses.each.items()}
        ((3, 7.0), {1: [1.0, 1.0], 2: [7.0, 7.0]})
    """

    def __init__(self, turn_of: Callable[[int], int | None]) -> None:
        self._turn_of = turn_of
        self.whole, self.each = Course(), dict[int, Course]()

    @property
    def last(self) -> tuple[int, float] | None:
        """The last step, and its loss."""
        return self.whole.last

    def add(self, step: int, loss: float) -> None:
        """Add the loss of a step; of one that was not made nobody knows which optimizers would have."""
        self.whole.add(step, loss)
        turn = self._turn_of(step)
        if turn is not None and (turn or self.each) and (turn in self.each or len(self.each) < MOST):
            self.each.setdefault(turn, Course()).add(step, loss)

    def copy(self) -> Courses:
        """Return others with the same losses, to which more can be added."""
        made = Courses(self._turn_of)
        made.whole, made.each = self.whole.copy(), {turn: one.copy() for turn, one in self.each.items()}
        return made


def named(turn: int) -> str:
    """Name the optimizers of a turn in a few letters.

    Example:
        >>> named(2), named(5), named(0)
        ('2', '1+3', 'all')
    """
    return "+".join(str(i + 1) for i in range(turn.bit_length()) if turn >> i & 1) or "all"


def of(name: str) -> str:
    """Say whose a loss is, behind a space; "" of one that is everybody's.

    Args:
        name: of a turn, or "".
    """
    return name and (" of all optimizers" if name == "all" else f" of optimizer {name}")


def apart(watch: Any, courses: Courses) -> list[tuple[str, Course]]:
    """Give a name and the losses of each turn, where the optimizers of a watch have losses of their own; else nothing.

    Args:
        watch: what is shown.
        courses: its losses.
    """
    return [(named(turn), one) for turn, one in sorted(courses.each.items())] if kinds_apart(watch) else []


def course_lines(
    whole: Course, each: Sequence[tuple[str, Course]], width: int, height: int, *, fine: bool
) -> list[Line]:
    """Draw the loss, or those of each of several optimizers below each other, as many as there is room for.

    Args:
        whole: all losses.
        each: those of each optimizer, with its name; none where the loss is one.
        width: of the view.
        height: number of lines.
        fine: whether letters beyond ASCII can be shown.
    """
    if not each:
        return loss_lines(whole, width, height, fine=fine)
    rows = max(1, height // len(each))
    lines = [
        line for name, one in each[: height // rows] for line in loss_lines(one, width, rows, fine=fine, of=f" {name}")
    ]
    return [*lines, *([] for _ in range(height - len(lines)))]
