"""Sets of matrices on which a mixing matrix can lie, each reached from free logits, without iterations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import UsageError

__all__ = ["MANIFOLDS", "Manifold"]

_BOUND = 1024.0  # of what Cayley's transform is given
_MAX_PERMUTED = 5  # 6 streams would have 720 permutations, more logits than most branches are wide


@final
@dataclass(frozen=True, slots=True)
class Manifold:
    """A set of `(n, n)` matrices, and the way to it.

    Attributes:
        num_logits: number of streams -> number of logits.
        initial_logits: number of streams -> logits whose matrix is the identity, or nearly.
        project: (logits `(..., num_logits)`, n) -> matrices `(..., n, n)`, rows for the new streams.
        require: (name of who asks, n) -> raises a `UsageError` if there is no such set for n streams.
    """

    num_logits: Callable[[int], int]
    initial_logits: Callable[[int], Tensor]
    project: Callable[[Tensor, int], Tensor]
    require: Callable[[str, int], None]


def _permutation_matrices(n: int, like: Tensor) -> Tensor:
    targets = torch.tensor(list(itertools.permutations(range(n))), device=like.device)  # the identity comes first
    return torch.nn.functional.one_hot(targets, n).to(like.dtype)


def _project_permutations(logits: Tensor, n: int) -> Tensor:
    weights = torch.softmax(logits, -1)
    matrices = _permutation_matrices(n, logits).flatten(1)
    return torch.unflatten(weights @ matrices, -1, (n, n))


def _require_few(owner: str, n: int) -> None:
    if n > _MAX_PERMUTED:
        raise UsageError(
            f"{owner}: manifold='permutations' has n! = {math.factorial(n)} logits, so that streams must be at most "
            f"{_MAX_PERMUTED}, got {n}. Use manifold='kronecker' or 'birkhoff'."
        )


def _project_kronecker(logits: Tensor, n: int) -> Tensor:
    kept, swapped = torch.softmax(torch.unflatten(logits, -1, (-1, 2)), -1).unbind(-1)
    factors = torch.stack([torch.stack([kept, swapped], -1), torch.stack([swapped, kept], -1)], -2)
    result = factors[..., 0, :, :]
    for k in range(1, factors.shape[-3]):
        after = factors[..., k, :, :]
        product = result[..., :, None, :, None] * after[..., None, :, None, :]
        result = product.flatten(-4, -3).flatten(-2, -1)
    return result


def _require_power_of_two(owner: str, n: int) -> None:
    if n & (n - 1):
        raise UsageError(
            f"{owner}: manifold='kronecker' is a product of 2 x 2 matrices, so that streams must be a power of two, "
            f"got {n}. Use manifold='birkhoff'."
        )


def _skew(logits: Tensor, size: int) -> Tensor:
    """Return skew-symmetric matrices with these entries above the diagonal."""
    rows, columns = torch.triu_indices(size, size, 1, device=logits.device)
    place = torch.nn.functional.one_hot(rows * size + columns, size * size).to(logits.dtype)
    upper = torch.unflatten(logits @ place, -1, (size, size))
    return upper - upper.mT


def _cayley(logits: Tensor, size: int) -> Tensor:
    """Return `(I + A)^-1 (I - A)`, orthogonal, of the skew-symmetric A with these entries.

    Entries are bounded at 1024, which moves those of 1 by 3e-7 of themselves: at 1e7 the identity would be lost beside
    A, and `I + A` singular. What rounding leaves of a large A's condition, one step of Newton's iteration squares.
    """
    skew = _skew(_BOUND * torch.tanh(logits / _BOUND), size)
    eye = torch.eye(size, dtype=logits.dtype, device=logits.device)
    solved: Tensor = torch.linalg.solve(eye + skew, eye - skew)
    return 1.5 * solved - 0.5 * solved @ (solved.mT @ solved)


def _complement(n: int, like: Tensor) -> Tensor:
    """Return an orthonormal basis of what is orthogonal to the vector of ones, `(n, n - 1)`: Helmert's."""
    basis = torch.zeros(n, n - 1, dtype=torch.float64)
    for k in range(1, n):
        basis[:k, k - 1] = 1 / math.sqrt(k * (k + 1))
        basis[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return basis.to(like)


def _project_isometric(logits: Tensor, n: int) -> Tensor:
    basis = _complement(n, logits)
    return 1 / n + basis @ _cayley(logits, n - 1) @ basis.mT


def _project_spectral(logits: Tensor, n: int) -> Tensor:
    entries = (n - 1) * (n - 2) // 2
    left, right, values = torch.split(logits, [entries, entries, n - 1], -1)
    basis = _complement(n, logits)
    scaled = torch.tanh(values).unsqueeze(-1) * _cayley(right, n - 1).mT
    return 1 / n + basis @ (_cayley(left, n - 1) @ scaled) @ basis.mT


def _any_number(owner: str, n: int) -> None:
    return None


def _require_three(owner: str, n: int) -> None:
    if n < 3:
        raise UsageError(
            f"{owner}: manifold='isometric' turns what is orthogonal to the mean of the streams, so that streams must "
            f"be at least 3, got {n}. Use manifold='birkhoff'."
        )


MANIFOLDS: Mapping[str, Manifold] = {
    # Doubly stochastic, exactly: a mean of permutations (2026, arXiv 2601.05732, mHC-lite).
    "permutations": Manifold(
        math.factorial,
        lambda n: torch.cat([torch.zeros(1), torch.full((math.factorial(n) - 1,), -8.0)]),
        _project_permutations,
        _require_few,
    ),
    # Doubly stochastic, exactly: a Kronecker product of 2 x 2 ones (arXiv 2601.21579, KromHC).
    "kronecker": Manifold(
        lambda n: 2 * (n.bit_length() - 1),
        lambda n: torch.tensor([0.0, -8.0]).repeat(n.bit_length() - 1),
        _project_kronecker,
        _require_power_of_two,
    ),
    # Orthogonal, by Cayley's transform: keeps the streams' energy at any depth, but not the residual function.
    "orthogonal": Manifold(lambda n: n * (n - 1) // 2, lambda n: torch.zeros(n * (n - 1) // 2), _cayley, _any_number),
    # Orthogonal, with rows and columns that sum to 1 exactly: it turns what is orthogonal to the vector of ones.
    "isometric": Manifold(
        lambda n: (n - 1) * (n - 2) // 2,
        lambda n: torch.zeros((n - 1) * (n - 2) // 2),
        _project_isometric,
        _require_three,
    ),
    # Rows and columns that sum to 1 exactly, spectral norm 1, any sign: J + Z U diag(tanh s) V' Z', with J the mean, Z
    # orthonormal and orthogonal to it, U and V by Cayley's transform (arXiv 2603.20896, sHC). Its released code, too,
    # starts s at 4; it bounds the entries that U and V are made of by a learned factor times tanh: here they are free.
    "spectral": Manifold(
        lambda n: (n - 1) ** 2,
        lambda n: torch.cat([torch.zeros((n - 1) * (n - 2)), torch.full((n - 1,), 4.0)]),
        _project_spectral,
        _any_number,
    ),
}
