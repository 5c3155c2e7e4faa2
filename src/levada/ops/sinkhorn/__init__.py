"""Sinkhorn normalisation: from any square matrix to one whose rows and columns sum to 1, with its exact gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.ops.sinkhorn.autograd import differentiable_sinkhorn

__all__ = ["sinkhorn"]


def sinkhorn(logits: Tensor, iterations: int = 20, *, epsilon: float = 0.0) -> Tensor:
    """Return the matrix that alternating normalisation makes of `exp(logits)`: columns first, rows last.

    `M_0 = exp(logits);  M_t = rows(columns(M_{t-1})) for t = 1 ... iterations`

    Rows sum to 1 up to rounding, so that mixed streams are convex combinations. What the iterations leave undone is all
    in the columns, by which gradients go back: more iterations shrink it. The gradient is that of the iterations
    themselves, all of them, not that of their limit or of their last step, and only the logits are kept for it.
    Derivatives exist of any order, backward and, outside of what is compiled, forward (`torch.func.jvp`, `hessian`).

    It holds for any logits and any number of iterations: entries that underflow against others may come to be the
    largest ones of their row many iterations later, so that the kernel is made again in time, of logarithms.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for as many
    iterations as need no new kernel; Triton's on a GPU, up to 16 rows and 64 iterations; else the reference, with a
    warning if it is for a kernel's limit.

    With `epsilon` it is the form released with DeepSeek-V4: each sum has `epsilon` added before dividing, and so has
    each entry after the first step. That code keeps its matrix transposed, rows first and columns last:
    `sinkhorn(logits.mT, epsilon=1e-6)` is the matrix by which it multiplies the streams.

    Args:
        logits: square matrices, `(..., n, n)`, of numbers whose differences are finite.
        iterations: how often both are normalised.
        epsilon: what is added to each sum. Rows then sum to about `1 - epsilon`.

    Shape:
        `(..., n, n) -> (..., n, n)`, with n at least 1, computed in float32 at least.

    Cost:
        No parameters; moves `2 n^2` numbers per matrix forward and `3 n^2` backward. Keeps `n^2` for the backward pass,
        which makes `2 iterations n` others again, on the chip.

    Raises:
        UsageError: if the matrices are empty, not square or not of floating point, `iterations` is below 1, or
            `epsilon` is below 0.

    Example:
        >>> mix = sinkhorn(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        >>> torch.allclose(mix.sum(-1), torch.ones(2)) and torch.allclose(mix.sum(-2), torch.ones(2))
        True

    Source: Sinkhorn and Knopp, 1967; as used by Xie et al., 2025, arXiv 2512.24880 (mHC).
    """
    require_at_least("sinkhorn", "iterations", iterations, 1)
    require_at_least("sinkhorn", "epsilon", epsilon, 0.0)
    if not logits.is_floating_point():
        raise UsageError(f"sinkhorn: the logits must be of floating point, got {logits.dtype}. Convert them first.")
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise UsageError(f"sinkhorn: the logits must be (..., n, n), got {tuple(logits.shape)}. Reshape them.")
    if logits.shape[-1] == 0:
        raise UsageError(f"sinkhorn: matrices must have a row or more, got {tuple(logits.shape)}. Leave it out.")
    full = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return differentiable_sinkhorn(full, iterations, float(epsilon)).to(logits.dtype)
