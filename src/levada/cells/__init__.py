"""Recurrence over time: one file per family of cells, behind one protocol, and `Recurrent`, which runs them."""

from levada.cells.cell import Cell as Cell
from levada.cells.cell import State as State
from levada.cells.cell import detach as detach
from levada.cells.gated import GRU as GRU
from levada.cells.gated import LSTM as LSTM
from levada.cells.highway import RecurrentHighway as RecurrentHighway
from levada.cells.plain import RNN as RNN
from levada.cells.recurrent import Recurrent as Recurrent
from levada.cells.skips import Dilated as Dilated
from levada.cells.skips import Leaky as Leaky
from levada.cells.skips import ResidualInTime as ResidualInTime
