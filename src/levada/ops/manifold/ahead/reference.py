"""Writing to streams and reading them again, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from levada.ops.manifold import reference as manifold
from levada.ops.streams import reference as streams

__all__ = ["write_and_read", "write_and_read_backward"]


def write_and_read(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    """Return the new streams, and of them what the next branch reads, the next weights, features and norms.

    Args:
        state: the streams, tokens first.
        out: what the branch returned.
        weights: of the output in each stream.
        mix: of the streams in each other.
        *others: the next layer's projection, scale, bias and form.
    """
    new = streams.write(state, out, weights, mix)
    return new, *manifold.read_and_keep(new, *others)


def write_and_read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients by state, output, weights, mix, projection, scale and bias.

    That by the mix is empty where nothing is mixed.

    Args:
        *arguments: in turn the gradients by the new streams (or None), by what the branch read, by the weights that
            read (or None), write and mix; the four arguments of the writing; the new streams; projection, scale and
            bias; features and norms that were kept (both None to make them again, as derivatives of this need); the
            form. Without mixing any tensor of its shape may come in the place of the state.
    """
    by_new, by_x, by_reads, by_writes, by_mix, *written = arguments[:9]
    by_written, *by_parameters = manifold.read_backward(by_x, by_reads, by_writes, by_mix, by_new, *arguments[9:])
    by_state, *others = streams.write_backward(by_written, *written)
    return by_written if written[3] is None else by_state, *others, *by_parameters
