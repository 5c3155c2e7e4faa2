"""Derivatives of the linear scan, of any order, backward and forward: each is a scan again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._define import define, empty_like, triton_or_reference
from levada.ops._fitting import MisfitError, Signature
from levada.ops.scan import cpu, reference

__all__ = ["differentiable_scan"]

_Three = tuple[Tensor, Tensor, Tensor]


def differentiable_scan(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
    """Return the states of arguments that were checked."""
    # Only a function has a forward-mode derivative, and the compiler takes none that has.
    function = _SCAN if torch.compiler.is_compiling() else _Scan.apply
    states: Tensor = function(gate, value, initial, log)
    return states


def _gradients(cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool) -> _Three:
    function = _SCAN_BACKWARD if torch.compiler.is_compiling() else _ScanBackward.apply
    gradients: _Three = function(cotangent, gate, states, initial, log)
    return gradients


def _before(initial: Tensor, states: Tensor) -> Tensor:
    """Return what each step begins with."""
    return torch.cat([initial.unsqueeze(0), states[:-1]])


def _after(steps: Tensor) -> Tensor:
    """Return each step's successor, zero at the end."""
    return torch.cat([steps[1:], torch.zeros_like(steps[:1])])


def _seen_by_outer_modes() -> AbstractContextManager[None]:
    """Return the surroundings of a `jvp`, which PyTorch calls with all forward modes off.

    Without them a forward mode around this one takes what is computed for constant, and a jvp of a jvp is wrong.
    """
    return forward_ad._set_fwd_grad_enabled(True)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def _primals(ctx: Any) -> list[Tensor]:
    """Return what was saved without its tangents in the mode that is being computed, and with those of outer ones."""
    return [forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]  # type: ignore[no-untyped-call]


def _scan_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, _, initial, ctx.log = inputs
    ctx.save_for_backward(gate, output, initial)


def _scan_derivative(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    gate, states, initial = ctx.saved_tensors
    return *_gradients(cotangent, gate, states, initial, ctx.log), None


class _Scan(torch.autograd.Function):
    """The states h, of gates a, values b and the initial state."""

    backward = staticmethod(_scan_derivative)

    @staticmethod
    def forward(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
        states: Tensor = _SCAN(gate, value, initial, log)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _scan_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output, inputs[2])

    @staticmethod
    def jvp(ctx: Any, of_gate: Tensor, of_value: Tensor, of_initial: Tensor, _: None) -> Tensor:
        with _seen_by_outer_modes():
            gate, states, initial = _primals(ctx)
            factor = of_gate * gate.exp() if ctx.log else of_gate
            return differentiable_scan(gate, of_value + factor * _before(initial, states), of_initial, ctx.log)

    # PyTorch's own rule would take `jvp` under its vmap, where no primal can be had of a dual number.
    @staticmethod
    def vmap(info: Any, dims: Any, gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> tuple[Tensor, int]:
        gate, value, initial = _batched(info, dims, (gate, value, initial), (1, 1, 0))
        return differentiable_scan(gate, value, initial, log), 1


def _gradients_context(ctx: Any, inputs: tuple[Any, ...], output: _Three) -> None:
    _, gate, states, initial, ctx.log = inputs
    ctx.save_for_backward(gate, states, initial, output[1])


def _gradients_derivative(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    """Return the adjoint, a scan with the same gates from the first step to the last, `k_t = a_t k_{t-1} + q_t`.

    Here q is what asks for g_t, and the initial k what asks for `a_1 g_1`.
    """
    gate, states, initial, g = ctx.saved_tensors
    before = _before(initial, states)
    scaled = u * gate.exp() if ctx.log else u
    k = differentiable_scan(gate, scaled * before + v, w, ctx.log)
    by_gate = g * _before(w, k)
    if ctx.log:
        by_gate = gate.exp() * by_gate + scaled * g * before
    by_before = scaled * g
    return k, by_gate, _after(by_before), by_before[0], None


class _ScanBackward(torch.autograd.Function):
    """The gradients: `g_t = c_t + a_{t+1} g_{t+1}` by values, `g_t h_{t-1}` by gates, `a_1 g_1` by the first state."""

    backward = staticmethod(_gradients_derivative)

    @staticmethod
    def forward(cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool) -> _Three:
        gradients: _Three = _SCAN_BACKWARD(cotangent, gate, states, initial, log)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Three) -> None:
        _gradients_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:4], output[1])

    @staticmethod
    def jvp(ctx: Any, of_cotangent: Tensor, of_gate: Tensor, of_states: Tensor, of_initial: Tensor, _: None) -> _Three:
        with _seen_by_outer_modes():
            gate, states, initial, g = _primals(ctx)
            change = of_gate * gate.exp() * g if ctx.log else of_gate * g
            of_by_gate, of_g, of_by_initial = _gradients(of_cotangent + _after(change), gate, states, initial, ctx.log)
            before, of_before = _before(initial, states), _before(of_initial, of_states)
            rest = g * gate.exp() * of_before + change * before if ctx.log else g * of_before
            return of_by_gate + rest, of_g, of_by_initial + change[0]

    @staticmethod
    def vmap(
        info: Any, dims: Any, cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool
    ) -> tuple[_Three, tuple[int, int, int]]:
        tensors = (cotangent, gate, states, initial)
        cotangent, gate, states, initial = _batched(info, dims, tensors, (1, 1, 1, 0))
        return _gradients(cotangent, gate, states, initial, log), (1, 1, 0)


def _batched(
    info: Any, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...], axes: tuple[int, ...]
) -> list[Tensor]:
    """Return the tensors of an operation under `vmap` with its axis where `axes` say: next to the steps."""
    return [
        x.unsqueeze(axis).expand(*x.shape[:axis], info.batch_size, *x.shape[axis:])
        if dim is None
        else x.movedim(dim, axis)
        for x, dim, axis in zip(tensors, dims, axes, strict=False)
    ]


def _scan_vmap(info: Any, dims: Any, gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> tuple[Tensor, int]:
    return _SCAN(*_batched(info, dims, (gate, value, initial), (1, 1, 0)), log), 1


def _gradients_vmap(
    info: Any, dims: Any, cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool
) -> tuple[_Three, tuple[int, int, int]]:
    tensors = _batched(info, dims, (cotangent, gate, states, initial), (1, 1, 1, 0))
    return _SCAN_BACKWARD(*tensors, log), (1, 1, 0)


def _shapes(value: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of gates, what comes with each step, and the state before the first one."""
    # `len` would make a constant of a number of steps that a graph leaves open; none at all is a number there too.
    if not value.ndim or (isinstance(value.shape[0], int) and not value.shape[0]):
        raise MisfitError(f"there must be a step or more along the first axis, got {tuple(value.shape)}")
    return value.shape, value.shape, value.shape[1:]


def _scan_fake(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
    return empty_like(value)


def _gradients_fake(cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool) -> _Three:
    return empty_like(states), empty_like(states), empty_like(initial)


_SCAN = define(
    "scan",
    Signature(
        "(Tensor gate, Tensor value, Tensor initial, bool log) -> Tensor",
        lambda gate, value, initial, log: _shapes(value),
    ),
    reference=reference.scan,
    kernels={"CPU": cpu.scan, "CUDA": triton_or_reference("levada.ops.scan.triton", "scan", reference.scan)},
    fake=_scan_fake,
    vmap=_scan_vmap,
    setup_context=_scan_context,
    backward=_scan_derivative,
)
_SCAN_BACKWARD = define(
    "scan_backward",
    Signature(
        "(Tensor cotangent, Tensor gate, Tensor states, Tensor initial, bool log) -> (Tensor, Tensor, Tensor)",
        lambda cotangent, gate, states, initial, log: (states.shape, *_shapes(states)),
    ),
    reference=reference.scan_backward,
    kernels={
        "CPU": cpu.scan_backward,
        "CUDA": triton_or_reference("levada.ops.scan.triton", "scan_backward", reference.scan_backward),
    },
    fake=_gradients_fake,
    vmap=_gradients_vmap,
    setup_context=_gradients_context,
    backward=_gradients_derivative,
)
