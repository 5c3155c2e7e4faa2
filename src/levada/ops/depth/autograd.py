"""Derivatives of attention over depth and of weighted sums, of any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from levada.ops._define import define, empty_like, is_observed, is_special, triton_or_reference
from levada.ops._fitting import MisfitError, Signature
from levada.ops.depth import cpu, reference

__all__ = ["differentiable_attend", "differentiable_mix"]

_KERNELS = "levada.ops.depth.triton"


def differentiable_attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> Tensor:
    """Return the means, of arguments that were checked."""
    function = _function(reference.attend, _ATTEND, _attend, query, sources)
    means: Tensor = function(query, sources, epsilon, factor, normal)[0]
    return means


def differentiable_mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the sums, of arguments that were checked."""
    function = _function(reference.mix, _MIX, _mix, weights, sources)
    sums: Tensor = function(weights, sources)
    return sums


def _function(plain: Any, operation: Any, function: Any, first: Tensor, sources: Sequence[Tensor]) -> Any:
    """Return what computes: plain operations, for what has rules for them alone, or the kernels."""
    types = {x.dtype for x in sources}
    if len(types) > 2 or (len(types) == 2 and (torch.float32 not in types or torch.float64 in types)):
        return plain
    if torch.compiler.is_compiling():
        return operation
    return plain if is_special(first, *sources) or is_observed() else function


def _through_plain_operations(cotangent: Tensor) -> bool:
    """Return whether a gradient goes through the reference, whose parts have all derivatives: it is asked for one."""
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or is_special(cotangent))


def _attend(query: Tensor, sources: Sequence[Tensor], *options: Any) -> Any:
    return _Attend.apply(query, *options, *sources)  # type: ignore[no-untyped-call]


def _mix(weights: Tensor, sources: Sequence[Tensor]) -> Any:
    return _Mix.apply(weights, *sources)  # type: ignore[no-untyped-call]


class _Attend(torch.autograd.Function):
    """Attention by the kernel of the device; a function takes no list."""

    @staticmethod
    def forward(query: Tensor, epsilon: float, factor: float, normal: bool, *sources: Tensor) -> Any:
        return _ATTEND(query, sources, epsilon, factor, normal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        query, *options = inputs[:4]
        ctx.mark_non_differentiable(*output[1:])
        _attend_context(ctx, (query, inputs[4:], *options), output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        by_query, by_sources, *_ = _attend_derivative(ctx, *cotangents)
        return by_query, None, None, None, *by_sources


class _Mix(torch.autograd.Function):
    """Weighted sums by the kernel of the device; a function takes no list."""

    @staticmethod
    def forward(weights: Tensor, *sources: Tensor) -> Any:
        return _MIX(weights, sources)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, ...]:
        by_weights, by_sources = _mix_derivative(ctx, cotangent)
        return by_weights, *by_sources


def _attend_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, sources, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, *output[1:], *sources)


def _attend_derivative(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Any, ...]:
    query, products, inverse, *sources = ctx.saved_tensors
    if cotangent is None:
        return None, [None] * len(sources), None, None, None
    backward = _ATTEND_BACKWARD
    if _through_plain_operations(cotangent):
        backward = reference.attend_backward
        products, inverse = reference.attend(query, sources, *ctx.options)[1:]
    return *backward(cotangent, query, sources, products, inverse, *ctx.options[1:]), None, None, None


def _mix_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    weights, sources = inputs
    ctx.save_for_backward(weights, *sources)


def _mix_derivative(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    weights, *sources = ctx.saved_tensors
    backward = reference.mix_backward if _through_plain_operations(cotangent) else _MIX_BACKWARD
    return backward(cotangent, weights, sources)


def _each(name: str) -> Any:
    """Return the rule for one more axis: one call for each of its elements."""

    def rule(info: Any, dims: Any, *args: Any) -> Any:
        operation = getattr(torch.ops.levada, name).default

        def part(x: Any, dim: Any, i: int) -> Any:
            if isinstance(dim, list):
                return [part(one, its, i) for one, its in zip(x, dim, strict=True)]
            return x if dim is None else x.select(dim, i)

        found = [operation(*(part(x, d, i) for x, d in zip(args, dims, strict=True))) for i in range(info.batch_size)]
        flat, form = zip(*(tree_flatten(one) for one in found), strict=True)
        stacked = [torch.stack(same) for same in zip(*flat, strict=True)]
        return tree_unflatten(stacked, form[0]), tree_unflatten([0] * len(stacked), form[0])

    return rule


def _axes(sources: Sequence[Tensor]) -> tuple[torch.Size, int]:
    """Return the axes of tokens that all sources have, and the width."""
    if not sources:
        raise MisfitError("sources must be a tensor or more, got none")
    if not sources[0].ndim:
        raise MisfitError("sources must be (..., dim), got ()")
    return sources[0].shape[:-1], sources[0].shape[-1]


def _attend_shapes(query: Tensor, sources: Sequence[Tensor], *_: Any) -> tuple[Any, ...]:
    leading, dim = _axes(sources)
    return (*query.shape[:-1][:1], dim), (*leading, dim)


def _attend_backward_shapes(cotangent: Tensor, query: Tensor, sources: Sequence[Tensor], *_: Any) -> tuple[Any, ...]:
    leading, dim = _axes(sources)
    ways, count = query.shape[:-1][:1], len(sources)
    queries = ways[0] if ways else 1
    kept = (*leading, queries, count), (*leading, count)
    return (*ways, *leading, dim), (*ways, dim), (*leading, dim), *kept


def _mix_shapes(weights: Tensor, sources: Sequence[Tensor]) -> tuple[Any, ...]:
    leading, dim = _axes(sources)
    ways = weights.shape[-2:-1]
    return (*(leading if weights.ndim > 2 else ()), *ways, len(sources)), (*leading, dim)


def _mix_backward_shapes(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Any, ...]:
    rows, source = _mix_shapes(weights, sources)
    return (*weights.shape[-2:-1], *source), rows, source


def _attend_fake(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    *tokens, dim = sources[0].shape
    means = sources[0].new_empty(*query.shape[:-1], *tokens, dim, dtype=reference.type_of(sources))
    queries = query.numel() // dim
    return means, query.new_empty(*tokens, queries, len(sources)), query.new_empty(*tokens, len(sources))


def _attend_backward_fake(
    cotangent: Tensor, query: Tensor, sources: Sequence[Tensor], *_: Any
) -> tuple[Tensor, list[Tensor]]:
    return empty_like(query), [empty_like(x) for x in sources]


def _mix_fake(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    kind = reference.type_of(sources)
    return sources[0].new_empty(*weights.shape[-2:-1], *sources[0].shape, dtype=kind)


def _mix_backward_fake(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return empty_like(weights), [empty_like(x) for x in sources]


def _define(name: str, signature: Signature, fake: Any, *derivative: Any) -> Any:
    plain = getattr(reference, name)
    setup_context, backward = derivative or (None, None)
    return define(
        f"depth_{name}",
        signature,
        reference=plain,
        kernels={"CPU": getattr(cpu, name), "CUDA": triton_or_reference(_KERNELS, name, plain)},
        fake=fake,
        vmap=_each(f"depth_{name}"),
        setup_context=setup_context,
        backward=backward,
    )


_ATTEND = _define(
    "attend",
    Signature(
        "(Tensor query, Tensor[] sources, float epsilon, float factor, bool normal) -> (Tensor, Tensor, Tensor)",
        _attend_shapes,
    ),
    _attend_fake,
    _attend_context,
    _attend_derivative,
)
_ATTEND_BACKWARD = _define(
    "attend_backward",
    Signature(
        "(Tensor cotangent, Tensor query, Tensor[] sources, Tensor products, Tensor inverse, float factor, bool normal)"
        " -> (Tensor, Tensor[])",
        _attend_backward_shapes,
        lambda cotangent, query, *_: (None, None, None, query.dtype, query.dtype),
    ),
    _attend_backward_fake,
)
_MIX = _define(
    "mix",
    Signature(
        "(Tensor weights, Tensor[] sources) -> Tensor",
        _mix_shapes,
    ),
    _mix_fake,
    _mix_context,
    _mix_derivative,
)
_MIX_BACKWARD = _define(
    "mix_backward",
    Signature(
        "(Tensor cotangent, Tensor weights, Tensor[] sources) -> (Tensor, Tensor[])",
        _mix_backward_shapes,
    ),
    _mix_backward_fake,
)
