"""Derivatives of writing to streams and reading them again, of any order backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from levada.ops._define import Kernel, define, empty_like, is_direct, one_by_one, triton_or_reference
from levada.ops._fitting import Signature
from levada.ops._reading import go_back
from levada.ops.manifold.ahead import cpu, reference
from levada.ops.manifold.autograd import FORM, sizes
from levada.ops.manifold.reference import Form

__all__ = ["differentiable_pass"]

_KERNELS = "levada.ops.manifold.ahead.triton"


def differentiable_pass(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the new streams, what the next branch reads, and the weights that read, write and mix.

    Args:
        *arguments: of the reference's `write_and_read`, checked, but with any axes of tokens.
    """
    if not torch.compiler.is_compiling():
        found: tuple[Tensor, ...] = _Pass.apply(*arguments)  # type: ignore[no-untyped-call]
        return found[:5]
    leading = arguments[0].shape[:-2]
    flat = (_flat(x, leading) for x in arguments[:4])
    return tuple(y.view(*leading, *y.shape[1:]) for y in _PASS(*flat, *arguments[4:])[:5])


class _Pass(torch.autograd.Function):
    """The operation, whose kernel is called without the dispatcher on a CPU, where nobody looks at operations.

    Tokens become the first axis, and leading axes again, in here: each would be a node of the graph out there.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        function = cpu.write_and_read if is_direct(*arguments[:7]) else _PASS
        leading = arguments[0].shape[:-2]
        found: tuple[Tensor, ...] = function(*(_flat(x, leading) for x in arguments[:4]), *arguments[4:])
        if len(leading) != 1:
            with torch._C._AutoDispatchBelowADInplaceOrView():  # else they are views, and FSDP2 warns of these
                found = *(y.view(*leading, *y.shape[1:]) for y in found[:5]), *found[5:]
        _context(ctx, arguments, found)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, of_tokens = ctx.saved_tensors, 5 if ctx.mixes else 3
        leading = saved[of_tokens - 1].shape[:-2]
        flat = *(_flat(x, leading) for x in saved[:of_tokens]), *saved[of_tokens:]
        found = _gradients(ctx, flat, [_flat(y, leading) for y in cotangents[:5]])
        if len(leading) == 1:
            return found
        return *(y if y is None else y.view(*leading, *y.shape[1:]) for y in found[:4]), *found[4:]


def _flat(x: Any, leading: torch.Size) -> Any:
    return x if x is None or len(leading) == 1 else x.reshape(leading.numel(), *x.shape[len(leading) :])


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    state, out, weights, mix, projection, scale, bias, *ctx.form = inputs
    new, *_, features, inverse = output
    ctx.mark_non_differentiable(features, inverse)
    ctx.set_materialize_grads(False)
    ctx.mixes = mix is not None
    # Without mixing no gradient needs the old streams: they are not kept.
    ctx.save_for_backward(
        *((state, mix) if ctx.mixes else ()), out, weights, new, projection, scale, bias, features, inverse
    )


def _derivative(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, ctx.saved_tensors, cotangents[:5])


def _gradients(ctx: Any, saved: Sequence[Any], by: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    by_new, by_x, by_reads, by_writes, by_mix = by
    *first, out, weights, new, projection, scale, bias, features, inverse = saved
    state, mix = first if ctx.mixes else (new, None)
    form = Form(*ctx.form)
    tokens, n, width = new.shape
    given = (
        by_new,
        new.new_zeros(tokens, width) if by_x is None else by_x,
        by_reads,
        features.new_zeros(tokens, n) if by_writes is None else by_writes,
        features.new_zeros(tokens, n if form.mixes else 0, n) if by_mix is None else by_mix,
        *(state, out, weights, mix, new, projection, scale, bias),
    )
    found = go_back("write_and_read_backward", reference, cpu, _PASS_BACKWARD, given, (features, inverse), form)
    by_state, by_out, by_weights, by_old_mix, *by_parameters = found
    return by_state, by_out, by_weights, by_old_mix if ctx.mixes else None, *by_parameters, *(None for _ in form)


def _shapes(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, *read: Any) -> tuple[Any, ...]:
    (streams, *parameters), _, _ = sizes(state, *read)
    tokens, n, dim = streams
    return streams, (tokens, dim), (tokens, n), (tokens, n, n), *parameters


def _backward_shapes(*arguments: Any) -> tuple[Any, ...]:
    state, out, weights, mix, _, projection, scale, bias, _, _, *form = arguments[5:]
    _, by, kept = sizes(state, projection, scale, bias, *form)
    streams, *written = _shapes(state, out, weights, mix, projection, scale, bias, *form)
    return streams, *by, streams, *written[:3], streams, *written[3:], *kept


def _backward_types(*arguments: Any) -> tuple[torch.dtype | None, ...]:
    state = arguments[5].dtype
    full = torch.promote_types(state, torch.float32)
    return state, state, full, full, full, *(None,) * 4, state, None, None, None, full, full


def _fake(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, projection: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    shapes = [(n,), (n,), (n if Form(*others[2:]).mixes else 0, n), (projection.shape[0],), ()]
    full = torch.promote_types(state.dtype, torch.float32)
    made = (state.new_empty(tokens, *shape, dtype=full) for shape in shapes)
    return empty_like(state), state.new_empty(tokens, width), *made


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    state, out, weights, mix, _, *parameters = arguments[5:13]
    by_mix = weights.new_empty(0) if mix is None else empty_like(mix)
    return *(empty_like(x) for x in (state, out, weights)), by_mix, *(empty_like(x) for x in parameters)


_PASS: Kernel = define(
    "streams_write_read",
    Signature(
        "(Tensor state, Tensor out, Tensor weights, Tensor? mix, Tensor projection, Tensor scale, Tensor bias, "
        f"{FORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _shapes,
    ),
    reference=reference.write_and_read,
    kernels={
        "CPU": cpu.write_and_read,
        "CUDA": triton_or_reference(_KERNELS, "write_and_read", reference.write_and_read),
    },
    fake=_fake,
    vmap=lambda info, dims, *arguments: one_by_one(_PASS, info, dims, *arguments),
    setup_context=_context,
    backward=_derivative,
)
_PASS_BACKWARD: Kernel = define(
    "streams_write_read_backward",
    Signature(
        "(Tensor? by_new, Tensor by_x, Tensor? by_reads, Tensor by_writes, Tensor by_mix, Tensor state, Tensor out, "
        "Tensor weights, Tensor? mix, Tensor new, Tensor projection, Tensor scale, Tensor bias, Tensor features, "
        f"Tensor inverse, {FORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward_shapes,
        _backward_types,
    ),
    reference=reference.write_and_read_backward,
    kernels={
        "CPU": cpu.write_and_read_backward,
        "CUDA": triton_or_reference(_KERNELS, "write_and_read_backward", reference.write_and_read_backward),
    },
    fake=_backward_fake,
    vmap=lambda info, dims, *arguments: one_by_one(_PASS_BACKWARD, info, dims, *arguments),
    setup_context=None,
    backward=None,
)
