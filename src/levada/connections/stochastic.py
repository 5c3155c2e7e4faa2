"""Residual connections that drop whole branches at random."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_number
from levada.connection import Outputs, SingleStream

__all__ = ["StochasticDepth"]


@final
class StochasticDepth(SingleStream):
    """A residual connection that drops its branch at random in training, the more often the deeper it is.

    `x' = x + b f(x)`, where b is 1 with probability `p_l = 1 - (l / L) (1 - survival)` and else 0, in layer l = 1 ... L

    - `mode="batch"`, the paper's: one draw b for the mini-batch. In training `x' = x + b f(x)`, and a dropped branch is
      not computed at all: with `survival=0.5` a quarter of the branches is saved. In evaluation `x' = x + p_l f(x)`.
    - `mode="sample"`, known as drop path: one draw for each sample (axis 0). In training `x' = x + (b / p_l) f(x)`,
      in evaluation `x' = x + f(x)`. All branches are computed.

    Each draw takes from PyTorch's random state (that of the CPU for a batch), so that checkpointing repeats it. Where
    several processes share the layers, as in sharded training, all must drop the same ones: give their CPU generators
    the same seed, or take `mode="sample"`. A compiled graph cannot leave a branch out: there a dropped branch is
    computed, and multiplied by zero.

    Use it to regularise a deep residual network, or, with a draw for the mini-batch, to save a part of the branches'
    time in training. Where nothing has to be regularised, use `Residual`.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        survival: probability with which the last layer's branch survives, in `(0, 1]`.
        mode: `"batch"` or `"sample"`.

    Shape:
        `(..., dim) -> (..., dim)`.

    Cost:
        No parameters; reads `2 dim` and writes `dim` elements per token in the forward pass, and nothing where a branch
        is dropped for the whole batch.

    Raises:
        UsageError: if `survival` is not in `(0, 1]` or the mode is neither of the two.

    Example:
        >>> [round(StochasticDepth(3, layer=i, depth=4, survival=0.5).survival, 3) for i in range(4)]
        [0.875, 0.75, 0.625, 0.5]
        >>> dropped = StochasticDepth(3, survival=0.5).eval()
        >>> dropped.advance(torch.ones(1, 3), nn.Identity())
        tensor([[1.5000, 1.5000, 1.5000]])

    Source: Huang, Sun, Liu, Sedra and Weinberger, 2016, arXiv 1603.09382 (batch); Larsson, Maire and Shakhnarovich,
    2016, arXiv 1605.07648 (drop path).
    """

    residual_start = "exact"
    probability: Tensor

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        survival: float = 0.5,
        mode: Literal["batch", "sample"] = "batch",
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_number("StochasticDepth", "survival", survival)
        if not 0 < survival <= 1:
            raise UsageError(f"StochasticDepth: survival must be in (0, 1], got {survival}.")
        if mode not in ("batch", "sample"):
            raise UsageError(f"StochasticDepth: mode must be 'batch' or 'sample', got {mode!r}.")
        self.mode = mode
        self.survival = 1 - (layer + 1) / depth * (1 - survival)
        # For compiled graphs: a number would differ by layer, and each layer would be compiled anew.
        self.register_buffer("probability", torch.full((1,), self.survival), persistent=False)

    def start_as_residual(self) -> None:
        """Do nothing if evaluation computes `x + f(x)`, which `mode="sample"` does; in training branches drop out."""
        if self.mode != "sample":
            super().start_as_residual()

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the stream plus the surviving part of the branch's output."""
        if self.training and self.mode == "sample":
            shape = (state.shape[0],) + (1,) * (state.ndim - 1)
            return state + out * self._alive(shape, out) / self._survival(out)
        if self.training:
            return state + out * self._alive((1,), out) if torch.compiler.is_compiling() else state + out
        return state + out if self.mode == "sample" else state + out * self._survival(out)

    def advance(self, state: Tensor, branch: nn.Module, *args: Any, **kwargs: Any) -> Tensor | Outputs:
        """Take one layer's step, without computing a branch that is dropped for the whole batch."""
        skippable = self.training and self.mode == "batch" and not torch.compiler.is_compiling()
        if skippable and torch.rand((), device="cpu").item() >= self.survival:
            return state
        return super().advance(state, branch, *args, **kwargs)

    def _survival(self, out: Tensor) -> Tensor | float:
        return self.probability.to(out.dtype) if torch.compiler.is_compiling() else self.survival

    def _alive(self, shape: tuple[int, ...], out: Tensor) -> Tensor:
        # Drawn in float32: in bfloat16 the draws would be multiples of 1/256.
        draws = torch.rand(shape, device=out.device, dtype=torch.float32)
        survival = self.probability if torch.compiler.is_compiling() else self.survival
        return (draws < survival).to(out.dtype)
