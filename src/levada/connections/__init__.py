"""Every connection of the library: one file per paper family; these import lines are the list."""

from levada.connections.residual import Plain as Plain
from levada.connections.residual import Residual as Residual
