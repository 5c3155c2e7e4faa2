"""Reading streams on a CPU: matrix products of PyTorch's, and loops that Numba compiles for all the rest."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from levada.ops._define import import_kernels
from levada.ops._precision import full_precision
from levada.ops.manifold.reference import Form

__all__ = ["loops_for", "read", "read_backward"]

_TYPES = {torch.float32, torch.float64}


def loops_for(state: Tensor, form: Form, *others: Tensor) -> ModuleType | None:
    """Return the loops if they take these tensors and this form.

    Args:
        state: the streams.
        form: what is asked for.
        *others: the parameters.
    """
    if state.device.type != "cpu" or state.dtype not in _TYPES or not state.numel():
        return None
    if any(x.dtype != state.dtype for x in others) or (form.mixes and form.iterations > _most(state, form)):
        return None
    return import_kernels("levada.ops.manifold.loops", "numba")


def _most(state: Tensor, form: Form) -> float:
    """Return how many iterations may pass before an entry that underflowed could matter; see `levada.ops.sinkhorn`."""
    if form.epsilon:
        return math.inf
    limits = torch.finfo(state.dtype)
    return (math.log2(limits.eps / limits.tiny) - 3) / (2 * math.log2(state.shape[-2]))


def read(
    loops: ModuleType, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, write and mix, and features and norms for the way back."""
    tokens, n, width = state.shape
    with full_precision(state):
        found = state.view(tokens, n * width) @ projection.t()
    inverse = state.new_empty(tokens)
    x, reads, writes = state.new_empty(tokens, width), state.new_empty(tokens, n), state.new_empty(tokens, n)
    mix = state.new_empty(tokens, n if form.mixes else 0, n)
    loops.over_tokens(loops.read, [state, found, inverse, x, reads, writes, mix], *_options(scale, bias, form))
    return x, reads, writes, mix, found, inverse


def read_backward(
    loops: ModuleType,
    cotangents: tuple[Tensor, Tensor, Tensor, Tensor | None],
    state: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    kept: tuple[Tensor, Tensor],
    form: Form,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, projection, scale and bias.

    Args:
        loops: the loops.
        cotangents: by what the branch read, by the weights that write and mix, and by the state from elsewhere.
        state: the streams.
        parameters: projection, scale and bias.
        kept: projected features, divided by the norms, and one over the norms.
        form: what was asked for.
    """
    by_x, by_writes, by_mix, by_new = cotangents
    projection, scale, bias = parameters
    by_state, by_found = torch.empty_like(state), torch.empty_like(kept[0])
    given = [by_x, by_writes, by_mix, state if by_new is None else by_new, state, *kept, by_state, by_found]
    tensors = [x.contiguous() for x in given]
    sums = loops.over_tokens(loops.read_backward, tensors, *_options(scale, bias, form), by_new is not None)
    features = state.view(len(state), -1)
    by_state.view(features.shape).addmm_(by_found, projection)
    by_scale, by_bias = (torch.from_numpy(sum(one)) for one in zip(*sums, strict=True))
    return by_state, by_found.t() @ features, by_scale, by_bias


def _options(scale: Tensor, bias: Tensor, form: Form) -> tuple[object, ...]:
    kind = scale.detach().numpy().dtype.type
    epsilons = (form.epsilon, form.read_epsilon, form.write_epsilon, form.norm_epsilon)
    parameters = [x.detach().contiguous().numpy() for x in (scale, bias)]
    return *parameters, form.mixes, form.iterations, tuple(map(kind, epsilons)), form.transposed
