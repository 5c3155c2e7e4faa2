"""What a model was given that is not finite: in which argument, and how many values."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Proposal
from levada.watching.loop.places import original
from levada.watching.measure.reading import plain

__all__ = [
    "LOOK",
    "OF",
    "Given",
    "Unfit",
    "given_last",
    "listed",
    "named",
    "positional",
    "sizes",
    "unfit_inputs",
    "unfit_targets",
]

Given: TypeAlias = Mapping[int | str, Any]
"""What a model was called with, by position or keyword."""

LOOK: Final = Proposal(
    "look at the data",
    "bad = ~torch.isfinite(batch).flatten(1).all(1)  # rows of the batch that are not finite\n"
    "print(bad.nonzero().flatten().tolist())",
)
"""The repair of a batch that is not finite."""

OF: Final = " of "  # between an argument and the part of a model that it was given to
_MOST: Final = 3  # that a sentence lists


@final
@dataclass(frozen=True, slots=True)
class Unfit:
    """A tensor that holds NaN or Inf.

    Attributes:
        name: of the argument, and the place in it: "the argument batch['x']", or "the targets".
        nan: number of values that are NaN.
        above: that are Inf.
        below: that are -Inf, which a mask may mean.
        of: number of values in all.
    """

    name: str
    nan: int
    above: int
    below: int
    of: int

    @property
    def meant(self) -> bool:
        """Whether it may be a mask: nothing in it but -Inf is not finite."""
        return not (self.nan or self.above)

    @property
    def kind(self) -> str:
        """The gravest that it holds: "NaN", "Inf" or "-Inf"."""
        return "NaN" if self.nan else "Inf" if self.above else "-Inf"

    def __str__(self) -> str:
        """Say it.

        Example:
            >>> str(Unfit("the argument x", 1, 2, 0, 64))
            'the argument x holds NaN in 1 and Inf in 2 of its 64 values'
        """
        counts = (("NaN", self.nan), ("Inf", self.above), ("-Inf", self.below))
        parts = [f"{kind} in {number:,}" for kind, number in counts if number]
        told = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
        hold, whose = ("hold", "their") if self.name.endswith("targets") else ("holds", "its")
        return f"{self.name} {hold} {told} of {whose} {self.of:,} values"


def given_last(source: Any, *, kept: bool) -> Given | None:
    """Return what a model was last called with, as far as it is still there.

    Args:
        source: what is watched.
        kept: whether its passes are kept, as for a bundle.
    """
    last = getattr(source, "last_pass", None) if kept or not hasattr(source, "inputs") else None
    if last is None and hasattr(source, "inputs"):  # of a model that is called part by part, no pass is kept
        return source.inputs or None
    # Above the cap, overwritten since, or of another step: this one's was not seen.
    if last is None or last.args is None or last.step != getattr(source, "steps", last.step):
        return None
    return {**dict(enumerate(last.args)), **(last.kwargs or {})}


def listed(found: list[Unfit]) -> str:
    """Say the first few of them.

    Args:
        found: at least one.

    Example:
        >>> listed([Unfit(f"the argument x[{i}]", 1, 0, 0, 8) for i in range(5)])[-35:]
        'NaN in 1 of its 8 values and 2 more'
    """
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return "; ".join(map(str, found[:_MOST])) + more


def named(given: Given) -> tuple[str, list[str]]:
    """Return what those inputs are called that were looked at, and what else may hold NaN, as it was not seen.

    Args:
        given: what the model, or a part of it, was called with.

    Example:
        >>> x = torch.ones(1)
        >>> named({0: x}), named({"x of net": x})
        (('the inputs', []), ('the inputs of net', ['what other parts were given']))
    """
    parts = {key.rpartition(OF)[2] for key in given if isinstance(key, str) and OF in key}
    return (f"the inputs of {min(parts)}", ["what other parts were given"]) if parts else ("the inputs", [])


def positional(module: nn.Module) -> list[str]:
    """Return the names of the arguments that a module may be given by position.

    Args:
        module: any, also in a wrapper.
    """
    try:
        parameters = inspect.signature(original(module).forward).parameters.values()
    except (TypeError, ValueError):  # a forward that Python cannot read
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def unfit_inputs(given: Given, model: nn.Module | None) -> list[Unfit]:
    """Return the inputs that hold NaN or Inf.

    Args:
        given: what the model was called with.
        model: it, whose forward names the arguments; None if it is not at hand.

    Example:
        >>> [str(one) for one in unfit_inputs({0: torch.tensor([1.0, torch.nan])}, nn.Linear(2, 1))]
        ['the argument input holds NaN in 1 of its 2 values']
    """
    names = [] if model is None else positional(model)
    return [
        found
        for key, value in given.items()
        for name, tensor in _tensors(value, names[key] if isinstance(key, int) and key < len(names) else f"{key}")
        if (found := _counted(f"the argument {name}", tensor)) is not None
    ]


def sizes(given: Given, model: nn.Module | None) -> dict[str, float]:
    """Return the root mean square of each tensor of real numbers, by what it is called; NaN and Inf are left out.

    Args:
        given: what the model was called with.
        model: it, as for `unfit_inputs`.

    Example:
        >>> sizes({0: torch.tensor([3.0, -3.0]), 1: torch.arange(4)}, nn.Linear(2, 1))
        {'input': 3.0}
    """
    names = [] if model is None else positional(model)
    found = {
        name: float(plain(tensor.detach()).double().square().mean().sqrt())
        for key, value in given.items()
        for name, tensor in _tensors(value, names[key] if isinstance(key, int) and key < len(names) else f"{key}")
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel()
    }
    return {name: size for name, size in found.items() if math.isfinite(size)}


def unfit_targets(targets: Any) -> list[Unfit]:
    """Return the targets that hold NaN or Inf.

    Args:
        targets: any nest.
    """
    named = ((name, tensor) for name, tensor in _tensors(targets, ""))
    return [
        found
        for name, tensor in named
        if (found := _counted(f"{name} of the targets" if name else "the targets", tensor)) is not None
    ]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _tensors(getattr(value, entry.name), f"{name}.{entry.name}")


def _counted(name: str, tensor: Tensor) -> Unfit | None:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return None
    values = plain(tensor.detach())
    if bool(torch.isfinite(values).all()):
        return None
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    nan, above, below = (int(t.sum()) for t in (values.isnan(), values.isposinf(), values.isneginf()))
    return Unfit(name, nan, above, below, values.numel())
