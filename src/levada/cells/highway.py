"""Recurrent highway networks: several layers between one time step and the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.cells.blockwise import asked_for_more, blocks_of, fits, gradients_again
from levada.cells.cell import Cell, State, require_finite
from levada.ops._products import add_product, product_into

__all__ = ["RecurrentHighway"]


@final
class RecurrentHighway(Cell):
    r"""A highway network of some layers is gone through in each time step; the input enters its first.

    $$s_l = t_l \tanh(W_H x\,[l = 1] + R_{H,l} s_{l-1} + b_{H,l}) + (1 - t_l)\, s_{l-1}, \qquad
    t_l = \sigma(W_T x\,[l = 1] + R_{T,l} s_{l-1} + b_{T,l})$$

    with $s_0$ the state before the step and $s_L$ the state after it. A gradient over $T$ steps goes through $T L$
    layers, each of which carries at first: the transition may be deep and the memory long.

    Args:
        dim_in: width of the input.
        dim: width of the state.
        depth: $L$, layers in each time step.
        transform_bias: where $b_T$ starts; below zero, a layer starts by carrying.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is s, `(batch, dim)`.

    Cost:
        `2 dim (dim_in + depth (dim + 1))` parameters.

    Raises:
        UsageError: if the depth is below 1, or the bias no finite number.

    Example:
        >>> cell = RecurrentHighway(3, 5, depth=4, transform_bias=-100.0)
        >>> s = torch.randn(2, 5)
        >>> torch.equal(cell(torch.randn(2, 3), (s,))[0], s)
        True

    Source: Zilly, Srivastava, Koutník and Schmidhuber 2017, arXiv 1607.03474.
    """

    gate = "carry gate"

    def __init__(self, dim_in: int, dim: int, *, depth: int = 3, transform_bias: float = -2.0) -> None:
        super().__init__(dim_in, dim)
        require_at_least("RecurrentHighway", "depth", depth, 1)
        require_finite("RecurrentHighway", "transform_bias", transform_bias)
        self.depth = depth
        bound = 1 / math.sqrt(dim)
        self.weight_ih = nn.Parameter(torch.empty(2 * dim, dim_in).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(depth, 2 * dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(depth, 2 * dim))
        with torch.no_grad():
            self.bias[:, dim:] = transform_bias

    def project(self, x: Tensor) -> Tensor:
        """Return what the first layer of each step adds from its input."""
        return nn.functional.linear(x, self.weight_ih)

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next state."""
        *_, (s, _) = _layers(projected, state[0], self.weight_hh.unbind(0), self.bias.unbind(0))
        return (s,)

    def unroll(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the whole sequence; on a CPU with a backward pass of its own."""
        tensors = x, state[0], self.weight_ih, self.weight_hh, self.bias
        followed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if followed and len(x) > 3 and fits(*tensors):  # below, it takes longer than autograd
            outputs, last = _Sequence.apply(*tensors)  # type: ignore[no-untyped-call]
        else:
            outputs, last = _looped(*tensors)
        return outputs, (last,)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        """Return the product of the layers' carry gates."""
        kept = torch.ones_like(state[0])
        for _, transform in _layers(projected, state[0], self.weight_hh.unbind(0), self.bias.unbind(0)):
            kept = kept * (1 - transform)
        return kept

    @torch.no_grad()
    def carry_bias(self, logit: Tensor) -> bool:
        """Set the transform gates' biases so that all layers together carry `sigmoid(logit)`."""
        each = nn.functional.logsigmoid(logit) / self.depth  # ln of one layer's carry
        self.bias[:, self.dim :] = (-torch.expm1(each)).log() - each
        return True

    def recurrent_weights(self) -> Iterable[Tensor]:
        """Return the two matrices of each layer."""
        return torch.split(self.weight_hh.detach().flatten(0, 1), self.dim)

    def extra_repr(self) -> str:
        """Say the widths and the depth."""
        return f"{self.dim_in}, {self.dim}, depth={self.depth}"


def _layers(
    projected: Tensor, s: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what each layer makes of the state, and its transform gate."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        fed = nn.functional.linear(s, weight, bias)
        candidate, gate = (fed if layer else fed + projected).chunk(2, -1)
        transform = gate.sigmoid()
        s = s + transform * (candidate.tanh() - s)
        yield s, transform


def _looped(x: Tensor, initial: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state after each step, and the last one."""
    s, outputs, weights, biases = initial, [], weight_hh.unbind(0), bias.unbind(0)
    for one in nn.functional.linear(x, weight_ih).unbind(0):
        *_, (s, _) = _layers(one, s, weights, biases)
        outputs.append(s)
    return torch.stack(outputs), s


class _Sequence(torch.autograd.Function):
    """All steps: a weight's gradient is one product for a block of steps, where autograd takes one for each step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, initial: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept, turned, s = [], [w.t() for w in weight_hh], initial
        for block in blocks_of(len(x), initial.numel()):
            # by blocks: memory of 32 MiB and more goes back to the system each time
            fed = x.new_empty(len(bias), len(x[block]), len(initial), bias.shape[1])
            states = x.new_empty(*fed.shape[:2], *initial.shape)
            product_into(fed[0].flatten(0, 1), x[block].flatten(0, 1), weight_ih.t())
            _forward(s, turned, bias, fed, states)
            s = states[-1, -1]
            kept += [fed, states]
        ctx.save_for_backward(x, initial, weight_ih, weight_hh, bias, *kept)
        return torch.cat([states[-1] for states in kept[1::2]]), s.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, by_last: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing hands it out no second time
        (*tensors,), kept = saved[:5], saved[5:]
        if asked_for_more(cotangent, by_last):
            return tuple(gradients_again(_looped, tensors, ctx.needs_input_grad, (cotangent, by_last)))
        x, initial, weight_ih, weight_hh, bias = tensors
        by_x = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        by_ih, by_hh, by_bias = (torch.zeros_like(t) for t in (weight_ih, weight_hh, bias))
        by_state = by_last.clone()
        stop = len(x)
        for place in reversed(range(len(kept) // 2)):
            fed, states = kept[2 * place : 2 * place + 2]
            block = slice(stop - fed.shape[1], stop)
            stop = block.start
            before = kept[2 * place - 1][-1, -1] if place else initial
            found = _back(by_state, before, weight_hh, fed, states, cotangent[block])
            by_bias += found.sum((1, 2))
            first = found[0].flatten(0, 1)
            add_product(by_ih, first.t(), x[block].flatten(0, 1))
            if by_x is not None:
                product_into(by_x[block].flatten(0, 1), first, weight_ih)
            by_hh[0].addmm_(found[0, 0].t(), before)
            add_product(by_hh[0], found[0, 1:].flatten(0, 1).t(), states[-1, :-1].flatten(0, 1))
            for layer in range(1, len(bias)):
                add_product(by_hh[layer], found[layer].flatten(0, 1).t(), states[layer - 1].flatten(0, 1))
        return by_x, by_state, by_ih, by_hh, by_bias


def _forward(s: Tensor, turned: Sequence[Tensor], bias: Tensor, fed: Tensor, states: Tensor) -> None:
    """Write each layer's candidates and gates, and its states.

    Args:
        s: the state before these steps.
        turned: all layers' weights, transposed.
        bias: of all layers.
        fed: `(depth, steps, batch, 2 dim)`; the first layer's holds what the steps add from their inputs.
        states: `(depth, steps, batch, dim)`.
    """
    fed[0] += bias[0]
    biases = bias.unbind(0)
    rows, (candidates, gates), outs = _by_layer(fed), _halves(fed), _by_layer(states)
    for t in range(fed.shape[1]):
        for layer, (weight, bias) in enumerate(zip(turned, biases, strict=True)):
            row = rows[layer][t]
            if layer:
                torch.addmm(bias, s, weight, out=row)
            else:
                row.addmm_(s, weight)
            s = torch.lerp(s, candidates[layer][t].tanh_(), gates[layer][t].sigmoid_(), out=outs[layer][t])


def _back(by_state: Tensor, before: Tensor, weight: Tensor, fed: Tensor, states: Tensor, cotangent: Tensor) -> Tensor:
    """Return the gradient by what each layer's gate and candidate were made of, `(depth, steps, batch, 2 dim)`.

    Args:
        by_state: the gradient by the state after these steps; becomes that by the one before them.
        before: the state before them.
        weight: of all layers.
        fed: candidates and gates.
        states: after each layer.
        cotangent: the gradient by what the last layers returned.
    """
    found = torch.empty_like(fed, memory_format=torch.contiguous_format)
    by_tanh, by_sigmoid = torch.ops.aten.tanh_backward.grad_input, torch.ops.aten.sigmoid_backward.grad_input
    (candidates, gates), (by_candidates, by_gates) = _halves(fed), _halves(found)
    rows, outs, weights = _by_layer(found), _by_layer(states), weight.unbind(0)
    for t in reversed(range(len(cotangent))):
        by_state += cotangent[t]
        for layer in reversed(range(len(weight))):
            into = outs[layer - 1][t] if layer else outs[-1][t - 1] if t else before
            candidate, gate = candidates[layer][t], gates[layer][t]
            passed = by_state * gate
            by_tanh(passed, candidate, grad_input=by_candidates[layer][t])
            by_sigmoid((candidate - into).mul_(by_state), gate, grad_input=by_gates[layer][t])
            by_state.sub_(passed).addmm_(rows[layer][t], weights[layer])
    return found


def _by_layer(x: Tensor) -> list[tuple[Tensor, ...]]:
    return [of_layer.unbind(0) for of_layer in x]


def _halves(x: Tensor) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """Return the candidates and the gates, by layer and step."""
    candidates, gates = x.chunk(2, -1)
    return _by_layer(candidates), _by_layer(gates)
