"""Derivatives of attention over depth and of weighted sums, of any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from levada.ops._define import define, empty_like, is_direct, is_observed, is_special, triton_or_reference
from levada.ops._fitting import MisfitError, Signature
from levada.ops.depth import cpu, reference

__all__ = ["differentiable_attend", "differentiable_mix"]

_KERNELS = "levada.ops.depth.triton"


def differentiable_attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, ...]:
    """Return the means, of arguments that were checked."""
    options = epsilon, factor, normal
    if _by_function(query, sources):
        found: tuple[Tensor, ...] = _Attend.apply(options, query, *sources)  # type: ignore[no-untyped-call]
        return found
    function = _ATTEND if _by_kernels(sources) else reference.attend
    if len(query) == 1:  # whose mean is then no view
        return (function(query[0], sources, *options)[0],)
    return function(query, sources, *options)[0].unbind()


def differentiable_mix(weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the sums, of arguments that were checked."""
    if _by_function(weights, sources):
        found: tuple[Tensor, ...] = _Mix.apply(weights, *sources)  # type: ignore[no-untyped-call]
        return found
    function = _MIX if _by_kernels(sources) else reference.mix
    if weights.ndim == 2 and len(weights) == 1:  # whose sum is then no view
        return (function(weights[0], sources),)
    return function(weights, sources).unbind()


def _by_function(first: Tensor, sources: Sequence[Tensor]) -> bool:
    """Return whether kernels compute, as one node of the graph: what has rules for plain operations gets these."""
    if torch.compiler.is_compiling() or is_special(first, *sources) or is_observed():
        return False
    return _fit(sources)


def _fit(sources: Sequence[Tensor]) -> bool:
    """Return whether kernels take the sources' types."""
    types = {x.dtype for x in sources}
    return len(types) == 1 or (len(types) == 2 and torch.float32 in types and torch.float64 not in types)


def _by_kernels(sources: Sequence[Tensor]) -> bool:
    return torch.compiler.is_compiling() and _fit(sources)


def _through_plain_operations(*cotangents: Tensor) -> bool:
    """Return whether a gradient goes through the reference, whose parts have all derivatives: it is asked for one."""
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or is_special(*cotangents))


class _Attend(torch.autograd.Function):
    """Attention by the kernel of the device; a function takes no list.

    On a CPU it is called without the dispatcher, which would take as long as the work on few tokens.
    """

    @staticmethod
    def forward(ctx: Any, options: tuple[float, float, bool], query: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        if is_direct(query, *sources):
            means, products, inverse = cpu.attend(query, sources, *options, apart=True)
        else:
            whole, products, inverse = _ATTEND(query, sources, *options)
            means = _unbound(whole)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, products, inverse, *sources)
        return tuple(means)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # asked for once: a checkpoint unpacks them at each time, and only once
        query, products, inverse, *sources = kept
        given, options = _given(cotangents), ctx.options
        if not given:
            return None, None, *(None for _ in sources)
        if _through_plain_operations(*given):
            again = reference.attend(query, sources, *options)[1:]
            found = reference.attend_backward(torch.stack(given), query, sources, *again, *options[1:])
        elif is_direct(*given, *kept):
            found = cpu.attend_backward(given, query, sources, products, inverse, *options[1:])
        else:
            found = _ATTEND_BACKWARD(torch.stack(given), query, sources, products, inverse, *options[1:])
        return None, found[0], *found[1]


class _Mix(torch.autograd.Function):
    """Weighted sums by the kernel of the device, likewise."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        direct = is_direct(weights, *sources)
        sums = cpu.mix(weights, sources, apart=True) if direct else _unbound(_MIX(weights, sources))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights, *sources)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        given = _given(cotangents)
        if not given:
            return None, *(None for _ in sources)
        if _through_plain_operations(*given):
            found = reference.mix_backward(torch.stack(given), weights, sources)
        elif is_direct(*given, weights, *sources):
            found = cpu.mix_backward(given, weights, sources)
        else:
            found = _MIX_BACKWARD(torch.stack(given), weights, sources)
        return found[0], *found[1]


def _unbound(whole: Tensor) -> tuple[Tensor, ...]:
    """Return the parts of what an operation returned, which are no views: sharding warns of these."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return whole.unbind()


def _given(cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Return what arrives, zeros where nothing does; nothing, where nothing arrives at all."""
    first = next((x for x in cotangents if x is not None), None)
    return [] if first is None else [torch.zeros_like(first) if x is None else x for x in cotangents]


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
