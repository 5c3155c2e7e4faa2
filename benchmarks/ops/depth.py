"""Cases of attention over depth and of weighted sums over it: 3 n + 1 sources where streams would be n."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, compiled
from levada.ops import attend_depth, sum_depth
from levada.ops.depth import reference

__all__ = ["cases"]


def _inputs(tokens: int, sources: int, width: int, first: tuple[int, int]) -> Sequence[Tensor]:
    tensors = [torch.randn(first) / first[1] ** 0.5]
    tensors += [(1 + i % 3) * torch.randn(tokens, width) for i in range(sources)]
    return [x.requires_grad_() for x in tensors]


def _plain(query: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    """What one writes, a source at a time."""
    return reference.attend(query, sources, 1e-6, 1.0, False)[0].unbind()


def _stacked(query: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    """What one writes first: all sources side by side."""
    stacked = torch.stack(sources)
    normal = stacked * torch.rsqrt(stacked.float().square().mean(-1, keepdim=True) + 1e-6).to(stacked.dtype)
    shares = torch.softmax(normal.float() @ query.t(), 0).to(stacked.dtype)
    return [(shares[..., k, None] * stacked).sum(0) for k in range(len(query))]


def _ours(query: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    return attend_depth(query, sources)


def _liger(query: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    """Its sources are stacked; the weight of its norm, which it asks a gradient for, is one."""
    from liger_kernel.transformers import functional as liger

    norm = torch.ones_like(query[0], dtype=sources[0].dtype)
    stacked = torch.stack(sources).unsqueeze(1)
    return [liger.liger_attn_res(stacked, query[0].to(norm.dtype), norm).squeeze(0)]


def _fla(query: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    from fla.ops.attnres import fused_attnres

    return [fused_attnres(query[0], sources, torch.ones_like(query[0]), checkpoint_level=0)]


def _plain_sums(weights: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    return reference.mix(weights, sources).unbind()


def _our_sums(weights: Tensor, *sources: Tensor) -> Sequence[Tensor]:
    return sum_depth(weights, sources)


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        sources = 3 * n + 1
        for queries in (1, 3):
            yield Case(
                operator="attend_depth",
                size={"tokens": tokens, "sources": sources, "queries": queries, "width": width},
                make=functools.partial(_inputs, tokens, sources, width, (queries, width)),
                programs={
                    "reference": _plain,
                    "compiled reference": compiled(_plain),
                    "compiled stack": compiled(_stacked),
                    "levada": _ours,
                    **({"liger-kernel": _liger, "flash-linear-attention": _fla} if queries == 1 else {}),
                },
                forward=tokens * width * (sources + queries),
                backward=tokens * width * (2 * sources + queries),
                tolerance=32.0,
                wide=frozenset({0}),
            )
        yield Case(
            operator="sum_depth",
            size={"tokens": tokens, "sources": sources, "width": width},
            make=functools.partial(_inputs, tokens, sources, width, (1, sources)),
            programs={"reference": _plain_sums, "compiled reference": compiled(_plain_sums), "levada": _our_sums},
            forward=tokens * width * (sources + 1),
            backward=tokens * width * (2 * sources + 1),
            tolerance=32.0,
            wide=frozenset({0}),
        )
