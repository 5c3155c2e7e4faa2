"""Value residual connections: every attention mixes its values with those of the first attention of the network."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import Connection, Outputs, ParameterRule, require_input

__all__ = ["ValueResidual"]

ValueState: TypeAlias = tuple[Tensor, Tensor | None]  # the stream; the values of the first attention, once it has run


@final
class ValueResidual(Connection):
    """The stream is residual, and each attention sees the values of the first one beside its own.

    `x' = x + f(x)`, where an attention's values are `v' = a v_1 + b v`, with v its own and v_1 those of the first one

    Use it in transformers in which later layers lose what the tokens were: v_1 is next to the embedding. It costs
    nearly nothing, and any attention that keeps the width of its values can take part. Elsewhere it is `Residual`.

    A branch with values says so by an attribute `mixes_values = True`. It is called with the keyword `mix_values`, a
    function from values to values of the same shape, which it applies once to its values after their projection;
    `levada.blocks.Attention` does. A branch without the attribute is called as ever: it is residual, and values pass it
    untouched. A wrapper around an attention, such as an `nn.Sequential`, has to say and do the same, or is refused; an
    attention that is not to take part says so by `mixes_values = False`. If no branch at all takes part, so that
    what is learned has no gradient, a warning says so at the first call.

    Args:
        dim: width of the stream.
        weights: a and b at the start. `(0.0, 1.0)` starts as the residual connection, exactly.
        form: `"learned"`, two numbers for each attention but the first; `"fixed"`, a and b stay what they are, as in
            the paper's code; `"gated"`, a = 1 - b and b = sigmoid(w), one number for each attention but the first.
        period: number of layers from one attention to the next, 2 where attention and feed-forward take turns. Only
            these layers have numbers of their own to learn.
        first: index of the first layer with attention.
        layer: index of the layer, counted from 0.
        depth: number of layers.

    Shape:
        `(..., dim) -> (..., dim)`; the state is the stream and v_1, or None before the first attention. `first_weight`
        (a) and `own_weight` (b), or `gate` (w), are `(1,)`.

    Cost:
        2 parameters, none in layer 0 and in layers without attention, half as many if gated and none if fixed; reads
        `4 dim` and writes `2 dim` elements per token in the forward pass around an attention whose values are of width
        `dim`, and half of it around others. The state carries v_1 to the end.

    Raises:
        UsageError: if an option does not fit; if a branch mixes values in a layer that `first` and `period` leave out,
            does not apply `mix_values`, hides an attention that does, or has values of another shape than v_1;
            if the input is not of floating point or its width is not `dim`.

    Example:
        >>> import levada
        >>> net = levada.networks.transformer(6, 32, vocabulary=100, connection=ValueResidual)
        >>> [name for name, _ in net.named_parameters() if name.endswith("own_weight")]
        ['stack.layers.2.connection.own_weight', 'stack.layers.4.connection.own_weight']

    Source: Zhou, Wu, Jiang, Obeid and Lan, 2024, arXiv 2410.17897, and their code (fixed, 0.5 and 0.5). Learned weights
    as in the code of modded-nanogpt (Jordan et al.), where a + b = 1; a gate as in x-transformers, there for each token
    and head.
    """

    residual_start = "exact"
    rules: ClassVar = {name: ParameterRule(decay=False) for name in ("first_weight", "own_weight", "gate")}

    def __init__(
        self,
        dim: int,
        *,
        weights: tuple[float, float] = (0.5, 0.5),
        form: Literal["learned", "fixed", "gated"] = "learned",
        period: int = 2,
        first: int = 0,
        layer: int = 0,
        depth: int = 1,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_at_least("ValueResidual", "period", period, 1)
        require_at_least("ValueResidual", "first", first, 0)
        if form not in ("learned", "fixed", "gated"):
            raise UsageError(f"ValueResidual: form must be 'learned', 'fixed' or 'gated', got {form!r}.")
        a, b = _two_numbers(weights)
        if form == "gated" and not (0 < b < 1 and math.isclose(a + b, 1)):
            raise UsageError(
                f"ValueResidual: with form='gated' weights must be positive and sum to 1, got {weights}. "
                "Change them, or pass form='learned'."
            )
        self.weights, self.form = (a, b), form
        self.attends = layer >= first and (layer - first) % period == 0
        self.learns = form != "fixed" and first + period < depth  # in some layer; until it was said that it does not
        self.first_weight: nn.Parameter | None = None
        self.own_weight: nn.Parameter | None = None
        self.gate: nn.Parameter | None = None
        if self.attends and layer > first and form == "learned":
            self.first_weight = nn.Parameter(torch.full((1,), a))
            self.own_weight = nn.Parameter(torch.full((1,), b))
        if self.attends and layer > first and form == "gated":
            self.gate = nn.Parameter(torch.tensor([b], dtype=torch.float64).logit().float())

    def start_as_residual(self) -> None:
        """Mix none of the first values into an attention's own.

        Raises:
            UsageError: if the weights are a gate's, which does not close, or fixed at others than 0 and 1.
        """
        if self.form == "gated" or (self.form == "fixed" and self.weights != (0.0, 1.0)):
            raise UsageError(
                f"ValueResidual: with form={self.form!r} and weights={self.weights} first values are always mixed in, "
                "so that a residual model that gets it computes another function. Use form='learned'."
            )
        if self.first_weight is not None and self.own_weight is not None:
            nn.init.zeros_(self.first_weight)
            nn.init.ones_(self.own_weight)

    def begin(self, x: Tensor) -> ValueState:
        """Return `x` as the stream, and no values yet.

        Raises:
            UsageError: if it is not of floating point, or its width is not `dim`.
        """
        return require_input("ValueResidual", x, self.dim), None

    def read(self, state: ValueState) -> Tensor:
        """Return the stream."""
        return state[0]

    def write(self, state: ValueState, out: Tensor) -> ValueState:
        """Add the branch's output to the stream."""
        return state[0] + out, state[1]

    def end(self, state: ValueState) -> Tensor:
        """Return the stream; warn once if no branch had values, and there are numbers that mix them."""
        if state[1] is None and self.learns and not torch.compiler.is_compiling():
            self.learns = False
            warnings.warn(
                "ValueResidual: no branch of the network mixed values, so that it is residual and its numbers learn "
                "nothing. Give attentions mixes_values = True and let them apply mix_values, or use Residual.",
                stacklevel=2,
            )
        return state[0]

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def advance(self, state: ValueState, branch: nn.Module, *args: Any, **kwargs: Any) -> ValueState | Outputs:
        """Take one layer's step; where the branch has values, mix them, or keep them if they are the first."""
        if not getattr(branch, "mixes_values", False):
            if self.attends and any(getattr(module, "mixes_values", False) for module in branch.modules()):
                raise UsageError(
                    f"ValueResidual: {type(branch).__name__}, the branch of layer {self.layer}, holds an attention "
                    "that mixes values and does not mix them itself. Give it mixes_values = True and a forward that "
                    "takes mix_values and hands it on."
                )
            return super().advance(state, branch, *args, **kwargs)
        if not self.attends:
            raise UsageError(
                f"ValueResidual: the branch of layer {self.layer} mixes values, and the layers with attention are said "
                "to be others. Pass first=, the index of the first, and period=, the number of layers to the next."
            )
        shared = state[1]
        held: list[Tensor | None] = []

        def mix_values(values: Tensor) -> Tensor:
            if not held:  # a branch that is run again in the backward pass must leave nothing behind
                held.append(values)
            return values if shared is None else self.mix(shared, values)

        result = super().advance(state, branch, *args, mix_values=mix_values, **kwargs)
        if not held:
            raise UsageError(
                f"ValueResidual: a branch with mixes_values = True must apply mix_values to its values, and "
                f"{type(branch).__name__} of layer {self.layer} does not. Call it once, after the projection."
            )
        values, held[0] = held[0], None
        if shared is not None:
            return result
        if isinstance(result, Outputs):
            return Outputs((result.state[0], values), result.extra)
        return result[0], values

    def mix(self, shared: Tensor, values: Tensor) -> Tensor:
        """Return `a v_1 + b v`, in the type of v.

        Args:
            shared: the values of the first attention, v_1.
            values: those of this layer's, v.
        """
        if shared.shape != values.shape:
            raise UsageError(
                f"ValueResidual: the values of all attentions must have one shape, and those of layer {self.layer} "
                f"have {tuple(values.shape)}, the first ones {tuple(shared.shape)}. Use as many heads of one width."
            )
        if self.gate is not None:
            return torch.lerp(shared.to(self.gate.dtype), values.to(self.gate.dtype), self.gate.sigmoid()).to(
                values.dtype
            )
        a: Tensor | float = self.weights[0] if self.first_weight is None else self.first_weight
        b: Tensor | float = self.weights[1] if self.own_weight is None else self.own_weight
        return (a * shared + b * values).to(values.dtype)

    def extra_repr(self) -> str:
        """Say the width, and the form if it is not the usual one."""
        return f"dim={self.dim}" + ("" if self.form == "learned" else f", form={self.form!r}, weights={self.weights}")


def _two_numbers(weights: Any) -> tuple[float, float]:
    try:
        a, b = (float(weight) for weight in weights)
    except (TypeError, ValueError):
        a = b = math.nan
    if not (math.isfinite(a) and math.isfinite(b)):
        raise UsageError(
            f"ValueResidual: weights must be two numbers, of the first values and of the layer's own, got {weights!r}."
        )
    return a, b
