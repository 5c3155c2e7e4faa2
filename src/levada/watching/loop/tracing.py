"""Where PyTorch's compilers and tracers come by: what they must not look into, and what they run that is no pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.fx import _symbolic_trace

__all__ = ["symbolic", "uncompiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Private, as are the modes: without them such passes are taken for real ones.
_graph = getattr(torch._C, "_get_tracing_state", lambda: None)
_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)  # each block asks for it
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_mode = getattr(torch._C, "_get_dispatch_mode", lambda key: None)
_keys = getattr(torch._C, "_TorchDispatchModeKey", None)
# Without it a compiler is always taken to look on.
_frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
_looks_on: Callable[[], Any] = getattr(_frames, "get_eval_frame_callback", lambda: True)
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
        _transform() is not None
        or torch.compiler.is_exporting()
        or _graph() is not None
        or _symbolic_trace.is_fx_symbolic_tracing()
        or (_modes() > 0 and any(_mode(key) is not None for key in _SYMBOLIC))
    )


def uncompiled(function: _Function) -> _Function:
    """Return a function that `torch.compile` calls as it is: neither it nor what it calls is traced.

    The step of an optimizer that is compiled has its hooks in it. Traced, a watch is hundreds of frames, compiled for
    seconds, and guarded by numbers that change with every step.

    Args:
        function: of a module or a class; it is not changed. What it wraps, the new one wraps.

    Example:
        >>> add = uncompiled(lambda x: x + 1)
        >>> add(1)
        2
    """
    # Not `torch.compiler.disable`, which imports the compiler at once: `import levada` would take a second longer.
    hidden: Any = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    def called(*args: Any, **kwargs: Any) -> Any:
        # Where no compiler looks on, as a rule, hiding would take longer than what most of these do.
        if not torch.compiler.is_compiling() and _looks_on() is None:
            return function(*args, **kwargs)
        return hidden(*args, **kwargs)

    functools.update_wrapper(called, function)
    called.__wrapped__ = getattr(function, "__wrapped__", function)  # type: ignore[attr-defined]
    return cast("_Function", called)
