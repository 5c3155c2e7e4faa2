"""Parameters in groups, as optimizers take them: what decays, and what goes to which optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule, require_module
from levada.stacking import as_layers

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module, *, weight_decay: float = 0.1, optimizer: Literal["adamw", "muon"] = "adamw"
) -> list[dict[str, Any]]:
    """Split a model's parameters by what their papers say about decay, and about the optimizer.

    A connection, or what it puts after the last layer, says for each of its parameters (`rules`): static weights,
    biases and scales do not decay, projections do.

    Of other modules, matrices, filters and tables decay, embeddings included: what has two dimensions or more. Left
    out are normalisations, of whatever shape; biases, positions and tokens, by their names; and what a module holds
    with an axis of length 1, which is broadcast, such as a scale `(dim, 1, 1)`. With `optimizer="muon"` the hidden
    matrices are groups of their own: those of linear modules in repeated blocks, the members of a ModuleList and alike
    ones of a Sequential. Embeddings, convolutions and all that lies outside of blocks, as heads and input projections
    do, stay with AdamW, and so does what a connection gives to it. In a model without such blocks all linear modules
    are hidden but the last one, its head, and the first, where neither embedding nor convolution comes before it.

    Args:
        model: the model; parameters that need no gradient are left out, shared ones come once.
        weight_decay: decay of what decays.
        optimizer: `"adamw"` for two groups; `"muon"` for those, and one to be given to `torch.optim.Muon`.

    Returns:
        Groups with "params", "weight_decay", "name" and "optimizer"; empty ones are left out. Their order and that of
        the parameters is the model's.

    Raises:
        UsageError: if no parameter needs a gradient, `weight_decay` is negative, `optimizer` is unknown, or Muon would
            be given the matrices of stacked layers.

    Example:
        >>> import torch, levada
        >>> net = levada.Stack([nn.Linear(4, 4) for _ in range(2)], levada.HyperConnection, dim=4)
        >>> groups = parameter_groups(net, weight_decay=0.1)
        >>> [(group["name"], group["weight_decay"], len(group["params"])) for group in groups]
        [('adamw, decayed', 0.1, 4), ('adamw, not decayed', 0.0, 16)]
        >>> _ = torch.optim.AdamW(groups, lr=1e-3)
    """
    require_module(model, "parameter_groups")
    require_at_least("parameter_groups", "weight_decay", weight_decay, 0.0)
    if optimizer not in ("adamw", "muon"):
        raise UsageError(f"parameter_groups: optimizer must be 'adamw' or 'muon', got {optimizer!r}.")
    with as_layers(model, sharded=True, written=False) as by_layer:
        stacked = {own: whole for whole, layers in by_layer.items() for own in layers}
        wholes, kinds = set(by_layer), {stacked.get(p, p): kind for p, kind in _kinds(model).items()}
    if not kinds:
        raise UsageError(
            f"parameter_groups: the model must have parameters that need a gradient, and {type(model).__name__} has "
            "none. Set requires_grad."
        )
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        key: [] for key in (("muon", True), ("muon", False), ("adamw", True), ("adamw", False))
    }
    for parameter, (decays, to) in kinds.items():
        if optimizer == "muon" and to == "muon" and parameter in wholes:
            raise UsageError(
                "parameter_groups: Muon takes matrices, and those of stacked layers are one tensor of three "
                "dimensions. Call arrange(stacked=False) on the stack, or take optimizer='adamw'."
            )
        groups[to if optimizer == "muon" else "adamw", decays].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "name": f"{to}, {'decayed' if decays else 'not decayed'}",
            "optimizer": to,
        }
        for (to, decays), parameters in groups.items()
        if parameters
    ]


def _kinds(model: nn.Module) -> dict[nn.Parameter, tuple[bool, str]]:
    found: dict[nn.Parameter, tuple[bool, str]] = {}
    embedded = {p for m in model.modules() if isinstance(m, _TABLES) for p in m.parameters(recurse=False)}
    hidden = _hidden(model)
    for module in model.modules():
        rules = getattr(module, "rules", None)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in found:
                continue
            rule = rules.get(name) if isinstance(rules, Mapping) else None
            if isinstance(rule, ParameterRule):  # another's module may mean other things by `rules`
                found[parameter] = rule.decay, rule.optimizer if parameter.ndim == 2 else "adamw"
            else:
                decays = _decays(module, name, parameter)
                muon = decays and parameter.ndim == 2 and module in hidden and parameter not in embedded
                found[parameter] = decays, "muon" if muon else "adamw"
    return found


_TABLES = nn.Embedding | nn.EmbeddingBag
_CONVOLUTIONS = nn.modules.conv._ConvNd
_BESIDE = re.compile("bias|(^|_)(pos|position|positions|positional)(_|$)|token$")


def _decays(module: nn.Module, name: str, parameter: Tensor) -> bool:
    if parameter.ndim < 2 or "Norm" in type(module).__name__ or _BESIDE.search(name):
        return False
    return _is_linear(module) or isinstance(module, _TABLES | _CONVOLUTIONS) or 1 not in parameter.shape


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear module, whoever wrote it; `Conv1D` is that of GPT-2 in transformers."""
    name = type(module).__name__
    return isinstance(module, nn.Linear | nn.MultiheadAttention) or "Linear" in name or name == "Conv1D"


def _hidden(model: nn.Module) -> set[nn.Module]:
    """Return the linear modules whose matrices are hidden ones."""
    linear = [m for m in model.modules() if _is_linear(m)]
    blocks = [block for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) for block in _blocks(m)]
    inside = {m for block in blocks for m in block.modules() if _is_linear(m)}
    if inside:
        return inside
    first = next((m for m in model.modules() if _is_linear(m) or isinstance(m, _TABLES | _CONVOLUTIONS)), None)
    return {m for m in linear[:-1] if m is not first}


def _blocks(members: nn.ModuleList | nn.Sequential) -> list[nn.Module]:
    """Return the members that are repeated blocks, and not a head that happens to stand in the same list."""
    listed, kinds = isinstance(members, nn.ModuleList), [_kind(m) for m in members]
    found = []
    for module, kind in zip(members, kinds, strict=True):
        composite = any(True for _ in module.children())
        one_of_a_list = listed and composite and type(module) is not nn.Sequential
        if one_of_a_list or ((listed or composite) and kinds.count(kind) > 1):
            found.append(module)
    return found


def _kind(module: nn.Module) -> object:
    # Containers and single layers are alike if their shapes are; blocks of one class may differ in them.
    alike = any(True for _ in module.children()) and type(module) is not nn.Sequential
    return type(module), None if alike else [p.shape for p in module.parameters()]
