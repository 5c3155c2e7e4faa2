"""A plain stack beside one with the same weights, stacked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from levada.connections import Residual
from levada.stack import Stack
from levada.stacking import as_layers

DIM, DEPTH = 6, 5


def branch(dim: int = DIM) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())


def pair(make=branch, connection=Residual, **options) -> tuple[Stack, Stack]:
    """Return a plain stack and one with the same weights, stacked."""
    torch.manual_seed(0)
    plain = Stack([make() for _ in range(DEPTH)], connection, dim=DIM, **options)
    return plain, copy.deepcopy(plain).arrange(stacked=True)


def gradients(stack: Stack, x: Tensor) -> dict[str, Tensor]:
    stack.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    y = stack(x)
    y.square().sum().backward()
    with as_layers(stack):
        return {"output": y, "input": x.grad} | {
            n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in stack.named_parameters()
        }


def is_recorded(stack: Stack) -> bool:
    node = stack(torch.randn(3, DIM, dtype=next(stack.parameters()).dtype)).grad_fn
    while node is not None and type(node).__name__ != "LayersBackward":
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None
