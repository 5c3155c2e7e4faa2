"""The linear scan as its definition says it, which tests and benchmarks compare with: a loop over steps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["scan", "scan_backward"]


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros((), dtype=torch.float64, device=device).exp()
    except (RuntimeError, TypeError):  # MPS, and graphics processors of Intel that are not for data centres
        return False
    return True


def _full(x: Tensor, log: bool) -> torch.dtype:
    """Return the type to compute in: float64 for logarithms, whose gates may differ from 1 by less than 6e-8."""
    return torch.float64 if log and _has_float64(x.device) else torch.promote_types(x.dtype, torch.float32)


def scan(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
    """Return the states; autograd differentiates it, to any order."""
    full = _full(value, log)
    gate = gate.to(full).exp() if log else gate.to(full)
    state, states = initial.to(full), []
    for a, b in zip(gate.unbind(0), value.to(full).unbind(0), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states).to(value.dtype)


def scan_backward(
    cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by gates, values and initial state: a scan from the last step to the first."""
    full = _full(states, log)
    gate = gate.to(full).exp() if log else gate.to(full)
    carried, by_values = torch.zeros_like(initial, dtype=full), []
    for a, c in zip(reversed(gate.unbind(0)), reversed(cotangent.to(full).unbind(0)), strict=True):
        by_values.append(c + carried)
        carried = a * by_values[-1]
    by_value = torch.stack(by_values[::-1])
    by_gate = by_value * torch.cat([initial.unsqueeze(0), states[:-1]]).to(full)
    by_gate = by_gate * gate if log else by_gate
    return by_gate.to(states.dtype), by_value.to(states.dtype), carried.to(states.dtype)
