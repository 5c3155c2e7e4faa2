"""Convolutional blocks on signals and images, and the shortcuts where a residual network changes its shape."""

from __future__ import annotations

from typing import Literal, TypeAlias, final

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.blocks._options import Activation, Norm, activate, divide, normalise, widening

__all__ = ["Convolution", "ConvolutionBranch", "IdentityShortcut", "ProjectionShortcut"]

Padding: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def _convolution(dims: int) -> type[nn.Conv1d] | type[nn.Conv2d]:
    if dims not in _CONVOLUTIONS:
        raise UsageError(f"Convolution: dims must be 1 (signals) or 2 (images), got {dims}.")
    return _CONVOLUTIONS[dims]


@final
class Convolution(nn.Module):
    """One convolutional layer: `activation(norm(W * x + b))`; no `b` where there is a norm.

    Args:
        dim: number of input channels.
        activation: builds the activation.
        dim_out: number of output channels; `dim` if left out.
        dims: 1 for signals, 2 for images.
        kernel_size: an odd number; the output is as long as the input, but for the stride.
        stride: step of the convolution.
        norm: builds the normalisation from a number of channels; none if left out.
        padding_mode: as in `nn.Conv2d`; with "circular" no position is special.

    Shape:
        `(batch, dim, *length)` -> `(batch, dim_out, *ceil(length / stride))`.

    Raises:
        UsageError: if `dims` is neither 1 nor 2, or `kernel_size` is even.

    Example:
        >>> import torch
        >>> Convolution(3, nn.Tanh, dim_out=8, dims=1)(torch.randn(2, 3, 40)).shape
        torch.Size([2, 8, 40])
    """

    def __init__(
        self,
        dim: int,
        activation: Activation = nn.ReLU,
        *,
        dim_out: int | None = None,
        dims: int = 2,
        kernel_size: int = 3,
        stride: int = 1,
        norm: Norm = None,
        padding_mode: Padding = "zeros",
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UsageError(f"Convolution: kernel_size must be odd, so that the length is kept, got {kernel_size}.")
        function = activate(activation)
        width = divide(
            "Convolution", dim if dim_out is None else dim_out, widening(function), "the activation's widening"
        )
        self.convolution = _convolution(dims)(
            dim, width, kernel_size, stride, kernel_size // 2, bias=norm is None, padding_mode=padding_mode
        )
        self.norm = normalise(norm, width)
        self.activation = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.activation(self.norm(self.convolution(x)))  # type: ignore[no-any-return]


@final
class ConvolutionBranch(nn.Sequential):
    """The branch of a convolutional residual network, basic (3, 3) or, with `hidden`, a bottleneck (1, 3, 1).

    Post-activation (He 2015): conv, norm, then activation, conv, norm for every further convolution; the activation
    that follows the addition is the connection's. Pre-activation (He 2016): norm, activation, conv, every time.
    The first convolution has the stride.

    Args:
        dim: number of input channels.
        dim_out: number of output channels; `dim` if left out.
        hidden: number of channels inside a bottleneck; left out for the basic branch.
        stride: step of the first convolution.
        dims: 1 for signals, 2 for images.
        activation: builds each activation.
        norm: builds the normalisation from a number of channels; `"batch"` for batch normalisation, `None` for none.
        pre_activation: the order of He 2016.

    Shape:
        `(batch, dim, *length)` -> `(batch, dim_out, *ceil(length / stride))`.

    Raises:
        UsageError: if `dims` is neither 1 nor 2.

    Example:
        >>> import torch
        >>> ConvolutionBranch(16, dim_out=32, stride=2, dims=1)(torch.randn(4, 16, 40)).shape
        torch.Size([4, 32, 20])

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385, and 2016, arXiv 1603.05027.
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_out: int | None = None,
        hidden: int | None = None,
        stride: int = 1,
        dims: int = 2,
        activation: Activation = nn.ReLU,
        norm: Norm | Literal["batch"] = "batch",
        pre_activation: bool = False,
    ) -> None:
        convolution = _convolution(dims)
        build: Norm = _BATCH_NORMS[dims] if norm == "batch" else norm
        dim_out = dim if dim_out is None else dim_out
        widths = [dim, dim_out, dim_out] if hidden is None else [dim, hidden, hidden, dim_out]
        kernels = [3, 3] if hidden is None else [1, 3, 1]
        modules: list[nn.Module] = []
        for i, (width, width_out, kernel) in enumerate(zip(widths, widths[1:], kernels, strict=False)):
            act = [activate(activation)] if pre_activation or i else []
            width_in = width * (widening(act[0]) if act else 1)
            conv = convolution(width_in, width_out, kernel, 1 if i else stride, kernel // 2, bias=build is None)
            if pre_activation:
                modules += [normalise(build, width), *act, conv]
            else:
                modules += [*act, conv, normalise(build, width_out)]
        super().__init__(*(m for m in modules if not isinstance(m, nn.Identity)))


@final
class IdentityShortcut(nn.Module):
    """Option A: keep every `stride`-th position and add channels of zeros; no parameters.

    Args:
        dim: number of input channels.
        dim_out: number of output channels, at least `dim`.
        stride: step in every direction.

    Shape:
        `(batch, dim, *length)` -> `(batch, dim_out, *ceil(length / stride))`.

    Raises:
        UsageError: if `dim_out` is below `dim`.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 2, 4)
        >>> IdentityShortcut(2, 3, stride=2)(x).sum(-1)
        tensor([[2., 2., 0.]])

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385.
    """

    def __init__(self, dim: int, dim_out: int, *, stride: int = 1) -> None:
        super().__init__()
        require_at_least("IdentityShortcut", "dim_out", dim_out, dim, "To drop channels use ProjectionShortcut.")
        self.padding = dim_out - dim
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the thinned and padded `x`."""
        x = x[(slice(None), slice(None), *[slice(None, None, self.stride)] * (x.dim() - 2))]
        return F.pad(x, [0, 0] * (x.dim() - 2) + [0, self.padding])


@final
class ProjectionShortcut(nn.Sequential):
    """Option B: a convolution of kernel size 1, then batch normalisation.

    Args:
        dim: number of input channels.
        dim_out: number of output channels.
        stride: step in every direction.
        dims: 1 for signals, 2 for images.

    Shape:
        `(batch, dim, *length)` -> `(batch, dim_out, *ceil(length / stride))`.

    Raises:
        UsageError: if `dims` is neither 1 nor 2.

    Example:
        >>> import torch
        >>> ProjectionShortcut(4, 8, stride=2)(torch.randn(2, 4, 7, 7)).shape
        torch.Size([2, 8, 4, 4])

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385.
    """

    def __init__(self, dim: int, dim_out: int, *, stride: int = 1, dims: int = 2) -> None:
        super().__init__(_convolution(dims)(dim, dim_out, 1, stride, bias=False), _BATCH_NORMS[dims](dim_out))
