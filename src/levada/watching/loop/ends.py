"""What has to be done at the end, wherever Ctrl-C comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["each_end", "undone"]


def each_end(*ends: Callable[[], Any], again: bool = False) -> None:
    """Call each of these, also behind one that raised; then raise what came first.

    Args:
        ends: in order.
        again: whether one that Ctrl-C broke off is called once more, as may be done with what takes something off.

    Example:
        >>> done = []
        >>> each_end(lambda: 1 / 0, lambda: done.append("hooks"))
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
        >>> done
        ['hooks']
    """
    first: BaseException | None = None
    for end in ends:
        try:
            end()
        except BaseException as error:
            first = first or error
            if again and not isinstance(error, Exception):
                end()
    if first is not None:
        raise first


def undone(begin: Callable[[], Any], *, by: Callable[[], Any]) -> None:
    """Begin something; where that raises, undo it, and raise.

    Args:
        begin: what begins it.
        by: what undoes it, as far as it had come.

    Example:
        >>> undone(lambda: 1 / 0, by=lambda: print("undone"))
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """
    try:
        begin()
    except BaseException:
        by()
        raise
