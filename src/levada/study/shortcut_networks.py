"""Residual networks whose shortcuts are scaled, gated, convolved or dropped, several seeds at once.

Their blocks are those of 2015, with a ReLU after the addition; the networks of `levada.study.replicas` are
pre-activation ones, whose shortcut is the identity or none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import Connection, Layer
from levada.connections import Highway, Plain, Residual
from levada.study.replicas import ReplicaConvolution, ReplicaLinear, gradient_norms, signal_layout

__all__ = ["Form", "ReplicaDropout", "ReplicaGate", "Scale", "Shortcut", "ShortcutGate", "ShortcutNetwork"]

Form: TypeAlias = Literal["constant", "exclusive gate", "shortcut gate", "convolution", "dropout"]


@final
@dataclass(frozen=True, slots=True)
class Shortcut:
    """What a block makes of its input on the way around its branch.

    `x' = relu(h(x) + k(x) f(x))`, where `h(x)` and `k(x)` are

    - "constant": `value x` and `branch`;
    - "exclusive gate": `(1 - g(x)) x` and `g(x)`, with `g(x) = sigmoid(W x + b)`, a convolution of kernel size 1 whose
      bias b starts at `value`;
    - "shortcut gate": `(1 - g(x)) x` and 1;
    - "convolution": a convolution of kernel size 1 with batch normalisation, and 1;
    - "dropout": `m x`, where each element of m is 1 with probability `1 - value` and else 0, `(1 - value) x` in
      evaluation, and 1.

    Attributes:
        form: its form.
        value: the form's number; of no account for "convolution".
        branch: factor on the branch; "constant" alone has it.

    Raises:
        UsageError: if `form` is not known, a share is not in [0, 1), or there is a `branch` to no purpose.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1603.05027, table 1.
    """

    form: Form
    value: float = 0.0
    branch: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise UsageError(f"Shortcut: form must be one of {', '.join(get_args(Form))}, got {self.form!r}.")
        if self.form == "dropout" and not 0 <= self.value < 1:
            raise UsageError(f"Shortcut: what dropout drops is a share in [0, 1), got {self.value}.")
        if self.form != "constant" and self.branch != 1.0:
            raise UsageError(f"Shortcut: branch serves form='constant' alone, got {self.branch} for {self.form!r}.")

    def gain(self, depth: int) -> float | None:
        """Return what `depth` shortcuts one after the other keep of a signal, at the start and without the relu.

        `value^depth`; of gates `sigmoid(-value)^depth`, where their weights are small; of dropout `(1 - value)^depth`,
        which is the mean; None for convolutions, where it depends on what they draw.

        Args:
            depth: number of blocks.

        Example:
            >>> Shortcut("constant", 0.5).gain(54) == Shortcut("exclusive gate", 0.0).gain(54) == 2.0**-54
            True
            >>> round(Shortcut("shortcut gate", -6.0).gain(54), 4)
            0.8749

        Source: He, Zhang, Ren and Sun 2016, arXiv 1603.05027, section 3.
        """
        if self.form == "convolution":
            return None
        if self.form == "constant":
            return self.value**depth
        if self.form == "dropout":
            return (1 - self.value) ** depth
        return torch.sigmoid(torch.tensor(-self.value, dtype=torch.float64)).item() ** depth


@final
class Scale(nn.Module):
    """Multiply by a number that is not learned.

    Args:
        factor: the number.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return `factor * x`."""
        return self.factor * x


@final
class ReplicaGate(nn.Conv2d):
    """The logits of every replica's gate: a convolution of kernel size 1 with bias; weights from N(0, 1 / (3 dim)).

    Args:
        dim: number of channels of a replica.
        generators: one for each replica.

    Shape:
        Keeps `(batch, replicas * dim, height, length)`.
    """

    def __init__(self, dim: int, generators: Sequence[torch.Generator]) -> None:
        groups = len(generators)
        super().__init__(groups * dim, groups * dim, 1, groups=groups)
        with torch.no_grad():
            for weight, generator in zip(self.weight.chunk(groups), generators, strict=True):
                weight.normal_(0.0, (3 * dim) ** -0.5, generator=generator)


@final
class ShortcutGate(nn.Module):
    """`(1 - sigmoid(gate(x))) x`.

    Args:
        gate: makes the logits.
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated input."""
        return torch.sigmoid(-self.gate(x)) * x


@final
class ReplicaDropout(nn.Module):
    """Set elements to 0, each replica by its own generator; kept ones stay as they are, so that the mean falls.

    Args:
        share: of the elements, what is dropped.
        generators: one for each replica, on the CPU.

    Shape:
        Keeps `(batch, replicas * dim, height, length)`.
    """

    def __init__(self, share: float, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.share, self.generators = share, tuple(generators)

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training; in evaluation multiply by what is kept on average."""
        if not self.training:
            return (1 - self.share) * x
        shape = (len(x), x.shape[1] // len(self.generators), *x.shape[2:])
        drawn = torch.cat([torch.rand(shape, generator=generator) for generator in self.generators], dim=1)
        return x * (drawn >= self.share).to(x)


@final
class ShortcutNetwork(nn.Module):
    """He's residual network of 2015 on signals, with a shortcut of one's choice: one width, no downsampling.

    A first convolution of kernel size 5 and stride 2 with batch norm and ReLU; blocks of (conv, batch norm, ReLU, conv,
    batch norm) around which the shortcut leads, each followed by a ReLU; the mean over positions; a linear classifier.
    Networks of one seed begin with the same branches whatever their shortcuts.

    Args:
        shortcut: what leads around a branch.
        blocks: number of blocks.
        channels: number of channels of a replica.
        num_classes: number of classes.
        seeds: one for each replica, the seed of its weights.

    Shape:
        `(batch, replicas, length)` -> `(batch, replicas, num_classes)`.

    Raises:
        UsageError: if there is no block.

    Example:
        >>> network = ShortcutNetwork(Shortcut("constant", 1.0), 3, channels=4, num_classes=10, seeds=[0, 1])
        >>> network(torch.randn(5, 2, 40)).shape
        torch.Size([5, 2, 10])

    Source: He, Zhang, Ren and Sun 2015, arXiv 1512.03385, and 2016, arXiv 1603.05027.
    """

    def __init__(
        self, shortcut: Shortcut, blocks: int, *, channels: int, num_classes: int, seeds: Sequence[int]
    ) -> None:
        super().__init__()
        require_at_least("ShortcutNetwork", "blocks", blocks, 1)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        dim = channels * len(seeds)
        layer = functools.partial(ReplicaConvolution, channels, channels, generators=generators)

        def branch() -> nn.Module:
            scale = [] if shortcut.branch == 1.0 else [Scale(shortcut.branch)]
            parts = [layer(kernel_size=3, stride=1), nn.BatchNorm2d(dim), nn.ReLU(), layer(kernel_size=3, stride=1)]
            return nn.Sequential(*parts, nn.BatchNorm2d(dim), *scale)

        def gate(_: int = dim) -> nn.Module:
            return ReplicaGate(channels, generators)

        def connection() -> Connection:
            if shortcut.form == "exclusive gate":
                return Highway(dim, gate=gate, bias=shortcut.value)
            if shortcut.form == "constant" and shortcut.value == 0.0:
                return Plain(dim)
            around: nn.Module | None
            if shortcut.form == "constant":
                around = None if shortcut.value == 1.0 else Scale(shortcut.value)
            elif shortcut.form == "shortcut gate":
                around = ShortcutGate(gate())
                nn.init.constant_(around.gate.bias, shortcut.value)  # type: ignore[arg-type]
            elif shortcut.form == "convolution":
                around = nn.Sequential(layer(kernel_size=1, stride=1), nn.BatchNorm2d(dim))
            else:
                around = ReplicaDropout(shortcut.value, generators)
            return Residual(dim, shortcut=around)

        self.first = nn.Sequential(ReplicaConvolution(1, channels, 5, 2, generators), nn.BatchNorm2d(dim), nn.ReLU())
        self.classifier = ReplicaLinear(channels, num_classes, generators)
        branches = [branch() for _ in range(blocks)]
        self.blocks = nn.ModuleList(nn.Sequential(Layer(connection(), branch), nn.ReLU()) for branch in branches)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica."""
        return self._classify(self._states(x)[-1])

    def _states(self, x: Tensor, blocked: bool = False) -> list[Tensor]:
        blocks: Any = self.blocks
        states = [self.first(signal_layout(x))]
        for block in blocks:
            if blocked:
                layer, relu = block
                out = layer.branch(states[-1]).detach()
                state = relu(_shortcut_alone(layer.connection, states[-1], out))
                states.append(state if state.requires_grad else state.requires_grad_())  # nothing led around
            else:
                states.append(block(states[-1]))
        return states

    def _classify(self, state: Tensor) -> Tensor:
        return self.classifier(state.mean((2, 3)))  # type: ignore[no-any-return]

    def gradients(self, x: Tensor, targets: Tensor, *, through: Literal["all", "shortcuts"] = "all") -> Tensor:
        """Norm of the gradient of each replica's cross-entropy with respect to the state at every block's boundary.

        Args:
            x: `(batch, replicas, length)`.
            targets: `(batch, replicas)`.
            through: "shortcuts" lets the gradient of h(x) alone pass, not that of k(x) f(x), whose gate is part of it;
                states and loss are the same.

        Shape:
            Returns `(replicas, boundaries)`, the input's side first.
        """
        states = self._states(x, blocked=through == "shortcuts")
        return gradient_norms(self._classify(states[-1]), targets, states)

    @torch.no_grad()
    def shortcut_gain(self, x: Tensor) -> Tensor:
        """What the shortcuts, one after the other, keep of a signal, without the ReLUs: the product of their factors.

        Factors are those that this input has, gates held; root mean square of the products over examples, channels and
        positions. Those of dropout are its mean; with convolutions there is no factor, and the result is NaN.

        Args:
            x: `(batch, replicas, length)`.

        Shape:
            Returns `(replicas,)`.
        """
        blocks: Any = self.blocks
        states = self._states(x)
        product = torch.ones_like(states[0])
        for (layer, _), state in zip(blocks, states, strict=False):
            product = product * _factor(layer.connection, state)
        replicas = x.shape[1]
        return product.square().mean((0, 2, 3)).view(replicas, -1).mean(1).sqrt()


def _shortcut_alone(connection: Any, state: Tensor, out: Tensor) -> Any:
    """What a block writes, with the gradient of its shortcut; `out` has none."""
    whole = connection.write(state, out)
    if not isinstance(connection, Highway):
        return whole
    alone = connection.write(state, torch.zeros_like(out))  # (1 - g(x)) x
    return alone + (whole - alone).detach()


def _factor(connection: Any, state: Tensor) -> Any:
    """By what a shortcut multiplies each element."""
    if isinstance(connection, Plain):
        return 0.0
    if isinstance(connection, Highway):
        return torch.sigmoid(-connection.gate(state))
    around = connection.shortcut
    if around is None:
        return 1.0
    if isinstance(around, Scale):
        return around.factor
    if isinstance(around, ShortcutGate):
        return torch.sigmoid(-around.gate(state))
    return 1 - around.share if isinstance(around, ReplicaDropout) else math.nan
