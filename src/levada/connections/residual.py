"""Plain and residual connections."""

from __future__ import annotations

from typing import final

from torch import Tensor

from levada.connection import SingleStream

__all__ = ["Plain", "Residual"]


@final
class Plain(SingleStream):
    """No connection: `x' = f(x)`."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the branch's output."""
        return out


@final
class Residual(SingleStream):
    """`x' = x + f(x)`. Source: He, Zhang, Ren and Sun, 2015, arXiv 1512.03385."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return `state + out`."""
        return state + out
