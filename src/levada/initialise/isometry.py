"""Initialisations that keep the norm of every vector, not only on average."""

from __future__ import annotations

import torch
from torch import Generator, nn

from levada._errors import UsageError
from levada.initialise._weights import Weight, orthogonal_matrix, weights

__all__ = ["delta_orthogonal", "looks_linear", "orthogonal"]


def _set_orthogonal(weight: Weight, gain: float, generator: Generator | None) -> None:
    for group in weight.value.chunk(weight.groups):
        matrix = orthogonal_matrix(len(group), group[0].numel(), group, generator)
        group.copy_(gain * matrix.reshape(group.shape))
    if weight.bias is not None:
        weight.bias.zero_()


@torch.no_grad()
def orthogonal(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    """Set weights with orthonormal rows or columns: `W W' = gain^2 I` or `W' W = gain^2 I`; `b = 0`.

    A convolution's weight is set as a matrix `(dim_out, dim_in kernel)`: this does not keep the norm of a whole signal;
    `delta_orthogonal` does.

    Args:
        module: changed in place: every Linear, Conv1d-3d (each group) and MultiheadAttention.
        gain: factor on every weight.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if there is nothing to set.

    Example:
        >>> linear = orthogonal(torch.nn.Linear(4, 4))
        >>> bool(torch.allclose(linear.weight @ linear.weight.T, torch.eye(4), atol=1e-6))
        True

    Source: Saxe, McClelland and Ganguli, 2014, arXiv 1312.6120.
    """
    for weight in weights(module, "orthogonal"):
        _set_orthogonal(weight, gain, generator)
    return module


@torch.no_grad()
def delta_orthogonal(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    """Make convolutions keep the norm of every signal: the centre tap orthogonal, all others zero; `b = 0`.

    Args:
        module: changed in place: every Conv1d-3d (each group); Linear and MultiheadAttention as by `orthogonal`.
        gain: factor on every weight: `sqrt(weight_variance)` of the critical point.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if a convolution has fewer outputs than inputs, so that some signals must be lost, or a kernel of
            even size, which has no centre; or if there is nothing to set. Nothing is changed then.

    Example:
        >>> conv = delta_orthogonal(torch.nn.Conv1d(4, 8, 3, padding=1))
        >>> x = torch.randn(2, 4, 20)
        >>> bool(torch.allclose(conv(x).norm(), x.norm()))
        True

    Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, 2018, arXiv 1806.05393.
    """
    found = weights(module, "delta_orthogonal")
    convolutions = [w for w in found if w.value.dim() > 2]
    for weight in convolutions:
        dim_out, dim_in, *kernel = weight.value.shape
        where = weight.site or type(module).__name__
        if dim_out // weight.groups < dim_in:
            raise UsageError(
                f"delta_orthogonal: a convolution must not have fewer outputs than inputs, got {dim_in} -> "
                f"{dim_out // weight.groups} at {where}. Narrow with a Linear or pooling, or use orthogonal."
            )
        if any(size % 2 == 0 for size in kernel):
            raise UsageError(f"delta_orthogonal: a kernel must have odd sizes, got {tuple(kernel)} at {where}.")
    for weight in found:
        if weight.value.dim() == 2:
            _set_orthogonal(weight, gain, generator)
            continue
        weight.value.zero_()
        centre = weight.value
        for size in weight.value.shape[2:]:
            centre = centre.select(2, size // 2)
        for group in centre.chunk(weight.groups):
            group.copy_(gain * orthogonal_matrix(len(group), group.shape[1], group, generator))
        if weight.bias is not None:
            weight.bias.zero_()
    return module


@torch.no_grad()
def looks_linear(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    """Make a network of concatenated rectifiers linear at first: `[W, -W] [relu(x), relu(-x)] = W x`.

    Every weight that reads a module with `keeps_both_signs` (`levada.blocks.ConcatenatedReLU`) is set to `[W, -W]`, any
    other to `W`, with `W` orthogonal; `b = 0`. Which one reads what is taken from the order in which modules were
    registered: the first weight after such an activation reads it, as in `nn.Sequential` and in the blocks.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention.
        gain: factor on every weight.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if no weight reads such an activation, or one that does has an odd number of inputs or groups.
            Nothing is changed then.

    Example:
        >>> from levada.blocks import ConcatenatedReLU
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), ConcatenatedReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(looks_linear(net)(-x), -net(x), atol=1e-6))
        True

    Source: Balduzzi, Frean, Leary, Lewis, Ma and McWilliams, 2017, arXiv 1702.08591.
    """
    found = weights(module, "looks_linear")
    mirrored = _reading_both_signs(module, {w.module for w in found})
    if not mirrored:
        raise UsageError(
            "looks_linear: no weight reads an activation that keeps both signs, so none can be mirrored. "
            "Build the network with levada.blocks.ConcatenatedReLU."
        )
    for weight in found:
        odd = weight.value.shape[1] % 2 or weight.groups > 1 or isinstance(weight.module, nn.MultiheadAttention)
        if weight.module in mirrored and odd:
            raise UsageError(
                f"looks_linear: what reads both signs must be a Linear or an ungrouped convolution with an even number "
                f"of inputs, got {weight.module} at {weight.site}."
            )
    for weight in found:
        if weight.module not in mirrored:
            _set_orthogonal(weight, gain, generator)
            continue
        positive, negative = weight.value.chunk(2, dim=1)
        matrix = orthogonal_matrix(len(positive), positive[0].numel(), positive, generator)
        half = gain * matrix.reshape(positive.shape)
        positive.copy_(half)
        negative.copy_(-half)
        if weight.bias is not None:
            weight.bias.zero_()
    return module


def _reading_both_signs(module: nn.Module, candidates: set[nn.Module]) -> set[nn.Module]:
    """Those of the candidates that come first after an activation that keeps both signs."""
    result, pending = set(), False
    for child in module.modules():
        if getattr(child, "keeps_both_signs", False):
            pending = True
        elif pending and child in candidates:
            result.add(child)
            pending = False
    return result
