"""Stacked tensors that are divided among processes: the layers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from levada._errors import UsageError

__all__ = ["divided_as", "is_divided_by_depth", "layers_of", "part_of", "parts_of", "stacked_as", "write_layers"]


def is_divided_by_depth(stacked: Any) -> bool:
    """Return whether each process holds some layers whole, and of others nothing.

    Args:
        stacked: `[depth, ...]`, sharded or not.
    """
    return any(getattr(placement, "dim", None) == 0 for placement in getattr(stacked, "placements", ()))


def layers_of(stacked: Any, *, copied: bool = False) -> list[Tensor]:
    """Return each layer of a sharded tensor, sharded as a layer's own would be: `Shard(k)` becomes `Shard(k - 1)`.

    In the same memory, unless each process holds some layers whole. Then all processes must call it: what they hold
    is exchanged so that each has a part of every layer.

    Args:
        stacked: a DTensor `[depth, ...]`.
        copied: whether each layer gets memory of its own in any case. `torch.distributed.checkpoint.async_save` cannot
            read a DTensor that begins in the midst of its memory.

    Raises:
        UsageError: if it is divided in another way than by `Shard` and `Replicate`.
    """
    from torch.distributed.tensor import Replicate, Shard

    stacked = stacked.detach()
    for placement in stacked.placements:
        if type(placement) is not Shard and type(placement) is not Replicate:
            raise UsageError(
                f"Stack: stacked parameters may be sharded by Shard and Replicate, got {placement}. Shard them with "
                "fully_shard alone, or call arrange(stacked=False) before."
            )
    placements = _by_layer(stacked)
    local = _moved(stacked, placements)
    own = [Shard(p.dim - 1) if isinstance(p, Shard) else p for p in placements]
    values = [value.clone() for value in local.unbind(0)] if copied else local.unbind(0)
    return [_divided(value, stacked, stacked.shape[1:], own) for value in values]


def stacked_as(like: Any, layers: Sequence[Tensor]) -> Tensor:
    """Return the layers that `layers_of` gave, or others in their place, as one tensor that is divided like another.

    Args:
        like: a DTensor `[depth, ...]`; if each process holds some layers of it whole, all processes must call this.
        layers: DTensors, in order.

    Raises:
        UsageError: if one is not divided as `layers_of` gives them.
    """
    from torch.distributed.tensor import Shard

    placements = _by_layer(like)
    own = tuple(Shard(p.dim - 1) if isinstance(p, Shard) else p for p in placements)
    for i, layer in enumerate(layers):
        came = getattr(layer, "placements", None)
        if came != own or layer.shape != like.shape[1:]:
            raise UsageError(
                f"Stack: what is assigned to sharded layers must be a DTensor {tuple(like.shape[1:])} with "
                f"{own}, as state_dict() gives it, got {tuple(layer.shape)} with {came} for layer {i}. "
                "Leave out assign, which copies the values."
            )
    parts: list[Any] = [*layers]
    local = torch.stack([part.detach().to_local() for part in parts])
    made = _divided(local, like, like.shape, placements)
    return _divided(_moved(made, like.placements), like, like.shape, like.placements)


def divided_as(like: Any, value: Tensor) -> Tensor:
    """Return values divided like a DTensor; nothing is sent of those that each process has whole.

    Args:
        like: a DTensor.
        value: of its shape; another DTensor, if it is one of the same processes.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(value, DTensor):
        return distribute_tensor(value.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    if value.device_mesh != like.device_mesh or value.placements == like.placements:
        return value
    given: Any = value.detach()
    return given.redistribute(placements=like.placements)  # type: ignore[no-any-return]


def write_layers(stacked: Any, layers: Sequence[Tensor]) -> None:
    """Write what `layers_of` gave back into the tensor, where it was a copy; all processes must call it.

    Args:
        stacked: a DTensor `[depth, ...]`, of which each process holds some layers whole.
        layers: DTensors, in order.
    """
    made: Any = stacked_as(stacked, layers)
    if not stacked.is_meta:
        stacked.detach().to_local().copy_(made.to_local())


def parts_of(stacked: Any) -> list[Tensor]:
    """Return what of each layer is in this process, as plain tensors in the same memory; others are not asked.

    A layer that other processes hold is empty here.

    Args:
        stacked: a DTensor `[depth, ...]`.
    """
    start, local = _held(stacked)
    empty = local.new_empty((0, *local.shape[2:]))
    return [empty] * start + [*local.unbind(0)] + [empty] * (len(stacked) - start - len(local))


def part_of(stacked: Any, layer: int) -> Tensor:
    """Return one of `parts_of`.

    Args:
        stacked: a DTensor `[depth, ...]`.
        layer: index of the layer.
    """
    start, local = _held(stacked)
    here = 0 <= layer - start < len(local)
    return local[layer - start] if here else local.new_empty((0, *local.shape[2:]))


def _held(stacked: Any) -> tuple[int, Tensor]:
    """Return the first layer of which something is here, and what is here."""
    start, size = 0, len(stacked)
    places = zip(stacked.device_mesh.get_coordinate(), stacked.device_mesh.shape, stacked.placements, strict=True)
    for place, count, placement in places:
        if getattr(placement, "dim", None) == 0:  # as `torch.chunk` divides
            chunk = -(-size // count)
            skipped = min(place * chunk, size)
            start, size = start + skipped, min(chunk, size - skipped)
    return start, stacked.detach().to_local()


def _by_layer(stacked: Any) -> list[Any]:
    """Return the placements of a tensor of which each process has a part of every layer."""
    from torch.distributed.tensor import Replicate, Shard

    inner = Shard(1) if stacked.dim() > 1 else Replicate()
    return [inner if getattr(p, "dim", None) == 0 else p for p in stacked.placements]


def _divided(local: Tensor, like: Any, shape: Sequence[int], placements: Sequence[Any]) -> Tensor:
    """Return a DTensor over the processes of another, of which this process has a part already."""
    from torch.distributed.tensor import DTensor

    size = torch.Size(shape)
    strides = torch.empty(size, device="meta").stride()
    return DTensor.from_local(local, like.device_mesh, placements, run_check=False, shape=size, stride=strides)


def _moved(given: Any, placements: Sequence[Any]) -> Tensor:
    """Return what of a DTensor is here where it is divided in another way."""
    from torch.distributed.tensor import distribute_tensor

    if tuple(placements) == given.placements:
        return given.to_local()  # type: ignore[no-any-return]
    if given.is_meta:
        whole = torch.empty(given.shape, dtype=given.dtype, device="meta")
        return distribute_tensor(whole, given.device_mesh, placements, src_data_rank=None).to_local()
    local = given.redistribute(placements=placements).to_local()
    return (local.wait() if hasattr(local, "wait") else local).contiguous()  # type: ignore[no-any-return]
