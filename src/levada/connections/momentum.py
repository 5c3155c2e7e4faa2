"""Momentum residual networks."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_number
from levada.connections.inversion import Invertible, Pair, Slot

__all__ = ["Momentum"]

_TOLERANCE = 0.01


@final
class Momentum(Invertible):
    """A residual connection with a velocity: branches push the stream instead of moving it, so it can be undone.

    `v' = gamma v + (1 - gamma) f(x)`, `x' = x + v'`, from `v = 0`;
    undone by `x = x' - v'`, `v = (v' - (1 - gamma) f(x)) / gamma`

    Any branch of a residual network can be kept: `gamma = 0` is the residual network itself. No activation is kept:
    the backward pass recovers each state from the next one, at the price of one more run of each branch, and memory
    does not grow with depth. But undoing a layer divides by `gamma`, so that the rounding error of the recovered
    velocity grows as `gamma^-depth`; where that would reach one hundredth, the first layer refuses to begin.

    What a branch reads besides the stream and needs a gradient must be its parameter or an argument, `stack(x, c)`: a
    tensor that it takes from elsewhere, as a closure does, makes the backward pass raise.

    Use it where activations do not fit and the branches of a residual network must stay as they are, at up to about 100
    layers (float32, `gamma=0.9`). At more layers use `Reversible`; `Stack(checkpoint=True)` saves memory behind any
    connection.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        gamma: how much of the velocity is kept, in `[0, 1)`; above 0 if activations are to be recomputed.
        recompute: False keeps activations like any other connection, for the same numbers; it allows to go backward
            twice, and gradients of gradients.

    Shape:
        `(..., dim) -> (..., dim)`.

    Cost:
        No parameters; reads `3 dim` and writes `2 dim` elements per token in the forward pass; the backward pass runs
        the branch again, unless activations are kept.

    Raises:
        UsageError: if `gamma` is out of range; at the start of a pass, if the depth is too large for `gamma` and the
            precision; in a backward pass, if it is the second one or begins in the middle, or a branch takes a tensor
            that needs a gradient from elsewhere.

    Example:
        >>> momentum = Momentum(1, gamma=0.75)
        >>> state = momentum.begin(torch.ones(1, 1))
        >>> for _ in range(2):
        ...     state = momentum.advance(state, nn.Identity())
        >>> momentum.end(state)  # v: 0.25, 0.5;  x: 1.25, 1.75
        tensor([[1.7500]])

    Source: Sander, Ablin, Blondel and Peyre, 2021, arXiv 2102.07870.
    """

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, gamma: float = 0.9, recompute: bool = True) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_number("Momentum", "gamma", gamma)
        if not 0 <= gamma < 1:
            raise UsageError(f"Momentum: gamma must be in [0, 1), got {gamma}. With 1 no branch would have an effect.")
        if recompute and gamma == 0:
            raise UsageError("Momentum: with gamma 0 a layer cannot be undone. Pass recompute=False, or use Residual.")
        self.gamma = gamma
        self.recompute = recompute

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor, Slot | None]:
        """Start at rest."""
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            error = torch.finfo(x.dtype).eps * self.gamma**-self.depth
            if error > _TOLERANCE:
                raise UsageError(
                    f"Momentum: with gamma {self.gamma} and depth {self.depth} recovered states would have a rounding "
                    f"error of about {error:.0e} in {x.dtype}. Raise gamma, pass recompute=False, or use float64."
                )
        return x, torch.zeros_like(x), None

    def read(self, state: tuple[Tensor, Tensor, Any]) -> Tensor:
        """Return the position."""
        return state[0]

    def write(self, state: tuple[Tensor, Tensor, Any], out: Tensor) -> tuple[Tensor, Tensor, Slot | None]:
        """Push the velocity, and move by it."""
        velocity = self.gamma * state[1] + (1 - self.gamma) * out
        return state[0] + velocity, velocity, None

    def end(self, state: tuple[Tensor, Tensor, Any]) -> Tensor:
        """Return the position."""
        return state[0]

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def input_of(self, new: Pair) -> Tensor:
        """Move back."""
        return new[0] - new[1]

    def undo(self, new: Pair, out: Tensor) -> Pair:
        """Move back, and take the push out of the velocity."""
        return new[0] - new[1], (new[1] - (1 - self.gamma) * out) / self.gamma

    def branch_gradient(self, gradients: Pair) -> Tensor:
        """Return the branch's part of the velocity's gradient, which the position passes on."""
        return (1 - self.gamma) * (gradients[0] + gradients[1])

    def state_gradient(self, gradients: Pair, read: Tensor) -> Pair:
        """Return the gradients at position and velocity."""
        return gradients[0] + read, self.gamma * (gradients[0] + gradients[1])
