"""Causal convolutions over sequences, dilated, and the residual branch of two."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations

from levada._errors import UsageError, require_at_least
from levada.blocks._options import Activation, Norm, activate, divide, normalise, widening

__all__ = ["CausalBranch", "CausalConvolution", "refuse_channel_norm", "require_sequence"]


def require_sequence(owner: str, x: Tensor, width: int, like: Tensor | None) -> None:
    """Raise unless `x` is `(batch, steps, width)`, or without a batch, of a precision that the weights can take.

    Args:
        owner: class that asks, as the user typed it.
        x: what came.
        width: of its last axis.
        like: a parameter; its precision is asked, except under autocast, which converts.

    Raises:
        UsageError: if it is not.
    """
    if not isinstance(x, Tensor):
        raise UsageError(f"{owner}: the input must be a tensor, got {type(x).__name__}.")
    if x.dim() not in (2, 3) or x.shape[-2] == 0:
        raise UsageError(
            f"{owner}: a sequence must have a step, with shape (batch, steps, width) or (steps, width), got "
            f"{tuple(x.shape)}. Leave empty sequences out of the batch."
        )
    if x.shape[-1] != width:
        raise UsageError(
            f"{owner}: the last axis of the input must be of width {width}, got {tuple(x.shape)}. Give "
            "(batch, steps, width); of (batch, channels, length), transpose the last two."
        )
    if like is None or x.dtype == like.dtype:
        return
    if not x.is_floating_point() or not torch.is_autocast_enabled(x.device.type):
        raise UsageError(
            f"{owner}: the input must be of the weights' precision {like.dtype}, got {x.dtype}. "
            "Convert one of them, or run under autocast."
        )


def refuse_channel_norm(owner: str, norm: nn.Module | None) -> None:
    """Raise if a normalisation takes the second axis, that of the steps, for its channels.

    Args:
        owner: class that asks, as the user typed it.
        norm: what acts on `(batch, steps, dim)`.

    Raises:
        UsageError: if it does.
    """
    if isinstance(norm, _NormBase | nn.GroupNorm):
        raise UsageError(
            f"{owner}: a normalisation must act on the last axis of (batch, steps, dim), and {type(norm).__name__} "
            "takes the steps for its channels. Use nn.LayerNorm or nn.RMSNorm."
        )


@final
class CausalConvolution(nn.Module):
    r"""One convolution that sees no later step: `activation(norm(y))`.

    $$y_t = b + \sum_{j=0}^{k-1} W_{k-1-j}\, x_{t - j d}, \qquad x_t = 0 \text{ for } t < 0$$

    Args:
        dim: width of the input.
        activation: builds the activation.
        dim_out: width of the output; `dim` if left out.
        kernel_size: $k$, number of taps; the last one is the present step.
        dilation: $d$, steps between taps.
        norm: builds the normalisation from a width; none if left out. It must not mix steps.
        weight_norm: train size and direction of each output's weights apart, as the paper does.

    Attributes:
        taps: `((kernel_size, dilation),)`.

    Shape:
        `(batch, steps, dim)` -> `(batch, steps, dim_out)`.

    Raises:
        UsageError: if `kernel_size` or `dilation` is below 1, the normalisation is one of channels, as
            `nn.BatchNorm1d`, or a sequence has no step, another width or another precision.

    Example:
        >>> import torch
        >>> delay = CausalConvolution(1, nn.Identity, kernel_size=2, dilation=3)
        >>> _ = delay.convolution.weight.data.copy_(torch.tensor([[[1.0, 0.0]]])), delay.convolution.bias.data.zero_()
        >>> delay(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])).flatten().tolist()
        [0.0, 0.0, 0.0, 1.0]

    Source: van den Oord et al. 2016, arXiv 1609.03499; Bai, Kolter and Koltun 2018, arXiv 1803.01271.
    """

    def __init__(
        self,
        dim: int,
        activation: Activation = nn.ReLU,
        *,
        dim_out: int | None = None,
        kernel_size: int = 3,
        dilation: int = 1,
        norm: Norm = None,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        require_at_least("CausalConvolution", "kernel_size", kernel_size, 1)
        require_at_least("CausalConvolution", "dilation", dilation, 1)
        self.taps = ((kernel_size, dilation),)
        function = activate(activation)
        width = divide(
            "CausalConvolution", dim if dim_out is None else dim_out, widening(function), "the activation's widening"
        )
        convolution = nn.Conv1d(dim, width, kernel_size, dilation=dilation)
        self.convolution = parametrizations.weight_norm(convolution) if weight_norm else convolution
        self.norm = normalise(norm, width)
        refuse_channel_norm("CausalConvolution", self.norm)
        self.activation = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        # The bias: with weight_norm, to read the weight is to compute it.
        require_sequence("CausalConvolution", x, self.convolution.in_channels, self.convolution.bias)
        ((kernel_size, dilation),) = self.taps
        y = self.convolution(F.pad(x.mT, ((kernel_size - 1) * dilation, 0)))
        return self.activation(self.norm(y.mT))  # type: ignore[no-any-return]


@final
class CausalBranch(nn.Sequential):
    """The branch of a temporal convolutional network: twice causal convolution, activation, dropout.

    The layer of the paper is this branch behind `Residual(activation=nn.ReLU())`.

    Args:
        dim: width of the input.
        dim_out: width of the output; `dim` if left out.
        kernel_size: taps of either convolution.
        dilation: steps between the taps of either convolution.
        activation: builds each activation.
        norm: builds the normalisation from a width; none if left out. It must not mix steps.
        weight_norm: as in `CausalConvolution`.
        dropout: share of elements that are set to zero after each activation; the paper drops whole channels.

    Attributes:
        taps: `(kernel_size, dilation)` of both.

    Shape:
        `(batch, steps, dim)` -> `(batch, steps, dim_out)`.

    Raises:
        UsageError: as `CausalConvolution`.

    Example:
        >>> import torch
        >>> branch = CausalBranch(4, dim_out=8, dilation=2)
        >>> branch(torch.randn(2, 10, 4)).shape, branch.taps
        (torch.Size([2, 10, 8]), ((3, 2), (3, 2)))

    Source: Bai, Kolter and Koltun 2018, arXiv 1803.01271.
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_out: int | None = None,
        kernel_size: int = 3,
        dilation: int = 1,
        activation: Activation = nn.ReLU,
        norm: Norm = None,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        dim_out = dim if dim_out is None else dim_out
        modules: list[nn.Module] = []
        for width in (dim, dim_out):
            modules.append(
                CausalConvolution(
                    width,
                    activation,
                    dim_out=dim_out,
                    kernel_size=kernel_size,
                    dilation=dilation,
                    norm=norm,
                    weight_norm=weight_norm,
                )
            )
            modules += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*modules)
        self.taps = ((kernel_size, dilation),) * 2
