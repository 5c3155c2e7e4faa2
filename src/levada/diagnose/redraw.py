"""Draw suspected parameters again, train both models for some steps, and find which of them makes the difference."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import Course, rehearse, undone
from levada.diagnose.scales import Suspect, suspects
from levada.diagnose.update import Assumed, Factory

__all__ = ["DRAWS", "Redrawn", "code_of", "redrawn"]

LENGTH = 40
DRAWS = 3
# Student's t of two degrees of freedom, 95 %, over the root of three draws.
SPREAD = 4.303 / math.sqrt(3)
# The loss ends lower by at least this share of where it starts.
WORTH = 0.1
# A part of the suspects whose drawing brings this share of the gain is what was wrong.
MOST = 0.7


@dataclass(frozen=True, slots=True)
class Redrawn:
    """What drawing suspected parameters again does to training.

    Attributes:
        suspects: all that were drawn, in order of execution.
        culprits: the fewest consecutive ones that bring most of the gain.
        plain: training of the model as it is.
        courses: training of the model with all of them drawn again, one course a draw.
        low: lower end of the 95 % interval of the gain: how much lower the loss ends, over where it starts.
        chosen: whether somebody chose the learning rate.
    """

    suspects: tuple[Suspect, ...]
    culprits: tuple[Suspect, ...]
    plain: Course
    courses: tuple[Course, ...]
    low: float
    chosen: bool

    @property
    def gain(self) -> float:
        """How much lower the loss ends, over where it starts; the mean over draws."""
        return statistics.fmean(_gain(self.plain, course) for course in self.courses)


def redrawn(
    run: Run, loss: Callable[[object, object], Tensor], factory: Factory, order: Sequence[str], head: Sequence[str]
) -> Redrawn | None:
    """Test the parameters that no initialisation would draw; None if there are none, or drawing them does not help.

    Args:
        run: the model, which comes back as it was, on its batches.
        loss: of outputs and a batch.
        factory: builds the optimizer.
        order: names of parameters, in order of execution.
        head: names of the last layer's parameters.
    """
    try:
        with undone(run.model), torch.no_grad():
            found = suspects(run.model, run, head)
    except MeasurementError:
        return None
    if not found or time.perf_counter() > run.deadline:
        return None
    place = {name: index for index, name in enumerate(order)}
    found = tuple(sorted(found, key=lambda s: place.get(s.name, len(place))))
    test = _Test(run, loss, factory)
    plain = test.course(())
    if plain is None:
        return None
    test.plain = plain
    courses: list[Course] = []
    for draw in range(DRAWS):
        course = test.course(found, draw)
        if course is None or not _gain(plain, course) > WORTH:
            return None
        courses.append(course)
    gains = [_gain(plain, course) for course in courses]
    low = statistics.fmean(gains) - SPREAD * statistics.stdev(gains)
    if not low > 0:
        return None
    culprits = test.located(found, gains[0])
    chosen = not (isinstance(factory, Assumed) and factory.lr is None)
    return Redrawn(found, culprits, plain, tuple(courses), low, chosen)


def _gain(plain: Course, course: Course) -> float:
    start = plain.losses[0] if math.isfinite(plain.losses[0]) else math.inf
    if not math.isfinite(course.end):
        return -math.inf
    if not math.isfinite(plain.end):
        return 1.0
    size = max(abs(start), abs(plain.end)) if abs(start) < math.inf else 1.0
    return (plain.end - course.end) / size if size > 0 else 0.0


@dataclass(slots=True)
class _Test:
    """Trainings from the model as it is, with some parameters drawn again."""

    run: Run
    loss: Callable[[object, object], Tensor]
    factory: Factory
    plain: Course | None = None

    def course(self, drawn: Sequence[Suspect], draw: int = 0) -> Course | None:
        """Train; None if it is refused, or time runs out."""
        run, batch = self.run, self.run.batches[0]
        with undone(run.model):
            draw_again(run.model, drawn, run.seed + draw)
            course = rehearse(
                run.model, lambda: self.loss(run(), batch), self.factory, run.deadline, steps=LENGTH
            )
        return course if course is not None and course.complete else None

    def located(self, drawn: tuple[Suspect, ...], gain: float) -> tuple[Suspect, ...]:
        """Halve what was drawn for as long as a half brings most of the gain."""
        assert self.plain is not None
        while len(drawn) > 1:
            middle = len(drawn) // 2
            gains = {}
            for half in (drawn[:middle], drawn[middle:]):
                course = self.course(half)
                if course is not None:
                    gains[half] = _gain(self.plain, course)
            best = max(gains, key=lambda half: gains[half], default=drawn)
            if not gains or gains[best] < MOST * gain:
                return drawn
            drawn = best
        return drawn


def draw_again(model: nn.Module, drawn: Sequence[Suspect], seed: int) -> None:
    """Run the code of the suspects on a model."""
    if drawn:
        exec(compile(code_of(drawn, f"torch.Generator({{device}}).manual_seed({seed})", model), "<redraw>", "exec"), {"model": model})


def code_of(drawn: Sequence[Suspect], generator: str, model: nn.Module) -> str:
    """Return code that draws suspects again.

    Args:
        drawn: them.
        generator: code of the generator.
        model: on whose device.
    """
    device = next(model.parameters()).device
    names: dict[str, list[str]] = {}
    for suspect in drawn:
        names.setdefault(suspect.code, []).append(suspect.name)
    lines = ["import torch", "from torch import nn", f"generator = {generator.format(device=repr(str(device)))}"]
    for code, these in names.items():
        lines += [f"for name in {these!r}:", "    p = model.get_parameter(name)", f"    {code}"]
    return "\n".join(lines)
