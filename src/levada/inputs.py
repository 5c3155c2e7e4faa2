"""What a model is to be run on: batches, made from what came or from the model, and validated."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connection import require_module

__all__ = [
    "MAX_BATCHES",
    "Batch",
    "each_tensor",
    "flatness",
    "misfit",
    "raised",
    "read_batches",
    "require_model",
    "tensors_in",
]

# Four batches give an interval over data; more would cost time and say nothing new about decay over depth.
MAX_BATCHES = 4
INFERRED_SIZE = 16  # rows of an inferred batch: enough for batch norm and for a spread between inputs
INFERRED_SIDE = 32  # side of an inferred image: survives five halvings
INFERRED_LENGTH = 16  # tokens of an inferred sequence
# What torch says of tensors whose types do not go together.
_OF_TYPES = re.compile(r"dtype|scalar type|(?:input|weight|bias) type|torch\.\w+Tensor", re.IGNORECASE)
_TARGET_KEYS = ("targets", "target", "labels", "label")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, ready to be given to the model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        targets: what the loss compares the outputs with; None if there are none.
        inferred: how the inputs were made, if they were not given.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Any = None
    inferred: str | None = None

    @property
    def has_targets(self) -> bool:
        """Whether there is something to compare the outputs with."""
        return self.targets is not None

    def describe(self) -> str:
        """Return the inputs' types and shapes, for a message."""
        return (
            ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in self.tensors()) or "no tensor"
        )

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors among the inputs."""
        yield from tensors_in([*self.args, *self.kwargs.values()])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists, mappings and data classes, in order.

    Example:
        >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and mappings with a function applied to each of their tensors.

    Args:
        value: what holds the tensors.
        function: of one tensor.

    Example:
        >>> each_tensor({"a": torch.tensor(1), "b": (torch.tensor(2), "text")}, torch.neg)
        {'a': tensor(-1), 'b': (tensor(-2), 'text')}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: each_tensor(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(item, function) for item in value))
    return type(value)(each_tensor(item, function) for item in value) if isinstance(value, tuple | list) else value


def flatness(batches: Iterable[Batch]) -> str:
    """Return what the inputs lack: "size" if all are zero, "spread" if all rows of every batch are the same, or "".

    A batch of one row has no spread to lack. Indices of zero have a size: they choose an embedding.

    Args:
        batches: what is measured.

    Example:
        >>> [flatness([Batch((x,))]) for x in (torch.zeros(4, 2), torch.ones(4, 2), torch.ones(1, 2))]
        ['size', 'spread', '']
    """
    found = [tensor for batch in batches for tensor in batch.tensors()]
    if all(t.is_floating_point() and not bool(t.any()) for t in found):
        return "size"
    rows = [t for t in found if t.dim() > 0 and len(t) > 1]
    return "spread" if rows and all(bool((t == t[:1]).all()) for t in rows) else ""


def raised(error: Exception) -> str:
    """Return what a user's code raised, on one line and as the end of a sentence.

    Args:
        error: what was caught.

    Example:
        >>> raised(ValueError("no such file"))
        'ValueError: no such file.'
    """
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first.rstrip('.')}."


def misfit(model: nn.Module, batch: Batch, error: Exception) -> str:
    """Return what to give to a model that did not run on a batch: by its message another type, else another shape.

    Args:
        model: the model.
        batch: what it was given.
        error: what it raised.

    Example:
        >>> net, batch = nn.Linear(2, 2).double(), Batch((torch.ones(3, 2),))
        >>> misfit(net, batch, RuntimeError("mat1 and mat2 must have the same dtype, but got Float and Double"))
        'Its weights are float64: give a batch of that type, or the model in that of the batch.'
        >>> misfit(net, batch, RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 2x2)"))
        'Give a batch of the shape that it expects.'
    """
    if not _OF_TYPES.search(str(error)):
        return "Give a batch of the shape that it expects."
    weights = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    given = [t for t in batch.tensors() if t.is_floating_point()]
    if len(weights) == 1 and given and all(str(t.dtype).removeprefix("torch.") not in weights for t in given):
        return f"Its weights are {weights.pop()}: give a batch of that type, or the model in that of the batch."
    return "Give a batch of the type that it expects."


def require_model(model: object, owner: str = "check") -> nn.Module:
    """Return `model` if it can be run and measured.

    Args:
        model: what the user gave.
        owner: the function that asks, as the user typed it.

    Raises:
        UsageError: if it is not a module, is scripted, has no parameters, or complex ones, or ones without a value.
    """
    model = require_module(model, owner)
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(
            f"{owner}: the model must have parameters, and {type(model).__name__} has none: nothing could learn."
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise UsageError(f"{owner}: the model has lazy parameters without a shape. Run one batch through it first.")
    if any(t.is_meta for t in (*parameters, *model.buffers())):
        what = "parameters" if any(p.is_meta for p in parameters) else "buffers"
        raise UsageError(
            f"{owner}: the model's {what} are on the meta device and hold no values. Build it on a device."
        )
    scripted = next((m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise UsageError(
            f"{owner}: the model must be a Python module whose calls can be seen, and it is or holds a "
            f"{type(scripted).__name__}. Give the module from before torch.jit.script or torch.jit.trace."
        )
    unreal = next((name for name, p in model.named_parameters() if p.is_complex()), None)
    if unreal is not None:
        raise UsageError(
            f"{owner}: parameters must be real, and {unreal} is {str(model.get_parameter(unreal).dtype)[6:]}. "
            "Hold its real and imaginary parts as one real parameter, and call torch.view_as_complex in forward."
        )
    return model


def read_batches(model: nn.Module, batch: Any, owner: str = "check") -> list[Batch]:
    """Turn what the user gave into validated batches on the model's device.

    Args:
        model: the model, which says its device, and its inputs if `batch` is None.
        batch: `(inputs, targets)`, a mapping of keyword arguments, inputs alone, an iterable of these, or None.
        owner: the function that asks, as the user typed it.

    Returns:
        At least one and at most `MAX_BATCHES` batches.

    Raises:
        UsageError: if the batch is empty, holds NaN or Inf, has no tensor, or cannot be inferred.

    Example:
        >>> [b.describe() for b in read_batches(nn.Linear(3, 2), None)]
        ['float32 (16, 3)']
    """
    held = next(itertools.chain(model.parameters(), model.buffers()), None)
    raw = [_infer(model, owner)] if batch is None else list(itertools.islice(_split(model, batch, owner), MAX_BATCHES))
    if not raw:
        raise UsageError(
            f"{owner}: batch must hold at least one batch, and the {type(batch).__name__} given was empty."
        )
    if any(t.is_meta for b in raw for t in (*b.tensors(), *tensors_in(b.targets))):
        raise UsageError(f"{owner}: the batch is on the meta device and holds no values. Make it on a device.")
    batches = raw if held is None else [_to(b, held.device) for b in raw]
    for b in batches:
        _validate(b, owner)
    return batches


def _split(model: nn.Module, batch: Any, owner: str) -> Iterator[Batch]:
    if isinstance(batch, Tensor | Mapping | tuple) or _is_mapping(batch):
        yield _one(model, batch, owner)
    elif isinstance(batch, list) and batch and all(isinstance(item, Tensor) for item in batch):
        yield _one(model, tuple(batch), owner)
    elif isinstance(batch, Iterable):
        for item in _read(batch, owner):
            yield _one(model, tuple(item) if isinstance(item, list) else item, owner)
    else:
        raise UsageError(
            f"{owner}: batch must be (inputs, targets), a mapping of keyword arguments, a tensor "
            "of inputs, or an iterable "
            f"of these, got {type(batch).__name__}."
        )


def _read(batches: Iterable[Any], owner: str) -> Iterator[Any]:
    """Yield what a loader gives; what it raises is the user's."""
    try:
        yield from batches
    except Exception as error:
        raise UsageError(
            f"{owner}: the batches must be readable, and reading them raised {raised(error)} Repair the loader, or "
            "give one batch."
        ) from error


def _is_mapping(value: Any) -> bool:
    # Tokenizers return mappings that do not register as such.
    return hasattr(value, "keys") and hasattr(value, "__getitem__") and not isinstance(value, nn.Module)


def _one(model: nn.Module, item: Any, owner: str) -> Batch:
    if isinstance(item, Tensor):
        return Batch((item,))
    if _is_mapping(item):
        return _from_mapping(model, {key: item[key] for key in item})
    if not isinstance(item, tuple):
        raise UsageError(
            f"{owner}: each batch must be (inputs, targets), a mapping of keyword arguments or a tensor of inputs, "
            f"got {type(item).__name__}."
        )
    if len(item) != 2:
        return Batch(item)
    inputs, targets = item
    if _is_mapping(inputs):
        return replace(_from_mapping(model, {key: inputs[key] for key in inputs}), targets=targets)
    return Batch(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, targets)


def _from_mapping(model: nn.Module, values: dict[str, Any]) -> Batch:
    # A model that takes its labels computes its own loss from them.
    accepted = _argument_names(model)
    for key in _TARGET_KEYS:
        if key in values and key not in accepted:
            targets = values.pop(key)
            return Batch((), values, targets)
    return Batch((), values)


def _argument_names(model: nn.Module) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(model.forward).parameters)


def _to(batch: Batch, device: torch.device) -> Batch:
    def moved(tensor: Tensor) -> Tensor:
        # A tensor made under inference_mode cannot be saved for the backward pass.
        there = tensor.detach().to(device)
        return there.clone() if there.is_inference() else there

    kwargs = each_tensor(batch.kwargs, moved)
    return replace(batch, args=each_tensor(batch.args, moved), kwargs=kwargs, targets=each_tensor(batch.targets, moved))


def _validate(batch: Batch, owner: str) -> None:
    tensors = list(batch.tensors())
    if not tensors:
        raise UsageError(f"{owner}: the batch must hold a tensor for the model, and there is none among the inputs.")
    for name, tensor in [("inputs", t) for t in tensors] + [("targets", t) for t in tensors_in(batch.targets)]:
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise UsageError(f"{owner}: the batch must be dense, and its {name} are {kind}. Call .to_dense() first.")
        if tensor.numel() == 0:
            raise UsageError(f"{owner}: the batch must not be empty, and its {name} have shape {tuple(tensor.shape)}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            what = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
            raise UsageError(
                f"{owner}: the batch must be finite, and {bad} of {tensor.numel()} values of its "
                f"{name} are {what} or not "
                "finite. Repair the data first: no measurement after it would mean anything."
            )


def _infer(model: nn.Module, owner: str) -> Batch:
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if isinstance(vocabulary, int) and vocabulary > 0:
        ids = torch.randint(0, vocabulary, (INFERRED_SIZE, INFERRED_LENGTH))
        return Batch(
            (), {"input_ids": ids}, None, f"random token ids below the configuration's vocab_size {vocabulary}"
        )
    for name, module in model.named_modules():
        shape = _input_shape(module)
        if shape is not None:
            dtype = next(model.parameters()).dtype
            what = f"unit-variance noise of shape {shape}, because {name or 'the model'} is {_brief(module)}"
            return Batch((torch.randn(shape, dtype=torch.float32).to(dtype),), {}, None, what)
        if isinstance(module, nn.Embedding):
            ids = torch.randint(0, module.num_embeddings, (INFERRED_SIZE, INFERRED_LENGTH))
            what = f"random indices below {module.num_embeddings}, because {name or 'the model'} is {_brief(module)}"
            return Batch((ids,), {}, None, what)
        if not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False)):
            break
    raise UsageError(
        f"{owner}: batch must be given, because the inputs of {type(model).__name__} cannot be "
        "told from its first layer. "
        "Give (inputs, targets)."
    )


def _input_shape(module: nn.Module) -> tuple[int, ...] | None:
    if isinstance(module, nn.Linear):
        return (INFERRED_SIZE, module.in_features)
    for dims, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        if isinstance(module, kind):
            reach = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
            side = max(INFERRED_SIDE, 2 ** math.ceil(math.log2(max(reach))))
            return (INFERRED_SIZE, module.in_channels, *([side] * dims))
    return None


def _brief(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"
