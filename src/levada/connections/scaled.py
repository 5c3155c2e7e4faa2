"""Residual connections whose branch is scaled by something learned: ReZero, SkipInit, LayerScale."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.connection import ParameterRule, SingleStream

__all__ = ["LayerScale", "ReZero", "SkipInit"]


def _add_scaled(state: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    # A float32 scale on a bfloat16 stream: the sum is computed in float32 and rounded once, to what the stream was.
    return torch.addcmul(state, scale, out).to(torch.promote_types(state.dtype, out.dtype))


@final
class ReZero(SingleStream):
    """A residual connection whose branch is gated by one learned scalar that starts at zero.

    `x' = x + a f(x)`

    At `a = 0` every layer is the identity and so is its Jacobian, at any depth and for any branch, so that no
    normalisation is needed. At the first step only the scalars have a gradient.

    Use it for deep networks without normalisation, and to repair a residual network whose stream explodes. Where
    branches should learn from the first step on, use `SkipInit` or `LayerScale`.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        init: where the scalar starts.

    Shape:
        `(..., dim) -> (..., dim)`; the parameter `scale` is `(1,)`.

    Cost:
        1 parameter; reads `2 dim` and writes `dim` elements per token in the forward pass.

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.equal(ReZero(3).advance(x, nn.Linear(3, 3)), x)
        True

    Source: Bachlechner, Majumder, Mao, Cottrell and McAuley, 2020, arXiv 2003.04887.
    """

    residual_start = "exact"
    rules: ClassVar = {"scale": ParameterRule(decay=False)}

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, init: float = 0.0) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_number("ReZero", "init", init)
        self.scale = nn.Parameter(torch.full((1,), float(init)))

    def start_as_residual(self) -> None:
        """Set every scale to 1."""
        nn.init.ones_(self.scale)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return `state + scale * out`."""
        return _add_scaled(state, self.scale, out)


@final
class SkipInit(SingleStream):
    """A residual connection whose branch is scaled by one learned scalar, zero or small in proportion to the depth.

    `x' = x + a f(x)`, with `a = 0` or `a = 1 / sqrt(depth)` at the start

    It keeps the benefit that batch normalisation has at the start of training, branches that are small beside the
    skip, without normalising. With `a = 1 / sqrt(depth)` the variance of the stream grows by a factor of
    `(1 + 1 / depth)^depth < e` over the whole network.

    Use it in residual networks from which the batch normalisation was taken out. With `a = 0` it is `ReZero`; with
    `init="depth"` branches learn from the first step on.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        init: where the scalar starts: a number, or `"depth"` for `1 / sqrt(depth)`.

    Shape:
        `(..., dim) -> (..., dim)`; the parameter `scale` is `(1,)`.

    Cost:
        1 parameter; reads `2 dim` and writes `dim` elements per token in the forward pass.

    Raises:
        UsageError: if `init` is neither a number nor `"depth"`.

    Example:
        >>> SkipInit(3, depth=16, init="depth").scale.item()
        0.25

    Source: De and Smith, 2020, arXiv 2002.10444.
    """

    residual_start = "exact"
    rules: ClassVar = {"scale": ParameterRule(decay=False)}

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, init: float | Literal["depth"] = 0.0) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        if isinstance(init, str):
            if init != "depth":
                raise UsageError(f"SkipInit: init must be a number or 'depth', got {init!r}.")
            init = depth**-0.5
        require_number("SkipInit", "init", init)
        self.scale = nn.Parameter(torch.full((1,), float(init)))

    def start_as_residual(self) -> None:
        """Set every scale to 1."""
        nn.init.ones_(self.scale)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return `state + scale * out`."""
        return _add_scaled(state, self.scale, out)


@final
class LayerScale(SingleStream):
    """A residual connection whose branch is scaled by one learned number for each channel, small at the start.

    `x' = x + gamma * f(x)`, `gamma` of shape `(dim,)`

    Use it for deep networks whose branches are normalised and should be small at the start, such as vision
    transformers. Where one number a layer is enough, use `SkipInit`.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        init: where every entry of `gamma` starts. Left out, it is CaiT's: 0.1 up to 18 transformer layers, 1e-5 up to
            24, 1e-6 beyond.
        num_transformer_layers: what CaiT's rule counts. A transformer layer is two layers of a stack (attention, and
            feed-forward), so that it is `depth / 2` if left out.
        axis: axis of the channels: -1 for `(..., dim)`, 1 for images.

    Shape:
        `(..., dim) -> (..., dim)`, or with the channels at `axis`.

    Cost:
        `dim` parameters; reads `2 dim` and writes `dim` elements per token in the forward pass.

    Raises:
        UsageError: if `num_transformer_layers` is below 1, or of no use beside `init`.

    Example:
        >>> LayerScale(3, depth=36).gamma
        Parameter containing:
        tensor([0.1000, 0.1000, 0.1000], requires_grad=True)
        >>> LayerScale(3, init=0.5, axis=1).write(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).mean().item()
        0.5

    Source: Touvron, Cord, Sablayrolles, Synnaeve and Jegou, 2021, arXiv 2103.17239 (CaiT).
    """

    residual_start = "exact"
    rules: ClassVar = {"gamma": ParameterRule(decay=False)}

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        init: float | None = None,
        num_transformer_layers: int | None = None,
        axis: int = -1,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        if num_transformer_layers is not None:
            require_at_least("LayerScale", "num_transformer_layers", num_transformer_layers, 1)
            if init is not None:
                raise UsageError(
                    f"LayerScale: num_transformer_layers serves the default of init alone, got init={init}. "
                    "Leave one out."
                )
        if init is None:
            count = num_transformer_layers or depth / 2
            init = 0.1 if count <= 18 else 1e-5 if count <= 24 else 1e-6
        require_number("LayerScale", "axis", axis, whole=True)
        require_number("LayerScale", "init", init)
        self.axis = axis
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def start_as_residual(self) -> None:
        """Set every scale to 1."""
        nn.init.ones_(self.gamma)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return `state + gamma * out`, the channels at `axis`."""
        if self.axis == -1:
            return _add_scaled(state, self.gamma, out)
        shape = [1] * state.ndim
        shape[self.axis] = self.dim
        return _add_scaled(state, self.gamma.view(shape), out)
