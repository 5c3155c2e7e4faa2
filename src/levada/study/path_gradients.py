r"""The gradient of a residual network by the number of branches that it passed.

Backwards through a block the gradient is that of the skip plus that of the branch, so that of $L$ blocks it is a sum
over $2^L$ paths. Three measures of what the paths of one length bring: the norm of a single one times their number,
which is an upper bound, the norm of their sum, and the share of the gradient that this sum has, both exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.study.lesions import require_residual
from levada.study.replicas import SignalNetwork, signal_layout

__all__ = ["additive_shares", "number_times_norm", "single_path_norms", "summed_path_norms"]


def single_path_norms(
    network: SignalNetwork, inputs: Tensor, targets: Tensor, lengths: Sequence[int], *, paths: int = 1, seed: int = 0
) -> Tensor:
    """Norms of the gradient that comes through single random paths, by their number of branches.

    Forwards the network is whole. Backwards each example's gradient takes `paths` paths of each length: the branches of
    a random set of blocks and the skips of all others. Where no branch is passed nothing is computed.

    Args:
        network: a residual network of replicas, in evaluation mode, in which examples do not see each other.
        inputs: `(num, length)`.
        targets: `(num,)`.
        lengths: numbers of branches.
        paths: number of paths that are drawn for each example and length.
        seed: seed of the sets of blocks, the same in all replicas.

    Shape:
        Returns `(lengths, paths, num, replicas)`: norms of the gradient of an example's cross-entropy with respect to
        the first state.

    Raises:
        UsageError: if the network is not residual or in training mode, or there are fewer blocks than a length says.
    """
    _require_evaluation("single_path_norms", network)
    depth = len(network.stack)
    require_at_least("single_path_norms", "paths", paths, 1)
    if not all(0 <= length <= depth for length in lengths):
        raise UsageError(f"single_path_norms: lengths must be between 0 and {depth}, got {list(lengths)}.")
    generator = torch.Generator().manual_seed(seed)
    states, top = _states(network, inputs, targets)
    found = []
    for length in lengths:
        draws = torch.rand(depth, paths * len(inputs), generator=generator)
        taken = (draws.argsort(0).argsort(0) < length).to(top.device)
        gradient = top.repeat(paths, 1, 1, 1)
        for block, state, through in zip(
            reversed([*network.stack]), reversed(states[:-1]), reversed(taken), strict=True
        ):
            rows = through.nonzero()[:, 0]
            if len(rows):
                passed = state[rows % len(inputs)].requires_grad_()
                (gradient[rows],) = torch.autograd.grad(block.branch(passed), passed, gradient[rows])
        found.append(_norms(gradient, network).view(paths, len(inputs), -1))
    return torch.stack(found)


def summed_path_norms(network: SignalNetwork, inputs: Tensor, targets: Tensor) -> Tensor:
    r"""Norm of the gradient that all paths of one length bring together, by their number of branches; exact.

    With a formal variable $t$ on each branch the gradient is a polynomial,
    $\prod_l (1 + t J_l^\top)\, g = \sum_k t^k g_k$, whose coefficients go backwards through the blocks together; they
    sum to the gradient.

    Args:
        network: a residual network of replicas, in evaluation mode.
        inputs: `(num, length)`.
        targets: `(num,)`.

    Shape:
        Returns `(examples, blocks + 1, replicas)`: norms of the gradient of each example's cross-entropy with respect
        to the first state.

    Raises:
        UsageError: if the network is not residual or in training mode.
    """
    return _norms(_coefficients(network, inputs, targets), network).movedim(0, 1)


def additive_shares(network: SignalNetwork, inputs: Tensor, targets: Tensor) -> Tensor:
    r"""Share of the gradient that the paths of each length bring, $\langle g_k, g\rangle / |g|^2$; exact.

    $g_k$ is the sum over all paths of length $k$ and $g$ their sum, the gradient: shares sum to 1, whatever directions
    the $g_k$ have. What pulls against the gradient has a negative one.

    Args:
        network: a residual network of replicas, in evaluation mode.
        inputs: `(num, length)`.
        targets: `(num,)`.

    Shape:
        Returns `(examples, blocks + 1, replicas)`.

    Raises:
        UsageError: if the network is not residual or in training mode.
    """
    parts = _coefficients(network, inputs, targets)
    whole = parts.sum(0)
    replicas = network.classifier.weight.shape[0]
    products = (parts * whole).sum((-2, -1))
    return (products.view(*products.shape[:2], replicas, -1).sum(-1) / _norms(whole, network).square()).movedim(0, 1)


def _coefficients(network: SignalNetwork, inputs: Tensor, targets: Tensor) -> Tensor:
    """Gradients by length, `(blocks + 1, num, replicas * channels, 1, positions)`."""
    _require_evaluation("summed_path_norms", network)
    states, top = _states(network, inputs, targets)
    found = top.unsqueeze(0)
    for block, state in zip(reversed([*network.stack]), reversed(states[:-1]), strict=True):
        several = state.repeat(len(found), 1, 1, 1).requires_grad_()
        (through,) = torch.autograd.grad(block.branch(several), several, found.flatten(0, 1))
        nothing = torch.zeros_like(found[:1])
        found = torch.cat([found, nothing]) + torch.cat([nothing, through.view_as(found)])
    return found


def _states(network: SignalNetwork, inputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
    """States at the boundaries of the blocks, and the gradient at the last of them."""
    with torch.no_grad():
        states = [_start(network, inputs)]
        for layer in network.stack:
            states.append(layer(states[-1]))
    last = states[-1].detach().requires_grad_()
    (top,) = torch.autograd.grad(_loss(network, last, targets), last)
    return states, top


def number_times_norm(norms: Sequence[float]) -> list[float]:
    """Share of each length if the norms of all its paths added up: their number, a binomial, times the norm of one.

    Args:
        norms: mean norm of a single path with 0, 1, ... L branches.

    Returns:
        The shares, which sum to 1.

    Example:
        >>> number_times_norm([4.0, 2.0, 1.0])      # 1, 2 and 1 paths
        [0.4444444444444444, 0.4444444444444444, 0.1111111111111111]

    Source: Veit, Wilber and Belongie 2016, arXiv 1605.06431.
    """
    depth = len(norms) - 1
    products = [math.comb(depth, length) * norm for length, norm in enumerate(norms)]
    return [product / math.fsum(products) for product in products]


def _require_evaluation(owner: str, network: SignalNetwork) -> None:
    require_residual(owner, network)
    if network.training:
        raise UsageError(f"{owner}: in training mode examples see each other; call network.eval() first.")


def _start(network: SignalNetwork, inputs: Tensor) -> Tensor:
    replicas = network.classifier.weight.shape[0]
    return network.first(signal_layout(inputs.unsqueeze(1).expand(-1, replicas, -1)))  # type: ignore[no-any-return]


def _loss(network: SignalNetwork, state: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, summed over examples and replicas, so that each has its own gradient."""
    logits = network.classify(state)
    wanted = targets.unsqueeze(1).expand(-1, logits.shape[1])
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")


def _norms(gradient: Tensor, network: SignalNetwork) -> Tensor:
    """Norm of each replica's gradient, `(..., num, replicas)`."""
    replicas = network.classifier.weight.shape[0]
    squares = gradient.square().sum((-2, -1))
    return squares.view(*squares.shape[:-1], replicas, -1).sum(-1).sqrt()
