"""Reversible residual networks."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.connections.inversion import Invertible, Pair, Slot

__all__ = ["Reversible"]


@final
class Reversible(Invertible):
    """Two halves of the stream take turns: a layer reads one half and adds to the other, so it can be undone.

    `(x1, x2)' = (x2, x1 + f(x2))`, undone by `x2 = x1'`, `x1 = x2' - f(x1')`

    Two layers make one block of the RevNet paper, `y1 = x1 + F(x2)`, `y2 = x2 + G(y1)`. No activation is kept: the
    backward pass recovers each state from the next one, at the price of one more run of each branch, and memory does
    not grow with depth. Recovered states carry the rounding errors of the layers above them.

    What a branch reads besides the stream and needs a gradient must be its parameter or an argument, `stack(x, c)`: a
    tensor that it takes from elsewhere, as a closure does, makes the backward pass raise.

    Use it where activations do not fit, at any depth, with branches of half the width. It cannot take the place of a
    residual connection in a trained model: there use `Momentum`, or `Stack(checkpoint=True)`.

    Args:
        dim: width of the stream, even.
        layer: index of the layer, counted from 0.
        depth: number of layers. With an odd number the halves come out exchanged.
        axis: axis of the channels that are split: -1 for `(..., dim)`, 1 for images.
        recompute: False keeps activations like any other connection, for the same numbers; it allows to go backward
            twice, and gradients of gradients.

    Shape:
        A branch maps `(..., dim / 2) -> (..., dim / 2)`; the stack `(..., dim) -> (..., dim)`.

    Cost:
        No parameters; reads `dim` and writes `dim / 2` elements per token in the forward pass; the backward pass runs
        the branch again, unless activations are kept.

    Raises:
        UsageError: if `dim` is odd; in a backward pass, if it is the second one or begins in the middle, or
            a branch takes a tensor that needs a gradient from elsewhere.

    Example:
        >>> from levada import Stack
        >>> net = Stack([nn.Linear(2, 2) for _ in range(6)], Reversible, dim=4)
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> net(x).sum().backward()
        >>> x.grad.shape
        torch.Size([3, 4])

    Source: Gomez, Ren, Urtasun and Grosse, 2017, arXiv 1707.04585.
    """

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, axis: int = -1, recompute: bool = True) -> None:
        require_at_least("Reversible", "dim", dim, 1)
        if dim % 2:
            raise UsageError(f"Reversible: dim must be even, the stream is two halves, got {dim}.")
        super().__init__(dim, layer=layer, depth=depth, dim_in=dim // 2)
        require_number("Reversible", "axis", axis, whole=True)
        self.axis = axis
        self.recompute = recompute

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor, Slot | None]:
        """Split the input into halves."""
        first, second = x.chunk(2, self.axis)
        return first, second, None

    def read(self, state: tuple[Tensor, Tensor, Any]) -> Tensor:
        """Return the second half."""
        return state[1]

    def write(self, state: tuple[Tensor, Tensor, Any], out: Tensor) -> tuple[Tensor, Tensor, Slot | None]:
        """Add to the first half, and exchange the halves."""
        return state[1], state[0] + out, None

    def end(self, state: tuple[Tensor, Tensor, Any]) -> Tensor:
        """Join the halves."""
        return torch.cat(state[:2], self.axis)

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def input_of(self, new: Pair) -> Tensor:
        """Return the first half, which the layer has not changed."""
        return new[0]

    def undo(self, new: Pair, out: Tensor) -> Pair:
        """Subtract, and exchange the halves back."""
        return new[1] - out, new[0]

    def branch_gradient(self, gradients: Pair) -> Tensor:
        """Return the gradient at the half that was added to."""
        return gradients[1]

    def state_gradient(self, gradients: Pair, read: Tensor) -> Pair:
        """Exchange the gradients back, and add the branch's."""
        return gradients[1], gradients[0] + read
