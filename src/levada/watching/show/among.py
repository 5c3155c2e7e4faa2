"""What the shown watches of a process are called where there are several."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar, final
from weakref import WeakSet

from levada._names import printable
from levada.watching.loop.places import class_of

__all__ = ["Among"]


@final
class Among:
    """Names a watch that is shown beside others: by the folder of its record or else a number, and the model's class.

    Args:
        watch: what is shown.

    Example:
        >>> from types import SimpleNamespace
        >>> first, second = Among(SimpleNamespace(run="runs/gan")), Among(SimpleNamespace(run=None))
        >>> first.open()
        >>> first.called
        ''
        >>> second.open()
        >>> first.called, second.called
        (' gan', ' 2')
        >>> first.close(), second.close()
        (None, None)
    """

    _shown: ClassVar[WeakSet[Among]] = WeakSet()
    _lock: ClassVar[threading.Lock] = threading.Lock()  # loops may run in several threads

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        self._number = 0
        self._needed = self._whole = False  # and stay true: one that is left alone keeps the name that it was told by

    def open(self) -> None:
        """Count this as shown; again is harmless."""
        with self._lock:
            others = [one for one in self._shown if one._watch is not self._watch]  # shown twice, it is one still
            if self not in self._shown:
                taken = {one._number for one in others}
                self._number = next(i for i in range(1, len(others) + 2) if i not in taken)
                self._shown.add(self)
        for one in others:
            self._needed = one._needed = True
            if self._folder is not None and one._folder is not None and self._folder.name == one._folder.name:
                self._whole = one._whole = True

    def close(self) -> None:
        """Count this as shown no more; again is harmless."""
        with self._lock:
            self._shown.discard(self)

    @property
    def called(self) -> str:
        """The name behind a space, to stand behind "levada"; "" of what was always alone."""
        if not self._needed:
            return ""
        folder, kind = self._folder, class_of(self._watch)
        name = str(self._number) if folder is None else str(folder) if self._whole else folder.name
        return f" {printable(name)}" + (f" ({printable(kind)})" if kind else "")

    @property
    def _folder(self) -> Path | None:
        run = getattr(self._watch, "run", None)
        return None if run is None else Path(run)
