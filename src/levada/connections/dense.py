"""Dense connections: every layer reads what all the layers before it returned, from one shared buffer."""

from __future__ import annotations

from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from levada._errors import UsageError, require_at_least, require_number
from levada.connection import Connection

__all__ = ["Dense"]


@final
class _Buffer:
    """Memory for the features of a whole stack, of which the first `used` channels are filled."""

    def __init__(self, features: Tensor, capacity: int, axis: int) -> None:
        shape = list(features.shape)
        shape[axis] = capacity
        self.memory = torch.empty(shape, dtype=features.dtype, device=features.device)
        self.axis = axis
        self.used = 0

    def prefix(self) -> Tensor:
        return self.memory.narrow(self.axis, 0, self.used)

    def append(self, features: Tensor) -> None:
        channels = features.shape[self.axis]
        # `.data` has a version counter of its own: what layers saved of the prefixes stays valid, as it is. Any other
        # change in place is seen by the counter that the prefixes share, and autograd raises.
        self.memory.data.narrow(self.axis, self.used, channels).copy_(features)
        self.used += channels

    def ends_with(self, features: Tensor) -> bool:
        """Whether `features` is all that was written so far: false once something was appended to it."""
        return self.used == features.shape[self.axis] and features.is_set_to(self.prefix())


# A buffer travels in the state as it is: sharding and checkpointing look for tensors in the state and put it together
# again, and it holds none for them.
register_pytree_node(_Buffer, lambda buffer: ([], buffer), lambda _, buffer: buffer)

_State: TypeAlias = tuple[Tensor, _Buffer | None]


@final
class _Append(torch.autograd.Function):
    """Concatenation in place: the gradient is split, nothing is saved.

    The outputs are views that were made inside of a function, which autograd refuses to change in place: a branch that
    begins with an in-place operation gets an error, and not other layers' gradients wrong.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, out: Tensor, buffer: _Buffer) -> Tensor:
        ctx.axis = buffer.axis
        ctx.widths = features.shape[buffer.axis], out.shape[buffer.axis]
        if buffer.used == 0:
            buffer.append(features)
        buffer.append(out)
        return buffer.prefix()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        before, new = gradients[0].split(ctx.widths, ctx.axis)  # type: ignore[no-untyped-call]
        return before, new, None


@final
class Dense(Connection):
    """Each layer appends its output to the channels that the next ones read.

    `x' = concat(x, f(x))`, where `f` takes `dim + layer growth` channels to `growth`

    The gradient of the loss reaches every layer directly. Concatenating anew at each layer keeps a copy of all
    features for each layer, memory that grows with the square of the depth; here all layers' states are prefixes of
    one buffer, which is filled from the front, and memory grows linearly. Each pass has a buffer of its own; a state to
    which something is appended twice is copied the second time. Neither the input of a branch nor the stack's output
    may be changed in place: both are views of the buffer, and autograd raises ("Output 0 of _Append is a view ..."), so
    that an activation after the stack is `nn.ReLU()` and not `nn.ReLU(inplace=True)`.

    Inside `torch.compile` and `torch.export` the features are concatenated, and the compiler plans the memory.

    Use it for narrow branches, convolutions above all, whose features all later layers should read as they are. What a
    branch reads grows with each layer, so that deep networks are cut into blocks; where widths should stay, use
    `Residual` or `DepthWeightedAverage`.

    Args:
        dim: width of the network's input.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        growth: channels that each branch adds (k in the paper).
        axis: axis of the channels: -1 for `(..., dim)`, 1 for images.
        in_place: False concatenates anew at each layer, for comparison, or where the layers run under transforms of
            `torch.func`, which the buffer cannot follow.

    Shape:
        A branch maps `(..., dim + layer * growth) -> (..., growth)`; the stack
        `(..., dim) -> (..., dim + depth * growth)`, or with the channels at `axis`.

    Cost:
        No parameters; reads `growth` and writes `growth` elements per token in the forward pass, and copies the input
        once. What a branch reads grows by `growth` with each layer.

    Raises:
        UsageError: if `growth` is below 1 or a branch returns another shape.

    Example:
        >>> from levada import Stack
        >>> net = Stack(lambda dim: nn.Linear(dim, 2), Dense, dim=3, depth=4, growth=2)
        >>> [layer.branch.in_features for layer in net.layers]
        [3, 5, 7, 9]
        >>> net(torch.zeros(6, 3)).shape
        torch.Size([6, 11])

    Source: Huang, Liu, van der Maaten and Weinberger, 2017, arXiv 1608.06993; shared storage: Pleiss, Chen, Huang, Li,
    van der Maaten and Weinberger, 2017, arXiv 1707.06990.
    """

    def __init__(
        self, dim: int, *, growth: int, layer: int = 0, depth: int = 1, axis: int = -1, in_place: bool = True
    ) -> None:
        require_at_least("Dense", "growth", growth, 1)
        require_at_least("Dense", "dim", dim, 1)
        require_number("Dense", "layer", layer, whole=True)
        require_number("Dense", "axis", axis, whole=True)
        super().__init__(dim, layer=layer, depth=depth, dim_in=dim + layer * growth, dim_out=dim + (layer + 1) * growth)
        self.growth = growth
        self.axis = axis
        self.in_place = in_place

    def begin(self, x: Tensor) -> _State:
        """Return the input; the first layer that writes makes the buffer."""
        return x, None

    def read(self, state: _State) -> Tensor:
        """Return all features so far."""
        return state[0]

    def write(self, state: _State, out: Tensor) -> _State:
        """Append the branch's output to the features."""
        features, buffer = state
        expected = list(features.shape)
        expected[self.axis] = self.growth
        if list(out.shape) != expected:
            raise UsageError(
                f"Dense: with growth {self.growth} a branch must return the shape {tuple(expected)}, "
                f"got {tuple(out.shape)}. Change the branch's width or growth."
            )
        if not self.in_place or torch.compiler.is_compiling():
            return torch.cat((features, out), self.axis), None
        dtype = torch.promote_types(features.dtype, out.dtype)
        if buffer is None or buffer.memory.dtype != dtype or not buffer.ends_with(features):
            buffer = _Buffer(features.to(dtype), self.dim + self.depth * self.growth, self.axis)
        return _Append.apply(features, out, buffer), buffer  # type: ignore[no-untyped-call]

    def end(self, state: _State) -> Tensor:
        """Return all features."""
        return state[0]

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()
