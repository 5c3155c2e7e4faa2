"""Writing to streams and reading them again on a CPU: some tokens at a time, whose streams stay in the cache."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from levada.ops._cpu import blocks_of, rows_of
from levada.ops._define import empty_like
from levada.ops._loading import import_kernels, or_reference
from levada.ops.manifold.ahead import reference
from levada.ops.manifold.cpu import loops_for, read_tokens, read_tokens_backward, sums_of, together
from levada.ops.manifold.reference import Form
from levada.ops.streams.cpu import options_of as written_by

__all__ = ["write_and_read", "write_and_read_backward"]


@or_reference
def write_and_read(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None,
    projection: Tensor, scale: Tensor, bias: Tensor, *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return what the reference does."""
    form, written = Form(*options), (state, out, weights, mix)
    found = _loops(form, *written, projection, scale, bias)
    if found is None:
        return reference.write_and_read(*written, projection, scale, bias, *options)
    writing, reading = found
    tokens, n, width = state.shape
    given = _contiguous(*written)
    new, x = empty_like(state), state.new_empty(tokens, width)
    features, inverse = state.new_empty(tokens, len(projection)), state.new_empty(tokens)
    reads, writes = state.new_empty(tokens, n), state.new_empty(tokens, n)
    mixes = state.new_empty(tokens, n if form.mixes else 0, n)
    own = [*map(Tensor.contiguous, (projection, scale, bias))]
    for part in blocks_of(state):
        writing.over_addresses(writing.write_at, [*map(part, (*given, new))], *written_by(state, mix))
        made = [*map(part, (new, features, inverse, x, reads, writes, mixes, reads))]
        read_tokens(reading, made, own, n, width, form)
    return new, x, reads, writes, mixes, features, inverse


@or_reference
def write_and_read_backward(
    by_new: Tensor | None, by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor,
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None,
    new: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, features: Tensor, inverse: Tensor, *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients; see the reference."""
    form, written = Form(*options), (state, out, weights, mix)
    by = by_new, by_x, by_reads, by_writes, by_mix
    found = _loops(form, *written, projection, scale, bias, *by, new, features, inverse)
    if found is None:
        read = new, projection, scale, bias, features, inverse
        return reference.write_and_read_backward(*by, *written, *read, *options)
    writing, reading = found
    given = _contiguous(*written)
    by_reads = torch.zeros_like(by_writes) if by_reads is None else by_reads
    # What was kept, too, may come back in another layout: who saves tensors has the choice.
    new, features, inverse = (y.contiguous() for y in (new, features, inverse))
    came = [new, *(y.contiguous() for y in (by_x, by_reads, by_writes, by_mix, new if by_new is None else by_new))]
    by_state, by_out, by_weights, by_old_mix = (empty_like(y) for y in given)
    # What arrives at the new streams is used up at once, but where it is the gradient by the old ones itself.
    arrives, sums = empty_like(state[: rows_of(state)]), list[Any]()
    own = [*map(Tensor.contiguous, (projection, scale, bias))]
    for part in blocks_of(state):
        some = [*map(part, (*came, features, inverse))]
        by_written = part(by_state) if mix is None else arrives[: len(some[0])]
        made = [*some, by_written, some[2], some[2]]  # no weights were handed on
        # Of many streams a block's sums take more memory than its tokens: none are kept.
        sums = [together([*sums, read_tokens_backward(reading, made, own, form, by_new is not None, False)])]
        made = [*map(part, (*given, by_state, by_out, by_weights, by_old_mix))]
        writing.over_addresses(writing.write_backward_at, [by_written, *made], *written_by(state, mix))
    by_old_mix = weights.new_empty(0) if mix is None else by_old_mix
    return by_state, by_out, by_weights, by_old_mix, *sums_of(sums, state.dtype)


def _loops(form: Form, state: Tensor, *others: Tensor | None) -> tuple[ModuleType, ModuleType] | None:
    """Return the loops that write and those that read, if they take these tensors and this form."""
    reading = loops_for(state, form, *others)
    writing = import_kernels("levada.ops.streams.loops", "numba")
    return None if reading is None or writing is None else (writing, reading)


def _contiguous(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> list[Tensor]:
    return [x.contiguous() for x in (state, out, weights, weights.unsqueeze(-1) if mix is None else mix)]
