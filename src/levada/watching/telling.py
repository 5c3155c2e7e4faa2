"""What watching says of its own failures, which never stop a training."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["failed", "hears", "quietly", "say", "warn"]


def hears(listener: object, method: str) -> bool:
    """Return whether a listener has a method that not all have.

    Args:
        listener: who listens.
        method: its name.
    """
    return callable(getattr(listener, method, None))


def quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let an error in a hook end the watching and not the training.

    Args:
        method: of what has `broken`, `fail`, and `interrupted`, which Ctrl-C calls.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever it is, training goes on
            return self.fail(error)
        except BaseException:
            self.interrupted()
            raise

    return run


def failed(error: Exception, *, stacklevel: int = 2) -> None:
    """Warn that measuring ended.

    Args:
        error: why.
        stacklevel: as of `warnings.warn`, counted from the caller.
    """
    what = f"{type(error).__name__}: {error}"
    warn(f"watch: measuring raised {what}. Nothing more is measured; training goes on.", stacklevel=stacklevel + 1)


def say(sentence: str) -> None:
    """Print a line on standard error, if somebody reads there.

    Args:
        sentence: the line.
    """
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def warn(sentence: str, *, stacklevel: int = 2) -> None:
    r"""Warn; where warnings are errors, which would be raised in a step of the user's, print the sentence.

    Args:
        sentence: what failed, and what follows.
        stacklevel: as of `warnings.warn`, counted from the caller.

    Example:
        >>> import io
        >>> with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as said:
        ...     warnings.simplefilter("error")
        ...     warn("watch: nothing more is measured; training goes on.")
        >>> said.getvalue()
        'watch: nothing more is measured; training goes on.\n'
    """
    try:
        warnings.warn(sentence, stacklevel=stacklevel + 1)
    except UserWarning:
        _instead(sentence)


def _instead(sentence: str) -> None:
    say(sentence)
