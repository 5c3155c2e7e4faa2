"""Plain, residual and post-norm residual connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.connection import SingleStream, require_maker

__all__ = ["Plain", "PostNorm", "Residual"]


@final
class Plain(SingleStream):
    """No connection: a layer sees what the layer before it returned, and nothing else.

    `x' = activation(f(x))`

    Use it as the control that shows what a connection brings, and where the network is shallow: plain networks of 34
    layers trained worse than those of 18 (He et al., 2015).

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        activation: applied after the branch; left out, nothing is.
        dim_out: width of what the branch returns; `dim` if left out.

    Shape:
        `(..., dim) -> (..., dim_out)`.

    Cost:
        No parameters; reads and writes nothing beside the branch.

    Raises:
        UsageError: without `dim_out`, if the branch returns another shape than it was given.

    Example:
        >>> plain = Plain(2, activation=nn.ReLU())
        >>> plain.advance(torch.tensor([[-1.0, 3.0]]), nn.Identity())
        tensor([[0., 3.]])
    """

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        activation: nn.Module | None = None,
        dim_out: int | None = None,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, dim_out=dim_out)
        self.activation = activation

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the activated output of the branch."""
        return out if self.activation is None else self.activation(out)


@final
class Residual(SingleStream):
    """The branch's output is added to the stream.

    `x' = activation(shortcut(x) + f(x))`

    Without options this is the identity mapping of pre-activation networks (the normalisation, if any, is part of
    `f`), whose Jacobian is `I + df/dx` at every depth. With `activation=nn.ReLU()` it is the layer of the original
    residual network.

    Use it unless there is a reason for another one: with a normalisation at the start of each branch, or branches that
    are small at the start, it trains at hundreds of layers. Without either the stream grows: its variance about doubles
    with each branch that keeps the variance.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        shortcut: a module on the skip, such as a projection or a padding; left out, the identity. Where it widens the
            stream, say so by `dim_out`. A `Stack` gives one and the same module to all its layers.
        activation: applied after the addition; left out, nothing is.
        dim_out: width after this layer; `dim` if left out. Needs a `shortcut`.

    Shape:
        `(..., dim) -> (..., dim_out)`, or what the shortcut makes of it.

    Cost:
        No parameters; reads `2 dim` and writes `dim` elements per token in the forward pass.

    Raises:
        UsageError: if `dim_out` differs from `dim` and there is no shortcut; if the branch's output has not the shape
            of the skip.

    Example:
        >>> x = torch.tensor([[1.0, -3.0]])
        >>> Residual(2).advance(x, nn.Identity())
        tensor([[ 2., -6.]])
        >>> Residual(2, activation=nn.ReLU()).advance(x, nn.Identity())
        tensor([[2., 0.]])

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385 (activation after the addition); 2016, arXiv 1603.05027
    (identity mappings).
    """

    residual_start = "exact"

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
        dim_out: int | None = None,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, dim_out=dim_out)
        if shortcut is None and self.dim_out != dim:
            raise UsageError(
                f"Residual: without a shortcut dim_out is dim, {dim}, got {dim_out}. Add shortcut=, a projection."
            )
        self.shortcut = shortcut
        self.activation = activation

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the activated sum of the skip and the branch's output."""
        if self.shortcut is not None:
            state = self.shortcut(state)
            if state.shape != out.shape:
                raise UsageError(
                    f"Residual: the shortcut must return the shape of the branch's output, {tuple(out.shape)}, "
                    f"got {tuple(state.shape)}. Change one of them."
                )
        total = state + out
        return total if self.activation is None else self.activation(total)

    def start_as_residual(self) -> None:
        """Do nothing: this is the residual layer, unless it has a shortcut or an activation."""
        if self.shortcut is not None or self.activation is not None:
            super().start_as_residual()

    def require_fit(self, x: Tensor, out: Tensor) -> None:
        """Allow a branch that changes the shape as the shortcut does, which `write` then holds."""
        if self.shortcut is None:
            super().require_fit(x, out)


@final
class PostNorm(SingleStream):
    """The sum of the stream and the branch's output is normalised: the stream itself, not only the branch's input.

    `x' = norm(alpha x + f(x))`

    With `alpha=1` this is the layer of the original transformer. A larger `alpha` bounds the model's update at the
    start of training: DeepNet takes `(2 N)^(1/4)` for a decoder (or an encoder) of N transformer layers, together with
    an initialisation that divides the weights of the feed-forward, value and output projections by `(8 N)^(1/4)`; the
    latter is the branch's business.

    Use it to reproduce models that have it, or with `alpha="deepnorm"` and its initialisation at great depth (1,000
    layers in the paper). With `alpha=1` a deep transformer usually needs a slow increase of the learning rate at the
    start, which `Residual` with normalised branches needs less.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        alpha: weight of the skip, not learned, or `"deepnorm"`.
        num_transformer_layers: N in DeepNet's `alpha`. A transformer layer is two layers of a stack (attention, and
            feed-forward), so that N is `depth / 2` if left out.
        norm: makes the normalisation from a width.

    Shape:
        `(..., dim) -> (..., dim)`.

    Cost:
        `2 dim` parameters, those of the normalisation by default; reads `2 dim` and writes `dim` elements per token in
        the forward pass at least.

    Raises:
        UsageError: if `alpha` is neither a number nor `"deepnorm"`, or `num_transformer_layers` is below 1 or of no
            use.

    Example:
        >>> PostNorm(8, depth=32, alpha="deepnorm").alpha == (2 * 16) ** 0.25
        True
        >>> y = PostNorm(4).advance(torch.randn(3, 4), nn.Linear(4, 4))
        >>> torch.allclose(y.mean(-1), torch.zeros(3), atol=1e-6)
        True

    Source: Vaswani et al., 2017, arXiv 1706.03762 (alpha 1); Wang, Ma, Dong, Huang, Zhang and Wei, 2022,
    arXiv 2203.00555 (DeepNet).
    """

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        alpha: float | Literal["deepnorm"] = 1.0,
        num_transformer_layers: int | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        if num_transformer_layers is not None:
            require_at_least("PostNorm", "num_transformer_layers", num_transformer_layers, 1)
        if isinstance(alpha, str):
            if alpha != "deepnorm":
                raise UsageError(f"PostNorm: alpha must be a number or 'deepnorm', got {alpha!r}.")
            alpha = (2 * (num_transformer_layers or depth / 2)) ** 0.25
        elif num_transformer_layers is not None:
            raise UsageError(
                f"PostNorm: num_transformer_layers serves alpha='deepnorm' alone, got alpha={alpha}. Leave one out."
            )
        require_number("PostNorm", "alpha", alpha)
        require_maker(norm, "PostNorm: norm", "nn.LayerNorm")
        self.alpha = float(alpha)
        self.norm = norm(dim)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the normalised sum."""
        total = state + out if self.alpha == 1.0 else torch.add(out, state, alpha=self.alpha)
        return self.norm(total)  # type: ignore[no-any-return]
