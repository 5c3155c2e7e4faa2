"""Reading streams by weights that they decide, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from levada.ops._define import one_by_one
from levada.ops._fitting import axes, require_iterations
from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.manifold import cpu, reference
from levada.ops.manifold.reference import Form

__all__ = ["FORM", "READ", "differentiable_read", "sizes"]

FORM: Final = (
    "bool mixes, int iterations, float epsilon, float read_epsilon, float write_epsilon, float norm_epsilon, "
    "bool transposed"
)


def differentiable_read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, ...]:
    """Return what the branch reads, the weights that read, write and mix, and the streams to write to."""
    if torch._C._functorch.peek_interpreter_stack() is None or torch.compiler.is_compiling():
        return READ(state, projection, scale, bias, *form)
    return READ.by(_Transformed.apply, state, projection, scale, bias, *form)


class _Transformed(torch.autograd.Function):
    """The operation for `torch.func`, whose functions may not hand an argument on and keep it."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = READ.operation(*arguments)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        READ.context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return READ.derivative(ctx, *cotangents)

    @staticmethod
    def vmap(info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
        return _vmap(_Transformed.apply, info, dims, *arguments)


def _vmap(function: Any, info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """Call with one more axis of tokens, which the axis of `vmap` is, unless parameters have it too."""
    state, *others = arguments
    if any(dim is not None for dim in dims[1:]):
        return one_by_one(function, info, dims, *arguments)
    found = function(state.movedim(dims[0], 0).flatten(0, 1), *others)
    return tuple(y.unflatten(0, (info.batch_size, -1)) for y in found), (0,) * len(found)


def sizes(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any) -> Sizes:
    """Return the shapes that belong to streams, tokens first."""
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    form = Form(*options)
    require_iterations(form.iterations)
    rows, mixed = (n * (2 + n), n) if form.mixes else (2 * n, 0)
    given = (tokens, n, dim), (rows, n * dim), (3 if form.mixes else 2,), (rows,)
    results = (tokens, dim), (tokens, n), (tokens, n), (tokens, mixed, n)
    return Sizes(given, results, ((tokens, rows), (tokens,)))


READ: Final[Reading] = Reading(
    "streams_read",
    Schema(
        ("state", "projection", "scale", "bias"),
        FORM,
        ("x", "reads?", "writes", "mix"),
        ("features", "inverse"),
    ),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.manifold.triton",
    sizes=sizes,
    fits=True,  # `read_streams` and `write_and_read` look
    vmap=lambda info, dims, *arguments: _vmap(READ.operation, info, dims, *arguments),
)
