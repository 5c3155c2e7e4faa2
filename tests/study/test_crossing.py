"""Which exceptions of a cell arrive in another process as they are."""

from __future__ import annotations

import pytest

from levada.study.sweep import _crosses


class DoubledError(Exception):
    """Unpickled, its message is put into itself."""

    def __init__(self, came: str) -> None:
        super().__init__(f"got {came}")


class ChangedError(Exception):
    """Unpickled, it is of another type, and says the same."""

    def __reduce__(self):
        return ValueError, self.args


class UnmadeError(Exception):
    """Not made of its own arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    ("error", "crosses"),
    [
        (ValueError("a"), True),
        (FileNotFoundError(2, "No such file", "a"), True),
        (DoubledError("a"), False),
        (ChangedError("a"), False),
        (UnmadeError("a", "b"), False),
        (SystemExit("a"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_arrives_as_it_is(error, crosses):
    assert _crosses(error) is crosses
