"""Matrix products on a CPU, by the library that is faster for them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["add_product", "product", "product_into", "times_transposed"]

_WORTH_IT: Final = 2**22  # multiplications: a call of oneDNN takes 10 to 30 microseconds more
_LINEAR: Final[Any] = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right`.

    oneDNN comes with PyTorch, and MKL, which `torch.mm` calls, takes up to 2.3 times as long on a processor of AMD with
    AVX-512, which it leaves half unused.

    Args:
        left: a matrix, in any order of memory.
        right: likewise, of the same type.
    """
    found: Tensor = _LINEAR(left, right.t(), None, "none", [], "") if _takes(left, right) else left @ right
    return found


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to a matrix, in place.

    Args:
        total: is written to.
        left: a matrix, in any order of memory.
        right: likewise, of the same type.
    """
    if _takes(left, right):
        total += product(left, right)
    else:
        total.addmm_(left, right)


def product_into(found: Tensor, left: Tensor, right: Tensor) -> None:
    """Write `left @ right` to a matrix, narrow enough to be copied.

    Args:
        found: is written to.
        left: a matrix, in any order of memory.
        right: likewise, of the same type.
    """
    if _takes(left, right):
        found.copy_(product(left, right))
    else:
        torch.mm(left, right, out=found)


def times_transposed(streams: Tensor, weights: Tensor) -> Tensor:
    """Return `streams @ weights.t()` for few rows of weights.

    Where `torch.mm` makes it the tokens lie side by side in memory, which takes it 0.65 to 0.95 of the time.

    Args:
        streams: `(tokens, width)`.
        weights: `(rows, width)`.
    """
    if _takes(streams, weights):
        return product(streams, weights.t())
    return torch.mm(weights, streams.t()).t()


def _takes(left: Tensor, right: Tensor) -> bool:
    if _LINEAR is None or left.dtype != torch.float32 or not torch._C._get_mkldnn_enabled():
        return False
    if len(left) * right.numel() < _WORTH_IT:
        return False
    return right.is_contiguous() or right.t().is_contiguous()  # with gaps, a call takes a thousand times as long
