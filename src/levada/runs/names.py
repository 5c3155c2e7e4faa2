"""Names of blocks, as short as they can be read side by side."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["bare_names", "span_name"]


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


def span_name(first: str, last: str) -> str:
    """Name a stretch of blocks; what the second name shares with the first, up to a point, is left out.

    Args:
        first: name of the first block.
        last: name of the last.

    Example:
        >>> span_name("layers.3", "layers.5"), span_name("layers.3", "head"), span_name("head", "head")
        ('layers.3 to 5', 'layers.3 to head', 'head')
    """
    if first == last:
        return first
    parts, others = first.split("."), last.split(".")
    shared = next(i for i, (a, b) in enumerate([*zip(parts, others, strict=False), ("", "?")]) if a != b)
    return f"{first} to {'.'.join(others[shared:]) or last}"
