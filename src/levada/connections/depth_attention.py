"""Attention over depth: a layer reads a weighted mean of what all layers before it returned."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import Outputs, ParameterRule
from levada.connections.history import DepthHistory, Sources
from levada.connections.streams import coefficient_dtype
from levada.ops import attend_depth

__all__ = ["AttentionResidual", "DepthAttention"]


_FORMS = ["paper", "inkling2"]


def _require_options(name: str, scale: str, form: str) -> None:
    if scale not in ("mean", "sum"):
        raise UsageError(f"{name}: scale must be 'mean' or 'sum', got {scale!r}.")
    if form not in _FORMS:
        raise UsageError(f"{name}: form must be one of {', '.join(_FORMS)}, got {form!r}.")
    if form != "paper" and scale != "mean":
        raise UsageError(
            f"{name}: scale='sum' starts as the residual connection, which form={form!r} cannot be: it normalises what "
            "it adds. Leave scale out."
        )


@final
class DepthAttention(nn.Module):
    """A mean of sources whose weights are a softmax over depth.

    `y = s sum_i a_i v_i;  a = softmax_i(query . v_i / rms(v_i))`, with s = 1, or the number of sources

    With `form="inkling2"`, `y = sum_i a_i v_i / rms(v_i)` and `a = softmax_i(query . v_i / (rms(v_i) sqrt(dim)))`.

    Args:
        dim: width of a source.
        num_queries: number of queries, each of which gives a mean of its own.
        axis: axis of the channels in the output.
        scale: what the mean is multiplied by: `"mean"` by 1, `"sum"` by the number of sources.
        form: `"paper"`, or that of the code released with Inkling 2, `"inkling2"`.
        epsilon: what is added to the mean square of a source.

    Shape:
        sources `(..., dim)` each, channels last `-> (..., dim)`, or with the channels at `axis`; a tuple of such where
        there are several queries. `query` is `(dim,)`, or `(num_queries, dim)` for several.

    Cost:
        `num_queries dim` parameters; reads `m dim` and writes `num_queries dim` elements per token for m sources at
        least.

    Raises:
        UsageError: if `num_queries` is below 1, `scale` or `form` is unknown, or `scale="sum"` is given for
            `form="inkling2"`.

    Example:
        >>> sources = torch.zeros(3, 4), torch.full((3, 4), 2.0)
        >>> DepthAttention(4)(sources).unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
        >>> DepthAttention(4, form="inkling2")(sources).unique()
        tensor([0.5000], grad_fn=<Unique2Backward0>)

    Source: Kimi team, 2026, arXiv 2603.15031; the code released with Inkling 2 in transformers (`inkling2`).
    """

    rules: ClassVar = {"query": ParameterRule(decay=False)}

    def __init__(
        self,
        dim: int,
        *,
        num_queries: int = 1,
        axis: int = -1,
        scale: Literal["mean", "sum"] = "mean",
        form: Literal["paper", "inkling2"] = "paper",
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        require_at_least("DepthAttention", "num_queries", num_queries, 1)
        _require_options("DepthAttention", scale, form)
        self.axis, self.scale, self.form, self.epsilon = axis, scale, form, epsilon
        self.query = nn.Parameter(torch.zeros(dim) if num_queries == 1 else torch.zeros(num_queries, dim))

    def forward(self, sources: Sources) -> Tensor | tuple[Tensor, ...]:
        """Return the weighted mean of the sources, in their type; a tuple of means for several queries."""
        query = self.query.to(coefficient_dtype(sources[0])).view(-1, self.query.shape[-1])
        normalise = self.form == "inkling2"
        if normalise:
            query = query / math.sqrt(query.shape[-1])
        factor = len(sources) if self.scale == "sum" else 1
        means = attend_depth(query, sources, epsilon=self.epsilon, factor=factor, normalise=normalise)
        means = tuple(y.to(sources[0].dtype) for y in means)
        if self.axis != -1:
            means = tuple(y.movedim(-1, self.axis) for y in means)
        return means[0] if self.query.ndim == 1 else means

    def extra_repr(self) -> str:
        """Say the width, and the options that are not the usual ones."""
        unusual = [] if self.query.ndim == 1 else [f"num_queries={len(self.query)}"]
        unusual += [] if self.form == "paper" else [f"form={self.form!r}"]
        return ", ".join([f"dim={self.query.shape[-1]}", *unusual, f"scale={self.scale!r}"])


@final
class AttentionResidual(DepthHistory):
    """A layer reads a mean of the input and all layers' outputs, weighted by a softmax over depth.

    `u_l = sum_{i<=l} a_i v_i`, where `a = softmax_i(query_l . v_i / rms(v_i))`, `v_0 = x` and `v_{l+1} = f_l(u_l)`

    A residual stream is the sum of all outputs with equal weights, in which each layer's share falls with depth; here a
    layer chooses by content what it reads, and the magnitude of the stream does not grow. With `block_size` S the
    outputs of S layers are summed to one source, and the running sum of the current block is the last source: memory
    then grows with depth / S, and about 8 blocks were as good as all layers.

    It starts with the query at zero: a uniform mean, which is the residual stream divided by the number of sources. A
    branch that begins with a normalisation then computes what it does behind a residual connection, up to the
    normalisation's epsilon. With `scale="sum"`, which is levada's and not the paper's, the mean is multiplied by the
    number of sources: it starts as the residual connection exactly, for any branch.

    As released with Inkling 2 (`form="inkling2"`), the sources are normalised in the mean too,
    `u_l = sum_i a_i v_i / rms(v_i)`, and the scores divided by `sqrt(dim)`. Each source then has the same say, whatever
    its magnitude, so that no query makes it the residual connection. Its attention over all tokens reads with a query
    each for queries, keys and values: with `inputs=3` a branch `f(query_input, key_input, value_input)` gets three
    means. For a number that differs by layer, give `Stack` a function that makes each layer's connection.

    The state is a tuple that grows: `Stack(compile=True)` compiles a layer for each number of sources.

    Use it in deep pre-norm transformers whose late layers should find early outputs by content, with `block_size` such
    that there are about 8 blocks. With one block a layer each layer reads all outputs before it, which takes the more
    time the deeper it is.

    Args:
        dim: width of the stream.
        block_size: number of layers whose outputs are summed to one source.
        inputs: number of inputs that a branch takes.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        scale: `"mean"`, the paper's, or `"sum"`.
        form: `"paper"`; or the code released with a model, whose weights copy one to one: `"inkling2"`. Both add 1e-6
            to the mean square of a source.

    Shape:
        `(..., dim) -> (..., dim)`; the state is a tuple of `(..., dim)`, channels last. `attention.query` is `(dim,)`,
        or `(inputs, dim)` for several; layer 0, which has one source, has none, and all its inputs are that source. A
        `DepthAttention` of its own follows the last layer.

    Cost:
        `inputs dim` parameters, none in layer 0, and `dim` at the end; reads `(ceil(layer / block_size) + 1) dim` and
        writes `inputs dim` elements per token in the forward pass at least, and `3 dim` more in a layer that opens no
        block.

    Raises:
        UsageError: if `block_size` or `inputs` is below 1, `scale` or `form` is unknown, or `scale="sum"` is given for
            `form="inkling2"`; if a branch takes fewer inputs; if the input is not of floating point or its width is not
            `dim`.

    Example:
        >>> connection, x = AttentionResidual(4), torch.ones(1, 4)
        >>> state = connection.advance(connection.begin(x), nn.Identity())
        >>> connection.output(4)(connection.end(state)).detach()
        tensor([[1., 1., 1., 1.]])

    Source: Kimi team, 2026, arXiv 2603.15031; the code released with Inkling 2 in transformers (`inkling2`).
    """

    residual_start = "normalised"

    def __init__(
        self,
        dim: int,
        *,
        block_size: int = 1,
        inputs: int = 1,
        layer: int = 0,
        depth: int = 1,
        axis: int = -1,
        scale: Literal["mean", "sum"] = "mean",
        form: Literal["paper", "inkling2"] = "paper",
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, axis=axis)
        name = "AttentionResidual"
        require_at_least(name, "block_size", block_size, 1)
        require_at_least(name, "inputs", inputs, 1)
        _require_options(name, scale, form)
        self.block_size, self.inputs, self.scale, self.form = block_size, inputs, scale, form
        self.opens_block = layer % block_size == 0
        # The first layer has one source to choose from.
        self.attention: DepthAttention | None = None
        if layer:
            self.attention = DepthAttention(dim, num_queries=inputs, axis=axis, scale=scale, form=form)

    def start_as_residual(self) -> None:
        """Set the queries to zero.

        Raises:
            UsageError: if `form` normalises what it adds.
        """
        if self.form != "paper":
            raise UsageError(
                f"AttentionResidual: form={self.form!r} gives each source the same magnitude, so that a residual model "
                "that gets it computes another function. Use form='paper'."
            )
        if self.attention is not None:
            nn.init.zeros_(self.attention.query)

    def begin(self, x: Tensor) -> Sources:
        """Return the input as the first source."""
        return (self.first_source(x),)

    def read(self, state: Sources) -> Any:
        """Return the mean of the sources; a tuple of means if the branch takes several inputs."""
        sources = self.require_sources(state)
        if self.attention is not None:
            return self.attention(sources)
        x = self.to_axis(sources[0])
        return x if self.inputs == 1 else (x,) * self.inputs

    def write(self, state: Sources, out: Tensor) -> Sources:
        """Add a source, or add to the sum of the current block."""
        out = self.from_axis(out)
        if self.opens_block:
            return (*self.require_sources(state), out)
        return (*self.require_sources(state)[:-1], state[-1] + out)

    def advance(self, state: Sources, branch: nn.Module, *args: Any, **kwargs: Any) -> Sources | Outputs:
        """Take one layer's step; a branch of several inputs is given one mean for each."""
        if self.inputs == 1:
            return super().advance(state, branch, *args, **kwargs)
        given = self.read(state)
        out = self.called(branch, given, args, kwargs)
        first = self.first_of(out) if isinstance(out, tuple) else out
        if first.shape != given[0].shape:
            self.require_fit(given[0], first)
        new = self.write(state, first)
        return Outputs(new, out[1:]) if isinstance(out, tuple) else new

    def end(self, state: Sources) -> Sources:  # type: ignore[override]
        """Return all sources, which the module that follows puts together."""
        return self.require_sources(state)

    def output(self, dim: int) -> nn.Module:
        """Return the `DepthAttention` that puts all sources together."""
        return DepthAttention(dim, axis=self.axis, scale=self.scale, form=self.form)

    def extra_repr(self) -> str:
        """Say the width, and the options that are not the usual ones."""
        unusual = [] if self.inputs == 1 else [f"inputs={self.inputs}"]
        unusual += [] if self.form == "paper" else [f"form={self.form!r}"]
        return ", ".join([super().extra_repr(), *unusual])
