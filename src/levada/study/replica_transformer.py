"""Transformers of a thousand sub-layers that several seeds share: matrices of all replicas are multiplied together.

At width 16 a step is bound by the number of operations that Python starts, which five replicas share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.study.language import random_windows

__all__ = [
    "Arrangement",
    "ReplicaTransformer",
    "draw_windows",
    "first_update",
    "kept_input",
    "letter_entropy",
    "train_transformer",
]

Arrangement: TypeAlias = Literal["post-norm", "pre-norm", "DeepNorm", "ReZero"]


@final
class ReplicaTransformer(nn.Module):
    """A causal transformer for each replica: attention and feed-forward in turn, without biases or learned gains.

    `post-norm: x' = norm(x + f(x));  DeepNorm: x' = norm((2N)^(1/4) x + f(x));  pre-norm: x' = x + f(norm(x));
    ReZero: x' = x + a f(x), a = 0 at the start`

    All four draw the same Glorot weights from a replica's generator; DeepNorm's values, outputs and feed-forward
    weights are multiplied by `(8N)^(-1/4)`. Pre-norm normalises once more after the last sub-layer.

    Args:
        arrangement: which of the four.
        sublayers: number of sub-layers, even: twice the number `N` of transformer layers.
        dim: width of the stream; feed-forward branches are twice as wide.
        heads: number of heads.
        vocabulary: number of tokens.
        context: number of tokens that are seen at once.
        seeds: one for each replica, of its weights.

    Shape:
        tokens `(replicas, batch, tokens)` -> logits `(replicas, batch, tokens, vocabulary)`.

    Raises:
        UsageError: if the arrangement is not known, `sublayers` is odd, or `heads` does not divide `dim`.

    Example:
        >>> model = ReplicaTransformer("ReZero", 4, dim=8, heads=2, vocabulary=5, context=6, seeds=[0, 1])
        >>> model(torch.zeros(2, 3, 6, dtype=torch.long)).shape
        torch.Size([2, 3, 6, 5])

    Source: Wang, Ma, Dong, Huang, Zhang and Wei 2022, arXiv 2203.00555 (DeepNorm); Bachlechner et al. 2020,
    arXiv 2003.04887 (ReZero).
    """

    def __init__(
        self,
        arrangement: Arrangement,
        sublayers: int,
        *,
        dim: int,
        heads: int,
        vocabulary: int,
        context: int,
        seeds: Sequence[int],
    ) -> None:
        super().__init__()
        if arrangement not in get_args(Arrangement):
            known = ", ".join(get_args(Arrangement))
            raise UsageError(f"ReplicaTransformer: arrangement must be one of {known}, got {arrangement!r}.")
        require_at_least("ReplicaTransformer", "sublayers", sublayers, 2)
        if sublayers % 2 or dim % heads:
            raise UsageError(
                f"ReplicaTransformer: sublayers must be even, and heads divide dim; got {sublayers}, {heads}, {dim}."
            )
        self.arrangement, self.heads = arrangement, heads
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def normal(rows: int, columns: int, deviation: float) -> Tensor:
            return torch.stack([deviation * torch.randn(rows, columns, generator=g) for g in generators])

        beta = (4 * sublayers) ** -0.25 if arrangement == "DeepNorm" else 1.0
        self.alpha = sublayers**0.25 if arrangement == "DeepNorm" else 1.0
        self.embedding = nn.Parameter(normal(vocabulary, dim, 2**-0.5))
        self.position = nn.Parameter(normal(context, dim, 2**-0.5))
        self.head = nn.Parameter(normal(dim, vocabulary, dim**-0.5))
        weights: list[Tensor] = []
        glorot, wide = dim**-0.5, (2 / (3 * dim)) ** 0.5
        for _ in range(sublayers // 2):
            query, key, value, out = (normal(dim, dim, glorot) for _ in range(4))
            weights += [torch.cat([query, key, beta * value], 2), beta * out]
            weights += [beta * normal(dim, 2 * dim, wide), beta * normal(2 * dim, dim, wide)]
        self.weights = nn.ParameterList(weights)
        scales = [torch.zeros(len(seeds), 1, 1) for _ in range(sublayers if arrangement == "ReZero" else 0)]
        self.scales = nn.ParameterList(scales)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of every replica."""
        state = self.states(tokens)
        return torch.bmm(state, self.head).view(*tokens.shape, -1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what enters the sub-layers.

        Args:
            tokens: `(replicas, batch, tokens)`.

        Shape:
            Returns `(replicas, batch * tokens, dim)`.
        """
        replicas, _, length = tokens.shape
        own = torch.arange(replicas, device=tokens.device)[:, None, None]
        return (self.embedding[own, tokens] + self.position[:, None, :length]).flatten(1, 2)

    def states(self, tokens: Tensor) -> Tensor:
        """Return what the head reads.

        Args:
            tokens: `(replicas, batch, tokens)`.

        Shape:
            Returns `(replicas, batch * tokens, dim)`.
        """
        state, batch = self.embed(tokens), tokens.shape[1]
        weights = list(self.weights)  # once: a list of parameters is slow to index
        scales = list(self.scales)
        for layer in range(len(weights) // 2):
            first, second = weights[2 * layer], weights[2 * layer + 1]
            read = _normalised(state) if self.arrangement == "pre-norm" else state
            branch = torch.bmm(read, first)
            inner = functional.relu(branch) if layer % 2 else self._attend(branch, batch)
            out = torch.bmm(inner, second)
            if scales:
                state = torch.addcmul(state, scales[layer], out)
            elif self.arrangement == "pre-norm":
                state = state + out
            else:
                state = _normalised(torch.add(out, state, alpha=self.alpha))
        return _normalised(state) if self.arrangement == "pre-norm" else state

    def _attend(self, projected: Tensor, batch: int) -> Tensor:
        replicas, tokens, _ = projected.shape
        parts = projected.view(replicas * batch, tokens // batch, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return out.transpose(1, 2).reshape(replicas, tokens, -1)


def _normalised(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def _losses(model: ReplicaTransformer, windows: Tensor) -> Tensor:
    """Cross-entropy in nats of each replica on its own windows, `(replicas, batch, context + 1)`."""
    logits, wanted = model(windows[..., :-1]), windows[..., 1:]
    found = functional.cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="none")
    return found.view(len(windows), -1).mean(1)


def first_update(model: ReplicaTransformer, windows: Tensor, optimizer: Literal["SGD", "Adam"], lr: float) -> Tensor:
    """Root mean square of what one optimizer step changes in what the head reads, over `lr`, for each replica.

    `|F(x, theta_1) - F(x, theta_0)| / (lr sqrt(num))` on the batch that the step was taken on. The head and the
    embeddings stay: the update is that of the sub-layers.

    Args:
        model: the model; it is left as it is.
        windows: `(replicas, batch, context + 1)`.
        optimizer: "SGD", without momentum, or "Adam".
        lr: the learning rate; with SGD small enough that the update is linear in it.

    Shape:
        Returns `(replicas,)`.

    Example:
        >>> model = ReplicaTransformer("ReZero", 4, dim=8, heads=2, vocabulary=5, context=6, seeds=[0]).double()
        >>> windows = torch.arange(7).view(1, 1, 7) % 5
        >>> small, smaller = (first_update(model, windows, "SGD", lr) for lr in (1e-4, 1e-6))
        >>> bool(torch.isclose(small, smaller, rtol=1e-3))
        True

    Source: Wang et al. 2022, arXiv 2203.00555 (the model update, for SGD and a small rate).
    """
    inner = [*model.weights, *model.scales]
    before = [parameter.detach().clone() for parameter in inner]
    start = model.states(windows[..., :-1]).detach()
    gradients = torch.autograd.grad(_losses(model, windows).sum(), inner)
    with torch.no_grad():
        for parameter, gradient in zip(inner, gradients, strict=True):
            # Adam's first step: its moments are the gradient's own, corrected for their start.
            step = gradient if optimizer == "SGD" else gradient / (gradient.abs() + 1e-8)
            parameter.sub_(step, alpha=lr)
        moved = model.states(windows[..., :-1]) - start
        for parameter, value in zip(inner, before, strict=True):
            parameter.copy_(value)
    return moved.square().mean((1, 2)).sqrt() / lr


@torch.no_grad()
def kept_input(model: ReplicaTransformer, tokens: Tensor) -> Tensor:
    """Return the mean squared cosine between what enters the sub-layers and what leaves them, for each replica.

    1 where the input comes through, `1 / (dim - 1)` where a token's state has nothing to do with it: its mean over the
    features is left out.

    Args:
        model: the model.
        tokens: `(replicas, batch, tokens)`.

    Shape:
        Returns `(replicas,)`.

    Example:
        >>> model = ReplicaTransformer("ReZero", 4, dim=8, heads=2, vocabulary=5, context=6, seeds=[0])
        >>> round(kept_input(model, torch.zeros(1, 3, 6, dtype=torch.long)).item(), 4)
        1.0
    """
    before, after = _normalised(model.embed(tokens)), _normalised(model.states(tokens))
    return (before * after).mean(2).square().mean(1)


def train_transformer(
    model: ReplicaTransformer,
    text: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    outer_lr: float,
    seeds: Sequence[int],
) -> Tensor:
    """Train by Adam at constant rates, without warm-up or clipping, each replica on its own seed's windows.

    Args:
        model: the model, on the device where it is to be trained.
        text: tokens, `(num,)`.
        steps: number of steps.
        batch_size: windows in a batch of a replica.
        lr: the learning rate of the sub-layers; 0 leaves them as they were drawn, without gradients.
        outer_lr: that of embeddings, positions and head.
        seeds: one for each replica, of its windows: a model of the same seed sees the same.

    Returns:
        Cross-entropy in nats of each batch before its step, `(steps, replicas)`. A replica that is no longer finite
        stays so, and does not stop the others.
    """
    require_at_least("train_transformer", "steps", steps, 1)
    device, context = model.head.device, model.position.shape[1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    inner: list[nn.Parameter] = [*model.weights, *model.scales]
    outer = [model.embedding, model.position, model.head]
    groups = [{"params": inner, "lr": lr}, {"params": outer, "lr": outer_lr}]
    for parameter in inner:
        parameter.requires_grad_(lr > 0)
    optimizer = torch.optim.Adam(groups if lr > 0 else groups[1:], fused=True)
    losses = []
    for _ in range(steps):
        windows = draw_windows(text, context, batch_size, generators).to(device)
        loss = _losses(model, windows)
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def draw_windows(text: Tensor, context: int, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Return windows of a text for each replica, `(replicas, batch_size, context + 1)`.

    Args:
        text: tokens, `(num,)`.
        context: tokens that are seen.
        batch_size: windows of a replica.
        generators: one for each replica.
    """
    return torch.stack([random_windows(text, context + 1, batch_size, generator) for generator in generators])


def letter_entropy(text: Tensor) -> float:
    """Return the entropy of single tokens in nats: the loss of who knows how frequent each is, and no more.

    Args:
        text: tokens, `(num,)`.

    Example:
        >>> round(letter_entropy(torch.tensor([0, 1, 0, 1])), 6)
        0.693147
    """
    share = torch.bincount(text).double() / len(text)
    share = share[share > 0]
    return float(-(share * share.log()).sum())
