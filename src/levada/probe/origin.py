"""The operation that makes the first NaN or Inf out of numbers that are finite, in a forward and backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.hooks import RemovableHandle

from levada.inputs import tensors_in
from levada.probe.trace import Trace

__all__ = ["Origin", "Origins", "behind"]

_graph_task: Final = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # private: without it all is forward

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
        after: the block behind which it ran, of which all is finite; "" as long as that was not asked, see `behind`.
        size: root mean square of what that block returned.
    """

    kind: str
    operation: str
    module: str
    backward: bool
    number: int
    fed: bool = False
    after: str = ""
    size: float = math.nan

    def __str__(self) -> str:
        where = "the backward pass" if self.backward else self.module or "the loss, or the model's own forward"
        return f"The first {self.kind} is made by {self.operation} in {where}, out of numbers without one."

    def around(self, block: str) -> bool:
        """Return whether it ran in the forward of a module that holds a block, and in no part of that of its own.

        Args:
            block: qualified name of its module.

        Example:
            >>> made = Origin("NaN", "log", "stack (Stack)", False, 7)
            >>> made.around("stack.layers.1"), made.around("head")
            (True, False)
        """
        module = self.module.rpartition(" (")[0]
        return module == "the model" or block.startswith(f"{module}.")

    def own(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is told of a block, with its own output's size where what ran behind it was measured for it.

        Args:
            block: `site`, `signal_rms`, `nonfinite` and others.

        Example:
            >>> made = Origin("NaN", "log", "the model", False, 7, after="head", size=0.5)
            >>> made.own({"site": "head", "nonfinite": 1.0, "signal_rms": math.nan})
            {'site': 'head', 'nonfinite': 0.0, 'signal_rms': 0.5}
        """
        return {**block, "signal_rms": self.size, "nonfinite": 0.0} if block["site"] == self.after else {**block}

    def told(self) -> str:
        """Say what the row of the block behind which it ran has."""
        return f"The row of {self.after} has what that returns: {self.operation} in {self.module} comes behind it."


@final
class Origins(TorchDispatchMode):
    """Watches every operation while it is active; `first` is the earliest that makes NaN, or Inf that is not meant.

    Args:
        model: whose modules name the places.

    Attributes:
        finite: module -> whether all that it returned was finite.
        sizes: module -> root mean square of what it returned last, where that was finite.

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
        self.finite: dict[str, bool] = {}
        self.sizes: dict[str, float] = {}
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
            leave = module.register_forward_hook(
                lambda m, args, out, name=name: self._leave(name, out), always_call=True
            )
            self._handles += [enter, leave]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _leave(self, name: str, output: Any) -> None:
        self._inside.pop()
        with _disable_current_modes():
            returned = list(_floating(output))
            sound = not any(_has_nan(t) or _has_inf(t) for t in returned)
            if sound and returned:
                self.sizes[name] = float(returned[0].detach().double().square().mean().sqrt())
        self.finite[name] = sound and self.finite.get(name, True)

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
        backward = _graph_task() >= 0
        place = self._inside[-1] if self._inside and not backward else ""
        return Origin(kind, name, place, backward, self._count, fed)


def behind(origins: Origins, trace: Trace) -> Origin | None:
    """Return what makes the first NaN or Inf, if it runs behind a block that returns finite numbers, and not in it.

    A block's signal is what comes to the next one: with what functions, and modules without weights, do to its output.
    What it returns itself is measured here.

    Args:
        origins: of a pass.
        trace: of the same, by block.
    """
    origin = origins.first
    bad = (trace["nonfinite"].nan_to_num(0.0).amax(0) > 0).nonzero().flatten().tolist()
    if origin is None or origin.backward or not bad:
        return None
    site = trace.sites[bad[0]].name
    module = origin.module.rpartition(" (")[0]
    inside = module == site or module.startswith(f"{site}.")
    if inside or not origins.finite.get(site, False):
        return None
    return replace(origin, after=site, size=origins.sizes.get(site, math.nan))


def _floating(value: Any) -> Iterator[Tensor]:
    return (t for t in tensors_in(value) if t.is_floating_point() and t.layout is torch.strided and t.numel())


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor).any())


def _has_inf(tensor: Tensor) -> bool:
    return bool(torch.isinf(tensor).any())
