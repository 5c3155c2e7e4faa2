"""Sums of squares of weights, gradients and updates, by parameter, in few kernels, of as much of them as is here."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from levada._errors import require_at_least
from levada.probe.squares import sums_of_squares
from levada.stacking import LayerSlice
from levada.watching.measure.listed import Listed
from levada.watching.measure.stacked import Stacked, Stacks

__all__ = ["COLUMNS", "SITE_COLUMNS", "Packed", "ParameterNorms", "is_sharded", "pairs"]

COLUMNS: Final = ("weight", "gradient", "update", "count", "nonfinite")
"""Sums of squares, the number of elements, and whether the weight or the gradient holds a NaN or an infinity."""

SITE_COLUMNS: Final = ("weight", "count", "gradient", "gradient_count", "update", "update_weight")
"""What `Packed.by_site` adds up; "update_weight" is the sum of squares of the weights whose update was measured."""

_MEASURED = torch.float16, torch.bfloat16, torch.float32, torch.float64
_PLAIN = Tensor, nn.Parameter
_KEPT = 64  # constants on the device: a few for each way of grouping and each turn


@final
@dataclass(frozen=True, slots=True)
class Packed:
    """What one optimizer step did to the parameters, as far as they are in this process.

    Attributes:
        names: the parameters, a tied one once, under its first name.
        values: `(parameters, len(COLUMNS))` in float64 (float32 where the device has none), on the device; NaN where
            a column does not exist: weight, gradient and update of a parameter that is not floating, gradient and
            update of a frozen one, the update of one whose turn it was not.
        shards: into how many parts each one is cut, one of which is here; 1 if it is whole in every process.
        measured: whether each one has the columns weight, gradient and update: `(parameters, 3)`, on the host.
        unused: rows whose gradients the update did not use, as their optimizer rested.
    """

    names: tuple[str, ...]
    values: Tensor
    shards: Tensor
    measured: Tensor
    unused: Sequence[int] = ()

    def host(self, values: Tensor | None = None) -> Packed:
        """Return the same with the values on the host: copied now, which waits for the device, or given."""
        return replace(self, values=self.values.cpu() if values is None else values)

    def shares(self, processes: int) -> Tensor:
        """Return how often each parameter counts in a sum over so many processes: `shards / processes`; 1 in one."""
        return self.shards / processes if processes > 1 else torch.ones_like(self.shards)

    def by_site(self, where: tuple[Tensor, Tensor], sites: int, *, processes: int = 1) -> Tensor:
        """Add up the parameters of each site, on the host.

        Args:
            where: rows of parameters and the sites that they belong to, from `pairs`.
            sites: the number of sites.
            processes: over how many processes the result will be summed, to be that of one.

        Shape:
            `(sites, len(SITE_COLUMNS))`, zero where nothing was measured.

        Raises:
            RuntimeError: if the values are on another device; call `host` first.
        """
        rows, at = where
        weight, gradient, update, count, _ = (self.values * self.shares(processes)[:, None])[rows].unbind(1)
        result = self.values.new_zeros(len(SITE_COLUMNS), sites)
        columns = ((weight, 0), (count, 0), (gradient, 1), (count, 1), (update, 2), (weight, 2))
        for total, (column, kind) in zip(result, columns, strict=True):
            known = self.measured[rows, kind]
            total.index_add_(0, at[known], column[known])
        return result.t()

    def gradient_square(self, *, processes: int = 1) -> float:
        """Return the sum of squares of all gradients that the update used, on the host; see `by_site`."""
        used = self.measured[:, 1].clone()
        used[list(self.unused)] = False
        return float((self.values[:, 1] * self.shares(processes))[used].sum())


def pairs(names: Sequence[str], places: Mapping[str, Iterable[int]]) -> tuple[Tensor, Tensor]:
    """Return rows and sites: where a parameter belongs.

    Args:
        names: the parameters, in the order of rows.
        places: the sites of a parameter by its name; others belong to none.

    Example:
        >>> pairs(["a", "b"], {"b": [0, 3]})
        (tensor([1, 1]), tensor([0, 3]))
    """
    found = [(row, site) for row, name in enumerate(names) for site in places.get(name, ())]
    rows, at = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return rows, at


@final
class ParameterNorms:
    r"""Sums of squares $\sum w^2$, $\sum g^2$ and $\sum (w_{t+1} - w_t)^2$ of each parameter over one optimizer step.

    Call `before` when the optimizer is about to step and `after` when it has. Nothing waits for the device, nothing is
    sent to other processes, and nothing stays attached.

    - A DTensor is measured where it is: its local part, which `Packed.shards` says how to add up. A gradient that is
      a partial sum, which only communication could finish, has no column.
    - A parameter that no gradient reached has a gradient of zero. A sparse gradient counts with its repeated indices
      added. A lazy parameter has no columns until it has a shape.
    - Half precision is accumulated in float32 or wider. The update of half-precision weights is their difference in
      that type: exact where it is below half of the weight (Sterbenz), else rounded once.

    Args:
        parameters: a model, or names and parameters, after sharding; a parameter that comes again is left out.
        copy_bytes: how much of the weights may be copied, which the update needs, on one sampled step; parameters
            take turns if they are more, at least one at a time. The copy lives during the optimizer's step alone, when
            activations are gone.

    Raises:
        UsageError: if `copy_bytes` is negative.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> nn.init.constant_(layer.weight, 2.0).sum().backward()
        >>> optimizer, norms = torch.optim.SGD(layer.parameters(), lr=0.5), ParameterNorms(layer)
        >>> norms.before(); optimizer.step(); packed = norms.after()
        >>> dict(zip(COLUMNS, packed.values[0].tolist()))
        {'weight': 16.0, 'gradient': 4.0, 'update': 1.0, 'count': 4.0, 'nonfinite': 0.0}

    Cost: one pass over weights, gradients and updates each, and the copy: per type of number and device, seven fused
    calls, however many parameters there are.
    """

    def __init__(self, parameters: nn.Module | Iterable[tuple[str, nn.Parameter]], *, copy_bytes: int = 2**30) -> None:
        require_at_least("ParameterNorms", "copy_bytes", copy_bytes, 0)
        named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
        unique: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameter in named:
            unique.setdefault(id(parameter), (name, parameter))
        self.names = tuple(name for name, _ in unique.values())
        self.parameters = [parameter for _, parameter in unique.values()]
        self.copy_bytes = copy_bytes
        self._turn = 0
        self._stacks = Stacks(self.parameters)
        self._constants: dict[Any, Tensor] = {}
        self._forget()

    def _forget(self) -> None:
        self._weights: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor | None] = {}
        self._copies: dict[int, Tensor] = {}
        self._sums: tuple[Tensor, Tensor | None] | None = None
        self._stacked: list[Stacked | Listed] = []

    @torch.no_grad()
    def before(self, scale: Tensor | float | None = None, *, gradients: bool = True, updates: bool = True) -> None:
        """Measure weights and gradients, and copy the weights whose update is to be measured.

        Args:
            scale: what the gradients are multiplied by, such as `optimizer.grad_scale` of a fused optimizer, which a
                `GradScaler` leaves to unscale them; None if by nothing.
            gradients: whether they are measured now; else in `after`, since those of this step are still to come.
            updates: whether an update comes, which is to be measured; one that is not made is no update of 0.
        """
        self._forget()
        self._stacked = self._stacks.usable(self.copy_bytes) if gradients and updates else []
        for stacked in self._stacked:
            stacked.before(1.0 if scale is None else float(scale))
        apart = {i for stacked in self._stacked for i in stacked.rows}
        rest = [(i, p) for i, p in enumerate(self.parameters) if i not in apart]
        self._weights = {i: w for i, p in rest if (w := _local(p)) is not None}
        if not self._weights:
            return
        self._device = next(iter(self._weights.values())).device
        self._sums = self._squares(self._weights), self._measure_gradients(scale) if gradients else None
        chosen = self._next_turn() if updates else {}
        for where in _grouped(chosen):
            weights = [chosen[i] for i in where]
            copies = [torch.empty_like(weight) for weight in weights]
            torch._foreach_copy_(copies, weights)
            self._copies.update(zip(where, copies, strict=True))

    @torch.no_grad()
    def after(self, scale: Tensor | float | None = None) -> Packed:
        """Return what was measured, and forget the copies.

        Args:
            scale: as in `before`, for gradients that came during the step, from a closure.
        """
        rows = range(len(self.names))
        shards = torch.ones(len(rows), dtype=torch.float64)
        if not {*map(type, self.parameters)} <= {*_PLAIN}:
            shards = torch.tensor([float(_shards(p)) for p in self.parameters], dtype=torch.float64)
        measured = torch.zeros(len(rows), 3, dtype=torch.bool)
        values = torch.tensor([math.nan] * 3 + [0.0] * 2, dtype=torch.float64).repeat(len(rows), 1)
        if self._sums is not None:
            values = self._after_each(self._sums, measured, scale)
        for stacked in self._stacked:
            at = torch.tensor(stacked.rows)
            values[at] = stacked.after(1.0 if scale is None else float(scale)).to(values.dtype)
            measured[at] = torch.tensor([True, stacked.learns, stacked.learns])
        self._forget()
        return Packed(self.names, values, shards, measured)

    def _after_each(self, sums: tuple[Tensor, Tensor | None], measured: Tensor, scale: Tensor | float | None) -> Tensor:
        """Return the values of the parameters that are in no stack, and mark what of them was measured."""
        rows = range(len(self.names))
        weight, gradient = sums
        if gradient is None or (self._gradients and all(g is None for g in self._gradients.values())):
            gradient = self._measure_gradients(scale)
        for where in _grouped(self._copies):
            now = [w if (w := _local(self.parameters[i])) is not None else self._copies[i] for i in where]
            torch._foreach_sub_([self._copies[i] for i in where], now)
        known: tuple[Mapping[int, object], ...] = self._weights, self._gradients, self._copies
        for column, have in enumerate(known):
            measured[list(have), column] = True
        bad = torch.zeros_like(weight)
        for squares, have in zip((weight, gradient), known, strict=False):
            bad += ~torch.isfinite(squares) & self._constant(tuple(i in have for i in rows))
        size = self._constant(tuple(float(self._weights[i].numel()) if i in self._weights else 0.0 for i in rows))
        columns = weight, gradient, self._squares(self._copies), size, bad.clamp_(max=1.0)
        return torch.stack([column.to(weight.dtype) for column in columns], dim=1)

    def _measure_gradients(self, scale: Tensor | float | None) -> Tensor:
        self._gradients = {i: g for i in self._weights if (g := _gradient(self.parameters[i])) is not _UNKNOWN}
        squares = self._squares(self._gradients)
        if isinstance(scale, Tensor):
            scale = scale.to(squares.device, squares.dtype, non_blocking=True)
        return squares if scale is None else squares / (scale * scale)

    def _next_turn(self) -> dict[int, Tensor]:
        """Return the weights whose turn it is: the same ones in every process, wherever the cuts are."""
        trained = [i for i in self._weights if self.parameters[i].requires_grad]
        room, chosen = self.copy_bytes, dict[int, Tensor]()
        for i in [i for i in trained if i >= self._turn] + [i for i in trained if i < self._turn]:
            whole = self.parameters[i]
            size = whole.whole if isinstance(whole, LayerSlice) else whole.numel()
            room -= math.ceil(size / _shards(whole)) * whole.element_size()
            if self.copy_bytes == 0 or (room < 0 and chosen):
                self._turn = i
                break
            chosen[i] = self._weights[i]
        return chosen

    def _squares(self, values: Mapping[int, Tensor | None]) -> Tensor:
        """Return the sum of squares of each row: NaN where there is none, 0 where it is None."""
        blocks, length = [self._constant((0.0, math.nan))], 2
        places = dict.fromkeys(values, 0)
        present = {i: value for i, value in values.items() if value is not None}
        for where in _grouped(present):
            sums = _sum_of_squares([present[i] for i in where])
            blocks.append(sums.to(self._device, blocks[0].dtype, non_blocking=True))
            places.update(zip(where, itertools.count(length)))
            length += len(where)
        return torch.cat(blocks)[self._constant(tuple(places.get(i, 1) for i in range(len(self.names))))]

    def _constant(self, values: tuple[float, ...]) -> Tensor:
        """Return numbers as a tensor on the device, and keep it: copying it there would wait for the device."""
        key = self._device, type(values[0]), values
        if key not in self._constants:
            if len(self._constants) >= _KEPT:
                self._constants.clear()
            dtype = _wide(self._device) if isinstance(values[0], float) else None
            self._constants[key] = torch.tensor(values, dtype=dtype, device=self._device)
        return self._constants[key]


_UNKNOWN: Final = object()


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _grouped(values: Mapping[int, Tensor]) -> list[list[int]]:
    """Return the rows by device and type: what a fused call can take together."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, value in values.items():
        groups.setdefault((value.device, value.dtype), []).append(i)
    return list(groups.values())


def _sum_of_squares(values: list[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor; all are on one device and of one type."""
    device, dtype = values[0].device, values[0].dtype
    wide = _wide(device)
    if device.type != "cpu" or dtype == torch.float64:
        return torch.stack(torch._foreach_norm(values, 2, dtype=wide)).square_()
    return sums_of_squares(values)


def is_sharded(value: Tensor) -> bool:
    """Return whether a tensor is a DTensor, or what one process has of a layer in it."""
    if type(value) in _PLAIN:  # `isinstance` is slow on tensors
        return False
    if type(value) is LayerSlice:
        return hasattr(value, "placements")
    module = sys.modules.get("torch.distributed.tensor")  # if nothing has imported it, there are none
    return module is not None and isinstance(value, module.DTensor)


def _shards(parameter: Tensor) -> int:
    """Return into how many different parts a parameter is cut."""
    if not is_sharded(parameter):
        return 1
    distributed: Any = parameter
    sizes = zip(distributed.device_mesh.shape, distributed.placements, strict=True)
    return math.prod(size for size, placement in sizes if not (placement.is_replicate() or placement.is_partial()))


def _local(value: Tensor) -> Tensor | None:
    """Return as plain floating numbers what of a parameter or a gradient is here; None if it has none."""
    if type(value) in _PLAIN and value.dtype in _MEASURED and value.layout == torch.strided and not value.is_meta:
        return value.detach()
    if is_lazy(value) or value.is_meta:
        return None
    if is_sharded(value):
        distributed: Any = value
        if any(placement.is_partial() for placement in distributed.placements):
            return None
        value = value if type(value) is LayerSlice else distributed.to_local()
    if hasattr(value, "__tensor_flatten__"):  # quantised weights and the like, whose numbers only their class knows
        return None
    value = value.detach()
    if value.is_sparse:
        value = value.coalesce().values()
    elif value.layout != torch.strided:
        value = value.to_dense()
    if value.is_complex():
        value = torch.view_as_real(value)
    return value if value.dtype in _MEASURED else None


def _gradient(parameter: nn.Parameter) -> Any:
    """Return the gradient, None if no gradient reached the parameter, or `_UNKNOWN` if it has none to measure."""
    if not parameter.requires_grad:
        return _UNKNOWN
    if parameter.grad is None:
        return None
    local = _local(parameter.grad)
    return _UNKNOWN if local is None else local
