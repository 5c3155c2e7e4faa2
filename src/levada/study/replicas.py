"""Networks that train several seeds at once: each seed is a group of channels of one grouped convolution.

Groups never mix, batch normalisation works by channel and SGD by element, so that every replica is the network of its
seed. On one CPU thread, 16 channels, batch 64 and length 20, a layer's forward and backward pass takes 0.14 ms per
seed for five seeds together in channels-last order, against 0.45 ms alone.

Of the files of replicas this is the one for signals, with batch normalisation (R4, R7, R10); `shortcut_networks` has
its residual networks with other shortcuts (R6). The others are fully connected, by batched products: `perceptrons` of
any widths, with batch normalisation (R11, R12); `gaussian_perceptrons` of one width, each replica with a learning rate
of its own, until it answers half (R3); `deep_replicas` of one width, with connections and layer normalisation, for up
to 10,000 layers (R8, R9); `highway_networks` with a gate's bias of its own for each replica as well (R5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError
from levada.connections import Plain, Residual
from levada.stack import Stack

__all__ = ["Kind", "ReplicaConvolution", "ReplicaLinear", "SignalNetwork", "gradient_norms", "signal_layout"]


def signal_layout(inputs: Tensor) -> Tensor:
    """Turn signals of every replica into the images of height 1 that channels-last convolutions are fast on.

    Args:
        inputs: one signal for each example and replica.

    Shape:
        `(batch, replicas, length)` -> `(batch, replicas, 1, length)`.

    Returns:
        The same numbers, channels last.
    """
    return inputs.unsqueeze(2).contiguous(memory_format=torch.channels_last)


@final
class ReplicaConvolution(nn.Conv2d):
    """A convolution along signals for every replica, without bias; He initialisation, from each replica's generator.

    Args:
        dim: number of input channels of a replica.
        dim_out: number of output channels of a replica.
        kernel_size: an odd number.
        stride: step along the signal.
        generators: one for each replica.

    Shape:
        `(batch, replicas * dim, 1, length)` -> `(batch, replicas * dim_out, 1, ceil(length / stride))`.

    Example:
        >>> both = ReplicaConvolution(1, 4, 3, 1, [torch.Generator().manual_seed(s) for s in (0, 1)])
        >>> alone = ReplicaConvolution(1, 4, 3, 1, [torch.Generator().manual_seed(1)])
        >>> torch.equal(both.weight[4:], alone.weight)
        True

    Source: He, Zhang, Ren and Sun 2015, arXiv 1502.01852 (initialisation).
    """

    def __init__(
        self, dim: int, dim_out: int, kernel_size: int, stride: int, generators: Sequence[torch.Generator]
    ) -> None:
        groups = len(generators)
        super().__init__(
            groups * dim,
            groups * dim_out,
            (1, kernel_size),
            stride=(1, stride),
            padding=(0, kernel_size // 2),
            bias=False,
            groups=groups,
        )
        with torch.no_grad():
            for weight, generator in zip(self.weight.chunk(groups), generators, strict=True):
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


@final
class ReplicaLinear(nn.Module):
    """A linear classifier for every replica; weights from N(0, 1 / dim), biases 0.

    Args:
        dim: number of inputs of a replica.
        dim_out: number of outputs of a replica.
        generators: one for each replica.

    Shape:
        `(batch, replicas * dim)` -> `(batch, replicas, dim_out)`.
    """

    def __init__(self, dim: int, dim_out: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        drawn = [torch.randn(dim, dim_out, generator=generator) / dim**0.5 for generator in generators]
        self.weight = nn.Parameter(torch.stack(drawn))
        self.bias = nn.Parameter(torch.zeros(len(generators), 1, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each replica's classifier to its own channels."""
        replicas, dim, _ = self.weight.shape
        own = x.view(len(x), replicas, dim).transpose(0, 1)
        return torch.baddbmm(self.bias, own, self.weight).transpose(0, 1)


def gradient_norms(logits: Tensor, targets: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Norm of the gradient of each replica's mean cross-entropy with respect to states of channels.

    Args:
        logits: `(batch, replicas, classes)`.
        targets: `(batch, replicas)`.
        states: each `(batch, replicas * channels, height, length)`; the gradient of one that the logits do not depend
            on is zero.

    Shape:
        Returns `(replicas, states)`.
    """
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / len(targets)
    found = torch.autograd.grad(loss, states, allow_unused=True, materialize_grads=True)
    replicas = targets.shape[1]
    return torch.stack([g.square().sum((0, 2, 3)).view(replicas, -1).sum(1).sqrt() for g in found], dim=1)


Kind: TypeAlias = Literal["plain", "residual", "plain pre-activation"]


@final
class SignalNetwork(nn.Module):
    """He's networks on signals, without downsampling after the first layer: convolutions of kernel size 3, one width.

    Plain: conv, batch norm, ReLU, every time. Residual: pairs of (batch norm, ReLU, conv) on an identity shortcut.
    Plain pre-activation: the residual network's very blocks, in the same order, without the shortcut.
    A first convolution of kernel size 5 and stride 2, the mean over positions and a linear classifier complete them;
    `depth` counts convolutions and classifier.

    Args:
        kind: "plain", "residual" or "plain pre-activation".
        depth: number of layers with weights, even.
        channels: number of channels of a replica.
        num_classes: number of classes.
        seeds: one for each replica, the seed of its weights.

    Shape:
        `(batch, replicas, length)` -> `(batch, replicas, num_classes)`.

    Raises:
        UsageError: if `kind` is not known, or `depth` is odd or below 4.

    Example:
        >>> net = SignalNetwork("residual", 20, channels=4, num_classes=10, seeds=[0, 1, 2])
        >>> net(torch.randn(5, 3, 40)).shape, len(net.stack.layers)
        (torch.Size([5, 3, 10]), 9)

    Source: He, Zhang, Ren and Sun 2015, arXiv 1512.03385, and 2016, arXiv 1603.05027.
    """

    def __init__(self, kind: Kind, depth: int, *, channels: int, num_classes: int, seeds: Sequence[int]) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UsageError(f"SignalNetwork: kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
        if depth % 2 or depth < 4:
            raise UsageError(f"SignalNetwork: depth must be even and at least 4, got {depth}.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        dim = channels * len(seeds)

        def layer() -> ReplicaConvolution:
            return ReplicaConvolution(channels, channels, 3, 1, generators)

        def activation() -> list[nn.Module]:
            return [nn.BatchNorm2d(dim), nn.ReLU()]

        first = ReplicaConvolution(1, channels, 5, 2, generators)
        if kind == "plain":
            self.first = nn.Sequential(first, *activation())
            branches = [nn.Sequential(layer(), *activation()) for _ in range(depth - 2)]
            self.last = nn.Sequential()
        else:
            self.first = nn.Sequential(first)
            branches = [nn.Sequential(*activation(), layer(), *activation(), layer()) for _ in range(depth // 2 - 1)]
            self.last = nn.Sequential(*activation())
        self.stack = Stack(branches, Residual if kind == "residual" else Plain, dim=dim)
        self.classifier = ReplicaLinear(channels, num_classes, generators)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica."""
        return self.classify(self.stack(self.first(signal_layout(x))))

    def classify(self, state: Tensor) -> Tensor:
        """Return the logits that the last state leads to.

        Args:
            state: `(batch, replicas * channels, 1, length)`.
        """
        return self.classifier(self.last(state).mean((2, 3)))  # type: ignore[no-any-return]

    def gradients(self, x: Tensor, targets: Tensor) -> Tensor:
        """Norm of the gradient of each replica's cross-entropy with respect to the state at every layer's boundary.

        Args:
            x: `(batch, replicas, length)`.
            targets: `(batch, replicas)`.

        Shape:
            Returns `(replicas, boundaries)`, the input's side first.
        """
        states = [self.first(signal_layout(x))]
        for layer in self.stack.layers:
            states.append(layer(states[-1]))
        return gradient_norms(self.classify(states[-1]), targets, states)
