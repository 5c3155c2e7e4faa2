"""Cases of the linear scan: tokens are its steps, streams its sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case
from levada.ops import linear_scan
from levada.ops.scan import reference

__all__ = ["cases"]


def _inputs(steps: int, sequences: int, width: int) -> Sequence[Tensor]:
    gate = torch.sigmoid(2 + torch.randn(steps, sequences, width))
    tensors = [gate, torch.randn(steps, sequences, width), torch.randn(sequences, width)]
    return [x.requires_grad_() for x in tensors]


def _loop(gate: Tensor, value: Tensor, initial: Tensor) -> Sequence[Tensor]:
    return [reference.scan(gate, value, initial, False)]


def _ours(gate: Tensor, value: Tensor, initial: Tensor) -> Sequence[Tensor]:
    return [linear_scan(gate, value, initial)]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width; of steps no more than a loop takes in reasonable time."""
    for tokens, n, width in sizes:
        steps = min(tokens, 1024)
        elements = steps * n * width
        yield Case(
            operator="linear_scan",
            size={"steps": steps, "sequences": n, "width": width},
            make=functools.partial(_inputs, steps, n, width),
            programs={"reference": _loop, "levada": _ours},
            forward=3 * elements,
            backward=5 * elements,
            tolerance=64.0,
        )
