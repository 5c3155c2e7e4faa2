"""Attention as lookup: how much of each head's attention is on the place that holds what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.probe.attention import AttentionMode

__all__ = ["Lookup", "attention_weights", "lookup"]


@final
@dataclass(frozen=True, slots=True)
class Lookup:
    """How one attention looks up, by head, averaged over what is asked.

    Attributes:
        weight: attention on the right place, between 0 and 1.
        entropy: entropy of the attention over all places, in nats: 0 if it is on one.
    """

    weight: tuple[float, ...]
    entropy: tuple[float, ...]

    @property
    def head(self) -> int:
        """The head that has most of its attention on the right place."""
        return max(range(len(self.weight)), key=self.weight.__getitem__)


@torch.no_grad()
def attention_weights(model: nn.Module, *inputs: Any) -> list[tuple[str, Tensor]]:
    """Return what every attention of a model attends to, in the order in which they run.

    `nn.MultiheadAttention`, `scaled_dot_product_attention` and a softmax of products that is written out are seen; the
    weights are computed from queries and keys, in float32. In training mode they are those without dropout.

    Args:
        model: the model; it runs once.
        inputs: what it is given.

    Shape:
        Each `(batch, heads, queries, keys)`.

    Cost:
        One forward pass, and the memory of all weights.

    Returns:
        The name of the module that attends, and its weights.

    Example:
        >>> from levada.blocks import Attention
        >>> ((name, weights),) = attention_weights(Attention(8, heads=2, causal=True), torch.randn(3, 5, 8))
        >>> weights.shape, weights[0, 0, 0].tolist()
        (torch.Size([3, 2, 5, 5]), [1.0, 0.0, 0.0, 0.0, 0.0])
    """
    found: list[tuple[str, Tensor]] = []
    with AttentionMode(model, lambda name, logits: found.append((name, logits.softmax(-1))), whole=True):
        model(*inputs)
    return found


def lookup(weights: Tensor, places: Tensor) -> Lookup:
    r"""Return how much attention is on the right places, and its entropy $-\sum_k a_k \ln a_k$, by head.

    Args:
        weights: as `attention_weights` gives them.
        places: the place of the right key for each query, -1 where nothing is asked.

    Shape:
        weights `(batch, heads, queries, keys)`, places `(batch, queries)`.

    Raises:
        UsageError: if the shapes do not belong together, nothing is asked, a place is beyond the keys, or weights are
            no shares.

    Example:
        >>> sharp, even = torch.eye(4), torch.full((4, 4), 0.25)
        >>> found = lookup(torch.stack([even, sharp])[None], torch.tensor([[-1, -1, 2, 3]]))
        >>> found.weight, [round(nats, 4) for nats in found.entropy], found.head
        ((0.25, 1.0), [1.3863, 0.0], 1)
    """
    if not isinstance(weights, Tensor) or not isinstance(places, Tensor):
        kinds = f"{type(weights).__name__} and {type(places).__name__}"
        raise UsageError(
            f"lookup: weights and places must be tensors, got {kinds}. attention_weights gives one by layer."
        )
    if weights.dim() != 4 or places.shape != (weights.shape[0], weights.shape[2]):
        raise UsageError(
            "lookup: weights are (batch, heads, queries, keys) and places (batch, queries), got "
            f"{tuple(weights.shape)} and {tuple(places.shape)}."
        )
    if places.is_floating_point() or int(places.min()) < -1:
        got = places.dtype if places.is_floating_point() else f"a place of {int(places.min())}"
        raise UsageError(f"lookup: places must be integers of at least 0, or -1 where nothing is asked, got {got}.")
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise UsageError("lookup: weights must be shares between 0 and 1, as attention_weights gives them.")
    asked = places >= 0
    if not bool(asked.any()):
        raise UsageError("lookup: at least one query must have a place, and all are -1.")
    if int(places.max()) >= weights.shape[-1]:
        raise UsageError(f"lookup: a place must be below the number of keys {weights.shape[-1]}, got {places.max()}.")
    of_query = weights.transpose(1, 2)[asked]  # (questions, heads, keys)
    right = of_query.gather(-1, places[asked][:, None, None].expand(-1, of_query.shape[1], 1))
    entropy = torch.special.entr(of_query).sum(-1)
    return Lookup(tuple(right.mean((0, 2)).tolist()), tuple(entropy.mean(0).tolist()))
