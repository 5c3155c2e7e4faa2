"""What the log of a watched run tells of its steps: losses, and what the loop logged behind the last sample."""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from levada._numbers import restore_numbers
from levada.runs.frames import MAGIC, Damage, scan
from levada.runs.standing import CONTINUED

__all__ = ["ALL", "APART", "LOGGED", "OF", "TURNS", "Told", "Waiting", "optimizers_in", "told_alone", "unsampled"]

LOGGED: Final = "logged"
# Of several processes an event of losses says if they are means over all, or of which one they are.
OF: Final = "of"
ALL: Final = "all"
# Of optimizers that take turns it says which of them made each step, and an event of this type, once it is seen, that
# each of them has losses of its own.
TURNS: Final = "turns"
APART: Final = "apart"
_UNTOLD: Final = -1  # a turn of optimizers that were not recorded


class Waiting(NamedTuple):
    """A number that was logged before the sample that is to bring it.

    Attributes:
        step: at which it was logged.
        following: first step of which a sample brings it.
        value: the number.
        until: the step from which a later process went on, whose samples do not bring it; infinity if none did.
    """

    step: int
    following: int
    value: float
    until: float = math.inf


def unsampled(sampled: Mapping[int, float], waiting: Iterable[Waiting]) -> dict[int, float]:
    """Give step and number of what was logged and brought by no sample, as its process was killed before.

    Args:
        sampled: step and number of the samples that have one of this name.
        waiting: of the same name.

    Example:
        >>> unsampled({0: 1.0, 40: 4.0}, [Waiting(9, 10, 2.0, until=30), Waiting(35, 36, 4.0)])
        {9: 2.0}
    """
    steps, found = sorted(sampled), dict[int, float]()
    for step, following, value, until in waiting:
        place = bisect_left(steps, following)
        if place == len(steps) or steps[place] >= until:
            # The sample of the step has what was logged before its end.
            found[following if step in sampled and following < until else step] = value
    return found


def optimizers_in(turn: int, kinds: Sequence[str]) -> str:
    """Name the optimizers that step in a turn.

    Args:
        turn: the sum of 1, 2, 4, ... of them; 0 is all.
        kinds: the class of each of all optimizers.

    Example:
        >>> optimizers_in(2, ["Adam", "SGD"]), optimizers_in(3, ["Adam"] * 3), optimizers_in(0, ["Adam", "SGD"])
        ('optimizer 2 of 2 (SGD)', 'optimizers 1 and 2 of 3 (Adam)', 'all 2 optimizers')
    """
    those = [i for i in range(len(kinds)) if turn >> i & 1]
    if not those:
        return f"all {len(kinds)} optimizers"
    names = " and ".join(str(i + 1) for i in those)
    named = ", ".join(dict.fromkeys(kinds[i] for i in those))
    return f"optimizer{'s' if len(those) > 1 else ''} {names} of {len(kinds)} ({named})"


@final
class Told:
    """Reads a log, and when it is asked again only what came since.

    Args:
        log: the file; it need not be there.

    Example:
        >>> import tempfile
        >>> from levada.runs import RunWriter
        >>> with RunWriter.create(tempfile.mkdtemp(), kind="watch", name="mine") as writer:
        ...     writer.append("loss", steps=[0, 1], values=[2.0, 1.0])
        ...     told = Told(writer.path / "events.log")
        ...     before = told.losses()
        ...     writer.append("loss", steps=[1, 2], values=[1.5, 0.5])  # went on from step 1
        >>> before, told.losses()
        ([(0, 2.0), (1, 1.0)], [(0, 2.0), (1, 1.5), (2, 0.5)])
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._begin(())

    def _begin(self, file: tuple[int, ...]) -> None:
        self._file, self._offset = file, len(MAGIC)
        self._steps: list[int] = []
        self._values: list[float] = []
        self._turns: list[int | None] = []  # None of a step that was under way when its loss was written
        self._apart: tuple[int, list[str]] | None = None  # the step at which that was seen, and the optimizers
        self._logged: dict[str, dict[int, float]] = {}
        self._waiting: dict[str, Waiting] = {}
        self._left: list[tuple[str, Waiting]] = []  # what waited when a process ended

    def losses(self, *, after: int = -1) -> list[tuple[int, float]]:
        """Give step and loss of every step whose loss was seen; where a step came again, the later one.

        Args:
            after: only of steps behind this one.
        """
        self._read_on()
        place = bisect_right(self._steps, after)
        return list(zip(self._steps[place:], self._values[place:], strict=True))

    def by_optimizer(self) -> dict[str, list[tuple[int, float]]]:
        """Give the losses of each turn of optimizers by its name, where they have losses of their own; else nothing."""
        self._read_on()
        found: dict[str, list[tuple[int, float]]] = {}
        if self._apart is None:
            return found
        names: dict[int | None, str] = {None: "a step that did not end", _UNTOLD: "optimizers that were not recorded"}
        for step, value, turn in zip(self._steps, self._values, self._turns, strict=True):
            name = names.get(turn) or names.setdefault(turn, optimizers_in(turn or 0, self._apart[1]))
            found.setdefault(name, []).append((step, value))
        return dict(sorted(found.items()))

    def logged(self) -> dict[str, dict[int, float]]:
        """Give name -> step -> number of what was logged behind the last sample."""
        self._read_on()
        return {name: dict(numbers) for name, numbers in self._logged.items()}

    def waiting(self) -> list[tuple[str, Waiting]]:
        """Give name and number of what each process logged last before a sample, the earliest process first."""
        self._read_on()
        return [*self._left, *self._waiting.items()]

    def _read_on(self) -> None:
        try:
            file = self._log.open("rb")
        except FileNotFoundError:
            return self._begin(())
        with file:
            found = os.fstat(file.fileno())
            same = (found.st_dev, found.st_ino)
            if same != self._file or found.st_size < self._offset:  # a log that was mended is another file
                self._begin(same)
            for one in scan(file, self._offset):
                if isinstance(one, Damage):
                    return None
                self._take(one.event)
                self._offset = one.stop
        return None

    def _take(self, event: Mapping[str, Any]) -> None:
        type, step = event.get("type"), event.get("step")
        if type == "loss":
            self._take_losses(event.get("steps"), restore_numbers(event.get("values")), event.get(TURNS))
        elif type == APART and isinstance(step, int) and isinstance(kinds := event.get("optimizers"), list):
            self._apart = step, [str(kind) for kind in kinds]
        elif type == CONTINUED and isinstance(step, int):
            self._cut(step)  # what was recorded of the steps from there on, other weights made
            if all(
                (turn or 0) <= 0 for turn in self._turns
            ):  # as of an earlier levada, which did not say it, or of a single optimizer
                self._turns = [_UNTOLD] * len(self._turns)
            self._apart = None if self._apart is not None and step <= self._apart[0] else self._apart
            for numbers in self._logged.values():
                for later in [one for one in numbers if one >= step]:
                    del numbers[later]
            # No sample of the process that goes on brings what the one before it had not sampled yet.
            held = [*self._left, *self._waiting.items()]
            self._left = [(name, one._replace(until=min(one.until, step))) for name, one in held if one.step < step]
            self._waiting = {}
        elif type == LOGGED and isinstance(step, int) and isinstance(values := event.get("values"), Mapping):
            following = event.get("next")
            for name, value in restore_numbers(dict(values)).items():
                if not isinstance(value, int | float) or isinstance(value, bool):
                    continue
                self._waiting.pop(name, None)
                if isinstance(following, int):
                    self._waiting[name] = Waiting(step, following, float(value))
                else:
                    self._logged.setdefault(name, {})[step] = float(value)

    def _take_losses(self, new: Any, found: Any, turns: Any) -> None:
        if not isinstance(new, list) or not isinstance(found, list) or not new or len(new) != len(found):
            return
        if not all(isinstance(step, int) for step in new) or not all(isinstance(x, int | float) for x in found):
            return
        self._cut(new[0])
        self._steps += new
        self._values += found
        known = isinstance(turns, list) and len(turns) == len(new)
        self._turns += [turn if type(turn) is int else None for turn in turns] if known else [0] * len(new)

    def _cut(self, step: int) -> None:
        place = bisect_left(self._steps, step)
        del self._values[place:], self._steps[place:], self._turns[place:]


def told_alone(events: Iterable[Mapping[str, Any]]) -> tuple[bool, list[int]]:
    """Say whether losses are means over several processes, and give the steps whose loss is that of one alone.

    Args:
        events: of a process of a watched run.

    Example:
        >>> own, mean = ({"type": "loss", "of": whose} for whose in (0, "all"))
        >>> told_alone([own | {"steps": [0, 1, 2]}, mean | {"steps": [0, 1]}, own | {"steps": [2]}])
        (True, [2])
    """
    means, alone = False, list[int]()
    for event in events:
        steps = event.get("steps")
        begun = steps[0] if isinstance(steps, list) and steps else event.get("step")
        if event.get("type") not in ("loss", CONTINUED) or not isinstance(begun, int):
            continue
        del alone[bisect_left(alone, begun) :]
        if OF in event and isinstance(steps, list):
            means |= event[OF] == ALL
            alone += [step for step in steps if event[OF] != ALL and isinstance(step, int)]
    return means, alone
