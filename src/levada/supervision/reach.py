"""What intermediate losses do to the gradient that reaches each part of a model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from levada._errors import UsageError
from levada.probe.untouched import untouched
from levada.supervision.supervision import Supervision

__all__ = ["Reach", "gradient_reach"]


class Reach(NamedTuple):
    """The gradient that reaches the parameters of one module.

    Attributes:
        site: the module that owns them, by its qualified name in the model.
        without: norm of the gradient of the output's loss.
        supervised: norm of the gradient of the loss with its intermediate parts.
    """

    site: str
    without: float
    supervised: float

    @property
    def ratio(self) -> float:
        """How many times larger it is with intermediate losses; infinite where nothing arrives without."""
        if self.without:
            return self.supervised / self.without
        return math.inf if self.supervised else math.nan


def gradient_reach(supervised: Supervision, *inputs: Any, targets: Any, **options: Any) -> list[Reach]:
    """Measure the gradient that reaches every module with parameters, with and without intermediate losses.

    One forward pass in training mode, with today's factors, and two backward passes: no gradient is left on a
    parameter, buffers such as running statistics and the random numbers stay as they were, and dropout draws the same
    each time. Lazy heads take their size from a pass before. To watch it over training, attach a `Probe` to
    `supervised.model`.

    Args:
        supervised: the model with its heads.
        *inputs: what the model is given.
        targets: as `supervised` takes them.
        **options: what the model is given by name.

    Returns:
        One `Reach` for each module, in the order in which the model registers them.

    Raises:
        UsageError: if `supervised` is no `Supervision`, or in evaluation mode.

    Example:
        >>> from torch import nn
        >>> layers = [nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()) for _ in range(20)]
        >>> model = nn.Sequential(*layers, nn.Linear(16, 3))
        >>> heads = {str(i): nn.Linear(16, 3) for i in range(3, 19, 4)}
        >>> found = gradient_reach(
        ...     Supervision(model, heads, nn.functional.cross_entropy),
        ...     torch.randn(8, 16), targets=torch.arange(8) % 3,
        ... )
        >>> found[0].site, found[0].ratio > 1e6
        ('0.0', True)
    """
    if not isinstance(supervised, Supervision):
        raise UsageError(
            f"gradient_reach: supervised must be a levada.Supervision, got {type(supervised).__name__}. Give the model "
            "its heads first."
        )
    if not supervised.training:
        raise UsageError("gradient_reach: there are no intermediate losses in evaluation. Call supervised.train().")
    model = getattr(supervised.model, "_orig_mod", supervised.model)
    owned = {
        name: [p for p in module.parameters(recurse=False) if p.requires_grad] for name, module in model.named_modules()
    }
    owned = {name: parameters for name, parameters in owned.items() if parameters}
    wanted = [p for parameters in owned.values() for p in parameters]
    if any(is_lazy(own) for own in (*supervised.parameters(), *supervised.buffers())):
        with untouched(supervised.model, seed=0), torch.no_grad():
            supervised(*inputs, targets=targets, **options)
    with untouched(supervised, seed=0), torch.enable_grad():
        found = supervised(*inputs, targets=targets, **options)
        alone = torch.autograd.grad(
            supervised.output_loss(found.output, targets), wanted, retain_graph=True, allow_unused=True
        )
        together = torch.autograd.grad(found.loss, wanted, allow_unused=True)
    norms = [{id(p): _norm(g) for p, g in zip(wanted, gs, strict=True)} for gs in (alone, together)]
    return [
        Reach(name, *(math.hypot(*(norm[id(p)] for p in parameters)) for norm in norms))
        for name, parameters in owned.items()
    ]


def _norm(gradient: torch.Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.detach().double().norm())  # squares underflow in float32
