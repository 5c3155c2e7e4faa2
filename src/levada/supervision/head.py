"""A head, its site, and the part of the site's output that it is given."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.supervision.schedules import Schedule

__all__ = ["Head", "Loss", "Select", "find_site", "select_from", "shape_of"]

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Select: TypeAlias = int | str | Callable[[Any], Any]


@final
@dataclass(frozen=True, slots=True)
class Head:
    """A head with a task of its own; what is left out is as in the `Supervision` that it is given to.

    Attributes:
        module: what turns the site's output into a prediction; lazy modules take their size from the first batch.
        loss: `(prediction, target) -> scalar`.
        weight: factor on the loss.
        schedule: `(progress, depth) -> factor` on the weight.
        target: key of its target in the targets, such as "upos"; left out, all targets.
        select: which part of the site's output the head is given: an index of a tuple, a key of a mapping or name of an
            attribute, or a function.

    Example:
        >>> Head(nn.LazyLinear(14), target="upos", select=0).target
        'upos'
    """

    module: nn.Module
    loss: Loss | None = None
    weight: float | None = None
    schedule: Schedule | None = None
    target: Any = None
    select: Select | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise UsageError(f"Head: module must be an nn.Module, got {type(self.module).__name__}.")
        if self.weight is not None:
            require_at_least("Head", "weight", self.weight, 0.0)
        for name in ("loss", "schedule"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UsageError(f"Head: {name} must be a function, got {value!r}.")

    def completed(self, loss: Loss, weight: float, schedule: Schedule) -> Head:
        """Return the head with what it leaves out filled in.

        Args:
            loss: for all heads.
            weight: for all heads.
            schedule: for all heads.
        """
        return Head(
            self.module,
            self.loss or loss,
            weight if self.weight is None else self.weight,
            self.schedule or schedule,
            self.target,
            self.select,
        )


def select_from(output: Any, select: Select | None, site: str) -> Any:
    """Return the part of an output that a head is given.

    Args:
        output: what the site returned.
        select: an index, a key or name, a function, or None for all of it.
        site: name of the site, for what is said.

    Raises:
        UsageError: if there is no such part.

    Example:
        >>> select_from({"hidden": 3}, "hidden", "encoder"), select_from((5, 7), 1, "encoder")
        (3, 7)
    """
    if select is None:
        return output
    if callable(select):
        return select(output)
    try:
        return getattr(output, select) if isinstance(select, str) and hasattr(output, select) else output[select]
    except (LookupError, TypeError) as error:
        raise UsageError(
            f"Supervision: select={select!r} does not fit the output of site {site!r}, {shape_of(output)}."
        ) from error


def shape_of(value: Any) -> str:
    """Say what a value is: a tensor by its shape, a container by its parts.

    Args:
        value: any value.

    Example:
        >>> import torch
        >>> shape_of((torch.ones(2, 3), {"loss": 1.0}))
        'a tuple of (a tensor (2, 3), a dict of (loss: float))'
    """
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(shape_of, value))})"
    if isinstance(value, dict):
        return f"a dict of ({', '.join(f'{key}: {shape_of(item)}' for key, item in value.items())})"
    return type(value).__name__


def find_site(model: nn.Module, site: str) -> nn.Module:
    """Return a submodule by its qualified name.

    Args:
        model: the model, compiled or not.
        site: the name.

    Raises:
        UsageError: if there is none; the message has near names.

    Example:
        >>> find_site(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "1")
        Tanh()
        >>> find_site(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "2")
        Traceback (most recent call last):
        levada._errors.UsageError: Supervision: Sequential has no module '2'. Near it: '0', '1'.
    """
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    known = [name for name, _ in inner.named_modules(remove_duplicate=False) if name]
    if site in known:
        return inner.get_submodule(site)
    if site == "":
        raise UsageError("Supervision: the model's own output has its loss already. Name a module inside of it.")
    near = difflib.get_close_matches(site, known, 3, 0.5) or known[:3]
    told = f"Near it: {', '.join(map(repr, near))}." if near else "It has no modules inside."
    raise UsageError(f"Supervision: {type(inner).__name__} has no module {site!r}. {told}")
