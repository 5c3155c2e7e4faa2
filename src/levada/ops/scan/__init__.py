"""The linear scan: `h_t = a_t h_{t-1} + b_t`, element by element, over any number of steps."""

from __future__ import annotations

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.ops.scan.autograd import differentiable_scan

__all__ = ["linear_scan"]


def linear_scan(gate: Tensor, value: Tensor, initial: Tensor | None = None, *, log: bool = False) -> Tensor:
    """Return the states of a gated linear recurrence.

    `h_t = a_t h_{t-1} + b_t` for `t = 1 ... T`, where a is `gate`, or `exp(gate)` with `log`, and b is `value`

    Steps come first: a step is then one row of memory, which a CPU walks along and the threads of a GPU read side by
    side, and a view of it needs no copy. A gate may have either sign; `log` is for positive ones. Give the logarithm
    where gates come near 1: in float32 nothing lies between 1 - 6e-8 and 1, so that a memory of a million steps cannot
    be written as a gate, but can as its logarithm.

    Types below float32 are computed in float32 and returned as they came, float64 in float64, and logarithms in float64
    but for the kernel in Triton and devices that have none. Derivatives exist of any order, backward and, outside of
    what is compiled, forward, in any order of the two; the gradient is a scan from the last step to the first.

    The device chooses the kernel: a sequential one on a CPU, a parallel one in Triton on a GPU, the loop of
    `levada.ops.scan.reference` on others, and on a GPU without Triton, with a warning. The sequential ones need no more
    than that states stay within the range of the type. The parallel one needs it of the product of gates over any run
    of steps too, or states that are finite come out infinite or NaN; and where a gate of zero meets an infinite state,
    it goes on from zero, and the others from NaN.

    Args:
        gate: what is kept of each state, or its logarithm.
        value: what is added.
        initial: the state before the first step; zeros if left out.
        log: whether `gate` holds logarithms.

    Shape:
        `gate` and `value` are `(steps, ...)`, alike, with one step at least; `initial` is `(...)`, and the states are
        `(steps, ...)`. They are of the type to which the types of all three promote.

    Cost:
        No parameters; keeps `gate`, the states and `initial` for the backward pass.

    Raises:
        UsageError: if shapes do not fit, there is no step, the type is not a real floating one, or devices differ.

    Example:
        >>> linear_scan(torch.tensor([0.5, 0.5, -1.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor(2.0))
        tensor([ 2.,  2., -2.])

    Source: Blelloch, 1990, Prefix sums and their applications; Martin and Cundy, 2018, arXiv 1709.04057.
    """
    tensors = [gate, value] if initial is None else [gate, value, initial]
    if gate.shape != value.shape:
        raise UsageError(
            f"linear_scan: gate and value must have one shape, got {tuple(gate.shape)} and {tuple(value.shape)}. "
            "Expand one to the other."
        )
    if value.ndim == 0 or len(value) == 0:
        raise UsageError(
            f"linear_scan: there must be a step or more along the first axis, got shape {tuple(value.shape)}. "
            "Leave out empty sequences."
        )
    if initial is not None and initial.shape != value.shape[1:]:
        raise UsageError(
            f"linear_scan: initial must have the shape of one step, {tuple(value.shape[1:])}, "
            f"got {tuple(initial.shape)}. Expand it, or leave it out to begin at zero."
        )
    for x in tensors:
        if not x.is_floating_point():
            raise UsageError(f"linear_scan: tensors must be of real floating point, got {x.dtype}. Convert them first.")
        if x.device != value.device:
            raise UsageError(
                f"linear_scan: tensors must be on one device, got {x.device} and {value.device}. Move one."
            )
    if initial is None:
        initial = torch.zeros_like(value[0])
    dtype = torch.promote_types(torch.promote_types(gate.dtype, value.dtype), initial.dtype)
    return differentiable_scan(gate.to(dtype), value.to(dtype), initial.to(dtype), log)
