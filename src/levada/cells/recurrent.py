"""Cells over time: layers, directions, lengths, and what is carried from one stretch to the next."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from levada._errors import UsageError, require_at_least, require_number
from levada.cells.cell import Cell, State, traced
from levada.cells.sweep import Lengths, Sweep
from levada.cells.torch_modules import cells_of, module_of
from levada.connection import Connection
from levada.initialise.recurrent import kind_of
from levada.stack import Stack

__all__ = ["Recurrent"]


@final
class Recurrent(nn.Module):
    """Cells over time.

    `(outputs, states) = recurrent(x, states)`; the last layer's h at each step, and every layer's last state

    Args:
        cell: a function from the width that a layer reads to a new cell, such as `lambda dim_in: GRU(dim_in, 64)`; or
            the cells themselves, layer by layer, and in each layer first the one that goes forward.
        dim_in: width of the input; needed if `cell` is a function.
        depth: number of layers; 1 if left out. Of cells that are given, it follows.
        connection: a class such as `levada.Residual`, called as in `levada.Stack`: it connects the layers, from the
            input on, which must be as wide as what a layer gives out. None: each reads what the one before gave out.
        bidirectional: a second cell in each layer begins at the last step; both outputs stand side by side.
        dropout: probability with which a number that goes from one layer to the next is dropped, in training.
        batch_first: sequences are `(batch, steps, dim)`; states never are.
        truncate: cut the gradient every so many steps: truncated backpropagation. The states go on.
        options: further arguments of the connection, and `checkpoint` and `compile` of `levada.Stack`.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, directions * dim)`. States are a tuple with the state of each cell, in
        the order of `torch.nn.LSTM`: layers, and in each layer directions.

    Cost:
        One pass of each cell. Rows of several lengths run in as many pieces as there are lengths; no step is computed
        that a row does not have, unless lengths are a tensor in a trace.

    Raises:
        UsageError: if an argument contradicts another, or cells do not fit together.

    Example:
        >>> from levada.cells import LSTM
        >>> net = Recurrent(lambda dim_in: LSTM(dim_in, 8), dim_in=3, depth=2, bidirectional=True)
        >>> outputs, states = net(torch.randn(10, 4, 3), lengths=[10, 7, 2, 1])
        >>> outputs.shape, len(states), bool(outputs[2:, 2].any())
        (torch.Size([10, 4, 16]), 4, False)
        >>> torch.equal(states[2][0], torch.stack([outputs[n - 1, row, :8] for row, n in enumerate([10, 7, 2, 1])]))
        True
    """

    def __init__(
        self,
        cell: Callable[[int], Cell] | Iterable[Cell],
        *,
        dim_in: int | None = None,
        depth: int | None = None,
        connection: Callable[..., Connection] | None = None,
        bidirectional: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
        truncate: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require_number("Recurrent", "dropout", dropout)
        if not 0 <= dropout < 1:
            raise UsageError(f"Recurrent: dropout must be in [0, 1), got {dropout}.")
        if truncate is not None:
            require_at_least("Recurrent", "truncate", truncate, 1)
        if options and connection is None:
            raise UsageError(f"Recurrent: {', '.join(options)} are options of a connection, and connection is None.")
        self.directions = 2 if bidirectional else 1
        self.batch_first, self.dropout, self.truncate = batch_first, float(dropout), truncate
        # A module can be called, too, but makes no cell.
        given: list[list[Cell]] | None = None
        if isinstance(cell, nn.Module) or not callable(cell):
            given = _grouped(cell, self.directions, depth)

        def sweep(layer: int, width: int) -> Sweep:
            cells = [_made(cell, width) for _ in range(self.directions)] if given is None else given[layer]
            _require_fit(cells, width, layer)
            return Sweep(cells, layer=layer, dropout=self.dropout if layer else 0.0, truncate=truncate)

        num = len(given) if given is not None else 1 if depth is None else depth
        require_at_least("Recurrent", "depth", num, 1)
        width = _width_read(dim_in, given)
        self.dim_in = width
        if connection is None:
            sweeps: list[nn.Module] = []
            for layer in range(num):
                sweeps.append(sweep(layer, width))
                width = self._width(sweeps[-1])
            self.layers: nn.ModuleList | Stack = nn.ModuleList(sweeps)
            self.dim_out = width
        else:
            count = iter(range(num))
            self.layers = Stack(lambda width: sweep(next(count), width), connection, dim=width, depth=num, **options)
            self.dim_out = self.layers.dim_out
            for one in self.layers:
                stream, width = one.connection, self._width(one.branch)
                if stream.dim_out == stream.dim and width != stream.dim_in:
                    raise UsageError(
                        f"Recurrent: layer {stream.layer} must give out a width of {stream.dim_in}, which it reads "
                        f"from the stream, got {width}. Put an nn.Linear before, or change the cells' dim."
                    )

    @staticmethod
    def _width(sweep: nn.Module) -> int:
        assert isinstance(sweep, Sweep)
        return sum(cell.dim for cell in sweep)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in the order of the states: layers, and in each layer directions."""
        sweeps: list[Any] = [getattr(layer, "branch", layer) for layer in self.layers]
        return tuple(cell for sweep in sweeps for cell in sweep)

    def begin(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> tuple[State, ...]:
        """Return the states before the first step: zeros.

        Args:
            batch: number of rows.
            device: of the states.
            dtype: of the states.
        """
        return tuple(cell.begin(batch, device=device, dtype=dtype) for cell in self.cells)

    def forward(
        self,
        x: Tensor | PackedSequence,
        states: Sequence[State] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, tuple[State, ...]]:
        """Run all layers over a sequence.

        Args:
            x: the sequence, or a packed one.
            states: before the first step, as they were returned; zeros if left out.
            lengths: number of steps of each row. What stands behind has no effect, and its output is zero. Of a tensor
                whose values cannot be seen, as while compiling, those out of range are moved into it, and every row
                takes every step; a list is a part of what is compiled.

        Returns:
            Outputs, packed as `x` was, and the state of each cell after its last step: of one that goes backward, after
            the first element.

        Raises:
            UsageError: if the sequence has no step, or lengths, states or dtypes do not fit.
        """
        if isinstance(x, PackedSequence):
            return self._packed(x, states, lengths)
        if x.ndim != 3:
            shape = "(batch, steps, dim_in)" if self.batch_first else "(steps, batch, dim_in)"
            raise UsageError(f"Recurrent: a sequence must be {shape}, got {tuple(x.shape)}. Add the axis of the batch.")
        x = x.transpose(0, 1) if self.batch_first else x
        steps, batch = x.shape[:2]
        given = None if states is None else self._fitting(states, batch)
        if lengths is None:
            y, last = self._through(x, given, None)
        else:
            among = _lengths(lengths, steps, batch, x.device)
            padding = among.padding(steps)
            x = x.index_select(1, among.order).masked_fill(padding, 0.0)
            y, last = self._through(x, None if given is None else _rows(given, among.order), among)
            y = y.masked_fill(padding, 0.0).index_select(1, among.back)
            last = _rows(last, among.back)
        return (y.transpose(0, 1) if self.batch_first else y), last

    def _packed(self, x: PackedSequence, states: Sequence[State] | None, lengths: Any) -> tuple[Any, Any]:
        if lengths is not None:
            raise UsageError("Recurrent: a packed sequence has its lengths, and lengths are given. Leave them out.")
        padded, ends = pad_packed_sequence(x, batch_first=self.batch_first)
        y, last = self.forward(padded, states, lengths=ends)
        if x.sorted_indices is not None:
            y = y.index_select(0 if self.batch_first else 1, x.sorted_indices)
            ends = ends[x.sorted_indices.cpu()]
        data, sizes, *_ = pack_padded_sequence(y, ends, batch_first=self.batch_first)
        return PackedSequence(data, sizes, x.sorted_indices, x.unsorted_indices), last

    def _through(
        self, x: Tensor, states: tuple[State, ...] | None, lengths: Lengths | None
    ) -> tuple[Tensor, tuple[State, ...]]:
        last: list[State] = []
        if isinstance(self.layers, Stack):
            x, extras = self.layers(x, states, lengths)
            for extra in extras:
                last.extend(extra[0])
            return x, tuple(last)
        for layer in self.layers:
            x, after = layer(x, states, lengths)
            last.extend(after)
        return x, tuple(last)

    def _fitting(self, states: Sequence[State], batch: int) -> tuple[State, ...]:
        cells = self.cells
        shapes = [[(batch, *shape) for shape in cell.state_shapes] for cell in cells]
        got: Any = None
        if isinstance(states, tuple | list) and all(isinstance(state, tuple | list) for state in states):
            got = [[tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__ for s in one] for one in states]
        if got != shapes:
            raise UsageError(
                f"Recurrent: states must be a state for each of {len(cells)} cells, of shapes {shapes}, got "
                f"{type(states).__name__ if got is None else got}. See begin."
            )
        return tuple(tuple(state) for state in states)

    @classmethod
    def from_torch(cls, module: nn.RNNBase) -> Recurrent:
        """Return an `nn.LSTM`, `nn.GRU` or `nn.RNN` with its weights, copied.

        Args:
            module: any number of layers, both directions; no projections.

        Raises:
            UsageError: if it is another module, has projections or a forward of its own, or computes a weight from
                other parameters.

        Example:
            >>> lstm, x = nn.LSTM(3, 5, num_layers=2, bidirectional=True), torch.randn(7, 2, 3)
            >>> bool(torch.allclose(Recurrent.from_torch(lstm)(x)[0], lstm(x)[0], atol=1e-6))
            True
        """
        cells = cells_of(module)
        both, dropout, first = module.bidirectional, module.dropout, module.batch_first
        return cls(cells, bidirectional=both, dropout=dropout, batch_first=first).train(module.training)

    def to_torch(self) -> nn.RNNBase:
        """Return the `nn.LSTM`, `nn.GRU` or `nn.RNN` with these weights, copied.

        Raises:
            UsageError: if the cells are not those of one such module, one computes a weight from other parameters, or
                there is a connection or a truncation.
        """
        if isinstance(self.layers, Stack) or self.truncate is not None:
            raise UsageError("Recurrent: to_torch needs layers without a connection and without truncate.")
        module = module_of(self.cells, self.directions, self.dropout, self.batch_first)
        return module.train(self.training)

    def extra_repr(self) -> str:
        """Say what is not seen in the layers."""
        told = {"batch_first": self.batch_first, "truncate": self.truncate}
        return ", ".join(f"{name}={value}" for name, value in told.items() if value)


def _grouped(cells: Any, directions: int, depth: int | None) -> list[list[Cell]]:
    """Return the cells of each layer."""
    if isinstance(cells, nn.Module) and not isinstance(cells, nn.ModuleList | nn.Sequential):
        if isinstance(cells, nn.RNNBase):
            hint = "Call Recurrent.from_torch with it"
        else:
            hint = "Put it in a list" if isinstance(cells, Cell) else "See levada.cells.Cell"
        raise UsageError(
            "Recurrent: cell must be a function from a width to a Cell, or cells in a list, got "
            f"{kind_of(cells)}. {hint}."
        )
    found = list(cells) if isinstance(cells, Iterable) else []
    if not found or not all(isinstance(cell, Cell) for cell in found):
        raise UsageError(
            "Recurrent: cell must be a function from a width to a Cell, or cells in a list, got "
            f"{[type(cell).__name__ for cell in found] or repr(cells)}."
        )
    if len(set(map(id, found))) < len(found):
        raise UsageError("Recurrent: each layer and direction must have a cell of its own, and one is there twice.")
    if len(found) % directions or depth not in (None, len(found) // directions):
        raise UsageError(
            f"Recurrent: there must be {directions} cell(s) for each layer and depth their number of layers or left "
            f"out, got {len(found)} cells and depth={depth}."
        )
    return [found[i : i + directions] for i in range(0, len(found), directions)]


def _width_read(dim_in: int | None, given: list[list[Cell]] | None) -> int:
    """Return the width of the input."""
    width = dim_in if given is None else given[0][0].dim_in
    if width is None:
        raise UsageError("Recurrent: dim_in must be given to a function that makes cells, got None. Say what is read.")
    if dim_in not in (None, width):
        raise UsageError(
            f"Recurrent: dim_in must be the width that the first cell reads, {width}, got {dim_in}. Leave it out."
        )
    require_at_least("Recurrent", "dim_in", width, 1)
    return width


def _made(cell: Any, width: int) -> Cell:
    try:
        inspect.signature(cell).bind(width)
    except TypeError as error:
        name = getattr(cell, "__name__", type(cell).__name__)
        raise UsageError(
            f"Recurrent: cell must make a Cell from a width alone, got {name}: {error}. Wrap it: lambda dim_in: "
            f"{name}(dim_in, 64)."
        ) from None
    except ValueError:
        pass  # it has no signature to look at
    made = cell(width)
    if not isinstance(made, Cell):
        raise UsageError(f"Recurrent: cell must make a Cell, got {type(made).__name__}.")
    return made


def _require_fit(cells: Sequence[Cell], width: int, layer: int) -> None:
    for cell in cells:
        if cell.dim_in != width:
            raise UsageError(f"Recurrent: cells of layer {layer} must read a width of {width}, got {cell.dim_in}.")


def _lengths(lengths: Tensor | Sequence[int], steps: int, batch: int, device: torch.device) -> Lengths:
    rule = f"Recurrent: lengths must be {batch} integers from 1 to {steps}, one for each row"
    if isinstance(lengths, Tensor) and traced(lengths):
        if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise UsageError(f"{rule}, got {tuple(lengths.shape)} of {lengths.dtype}.")
        return Lengths.unseen(lengths, steps, device)
    given: Any = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    values: list[Any] = list(given) if isinstance(given, Iterable) else []
    values = [n if isinstance(n, int) or not hasattr(n, "__index__") else n.__index__() for n in values]
    whole = isinstance(given, Iterable) and all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    if not whole or len(values) != batch or not all(1 <= n <= steps for n in values):
        raise UsageError(f"{rule}, got {values if isinstance(given, Iterable) else given}.")
    return Lengths.of(values, device)


def _rows(states: Sequence[State], order: Tensor) -> tuple[State, ...]:
    return tuple(tuple(s.index_select(0, order) for s in state) for state in states)
