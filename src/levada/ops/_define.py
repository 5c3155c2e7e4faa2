"""Registering an operation with PyTorch: the one file that calls `torch.library`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

import torch

__all__ = ["Kernel", "define", "import_kernels", "is_observed", "plain_operations", "triton_or_reference"]

Kernel = Callable[..., Any]

# Registrations end with the library object: it lives as long as the module.
_LIBRARY: Final[Any] = torch.library.Library("levada", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    name: str,
    schema: str,
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
        schema: arguments and results, as in `(Tensor x) -> Tensor`.
        reference: what runs on devices without a kernel of their own.
        kernels: kernels by the dispatcher's key, `CPU` or `CUDA`.
        fake: the shapes and types of the results, for tracing.
        vmap: the rule of `torch.library.register_vmap`.
        setup_context: what is kept for `backward`, as in `torch.autograd.Function`.
        backward: the gradients by the arguments; None for an operation of which nobody asks for any.
    """
    qualified = f"levada::{name}"
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_vmap(qualified, vmap, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
    operation: Kernel = getattr(torch.ops.levada, name).default
    return operation


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
    """Return whether plain operations are asked for."""
    return bool(_observers)


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


@functools.cache
def import_kernels(module: str, package: str) -> ModuleType | None:
    """Return a module of kernels; None where the package that compiles them is not installed.

    Args:
        module: dotted name.
        package: what it imports from outside.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        return None


@functools.cache  # which makes the warning the only one
def _warn_of_triton(module: str) -> None:
    warnings.warn(
        f"{module} needs the package 'triton', which is not installed: the reference runs on the GPU, by plain "
        "operations, which is slow. Install it with: pip install triton",
        RuntimeWarning,
        stacklevel=3,
    )
