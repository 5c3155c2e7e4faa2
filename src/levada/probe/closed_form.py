"""Jacobians of blocks of known form: linear maps, functions of one element, sums. Tangents are pushed through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from levada.probe.cotangent import Value
from levada.probe.jacobian import cotangent_for
from levada.probe.operation import Execution, Operation

__all__ = ["ClosedForms"]

# Activations that act on each element by itself.
_ELEMENTWISE = {
    *("relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "erf", "leaky_relu", "elu", "selu", "celu", "softplus"),
    *("softsign", "mish", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "threshold", "sin", "arctan"),
    *("tanhshrink", "softshrink", "hardshrink", "dropout"),
}
_WIDEST = 1024  # elements per sample beyond which products through the graph are cheaper


class ClosedForms:
    """What is known in closed form of the blocks of a recorded forward pass.

    For one block it takes a half to a seventh of the time of its backward passes; from end to end it takes longer.

    Two backward passes with random cotangents serve all blocks. From the first come the slopes of all activations, as
    the gradient before one over that behind it. With the second each result is compared, and dropped if it disagrees:
    what is not seen here, such as a weight that is scaled before it is used, makes no wrong Jacobian.

    Args:
        model: the model, for its weights.
        execution: its blocks.
        values: places in the graph, by number.
        output: where the model's output stands in the graph.
    """

    def __init__(self, model: nn.Module, execution: Execution, values: Mapping[int, Value], output: Value) -> None:
        self._weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
        self._operations = execution.operations
        self._uses = Counter(n for block in self._operations.values() for op in block for n in op.inputs)
        self._values = values
        self._output = output
        self._passes: dict[int, dict[int, Tensor]] = {}

    def matrix(self, block: str, start: int, target: Value) -> Tensor | None:
        """Return the matrix of shape `(samples, outputs, inputs)`, or None if the block has no known form.

        Args:
            block: its name.
            start: number of the value that enters it.
            target: where its output stands in the graph.
        """
        operations = self._operations[block]
        source = self._values.get(start)
        if source is None or len(source.shape) != 2 or source.shape[1] > _WIDEST:
            return None
        if not operations or any(op.kind not in ("linear", "activation", "dropout", "add") for op in operations):
            return None
        outputs = (op.output for op in reversed(operations) if op.output in self._values)
        end = next((number for number in outputs if self._values[number].edge == target.edge), None)
        if end is None:
            return None
        pushed = self._push(operations, start, source, end)
        return pushed.mT if pushed is not None and self._agrees(pushed, start, end) else None

    def _push(self, operations: Sequence[Operation], start: int, source: Value, end: int) -> Tensor | None:
        """Push all unit tangents through: rows of shape `(samples, inputs, width)`; None stands for the identity."""
        unit = torch.eye(source.shape[1], dtype=source.dtype, device=source.device)
        moving: dict[int, Tensor | None] = {start: None}
        for operation in operations:
            active = [number for number in operation.inputs if number in moving]
            if active:
                given = [moving[number] for number in active]
                try:
                    moving[operation.output] = self._step(operation, given, unit, source.shape[0])
                except _UnknownForm:
                    return None
        return moving.get(end)

    def _step(self, operation: Operation, given: list[Tensor | None], unit: Tensor, samples: int) -> Tensor | None:
        first = given[0]
        width = len(unit) if first is None else first.shape[-1]
        if operation.kind == "linear":
            weight = self._weights.get(operation.parameters[0]) if operation.parameters else None
            if operation.name != "linear" or len(operation.inputs) != 1 or weight is None or weight.dtype != unit.dtype:
                raise _UnknownForm
            if weight.shape[1] != width:
                raise _UnknownForm
            if first is None:
                return weight.T.expand(samples, -1, -1)
            return torch.mm(first.reshape(-1, width), weight.T).view(samples, len(unit), len(weight))
        if operation.kind == "add":
            if operation.name != "add" or len({unit.shape if g is None else g.shape[1:] for g in given}) > 1:
                raise _UnknownForm
            if len(given) == 1:
                return first
            a, b = (unit if g is None else g for g in given)
            return a + b
        if operation.name not in _ELEMENTWISE or len(operation.inputs) != 1:
            raise _UnknownForm
        slope = self._slope(operation)
        if slope.shape != (samples, width):
            raise _UnknownForm
        return (unit if first is None else first) * slope[:, None]

    def _slope(self, operation: Operation) -> Tensor:
        number = operation.inputs[0]
        before, after = self._values.get(number), self._values.get(operation.output)
        if before is None or after is None or before.shape != after.shape:
            raise _UnknownForm
        gradients = self._gradients(0)
        given, behind = gradients.get(number), gradients.get(operation.output)
        least = 1e8 * torch.finfo(after.dtype).tiny  # above it, quotients keep their digits
        if self._uses[number] == 1 and given is not None and behind is not None and bool((behind.abs() > least).all()):
            return given / behind
        ones = torch.ones(after.shape, dtype=after.dtype, device=after.device)
        (slope,) = torch.autograd.grad(after.edge, [before.edge], ones, retain_graph=True, allow_unused=True)
        if slope is None:
            raise _UnknownForm
        return slope

    def _gradients(self, which: int) -> dict[int, Tensor]:
        """Return the gradients of one of two random cotangents at all values."""
        if which not in self._passes:
            numbers = [n for n in self._values if len(self._values[n].shape) == 2]
            found = torch.autograd.grad(
                self._output.edge,
                [self._values[n].edge for n in numbers],
                cotangent_for(self._output, None, seed=2 + which),
                retain_graph=True,
                allow_unused=True,
            )
            self._passes[which] = {n: g for n, g in zip(numbers, found, strict=True) if g is not None}
        return self._passes[which]

    def _agrees(self, pushed: Tensor, start: int, end: int) -> bool:
        gradients = self._gradients(1)
        if start in gradients and end in gradients and _equal(pushed, gradients[end], gradients[start]):
            return True
        # The gradient may have vanished on its way, or have gone around the block as well: ask about it alone.
        source, target = self._values[start], self._values[end]
        cotangent = cotangent_for(target, None, seed=4)
        (expected,) = torch.autograd.grad(target.edge, [source.edge], cotangent, retain_graph=True, allow_unused=True)
        return expected is not None and _equal(pushed, cotangent, expected)


class _UnknownForm(Exception):  # noqa: N818  # no error: the graph is used instead
    pass


def _equal(pushed: Tensor, cotangent: Tensor, expected: Tensor) -> bool:
    if pushed.shape[-1] != cotangent.shape[-1]:
        return False
    found = torch.bmm(pushed, cotangent[:, :, None])[:, :, 0]
    information = torch.finfo(found.dtype)
    largest = expected.abs().amax()  # norms of small numbers would underflow
    size = (expected / largest).norm() * largest
    close = ((found - expected) / largest).norm() * largest <= 1e3 * information.eps * size
    return bool(close & (size > 1e8 * information.tiny) & torch.isfinite(size))
