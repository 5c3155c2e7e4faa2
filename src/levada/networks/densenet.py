"""Densely connected networks."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connections import Dense
from levada.initialise import he
from levada.stack import Stack

__all__ = ["DenseNetwork", "densenet"]

_BLOCKS = 3


@final
class DenseNetwork(nn.Module):
    """`head(block_n(... transition_1(block_1(stem(x)))))`.

    Args:
        stem: what makes the stream.
        blocks: stacks of densely connected layers.
        transitions: what lies between them, one fewer.
        head: what makes the output.

    Raises:
        UsageError: if there is not one transition between each two blocks.
    """

    def __init__(self, stem: nn.Module, blocks: list[Stack], transitions: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        if len(transitions) != len(blocks) - 1:
            raise UsageError(
                f"DenseNetwork: {len(blocks)} blocks have {len(blocks) - 1} transitions between them, "
                f"got {len(transitions)}."
            )
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.transitions = nn.ModuleList(transitions)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = self.blocks[0](self.stem(x))
        for transition, block in zip(self.transitions, list(self.blocks)[1:], strict=True):
            x = block(transition(x))
        return self.head(x)  # type: ignore[no-any-return]


def densenet(
    depth: int,
    *,
    growth: int = 12,
    bottleneck: bool = False,
    compression: float = 1.0,
    dropout: float = 0.0,
    inputs: int = 3,
    outputs: int = 10,
) -> DenseNetwork:
    """Build the densely connected network for small images: three blocks, between which length and width are halved.

    In a block, layer l reads the concatenation of the block's input and of all outputs before it:
    `x_l = f_l([x_0, x_1, ..., x_{l-1}])`, with `f` a norm, a ReLU and a convolution of size 3 with `growth` channels;
    with `bottleneck` there is a norm, a ReLU and a convolution of size 1 to `4 growth` channels before it. A transition
    is a norm, a ReLU, a convolution of size 1 that keeps a share `compression` of the channels, and the mean over
    squares of 2 x 2. Weights are He's.

    Args:
        depth: number of weights in a row: `3 n + 4`, or `6 n + 4` with bottlenecks, for n layers in a block.
        growth: channels that each layer adds (k in the paper).
        bottleneck: the form "B".
        compression: share of the channels that a transition keeps; below 1 it is the form "C".
        dropout: share of a layer's output that is dropped in training.
        inputs: number of input channels.
        outputs: number of classes.

    Shape:
        `(batch, inputs, height, width)` -> `(batch, outputs)`; height and width at least 4.

    Raises:
        UsageError: if there is no such depth, or an option is out of its range.

    Example:
        >>> import torch
        >>> net = densenet(40)
        >>> net(torch.randn(2, 3, 32, 32)).shape, round(sum(p.numel() for p in net.parameters()) / 1e6, 1)
        (torch.Size([2, 10]), 1.0)

    Source: Huang, Liu, van der Maaten and Weinberger, 2017, arXiv 1608.06993.
    """
    per_layer = 2 if bottleneck else 1
    layers, rest = divmod(depth - 4, _BLOCKS * per_layer)
    if layers < 1 or rest:
        raise UsageError(
            f"densenet: depth must be {_BLOCKS * per_layer} n + 4, n >= 1, "
            f"{'with' if bottleneck else 'without'} bottlenecks, got {depth}."
        )
    require_at_least("densenet", "growth", growth, 1)
    if not 0 < compression <= 1:
        raise UsageError(f"densenet: compression must be above 0 and at most 1, got {compression}.")
    if not 0 <= dropout < 1:
        raise UsageError(f"densenet: dropout must be at least 0 and below 1, got {dropout}.")

    def branch(dim: int) -> nn.Module:
        parts = _convolution(dim, 4 * growth, 1, dropout) if bottleneck else []
        return nn.Sequential(*parts, *_convolution(4 * growth if bottleneck else dim, growth, 3, dropout))

    dim = 2 * growth if bottleneck and compression < 1 else 16
    stem = nn.Conv2d(inputs, dim, 3, padding=1, bias=False)
    blocks: list[Stack] = []
    transitions: list[nn.Module] = []
    for i in range(_BLOCKS):
        blocks.append(Stack(branch, Dense, dim=dim, depth=layers, growth=growth, axis=1))
        dim = blocks[-1].dim_out
        if i < _BLOCKS - 1:
            kept = math.floor(dim * compression)
            transitions.append(nn.Sequential(*_convolution(dim, kept, 1, dropout), nn.AvgPool2d(2)))
            dim = kept
    head = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, outputs))
    return he(DenseNetwork(stem, blocks, transitions, head))  # type: ignore[return-value]


def _convolution(dim: int, dim_out: int, size: int, dropout: float) -> list[nn.Module]:
    parts = [nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim_out, size, padding=size // 2, bias=False)]
    return [*parts, nn.Dropout(dropout)] if dropout else parts
