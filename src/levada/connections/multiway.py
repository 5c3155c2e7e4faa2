"""Dynamic dense connections: each input of a branch is a combination of all outputs so far, by token."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.connection import Outputs, ParameterRule
from levada.connections.history import DepthHistory, Sources
from levada.connections.streams import coefficient_dtype
from levada.ops import sum_depth
from levada.ops._precision import full_precision

__all__ = ["DynamicCombination", "MultiwayDynamicDense"]


@final
class DynamicCombination(nn.Module):
    """Combinations of sources, with weights that follow the last one.

    `y_c = sum_j w_cj v_j;  w = static + up gelu(down v_last / rms(v_last))`

    Args:
        dim: width of a source.
        num_sources: number of sources, m.
        ways: number of combinations, C.
        epsilon: what is added to the mean square of the last source.

    Shape:
        m sources `(..., dim) -> ` C tensors `(..., dim)`. `down` is `(hidden, dim)` with `hidden` the next multiple of
        64 from `C m`, `up` `(C m, hidden)`, `static` `(C, m)`.

    Cost:
        `hidden (dim + C m) + C m` parameters; reads `m dim` and writes `C dim` elements per token at least.

    Example:
        >>> combination, (a, b) = DynamicCombination(4, num_sources=2, ways=3), torch.randn(2, 5, 4)
        >>> [torch.equal(y, b) for y in combination((a, b))]
        [True, True, True]

    Source: Xiao et al., 2025, arXiv 2502.12170 (MUDDFormer).
    """

    rules: ClassVar = {
        "down": ParameterRule(decay=True),
        "up": ParameterRule(decay=True),
        "static": ParameterRule(decay=False),
    }

    def __init__(self, dim: int, *, num_sources: int, ways: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon
        hidden = 64 * math.ceil(ways * num_sources / 64)
        self.down = nn.Parameter(torch.randn(hidden, dim) / math.sqrt(dim))
        self.up = nn.Parameter(torch.zeros(ways * num_sources, hidden))
        self.static = nn.Parameter(torch.zeros(ways, num_sources))
        self.start_as_residual()

    def start_as_residual(self) -> None:
        """Give the last source, whatever it is."""
        with torch.no_grad():
            self.up.zero_()
            self.static.zero_()
            self.static[:, -1] = 1.0

    def forward(self, sources: Sources) -> tuple[Tensor, ...]:
        """Return the combinations, in the sources' type."""
        last = sources[-1].to(coefficient_dtype(sources[-1]))
        with full_precision(last):
            normal = last * torch.rsqrt(last.square().mean(-1, keepdim=True) + self.epsilon)
            hidden = functional.gelu(functional.linear(normal, self.down.to(last.dtype)))
            dynamic = functional.linear(hidden, self.up.to(last.dtype))
        weights = self.static.to(last.dtype) + torch.unflatten(dynamic, -1, tuple(self.static.shape))
        return tuple(y.to(sources[-1].dtype) for y in sum_depth(weights, sources))


@final
class MultiwayDynamicDense(DepthHistory):
    """Each input of a branch, and the residual, is a combination of all outputs so far, with weights for each token.

    `x_{l+1} = r_l + f(u_l1, ..., u_lk)`, where `u_lc = sum_{j<=l} w_lcj x_j`, `r_l` likewise, and
    `w_l = static_l + up_l gelu(down_l x_l / rms(x_l))`

    What queries, keys, values and the residual need of earlier layers is not the same: with `inputs=3` an attention
    branch `f(query_input, key_input, value_input)` gets three combinations. With one input it is a dynamic dense
    connection for any branch. In its paper a network of 2.8 billion parameters reaches the loss of one of 6.9 billion.

    It starts as the residual connection, exactly: `up` is zero and each combination takes the last output alone.

    Use it for transformers whose queries, keys and values may come from different depths. Every layer reads all outputs
    before it, and the weights' parameters grow with depth: where that is too much, use `AttentionResidual` with blocks.

    Args:
        dim: width of the stream.
        inputs: number of inputs that a branch takes.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        epsilon: what is added to the mean square of the last output.

    Shape:
        `(..., dim) -> (..., dim)`; the state is a tuple of outputs `(..., dim)`, channels last. Layer 0 has no
        parameters, the others a `DynamicCombination` of `inputs + 1` ways; one with one way follows the last layer.

    Cost:
        `hidden (dim + C m) + C m` parameters, none in layer 0, for C = `inputs + 1` ways and m = `layer + 1` outputs,
        with hidden = `64 ceil(C m / 64)`; reads `(m + 2) dim` and writes `(C + 1) dim` elements per token in the
        forward pass at least.

    Raises:
        UsageError: if `inputs` is below 1, or more than a branch takes; if the input is not of floating point or its
            width is not `dim`.

    Example:
        >>> first, second = (MultiwayDynamicDense(4, layer=i, depth=2) for i in range(2))
        >>> x = torch.randn(3, 4)
        >>> state = second.advance(first.advance(first.begin(x), nn.Tanh()), nn.Tanh())
        >>> len(state), torch.equal(state[1], x + x.tanh())
        (3, True)

    Source: Xiao et al., 2025, arXiv 2502.12170 (MUDDFormer).
    """

    residual_start = "exact"

    def __init__(
        self, dim: int, *, inputs: int = 1, layer: int = 0, depth: int = 1, axis: int = -1, epsilon: float = 1e-6
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, axis=axis)
        require_at_least("MultiwayDynamicDense", "inputs", inputs, 1)
        require_at_least("MultiwayDynamicDense", "epsilon", epsilon, 0.0)
        self.inputs, self.epsilon = inputs, epsilon
        self.combination: DynamicCombination | None = None
        if layer:
            self.combination = DynamicCombination(dim, num_sources=layer + 1, ways=inputs + 1, epsilon=epsilon)

    def start_as_residual(self) -> None:
        """Take the last output alone, for each input and the residual."""
        if self.combination is not None:
            self.combination.start_as_residual()

    def begin(self, x: Tensor) -> Sources:
        """Return the input as the first output."""
        return (self.first_source(x),)

    def combined(self, state: Sources) -> tuple[Tensor, ...]:
        """Return the inputs of the branch and the residual, channels last."""
        state = self.require_sources(state)
        return state * (self.inputs + 1) if self.combination is None else self.combination(state)

    def read(self, state: Sources) -> Any:
        """Return the branch's input; a tuple if it takes several."""
        inputs = tuple(self.to_axis(x) for x in self.combined(state)[:-1])
        return inputs[0] if self.inputs == 1 else inputs

    def write(self, state: Sources, out: Tensor) -> Sources:
        """Add the branch's output to the residual, as one more output."""
        return (*state, self.combined(state)[-1] + self.from_axis(out))

    def advance(self, state: Sources, branch: nn.Module, *args: Any, **kwargs: Any) -> Sources | Outputs:
        """Take one layer's step, with the combinations made once."""
        *inputs, residual = self.combined(state)
        given = [self.to_axis(x) for x in inputs]
        out = self.called(branch, given, args, kwargs)
        first = self.first_of(out) if isinstance(out, tuple) else out
        if first.shape != given[0].shape:
            self.require_fit(given[0], first)
        new = (*state, residual + self.from_axis(first))
        return Outputs(new, out[1:]) if isinstance(out, tuple) else new

    def end(self, state: Sources) -> Sources:  # type: ignore[override]
        """Return all outputs, which the module that follows combines."""
        return self.require_sources(state)

    def output(self, dim: int) -> nn.Module:
        """Return the combination that ends the network."""
        return _LastCombination(dim, num_sources=self.depth + 1, axis=self.axis, epsilon=self.epsilon)


@final
class _LastCombination(nn.Module):
    """One combination of all outputs, with the channels at `axis`."""

    def __init__(self, dim: int, *, num_sources: int, axis: int, epsilon: float) -> None:
        super().__init__()
        self.axis = axis
        self.combination = DynamicCombination(dim, num_sources=num_sources, ways=1, epsilon=epsilon)

    def forward(self, sources: Sources) -> Tensor:
        y: Tensor = self.combination(sources)[0]
        return y if self.axis == -1 else y.movedim(-1, self.axis)
