"""Fully connected and residual networks, and transformers: stem, stack, head."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.blocks import (
    Attention,
    ConvolutionBranch,
    FeedForward,
    FullyConnected,
    IdentityShortcut,
    ProjectionShortcut,
)
from levada.connection import Connection
from levada.connections import Plain, Residual
from levada.initialise import he
from levada.stack import Stack

__all__ = ["Network", "cifar_resnet", "imagenet_resnet", "mlp", "transformer"]

_IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@final
class Network(nn.Module):
    """`head(stack(stem(x), *args))`.

    Args:
        stem: what makes the stream.
        stack: the layers.
        head: what makes the output.

    Example:
        >>> import levada
        >>> stack = Stack([nn.ReLU()], levada.Residual, dim=2)
        >>> Network(nn.Identity(), stack, nn.Identity())(torch.tensor([[-1.0, 3.0]]))
        tensor([[-1.,  6.]])
    """

    def __init__(self, stem: nn.Module, stack: Stack, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stack = stack
        self.head = head

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Run the network; `args` go to every branch."""
        return self.head(self.stack(self.stem(x), *args))  # type: ignore[no-any-return]


def mlp(
    depth: int,
    dim: int,
    *,
    inputs: int,
    outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    connection: Callable[..., Connection] = Plain,
    pre_activation: bool = False,
    **options: Any,
) -> Network:
    """Build a fully connected network: a linear map in, `depth` layers of one width, a linear map out.

    `h = A x;  h = write(h, activation(norm(W_l read(h) + b_l))) for l = 0 ... depth - 1;  y = B h`

    The weights are drawn as PyTorch draws them; see `levada.initialise` for others.

    Args:
        depth: number of layers, the maps in and out not counted.
        dim: width of the stream.
        inputs: number of features that come in.
        outputs: number of features that go out.
        activation: builds each activation.
        norm: builds each normalisation from a width; none if left out.
        connection: how the layers read and write.
        pre_activation: normalise and activate before each weight, and so also before `B`, instead of after it.
        options: of the stack and of the connection.

    Shape:
        `(..., inputs)` -> `(..., outputs)`.

    Raises:
        UsageError: if an option does not fit.

    Example:
        >>> net = mlp(20, 64, inputs=784, outputs=10, connection=Residual)
        >>> net(torch.randn(3, 784)).shape, len(net.stack)
        (torch.Size([3, 10]), 20)
    """

    def branch(dim_in: int) -> nn.Module:
        return FullyConnected(dim_in, activation, dim_out=dim, norm=norm, pre_activation=pre_activation)

    stack = Stack(branch, connection, dim=dim, depth=depth, **options)
    head: nn.Module = nn.Linear(stack.dim_out, outputs)
    if pre_activation:
        head = FullyConnected(stack.dim_out, activation, dim_out=outputs, norm=norm, pre_activation=True)
    return Network(nn.Linear(inputs, dim), stack, head)


def cifar_resnet(
    depth: int,
    *,
    channels: Sequence[int] = (16, 32, 64),
    inputs: int = 3,
    outputs: int = 10,
    dims: int = 2,
    connection: Callable[..., Connection] = Residual,
    pre_activation: bool = False,
    **options: Any,
) -> Network:
    """Build the residual network of `6n + 2` weights for small images or signals, or its plain counterpart.

    A convolution; stages of basic branches, each with its own number of channels, the length being halved where that
    number changes; the mean over positions; a linear map. Shortcuts have no parameters (option A), so that plain and
    residual networks have the same. Weights are He's.

    Args:
        depth: number of weights in a row: `2 len(channels) n + 2`.
        channels: number of channels of every stage; constant ones give a network that keeps the length.
        inputs: number of input channels.
        outputs: number of classes.
        dims: 2 for images, 1 for signals.
        connection: `Residual`, `Plain`, or any other that has one stream with the channels where these have them. Other
            connections leave the layers that change the shape to `Residual`.
        pre_activation: the order of He 2016; the stem is then the convolution alone, and a norm and an activation
            follow the last layer. Needed for connections that do not activate after the addition.
        options: of the stack and of the connection.

    Shape:
        `(batch, inputs, *length)` -> `(batch, outputs)`.

    Raises:
        UsageError: if there is no such depth, or an option does not fit.

    Example:
        >>> net = cifar_resnet(20)
        >>> net(torch.randn(2, 3, 32, 32)).shape, round(sum(p.numel() for p in net.parameters()) / 1e6, 2)
        (torch.Size([2, 10]), 0.27)

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385, and 2016, arXiv 1603.05027.
    """
    per_stage, rest = divmod(depth - 2, 2 * len(channels))
    if per_stage < 1 or rest:
        raise UsageError(
            f"cifar_resnet: depth must be {2 * len(channels)} n + 2, n >= 1, for {len(channels)} stages, got {depth}."
        )
    widths = [c for c in channels for _ in range(per_stage)]
    shapes = [(a, b, 1 if a == b else 2) for a, b in itertools.pairwise([channels[0], *widths])]
    branches = [
        ConvolutionBranch(a, dim_out=b, stride=s, dims=dims, pre_activation=pre_activation) for a, b, s in shapes
    ]
    shortcuts = [None if a == b else IdentityShortcut(a, b, stride=s) for a, b, s in shapes]
    stack = _stack(branches, shapes, shortcuts, connection, pre_activation, options)
    convolution = (nn.Conv1d if dims == 1 else nn.Conv2d)(inputs, channels[0], 3, padding=1, bias=False)
    first = [] if pre_activation else [_batch_norm(dims)(channels[0]), nn.ReLU()]
    stem = nn.Sequential(convolution, *first)
    return he(Network(stem, stack, _head(channels[-1], outputs, dims, pre_activation)))  # type: ignore[return-value]


def imagenet_resnet(
    depth: Literal[18, 34, 50, 101, 152],
    *,
    inputs: int = 3,
    outputs: int = 1000,
    connection: Callable[..., Connection] = Residual,
    shortcut: Literal["A", "B"] = "B",
    pre_activation: bool = False,
    **options: Any,
) -> Network:
    """Build a residual network for ImageNet, or its plain counterpart.

    A convolution of size 7 and a maximum pooling; four stages, of basic branches in 18 and 34, of bottlenecks with the
    stride in their first convolution in 50, 101 and 152; the mean over positions; a linear map. Weights are He's.

    Args:
        depth: number of weights in a row.
        inputs: number of input channels.
        outputs: number of classes.
        connection: as in `cifar_resnet`.
        shortcut: where the shape changes: "A" zero padding, without parameters; "B" projection.
        pre_activation: as in `cifar_resnet`.
        options: of the stack and of the connection.

    Shape:
        `(batch, inputs, height, width)` -> `(batch, outputs)`.

    Raises:
        UsageError: if there is no such depth or shortcut, or an option does not fit.

    Example:
        >>> with torch.device("meta"):
        ...     net = imagenet_resnet(50)
        >>> sum(p.numel() for p in net.parameters())
        25557032

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385.
    """
    if depth not in _IMAGENET_BLOCKS:
        raise UsageError(f"imagenet_resnet: depth must be one of {', '.join(map(str, _IMAGENET_BLOCKS))}, got {depth}.")
    if shortcut not in ("A", "B"):
        raise UsageError(f'imagenet_resnet: shortcut must be "A" or "B", got {shortcut!r}.')
    widening = 1 if depth < 50 else 4
    hidden = [64 * 2**i for i, num_blocks in enumerate(_IMAGENET_BLOCKS[depth]) for _ in range(num_blocks)]
    shapes, before = [], (64, 64)  # channels and channels inside of the layer before
    for h in hidden:
        shapes.append((before[0], h * widening, h // before[1]))
        before = (h * widening, h)
    branches = [
        ConvolutionBranch(a, dim_out=b, hidden=None if depth < 50 else h, stride=s, pre_activation=pre_activation)
        for (a, b, s), h in zip(shapes, hidden, strict=True)
    ]
    build = IdentityShortcut if shortcut == "A" else ProjectionShortcut
    shortcuts = [None if a == b else build(a, b, stride=s) for a, b, s in shapes]
    stack = _stack(branches, shapes, shortcuts, connection, pre_activation, options)
    first = [] if pre_activation else [nn.BatchNorm2d(64), nn.ReLU()]
    stem = nn.Sequential(nn.Conv2d(inputs, 64, 7, 2, 3, bias=False), *first, nn.MaxPool2d(3, 2, 1))
    return he(Network(stem, stack, _head(512 * widening, outputs, 2, pre_activation)))  # type: ignore[return-value]


def transformer(
    depth: int,
    dim: int,
    *,
    vocabulary: int,
    heads: int = 4,
    causal: bool = True,
    feed_forward: bool = True,
    norm: Callable[[int], nn.Module] | None = nn.LayerNorm,
    connection: Callable[..., Connection] = Residual,
    **options: Any,
) -> Network:
    """Build a small transformer: attention and feed-forward in turn, each a layer of its own; or attention alone.

    Tokens are embedded and sinusoids of their position added; after the stack come a norm and a linear map to scores.
    The weights are drawn as PyTorch draws them; see `levada.initialise` for others.

    Args:
        depth: number of layers, an even number where they alternate: two make one transformer layer.
        dim: width of the stream, an even number.
        vocabulary: number of tokens.
        heads: number of heads of every attention.
        causal: let a token see no later token.
        feed_forward: whether every second layer is a feed-forward; not, to study what attention alone can do.
        norm: builds the normalisation in every branch and after the stack; `None` for connections that normalise the
            stream themselves.
        connection: how the layers read and write.
        options: of the stack and of the connection.

    Shape:
        `(..., tokens)` of indices -> `(..., tokens, vocabulary)`. A second argument is every attention's mask.

    Raises:
        UsageError: if `dim` is odd, or `depth` where layers alternate, or an option does not fit.

    Example:
        >>> net = transformer(8, 32, vocabulary=100)
        >>> net(torch.arange(10)[None]).shape, len(net.stack)
        (torch.Size([1, 10, 100]), 8)
        >>> len(transformer(1, 32, vocabulary=100, feed_forward=False).stack)
        1

    Source: Vaswani et al., 2017, arXiv 1706.03762.
    """
    if depth % 2 and feed_forward:
        raise UsageError(
            f"transformer: depth must be even, an attention and a feed-forward for each two, got {depth}. "
            "For attention alone use feed_forward=False."
        )
    builders: list[Callable[..., nn.Module]] = [
        functools.partial(Attention, heads=heads, causal=causal, dim_out=dim, norm=norm),
        functools.partial(FeedForward, hidden=4 * dim, dim_out=dim, norm=norm),
    ]
    kinds = itertools.cycle(builders if feed_forward else builders[:1])
    stack = Stack(lambda dim_in: next(kinds)(dim_in), connection, dim=dim, depth=depth, **options)
    last = nn.Identity() if norm is None else norm(stack.dim_out)
    head = nn.Sequential(last, nn.Linear(stack.dim_out, vocabulary, bias=False))
    return Network(_Embedding(vocabulary, dim), stack, head)


@final
class _Embedding(nn.Module):
    """A learned vector for each token plus sinusoids of its position, which need no greatest length."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        require_at_least("transformer", "vocabulary", vocabulary, 1)
        if dim % 2:
            raise UsageError(f"transformer: dim must be even, a sine and a cosine for each two, got {dim}.")
        self.token = nn.Embedding(vocabulary, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.token(tokens)
        dim = x.shape[-1]
        rate = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(10000.0) / dim))
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rate
        return x + torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)


def _batch_norm(dims: int) -> type[nn.Module]:
    return nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d


def _head(dim: int, outputs: int, dims: int, pre_activation: bool) -> nn.Sequential:
    first = [_batch_norm(dims)(dim), nn.ReLU()] if pre_activation else []
    pool = nn.AdaptiveAvgPool1d(1) if dims == 1 else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*first, pool, nn.Flatten(), nn.Linear(dim, outputs))


def _stack(
    branches: Sequence[nn.Module],
    shapes: Sequence[tuple[int, int, int]],
    shortcuts: Sequence[nn.Module | None],
    connection: Callable[..., Connection],
    pre_activation: bool,
    options: dict[str, Any],
) -> Stack:
    """Put each branch behind a connection that can change the shape as the branch does."""
    if not (pre_activation or "activation" in inspect.signature(connection).parameters):
        name = getattr(connection, "__name__", repr(connection))
        raise UsageError(
            f"The original residual network activates after the addition, for which {name} has no option. "
            "Use pre_activation=True."
        )

    @functools.wraps(connection, updated=())
    def connect(dim: int, *, layer: int, depth: int, **given: Any) -> Connection:
        dim_in, dim_out, _ = shapes[layer]
        if not pre_activation:
            given = {"activation": nn.ReLU(), **given}
        if dim_in == dim_out:
            return connection(dim_in, layer=layer, depth=depth, **given)
        if connection is Plain:
            return Plain(dim_in, layer=layer, depth=depth, dim_out=dim_out, **given)
        given = {k: v for k, v in given.items() if k == "activation"}
        return Residual(dim_in, layer=layer, depth=depth, shortcut=shortcuts[layer], dim_out=dim_out, **given)

    return Stack(branches, connect, dim=shapes[-1][1], **options)
