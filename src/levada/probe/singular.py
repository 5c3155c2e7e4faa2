"""Singular values of a Jacobian: the largest, the spectrum, its moments, per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.probe.jacobian import Jacobian
from levada.probe.linearisation import Linearisation
from levada.theory import JacobianMoments

__all__ = [
    "BlockExtremes",
    "LargestSingularValue",
    "SingularValues",
    "block_extremes",
    "largest_singular_value",
    "singular_values",
    "squared_moments",
]

Method: TypeAlias = Literal["explicit", "lanczos"]
_EXPLICIT_UP_TO = 256  # smaller side up to which the matrix and its decomposition are cheaper than Lanczos


@final
@dataclass(frozen=True, slots=True, eq=False)
class LargestSingularValue:
    """What power iteration found.

    Attributes:
        value: of each sample; never above the true one but for rounding.
        residual: `|J^T J v - s^2 v| / s^2` of each sample: some squared singular value is no further away, relatively.
        iterations: how many were made, each a product with `J` and one with its transpose.
        converged: whether every residual reached the tolerance.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    converged: bool


@final
@dataclass(frozen=True, slots=True, eq=False)
class SingularValues:
    """Singular values of each sample, in descending order.

    Attributes:
        values: shape `(samples, count)`; NaN where the Krylov space of a sample ended earlier.
        residual: `|J^T u - s v| / s_1` of each, zero for an explicit matrix.
        method: "explicit", from the whole matrix; "lanczos", approximations from inside, the largest ones best.
        complete: whether these are all singular values.
    """

    values: Tensor
    residual: Tensor
    method: Method
    complete: bool

    @property
    def condition_bound(self) -> Tensor:
        """A lower bound of each sample's condition number, never the number itself: small values hide in rounding."""
        largest = self.values[:, 0]
        smallest = self.values.nan_to_num(nan=torch.inf).amin(1)
        floor = torch.finfo(self.values.dtype).eps * self.values.shape[1] * largest
        return largest / torch.maximum(smallest, floor)


@final
@dataclass(frozen=True, slots=True, eq=False)
class BlockExtremes:
    """The extremes of every block that has a Jacobian.

    Attributes:
        blocks: their names.
        largest: largest singular value, shape `(blocks,)`, greatest over the samples.
        mean_square: mean of the squared singular values, shape `(blocks,)`, over the samples.
        condition_bound: lower bound of the condition number, shape `(blocks,)`, greatest over the samples.
        methods: how each was found: "closed form", "explicit" or "lanczos".
    """

    blocks: tuple[str, ...]
    largest: Tensor
    mean_square: Tensor
    condition_bound: Tensor
    methods: tuple[str, ...]


def largest_singular_value(
    jacobian: Jacobian, *, tolerance: float = 1e-3, max_iterations: int = 200, seed: int = 0
) -> LargestSingularValue:
    r"""Power iteration on $J^T J$: $v \leftarrow J^T J v / |J^T J v|$, every sample at once.

    It stops when $|J^T J v - s^2 v| \le$ tolerance $\cdot s^2$ for every sample. The value's own error is then far
    smaller as a rule, since it is quadratic in that of $v$; with values close to the largest it needs many iterations,
    and `singular_values` fewer products.

    Args:
        jacobian: of `Linearisation.jacobian` or `Linearisation.block`.
        tolerance: relative residual.
        max_iterations: after which it stops and says that it has not converged.
        seed: of the first vectors.

    Returns:
        The values with residuals and the number of iterations.

    Raises:
        UsageError: if an argument is out of range.
        MeasurementError: if a product cannot be had, or is not finite.

    Example:
        >>> from levada.probe import linearise
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> found = largest_singular_value(linearise(net, torch.ones(1, 2)).jacobian())
        >>> round(found.value.item(), 4), found.converged
        (3.0, True)
    """
    require_at_least("largest_singular_value", "max_iterations", max_iterations, 1)
    if not 0 < tolerance < 1:
        raise UsageError(f"largest_singular_value: tolerance must be between 0 and 1, got {tolerance}.")
    v = _normalised(_start(jacobian, seed))
    value = residual = v.new_zeros(jacobian.samples)
    for iteration in range(1, max_iterations + 1):
        forward = _wide(jacobian.jvp(_narrow(v, jacobian)))
        value = forward.norm(dim=1)
        back = _wide(jacobian.vjp(_narrow(forward, jacobian)))
        square = value.square()
        # s^2 is subnormal or zero for a Jacobian that is: then there is nothing left to find.
        residual = torch.where(square > 0, (back - square[:, None] * v).norm(dim=1) / square, 0.0)
        if bool((residual <= tolerance).all()):
            return LargestSingularValue(value, residual, iteration, True)
        v = _normalised(back)
    return LargestSingularValue(value, residual, max_iterations, False)


def singular_values(
    jacobian: Jacobian, *, steps: int = 24, method: Method | None = None, seed: int = 0
) -> SingularValues:
    r"""Return the singular values of each sample: all from the matrix, or the outer ones by Golub-Kahan-Lanczos.

    $J V_k = U_k B_k$ with $B_k$ bidiagonal; its singular values approach those of $J$ from inside, the largest first.
    Each new vector is made orthogonal twice to all before it.

    Args:
        jacobian: of `Linearisation.jacobian` or `Linearisation.block`.
        steps: of Lanczos, each a product with `J` and one with its transpose.
        method: "explicit" or "lanczos"; left out, the matrix if it is known or its smaller side has at most 256
            elements, or at most `steps`.
        seed: of the first vectors.

    Returns:
        The values, how they were found, and whether they are all.

    Raises:
        UsageError: if an argument is out of range.
        MeasurementError: if a product cannot be had, or is not finite.

    Example:
        >>> from levada.probe import linearise
        >>> net = torch.nn.Linear(3, 3, bias=False)
        >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
        >>> found = singular_values(linearise(net, torch.ones(1, 3)).jacobian())
        >>> found.values, found.method, found.condition_bound
        (tensor([[4., 2., 1.]]), 'explicit', tensor([4.]))

    Source: Golub and Kahan 1965 (bidiagonalisation).
    """
    require_at_least("singular_values", "steps", steps, 1)
    if method not in (None, "explicit", "lanczos"):
        raise UsageError(f"singular_values: method must be 'explicit', 'lanczos' or left out, got {method!r}.")
    smaller = min(jacobian.outputs, jacobian.inputs)
    if method == "explicit" or (method is None and (jacobian.closed_form or smaller <= max(_EXPLICIT_UP_TO, steps))):
        matrix = jacobian.matrix()
        matrix = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
        values = torch.linalg.svdvals(matrix)
        return SingularValues(values, torch.zeros_like(values), "explicit", True)
    values, residual = _lanczos(jacobian, min(steps, smaller), seed)
    return SingularValues(values, residual, "lanczos", steps >= smaller and not bool(values.isnan().any()))


def squared_moments(jacobian: Jacobian, *, probes: int = 8, seed: int = 0) -> JacobianMoments:
    r"""Return the moments of the squared singular values, to be compared with `levada.theory.jacobian_moments`.

    $E[s^2] = \mathrm{tr}(J J^T)/n$ and
    $\mathrm{Var}[s^2]/E[s^2]^2 = n\,\mathrm{tr}((J J^T)^2)/\mathrm{tr}(J J^T)^2 - 1$ with $n$ the smaller side.

    All samples are one population. The moments are exact where the matrix is small, as in `singular_values`, and else
    estimated by $|J^T u|^2$ and $|J J^T u|^2$ for random signs $u$.

    Args:
        jacobian: of `Linearisation.jacobian` or `Linearisation.block`.
        probes: random vectors per sample, if the matrix is not made.
        seed: of these.

    Raises:
        UsageError: if `probes` is below 1.
        MeasurementError: if a product cannot be had, or is not finite.

    Example:
        >>> from levada.probe import linearise
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> found = squared_moments(linearise(net, torch.ones(1, 2)).jacobian())
        >>> found.mean, round(found.relative_variance, 6)
        (5.0, 0.64)

    Source: Pennington, Schoenholz, Ganguli 2017, arXiv 1711.04735 (the moments); Hutchinson 1990 (the estimate).
    """
    require_at_least("squared_moments", "probes", probes, 1)
    smaller = min(jacobian.outputs, jacobian.inputs)
    if jacobian.closed_form or smaller <= _EXPLICIT_UP_TO:
        matrix = _wide(jacobian.matrix())
        gram = matrix @ matrix.mT if jacobian.outputs <= jacobian.inputs else matrix.mT @ matrix
        first, second = gram.diagonal(dim1=1, dim2=2).sum(1), gram.square().sum((1, 2))
    else:
        generator = torch.Generator().manual_seed(seed)
        first = second = torch.zeros(jacobian.samples, dtype=torch.float64)
        for _ in range(probes):
            signs = torch.randint(0, 2, (jacobian.samples, jacobian.outputs), generator=generator) * 2.0 - 1.0
            back = jacobian.vjp(signs.to(jacobian.device, jacobian.dtype))
            again = jacobian.jvp(back)
            first = first + _wide(back).square().sum(1).cpu() / probes
            second = second + _wide(again).square().sum(1).cpu() / probes
    mean = float(first.mean()) / smaller
    if mean == 0:
        return JacobianMoments(0.0, float("nan"))
    return JacobianMoments(mean, float(second.mean()) / smaller / mean**2 - 1)


def block_extremes(at: Linearisation, *, steps: int = 24) -> BlockExtremes:
    """Return largest singular value, mean square and a bound of the condition number of every block.

    Matrices of one shape are decomposed together, by the eigenvalues of the smaller of `J^T J` and `J J^T`: exact to
    rounding for the largest value, and a bound for the condition number, into which the rounding is counted.

    Args:
        at: of `linearise`.
        steps: of Lanczos, for blocks too large for a matrix.

    Returns:
        The extremes; blocks that have no Jacobian, such as an embedding, are left out.

    Raises:
        MeasurementError: if a Jacobian is not finite.

    Example:
        >>> from levada.probe import linearise
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
        >>> found = block_extremes(linearise(net, torch.ones(2, 3)))
        >>> found.blocks, found.largest.shape, found.methods
        (('0', '2'), torch.Size([2]), ('closed form', 'closed form'))
    """
    names = [name for name in at.blocks if at.value(at.execution.input_of[name]) is not None]
    rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    methods: dict[str, str] = {}
    alike: dict[tuple[torch.Size, torch.dtype], list[tuple[str, Tensor]]] = {}
    for name in names:
        jacobian = at.block(name)
        if jacobian.closed_form or min(jacobian.outputs, jacobian.inputs) <= _EXPLICIT_UP_TO:
            matrix = jacobian.matrix()
            alike.setdefault((matrix.shape, matrix.dtype), []).append((name, matrix))
            methods[name] = "closed form" if jacobian.closed_form else "explicit"
        else:
            found = singular_values(jacobian, steps=steps, method="lanczos")
            mean = torch.tensor(squared_moments(jacobian).mean)
            rows[name] = found.values[:, 0].max(), mean, found.condition_bound.max()
            methods[name] = "lanczos"
    for pairs in alike.values():
        stack = torch.stack([matrix for _, matrix in pairs])
        for (name, _), *extremes in zip(pairs, *_extremes(stack), strict=True):
            rows[name] = extremes[0], extremes[1], extremes[2]
    columns = [torch.stack([rows[name][i].cpu().double() for name in names]) for i in range(3)] if names else []
    empty = torch.zeros(0, dtype=torch.float64)
    largest, mean_square, bound = columns or (empty, empty, empty)
    return BlockExtremes(tuple(names), largest, mean_square, bound, tuple(methods[name] for name in names))


def _extremes(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return largest value, mean square and condition bound of matrices of shape `(blocks, samples, out, in)`."""
    stack = stack.float() if stack.dtype in (torch.float16, torch.bfloat16) else stack
    scale = stack.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(stack.dtype).tiny)  # squares underflow
    stack = stack / scale
    gram = stack @ stack.mT if stack.shape[-2] <= stack.shape[-1] else stack.mT @ stack
    squares = torch.linalg.eigvalsh(gram)
    largest = squares[..., -1].clamp_min(0)
    # The smallest eigenvalue is known to rounding of the largest: what is added keeps the bound one from below.
    smallest = squares[..., 0].clamp_min(0) + torch.finfo(stack.dtype).eps * stack.shape[-1] * largest
    bound = torch.where(largest > 0, (largest / smallest).sqrt(), 1.0)
    scale = scale[:, 0, 0, 0].double()
    return largest.sqrt().amax(1) * scale, squares.mean((1, 2)) * scale**2, bound.amax(1)


def _lanczos(jacobian: Jacobian, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    v = _normalised(_start(jacobian, seed))
    if jacobian.inputs > jacobian.outputs:  # in the space of the rows, which as many steps as outputs exhaust
        v = _normalised(_wide(jacobian.vjp(jacobian.jvp(_narrow(v, jacobian)))))
    samples = jacobian.samples
    right: list[Tensor] = [v]
    left: list[Tensor] = []
    band = v.new_zeros(samples, steps, steps)
    alive = torch.zeros(samples, dtype=torch.long, device=v.device)
    scale = beta = v.new_zeros(samples)
    for k in range(steps):
        alive += right[k].any(1)
        u = _wide(jacobian.jvp(_narrow(right[k], jacobian)))
        scale = torch.maximum(scale, u.norm(dim=1))
        u, alpha = _orthogonal(u, left, scale, jacobian)
        left.append(u)
        band[:, k, k] = alpha
        w = _wide(jacobian.vjp(_narrow(u, jacobian)))
        w, beta = _orthogonal(w, right, scale, jacobian)
        if k + 1 < steps:
            band[:, k, k + 1] = beta
            right.append(w)
    p, values, _ = torch.linalg.svd(band)
    residual = beta[:, None] * p[:, -1].abs() / values[:, :1].clamp_min(torch.finfo(values.dtype).tiny)
    ended = torch.arange(steps, device=v.device)[None] >= alive[:, None]
    return values.masked_fill(ended, torch.nan), residual.masked_fill(ended, torch.nan)


def _orthogonal(x: Tensor, basis: list[Tensor], scale: Tensor, jacobian: Jacobian) -> tuple[Tensor, Tensor]:
    """Return `x` without its components along `basis`, with norm one, and the norm; zeros where nothing remains."""
    if basis:
        stack = torch.stack(basis, 1)
        for _ in range(2):
            x = x - torch.bmm((stack @ x[:, :, None]).mT, stack)[:, 0]
    norm = x.norm(dim=1)
    # What rounding in the model's precision leaves is no direction.
    norm = torch.where(norm > 10 * torch.finfo(jacobian.dtype).eps * scale, norm, 0.0)
    return torch.where(norm[:, None] > 0, x / norm.clamp_min(torch.finfo(x.dtype).tiny)[:, None], 0.0), norm


def _start(jacobian: Jacobian, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(jacobian.samples, jacobian.inputs, generator=generator, dtype=torch.float32)
    return _wide(start.to(jacobian.device))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()


def _narrow(x: Tensor, jacobian: Jacobian) -> Tensor:
    return x.to(jacobian.dtype)


def _normalised(x: Tensor) -> Tensor:
    norm: Tensor = x.norm(dim=1, keepdim=True)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)
