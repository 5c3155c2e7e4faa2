"""Statistics of many tensors in one call, over sums of squares alone, as one takes them now; on a GPU if there is one.

python -m benchmarks.statistics [--quick]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Program, Row, compare_times, main
from levada.ops import tensor_statistics
from levada.ops.statistics import COLUMNS

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def fused_norms(tensors: list[Tensor]) -> Tensor:
    """Sums of squares by the fused norm, with sums as wide as ours."""
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64)).square()


def each_by_itself(tensors: list[Tensor]) -> Tensor:
    """The columns by plain operations, but those that look for what is no number."""
    wide = (torch.stack([x.sum(), x.square().sum(), x.abs().amax(), (x == 0).sum().to(x.dtype)]) for x in tensors)
    return torch.stack([row[1].double() for row in wide])


def ours(tensors: list[Tensor]) -> Tensor:
    return tensor_statistics(tensors)[:, COLUMNS.index("squares")]


def program(function: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> Program:
    return lambda: [function(tensors).cpu()]  # which waits for a GPU


def compare(name: str, sizes: list[tuple[int, ...]], dtype: torch.dtype, repetitions: int) -> Iterator[Row]:
    tensors = [torch.randn(size, device=_DEVICE).relu_().to(dtype) for size in sizes]
    baselines = {"torch._foreach_norm": fused_norms, "plain operations": each_by_itself}
    for baseline, function in baselines.items():
        if function is each_by_itself and dtype != torch.float32:
            continue  # its sums would be too narrow
        count = sum(x.numel() for x in tensors)
        yield Row(
            benchmark="statistics",
            case=f"{name}, {str(dtype).removeprefix('torch.')}, {_DEVICE}: over {baseline}",
            baseline=baseline,
            candidate="tensor_statistics",
            target=None,
            extra={"tensors": len(tensors), "elements": count, "bytes": count * tensors[0].element_size()},
            **compare_times(program(function, tensors), program(ours, tensors), repetitions=repetitions),
        )


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    depth, width, tokens = (8, 32, 64) if quick else (1000, 64, 4096)
    sizes: dict[str, list[tuple[int, ...]]] = {
        "small: a thousand layers of 64": [(width, width), (width,)] * depth,
        "large: ten activations": [(tokens, 4 * width)] * 10,
        "one": [(tokens * 64 * width,)],
    }
    for name, shapes in sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield functools.partial(compare, name, shapes, dtype, 7 if quick else 15)


if __name__ == "__main__":
    sys.exit(main("statistics", cases))
