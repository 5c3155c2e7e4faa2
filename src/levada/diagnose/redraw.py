"""Draw suspected parameters again, train both models for some steps, and find which of them makes the difference."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from levada._errors import MeasurementError
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import Course, rehearse, undone
from levada.diagnose.scales import EPS_CODE, Suspect, suspects
from levada.diagnose.update import Assumed, Factory
from levada.inputs import Batch

__all__ = ["DRAWS", "STANDS", "Redrawn", "code_of", "draw_again", "redrawn"]

# With 20 steps of Adam a model drawn a hundred times too small had hardly begun to fall behind; with 60 it had.
LENGTH = 60
DRAWS = 3
# Student's t of two degrees of freedom, 95 %, over the root of three draws.
SPREAD = 4.303 / math.sqrt(3)
# The loss ends lower by at least this share of what is to be gained, and of where the model as it is ends: what catches
# up within these steps was drawn as somebody liked it.
WORTH, LESS = 0.1, 0.1
# A part of the suspects whose drawing brings this share of the gain is what was wrong.
MOST = 0.9
# Less than this share of the gain, and the model as it is learns next to nothing.
STANDS = 0.15
AGAIN = "drawing parameters of an unusual size again"


@dataclass(frozen=True, slots=True)
class Redrawn:
    """What drawing suspected parameters again does to training.

    Attributes:
        suspects: all that were drawn, in order of execution.
        culprits: the fewest consecutive ones that bring most of the gain; all, where most of the model is suspected.
        plain: training of the model as it is.
        courses: training of the model with all of them drawn again, one course a draw.
        low: lower end of the 95 % interval of the gain.
        chosen: whether somebody chose the learning rate.
        most: whether most matrices are suspected: then what saturates or explodes follows.
    """

    suspects: tuple[Suspect, ...]
    culprits: tuple[Suspect, ...]
    plain: Course
    courses: tuple[Course, ...]
    low: float
    chosen: bool
    most: bool = False

    @property
    def share(self) -> float:
        """What the model gains as it is, over what it gains drawn again; the mean over draws."""
        return _share(self.plain, self.courses)

    @property
    def gain(self) -> float:
        """How much lower the loss ends, over what is to be gained; the mean over draws."""
        return statistics.fmean(_gain(self.plain, course, course) for course in self.courses)


def redrawn(
    run: Run,
    loss: Callable[[Any, Batch], Tensor],
    factory: Factory,
    order: Sequence[str],
    head: Sequence[str],
    *,
    chain: bool = False,
    most: bool = False,
) -> Redrawn | None:
    """Draw what no initialisation would draw like that again; None if there is nothing, or if it does not help.

    The model as it is and the model with the suspects drawn again train for the same steps, with the same random
    numbers, on all batches in turn. All of three draws must end lower, and their mean gain be above zero with
    its interval; what is set to a number is set once. Then halves of the suspects are drawn alone, unless they are most
    of the model. Where there is no time for it nothing is known, for a suspicion alone says nothing.

    Args:
        run: the model, which comes back as it was, on its batches.
        loss: of outputs and a batch.
        factory: builds the optimizer.
        order: names of parameters, in order of execution.
        head: names of the last layer's parameters.
        chain: whether every operation reads one signal.
        most: whether to ask only where most matrices are suspected.

    Cost:
        A pass over the parameters; with suspects 60 steps, and as many again for each draw and half.
    """

    def once() -> Any:
        if not run.pace.allows(AGAIN, 1):
            raise MeasurementError(f"check: there is no time for {AGAIN}.")
        return run()

    try:
        with undone(run.model):
            found = suspects(run.model, once, head, chain=chain)
    except (MeasurementError, RuntimeError):
        return None  # a hook that a module does not survive says nothing about weights
    mostly = _most(run.model, found)
    draws = DRAWS if any("generator" in suspect.code for suspect in found) else 1
    steps = LENGTH + 1
    if not found or (most and not mostly) or not run.pace.allows(AGAIN, 2 * steps, 2 * steps):
        return None
    place = {name: index for index, name in enumerate(order)}
    found = tuple(sorted(found, key=lambda suspect: place.get(suspect.near, len(place))))
    test = _Test(run, loss, factory)
    plain = test.course()
    courses: list[Course] = []
    while plain is not None and len(courses) < draws:
        if courses and not run.pace.allows(AGAIN, steps, steps):
            return None
        course = test.course(found, len(courses))
        if course is None or not _better(plain, course):
            break
        courses.append(course)
    if plain is None or len(courses) < draws:
        if time.perf_counter() > run.pace.deadline:
            run.pace.leave_out(AGAIN)
        return None
    gains = [_gain(plain, course, course) for course in courses]
    low = statistics.fmean(gains) - (SPREAD * statistics.stdev(gains) if draws > 1 else 0.0)
    if not low > 0:
        return None
    chosen = not (isinstance(factory, Assumed) and factory.lr is None)
    culprits = found if mostly else test.located(found, plain, courses[0])
    if any(suspect.of_eps for suspect in culprits):  # eps is measured, and right where it is small, wherever it is
        culprits = tuple(suspect for suspect in found if suspect.of_eps or suspect in culprits)
    return Redrawn(found, culprits, plain, tuple(courses), low, chosen, mostly)


def draw_again(model: nn.Module, drawn: Sequence[Suspect], seed: int) -> None:
    """Run the code of the suspects on a model.

    Args:
        model: changed in place.
        drawn: the suspects.
        seed: of the draw.
    """
    if drawn:
        device = next(model.parameters()).device
        code = code_of(drawn, f"torch.Generator({str(device)!r}).manual_seed({seed % 2**63})")
        exec(compile(code, "<redraw>", "exec"), {"model": model})


def code_of(drawn: Sequence[Suspect], generator: str) -> str:
    """Return code that draws suspects again.

    Args:
        drawn: the suspects.
        generator: code for the random numbers.
    """
    names: dict[str, list[str]] = {}
    for suspect in drawn:
        names.setdefault(suspect.code, []).append(suspect.name)
    lines = ["from torch import nn"]
    if any("generator" in code for code in names):
        lines = ["import torch", *lines, f"generator = {generator}"]
    for code, these in names.items():
        if code.startswith(EPS_CODE):
            lines += [f"for name in {[name.removesuffix('eps').removesuffix('.') for name in these]!r}:"]
            lines += [f"    p = model.get_submodule(name)\n    {code}"]
            continue
        told = "\n".join(textwrap.wrap(repr(these), 100, subsequent_indent=" " * 4, break_long_words=False))
        lines += [f"for name in {told}:", "    p = model.get_parameter(name)", f"    {code}"]
    return "\n".join(lines)


def _most(model: nn.Module, found: Sequence[Suspect]) -> bool:
    """Whether most matrices are suspected: then all were drawn wrongly, though any of them may repair a good part."""
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    return sum(suspect.name in matrices for suspect in found) > len(matrices) / 2


def _gain(plain: Course, course: Course, whole: Course) -> float:
    """Return how much lower a course ends, over what is to be gained.

    That is what the model gains with everything drawn again, or the larger of where the plain course starts and ends if
    that is less: weights that are too large begin with a loss beside which all others are alike.
    """
    if not math.isfinite(course.end):
        return -math.inf
    size = max(abs(plain.losses[0]), abs(plain.end))
    if not math.isfinite(size):
        return 1.0
    size = min(size, whole.gain)
    return (plain.end - course.end) / size if size > 0 else 0.0


def _share(plain: Course, courses: Sequence[Course]) -> float:
    """Return what the plain course gains over what others gain, each from the lower start.

    Large weights start with a loss that falls far, which is no learning.
    """
    if not math.isfinite(plain.end):
        return 0.0
    shares = []
    for course in courses:
        start = min(loss for loss in (plain.losses[0], course.losses[0]) if not math.isnan(loss))
        whole = start - course.end
        shares.append((start - plain.end) / whole if whole > 0 else 0.0)
    return statistics.fmean(shares)


def _better(plain: Course, course: Course) -> bool:
    return _gain(plain, course, course) > WORTH and not plain.end - course.end < LESS * abs(plain.end)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Give parameters, buffers and gradients back their values, and normalisations their eps."""
    held = {module: module.eps for module in model.modules() if isinstance(getattr(module, "eps", None), float)}
    with undone(model):
        try:
            yield
        finally:
            for module, eps in held.items():
                module.eps = eps


@dataclass(frozen=True, slots=True)
class _Test:
    """Trainings from the model as it is, with some parameters drawn again."""

    run: Run
    loss: Callable[[Any, Batch], Tensor]
    factory: Factory

    def course(self, drawn: Sequence[Suspect] = (), draw: int = 0) -> Course | None:
        """Train; None if it is refused, or time runs out."""
        run, batches = self.run, self.run.batches  # one alone is soon known by heart, however a model was drawn
        turns = itertools.cycle(enumerate(batches))

        def objective() -> Tensor:
            index, batch = next(turns)
            return self.loss(run(index), batch)

        with _restored(run.model):
            draw_again(run.model, drawn, run.seed + draw)
            course = rehearse(run.model, objective, self.factory, run.pace.deadline, steps=LENGTH)
        return replace(course, batches=len(batches)) if course is not None and course.complete else None

    def located(self, drawn: tuple[Suspect, ...], plain: Course, whole: Course) -> tuple[Suspect, ...]:
        """Halve what was drawn for as long as a half brings most of the gain."""
        gain = _gain(plain, whole, whole)
        while len(drawn) > 1:
            middle = len(drawn) // 2
            courses = {half: self.course(half) for half in (drawn[:middle], drawn[middle:])}
            gains = {half: _gain(plain, course, whole) for half, course in courses.items() if course is not None}
            best = max(gains, key=lambda half: gains[half], default=drawn)
            if best is drawn or gains[best] < MOST * gain:
                break
            drawn = best
        return drawn
