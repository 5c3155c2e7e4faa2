"""Single functional tests: change something for one forward pass, look at the result, and change it back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from levada.diagnose.loss import main_output
from levada.inputs import Batch, raised

__all__ = ["output_spread", "parameters_matter", "replaced", "roused_head", "widened"]

# Closer than this many times the resolution, a spread may be rounding and is measured again in double precision.
DOUBTFUL = 16.0
# A change of one part in a hundred of a parameter's size is far above rounding and far below breaking the model.
NUDGE = 0.01


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values inside the context.

    Args:
        model: the model.
        values: parameter name -> value.
    """
    parameters = dict(model.named_parameters())
    held = {name: parameters[name].detach().clone() for name in values}
    try:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in held.items():
                parameters[name].copy_(value)


def parameters_matter(
    model: nn.Module, groups: Mapping[str, Sequence[str]], objective: Callable[[], Tensor]
) -> dict[str, tuple[str, ...]] | None:
    """Return those groups of parameters of which a small change changes the objective.

    Args:
        model: the model.
        groups: site -> names of the parameters to change together; one forward pass each.
        objective: runs the model, from the same random state each time.

    Returns:
        The groups that matter; None if the objective differs from run to run anyway.
    """
    if not groups:
        return {}
    before, again = objective(), objective()
    if not torch.equal(before, again):
        return None
    found = {}
    for site, names in groups.items():
        with replaced(model, {name: _nudged(model.get_parameter(name).detach()) for name in names}):
            if not torch.equal(before, objective()):
                found[site] = tuple(names)
    return found


def _nudged(p: Tensor) -> Tensor:
    size = float(p.double().square().mean().sqrt()) or 1.0
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.device, p.dtype)
    return p + NUDGE * size * noise


def roused_head(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return random values for those of the named weights that are all zero, of variance 1/fan_in.

    A last layer that starts at zero lets no gradient through until its own first step; what is before it can be
    measured all the same.

    Args:
        model: the model.
        names: parameters of its last block.
    """
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name in names:
        p = parameters[name].detach()
        if p.dim() >= 2 and not bool(p.any()):
            noise = torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5
            values[name] = noise.to(p.device, p.dtype)
    return values


def output_spread(
    model: nn.Module, batch: Batch, output: Callable[[], Tensor], resolution: float
) -> tuple[float | None, bool, str]:
    """Return the spread of the output between inputs over its size, whether in double precision, and what went wrong.

    Args:
        model: the model.
        batch: the batch that `output` runs on.
        output: runs the model and returns its main output.
        resolution: distance from 1 to the next number of the model's type.
    """
    spread = _relative_spread(output())
    if spread is None or spread > DOUBTFUL * resolution:
        return spread, False, ""
    try:
        twin = copy.deepcopy(model).double()
        wide = widened(batch)
        return _relative_spread(main_output(twin(*wide.args, **wide.kwargs))), True, ""
    except Exception as error:
        # Any code may refuse a copy or another type; then the finding stays a warning, and says so.
        return spread, False, f"The output's spread was not measured in float64: {raised(error)}"


def widened(batch: Batch, dtype: torch.dtype = torch.float64) -> Batch:
    """Return the batch with every floating tensor in another type.

    Args:
        batch: the batch.
        dtype: the type.
    """

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, tuple | list):
            return type(value)(wide(item) for item in value)
        return {k: wide(v) for k, v in value.items()} if isinstance(value, dict) else value

    kwargs = {key: wide(value) for key, value in batch.kwargs.items()}
    return replace(batch, args=tuple(wide(value) for value in batch.args), kwargs=kwargs, targets=wide(batch.targets))


def _relative_spread(output: Tensor) -> float | None:
    values = output.detach().double()
    if values.dim() < 1 or len(values) < 2 or not bool(torch.isfinite(values).all()):
        return None
    size = float(values.square().mean().sqrt())
    return float((values - values.mean(0)).square().mean().sqrt()) / size if size > 0 else 0.0
