"""A residual connection and the norm behind it on a GPU: tokens stay in registers from their sum to its norm.

Every element is read once and written once: forward two are read and two written, backward three and one. Backward a
program goes through tokens that are far apart and adds up what weight and bias get in registers; the sums of all
programs are added up in their order, so that results repeat bit by bit on one kind of device.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._device import on
from levada.ops.residual_norm import reference

__all__ = [
    "PER_PROCESSOR",
    "SHAPE",
    "SHARED",
    "STAGES",
    "residual_norm",
    "residual_norm_backward",
    "shape_of",
    "stages_of",
]

SHAPE = {"elements": 2048, "warp": 512}  # elements at a time, at least; elements that a warp takes
PER_PROCESSOR = 2  # programs of the backward pass
STAGES = 2  # tokens of the backward pass that are on their way
SHARED = 96 * 2**10  # bytes for what is on its way: half of what a processor has
_WIDEST = 2**14
_WORK = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _normalise(y, inside, eps: tl.constexpr, width: tl.constexpr, centred: tl.constexpr):
    """Return rows of mean square one, and one over their size."""
    if centred:
        y = tl.where(inside, y - (tl.sum(y, 1) / width)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(y * y, 1) / width + eps)
    return y * inverse[:, None], inverse


@triton.jit
def _residual_norm(
    state, out, weight, bias, new, normed, tokens,
    width: tl.constexpr, block: tl.constexpr, rows: tl.constexpr, eps: tl.constexpr, centred: tl.constexpr,
    scaled: tl.constexpr, shifted: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    columns = tl.arange(0, block)
    inside = (token < tokens)[:, None] & (columns < width)[None, :]
    places = token[:, None] * width + columns[None, :]
    x = tl.load(state + places, mask=inside, other=0.0, eviction_policy="evict_first").to(work)
    y = x + tl.load(out + places, mask=inside, other=0.0, eviction_policy="evict_first").to(work)
    y = y.to(new.dtype.element_ty)
    tl.store(new + places, y, mask=inside)
    z, _ = _normalise(y.to(work), inside, eps, width, centred)
    if scaled:
        z *= tl.load(weight + columns, mask=columns < width, other=0.0).to(work)[None, :]
    if shifted:
        z += tl.load(bias + columns, mask=columns < width, other=0.0).to(work)[None, :]
    tl.store(normed + places, z, mask=inside)


@triton.jit
def _residual_norm_backward(
    by_new, by_normed, new, weight, by_sum, of_weight, of_bias, tokens,
    width: tl.constexpr, block: tl.constexpr, rows: tl.constexpr, eps: tl.constexpr, centred: tl.constexpr,
    scaled: tl.constexpr, shifted: tl.constexpr, work: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, block)
    if scaled:
        factor = tl.load(weight + columns, mask=columns < width, other=0.0).to(work)[None, :]
    sum_weight = tl.zeros([rows, block], dtype=work)
    sum_bias = tl.zeros([rows, block], dtype=work)
    for first in tl.range(program * rows, tokens, tl.num_programs(0) * rows, num_stages=stages):
        token = first + tl.arange(0, rows).to(tl.int64)
        inside = (token < tokens)[:, None] & (columns < width)[None, :]
        places = token[:, None] * width + columns[None, :]
        y = tl.load(new + places, mask=inside, other=0.0).to(work)
        cotangent = tl.load(by_normed + places, mask=inside, other=0.0).to(work)
        direct = tl.load(by_new + places, mask=inside, other=0.0).to(work)
        z, inverse = _normalise(y, inside, eps, width, centred)
        if scaled:
            sum_weight += cotangent * z
        if shifted:
            sum_bias += cotangent
        inner = cotangent * factor if scaled else cotangent
        change = inner - z * (tl.sum(inner * z, 1) / width)[:, None]
        if centred:
            change -= (tl.sum(inner, 1) / width)[:, None]
        tl.store(by_sum + places, direct + inverse[:, None] * change, mask=inside)
    place = program.to(tl.int64) * width + columns
    if scaled:
        tl.store(of_weight + place, tl.sum(sum_weight, 0), mask=columns < width)
    if shifted:
        tl.store(of_bias + place, tl.sum(sum_bias, 0), mask=columns < width)


def residual_norm(
    state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, centred: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum and what it is normalised, contiguous."""
    tokens, width = state.shape
    if width > _WIDEST:
        _warn(width)
        return reference.residual_norm(state, out, weight, bias, centred, eps)
    new = empty_like(state)
    normed = torch.empty_like(new)
    if new.numel():
        full = reference.full_type(state, out, weight, bias)
        options = _options(width, centred, eps, full, weight is not None, bias is not None)
        with on(state.device):
            given = _contiguous(state, out, weight, bias)
            _residual_norm[(triton.cdiv(tokens, options["rows"]),)](*given, new, normed, tokens, **options)
    return new, normed


def residual_norm_backward(
    by_new: Tensor, by_normed: Tensor, new: Tensor, weight: Tensor | None, centred: bool, eps: float, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by the sum, contiguous, and by weight and bias: empty where there are none."""
    tokens, width = new.shape
    if width > _WIDEST:
        return reference.residual_norm_backward(by_new, by_normed, new, weight, centred, eps, shifted)
    full = reference.full_type(new, weight)
    options = _options(width, centred, eps, full, weight is not None, shifted)
    options["stages"] = stages_of(options["rows"] * options["block"] * new.element_size())
    programs = max(1, min(triton.cdiv(tokens, options["rows"]), PER_PROCESSOR * _processors(new)))
    by_sum = empty_like(new)
    of_weight = new.new_empty((programs, width) if weight is not None else (0, 0), dtype=full)
    of_bias = new.new_empty((programs, width) if shifted else (0, 0), dtype=full)
    with on(new.device):
        given = _contiguous(by_new, by_normed, new, weight)
        _residual_norm_backward[(programs,)](*given, by_sum, of_weight, of_bias, tokens, **options)
    return by_sum, of_weight.sum(0), of_bias.sum(0)


def shape_of(width: int) -> tuple[int, int, int]:
    """Return how many channels and tokens a program takes at a time, and its warps.

    Args:
        width: number of channels.
    """
    block = triton.next_power_of_2(width)
    rows = max(1, SHAPE["elements"] // block)
    return block, rows, min(max(rows * block // SHAPE["warp"], 1), 32)


def stages_of(size: int) -> int:
    """Return how many tokens may be on their way to a program of the backward pass.

    Args:
        size: bytes of what it reads of one tensor at a time.
    """
    return STAGES if 3 * STAGES * size <= SHARED else 1


def _options(width: int, centred: bool, eps: float, full: torch.dtype, scaled: bool, shifted: bool) -> dict[str, Any]:
    block, rows, warps = shape_of(width)
    return {
        "width": width,
        "block": block,
        "rows": rows,
        "eps": eps,
        "centred": centred,
        "scaled": scaled,
        "shifted": shifted,
        "work": _WORK[full],
        "num_warps": warps,
    }


@functools.cache  # which makes the warning the only one
def _warn(width: int) -> None:
    warnings.warn(
        f"residual_norm: {width} channels are more than the {_WIDEST} that a kernel keeps in registers: the reference "
        "runs, by plain operations, which is slow.",
        RuntimeWarning,
        stacklevel=3,
    )


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def _contiguous(*tensors: Tensor | None) -> list[Tensor]:
    """Return memory to read from; what is left out is not read."""
    given = [None if x is None else x.contiguous() for x in tensors]
    return [given[0] if x is None else x for x in given]  # type: ignore[misc]
