"""The linear scan on a CPU: step after step in place, a block of steps at a time.

A sequential scan wins there: a step of a batch fills the vector units, and nothing is computed twice. Blocks keep what
is converted, exponentiated and multiplied in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["scan", "scan_backward"]

_BLOCK = 64


def _full(dtype: torch.dtype, log: bool) -> torch.dtype:
    """Return the type to compute in: float64 for logarithms, whose gates may differ from 1 by less than 6e-8."""
    return torch.float64 if log else torch.promote_types(dtype, torch.float32)


def scan(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
    """Return the states, contiguous."""
    full = _full(value.dtype, log)
    states = torch.empty_like(value, memory_format=torch.contiguous_format)
    state = initial.to(full)
    for start in range(0, len(value), _BLOCK):
        block = slice(start, start + _BLOCK)
        gates = gate[block].to(full)
        gates = gates.exp() if log else gates
        kept = states[block].copy_(value[block])
        rows = kept.to(full)
        for a, row in zip(gates.unbind(0), rows.unbind(0), strict=True):
            state = row.addcmul_(a, state)
        if rows is not kept:
            kept.copy_(rows)
    return states


def scan_backward(
    cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by gates, values and initial state, contiguous."""
    full = _full(states.dtype, log)
    by_gate = torch.empty_like(states, memory_format=torch.contiguous_format)
    by_value = torch.empty_like(by_gate)
    carried = torch.zeros_like(initial, dtype=full)
    for start in reversed(range(0, len(states), _BLOCK)):
        block = slice(start, start + _BLOCK)
        gates = gate[block].to(full)
        gates = gates.exp() if log else gates
        kept = by_value[block].copy_(cotangent[block])
        rows = kept.to(full)
        later = rows[-1].add_(carried)
        for a, row in zip(reversed(gates.unbind(0)[1:]), reversed(rows.unbind(0)[:-1]), strict=True):
            later = row.addcmul_(a, later)
        carried = gates[0] * later
        if rows is not kept:
            kept.copy_(rows)
        factor = rows * gates if log else rows
        torch.mul(factor[1:], states[block][:-1], out=by_gate[block][1:])
        torch.mul(factor[0], states[start - 1] if start else initial, out=by_gate[start])
    return by_gate, by_value, carried.to(initial.dtype)
