"""Attention over depth, and weighted sums over it: of tensors that stay where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.ops.depth.autograd import differentiable_attend, differentiable_mix

__all__ = ["attend_depth", "sum_depth"]


def attend_depth(
    query: Tensor, sources: Sequence[Tensor], *, epsilon: float = 1e-6, factor: float = 1.0, normalise: bool = False
) -> tuple[Tensor, ...]:
    """Return for each query a mean of the sources whose weights are a softmax over depth.

    `y_k = factor sum_i a_ki v_i;  a_k = softmax_i(query_k . v_i / rms(v_i))`; with `normalise` it is
    `y_k = factor sum_i a_ki v_i / rms(v_i)`

    The sources stay where they are: nothing is stacked, and what is kept for the backward pass are they themselves and
    `queries + 1` numbers per token and source. Sums are computed in float32, in float64 where query or sources are, and
    returned in the sources' type, the widest one, whatever autocast says. Derivatives exist of any order, backward and,
    outside of what is compiled, forward.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for sources all
    of float32 or float64; Triton's on a GPU, for sources of one type, or of float32 and a narrower one, as autocast
    makes them; else plain operations, as under `torch.func` and for tensor subclasses.

    Args:
        query: one row for each mean.
        sources: tensors of one shape, at least one.
        epsilon: what is added to the mean square of a source, `rms(v)^2`.
        factor: what the means are multiplied by.
        normalise: whether the sources are divided by their root mean square in the mean too.

    Shape:
        `query` is `(queries, dim)`, sources are `(..., dim)`, and so is each of the `queries` results.

    Cost:
        No parameters. Moves `(m + queries) dim` elements per token forward for m sources, `(2 m + queries) dim`
        backward.

    Raises:
        UsageError: if there is no source, shapes do not fit, a type is not a real floating one of 16 bits or more,
            devices differ, or epsilon is negative.

    Example:
        >>> sources = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
        >>> attend_depth(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), sources)
        (tensor([1., 2.]), tensor([0., 4.]))

    Source: Kimi team, 2026, arXiv 2603.15031; with `normalise`, the code released with Inkling 2 in transformers.
    """
    kinds = _require_sources("attend_depth", sources)
    shape = sources[0].shape
    if query.ndim != 2 or not len(query) or query.shape[1] != shape[-1]:
        raise UsageError(
            f"attend_depth: query must be (queries, {shape[-1]}) for sources {tuple(shape)}, got {tuple(query.shape)}. "
            "Give one row for each mean."
        )
    if not 0 <= epsilon < math.inf:
        raise UsageError(f"attend_depth: epsilon must be in [0, inf), got {epsilon}. 1e-6 is usual.")
    query = query.to(_require_type("attend_depth", "query", query, sources[0], kinds))
    return differentiable_attend(query, sources, float(epsilon), float(factor), normalise)


def sum_depth(weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return weighted sums of the sources, one for each row of weights.

    `y_k = sum_i weights_ki v_i`

    As for `attend_depth`, sources stay where they are and are what is kept; sums are computed in the type of the
    weights, float32 at least, and returned in that of the sources.

    Args:
        weights: of each source in each sum, for all tokens or for each.
        sources: tensors of one shape, at least one.

    Shape:
        `weights` is `(ways, m)` or `(..., ways, m)` for m sources `(..., dim)`; each of the `ways` results is as a
        source.

    Cost:
        No parameters. Moves `(m + ways) dim` elements per token forward, `(2 m + ways) dim` backward.

    Raises:
        UsageError: if there is no source, shapes do not fit, a type is not a real floating one, or devices differ.

    Example:
        >>> sum_depth(torch.tensor([[1.0, 2.0]]), (torch.ones(3), torch.tensor([0.0, 1.0, 2.0])))
        (tensor([1., 3., 5.]),)

    Source: Pagliardini, Mohtashami, Fleuret and Jaggi, 2024, arXiv 2402.02622 (DenseFormer).
    """
    kinds = _require_sources("sum_depth", sources)
    count, shape = len(sources), tuple(sources[0].shape)
    leading = tuple(weights.shape[:-2])
    if weights.ndim < 2 or weights.shape[-1] != count or not all(weights.shape[-2:]) or leading not in ((), shape[:-1]):
        raise UsageError(
            f"sum_depth: weights must be (ways, {count}), or that for each token, for {count} sources "
            f"{shape}, got {tuple(weights.shape)}. Give a row for each sum."
        )
    weights = weights.to(_require_type("sum_depth", "weights", weights, sources[0], kinds))
    return differentiable_mix(weights, sources)


def _require_sources(name: str, sources: Sequence[Tensor]) -> set[torch.dtype]:
    """Return the types of the sources."""
    if isinstance(sources, Tensor) or not hasattr(sources, "__len__"):
        came = f"one of {tuple(sources.shape)}" if isinstance(sources, Tensor) else type(sources).__name__
        raise UsageError(
            f"{name}: sources must be a list of tensors, one for each layer, got {came}. Give what the layers "
            "returned, as a list."
        )
    if not len(sources):
        raise UsageError(f"{name}: sources must be at least one tensor, got none. Give what the layers returned.")
    if not all(isinstance(x, Tensor) for x in sources):
        came = ", ".join(sorted({type(x).__name__ for x in sources if not isinstance(x, Tensor)}))
        raise UsageError(f"{name}: sources must be tensors, got {came} among them. Give what the layers returned.")
    shape, device = sources[0].shape, sources[0].device
    if any(x.shape != shape or x.device != device for x in sources) or not shape or not shape[-1]:
        came = ", ".join(sorted({f"{tuple(x.shape)} on {x.device}" for x in sources}))
        raise UsageError(
            f"{name}: sources must be of one shape (..., dim) and on one device, got {came}. Reshape them."
        )
    kinds = {x.dtype for x in sources}
    for kind in kinds:
        if not kind.is_floating_point or kind.itemsize < 2:
            raise UsageError(
                f"{name}: sources must be of real floating point, of 16 bits or more, got {kind}. Convert them first."
            )
    return kinds


def _require_type(name: str, what: str, x: Tensor, source: Tensor, kinds: set[torch.dtype]) -> torch.dtype:
    """Return the type to compute in."""
    if not x.is_floating_point() or x.dtype.itemsize < 2 or x.device != source.device:
        raise UsageError(
            f"{name}: {what} must be of real floating point, on {source.device} as the sources are, got {x.dtype} "
            f"on {x.device}. Convert it first."
        )
    full = torch.promote_types(x.dtype, torch.float32)
    for kind in kinds:
        full = torch.promote_types(full, kind)
    return full
