"""Single-pass manifold-constrained hyper-connections: a layer says by which weights the next one reads."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connections.manifold import ManifoldStreams, Published
from levada.connections.streams import Coefficients, SteppedStreams, Unwritten, coefficient_dtype
from levada.ops import write_streams
from levada.ops.manifold import Form
from levada.ops.manifold.handed import read_handed, write_and_read_handed

__all__ = ["HandedStreams", "SinglePassManifoldHyperConnection"]

HandedStreams: TypeAlias = tuple[Tensor, Tensor]  # the streams, and the weights by which the next layer reads them

_FORMS = {"paper": Published(), "deepseek_v41": Published(epsilon=1e-6, released=True)}


@final
class SinglePassManifoldHyperConnection(ManifoldStreams, SteppedStreams):
    """Manifold-constrained hyper-connections that read with weights which the layer before has made.

    `x'_i = sum_j mix_ij x_j + write_i f(sum_j r_j x_j);  r' = read`, where mix, write and read follow the streams x as
    in `ManifoldHyperConnection`, and r is what the layer before made of the streams that it was given

    As what is read of the new streams is known before they are, one pass over memory can mix and write, read for the
    next layer and project the next coefficients: `2 n + 2` elements a token and channel in place of `3 n + 2`. (This
    is the mathematics; what is here moves as much as `ManifoldHyperConnection` does, by the same kernels.) The first
    layer reads stream 0, and the weights that the last layer makes put the streams together at the end: no head is
    learned.

    It starts as the residual connection, exactly, for any branch, as `ManifoldHyperConnection` does: the weights that
    a layer makes for the next one favour stream `(layer + 1) % n`.

    Use it to load or train a model as DeepSeek-V4.1 is. As its layers read by what was known one layer earlier, it is
    another function than `ManifoldHyperConnection`, not a faster one.

    A NaN in one stream of a token makes all streams of that token NaN after one layer.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        iterations: of the Sinkhorn normalisation.
        form: `"paper"`, without epsilon; or `"deepseek_v41"`, the code released with DeepSeek-V4.1, which adds 1e-6 to
            what is read and to the Sinkhorn sums, and starts with a random `projection` of standard deviation 0.02,
            scales of 1 and no bias: not as the residual connection.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.

    Shape:
        `(..., dim) -> (..., dim)`; the state is the streams, `(..., n, dim)`, and the weights, `(..., n)` in float32 at
        least. `projection` is `(2 n + n^2, n dim)`, `bias` `(2 n + n^2,)`, in the order read, write, mix, and `scale`
        `(3,)`.

    Cost:
        `(2 n + n^2)(n dim + 1) + 3` parameters; reads and writes `(2 n + 2) dim` elements per token in the forward pass
        at least, with one pass.

    Raises:
        UsageError: if `streams` is below 2, `iterations` below 1 or `form` unknown.

    Example:
        >>> connection, x = SinglePassManifoldHyperConnection(8, streams=4), torch.randn(2, 8)
        >>> y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
        >>> torch.allclose(y, x + x.tanh(), atol=1e-6)
        True

    Source: the report and the code released with DeepSeek-V4.1.
    """

    residual_start = "exact"
    reads_ahead = True

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 4,
        layer: int = 0,
        depth: int = 1,
        iterations: int = 20,
        form: Literal["paper", "deepseek_v41"] = "paper",
        axis: int = -1,
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        name = "SinglePassManifoldHyperConnection"
        if form not in _FORMS:
            raise UsageError(f"{name}: form must be one of {', '.join(_FORMS)}, got {form!r}.")
        require_at_least(name, "iterations", iterations, 1)
        self.make_parameters("birkhoff", iterations, form, _FORMS[form])
        if not self.released:
            self.start_as_residual()

    def start_as_residual(self) -> None:
        """Let the next layer read a mean that favours stream `(layer + 1) % n`, write to all, mix next to nothing.

        Raises:
            UsageError: if `form` has an epsilon: the rows of its mixing matrix do not sum to 1.
        """
        self.require_exact_rows()
        self.start_at_identity(self.favoured(self.layer + 1).logit())

    def begin(self, x: Tensor) -> HandedStreams:
        """Copy the input into every stream; stream 0 is read first.

        Raises:
            UsageError: if it is not of floating point, or its width is not `dim`.
        """
        streams = self.copied(x)
        first = torch.eye(self.streams, dtype=coefficient_dtype(streams), device=streams.device)[0]
        return streams, first.expand(streams.shape[:-1])

    def read(self, state: HandedStreams) -> Tensor:
        """Return the sum of the streams, weighted as the layer before said."""
        streams, weights = self._require_handed(state)
        return self.combine(weights.to(coefficient_dtype(streams)), streams)

    def write(self, state: HandedStreams, out: Tensor) -> HandedStreams:
        """Mix the streams, and add the branch's output to each, weighted; say how the next layer reads them."""
        streams, _ = self._require_handed(state)
        coefficients = self.coefficients(streams)
        return self.update(coefficients, streams, out), coefficients.read

    def one_pass(self) -> Form:
        """Return the operation's form."""
        return Form(True, self.iterations, self.epsilon, self.epsilon, 0.0, self.norm_epsilon, self.released)

    def open(self, state: HandedStreams | Unwritten) -> tuple[Tensor, Coefficients, Tensor]:
        """Return what the branch reads, the coefficients, and the streams to write to."""
        form = self._read_at_once()
        if form is None:
            if isinstance(state, Unwritten):
                handed, mix, write = state.coefficients
                state = write_streams(state.streams, state.out, write, mix), handed
            return self.read(state), self.coefficients(state[0]), state[0]
        own = self.projection, self.scale, self.bias
        if isinstance(state, Unwritten):
            handed, mix, write = state.coefficients
            found = write_and_read_handed(state.streams, state.out, write, mix, handed, own, form)
        else:
            streams, handed = state
            found = read_handed(streams, handed.to(coefficient_dtype(streams)), *own, form)
        x, read, write, mix, streams = found
        return self.to_axis(x), Coefficients(read, mix, write), streams

    def require_state(self, state: Any) -> HandedStreams | Unwritten:
        """Return the pair, or streams that nobody has written to yet."""
        return state if isinstance(state, Unwritten) else self._require_handed(state)

    def left(self, streams: Tensor, coefficients: Coefficients) -> HandedStreams:
        """Return the streams, and the weights by which the next layer reads them."""
        return streams, coefficients.read

    def end(self, state: HandedStreams) -> Tensor:
        """Return the sum of the streams, weighted as the last layer said."""
        return self.read(state)

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def _require_handed(self, state: HandedStreams) -> HandedStreams:
        if not (isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, Tensor) for part in state)):
            raise UsageError(
                f"SinglePassManifoldHyperConnection: the state must be a pair, streams and weights, got "
                f"{type(state).__name__}. Make it with begin(x)."
            )
        streams, weights = self.require_streams(state[0]), state[1]
        if weights.shape != streams.shape[:-1]:
            raise UsageError(
                f"SinglePassManifoldHyperConnection: there must be one weight for each stream of each token, "
                f"{tuple(streams.shape[:-1])}, got {tuple(weights.shape)}. Make the state with begin(x)."
            )
        return streams, weights
