"""A gated cell's sequence on a CPU, a block of steps at a time: gates live in the cache and are made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.cells.cell import traced, transformed

__all__ = ["GatedScan", "asked_for_more", "blocks_of", "fits", "gradients_again", "scan_in_blocks"]

_of_many = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)  # private: of `is_grads_batched`

_NUMBERS = 2**16
"""Of a block's states: some seven tensors of so many float32 numbers stay in a second cache of 1 to 2 MiB."""


class GatedScan(Protocol):
    """What is scanned: `h_t = a_t h_{t-1} + (1 - a_t) c_t`, where `a_t = sigmoid(l_t)`; l and c are of the input."""

    def parts(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `a`, `1 - a` and c."""

    def pull(self, projected: Tensor, by_logit: Tensor, by_candidate: Tensor, out: Tensor) -> None:
        """Write the gradient by `projected`, of those by l and by c, to `out`."""

    def scan(self, projected: Tensor, initial: Tensor) -> Tensor:
        """Return the states by operations that can be differentiated in every way."""


def fits(*tensors: Tensor) -> bool:
    """Return whether blocks of them can run: a CPU, one type, and no trace, transform, forward mode or autocast."""
    if forward_ad._current_level >= 0 or tensors[0].dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return not any(x.device.type != "cpu" or x.dtype != tensors[0].dtype or traced(x) for x in tensors)


def asked_for_more(*cotangents: Tensor) -> bool:
    """Return whether a backward pass is to give the gradient's gradient, too, or many gradients at once."""
    return torch.is_grad_enabled() or transformed() or any(map(_of_many, cotangents))


def gradients_again(
    run: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Iterable[Tensor],
    needed: Iterable[bool],
    cotangents: Tensor | tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Return the gradients by operations that autograd follows, in a backward pass; None where none is needed.

    Args:
        run: from the tensors to what was returned.
        tensors: as they were saved.
        needed: whose gradients are.
        cotangents: the gradients by what was returned.
    """
    higher, needed = torch.is_grad_enabled(), [*needed]
    with torch.enable_grad():
        # aliases: one tensor may be made of another, and that way is for autograd to go, not for this to count as well
        tensors = [x.view_as(x) if higher else x.detach() for x in tensors]
        wanted = [x if higher else x.requires_grad_() for x, need in zip(tensors, needed, strict=True) if need]
        returned = run(*tensors)
    found = iter(torch.autograd.grad(returned, wanted, cotangents, create_graph=higher))
    return [next(found) if need else None for need in needed]


def blocks_of(steps: int, numbers: int) -> list[slice]:
    """Return the steps in blocks, of so many numbers at each step; each thread has a cache of its own."""
    size = max(1, _NUMBERS * torch.get_num_threads() // max(1, numbers))
    return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]


def scan_in_blocks(of: GatedScan, projected: Tensor, initial: Tensor) -> Tensor:
    """Return the states; `projected` and the states alone are kept for the backward pass.

    What is not kept need not be fetched: where gates and values of all steps are made, most of the time goes into
    memory that is given back and asked for again.

    Args:
        of: the cell.
        projected: `(steps, batch, k dim)`, of which `fits` is true.
        initial: `(batch, dim)`.
    """
    states: Tensor = _InBlocks.apply(projected, initial, of)  # type: ignore[no-untyped-call]
    return states


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, initial: Tensor, of: GatedScan) -> Tensor:
        states = projected.new_empty((len(projected), *initial.shape))
        state = initial
        for block in blocks_of(len(states), initial.numel()):
            gate, rest, candidate = of.parts(projected[block])
            rows = torch.mul(rest, candidate, out=states[block])
            for a, row in zip(gate.unbind(0), rows.unbind(0), strict=True):
                state = row.addcmul_(a, state)
        ctx.of = of
        ctx.save_for_backward(projected, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        projected, initial, states = ctx.saved_tensors
        if asked_for_more(cotangent):
            needed = ctx.needs_input_grad[:2]
            by_projected, by_initial = gradients_again(ctx.of.scan, (projected, initial), needed, cotangent)
            return by_projected, by_initial, None
        by_projected = torch.empty_like(projected, memory_format=torch.contiguous_format)
        later = torch.zeros_like(initial)
        for block in reversed(blocks_of(len(states), initial.numel())):
            gate, rest, candidate = ctx.of.parts(projected[block])
            by_value = cotangent[block].clone(memory_format=torch.contiguous_format)
            later = by_value[-1].add_(later)
            for a, row in zip(reversed(gate.unbind(0)[1:]), reversed(by_value.unbind(0)[:-1]), strict=True):
                later = row.addcmul_(a, later)
            later = gate[0] * later
            # by l: g a (1 - a) (h - c), where h is the state before
            by_logit = states[block.start - 1 : block.stop - 1] if block.start else _shifted(initial, states[block])
            by_logit = (by_logit - candidate).mul_(gate).mul_(by_value.mul_(rest))
            ctx.of.pull(projected[block], by_logit, by_value, by_projected[block])
        return by_projected, later, None


def _shifted(initial: Tensor, states: Tensor) -> Tensor:
    return torch.cat([initial.unsqueeze(0), states[:-1]])
