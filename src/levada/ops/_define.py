"""Registering an operation with PyTorch: the one file that calls `torch.library`."""

from __future__ import annotations

import contextlib
import functools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._fitting import Signature, differ, requirement
from levada.ops._loading import import_kernels

__all__ = [
    "Kernel",
    "define",
    "empty_like",
    "is_direct",
    "is_observed",
    "is_special",
    "one_by_one",
    "one_more_axis",
    "plain_operations",
    "triton_or_reference",
]

Kernel = Callable[..., Any]

# Registrations end with the library object: it lives as long as the module.
_LIBRARY: Final[Any] = torch.library.Library("levada", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    name: str,
    signature: Signature,
    *,
    reference: Kernel,
    kernels: Mapping[str, Kernel],
    fake: Kernel,
    vmap: Kernel,
    setup_context: Kernel | None,
    backward: Kernel | None,
) -> Kernel:
    """Register `torch.ops.levada.<name>` and return it.

    Args:
        name: the operation's name.
        signature: what it takes: what does not fit it is refused.
        reference: what runs on devices without a kernel of their own.
        kernels: kernels by the dispatcher's key, `CPU` or `CUDA`.
        fake: the shapes and types of the results, for tracing.
        vmap: the rule of `torch.library.register_vmap`.
        setup_context: what is kept for `backward`, as in `torch.autograd.Function`.
        backward: the gradients by the arguments; None for an operation of which nobody asks for any.
    """
    qualified = f"levada::{name}"
    _LIBRARY.define(name + signature.schema, tags=(torch.Tag.pt2_compliant_tag,))
    checked = functools.partial(_checked, requirement(name, signature))
    _LIBRARY.impl(name, checked(reference), "CompositeExplicitAutograd")
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, checked(kernel), key)
    traced = _checked(requirement(name, signature, differ), fake)
    torch.library.register_fake(qualified, traced, lib=_LIBRARY)
    torch.library.register_vmap(qualified, vmap, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
    operation: Kernel = getattr(torch.ops.levada, name).default
    return operation


def _checked(require: Callable[[Sequence[Any]], None], kernel: Kernel) -> Kernel:
    """Return what the dispatcher calls: somebody may have called it by `torch.ops`, with anything."""

    @functools.wraps(kernel)
    def call(*given: Any) -> Any:
        require(given)
        return kernel(*given)

    return call


_observers: list[object] = []


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Make operations that are made of others of these, for whoever looks at each, in all threads, there and back.

    A mode cannot ask for it, as what is recomputed in the backward pass would no longer see that mode.
    """
    _observers.append(None)
    try:
        yield
    finally:
        _observers.pop()


def is_observed() -> bool:
    """Return whether plain operations are asked for; `torch.jit.trace` asks, to which sizes are tensors."""
    return bool(_observers) or (not torch.compiler.is_compiling() and torch._C._is_tracing())


def is_special(*tensors: Tensor) -> bool:
    """Return whether something is at work that has rules for plain operations alone.

    Forward mode, `torch.func`, and subclasses of tensors.

    Args:
        *tensors: the arguments.
    """
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    # Called with a dozen tensors at each layer, there and back: no frame of Python for each.
    return not _PLAIN.issuperset(map(type, tensors)) or any(map(torch._C._functorch.is_legacy_batchedtensor, tensors))


def is_direct(*tensors: Tensor | None) -> bool:
    """Return whether a kernel for a CPU may be called as a function: nobody looks at operations, or transforms them.

    The dispatcher takes as long for an operation in Python as the work on a few hundred tokens.

    Args:
        *tensors: the arguments.
    """
    given = [x for x in tensors if x is not None]
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or is_special(*given):
        return False
    # Kernels read memory by its address, where such numbers are not, or not with their sign.
    return all(map(_on_cpu, given)) and not any(map(Tensor.is_neg, given)) and not any(map(_is_zero, given))


_on_cpu, _is_zero = operator.attrgetter("is_cpu"), Tensor._is_zerotensor
_PLAIN: Final = frozenset({Tensor, torch.nn.Parameter})


def empty_like(x: Tensor) -> Tensor:
    """Return memory for as many numbers of the same type, contiguous.

    Args:
        x: whose shape it has.
    """
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def one_more_axis(
    function: Callable[..., Any], info: Any, dims: tuple[int | None, ...], *tensors: Tensor | None, options: Any = ()
) -> Any:
    """Call with one more axis of tokens, which the axis of `vmap` is, and return what comes with that axis in front.

    Args:
        function: takes tensors, tokens first, and options.
        info: of the rule of `torch.library.register_vmap`.
        dims: likewise.
        *tensors: likewise, all with tokens as the first axis; or None.
        options: handed on.
    """
    batch = info.batch_size
    flat = [
        None if x is None else (x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(tensors, dims, strict=False)
    ]
    found = function(*flat, *options)
    if isinstance(found, Tensor):
        return torch.unflatten(found, 0, (batch, -1))
    return tuple(torch.unflatten(x, 0, (batch, -1)) for x in found)


def one_by_one(function: Callable[..., Any], info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """Call for each entry along the axis of `vmap`: sums for the parameters are each entry's own.

    Args:
        function: takes the arguments and returns tensors.
        info: of the rule of `torch.library.register_vmap`.
        dims: likewise.
        *arguments: likewise.
    """
    calls = [
        function(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, dims, strict=True)))
        for i in range(info.batch_size)
    ]
    found = tuple(torch.stack(y) for y in zip(*calls, strict=True))
    return found, (0,) * len(found)


def triton_or_reference(module: str, name: str, reference: Kernel) -> Kernel:
    """Return a kernel that imports `module` at its first call; where Triton is missing the reference runs, with a word.

    Args:
        module: dotted name of the module with the Triton kernels.
        name: the function in it.
        reference: what runs without Triton.
    """

    @functools.wraps(reference)
    def kernel(*args: Any) -> Any:
        found = import_kernels(module, "triton")
        if found is None:
            _warn_of_triton(module)
        return (reference if found is None else getattr(found, name))(*args)

    return kernel


@functools.cache  # which makes the warning the only one
def _warn_of_triton(module: str) -> None:
    warnings.warn(
        f"{module} needs the package 'triton', which is not installed: the reference runs on the GPU, by plain "
        "operations, which is slow. Install it with: pip install triton",
        RuntimeWarning,
        stacklevel=3,
    )
