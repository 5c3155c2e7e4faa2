"""What the model is asked to lower: the loss that was given, named or inferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError
from levada._names import meant
from levada.inputs import Batch, raised, tensors_in

__all__ = ["Loss", "LossLike", "class_dim", "floating_outputs", "main_output", "resolve_loss"]

LossLike: TypeAlias = str | Callable[[Any, Any], Tensor] | None
_NAMES = ("cross_entropy", "mse", "output")
_MAIN_KEYS = ("logits", "last_hidden_state", "prediction", "output")


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss, checked on first use.

    Attributes:
        name: what the report calls it.
        function: maps outputs and batch to a scalar.
        inferred: how it was chosen, if it was not given.
    """

    name: str
    function: Callable[[Any, Batch], Tensor]
    inferred: str = ""
    takes_tensor: bool = False

    def of_zeros(self, output: Tensor, batch: Batch) -> float | None:
        """Return the loss of an output of zeros; None if the loss may need more than the output tensor.

        Args:
            output: the model's main output, for its shape.
            batch: the batch.
        """
        return float(self(torch.zeros_like(output), batch)) if self.takes_tensor else None

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the scalar loss.

        Raises:
            UsageError: if the loss raises, or does not give one number.
        """
        try:
            value = self.function(outputs, batch)
        except UsageError:
            raise
        except Exception as error:
            targets = ", ".join(f"{_brief(t)}" for t in tensors_in(batch.targets)) or type(batch.targets).__name__
            raise UsageError(
                f"check: loss {self.name} must accept the model's outputs {_describe(outputs)} "
                f"and the targets {targets}; "
                f"it raised {raised(error)} Give another loss, or targets that it takes."
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"check: loss {self.name} must return a scalar tensor, got {came}. Reduce it, for example by .mean()."
            )
        return value.reshape(())


def main_output(outputs: Any) -> Tensor:
    """Return the floating tensor that a model's outputs stand for: the logits of a mapping, or the first there is.

    Args:
        outputs: what the model returned.

    Raises:
        UsageError: if there is no floating tensor.

    Example:
        >>> main_output({"hidden": torch.zeros(2), "logits": torch.ones(3)}).tolist()
        [1.0, 1.0, 1.0]
    """
    for key in _MAIN_KEYS:
        value = _field(outputs, key)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    found = next(iter(floating_outputs(outputs)), None)
    if found is None:
        raise UsageError(
            f"check: the model must return a floating tensor, or a tuple or mapping with one, got {_describe(outputs)}."
        )
    if found.numel() == 0:
        raise UsageError(f"check: the model must return at least one number, got {_brief(found)}.")
    return found


def resolve_loss(loss: LossLike, outputs: Any, batch: Batch) -> Loss | None:
    """Return the loss to measure with, or None if there is nothing to compare the outputs with.

    Args:
        loss: a callable of outputs and targets, a name, or None to infer it.
        outputs: what the model returned for the batch.
        batch: the batch.

    Raises:
        UsageError: if the name is unknown, targets are missing or unfit, or nothing can be inferred.
    """
    if loss is None:
        return _infer(outputs, batch)
    if isinstance(loss, str):
        if loss not in _NAMES:
            raise UsageError(
                f"check: loss must be a callable or one of {', '.join(_NAMES)}, got {loss!r}.{meant(loss, _NAMES)}"
            )
        if loss == "output":
            return Loss("output", _from_output)
        _require_targets(loss, batch)
        return Loss(loss, _cross_entropy if loss == "cross_entropy" else _mse, takes_tensor=True)
    if not callable(loss):
        raise UsageError(f"check: loss must be a callable or one of {', '.join(_NAMES)}, got {type(loss).__name__}.")
    name = getattr(loss, "__name__", type(loss).__name__)
    _require_targets(name, batch)
    # What torch itself brings takes a tensor; what a user wrote takes what his model returns.
    takes_tensor = isinstance(loss, nn.modules.loss._Loss) or getattr(loss, "__module__", "") == "torch.nn.functional"
    given = loss
    return Loss(name, lambda out, b: given(main_output(out) if takes_tensor else out, b.targets), "", takes_tensor)


def _require_targets(name: str, batch: Batch) -> None:
    if not batch.has_targets:
        raise UsageError(f"check: loss {name} needs targets, and the batch has none. Give (inputs, targets).")


def _infer(outputs: Any, batch: Batch) -> Loss | None:
    own = _field(outputs, "loss")
    if isinstance(own, Tensor) and own.numel() == 1:
        return Loss("output", _from_output, "the model returned a loss")
    if isinstance(outputs, Tensor) and outputs.dim() == 0 and outputs.is_floating_point():
        return Loss("output", _from_output, "the model returned a scalar")
    if not batch.has_targets:
        return None
    out = main_output(outputs)
    targets = batch.targets
    if isinstance(targets, Tensor) and targets.dtype in (
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ):
        if class_dim(out, targets) is not None:
            reason = "the targets are integers and the outputs have one column per class"
            return Loss("cross_entropy", _cross_entropy, reason, takes_tensor=True)
    elif isinstance(targets, Tensor) and targets.is_floating_point() and targets.numel() == out.numel():
        return Loss("mse", _mse, "the targets are floating and of the outputs' size", takes_tensor=True)
    came = _brief(targets) if isinstance(targets, Tensor) else type(targets).__name__
    raise UsageError(
        f"check: loss must be given, because none follows from outputs {_brief(out)} and targets {came}. "
        "Give loss=callable(outputs, targets)."
    )


def _from_output(outputs: Any, batch: Batch) -> Tensor:
    own = _field(outputs, "loss")
    value = own if isinstance(own, Tensor) else outputs
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UsageError(
            "check: loss 'output' needs a model that returns a scalar or something with .loss, "
            f"got {_describe(outputs)}."
        )
    return value


def class_dim(out: Tensor, targets: Tensor) -> int | None:
    """Return the dimension of an output that holds its classes, or None if the targets do not fit any.

    Args:
        out: the output.
        targets: class indices.

    Example:
        >>> class_dim(torch.zeros(4, 7, 3), torch.zeros(4, 7)), class_dim(torch.zeros(4, 3, 7), torch.zeros(4, 7))
        (2, 1)
    """
    if out.dim() < 1 or out.dim() != targets.dim() + 1:
        return None
    if out.dim() == 1 or (out.shape[0] == targets.shape[0] and out.shape[2:] == targets.shape[1:]):
        return 1 if out.dim() > 1 else 0
    return out.dim() - 1 if out.shape[:-1] == targets.shape else None


def _cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    out, targets = main_output(outputs), batch.targets
    if not isinstance(targets, Tensor):
        raise UsageError(f"check: cross_entropy needs a tensor of targets, got {type(targets).__name__}.")
    if targets.is_floating_point():
        if targets.shape != out.shape:
            raise UsageError(
                "check: targets of cross_entropy must be class indices of an integer type, or "
                "probabilities of the outputs' "
                f"shape {tuple(out.shape)}, got {_brief(targets)}. Convert them by .long()."
            )
        return functional.cross_entropy(out, targets.to(out.dtype))
    dim = class_dim(out, targets)
    if dim is None:
        raise UsageError(
            "check: outputs of cross_entropy must have one dimension more than the targets, its classes; "
            f"got outputs {_brief(out)} and targets {_brief(targets)}."
        )
    classes, given = out.shape[dim], targets[targets != -100]
    if given.numel() and not (int(given.min()) >= 0 and int(given.max()) < classes):
        raise UsageError(
            f"check: targets of cross_entropy must be in [0, {classes}), the number of outputs, "
            f"got values from {int(given.min())} to {int(given.max())}."
        )
    return functional.cross_entropy(out.movedim(dim, 1) if out.dim() > 1 else out, targets.long())


def _mse(outputs: Any, batch: Batch) -> Tensor:
    out, targets = main_output(outputs), batch.targets
    if not isinstance(targets, Tensor) or targets.numel() != out.numel():
        came = _brief(targets) if isinstance(targets, Tensor) else type(targets).__name__
        raise UsageError(f"check: targets of mse must have the outputs' shape {tuple(out.shape)}, got {came}.")
    return functional.mse_loss(out.flatten(), targets.to(out.dtype).flatten())


def floating_outputs(value: Any) -> list[Tensor]:
    """Return all floating tensors of a model's outputs, in order.

    Args:
        value: what the model returned.
    """
    found = [t for t in tensors_in(value) if t.is_floating_point()]
    if not found and hasattr(value, "__dict__"):  # a dataclass or a plain object of outputs
        found = [t for t in tensors_in(vars(value)) if t.is_floating_point()]
    return found


def _field(outputs: Any, key: str) -> Any:
    if isinstance(outputs, Mapping):
        return outputs.get(key)
    return (
        None
        if isinstance(outputs, Tensor | tuple | list) and not hasattr(outputs, key)
        else getattr(outputs, key, None)
    )


def _describe(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return _brief(outputs)
    return f"{type(outputs).__name__} of {', '.join(_brief(t) for t in tensors_in(outputs)) or 'no tensor'}"


def _brief(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
