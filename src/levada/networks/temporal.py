"""Temporal convolutional networks: causal convolutions over a sequence, with any connection."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.blocks import CausalBranch, CausalConvolution
from levada.blocks.causal import refuse_channel_norm, require_sequence
from levada.connection import Connection
from levada.connections import Residual
from levada.stack import Stack
from levada.theory import depth_for_lag, receptive_field, visible_lags

__all__ = ["TemporalConvolutionalNetwork"]


@final
class TemporalConvolutionalNetwork(nn.Module):
    """A linear map in, one layer of causal convolutions for each dilation, a linear map out, at every step.

    `h = A x;  h = write(h, branch_l(read(h))) for each dilation;  y_t = B h_t`

    A step of the output sees that step of the input and the `receptive_field() - 1` before it, and nothing else. The
    layer of the paper is had by `activation=nn.ReLU()`, an option of `Residual`, and a branch with `weight_norm` and
    `dropout`; its first layer widens the stream, here the map in does.

    Args:
        dilations: one for each layer, such as `[2**layer for layer in range(8)]`.
        dim: width of the stream.
        inputs: number of features that come in.
        outputs: number of features that go out.
        kernel_size: taps of every convolution.
        branch: called as `branch(dim_in, dim_out=, kernel_size=, dilation=)`; `CausalConvolution` for one convolution a
            layer, or either with options by `functools.partial`.
        connection: how the layers read and write.
        lag: how many steps back the task looks; raises at once where the network cannot see so far.
        options: of the stack and of the connection.

    Shape:
        `(batch, steps, inputs)` -> `(batch, steps, outputs)`.

    Cost:
        Two convolutions a layer at every step, all steps at once; depth grows as the logarithm of the lag.

    Raises:
        UsageError: if an option does not fit, the lag is out of sight, a normalisation of channels, as
            `nn.BatchNorm1d`, stands beside a convolution, or a sequence has no step, another width or precision.

    Example:
        >>> import torch
        >>> net = TemporalConvolutionalNetwork([1, 2, 4, 8], 16, inputs=3, outputs=5)
        >>> net(torch.randn(2, 40, 3)).shape, net.receptive_field()
        (torch.Size([2, 40, 5]), 61)
        >>> net.require_lag(61)
        Traceback (most recent call last):
        levada._errors.UsageError: TemporalConvolutionalNetwork: lag must be below the receptive field of 61 steps,
        got 61. Use 5 layers whose dilations double, or a larger kernel.

    Source: Bai, Kolter and Koltun 2018, arXiv 1803.01271.
    """

    def __init__(
        self,
        dilations: Sequence[int],
        dim: int,
        *,
        inputs: int,
        outputs: int,
        kernel_size: int = 3,
        branch: Callable[..., nn.Module] = CausalBranch,
        connection: Callable[..., Connection] = Residual,
        lag: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        rates = iter(dilations)

        def build(dim_in: int) -> nn.Module:
            return branch(dim_in, dim_out=dim, kernel_size=kernel_size, dilation=next(rates))

        self.stem = nn.Linear(inputs, dim)
        self.stack = Stack(build, connection, dim=dim, depth=len(dilations), **options)
        self.head = nn.Linear(self.stack.dim_out, outputs)
        self._refuse_channel_norms()
        if lag is not None:
            self.require_lag(lag)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on whole sequences."""
        require_sequence("TemporalConvolutionalNetwork", x, self.stem.in_features, self.stem.bias)
        return self.head(self.stack(self.stem(x)))  # type: ignore[no-any-return]

    def receptive_field(self) -> int:
        """Number of steps from the first to the last that a step of the output can see.

        Raises:
            UsageError: if a branch does not say its taps.
        """
        return receptive_field(*self._taps())

    def require_lag(self, lag: int) -> None:
        """Raise unless a step of the output sees the input `lag` steps before it.

        Args:
            lag: in steps; 0 is the present one.

        Raises:
            UsageError: if the receptive field ends before it, or dilations leave it out.
        """
        owner = "TemporalConvolutionalNetwork"
        require_at_least(owner, "lag", lag, 0)
        kernels, dilations = self._taps()
        field = receptive_field(kernels, dilations)
        if lag >= field:
            convolutions = math.ceil(len(kernels) / len(self.stack))
            widest = max(kernels)
            advice = "Use a kernel of at least 2 taps."
            if widest > 1:
                needed = depth_for_lag(lag, widest, convolutions=convolutions)
                advice = f"Use {needed} layers whose dilations double, or a larger kernel."
            raise UsageError(f"{owner}: lag must be below the receptive field of {field} steps, got {lag}. {advice}")
        if lag not in visible_lags(kernels, dilations):
            raise UsageError(
                f"{owner}: lag must be one that the dilations reach, and {lag} lies in a gap between their taps. "
                "Let dilations grow from 1 by at most the kernel size."
            )

    def _refuse_channel_norms(self) -> None:
        """Refuse them where the layout is known: in a connection, and next to a causal convolution."""
        for module in self.stack.modules():
            children = list(module.children())
            if isinstance(module, nn.Sequential):
                pairs = [*itertools.pairwise(children), *itertools.pairwise(children[::-1])]
                children = [other for one, other in pairs if isinstance(one, CausalConvolution | CausalBranch)]
            elif not isinstance(module, Connection):
                continue
            for child in children:
                refuse_channel_norm("TemporalConvolutionalNetwork", child)

    def _taps(self) -> tuple[list[int], list[int]]:
        found: list[tuple[int, int]] = []
        for layer in self.stack:
            taps = getattr(layer.branch, "taps", None)
            if taps is None:
                raise UsageError(
                    f"TemporalConvolutionalNetwork: a branch must say its (kernel_size, dilation) pairs as `taps` to "
                    f"have a known receptive field, and {type(layer.branch).__name__} does not. Add the attribute."
                )
            found += taps
        return [kernel for kernel, _ in found], [dilation for _, dilation in found]
