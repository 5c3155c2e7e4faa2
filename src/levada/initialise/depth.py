"""Initialisations that depend on how deep a residual network is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Generator, nn

from levada._errors import UsageError, require_at_least
from levada.connection import Layer
from levada.initialise._weights import Weight, gauss_, glorot_, weights

__all__ = ["deepnorm", "fixup"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


class _Resettable(Protocol):
    def reset_parameters(self) -> None: ...


@torch.no_grad()
def fixup(
    module: nn.Module,
    *,
    classifier: nn.Module | None = None,
    scalars: bool = True,
    generator: Generator | None = None,
) -> nn.Module:
    """Make one step of SGD change the output by O(learning rate), at any depth and without normalisation.

    In every branch of `m` weights, the last is 0 and the others are He's times `L^(-1/(2m - 2))`, with `L` the number
    of branches; the classifier is 0; all other weights are He's; all biases are 0.

    The method has a third rule, which a network obeys by its build: a scalar bias before every weight and activation
    and a multiplier in every branch, as in `levada.blocks.Fixup`. They are set to 0 and 1. The bound is on the step of
    the weights: the scalars' steps add up over the branches, and the authors' code gives them a tenth of the rate.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention. A branch is that of a `Layer`, a chain
            of weights in the order in which they were registered; a branch without a weight does not count.
        classifier: the module whose weights to set to 0; if left out, the last weight that was registered after the
            last branch, if there is one.
        scalars: False for branches without the scalars: the first two rules alone, which is not all of Fixup.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if there is no branch with a weight, a branch normalises or lacks the scalars, or `classifier` has
            no weight outside of the branches. Nothing is changed then.

    Example:
        >>> import levada
        >>> from levada.blocks import Fixup
        >>> chain = lambda: [nn.Linear(8, 8, bias=False) for _ in range(2)]
        >>> stack = levada.Stack([Fixup(chain()) for _ in range(10)], levada.Residual, dim=8)
        >>> x = torch.randn(5, 8)
        >>> bool((fixup(stack)(x) == x).all())
        True

    Source: Zhang, Dauphin and Ma, 2019, arXiv 1901.09321.
    """
    found = weights(module, "fixup")
    branches = _branches(module, found)
    for layer, chain in branches.items():
        _require_fixup(layer.branch, len(chain), scalars)
    inside = {w.module for chain in branches.values() for w in chain}
    last = _classifier(found, inside, classifier)
    for weight in found:
        if weight.module in last:
            gauss_(weight, 0.0, generator)
        elif weight.module not in inside:
            gauss_(weight, 2 / weight.fan_in, generator)
    for layer, chain in branches.items():
        for i, weight in enumerate(chain):
            scale = 0.0 if i == len(chain) - 1 else len(branches) ** (-1 / (len(chain) - 1))
            gauss_(weight, 2 * scale / weight.fan_in, generator)
        for scalar in _scalar_modules(layer.branch):
            cast(_Resettable, scalar).reset_parameters()
    return module


def _branches(module: nn.Module, found: Sequence[Weight]) -> dict[Layer, list[Weight]]:
    """Return the layers whose branch has weights, with these."""
    layers = {
        child: layer for layer in module.modules() if isinstance(layer, Layer) for child in layer.branch.modules()
    }
    branches: dict[Layer, list[Weight]] = {}
    for weight in found:
        if weight.module in layers:
            branches.setdefault(layers[weight.module], []).append(weight)
    if not branches:
        raise UsageError(
            f"fixup: found no Layer with a weight in its branch in {type(module).__name__}; build the network with "
            "levada.Stack."
        )
    return branches


def _scalar_modules(branch: nn.Module) -> list[nn.Module]:
    modules = []
    for child in branch.modules():
        own = list(child.parameters(recurse=False))
        if own and all(p.numel() == 1 for p in own) and hasattr(child, "reset_parameters"):
            modules.append(child)
    return modules


def _require_fixup(branch: nn.Module, num_weights: int, scalars: bool) -> None:
    norm = next((child for child in branch.modules() if isinstance(child, _NORMS)), None)
    if norm is not None:
        raise UsageError(f"fixup: a branch must not normalise, got {type(norm).__name__}. Build it without.")
    num_scalars = len(_scalar_modules(branch))
    if scalars and num_scalars < 2 * num_weights:
        raise UsageError(
            f"fixup: a branch of {num_weights} weights needs {2 * num_weights} learned scalars or more, got "
            f"{num_scalars}. Use levada.blocks.Fixup, or scalars=False for the weights alone."
        )


def _classifier(found: Sequence[Weight], inside: set[nn.Module], classifier: nn.Module | None) -> set[nn.Module]:
    if classifier is None:
        return {found[-1].module} - inside
    chosen = set(classifier.modules()) & {w.module for w in found} - inside
    if not chosen:
        raise UsageError(f"fixup: classifier must hold a weight outside of the branches, got {classifier}.")
    return chosen


@torch.no_grad()
def deepnorm(
    module: nn.Module,
    *,
    num_layers: int | None = None,
    query_key: Sequence[str] = ("query", "key", "q_proj", "k_proj"),
    generator: Generator | None = None,
) -> nn.Module:
    """Scale a transformer for DeepNorm: Glorot weights, those of the values, outputs and feed-forward times `beta`.

    `beta = (8 N)^(-1/4)` with `N` transformer layers of one attention and one feed-forward each, for a network that is
    an encoder or a decoder alone. The other half of the method is in the connection, which must be
    `x' = LayerNorm(alpha x + f(x))` with `alpha = (2 N)^(1/4)` around branches that do not normalise.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention in the branch of a `Layer`; if it holds
            no `Layer`, every one. Embedding and head keep theirs.
        num_layers: the number `N`; half of the number of `Layer`s if left out.
        query_key: the names of the modules that make queries and keys, which are not scaled.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if `num_layers` is left out and there is not an even number of `Layer`s, or there is nothing to set.

    Example:
        >>> linear = deepnorm(nn.Linear(300, 300), num_layers=2, generator=torch.Generator().manual_seed(0))
        >>> round(300 * linear.weight.var().item(), 2)
        0.25

    Source: Wang, Ma, Dong, Huang, Zhang and Wei, 2022, arXiv 2203.00555.
    """
    layers = [child for child in module.modules() if isinstance(child, Layer)]
    if num_layers is None:
        if not layers or len(layers) % 2:
            raise UsageError(
                f"deepnorm: without num_layers there must be two Layers (attention, feed-forward) for each transformer "
                f"layer, got {len(layers)}. Give num_layers=."
            )
        num_layers = len(layers) // 2
    require_at_least("deepnorm", "num_layers", num_layers, 1)
    inside = {child for layer in layers for child in layer.branch.modules()}
    for weight in weights(module, "deepnorm"):
        if layers and weight.module not in inside:
            continue
        name = weight.site.rpartition(".")[2]
        glorot_(weight, 1.0 if name in query_key else (8 * num_layers) ** -0.25, generator)
    return module
