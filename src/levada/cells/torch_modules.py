"""Cells from, and to, the recurrent modules of torch.nn, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from levada._errors import UsageError
from levada.cells.affine import AffineCell
from levada.cells.cell import Cell
from levada.cells.gated import GRU, LSTM
from levada.cells.plain import RNN
from levada.initialise.recurrent import kind_of

__all__ = ["cells_of", "module_of"]

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@torch.no_grad()
def cells_of(module: nn.RNNBase) -> list[Cell]:
    """Return a cell for each layer and direction of a module of torch.nn, with its weights.

    Args:
        module: an LSTM, GRU or RNN.

    Raises:
        UsageError: if it is another module, has projections or a forward of its own, or computes a weight from others.
    """
    if not isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        raise UsageError(f"from_torch: module must be an nn.LSTM, nn.GRU or nn.RNN, got {type(module).__name__}.")
    kind: Any = next(one for one in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, one))
    if "forward" in vars(module) or type(module).forward is not kind.forward:
        raise UsageError(
            f"from_torch: module must have the forward of nn.{kind.__name__}, got {type(module).__name__} with its "
            "own. Write a Cell that takes its step."
        )
    if module.proj_size:
        raise UsageError(f"from_torch: module must have no projections, got proj_size={module.proj_size}.")
    _require_own_weights("from_torch", "a module", module, module._flat_weights_names)
    directions, size = 2 if module.bidirectional else 1, module.hidden_size
    cells: list[Cell] = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            dim_in = directions * size if layer else module.input_size
            cell: AffineCell
            if isinstance(module, nn.RNN):
                cell = RNN(dim_in, size, nonlinearity=module.nonlinearity, bias=module.bias)
            else:
                cell = (LSTM if isinstance(module, nn.LSTM) else GRU)(dim_in, size, bias=module.bias)
            weight: Any = module.weight_ih_l0
            cell.to(weight)
            for name in _NAMES[: 4 if module.bias else 2]:
                theirs = getattr(module, f"{name}_l{layer}{suffix}")
                getattr(cell, name).copy_(theirs).requires_grad_(theirs.requires_grad)
            cells.append(cell)
    return cells


@torch.no_grad()
def module_of(cells: Sequence[Cell], directions: int, dropout: float, batch_first: bool) -> nn.RNNBase:
    """Return the module of torch.nn with the weights of these cells.

    Args:
        cells: layer by layer, and in each layer by direction.
        directions: 1 or 2.
        dropout: between layers.
        batch_first: whether sequences are `(batch, steps, dim)`.

    Raises:
        UsageError: if they are of several kinds or widths, or of a kind that torch.nn does not have, or one computes a
            weight from others.
    """
    first = cells[0]
    for cell in cells:
        if isinstance(cell, AffineCell):
            _require_own_weights("to_torch", "a cell", cell, _NAMES[: 4 if cell.bias else 2])
    alike = {(type(c), c.dim, getattr(c, "bias", None), getattr(c, "nonlinearity", None)) for c in cells}
    if not isinstance(first, AffineCell) or len(alike) > 1:
        kinds = ", ".join(sorted({f"{type(c).__name__} of {c.dim}" for c in cells}))
        raise UsageError(f"to_torch: cells must all be LSTM, GRU or RNN, alike and of one width, got {kinds}.")
    options = {
        "num_layers": len(cells) // directions,
        "bias": first.bias,
        "batch_first": batch_first,
        "bidirectional": directions == 2,
    }
    module: nn.RNNBase
    if isinstance(first, RNN):
        module = nn.RNN(first.dim_in, first.dim, nonlinearity=first.nonlinearity, **options)
    else:
        module = (nn.LSTM if isinstance(first, LSTM) else nn.GRU)(first.dim_in, first.dim, **options)
    module.dropout = dropout  # not in the call: where there is one layer, torch warns that it drops nothing
    module.to(first.weight_ih)
    for index, cell in enumerate(cells):
        suffix = f"_l{index // directions}{'_reverse' if index % directions else ''}"
        for name in _NAMES[: 4 if first.bias else 2]:
            ours = getattr(cell, name)
            getattr(module, f"{name}{suffix}").copy_(ours).requires_grad_(ours.requires_grad)
    return module


def _require_own_weights(owner: str, what: str, module: nn.Module, names: Sequence[str]) -> None:
    """Raise if weights are not parameters but computed from some: parametrized, normalised or pruned."""
    for name in names:
        if name not in module._parameters:
            raise UsageError(
                f"{owner}: {what} must hold its weights itself, got {kind_of(module)}, whose {name} is computed from "
                "other parameters. Take off what computes it, such as by parametrize.remove_parametrizations."
            )
