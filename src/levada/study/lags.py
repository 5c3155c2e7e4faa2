"""Tasks over time that ask for what came long before, and a network that reads the last state of a recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.cells import Cell, Recurrent
from levada.study.data import Dataset

__all__ = [
    "ADDING_BASELINE",
    "Reader",
    "ReaderRecipe",
    "Task",
    "adding",
    "first_symbol",
    "pixels",
    "series",
    "temporal_order",
    "train_reader",
]

ADDING_BASELINE = 1 / 6
"""Mean squared error of always answering 1 to `adding`: the variance of the sum of two uniform numbers."""

Draw: TypeAlias = Callable[[int, Generator], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a sequence.

    Attributes:
        dim_in: numbers of one step.
        dim_out: numbers of an answer.
        draw: rows, generator -> inputs `(steps, rows, dim_in)` and targets, classes or numbers.
        kind: "class" is trained with cross-entropy and scored by the share of right answers, "number" with the mean
            squared error, by which it is scored.
        draw_test: the same, of what training never sees; `draw` where sequences are drawn afresh anyway.
        num_test: how many of these the score is of, or as many as there are.
    """

    dim_in: int
    dim_out: int
    draw: Draw
    kind: Literal["class", "number"] = "class"
    draw_test: Draw | None = None
    num_test: int = 2048

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what training makes small.

        Args:
            outputs: `(rows, dim_out)`.
            targets: as `draw` gives them.
        """
        if self.kind == "class":
            return functional.cross_entropy(outputs, targets)
        return functional.mse_loss(outputs.squeeze(-1), targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the share of right answers, or the mean squared error.

        Args:
            outputs: `(rows, dim_out)`.
            targets: as `draw` gives them.
        """
        if self.kind == "class":
            return float((outputs.argmax(-1) == targets).double().mean())
        return float(self.loss(outputs.double(), targets.double()))


def first_symbol(lag: int, symbols: int = 4) -> Task:
    """A symbol, silence, and at the last step, `lag` steps later, a mark: which symbol was it?

    Nothing comes between that could overwrite a memory: what is lost is lost by the recurrence itself. There are as
    many sequences as symbols, so that there is nothing to generalise to: it asks what can be learned at all.

    Args:
        lag: steps from the symbol to the mark.
        symbols: how many there are; chance is one in so many.

    Raises:
        UsageError: if the lag is below 1 or the symbols below 2.

    Example:
        >>> x, targets = first_symbol(5).draw(2, torch.Generator().manual_seed(0))
        >>> x.shape, bool((x[0, :, :4].argmax(-1) == targets).all()), int(x.sum())
        (torch.Size([6, 2, 5]), True, 4)
    """
    require_at_least("first_symbol", "lag", lag, 1)
    require_at_least("first_symbol", "symbols", symbols, 2)

    def draw(rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
        targets = torch.randint(symbols, (rows,), generator=generator)
        x = torch.zeros(lag + 1, rows, symbols + 1)
        x[0, torch.arange(rows), targets] = 1.0
        x[-1, :, symbols] = 1.0
        return x, targets

    return Task(symbols + 1, symbols, draw)


def adding(steps: int) -> Task:
    """Random numbers, two of which are marked, one in each half: what is their sum?

    Args:
        steps: length of the sequence.

    Raises:
        UsageError: if there are fewer than 2 steps.

    Example:
        >>> x, targets = adding(10).draw(3, torch.Generator().manual_seed(0))
        >>> x.shape, bool(torch.allclose((x[..., 0] * x[..., 1]).sum(0), targets))
        (torch.Size([10, 3, 2]), True)

    Source: Hochreiter and Schmidhuber 1997; as in Le, Jaitly and Hinton 2015, arXiv 1504.00941.
    """
    require_at_least("adding", "steps", steps, 2)

    def draw(rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(steps, rows, generator=generator)
        half, marks, each = steps // 2, torch.zeros(steps, rows), torch.arange(rows)
        marks[torch.randint(half, (rows,), generator=generator), each] = 1.0
        marks[half + torch.randint(steps - half, (rows,), generator=generator), each] = 1.0
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)

    return Task(2, 1, draw, "number")


def temporal_order(steps: int) -> Task:
    """Two symbols, each A or B, among distractors, at a tenth to a fifth and at half to six tenths: in which order?

    Args:
        steps: length of the sequence.

    Raises:
        UsageError: if there are fewer than 10 steps.

    Example:
        >>> x, targets = temporal_order(20).draw(3, torch.Generator().manual_seed(0))
        >>> x.shape, x[..., :2].sum((0, 2)).tolist(), int(targets.max()) < 4
        (torch.Size([20, 3, 6]), [2.0, 2.0, 2.0], True)

    Source: Hochreiter and Schmidhuber 1997; as in Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """
    require_at_least("temporal_order", "steps", steps, 10)

    def draw(rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
        tokens = 2 + torch.randint(4, (steps, rows), generator=generator)
        each, targets = torch.arange(rows), torch.zeros(rows, dtype=torch.long)
        for low, high in ((0.1, 0.2), (0.5, 0.6)):
            begin, end = int(low * steps), max(int(high * steps), int(low * steps) + 1)
            symbol = torch.randint(2, (rows,), generator=generator)
            tokens[torch.randint(begin, end, (rows,), generator=generator), each] = symbol
            targets = 2 * targets + symbol
        return functional.one_hot(tokens, 6).float(), targets

    return Task(6, 4, draw)


def pixels(data: Dataset) -> Task:
    """Images read pixel by pixel, row by row: which class is it?

    Args:
        data: images of one channel; of MNIST, 784 steps.

    Example:
        >>> images, classes = torch.zeros(8, 4, 4, dtype=torch.uint8), torch.arange(8) % 2
        >>> pixels(Dataset("stripes", images, classes, images, classes)).draw(3, torch.Generator())[0].shape
        torch.Size([16, 3, 1])

    Source: Le, Jaitly and Hinton 2015, arXiv 1504.00941.
    """
    return _classes(data, lambda images: images.float() / 255)


def series(data: Dataset) -> Task:
    """Signals read step by step, less the training signals' mean, by their standard deviation: which class is it?

    Args:
        data: signals `(num, steps)`.

    Example:
        >>> signals, classes = torch.arange(8.0).view(4, 2), torch.arange(4) % 2
        >>> series(Dataset("ramps", signals, classes, signals, classes)).draw(3, torch.Generator())[0].shape
        torch.Size([2, 3, 1])
    """
    mean, deviation = data.train_inputs.mean(), data.train_inputs.std()
    return _classes(data, lambda signals: (signals - mean) / deviation)


def _classes(data: Dataset, scaled: Callable[[Tensor], Tensor]) -> Task:
    def given(inputs: Tensor, targets: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return scaled(inputs[chosen]).flatten(1).T.unsqueeze(-1), targets[chosen]

    def draw(rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.train_inputs), (rows,), generator=generator)
        return given(data.train_inputs, data.train_targets, chosen)

    def draw_test(rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(data.test_inputs), generator=generator)[:rows]
        return given(data.test_inputs, data.test_targets, chosen)

    classes = int(data.train_targets.max()) + 1
    return Task(1, classes, draw, draw_test=draw_test, num_test=len(data.test_inputs))


@final
class Reader(nn.Module):
    """A recurrence, and a linear map of its last h.

    Args:
        cells: of the recurrence, one for each layer.
        dim_out: numbers of an answer.

    Shape:
        `(steps, batch, dim_in) -> (batch, dim_out)`.
    """

    def __init__(self, cells: Sequence[Cell], dim_out: int) -> None:
        super().__init__()
        self.recurrent = Recurrent(cells)
        self.head = nn.Linear(self.recurrent.dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Answer."""
        outputs, _ = self.recurrent(x)
        return self.head(outputs[-1])  # type: ignore[no-any-return]


@final
@dataclass(frozen=True, slots=True)
class ReaderRecipe:
    """How to train a `Reader`: Adam, gradients clipped to a norm of 1.

    Attributes:
        steps: number of steps, at most.
        lr: the learning rate.
        batch_size: sequences of a step.
        test_every: steps between two looks at 256 sequences, for the curve.
        enough: score in a look at which training ends; None for none.

    Raises:
        UsageError: if a number of steps or of sequences is below 1, or the rate negative.
    """

    steps: int
    lr: float
    batch_size: int = 32
    test_every: int = 25
    enough: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "test_every"):
            require_at_least("ReaderRecipe", name, getattr(self, name), 1)
        require_at_least("ReaderRecipe", "lr", self.lr, 0.0)


def train_reader(reader: nn.Module, task: Task, recipe: ReaderRecipe, seed: int) -> dict[str, Any]:
    """Train in place, and return the score after the last step, the curve of looks, and the steps that were made.

    Nothing is chosen by a look but when to end, if the recipe says so; the score is of `num_test` other sequences, or
    of all test data.

    Args:
        reader: inputs -> answers.
        task: what is asked.
        recipe: how to train.
        seed: of the sequences.

    Raises:
        UsageError: if the task's answers do not fit what the reader gives.
    """
    generator = Generator().manual_seed(seed)
    draw_test = task.draw_test or task.draw
    looked_at = draw_test(256, generator)
    with torch.no_grad():
        answers, expected = tuple(reader(looked_at[0]).shape), (len(looked_at[1]), task.dim_out)
    if answers != expected:
        raise UsageError(f"train_reader: answers must be {expected} to {expected[0]} sequences, got {answers}.")
    optimizer = torch.optim.Adam(reader.parameters(), recipe.lr)
    curve: list[tuple[int, float]] = []
    better = max if task.kind == "class" else min
    for step in range(1, recipe.steps + 1):
        x, targets = task.draw(recipe.batch_size, generator)
        optimizer.zero_grad()
        task.loss(reader(x), targets).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        if step % recipe.test_every == 0 or step == recipe.steps:
            curve.append((step, _score(reader, task, *looked_at)))
            if recipe.enough is not None and better(curve[-1][1], recipe.enough) == curve[-1][1]:
                break
    score = _score(reader, task, *draw_test(task.num_test, generator))
    return {"score": score, "steps": curve[-1][0], "curve": [list(column) for column in zip(*curve, strict=True)]}


@torch.no_grad()
def _score(reader: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> float:
    answers = torch.cat([reader(part) for part in torch.split(inputs, 256, dim=1)])
    return task.score(answers, targets)
