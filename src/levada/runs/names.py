"""Names of blocks, as short as they can be read side by side."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["bare_names"]


def bare_names(names: Sequence[str]) -> list[str]:
    """Leave out the parts, between points, that all names begin and end with.

    Args:
        names: qualified names of modules.

    Example:
        >>> bare_names(["model.layers.0.block", "model.layers.1.block"])
        ['0', '1']
    """
    parts = [name.split(".") for name in names]
    least = min((len(one) for one in parts), default=1) - 1
    first = next((i for i in range(least) if len({one[i] for one in parts}) > 1), least)
    behind = next((i for i in range(least - first) if len({one[-1 - i] for one in parts}) > 1), least - first)
    return [".".join(one[first : len(one) - behind]) for one in parts]
