"""Manifold-constrained hyper-connections: several streams, mixed at each layer by a matrix on a manifold."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule
from levada.connections.manifolds import MANIFOLDS
from levada.connections.streams import Coefficients, MultiStream, Streams, coefficient_dtype
from levada.ops import sinkhorn
from levada.ops._precision import full_precision
from levada.ops.manifold import Form

__all__ = ["ManifoldHyperConnection", "ManifoldStreams", "Published", "StreamHead", "project_features"]

_RULES = {
    "projection": ParameterRule(decay=True, optimizer="muon"),
    "bias": ParameterRule(decay=False),
    "scale": ParameterRule(decay=False),
}


class Published(NamedTuple):
    """What the published forms differ in.

    Attributes:
        epsilon: added to the weights that read, and in the Sinkhorn iterations.
        norm_epsilon: added to the mean square of the features.
        released: whether it starts as in released code, which keeps the matrix that mixes transposed.
        learned_head: whether the streams are put together by learned weights at the end.
    """

    epsilon: float = 0.0
    norm_epsilon: float = 1e-6
    released: bool = False
    learned_head: bool = False


_FORMS = {
    "paper": Published(),
    "deepseek_v4": Published(epsilon=1e-6, released=True, learned_head=True),
    "glm5_next": Published(epsilon=1e-6, norm_epsilon=1e-5, released=True),
}

_OFF_DIAGONAL = -6.0  # at 4 streams 60 such layers in a row still tell them apart, and the logits still learn


def project_features(state: Tensor, projection: Tensor, epsilon: float) -> Tensor:
    """Project the features of all streams together, divided by their root mean square.

    The division follows the product, so that the streams are read once.

    Args:
        state: the streams, `(..., n, dim)`.
        projection: `(num_logits, n dim)`.
        epsilon: what is added to the mean square.
    """
    with full_precision(state):
        features = state.flatten(-2).to(coefficient_dtype(state))
        inverse = torch.rsqrt(features.square().mean(-1, keepdim=True) + epsilon)
        return nn.functional.linear(features, projection.to(features.dtype)) * inverse


@final
class StreamHead(nn.Module):
    """Put the streams together by weights that depend on them.

    `y = sum_j w_j x_j;  w = sigmoid(scale (projection vec(x)) / rms(vec(x)) + bias) + epsilon`

    What follows the last layer of DeepSeek-V4's hyper-connections, before the final normalisation.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        axis: axis of the channels in the output.
        epsilon: what is added to each weight.
        norm_epsilon: what is added to the mean square of the features.

    Shape:
        `(..., n, dim) -> (..., dim)`, or with the channels at `axis`. `projection` is `(n, n dim)`, `bias` `(n,)`,
        `scale` `(1,)`.

    Cost:
        `n^2 dim + n + 1` parameters, once; reads `n dim` and writes `dim` elements per token at least.

    Example:
        >>> head = StreamHead(8, streams=4)
        >>> head(torch.zeros(2, 4, 8)).shape
        torch.Size([2, 8])

    Source: the code released with DeepSeek-V4.
    """

    rules: ClassVar = _RULES

    def __init__(
        self, dim: int, *, streams: int = 4, axis: int = -1, epsilon: float = 1e-6, norm_epsilon: float = 1e-6
    ) -> None:
        super().__init__()
        require_at_least("StreamHead", "dim", dim, 1)
        require_at_least("StreamHead", "streams", streams, 1)
        self.axis, self.epsilon, self.norm_epsilon = axis, epsilon, norm_epsilon
        self.projection = nn.Parameter(0.02 * torch.randn(streams, streams * dim))
        self.bias = nn.Parameter(torch.zeros(streams))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, state: Tensor) -> Tensor:
        """Return the weighted sum of the streams, in their type."""
        logits = project_features(state, self.projection, self.norm_epsilon)
        scale, bias = self.scale.to(logits.dtype), self.bias.to(logits.dtype)
        weights = torch.sigmoid(logits * scale + bias) + self.epsilon
        y = (weights.unsqueeze(-1) * state).sum(-2).to(state.dtype)
        return y if self.axis == -1 else y.movedim(-1, self.axis)

    def extra_repr(self) -> str:
        """Say the width and the number of streams."""
        streams = self.bias.numel()
        return f"dim={self.projection.shape[1] // streams}, streams={streams}"


class ManifoldStreams(Streams):
    """Streams whose coefficients are projected from all of them together, the mixing matrix being on a manifold.

    `a | b | c = scale (projection vec(x)) / rms(vec(x)) + bias`, `read = sigmoid(a)`, `write = 2 sigmoid(b)` and
    `mix = manifold(c)`
    """

    rules: ClassVar = _RULES

    def make_parameters(self, manifold: str, iterations: int, form: str, differences: Published) -> None:
        """Make `projection`, `bias` and `scale`, which a released form starts at random, and others at zero."""
        streams = self.streams
        self.manifold, self.iterations, self.form = manifold, iterations, form
        self.epsilon, self.norm_epsilon, self.released, _ = differences
        num_logits = streams**2 if manifold == "birkhoff" else MANIFOLDS[manifold].num_logits(streams)
        self.sizes = [streams, streams, num_logits]
        self.projection = nn.Parameter(torch.zeros(sum(self.sizes), streams * self.dim))
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes)))
        self.scale = nn.Parameter(torch.full((3,), 1.0 if self.released else 0.01))
        if self.released:
            nn.init.normal_(self.projection, std=0.02)

    def start_at_identity(self, read: Tensor) -> None:
        """Read with given logits, write to all, mix next to nothing; nothing follows the input."""
        n = self.streams
        if self.manifold == "birkhoff":
            mix = _OFF_DIAGONAL * (1 - torch.eye(n)).flatten()
        else:
            mix = MANIFOLDS[self.manifold].initial_logits(n).flatten()
        with torch.no_grad():
            self.projection.zero_()
            self.bias.copy_(torch.cat([read.double(), torch.zeros(n), mix.double()]))

    def require_exact_rows(self) -> None:
        """Raise if `form` has an epsilon: the rows of its mixing matrix do not sum to 1."""
        if self.epsilon:
            raise UsageError(
                f"{type(self).__name__}: with form={self.form!r} the rows of the mixing matrix sum to "
                f"1 - {self.epsilon:g}, so that a residual model that gets it computes another function. "
                "Use form='paper'."
            )

    def coefficients(self, state: Tensor) -> Coefficients:
        """Return the weights that each token's streams give, in float32 (float64 for a float64 state)."""
        logits = project_features(state, self.projection, self.norm_epsilon)
        scales = self.scale.to(logits.dtype).unbind()
        biases = torch.split(self.bias.to(logits.dtype), self.sizes)
        parts = zip(torch.split(logits, self.sizes, -1), scales, biases, strict=True)
        read, write, mix = (part * scale + bias for part, scale, bias in parts)
        read = torch.sigmoid(read)
        if self.epsilon:
            read = read + self.epsilon
        return Coefficients(read, self._mix(mix), 2 * torch.sigmoid(write))

    def _mix(self, logits: Tensor) -> Tensor:
        n = self.streams
        if self.manifold != "birkhoff":
            with full_precision(logits):  # its matrix products would run in bfloat16
                return MANIFOLDS[self.manifold].project(logits, n)
        logits = torch.unflatten(logits, -1, (n, n))
        # Released code normalises rows first, columns last, and applies the transpose.
        return sinkhorn(logits.mT if self.released else logits, self.iterations, epsilon=self.epsilon)

    def extra_repr(self) -> str:
        """Say the width, the number of streams and the options that are not the usual ones."""
        unusual = [f"manifold={self.manifold!r}"] if self.manifold != "birkhoff" else []
        unusual += [f"form={self.form!r}"] if self.form != "paper" else []
        return ", ".join([super().extra_repr(), *unusual])


@final
class ManifoldHyperConnection(ManifoldStreams, MultiStream):
    """Hyper-connections whose streams are mixed by a matrix on a manifold: doubly stochastic, mHC.

    `x'_i = sum_j mix_ij x_j + write_i f(sum_j read_j x_j)`, where
    `a | b | c = scale (projection vec(x)) / rms(vec(x)) + bias`, `read = sigmoid(a)`, `write = 2 sigmoid(b)` and
    `mix = manifold(c)`, by default `sinkhorn(c)`

    Each mixed stream is a convex combination of streams, at any depth, so that what the mixing does to the signal stays
    bounded; hyper-connections without the constraint can grow it a thousandfold. The weights follow each token.

    It starts as the residual connection, exactly, for any branch: `projection` is zero, `scale` 0.01 as published, what
    is read is a mean that favours stream `layer % n` (0.7: a choice, the paper states no biases), each stream gets all
    of the branch and keeps nearly all of itself. The favourite makes the streams differ from the first step on: with
    equal weights they would stay equal for ever. With `manifold="permutations"` it starts as mHC-lite does: it reads
    sigmoid(1) of the layer's own stream and sigmoid(-1) of the others.

    Use it where streams should be mixed in a deep network, or to load a model that was trained with it. Where mixing is
    not needed, `IdentityHyperConnection` does less and keeps the streams apart.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        manifold: where the mixing matrix lies. `"birkhoff"`: doubly stochastic by Sinkhorn iterations, rows exactly and
            columns nearly. `"permutations"`: a mean of all permutations, exact (mHC-lite). `"kronecker"`: a Kronecker
            product of 2 x 2 matrices, exact (KromHC). `"orthogonal"`: by Cayley's transform, so that mixing keeps the
            streams' energy. `"isometric"`: orthogonal with rows and columns that sum to 1, which is levada's own.
            `"spectral"`: rows and columns that sum to 1, spectral norm 1 and entries of any sign, which subtracts
            streams and never amplifies them (sHC).
        iterations: of the Sinkhorn normalisation.
        form: `"paper"`; or, for `"birkhoff"`, the code released with a model, whose weights copy one to one (`fn`,
            `base` and `scale` to `projection`, `bias` and `scale`): `"deepseek_v4"`, with a learned `StreamHead` at the
            end, or `"glm5_next"` (GLM-5.3-Flash), with the mean as in the paper's form. They add 1e-6 to what is read
            and to the Sinkhorn sums, and start with a random `projection` of standard deviation 0.02, scales of 1 and
            no bias: not as the residual connection.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., n, dim)`. `projection` is `(2 n + m, n dim)`, `bias`
        `(2 n + m,)`, in the order read, write, mix, and `scale` `(3,)`, with m the manifold's logits, `n^2` by default.

    Cost:
        `(2 n + m)(n dim + 1) + 3` parameters; reads and writes `(3 n + 2) dim` elements per token in the forward pass
        at least, with two passes: one to read, one to mix and write.
        By default m = `n^2`.

    Raises:
        UsageError: if `streams` is below 2 or not possible for the manifold, an option is unknown, or `iterations` or
            `form` is given for another manifold than `"birkhoff"`.

    Example:
        >>> connection, x = ManifoldHyperConnection(8, streams=4), torch.randn(2, 8)
        >>> y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
        >>> torch.allclose(y, x + x.tanh(), atol=1e-6)
        True

    Source: Xie et al., 2025, arXiv 2512.24880; the code released with DeepSeek-V4; arXiv 2601.05732 (mHC-lite);
    arXiv 2601.21579 (KromHC); Liu, Zhang and Li, 2026, arXiv 2603.20896 (sHC), and the code released with it (s2HC).
    """

    residual_start = "exact"

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 4,
        layer: int = 0,
        depth: int = 1,
        manifold: Literal["birkhoff", "permutations", "kronecker", "orthogonal", "isometric", "spectral"] = "birkhoff",
        iterations: int = 20,
        form: Literal["paper", "deepseek_v4", "glm5_next"] = "paper",
        axis: int = -1,
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        name = "ManifoldHyperConnection"
        for option, value, known in (("manifold", manifold, ["birkhoff", *MANIFOLDS]), ("form", form, [*_FORMS])):
            if value not in known:
                raise UsageError(f"{name}: {option} must be one of {', '.join(known)}, got {value!r}.")
        require_at_least(name, "iterations", iterations, 1)
        if manifold != "birkhoff":
            if form != "paper" or iterations != 20:
                raise UsageError(
                    f"{name}: form and iterations serve manifold='birkhoff' alone, got manifold={manifold!r} with "
                    f"form={form!r} and iterations={iterations}. Leave them out."
                )
            MANIFOLDS[manifold].require(name, streams)
        self.make_parameters(manifold, iterations, form, _FORMS[form])
        if manifold == "permutations":
            self.start_at_identity(torch.where(torch.arange(streams) == layer % streams, 1.0, -1.0))
        elif not self.released:
            self.start_at_identity(self.favoured(layer).logit())

    def one_pass(self) -> Form | None:
        """Return the operation's form for doubly stochastic matrices by Sinkhorn iterations."""
        if self.manifold != "birkhoff":
            return None
        return Form(True, self.iterations, self.epsilon, self.epsilon, 0.0, self.norm_epsilon, self.released)

    def start_as_residual(self) -> None:
        """Read a mean that favours stream `layer % n`, write to all, mix next to nothing; nothing follows the input.

        Raises:
            UsageError: if `form` has an epsilon: the rows of its mixing matrix do not sum to 1.
        """
        self.require_exact_rows()
        self.start_at_identity(self.favoured(self.layer).logit())

    def end(self, state: Tensor) -> Tensor:
        """Return the mean of the streams; or, where a `StreamHead` follows, the streams."""
        return self.require_streams(state) if _FORMS[self.form].learned_head else super().end(state)

    def output(self, dim: int) -> nn.Module:
        """Return a `StreamHead` where the form has one, else the identity."""
        if not _FORMS[self.form].learned_head:
            return nn.Identity()
        return StreamHead(
            dim, streams=self.streams, axis=self.axis, epsilon=self.epsilon, norm_epsilon=self.norm_epsilon
        )
