"""Cells over time: torch's kernels behind the protocol against torch.nn, and loops against nn.LSTM.

python -m benchmarks.cells [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Program, Row, compare_times, main, require_equal
from levada.cells import GRU, LSTM, RNN, Cell, Dilated, Leaky, Recurrent, RecurrentHighway, ResidualInTime

Size = tuple[int, int, int]  # steps, batch, width


class Looped(nn.Module):
    """A cell as it runs; RNN, LSTM and GRU in the protocol's loop, which they take where no kernel can run."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if type(self.cell) in (RNN, LSTM, GRU):
            return (Cell.unroll(self.cell, x, self.cell.begin(x.shape[1]))[0],)
        return (self.cell.run(x)[0],)


def step(network: Callable[[Tensor], tuple[Tensor, ...]], parameters: list[Tensor], x: Tensor) -> Program:
    """Forward and backward; `parameters` in the order of torch.nn's."""

    def run() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        y = network(x)[0]
        y.mean().backward()
        return [y.detach(), *(p.grad for p in parameters if p.grad is not None)]

    return run


def _case(size: Size, what: str) -> str:
    steps, batch, width = size
    return f"{what}, {steps} steps, batch {batch}, width {width}"


def fused(kind: type[nn.RNNBase], size: Size, layers: int, repetitions: int, **options: bool) -> Iterator[Row]:
    """The library's cells against the module that has the same weights."""
    steps, batch, width = size
    module = kind(width, width, num_layers=layers, **options)
    net = Recurrent.from_torch(module)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ours = [getattr(cell, name) for cell in net.cells for name in names]
    x = torch.randn(steps, batch, width)
    programs = step(module, list(module.parameters()), x), step(net, ours, x)
    told = f"{layers} x {kind.__name__}{', both directions' if options else ''}"
    yield Row(
        benchmark="cells",
        case=_case(size, told),
        baseline=f"nn.{kind.__name__}",
        candidate="Recurrent",
        target=1.05,
        **compare_times(*programs, repetitions=repetitions),
    )


def lengths(size: Size, repetitions: int) -> Iterator[Row]:
    """Rows of all lengths, packed, against torch's packed kernel."""
    steps, batch, width = size
    module = nn.LSTM(width, width)
    net = Recurrent.from_torch(module)
    ends = torch.linspace(steps // 2, steps, batch).long()
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(steps, batch, width), ends, enforce_sorted=False)

    def data(network: nn.Module) -> Callable[[Tensor], tuple[Tensor]]:
        return lambda x: (network(packed)[0].data,)

    ours = [getattr(net.cells[0], name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    programs = step(data(module), list(module.parameters()), packed.data), step(data(net), ours, packed.data)
    yield Row(
        benchmark="cells",
        case=_case(size, "LSTM, packed"),
        baseline="nn.LSTM",
        candidate="Recurrent",
        target=None,
        **compare_times(*programs, repetitions=repetitions),
    )


def loop(name: str, cell: Cell, size: Size, repetitions: int) -> Iterator[Row]:
    """A loop of steps, checked against the steps themselves, in times of nn.LSTM's pass at the same size."""
    steps, batch, width = size
    x = torch.randn(steps, batch, width)
    parameters = list(cell.parameters())

    def by_hand(x: Tensor) -> tuple[Tensor]:
        state, outputs = None, []
        for one in x:
            state = cell(one, state)
            outputs.append(state[0])
        return (torch.stack(outputs),)

    network = step(Looped(cell), parameters, x)
    require_equal(step(by_hand, parameters, x), network)
    module = nn.LSTM(width, width)
    yield Row(
        benchmark="cells",
        case=_case(size, name),
        baseline="nn.LSTM",
        candidate=name,
        target=1.4,
        **compare_times(step(module, list(module.parameters()), x), network, repetitions=repetitions, check=False),
    )


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    size, repetitions = ((28, 4, 16), 7) if quick else ((784, 32, 128), 11)
    width = size[-1]
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        yield lambda kind=kind: fused(kind, size, 1, repetitions)
    yield lambda: fused(nn.LSTM, size, 2, 7, bidirectional=True)
    yield lambda: lengths((size[0] // 4, *size[1:]), 7)  # nn.LSTM's backward pass of packed rows is slow
    highways = RecurrentHighway(width, width), RecurrentHighway(width, width, depth=1)
    cells = {
        "RNN in a loop": RNN(width, width),
        "orthogonal RNN": RNN(width, width, constrained=True),
        "LSTM in a loop": LSTM(width, width),
        "GRU in a loop": GRU(width, width),
        **{f"recurrent highway of depth {cell.depth}": cell for cell in highways},  # the default, and the fastest
        "leaky RNN": Leaky(RNN(width, width), 0.1),
        "residual GRU": ResidualInTime(GRU(width, width), 0.01),
        "LSTM, dilation 8": Dilated(LSTM(width, width), 8),
    }
    for name, cell in cells.items():
        yield lambda name=name, cell=cell: loop(name, cell, size, 7)


if __name__ == "__main__":
    sys.exit(main("cells", cases))
