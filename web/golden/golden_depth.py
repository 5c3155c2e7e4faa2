"""Golden vectors of path lengths: every path of a residual stack by itself, through PyTorch's graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from golden_cases import Case, drawn, listed, set_parameters
from torch import Tensor, nn

import levada
from levada import blocks
from levada.theory import path_lengths

ROWS, DIM = 3, 4


def path_cases() -> list[Case]:
    """Squared norms of the gradient by the number of branches that it passed, and the gain of each branch."""
    cases = []
    for name, depth, pre in (("paths", 4, True), ("paths_last", 3, False)):
        stack = levada.Stack(
            lambda dim, pre=pre: blocks.FullyConnected(dim, nn.Tanh, norm=nn.LayerNorm, pre_activation=pre),
            levada.Residual, dim=DIM, depth=depth,
        )  # fmt: skip
        values = set_parameters(name, stack)
        x = drawn(f"{name}.input", ROWS, DIM, scale=2.0)
        inputs = [x.clone().requires_grad_()]
        outputs: list[Tensor] = []
        for layer in stack.layers:
            outputs.append(layer.branch(inputs[-1]))
            inputs.append((inputs[-1] + outputs[-1]).detach().requires_grad_())
        cotangent = drawn(f"{name}.cotangent", ROWS, DIM)
        squares = [0.0] * (depth + 1)
        for passed in itertools.product((False, True), repeat=depth):
            arriving = _along(inputs, outputs, cotangent, passed)
            squares[sum(passed)] += float(arriving.square().sum())
        gains = _gains(inputs, outputs, cotangent)
        cases.append({
            "name": name, "rows": ROWS, "depth": depth, "preActivation": pre, "parameters": values, "input": listed(x),
            "cotangent": listed(cotangent), "squares": squares, "gains": gains,
            "estimated": listed(path_lengths(gains).weights),
        })  # fmt: skip
    return cases


def _back(inputs: Sequence[Tensor], outputs: Sequence[Tensor], layer: int, gradient: Tensor) -> Tensor:
    (through,) = torch.autograd.grad(outputs[layer], inputs[layer], gradient, retain_graph=True)
    return through


def _along(inputs: Sequence[Tensor], outputs: Sequence[Tensor], gradient: Tensor, passed: Sequence[bool]) -> Tensor:
    for layer in reversed(range(len(outputs))):
        if passed[layer]:
            gradient = _back(inputs, outputs, layer, gradient)
    return gradient


def _gains(inputs: Sequence[Tensor], outputs: Sequence[Tensor], gradient: Tensor) -> list[float]:
    gains = []
    for layer in reversed(range(len(outputs))):
        through = _back(inputs, outputs, layer, gradient)
        gains.append(float(through.norm() / gradient.norm()))
        gradient = gradient + through
    return gains[::-1]
