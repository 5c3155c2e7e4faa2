"""Reading streams on a CPU: by loops that Numba compiles; else the reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from levada.ops import _cpu
from levada.ops._cpu import added, number_of
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops._precision import full_precision
from levada.ops._products import add_product, product, times_transposed
from levada.ops.manifold import reference
from levada.ops.manifold.reference import Form
from levada.ops.sinkhorn.reference import steps_at_once

__all__ = [
    "IN_LOOPS",
    "loops_for",
    "options_of",
    "read",
    "read_backward",
    "read_by",
    "read_by_backward",
    "read_tokens",
    "read_tokens_backward",
    "sums_of",
    "together",
]


# Numbers of a projection: more of them leave the second cache, are read again for every 32 tokens, and PyTorch's
# products of all tokens are faster.
IN_LOOPS: Final = 2**19


def loops_for(state: Tensor, form: Form, *others: Tensor | None) -> ModuleType | None:
    """Return the loops if they take these tensors and this form.

    Args:
        state: the streams.
        form: what is asked for.
        *others: the parameters.
    """
    # Past so many iterations an entry that underflowed could matter.
    if form.mixes and not form.epsilon and form.iterations > _most_steps(state.shape[-2], state.dtype):
        return None
    return _cpu.loops_for("levada.ops.manifold.loops", state, *others)


_most_steps = functools.cache(steps_at_once)  # logarithms at each layer


@or_reference
def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, write and mix, and features and norms for the way back."""
    form = Form(*options)
    loops = loops_for(state, form, projection, scale, bias)
    if loops is None:
        return reference.read_and_keep(state, projection, scale, bias, *options)
    return read_by(loops, None, state, projection, scale, bias, form)


def read_by(
    loops: ModuleType, handed: Tensor | None, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same, of what `loops_for` took.

    Args:
        loops: what it returned.
        handed: the weights by which the branch reads, where these are not the ones that are made.
        state: as for `read`, as all others.
        projection: likewise.
        scale: likewise.
        bias: likewise.
        form: likewise.
    """
    tokens, n, width = state.shape
    state, rows = state.contiguous(), len(projection)
    found, inverse = state.new_empty(tokens, rows), state.new_empty(tokens)
    x, reads, writes = state.new_empty(tokens, width), state.new_empty(tokens, n), state.new_empty(tokens, n)
    mix = state.new_empty(tokens, n if form.mixes else 0, n)
    given = reads if handed is None else handed.contiguous()
    own = [*map(Tensor.contiguous, (projection, scale, bias))]
    read_tokens(loops, [state, found, inverse, x, reads, writes, mix, given], own, n, width, form)
    return x, reads, writes, mix, found, inverse


@or_reference
def read_backward(
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, features: Tensor, inverse: Tensor, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, projection, scale and bias; see the reference."""
    form = Form(*options)
    by = by_x, by_reads, by_writes, by_mix, by_new
    kept = projection, scale, bias, features, inverse
    loops = loops_for(state, form, *kept, *by)
    if loops is None:
        return reference.read_backward(*by, state, *kept, *options)
    by_state, _, *by_parameters = read_by_backward(loops, None, *by, state, *kept, form)
    by_projection, by_scale, by_bias = by_parameters
    return by_state, by_projection, by_scale, by_bias


def read_by_backward(
    loops: ModuleType, handed: Tensor | None,
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, features: Tensor, inverse: Tensor, form: Form,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, handed weights, projection, scale and bias, of what `loops_for` took."""
    state = state.contiguous()
    by_state = empty_like(state)
    by_reads = torch.zeros_like(by_writes) if by_reads is None else by_reads
    given = state, by_x, by_reads, by_writes, by_mix, state if by_new is None else by_new, features, inverse
    tensors = [*map(Tensor.contiguous, given), by_state]
    by_handed = None if handed is None else empty_like(handed)
    # Without, they are neither read nor written.
    tensors += (tensors[2], tensors[2]) if handed is None or by_handed is None else (handed.contiguous(), by_handed)
    own, chosen = [*map(Tensor.contiguous, (projection, scale, bias))], (by_new is not None, handed is not None)
    sums = read_tokens_backward(loops, tensors, own, form, *chosen)
    by_projection, by_scale, by_bias = sums_of([sums], state.dtype)
    return by_state, by_handed, by_projection, by_scale, by_bias


def read_tokens(
    loops: ModuleType, tensors: Sequence[Tensor], own: Sequence[Tensor], n: int, width: int, form: Form
) -> None:
    """Read some tokens' streams.

    Args:
        loops: what `loops_for` returned.
        tensors: streams; what is written: features, norms, what is read, weights; what the branch reads by.
        own: projection, scale and bias.
        n: number of streams.
        width: of one.
        form: what is asked for.
    """
    state, found, apart = tensors[0], tensors[1], own[0].numel() > IN_LOOPS
    if apart:
        with full_precision(state):
            found.copy_(times_transposed(state.view(len(state), n * width), own[0]))
    loops.over_addresses(loops.read_at, [*tensors, *own], n, width, *options_of(state.dtype, form), apart)


def read_tokens_backward(
    loops: ModuleType, tensors: Sequence[Tensor], own: Sequence[Tensor], form: Form, adds: bool, handed: bool
) -> Any:
    """Write the gradients by some tokens, and return the sums for the parameters.

    Args:
        loops: what `loops_for` returned.
        tensors: what `read_backward_at` takes, to the weights that were handed on and their gradient.
        own: projection, scale and bias.
        form: what is asked for.
        adds: whether there is a gradient by the streams from behind.
        handed: whether the weights that the branch read by were handed on.
    """
    state, features, by_state = tensors[0], tensors[6], tensors[8]
    _, n, width = state.shape
    apart = own[0].numel() > IN_LOOPS
    by_found = empty_like(features) if apart else features  # which is not written to then
    chosen = n, width, *options_of(state.dtype, form), adds, handed, apart
    sums = together(loops.over_addresses(loops.read_backward_at, [*tensors, *own, by_found], *chosen))
    if not apart:
        return sums
    with full_precision(state):
        for part in _cpu.blocks_of(state):  # a large temporary's pages would come from the system
            some = part(by_state)
            add_product(some.view(len(some), n * width), part(by_found), own[0])
        by_projection = product(by_found.t(), state.view(len(state), n * width))
    return *sums[:2], by_projection.contiguous().numpy()


def sums_of(parts: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by projection, scale and bias.

    Args:
        parts: what the loops returned, threads' or blocks', in their order.
        dtype: of the streams.
    """
    by_scale, by_bias, by_projection = together(parts)
    total = by_projection, added([by_scale], dtype), added([by_bias], dtype)
    of_projection, of_scale, of_bias = map(torch.from_numpy, total)
    return of_projection, of_scale, of_bias


def together(parts: Sequence[Any]) -> Any:
    """Return what the first part has become: the others are added to its arrays, in their order.

    Args:
        parts: what the loops returned, one at least.
    """
    first, *others = parts
    for other in others:
        for total, one in zip(first, other, strict=True):
            total += one
    return first


@functools.cache
def options_of(dtype: torch.dtype, form: Form) -> tuple[object, ...]:
    """Return what the loops are given behind the shape: numbers of their type.

    Args:
        dtype: of the streams.
        form: what is asked for.
    """
    one = number_of(dtype)
    epsilons = (form.epsilon, form.read_epsilon, form.write_epsilon, form.norm_epsilon)
    return one, form.mixes, form.iterations, tuple(map(type(one), epsilons)), form.transposed
