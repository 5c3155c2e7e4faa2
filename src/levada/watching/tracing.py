"""Where PyTorch's compilers and tracers come by: what they must not look into, and what they run that is no pass."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import _symbolic_trace

from levada.probe.recorder import transformed

__all__ = ["symbolic", "uncompiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Private, as are the modes: without them such passes are taken for real ones.
_graph = getattr(torch._C, "_get_tracing_state", lambda: None)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_mode = getattr(torch._C, "_get_dispatch_mode", lambda key: None)
_keys = getattr(torch._C, "_TorchDispatchModeKey", None)
_SYMBOLIC = [getattr(_keys, name) for name in ("FAKE", "PROXY") if hasattr(_keys, name)]


def symbolic() -> bool:
    """Return whether what runs now stands for numbers that are not there, or are not to be read.

    So it is under a transform of `torch.func`, and while `torch.jit.trace`, `torch.export` or `torch.fx` write down
    what a model does, or fake tensors find its shapes. What a hook did there would be in the program that is made.

    Example:
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode():
        ...     inside = symbolic()
        >>> inside, symbolic()
        (True, False)
    """
    return (
        transformed()
        or torch.compiler.is_exporting()
        or _graph() is not None
        or _symbolic_trace.is_fx_symbolic_tracing()
        or (_modes() > 0 and any(_mode(key) is not None for key in _SYMBOLIC))
    )


def uncompiled(function: _Function) -> _Function:
    """Return a function that `torch.compile` calls as it is: neither it nor what it calls is traced.

    The step of an optimizer that is compiled has its hooks in it. Traced, a watch is hundreds of frames, compiled for
    seconds, and guarded by numbers that change with every step. `torch.compiler.disable` imports the compiler, which
    takes another second; so it is used from when something else has imported that.

    Args:
        function: of a module or a class; it is not changed.

    Example:
        >>> add = uncompiled(lambda x: x + 1)
        >>> add(1)
        2
    """
    hidden = torch._disable_dynamo(function)  # type: ignore[no-untyped-call]  # the compiler knows it unimported

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return hidden(*args, **kwargs)
        return function(*args, **kwargs)

    _skip(run.__code__)
    return run  # type: ignore[return-value]


def _skip(code: types.CodeType) -> None:
    """Let the compiler run a function without compiling it, where torch has this; else it compiles one that is short."""
    with contextlib.suppress(AttributeError):
        frames = torch._C._dynamo.eval_frame
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        frames.set_code_exec_strategy(code, strategy)
