"""Recurrence over time: one file per family of cells, behind one protocol, and `Recurrent`, which runs them."""

from levada.cells.cell import Cell as Cell
from levada.cells.cell import State as State
from levada.cells.cell import detach as detach
from levada.cells.gated import GRU as GRU
from levada.cells.gated import LSTM as LSTM
from levada.cells.plain import RNN as RNN
