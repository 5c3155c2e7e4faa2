"""levada keeps the learning signal alive at any depth: it carries it, measures it and proves it.

Names load on first use, so that `levada --help` and the report do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from levada.connection import Connection as Connection
    from levada.connection import Layer as Layer
    from levada.connection import Stack as Stack
    from levada.connections import Plain as Plain
    from levada.connections import Residual as Residual

__version__ = "0.1.0"

_HOMES = {
    "levada.connection": ("Connection", "Layer", "Stack"),
    "levada.connections": ("Plain", "Residual"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'levada' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
