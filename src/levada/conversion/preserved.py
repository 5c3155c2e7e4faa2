"""Whether two models compute the same function, measured in float64."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from levada._errors import UsageError
from levada.inputs import Batch, raised, read_batches, tensors_in

__all__ = [
    "difference",
    "in_float64",
    "outputs",
    "quiet",
    "run",
    "same_precision",
    "verify_preserved",
    "without_epsilon",
]

# The names that normalisations give to what they add to a variance or a mean square, and what it becomes: at 1e-18 a
# constant vector, whose variance is 1e-32 by rounding, still normalises to next to nothing.
_EPSILONS = ("eps", "epsilon", "variance_epsilon", "norm_epsilon", "norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_NEXT_TO_NOTHING = 1e-18
_NORMALISATIONS: Mapping[Any, inspect.Signature] = {
    f: inspect.signature(f)
    for f in (functional.layer_norm, functional.rms_norm, functional.group_norm, functional.instance_norm)
}


@final
class _Float64(TorchFunctionMode):
    """Keep in float64 what a model would round to float32 on the way, as many normalisations do."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
                return args[0]
            if func in (Tensor.to, Tensor.type):
                args = tuple(torch.float64 if _is_lower(a) else a for a in args)
                kwargs = {k: torch.float64 if _is_lower(a) else a for k, a in kwargs.items()}
            elif _is_lower(kwargs.get("dtype")):
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@final
class _WithoutEpsilon(TorchFunctionMode):
    """Give normalisations that are called as functions an epsilon of next to nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMALISATIONS:
            given = _NORMALISATIONS[func].bind(*args, **kwargs)
            given.arguments["eps"] = _NEXT_TO_NOTHING
            args, kwargs = given.args, given.kwargs
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_epsilon(model: nn.Module) -> Iterator[None]:
    """Run a model with the epsilon of all its normalisations at next to nothing: the scale of their input is then lost.

    Args:
        model: the model; its epsilons are afterwards what they were. One that is written into a formula stays.
    """
    held = [
        (module, name, value)
        for module in model.modules()
        for name in _EPSILONS
        if isinstance(value := vars(module).get(name), float)
    ]
    try:
        for module, name, _ in held:
            setattr(module, name, _NEXT_TO_NOTHING)
        with _WithoutEpsilon():
            yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)


def same_precision(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context that keeps a model in float64 in it, whatever it would round to a lower precision inside.

    Args:
        model: of any precision; others than float64 are left as they are.
    """
    double = any(p.dtype == torch.float64 for p in model.parameters())
    return _Float64() if double else contextlib.nullcontext()


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode without a trace: modes, buffers and random numbers are as before.

    The modes are set as they are, without calling `eval`, which some modules take as a sign to merge weights.

    Args:
        model: the model.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, held in buffers:
                if not torch.equal(buffer, held):
                    buffer.copy_(held)


def _is_lower(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point and value != torch.float64


def in_float64(model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
    """Return copies of a model, in evaluation mode, and of what it is run on.

    Args:
        model: the model; it stays as it is.
        batch: its inputs.
    """

    def up(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, Mapping):
            return {key: up(item) for key, item in value.items()}
        return type(value)(up(item) for item in value) if type(value) in (tuple, list) else value

    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        module.training = False
    return twin, Batch(up(batch.args), up(dict(batch.kwargs)))


def outputs(model: nn.Module, batch: Batch, owner: str) -> list[Tensor]:
    """Return the tensors that a model computes, as real numbers; in float64 whatever it would round to less inside.

    Args:
        model: the model.
        batch: its inputs.
        owner: the function that asks, as the user typed it.

    Raises:
        UsageError: if the model cannot run on the batch, or returns no floating-point tensor.
    """
    with quiet(model), torch.no_grad(), same_precision(model):
        torch.manual_seed(0)
        result = run(model, batch.args, batch.kwargs, owner)
    if hasattr(result, "to_tuple"):  # what Hugging Face's models return
        result = result.to_tuple()
    given = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors_in(result))
    found = [t for t in given if t.is_floating_point()]
    if not found:
        raise UsageError(f"{owner}: the model must return a floating-point tensor, and it returns none.")
    return found


def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], owner: str) -> Any:
    """Call a model that someone else wrote.

    Args:
        model: the model.
        args: its arguments.
        kwargs: its keyword arguments.
        owner: the function that asks, as the user typed it.

    Raises:
        UsageError: if it raises, with what it said.
    """
    try:
        return model(*args, **kwargs)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{owner}: the model must run on the batch, {Batch(tuple(args), kwargs).describe()}, and it raised "
            f"{raised(error)} Give a batch that it takes."
        ) from error


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs, relative to the largest magnitude among each.

    Args:
        before: the tensors of one model.
        after: those of the other.

    Example:
        >>> difference([torch.tensor([4.0, 2.0])], [torch.tensor([4.0, 1.0])])
        0.25
    """
    if [t.shape for t in before] != [t.shape for t in after]:
        shapes = [[tuple(t.shape) for t in group] for group in (before, after)]
        raise UsageError(f"verify_preserved: the models must return tensors of the same shapes, got {shapes}.")
    found = [0.0]
    for one, other in zip(before, after, strict=True):
        if one.numel():
            one, other = one.detach(), other.detach()
            scale = max(float(one.abs().max()), torch.finfo(torch.float64).tiny)
            found.append(float((one - other).abs().max()) / scale)
    return float(torch.tensor(found, dtype=torch.float64).max())  # which is NaN where one of them is


def verify_preserved(model: nn.Module, net: nn.Module, batch: Any = None) -> float:
    """Measure how far the outputs of two models lie apart.

    `max |model(x) - net(x)| / max |model(x)|`, over all floating-point tensors that they return

    Both run as copies in float64 and in evaluation mode; what they would round to a lower precision inside stays in
    float64. Parameters keep what they were rounded to: models in float32 agree to about 1e-7.

    Args:
        model: one model.
        net: the other, such as `levada.convert(model, ...)`.
        batch: as for `check`; inferred if left out.

    Returns:
        The largest relative difference; NaN if one of them returns NaN.

    Raises:
        UsageError: if the models return tensors of different shapes, or none, or the batch cannot be used.

    Example:
        >>> model = nn.Linear(3, 3)
        >>> verify_preserved(model, model, torch.ones(2, 3))
        0.0
    """
    given = read_batches(model, batch, owner="verify_preserved")[0]
    before, after = (outputs(*in_float64(one, given), "verify_preserved") for one in (model, net))
    return difference(before, after)
