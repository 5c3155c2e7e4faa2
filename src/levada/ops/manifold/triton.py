"""Reading streams on a GPU: products with tensor cores on the way past, sums in one order, no pass more than needed.

Forward, `project` reads the streams once for the projection and the sum of squares, `gates` makes the weights of what
it left (a token's Sinkhorn iterations in registers), and `_read` reads the streams again, from the last token to the
first, as what was read last may still be in the cache: `(2 n + 1) dim` elements a token. The weights' kernel is its own
as its chain of dependent sums would keep programs that stream waiting.

Backward, `_by_reads` reads the streams for the gradient by the weights that read, `gates_backward` makes the gradient
by what was projected, the iterations made again in registers, and `by_state_of` writes the streams' gradient and adds
up the projection's, in one pass: `(4 n + 2) dim`.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import functools
from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._device import TYPES, as_float32, on, past_limit
from levada.ops.manifold import reference
from levada.ops.manifold.gates.triton import gates, gates_backward, options_of
from levada.ops.manifold.products.triton import by_state_of, project
from levada.ops.manifold.reference import Form

__all__ = ["BY_READS", "LIMIT", "READ", "block_of", "of_reads", "read", "read_backward", "read_projected"]
__all__ += ["read_projected_backward", "sum_streams", "takes"]

# What a sweep may set: sizes of blocks, and warps.
READ: Final = {"elements": 2048, "block": 1024, "num_warps": 4}
BY_READS: Final = {"elements": 4096, "num_warps": 4}

# Rows of weights, parts counted, that a token is multiplied by. With more an H100 gave wrong numbers before products
# were waited for (`products._waited`); nobody has run more on one since.
LIMIT: Final = {"rows": 128}
_MOST_STREAMS = 16
_MOST_ITERATIONS = 64  # all steps' factors are in registers


@triton.jit(do_not_specialize=["tokens"])
def _read(
    state, reads, x, tokens,
    width: tl.constexpr, n: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the weighted sum of streams, the last tokens first."""
    token = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * together + tl.arange(0, together)
    column = tl.program_id(1) * block + tl.arange(0, block)
    here = (token < tokens)[:, None] & (column < width)[None, :]
    total = tl.zeros([together, block], dtype=tl.float32)
    for j in tl.static_range(n):
        weight = tl.load(reads + token * n + j, mask=token < tokens, other=0.0)
        stream = tl.load(state + (token * n + j)[:, None] * width + column[None, :], mask=here, other=0.0)
        total += weight[:, None] * stream.to(tl.float32)
    tl.store(x + token[:, None] * width + column[None, :], total, mask=here)


@triton.jit
def _by_reads(
    by_x, state, given, by_reads,
    width: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, adds: tl.constexpr,
):  # fmt: skip
    """Write a token's gradient by the weights that read; what was given is added."""
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, padded)
    total = tl.zeros([padded, block], dtype=tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        here = (stream < n)[:, None] & (column < width)[None, :]
        x = tl.load(state + (token * n + stream)[:, None] * width + column[None, :], mask=here, other=0.0)
        g = tl.load(by_x + token * width + column, mask=column < width, other=0.0)
        total += x.to(tl.float32) * g.to(tl.float32)[None, :]
    found = tl.sum(total, 1)
    if adds:
        found += tl.load(given + token * n + stream, mask=stream < n, other=0.0)
    tl.store(by_reads + token * n + stream, found, mask=stream < n)


def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, write and mix, and features and norms for the way back."""
    form = Form(*options)
    if not takes(state, form):
        return reference.read_and_keep(state, projection, scale, bias, *options)
    state = state.contiguous()
    return read_projected(state, project(state, projection), scale, bias, form)


def read_projected(
    state: Tensor, sums: Tensor, scale: Tensor, bias: Tensor, form: Form, handed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same of streams that were projected already.

    Args:
        state: the streams, contiguous.
        sums: what `project` returns.
        scale: as it was given.
        bias: likewise.
        form: likewise.
        handed: the weights by which the branch reads, in float32, where these are not the ones that are made.
    """
    tokens, n, width = state.shape
    count = sums.shape[2] - 1
    full = functools.partial(torch.empty, dtype=torch.float32, device=state.device)
    reads, writes, mix = full(tokens, n), full(tokens, n), full(tokens, n if form.mixes else 0, n)
    features, inverse = full(tokens, count), full(tokens)
    if not state.numel():
        return state.new_empty(tokens, width), reads, writes, mix, features, inverse
    with on(state.device):
        chosen = options_of(n, count, form) | {"write_epsilon": form.write_epsilon, "norm_epsilon": form.norm_epsilon}
        gates[(triton.cdiv(tokens, chosen["together"]),)](
            sums, as_float32(scale), as_float32(bias), reads, writes, mix, features, inverse, tokens,
            n * width, parts=len(sums), **chosen,
        )  # fmt: skip
        x = sum_streams(state, reads if handed is None else handed)
    return x, reads, writes, mix, features, inverse


def read_backward(
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, features: Tensor, inverse: Tensor, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, projection, scale and bias."""
    form = Form(*options)
    given = by_x, by_reads, by_writes, by_mix, by_new, state, projection, scale, bias, features, inverse
    if not takes(state, form) or not state.numel():
        return reference.read_backward(*given, *options)
    by_state, _, *by_parameters = read_projected_backward(*given, form)
    by_projection, by_scale, by_bias = by_parameters
    return by_state, by_projection, by_scale, by_bias


def read_projected_backward(
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, features: Tensor, inverse: Tensor, form: Form,
    handed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, the weights that the branch read by, projection, scale and bias.

    The second is whole where weights were handed on, in float32; with these `by_reads` is given.
    """
    tokens, n, width = state.shape
    count = len(projection)
    state, by_x = state.contiguous(), by_x.contiguous()
    split = state.dtype == torch.bfloat16  # float16 has not the range that gradients need
    full = functools.partial(torch.empty, dtype=torch.float32, device=state.device)
    with on(state.device):
        by_weights, factors = of_reads(by_x, state, by_reads if handed is None else None), full(tokens, n + 1)
        by_made = by_weights if handed is None or by_reads is None else by_reads.contiguous()
        chosen = options_of(n, count, form)
        programs = triton.cdiv(tokens, chosen["together"])
        by_logits = torch.empty(
            tokens, (1 + split) * count, dtype=state.dtype if split else torch.float32, device=state.device
        )
        by_scale, by_bias = full(programs, len(scale)), full(programs, count)
        gates_backward[(programs,)](
            by_made, by_writes.contiguous(), by_mix.contiguous(), features, inverse,
            as_float32(scale), as_float32(bias), by_logits, factors, by_scale, by_bias,
            tokens, n * width, split=split, **chosen,
        )  # fmt: skip
        if handed is not None:
            factors[:, :n] = handed
        by_state, by_rows = by_state_of(by_x, by_new, state, by_logits, factors, as_float32(projection))
    by_scale, by_bias = by_scale.sum(0).to(scale.dtype), by_bias.sum(0).to(bias.dtype)
    return by_state, by_weights, by_rows.to(projection.dtype), by_scale, by_bias


def sum_streams(state: Tensor, reads: Tensor) -> Tensor:
    """Return the weighted sum of the streams.

    Args:
        state: the streams, contiguous.
        reads: their weights, in float32, contiguous.
    """
    tokens, n, width = state.shape
    x = state.new_empty(tokens, width)
    block = block_of(width, READ["block"])
    together = max(1, READ["elements"] // block)
    with on(state.device):
        _read[(triton.cdiv(tokens, together), triton.cdiv(width, block))](
            state, reads, x, tokens, width=width, n=n, together=together, block=block, num_warps=READ["num_warps"]
        )
    return x


def of_reads(by_x: Tensor, state: Tensor, given: Tensor | None) -> Tensor:
    """Return the gradient by the weights of that sum, in float32.

    Args:
        by_x: gradient by the sum, contiguous.
        state: the streams, contiguous.
        given: what is added, or None.
    """
    tokens, n, width = state.shape
    found = torch.empty(tokens, n, dtype=torch.float32, device=state.device)
    padded = triton.next_power_of_2(n)
    with on(state.device):
        _by_reads[(tokens,)](
            by_x, state, found if given is None else given.contiguous(), found,
            width=width, n=n, padded=padded, block=block_of(width, BY_READS["elements"] // padded),
            adds=given is not None, num_warps=BY_READS["num_warps"],
        )  # fmt: skip
    return found


def block_of(width: int, most: int) -> int:
    """Return how many channels to take at a time: a divisor of all, where that makes no narrow blocks."""
    block = int(min(most, max(16, triton.next_power_of_2(width))))
    while block > 256 and width % block:
        block //= 2
    return block


def takes(state: Tensor, form: Form) -> bool:
    """Return whether the kernels take these: float64 they leave to the reference, and what is past their limits."""
    n = state.shape[1]
    if state.dtype not in TYPES:
        return False
    if n > _MOST_STREAMS or (form.mixes and form.iterations > _MOST_ITERATIONS):
        past_limit(
            f"{n} streams mixed by {form.iterations} iterations", f"at most {_MOST_STREAMS} and {_MOST_ITERATIONS}"
        )
        return False
    rows = (2 * n + n * n * form.mixes) * (1 if state.dtype == torch.float32 else 2)
    if rows > LIMIT["rows"]:
        kind = str(state.dtype).removeprefix("torch.")
        past_limit(f"{n} streams of {kind}, {rows} rows of weights", f"at most {LIMIT['rows']} rows")
        return False
    return True
