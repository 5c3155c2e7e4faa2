"""The operation that makes the first NaN or Inf out of numbers that are finite, in a forward and backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from levada.inputs import tensors_in
from levada.watching.losses import in_backward

__all__ = ["Origin", "Origins"]

# What writes numbers that are there already, as -Inf into a mask: an Inf from these is meant.
_WRITES: Final = ("fill", "full", "where", "scalar_tensor", "copy", "lift_fresh", "triu", "tril")
# What hands out memory as it is.
_UNWRITTEN: Final = ("empty", "resize")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first value that is not finite arises.

    Attributes:
        kind: "NaN" or "Inf".
        operation: name of the operation.
        module: the innermost module in whose forward it ran, as "blocks.3.norm (LayerNorm)"; "" in the backward pass.
        backward: whether it ran in the backward pass.
        number: how many operations ran before it.
        fed: whether Inf was among what it was given.
    """

    kind: str
    operation: str
    module: str
    backward: bool
    number: int
    fed: bool = False

    def __str__(self) -> str:
        where = "the backward pass" if self.backward else self.module or "the loss, or the model's own forward"
        return f"The first {self.kind} is made by {self.operation} in {where}, out of numbers without one."


@final
class Origins(TorchDispatchMode):
    """Watches every operation while it is active; `first` is the earliest that makes NaN, or Inf that is not meant.

    Args:
        model: whose modules name the places.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with Origins(model) as origins:
        ...     _ = model(torch.ones(1, 2)).sub(5.0).log()
        >>> origins.first.kind, origins.first.operation
        ('NaN', 'log')
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first_nan: Origin | None = None
        self.first_inf: Origin | None = None
        self._model = model
        self._count = 0
        self._inside: list[str] = []
        self._handles: list[RemovableHandle] = []

    @property
    def first(self) -> Origin | None:
        """The earlier of the two; None if everything was finite."""
        found = [one for one in (self.first_nan, self.first_inf) if one is not None]
        return min(found, key=lambda one: one.number) if found else None

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            told = f"{name or 'the model'} ({type(module).__name__})"
            enter = module.register_forward_pre_hook(lambda m, args, told=told: self._inside.append(told))
            leave = module.register_forward_hook(lambda m, args, out: self._leave(), always_call=True)
            self._handles += [enter, leave]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = list(_floating((args, dict(kwargs)))) if self.first_nan is None else []
        nan, inf = any(map(_has_nan, before)), any(map(_has_inf, before))
        result = func(*args, **kwargs)
        self._count += 1
        if self.first_nan is not None or not before or any(part in name for part in _UNWRITTEN):
            return result
        after = list(_floating(result))
        if not nan and any(map(_has_nan, after)):
            self.first_nan = self._here("NaN", name, fed=inf)
        elif not (nan or inf or self.first_inf or any(part in name for part in _WRITES)) and any(map(_has_inf, after)):
            self.first_inf = self._here("Inf", name)
        return result

    def _here(self, kind: str, name: str, *, fed: bool = False) -> Origin:
        backward = in_backward()
        place = self._inside[-1] if self._inside and not backward else ""
        return Origin(kind, name, place, backward, self._count, fed)


def _floating(value: Any) -> Iterator[Tensor]:
    return (t for t in tensors_in(value) if t.is_floating_point() and t.layout is torch.strided and t.numel())


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor).any())


def _has_inf(tensor: Tensor) -> bool:
    return bool(torch.isinf(tensor).any())
