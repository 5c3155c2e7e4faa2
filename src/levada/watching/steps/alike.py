"""Whether all rows of the batches that a model was given are the same one, so that it has nothing to tell apart.

And how large the numbers are that it was given: a task whose inputs are scaled up has another loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor

from levada.watching.measure.sample import Sample
from levada.watching.steps.silence import Silence

__all__ = ["ALIKE", "SIZE", "Alike", "Rows"]

ALIKE: Final = "alike_rows"
"""The scalar of a sample: how many rows a batch has that are all the same one; 0 if they differ."""
SIZE: Final = "input_rms"
"""The scalar of a sample: the root mean square of the floating-point numbers that the model was given."""

_MOST: Final = 64  # tensors in a nest, and passes of a step
_AT_ONCE: Final = 1 << 22  # elements that are compared in one call
_TARGETS: Final = ("label", "labels", "target", "targets")  # arguments that are none of what a model predicts from
_PLAIN: Final = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
_ROWS: Final = 128  # rows that were the same before it is no chance, as of events that are seldom
_SELDOM: Final = 0.02  # chance, by the run's own habit, below which rows that are the same are a change of it

Compared: TypeAlias = tuple[Tensor, Tensor, torch.Size, torch.dtype]  # rows the same, the first of one number


@final
class Alike:
    """Compares the rows of what a model is given, on sampled steps.

    Rows are what lies along the first dimension. They are those of a batch if the loss has as many targets, and the
    second of three dimensions or more is not as long; where the loss has more targets, as one for each token, of two
    dimensions of integers too; and where its targets are not known, of two dimensions. A tensor that is one number all
    over needs none of that. Tensors of one row, and masks of any shape, are for all rows. What holds something else, as
    a graph or a sparse tensor, and what another module has made, is not judged, as it may tell rows apart.

    Example:
        >>> alike = Alike()
        >>> for batch in (torch.randn(3).expand(4, 3), torch.eye(4)):
        ...     alike.open()
        ...     alike.see([(0, batch)])
        ...     print(float(alike.of(targets=4)))
        4.0
        0.0
    """

    def __init__(self) -> None:
        self._on = False
        self._passes: list[list[Compared] | None] = []
        self._sizes: list[Tensor] = []  # mean squares of the passes

    def open(self) -> None:
        """Compare from now on."""
        self._on, self._passes, self._sizes = True, [], []

    def close(self) -> None:
        """Compare no more."""
        self._on, self._passes, self._sizes = False, [], []

    def see(self, given: Iterable[tuple[int | str, Any]]) -> None:
        """Compare what a pass is given, without waiting for a device.

        Args:
            given: its arguments, each with its place or name.
        """
        if not self._on or len(self._passes) >= _MOST:
            return
        try:
            tensors = list(_tensors([value for key, value in given if key not in _TARGETS]))
            few = len(tensors) <= _MOST
            self._passes.append([_compared(t) for t in tensors] if few else None)
            self._sizes += [size for size in [_mean_square(tensors)] if size is not None] if few else []
        except Exception:  # what a model is given is the user's: it is not known, and all else goes on
            self._passes.append(None)

    def size(self) -> Tensor | None:
        """Return the root mean square of the floating-point numbers that the passes were given; None if not known.

        Example:
            >>> alike = Alike()
            >>> alike.open()
            >>> alike.see([(0, torch.tensor([3.0, 4.0])), (1, torch.tensor([7]))])
            >>> round(float(alike.size()), 4)
            3.5355
        """
        sizes = [*self._sizes]  # another thread may run the model meanwhile
        if not sizes:
            return None
        return torch.stack([size.to(sizes[0].device, non_blocking=True) for size in sizes]).mean().sqrt()

    def of(self, targets: int | Sequence[int] | None) -> Tensor | None:
        """Return how many rows the batches have, if those of each pass are the same one; 0 if they differ.

        Args:
            targets: the number of a pass's targets, or that of each pass; None if it is not known.

        Returns:
            A number on the device of the inputs, NaN if it is not known; None if that is known already.
        """
        passes = [*self._passes]
        if isinstance(targets, int) or targets is None:
            each: list[int | None] = [targets] * len(passes)
        else:  # some passes may have had a loss whose targets are not known
            each = [*targets] if len(targets) == len(passes) else [targets[-1] if targets else None] * len(passes)
        told = [None if seen is None else _told(seen, n) for seen, n in zip(passes, each, strict=True)]
        if not told or any(one is None for one in told):
            return None
        found = [one for one in told if one is not None]
        return torch.stack([one.to(found[0].device, non_blocking=True) for one in found]).amin()


@final
class Rows:
    """What the samples of a run have told of the rows of its batches.

    Attributes:
        count: rows of the last batch, if they were the same one; 0 if they were not, or it is not known.
        since: the first sampled step of those in a row on which they were the same; None if they are not.
        differed: the last sampled step on which they differed; None if there was none.

    Example:
        >>> rows = Rows()
        >>> for step, told in enumerate([0.0] * 8 + [64.0] * 3):
        ...     rows.sampled(Sample(step, 0.0, {}, {ALIKE: told}))
        >>> rows.sure, rows.since, rows.differed
        (True, 8, 7)
    """

    def __init__(self) -> None:
        self.count = 0
        self.since: int | None = None
        self.differed: int | None = None
        self._habit = Silence(1)
        self._seen = 0

    def sampled(self, sample: Sample) -> None:
        """Take a sample.

        Args:
            sample: it.
        """
        told = float(sample.scalars.get(ALIKE, math.nan))
        self.count = int(told) if told > 0 else 0
        if math.isnan(told):
            return
        self._habit.add(torch.tensor([0.0 if told else 1.0]))
        if told:
            self._seen += self.count
            self.since = sample.step if self.since is None else self.since
        else:
            self.differed, self.since, self._seen = sample.step, None, 0

    @property
    def known(self) -> bool:
        """Whether any sample has told."""
        return self.since is not None or self.differed is not None

    @property
    def sure(self) -> bool:
        """Whether they are the same, so many of them and against the run's own habit that it is no chance."""
        return self.count > 0 and self._seen >= _ROWS and float(self._habit.chance[0]) < _SELDOM


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nest; raise where something else may hold some."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.layout is not torch.strided or value.requires_grad:
            raise TypeError(type(value).__name__)
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors([item for key, item in value.items() if key not in _TARGETS])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
    elif not isinstance(value, _PLAIN):
        raise TypeError(type(value).__name__)


def _mean_square(tensors: Sequence[Tensor]) -> Tensor | None:
    real = [t.detach() for t in tensors if t.is_floating_point() and t.numel() and t.dim()]  # one number is no row
    if not real:
        return None
    sums = [torch.linalg.vector_norm(tensor, dtype=_wide(tensor)).square() for tensor in real]
    return torch.stack([one.to(sums[0].device, non_blocking=True) for one in sums]).sum() / sum(t.numel() for t in real)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # the square of a mask is no float32


@torch.no_grad()
def _compared(tensor: Tensor) -> Compared:
    """Return whether all rows of a tensor are the same one, and whether the first is one number."""
    if not tensor.dim() or tensor.shape[0] < 2 or not tensor.numel():
        yes = torch.ones((), dtype=torch.bool)
        return yes, yes, tensor.shape, tensor.dtype
    first = tensor[0]
    flat = (first == first.flatten()[:1]).all() if tensor.dim() > 1 else torch.ones_like(first, dtype=torch.bool)
    if tensor.device.type == "cpu" and not torch.equal(first, tensor[-1]):  # nothing waits, and most end here
        return torch.zeros((), dtype=torch.bool), flat, tensor.shape, tensor.dtype
    parts = torch.split(tensor, max(1, _AT_ONCE // first.numel()))
    same = torch.stack([(part == first).all() for part in parts]).all()
    return same, flat, tensor.shape, tensor.dtype


def _told(seen: list[Compared], targets: int | None) -> Tensor | None:
    """Return the number of rows if they are the same in one pass, 0 if they differ, NaN if that is not known."""
    sized = [shape for _, _, shape, _ in seen if len(shape) > 1] or [shape for _, _, shape, _ in seen if shape]
    rows = sized[0][0] if sized else 0
    result: Tensor | None = None
    for same, flat, shape, kind in seen:
        if not shape or shape[0] == 1 or (kind is torch.bool and shape[0] != rows):
            continue  # it is for all rows
        if shape[0] != rows:
            return None
        unknown = torch.where(same & flat, 1.0, math.nan)
        one = same.float() if _along_rows(shape, kind, targets) else unknown
        result = one if result is None else result * one.to(result.device, non_blocking=True)
    return None if result is None else result * rows


def _along_rows(shape: torch.Size, kind: torch.dtype, targets: int | None) -> bool:
    """Whether the first dimension is that of a batch."""
    if targets is None:
        return len(shape) == 2
    if shape[0] == targets:
        # Of three dimensions the first may be time, and the rows of a batch the second; pictures have channels there.
        return len(shape) < 3 or (len(shape) == 4 and shape[1] in {1, 3} and shape[1] != targets)
    tokens = not (kind.is_floating_point or kind.is_complex)
    return len(shape) == 2 and tokens and targets % shape[0] == 0
