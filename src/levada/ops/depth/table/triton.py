"""Where sources lie: a table of their addresses on the device, by which kernels read and write them.

A kernel writes the table, so that all is in the order of the stream, and a captured graph holds the addresses as it
holds those of any argument.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

__all__ = ["kernel", "read", "ready", "table_of", "tabulate", "write"]

_ADDRESSES = 32  # that one launch writes


kernel = triton.jit(do_not_specialize=["tokens", "sources", "token_stride"])
"""What a kernel over sources is compiled by: once for any number of them."""


@triton.jit
def tabulate(table, addresses):
    """Write addresses to the table."""
    for i in tl.static_range(len(addresses)):
        tl.store(table + i, addresses[i])


@triton.jit
def read(table, i, place, mask, kind: tl.constexpr, mixed: tl.constexpr):
    """Return channels of source i; of sources of two types, a wide one has an odd address."""
    address = tl.load(table + i)
    if mixed:
        odd = address & 1
        narrow = tl.multiple_of((address - odd).to(tl.pointer_type(kind)), 16)
        wide = tl.multiple_of((address - odd).to(tl.pointer_type(tl.float32)), 16)
        x = tl.load(narrow + place, mask=mask & (odd == 0), other=0.0).to(tl.float32)
        x += tl.load(wide + place, mask=mask & (odd == 1), other=0.0)
    else:
        x = tl.load(tl.multiple_of(address.to(tl.pointer_type(kind)), 16) + place, mask=mask, other=0.0)
    return x


@triton.jit
def write(table, i, place, value, mask, kind: tl.constexpr, mixed: tl.constexpr):
    """Write channels of tensor i."""
    address = tl.load(table + i)
    if mixed:
        odd = address & 1
        wide = tl.multiple_of((address - odd).to(tl.pointer_type(tl.float32)), 16)
        tl.store(wide + place, value, mask=mask & (odd == 1))
        mask = mask & (odd == 0)
        address -= odd
    tl.store(tl.multiple_of(address.to(tl.pointer_type(kind)), 16) + place, value, mask=mask)


def table_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the addresses of tensors, on their device; odd ones for the wide tensors, if there are narrow ones too."""
    mixed = len({x.dtype for x in tensors}) > 1
    addresses = [x.data_ptr() + (mixed and x.dtype == torch.float32) for x in tensors]
    span = min(triton.next_power_of_2(len(addresses)), _ADDRESSES)
    addresses += addresses[:1] * (-len(addresses) % span)  # a kernel is compiled for each number of addresses
    table = torch.empty(len(addresses), dtype=torch.int64, device=tensors[0].device)
    for start in range(0, len(addresses), span):
        tabulate[(1,)](table[start:], tuple(addresses[start : start + span]), num_warps=1)
    return table


def ready(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that lie whole, from an address that vectors are read from."""
    whole = [x.contiguous() for x in tensors]
    return [x.clone() if x.data_ptr() % 16 else x for x in whole]
