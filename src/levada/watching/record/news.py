"""Which of the findings so far are new to who asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from levada.diagnose.finding import Finding

__all__ = ["News"]


@final
class News:
    """Remembers which findings one listener was given.

    A finding that ends, or is renewed, is replaced by another object, which is news again: it says so.

    Example:
        >>> news = News()
        >>> found = [Finding("dead_units", "warn", "fired", "half of the units are dead")]
        >>> len(news.of(found)), len(news.of(found))
        (1, 0)
    """

    def __init__(self) -> None:
        self._given: dict[int, Finding] = {}  # which are kept alive: nothing else may have their identity

    def of(self, findings: Iterable[Finding]) -> list[Finding]:
        """Give those that were not given before, in their order.

        Args:
            findings: all so far.
        """
        found = list(findings)
        new = [finding for finding in found if id(finding) not in self._given]
        self._given = {id(finding): finding for finding in found}
        return new
