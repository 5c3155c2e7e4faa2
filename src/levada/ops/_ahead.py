"""Writing to streams and reading them for the next layer as one node of the graph, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from levada.ops._define import is_direct, is_observed
from levada.ops._kernels import takes
from levada.ops._reading import Reading
from levada.ops.streams import autograd, cpu, fit

__all__ = ["takes_both", "write_and_read"]


def takes_both(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, *parameters: Tensor | None) -> bool:
    """Return whether `write_and_read` may be called: there are loops for all, and nobody looks at operations.

    Args:
        state: the streams.
        out: what the branch returned.
        weights: of the output in each stream.
        mix: of the streams in each other.
        *parameters: of the reading.
    """
    if torch.compiler.is_compiling() or is_observed() or not fit(state, out, weights, mix):
        return False
    others = [x for x in (out, weights, mix, *parameters) if x is not None]
    return takes(state, *others) and is_direct(state, *others)


def write_and_read(
    reading: Reading, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    """Return what the reading does of the streams after a layer has written to them; see `takes_both`.

    A node less, and two views of leading axes, is a tenth of a layer at 256 tokens.

    Args:
        reading: the operation.
        state: the streams.
        out: what the branch returned.
        weights: of the output in each stream.
        mix: of the streams in each other.
        *others: the reading's other arguments.
    """
    own = reading.tensors - 1
    written, given = (state, out, weights, mix), others[:own]
    found: tuple[Tensor, ...] = _Ahead.apply(reading, others[own:], *written, *given)  # type: ignore[no-untyped-call]
    return found


class _Ahead(torch.autograd.Function):
    """Both, one kernel after the other, with tokens as the first axis in here."""

    @staticmethod
    def forward(ctx: Any, reading: Reading, options: Sequence[Any], *tensors: Any) -> tuple[Tensor, ...]:
        written, others = tensors[:4], tensors[4:]
        leading = tensors[0].shape[:-2]
        new = cpu.write(*(_flat(x, len(leading)) for x in written))
        reading.require((new, *others, *options))
        found: tuple[Tensor, ...] = reading.cpu.read(new, *others, *options)
        results, kept = [*found[: reading.results], new], found[reading.results :]
        if len(leading) != 1:
            with torch._C._AutoDispatchBelowADInplaceOrView():  # else they are views, and FSDP2 warns of these
                results = [y.view(*leading, *y.shape[1:]) for y in results]
        ctx.reading, ctx.options = reading, options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*written, results[-1], *others, *kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # asked for once: a checkpoint unpacks them at each time, and only once
        written, saved = kept[:4], kept[4:]
        leading = written[0].ndim - 2
        by_new, *by_own = ctx.reading.gradients(saved, ctx.options, cotangents)
        by_written = autograd.gradients(*(_flat(x, leading) for x in (by_new, *written)))
        return None, None, *(y.view(x.shape) for x, y in zip(written, by_written, strict=True)), *by_own


def _flat(x: Tensor, leading: int) -> Tensor:
    return x if leading == 1 else x.reshape(-1, *x.shape[leading:])
