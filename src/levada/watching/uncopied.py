"""Say of a watch that is copied or pickled why it cannot be."""

from __future__ import annotations

from typing import Any, SupportsIndex

from levada._errors import UsageError

__all__ = ["Uncopied", "UncopiedError"]


class UncopiedError(UsageError, TypeError):
    """A watch was copied or pickled; as every `TypeError` of pickle, for those that ask whether something can be."""


class Uncopied:
    """What follows one model of one process: `copy.copy`, `copy.deepcopy` and `pickle` of it raise.

    Example:
        >>> import copy
        >>> copy.copy(Uncopied())
        Traceback (most recent call last):
        levada.watching.uncopied.UncopiedError: watch: a watch follows one model in one process, and cannot be ...
    """

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> tuple[Any, ...]:
        raise UncopiedError(
            "watch: a watch follows one model in one process, and cannot be copied or pickled. Copy or pickle the "
            "model, and watch the copy by a call of its own; watch.report() and watch.trace() hold what is known. "
            "Where a model or a trainer holds the watch, take it out before."
        )
