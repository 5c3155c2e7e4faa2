"""What a mutation operator is, the list of all, and the places in a model at which faults are planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.architectures import Plan
from benchmarks.diagnosis.models import ResidualBlock
from benchmarks.diagnosis.program import Setup

__all__ = [
    "OPERATORS",
    "At",
    "Operator",
    "activated",
    "blocks",
    "embedding",
    "head",
    "matrices",
    "operator",
    "recurrent",
]

Sites = Callable[[nn.Module], list[str]]

OPERATORS: dict[str, Operator] = {}
"""All operators by name, in the order of their definition."""

WHOLE = (ResidualBlock, nn.TransformerEncoderLayer, nn.RNNBase)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True)
class At:
    """Where and in what a fault is planted.

    Attributes:
        plan: of the healthy setup.
        seed: of the setup.
        site: name of the module; "" if the fault is nowhere in particular.
    """

    plan: Plan
    seed: int
    site: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """One way to break a setup.

    Attributes:
        name: of the function.
        mutate: changes a fresh setup, and returns it.
        causes: rules that name the cause; none if no rule does.
        families: to which it applies.
        suits: whether it makes sense for a plan of these.
        sites: lists the modules at which it can be planted; None if it is nowhere in particular.
        suffix: what the name of the site gains by the change.
    """

    name: str
    mutate: Callable[[Setup, At], Setup]
    causes: frozenset[str]
    families: frozenset[str]
    suits: Callable[[Plan], bool]
    sites: Sites | None = None
    suffix: str = ""

    def applies(self, plan: Plan) -> bool:
        """Whether the operator makes sense for a plan."""
        return plan.family in self.families and self.suits(plan)


def operator(
    *causes: str,
    families: str,
    suits: Callable[[Plan], bool] = lambda plan: True,
    sites: Sites | None = None,
    suffix: str = "",
) -> Callable[[Callable[[Setup, At], Setup]], Callable[[Setup, At], Setup]]:
    """Put a function on the list of operators.

    Args:
        causes: rules that name the cause.
        families: names, with spaces between.
        suits: whether it makes sense for a plan of these.
        sites: lists the modules at which it can be planted.
        suffix: what the name of the site gains.
    """

    def listed(mutate: Callable[[Setup, At], Setup]) -> Callable[[Setup, At], Setup]:
        name = mutate.__name__
        OPERATORS[name] = Operator(name, mutate, frozenset(causes), frozenset(families.split()), suits, sites, suffix)
        return mutate

    return listed


def anchors(model: nn.Module) -> list[str]:
    """Names of the blocks' modules, in order: what is whole, and layers with weights outside of it."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, WHOLE + WEIGHTED) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def blocks(model: nn.Module) -> list[str]:
    """All but the head."""
    return anchors(model)[:-1]


def head(model: nn.Module) -> list[str]:
    """The last layer with weights."""
    return anchors(model)[-1:]


def embedding(model: nn.Module) -> list[str]:
    """The embedding of tokens."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]


def recurrent(model: nn.Module) -> list[str]:
    """The recurrent layer."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]


def activated(model: nn.Module) -> list[str]:
    """Linear and convolutional layers of a sequence that an activation follows, past a normalisation or not."""
    assert isinstance(model, nn.Sequential)
    found = []
    for index, module in enumerate(model):
        after = [m for m in model[index + 1 : index + 3] if not isinstance(m, NORMS)][:1]
        if isinstance(module, WEIGHTED) and after and isinstance(after[0], ACTIVATIONS):
            found.append(str(index))
    return found


def matrices(module: nn.Module) -> Iterator[Tensor]:
    """Weights of linear, convolutional, recurrent and attention layers."""
    for name, p in module.named_parameters():
        if p.dim() > 1 and "position" not in name and "embed" not in name:
            yield p.data


def draws(at: At) -> torch.Generator:
    """A generator for an operator's own draws."""
    return torch.Generator().manual_seed(1000 + at.seed)
