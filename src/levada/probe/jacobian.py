"""One Jacobian, from one value of a recorded forward pass to another, as a linear map and as a matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from levada._errors import MeasurementError, UsageError
from levada.inputs import raised
from levada.probe.cotangent import Value

__all__ = ["Jacobian", "cotangent_for", "pull_back", "sample_masks", "stays_apart"]

_TOGETHER = 1 << 22  # elements of cotangents that go backwards in one call
_LARGEST = 1 << 26  # elements of an explicit matrix


@final
class Jacobian:
    r"""$J = \partial y/\partial x$ between two values of one forward pass, for every sample of the batch at once.

    Products run through the recorded graph, so that both directions see the same dropout masks and statistics.
    $J^T u$ is one backward pass. $J v$ is one as well, through the graph of $u \mapsto J^T u$, which is linear; where
    a function cannot be differentiated twice, the matrix is made row by row.

    Args:
        name: of the Jacobian, for messages.
        source: $x$.
        target: $y$.
        separate: whether no sample of `target` depends on another sample of `source`. If not, as in batch
            normalisation while training, the whole batch counts as one sample.
        matrix: $J$ itself, if it is known, of shape `(samples, outputs, inputs)`.

    Attributes:
        samples: number of samples.
        outputs: elements of $y$ per sample.
        inputs: elements of $x$ per sample.

    Example:
        >>> from levada.probe import linearise
        >>> net = torch.nn.Linear(3, 2)
        >>> jacobian = linearise(net, torch.ones(5, 3)).jacobian()
        >>> jacobian.samples, jacobian.outputs, jacobian.inputs
        (5, 2, 3)
        >>> torch.equal(jacobian.matrix()[0], net.weight.detach())
        True
    """

    def __init__(
        self, name: str, source: Value, target: Value, *, separate: bool, matrix: Tensor | None = None
    ) -> None:
        self.name = name
        self.separate = separate
        self.closed_form = matrix is not None
        self.samples = target.shape[0] if separate and target.shape else 1
        self.outputs = math.prod(target.shape) // self.samples
        self.inputs = math.prod(source.shape) // self.samples
        self.device = source.device
        self._source, self._target, self._matrix = source, target, matrix
        self._pullback: tuple[Tensor, Tensor] | None = None
        self._once = ""  # why the graph cannot be differentiated twice

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the model computes its output."""
        return self._target.dtype

    def vjp(self, u: Tensor) -> Tensor:
        """Return `J^T u`.

        Args:
            u: one vector per sample.

        Shape:
            `(samples, outputs)` -> `(samples, inputs)`.

        Raises:
            UsageError: if the shape is another.
            MeasurementError: if there is no path, the backward pass raises, or the result is not finite.
        """
        self._require(u, self.outputs, "vjp")
        if self._matrix is not None:
            return self._finite(torch.bmm(u.to(self._matrix.dtype)[:, None], self._matrix)[:, 0], u)
        cotangent = u.reshape(self._target.shape).to(self._target.device, self._target.dtype)
        return self._finite(self._backward(cotangent).reshape(self.samples, self.inputs), u)

    def jvp(self, v: Tensor) -> Tensor:
        """Return `J v`.

        Args:
            v: one vector per sample.

        Shape:
            `(samples, inputs)` -> `(samples, outputs)`.

        Raises:
            UsageError: if the shape is another.
            MeasurementError: if it cannot be had, or is not finite.
        """
        self._require(v, self.inputs, "jvp")
        if self._matrix is None and not self._twice():
            self.matrix()
        if self._matrix is not None:
            return self._finite(torch.bmm(self._matrix, v.to(self._matrix.dtype)[:, :, None])[:, :, 0], v)
        tangent = v.reshape(self._source.shape).to(self._source.device, self._source.dtype)
        return self._finite(self._forward(tangent).reshape(self.samples, self.outputs), v)

    def matrix(self) -> Tensor:
        """Return `J`, from as many products as its smaller side has elements; it is kept.

        Shape:
            `(samples, outputs, inputs)`.

        Raises:
            MeasurementError: if it has more than 2^26 elements, or a product fails.
        """
        if self._matrix is None:
            size = self.samples * self.outputs * self.inputs
            if size > _LARGEST:
                why = (
                    f" (products J v need a graph that can be differentiated twice: {self._once})" if self._once else ""
                )
                raise MeasurementError(
                    f"Jacobian: the matrix of {self.name} would have {size:,} elements, and {_LARGEST:,} is the most "
                    f"that is made{why}. Give fewer samples, or ask for its largest values by method='lanczos'."
                )
            columns = self.inputs < self.outputs and self._twice()
            side, shape = (self.inputs, self._source) if columns else (self.outputs, self._target)
            unit = torch.eye(side, dtype=shape.dtype, device=shape.device)
            basis = unit[:, None].expand(side, self.samples, side)
            rows = max(1, _TOGETHER // max(1, self.samples * max(self.inputs, self.outputs)))
            parts = [self._products(basis[i : i + rows], shape, columns) for i in range(0, side, rows)]
            found = torch.cat(parts).movedim(0, 2 if columns else 1)
            self._matrix = self._finite(found, unit)
        return self._matrix

    def _products(self, basis: Tensor, value: Value, columns: bool) -> Tensor:
        vectors = basis.reshape(len(basis), *value.shape)
        found = (
            _together(self._forward, vectors) if columns else pull_back(self.name, self._source, self._target, vectors)
        )
        return found.reshape(len(basis), self.samples, -1)

    def _backward(self, cotangent: Tensor) -> Tensor:
        return _back(self.name, self._source, self._target, cotangent)

    def _twice(self) -> bool:
        """Whether the graph can be differentiated twice; builds the graph of `J^T u` at the first call."""
        if self._pullback is None and not self._once:
            target = self._target
            u = torch.zeros(target.shape, dtype=target.dtype, device=target.device, requires_grad=True)
            try:
                with torch.enable_grad():
                    (g,) = torch.autograd.grad(target.edge, [self._source.edge], u, create_graph=True)
                (found,) = torch.autograd.grad(g, [u], torch.zeros_like(g), retain_graph=True, allow_unused=True)
                if found is None:
                    self._once = "the backward of a function has no graph, as that of one marked once_differentiable"
                else:
                    self._pullback = u, g
            except Exception as error:
                self._pullback, self._once = None, raised(error)
        return not self._once

    def _forward(self, tangent: Tensor) -> Tensor:
        assert self._pullback is not None  # callers asked _twice
        u, g = self._pullback
        return torch.autograd.grad(g, [u], tangent, retain_graph=True)[0]

    def _require(self, vector: Tensor, size: int, product: str) -> None:
        if tuple(vector.shape) != (self.samples, size):
            raise UsageError(
                f"Jacobian.{product}: the vector must have shape {(self.samples, size)}, one row per sample, "
                f"got {tuple(vector.shape)}."
            )

    def _finite(self, result: Tensor, given: Tensor) -> Tensor:
        if not bool(torch.isfinite(result.sum())) and not bool(torch.isfinite(result).all()):
            raise MeasurementError(
                f"Jacobian: {self.name} is not finite at this batch: NaN or Inf came out of a finite vector. "
                "Look for the first block whose output is not finite."
            )
        return result.detach()


def pull_back(name: str, source: Value, target: Value, cotangents: Tensor) -> Tensor:
    """Return the gradients at `source` for many cotangents at `target`, in one backward pass where torch can.

    Args:
        name: of the Jacobian, for messages.
        source: where the gradients are wanted.
        target: where the cotangents are.
        cotangents: of shape `(count, *target.shape)`.

    Raises:
        MeasurementError: if there is no path, or the backward pass raises.
    """
    return _together(lambda cotangent: _back(name, source, target, cotangent), cotangents)


def _together(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """Return the products of all vectors, in one pass where torch can batch it, else one by one.

    `torch.func.vmap` has more batching rules than `is_grads_batched`, and took a half to a sixth of its time.
    """
    try:
        with warnings.catch_warnings():  # torch warns where it has no batching rule and loops itself
            warnings.simplefilter("ignore")
            return torch.func.vmap(product)(vectors)
    except Exception:  # whatever a backward function does with batched tensors; an error of its own is raised below
        return torch.stack([product(vector) for vector in vectors])


def _back(name: str, source: Value, target: Value, cotangent: Tensor) -> Tensor:
    try:
        (gradient,) = torch.autograd.grad(target.edge, [source.edge], cotangent, retain_graph=True, allow_unused=True)
    except Exception as error:
        raise MeasurementError(f"Jacobian: the backward pass of {name} raised {raised(error)}") from error
    if gradient is None:
        raise MeasurementError(
            f"Jacobian: {name} has no path in the graph: the one value does not depend on the other, or a detach, an "
            "integer or a rounding cuts it."
        )
    return gradient


def sample_masks(samples: int) -> Iterator[Sequence[bool]]:
    """Yield selections of samples such that each pair is parted both ways by one of them: 2 log2(samples) in all.

    Args:
        samples: how many there are.

    Example:
        >>> [[int(chosen) for chosen in mask] for mask in sample_masks(3)]
        [[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    for bit in range((samples - 1).bit_length()):
        for side in (1, 0):
            yield [(sample >> bit) & 1 == side for sample in range(samples)]


def stays_apart(gradients: Sequence[Tensor | None], mask: Sequence[bool]) -> list[bool | None]:
    """Say of each gradient whether samples outside the mask get none; None where those in it get none either.

    Args:
        gradients: at some values, for one cotangent that is zero outside of the mask.
        mask: the samples chosen.

    Example:
        >>> stays_apart([torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), torch.zeros(2, 1)], [True, False])
        [True, False, None]
    """
    answers: list[bool | None] = [None] * len(gradients)
    alike: dict[tuple[torch.Size, torch.device], list[int]] = {}
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            alike.setdefault((gradient.shape, gradient.device), []).append(index)
    chosen = torch.tensor(mask)
    for indices in alike.values():
        reached = torch.stack([(gradients[i] != 0).flatten(1).any(1) for i in indices]).cpu()  # type: ignore[union-attr]
        inside, outside = reached[:, chosen].all(1).tolist(), reached[:, ~chosen].any(1).tolist()
        for index, own, others in zip(indices, inside, outside, strict=True):
            answers[index] = False if others else True if own else None
    return answers


def cotangent_for(value: Value, mask: Sequence[bool] | None, seed: int) -> Tensor:
    """Return a random cotangent, zero outside of the mask.

    Args:
        value: at which it starts.
        mask: samples that get one; all if None.
        seed: of its numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    cotangent: Any = torch.randn(value.shape, generator=generator, dtype=torch.float32)
    if mask is not None:
        cotangent[~torch.tensor(mask)] = 0
    return cotangent.to(value.device, value.dtype)  # type: ignore[no-any-return]
