"""Connections whose state is several streams: what they share, whichever way their coefficients are made."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.connection import Connection, Outputs, require_input
from levada.ops import write_streams
from levada.ops._define import is_observed
from levada.ops.manifold import Form, read_streams
from levada.ops.manifold.ahead import write_and_read

__all__ = ["Coefficients", "MultiStream", "SteppedStreams", "Streams", "Unwritten", "coefficient_dtype"]


_FAVOURED = 0.7


class Coefficients(NamedTuple):
    """What a layer multiplies its streams by, in float32 or float64.

    Leading axes are those of the state, or none where nothing depends on the input.

    Attributes:
        read: weight of each stream in what the branch reads, `(..., streams)`; or of each element of each stream,
            `(..., streams, dim)`; or, where the branch reads in parts, of each stream in each of them,
            `(..., parts, streams)`.
        mix: `mix[..., i, j]` is the weight of stream j in the new stream i, `(..., streams, streams)`; None for the
            identity.
        write: weight of the branch's output in each stream, `(..., streams)`.
    """

    read: Tensor
    mix: Tensor | None
    write: Tensor


def coefficient_dtype(state: Tensor) -> torch.dtype:
    """Return float64 for streams in float64, else float32.

    Args:
        state: the streams.

    Example:
        >>> coefficient_dtype(torch.zeros(2, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(state.dtype, torch.float32)


class Streams(Connection):
    """A connection that carries n streams, `(..., n, dim)`, contiguous, alone or beside something else.

    `x'_i = sum_j mix_ij x_j + write_i f(sum_j read_j x_j)`

    A subclass makes the coefficients; this class applies them, in their own precision whatever autocast says, and
    returns the streams in the streams' type. What no shape tells, a subclass says: `reads_parts`, where the branch
    reads in parts, and `reads_ahead`, where `coefficients` gives what the next layer reads, not this one.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns: -1 for
            `(..., dim)`, 1 for images. The streams have them last: a convolution is given the channels-last layout.

    Raises:
        UsageError: if a width or `depth` is below 1, `streams` is below 2, or `layer` is not in `[0, depth)`.
    """

    reads_parts: ClassVar[bool] = False
    reads_ahead: ClassVar[bool] = False

    def __init__(self, dim: int, *, streams: int, layer: int = 0, depth: int = 1, axis: int = -1) -> None:
        hint = "For a single stream use Residual."
        require_at_least(type(self).__name__, "streams", streams, 2, hint)
        super().__init__(dim, layer=layer, depth=depth)
        self.streams = streams
        self.width = dim  # of one stream
        require_number(type(self).__name__, "axis", axis, whole=True)
        self.axis = axis

    @abstractmethod
    def coefficients(self, state: Tensor) -> Coefficients:
        """Return what streams decide, `(..., n, dim)`, in float32 (float64 for streams in float64)."""

    def copied(self, x: Tensor) -> Tensor:
        """Return the network's input in every stream.

        Raises:
            UsageError: if it is not of floating point, or its width is not `dim`.
        """
        return self.spread(self._channels_last(x))

    def spread(self, x: Tensor) -> Tensor:
        """Return `(..., dim)` as `(..., n, dim)`, contiguous."""
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.streams, x.shape[-1]).contiguous()

    def favoured(self, stream: int) -> Tensor:
        """Return weights that sum to 1, most of it for stream `stream % n`: read with them, equal streams part."""
        weights = torch.full((self.streams,), (1 - _FAVOURED) / (self.streams - 1), dtype=torch.float64)
        weights[stream % self.streams] = _FAVOURED
        return weights

    def pack(self, state: Tensor) -> Tensor:
        """Return streams side by side, `(..., n, dim)` as `(..., n dim)`: a view, for code that hands on three axes.

        Example:
            >>> import levada
            >>> connection = levada.HyperConnection(8, streams=4)
            >>> hidden = connection.pack(connection.begin(torch.randn(10, 2, 8)))  # (sequence, batch, n dim)
            >>> hidden.shape, connection.unpack(hidden).shape
            (torch.Size([10, 2, 32]), torch.Size([10, 2, 4, 8]))
        """
        return self.require_streams(state).flatten(-2)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return `(..., n dim)` as streams, `(..., n, dim)`: a view.

        Raises:
            UsageError: if the last axis is not `n dim`.
        """
        if packed.ndim == 0 or packed.shape[-1] != self.streams * self.width:
            raise UsageError(
                f"{type(self).__name__}: packed streams must be (..., {self.streams * self.width}), {self.streams} of "
                f"width {self.width} side by side, got {tuple(packed.shape)}. Make them with pack(state)."
            )
        return torch.unflatten(packed, -1, (self.streams, self.width))

    def combine(self, read: Tensor, state: Tensor) -> Tensor:
        """Return the weighted sum of the streams, `(..., dim)` with the channels at `axis`."""
        weights = read if read.ndim == state.ndim else read.unsqueeze(-1)
        return self.to_axis((weights * state).sum(-2).to(state.dtype))

    def update(self, coefficients: Coefficients, state: Tensor, out: Tensor) -> Tensor:
        """Return `mix @ state + write out`, in the type that their sum has."""
        return write_streams(*self._of_one_type(state, out), coefficients.write, coefficients.mix)

    def _of_one_type(self, state: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        if state.dtype != out.dtype:  # a call that changes nothing takes a microsecond
            state = state.to(torch.promote_types(state.dtype, out.dtype))
        return state, self.from_axis(out)

    def to_axis(self, x: Tensor) -> Tensor:
        """Move the channels from the last axis to `axis`."""
        return x if self.axis == -1 else x.movedim(-1, self.axis)  # sharding warns of a view that changes nothing

    def from_axis(self, x: Tensor) -> Tensor:
        """Move the channels from `axis` to the last axis."""
        return x if self.axis == -1 else x.movedim(self.axis, -1)

    def require_streams(self, state: Tensor) -> Tensor:
        """Return the state.

        Raises:
            UsageError: if it is not a tensor `(..., n, dim)`.
        """
        if not isinstance(state, Tensor):
            raise UsageError(
                f"{type(self).__name__}: the streams must be a tensor, got {type(state).__name__}. Where the state is "
                "a pair, streams and weights, give the streams, and hand on the weights beside them."
            )
        if state.ndim < 2 or state.shape[-2] != self.streams or state.shape[-1] != self.width:
            raise UsageError(
                f"{type(self).__name__}: the state must be (..., {self.streams}, {self.width}), streams and width "
                f"last, got {tuple(state.shape)}. Make it with begin(x)."
            )
        return state

    def _channels_last(self, x: Tensor) -> Tensor:
        return self.from_axis(require_input(type(self).__name__, x, self.dim, self.axis))

    def extra_repr(self) -> str:
        """Say the width and the number of streams."""
        return f"dim={self.dim}, streams={self.streams}"


class Unwritten(NamedTuple):
    """Streams between two layers of which the second writes, as it reads, what the branch of the first returned.

    Attributes:
        streams: before the writing, in the type that the sum has.
        out: what the branch returned, channels last, as they are.
        coefficients: of the first layer.
    """

    streams: Tensor
    out: Tensor
    coefficients: Coefficients


class SteppedStreams(Streams):
    """Streams whose coefficients a layer's step makes once, by one operation that reads and may write before."""

    def one_pass(self) -> Form | None:
        """Return how one operation makes the coefficients and reads, of `projection`, `scale` and `bias`; None if none.

        It must agree with `coefficients`.
        """
        return None

    @abstractmethod
    def open(self, state: Any) -> tuple[Tensor, Coefficients, Tensor]:
        """Return what the branch reads, the coefficients, and the streams to write to."""

    @abstractmethod
    def require_state(self, state: Any) -> Any:
        """Return the state, if it is one that `begin` makes or `Unwritten`."""

    @abstractmethod
    def left(self, streams: Tensor, coefficients: Coefficients) -> Any:
        """Return the state that a layer leaves."""

    def advance(self, state: Any, branch: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Take one layer's step, with the coefficients made once."""
        coefficients, streams, out, extra = self._stepped(state, branch, *args, **kwargs)
        written = self.left(self.update(coefficients, streams, out), coefficients)
        return written if extra is None else Outputs(written, extra)

    def reads_at_once(self) -> bool:
        """Return whether one operation makes the coefficients and reads, and may write before."""
        return self._read_at_once() is not None

    def defers_to(self, after: Connection) -> bool:
        """Return whether both read in one operation, which then writes too."""
        if not isinstance(after, SteppedStreams) or type(after) is not type(self):
            return False
        # What a subclass, or sharding, puts around a step of its own must be gone through.
        own = type(self).advance is SteppedStreams.advance and not any("advance" in vars(c) for c in (self, after))
        alike = (self.streams, self.width) == (after.streams, after.width)
        return own and alike and self.reads_at_once() and after.reads_at_once()

    def defer(self, state: Any, branch: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Take one layer's step but for the writing, unless that would be refused: an error names this layer."""
        coefficients, streams, out, extra = self._stepped(state, branch, *args, **kwargs)
        found: Any
        if out.is_floating_point() and out.device == streams.device:
            found = Unwritten(*self._of_one_type(streams, out), coefficients)
        else:
            found = self.left(self.update(coefficients, streams, out), coefficients)
        return found if extra is None else Outputs(found, extra)

    def _stepped(
        self, state: Any, branch: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[Coefficients, Tensor, Tensor, tuple[Any, ...] | None]:
        """Return the coefficients, the streams, what the branch returned to be written, and what it returned beside."""
        x, coefficients, streams = self.open(self.require_state(state))
        out: Any = branch(x, *args, **kwargs)
        extra: tuple[Any, ...] | None = None
        if isinstance(out, tuple):
            out, extra = self.first_of(out), out[1:]
        if out.shape != x.shape:
            self.require_fit(x, out)
        return coefficients, streams, out, extra

    def _read_at_once(self) -> Form | None:
        """Return the form of the operation that reads; None where somebody looks at what it makes."""
        return None if is_observed() or "coefficients" in vars(self) else self.one_pass()


class MultiStream(SteppedStreams):
    """A connection whose state is the streams themselves, `(..., n, dim)`."""

    def begin(self, x: Tensor) -> Tensor:
        """Copy the input into every stream.

        Raises:
            UsageError: if it is not of floating point, or its width is not `dim`.
        """
        return self.copied(x)

    def read(self, state: Tensor) -> Tensor:
        """Return the weighted sum of the streams."""
        return self.combine(self.coefficients(self.require_streams(state)).read, state)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Mix the streams, and add the branch's output to each, weighted."""
        return self.update(self.coefficients(self.require_streams(state)), state, out)

    def end(self, state: Tensor) -> Tensor:
        """Return the mean of the streams."""
        return self.to_axis(self.require_streams(state).mean(-2))

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def require_state(self, state: Any) -> Tensor | Unwritten:
        """Return the streams, or those that nobody has written to yet."""
        return state if isinstance(state, Unwritten) else self.require_streams(state)

    def left(self, streams: Tensor, coefficients: Coefficients) -> Tensor:
        """Return the streams."""
        return streams

    def open(self, state: Tensor | Unwritten) -> tuple[Tensor, Coefficients, Tensor]:
        """Return what the branch reads, the coefficients, and the streams to write to."""
        form = self._read_at_once()
        if form is None:
            if isinstance(state, Unwritten):
                state = write_streams(state.streams, state.out, state.coefficients.write, state.coefficients.mix)
            coefficients = self.coefficients(state)
            return self.combine(coefficients.read, state), coefficients, state
        own: Any = self.projection, self.scale, self.bias, form
        if isinstance(state, Unwritten):
            _, mix, write = state.coefficients
            x, read, write, mix, streams = write_and_read(state.streams, state.out, write, mix, *own)
        else:
            x, read, write, mix, streams = read_streams(state, *own)
        return self.to_axis(x), Coefficients(read, mix, write), streams
