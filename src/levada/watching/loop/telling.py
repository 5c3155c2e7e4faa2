"""What watching says of its own failures, which never stop a training."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Final

from torch import nn

from levada.watching.loop.places import original

__all__ = ["failed", "hears", "quietly", "say", "unwatched", "warn", "watched"]

_PREFIX: Final = "watch: "
_watched: Final[list[weakref.ref[nn.Module]]] = []  # models, in the order in which their watches began


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


def watched(model: nn.Module) -> None:
    """Hear that a model is watched.

    Args:
        model: as the loop calls it.
    """
    _watched.append(weakref.ref(original(model)))


def unwatched(model: nn.Module) -> None:
    """Hear that a model is watched no more, by one of its watches.

    Args:
        model: as in `watched`.
    """
    inner = original(model)
    for one in [one for one in _watched if one() is inner][:1]:
        _watched.remove(one)


def _named(sentence: str, model: nn.Module | None) -> str:
    """Return a sentence with the model that it is about, where there are several."""
    inner = None if model is None else original(model)
    every = list({id(one): one for ref in _watched if (one := ref()) is not None}.values())
    at = next((i for i, one in enumerate(every) if one is inner), None)
    if inner is None or at is None or len(every) < 2 or not sentence.startswith(_PREFIX):
        return sentence
    which = f"{type(inner).__name__}, model {at + 1} of the {len(every)} that are watched"
    return f"watch of {which}: {sentence.removeprefix(_PREFIX)}"


def failed(error: Exception, *, of: nn.Module | None = None, stacklevel: int = 2) -> None:
    """Warn that measuring ended.

    Args:
        error: why.
        of: the model that was measured.
        stacklevel: as of `warnings.warn`, counted from the caller.
    """
    what = f"{type(error).__name__}: {error}"
    warn(
        f"watch: measuring raised {what}. Nothing more is measured; training goes on.", of=of, stacklevel=stacklevel + 1
    )


def say(sentence: str) -> None:
    """Print a line on standard error, if somebody reads there.

    Args:
        sentence: the line.
    """
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def warn(sentence: str, *, of: nn.Module | None = None, stacklevel: int = 2) -> None:
    r"""Warn; where warnings are errors, which would be raised in a step of the user's, print the sentence.

    Args:
        sentence: what failed, and what follows.
        of: the model that it is about, which is named where several are watched.
        stacklevel: as of `warnings.warn`, counted from the caller.

    Example:
        >>> import io
        >>> with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as said:
        ...     warnings.simplefilter("error")
        ...     warn("watch: nothing more is measured; training goes on.")
        >>> said.getvalue()
        'watch: nothing more is measured; training goes on.\n'
    """
    sentence = _named(sentence, of)
    try:
        warnings.warn(sentence, stacklevel=stacklevel + 1)
    except UserWarning:
        _instead(sentence)


def _instead(sentence: str) -> None:
    say(sentence)
