"""The self-attention branch of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.blocks._options import Norm, divide, normalise

__all__ = ["Attention"]


@final
class Attention(nn.Module):
    """The self-attention branch of a transformer: `O softmax(q k' / sqrt(dim / heads)) v`, of `norm(x)`.

    Args:
        dim: width of the input.
        heads: number of heads; divides `dim`.
        causal: let a token see no later token.
        dim_out: width of the output; `dim` if left out.
        norm: builds the normalisation from a width; `None` for none.
        bias: whether the four projections have a bias.

    Shape:
        `(..., tokens, dim)` -> `(..., tokens, dim_out)`.

    Raises:
        UsageError: if `heads` does not divide `dim`; in a pass, if the input is of another width.

    Example:
        >>> attention, x = Attention(8, heads=2, causal=True), torch.randn(1, 5, 8)
        >>> bool(torch.allclose(attention(x)[:, :3], attention(x[:, :3]), atol=1e-6))
        True

    Source: Vaswani et al., 2017, arXiv 1706.03762.
    """

    mixes_values = True  # what `ValueResidual` asks

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        causal: bool = False,
        dim_out: int | None = None,
        norm: Norm = nn.LayerNorm,
        bias: bool = True,
    ) -> None:
        super().__init__()
        require_at_least("Attention", "heads", heads, 1)
        divide("Attention", dim, heads, "heads")
        self.dim = dim
        self.heads = heads
        self.causal = causal
        self.norm = normalise(norm, dim)
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.output = nn.Linear(dim, dim if dim_out is None else dim_out, bias=bias)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, mix_values: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Apply the branch.

        Args:
            x: the input.
            mask: what scaled_dot_product_attention takes, boolean (True: may look) or added to the scores;
                broadcast to `(..., heads, tokens, tokens)`. A causal branch applies it besides its own.
            mix_values: applied to the values of all heads, `(..., tokens, dim)`, before anything is attended to.

        Shape:
            `(..., tokens, dim)` -> `(..., tokens, dim_out)`.
        """
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise UsageError(
                f"Attention: the input must be of width {self.dim} on its last axis, got {tuple(x.shape)}. Change dim."
            )
        x = self.norm(x)
        q, k, v = self.query(x), self.key(x), self.value(x)
        if mix_values is not None:
            v = mix_values(v)
        q, k, v = (projected.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for projected in (q, k, v))
        if mask is not None and self.causal:
            past = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()
            mask = mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -torch.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
        return self.output(out.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]
