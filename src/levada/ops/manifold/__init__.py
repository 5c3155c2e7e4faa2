"""Reading several streams by weights that they decide themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops.manifold import cpu, reference
from levada.ops.manifold.reference import Form

__all__ = ["Form", "read_streams"]


def read_streams(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return what a branch reads of streams, the weights that read, write and mix, and the streams to write to.

    `a | b | c = scale (projection vec(x)) / rms(vec(x)) + bias`, `reads = sigmoid(a)`, `writes = 2 sigmoid(b)`,
    `mix = sinkhorn(c)` and `x = sum_j reads_j x_j`

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others.

    Args:
        state: the streams, `(..., n, dim)`.
        projection: `(2 n + n^2, n dim)`; `(2 n, n dim)` without mixing.
        scale: `(3,)`, or `(2,)`.
        bias: `(2 n + n^2,)`, or `(2 n,)`.
        form: which of the connections' forms.
    """
    loops = None
    if not _is_special(state, projection, scale, bias):
        loops = cpu.loops_for(state, form, projection, scale, bias)
    if loops is None:
        return *reference.read(state, projection, scale, bias, form), state
    leading = state.shape[:-2]
    found = _Read.apply(state.reshape(-1, *state.shape[-2:]).contiguous(), projection, scale, bias, form, loops)  # type: ignore[no-untyped-call]
    x, reads, writes, mix, new = (y.view(*leading, *y.shape[1:]) for y in found)
    return x, reads, writes, mix if form.mixes else None, new


def _is_special(*tensors: Tensor) -> bool:
    """Return whether something is at work that has rules for plain operations alone."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or any(type(x) not in _PLAIN for x in tensors)


_PLAIN = (Tensor, torch.nn.Parameter)


class _Read(torch.autograd.Function):
    """The loops in both passes; the backward pass of the backward pass is the reference's."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form, loops: Any
    ) -> tuple[Tensor, ...]:
        x, reads, writes, mix, found, inverse = cpu.read(loops, state, projection, scale, bias, form)
        ctx.save_for_backward(state, projection, scale, bias, found, inverse)
        ctx.form, ctx.loops = form, loops
        ctx.mark_non_differentiable(reads)
        return x, reads, writes, mix, state

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        by_x, _, by_writes, by_mix, by_new = cotangents
        state, *parameters, found, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = [x.detach().requires_grad_() if not x.requires_grad else x for x in (state, *parameters)]
            x, _, writes, mix = reference.read(*given, ctx.form)  # type: ignore[arg-type]
            outputs, by = [x, writes], [by_x, by_writes]
            if mix is not None:
                outputs, by = [*outputs, mix], [*by, by_mix]
            by_state, *others = torch.autograd.grad(outputs, given, by, create_graph=True)
            return by_state + by_new, *others, None, None
        return (
            *cpu.read_backward(
                ctx.loops, (by_x, by_writes, by_mix, by_new), state, tuple(parameters), (found, inverse), ctx.form
            ),
            None,
            None,
        )
