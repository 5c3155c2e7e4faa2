"""A model's Jacobians at one batch, end to end and of every block, from one recorded forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from levada._errors import MeasurementError, UsageError
from levada.inputs import Batch
from levada.probe.closed_form import ClosedForms
from levada.probe.cotangent import Value
from levada.probe.jacobian import Jacobian, cotangent_for, sample_masks, stays_apart
from levada.probe.operation import Execution
from levada.probe.recorder import Frame, Recorder, first_floating
from levada.probe.sites import execution_from
from levada.probe.untouched import first_batch, run_once, untouched

__all__ = ["Linearisation", "linearise", "tracked"]


def linearise(model: nn.Module, batch: Any = None, *, seed: int = 0) -> Linearisation:
    r"""Run a model once, in the mode it is in, and keep what its Jacobians need.

    $y(x + v) = y(x) + J v + O(v^2)$

    Parameters, buffers, gradients, mode and the state of random number generators stay as they were.

    Args:
        model: any module.
        batch: inputs, as `levada.check` takes them: a tensor, `(inputs, targets)`, a mapping, ...
        seed: for dropout and other random numbers in the forward pass.

    Returns:
        The `Linearisation`.

    Raises:
        UsageError: if the model or the batch cannot be used.
        MeasurementError: if the output has no graph.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> at = linearise(net, torch.ones(5, 3))
        >>> at.blocks, at.jacobian("0").outputs, at.jacobian(start="0").inputs
        (('0', '2'), 4, 4)
    """
    return Linearisation(model, first_batch(model, batch, "linearise"), seed)


@contextlib.contextmanager
def _without_mkldnn() -> Iterator[None]:
    @contextlib.contextmanager
    def quiet() -> Iterator[None]:  # its setter warns of TF32, which nobody asked for
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    switch = torch.backends.mkldnn.flags(enabled=False)
    with quiet():
        switch.__enter__()
    try:
        yield
    finally:
        with quiet():
            switch.__exit__(None, None, None)


@contextlib.contextmanager
def tracked(model: nn.Module, batch: Batch) -> Iterator[tuple[Batch, Tensor | None]]:
    """Give the batch with inputs that require gradients, and the first of them.

    Without a floating input all floating parameters do, until the end, so that values inside have a graph.

    Args:
        model: the model.
        batch: its inputs.
    """
    found: list[Tensor] = []

    def follow(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value.detach().clone().requires_grad_(True).clone())  # no leaf: models write into inputs
            return found[-1]
        if isinstance(value, Mapping):
            return {key: follow(item) for key, item in value.items()}
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(follow(item) for item in value)
        return value

    frozen: list[nn.Parameter] = []
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            # Fused attention and recurrent kernels have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(_without_mkldnn())
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            moved = replace(batch, args=follow(batch.args), kwargs=follow(dict(batch.kwargs)))
            if not found:
                frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
                for parameter in frozen:
                    parameter.requires_grad_(True)
            yield moved, found[0] if found else None
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@final
class Linearisation:
    """Jacobians between the input, the block boundaries and the output of one forward pass; see `linearise`.

    A Jacobian of a block is from the boundary before it to its own: of what enters it, and of nothing that goes around.

    Args:
        model: any module.
        batch: its inputs.
        seed: for random numbers in the forward pass.

    Attributes:
        execution: the blocks, as `levada.probe.record` finds them.
        blocks: their names in order of execution.
        output: the model's first floating output, with its graph.
        root: the calls of modules, as they were nested.

    Raises:
        UsageError: if the model does not run on the batch.
        MeasurementError: if the output has no graph.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> at = linearise(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), torch.ones(5, 3))
        >>> [at.block(name).closed_form for name in at.blocks]
        [True, True]
    """

    def __init__(self, model: nn.Module, batch: Batch, seed: int = 0) -> None:
        self._values: dict[int, Value] = {}
        self._separations: dict[tuple[int, int], bool] = {}
        self._apart_from_output: set[int] | None = None
        with untouched(model, seed), tracked(model, batch) as (followed, source):
            entry = None if source is None else Value.of(source)
            recorder = Recorder(model, on_value=self._keep)
            recorder.attach()
            try:
                outputs = run_once(model, followed, "linearise")
            finally:
                recorder.detach()
        output = first_floating(outputs)
        if output is None and hasattr(outputs, "__dict__"):
            output = first_floating(vars(outputs))
        if recorder.root is None or not recorder.finished or output is None or output.grad_fn is None:
            raise MeasurementError(
                f"linearise: the output of {type(model).__name__} has no graph (no floating tensor, a detach, or a "
                "forward under torch.no_grad). A Jacobian needs an output that depends on the inputs through autograd."
            )
        self.execution: Execution = execution_from(recorder)
        self.blocks = tuple(site.name for site in self.execution.sites)
        self.output = output
        self.root: Frame = recorder.root
        self._source, self._target = entry, Value.of(output)
        first = next((n for n in recorder.root.inputs if n in recorder.floating), None)
        if entry is not None and first is not None:
            self._values[first] = entry
        self._closed_forms = ClosedForms(model, self.execution, self._values, self._target)

    def _keep(self, number: int, tensor: Tensor) -> None:
        if tensor.requires_grad and (tensor.grad_fn is not None or torch.is_grad_enabled()):
            self._values[number] = Value.of(tensor)

    def jacobian(self, end: str | None = None, *, start: str | None = None) -> Jacobian:
        """Return the Jacobian of a boundary, or of the output, with respect to an earlier one, or the input.

        Args:
            end: a block, whose output is differentiated; the model's output if None.
            start: a block, with respect to whose output; the model's first floating input if None.

        Raises:
            UsageError: if there is no such block, the order is wrong, or the inputs are integers and `start` is None.
            MeasurementError: if a boundary has no graph.

        Example:
            >>> at = linearise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(5, 3))
            >>> whole, first, second = at.jacobian(), at.jacobian("0"), at.jacobian("1", start="0")
            >>> torch.allclose(whole.matrix(), second.matrix() @ first.matrix())
            True
        """
        if start is None and self._source is None:
            raise UsageError(
                "Linearisation: the inputs hold no floating tensor, so that there is no Jacobian with respect to them. "
                f"Start behind the first block: jacobian(start={self.blocks[0]!r})."
            )
        source = self._source if start is None else self._boundary(start)
        target = self._target if end is None else self._boundary(end)
        assert source is not None  # asked above
        if start is not None and end is not None and self.blocks.index(start) >= self.blocks.index(end):
            raise UsageError(f"Linearisation: start must come before end, got start={start!r} and end={end!r}.")
        name = f"{'the output' if end is None else end} with respect to {'the input' if start is None else start}"
        return Jacobian(name, source, target, separate=self.separate(source, target))

    def block(self, name: str) -> Jacobian:
        """Return the Jacobian of a block's output with respect to what entered it.

        Args:
            name: one of `blocks`.

        Raises:
            UsageError: if there is no such block.
            MeasurementError: if what enters it, or its output, has no graph (such as token indices).
        """
        target = self._boundary(name)
        number = self.execution.input_of[name]
        source = self._values.get(number)
        if source is None:
            raise MeasurementError(
                f"Linearisation: what enters the block {name} has no graph (integers, such as token indices, or a "
                "constant), so that it has no Jacobian. Ask for another block."
            )
        separate = self.separate(source, target)
        matrix = self._closed_forms.matrix(name, number, target) if separate else None
        return Jacobian(f"the block {name}", source, target, separate=separate, matrix=matrix)

    def value(self, number: int) -> Value | None:
        """Return where a numbered value of the forward pass stands in the graph, if it has one."""
        return self._values.get(number)

    def _boundary(self, name: str) -> Value:
        if name not in self.blocks:
            known = ", ".join(self.blocks[:8]) + (", ..." if len(self.blocks) > 8 else "")
            raise UsageError(f"Linearisation: there is no block {name!r}. The blocks are: {known}.")
        value = self._values.get(self.execution.output_of[name])
        if value is None:
            raise MeasurementError(f"Linearisation: the output of the block {name} has no graph. Is it detached?")
        return value

    def separate(self, source: Value, target: Value) -> bool:
        """Whether samples stay apart between two values, tried with cotangents on parts of the batch."""
        samples = target.shape[0] if target.shape else 0
        if not samples or not source.shape or source.shape[0] != samples:
            return False
        if samples == 1:
            return True
        key = id(source), id(target)
        if key not in self._separations:
            if self._apart_from_output is None:
                self._apart_from_output = set()
                self._try_all(samples)
            if key[0] in self._apart_from_output and key[1] in self._apart_from_output:
                self._separations[key] = True
            elif key not in self._separations:
                self._separations[key] = self._apart(source, target, samples)
        return self._separations[key]

    def _apart(self, source: Value, target: Value, samples: int) -> bool:
        masks = sample_masks(samples)
        return all(stays_apart(self._gradients(target, [source], mask), mask)[0] is not False for mask in masks)

    def _try_all(self, samples: int) -> None:
        """Try the output against all boundaries at once: where all stay apart from it, they do from one another."""
        if not self._target.shape or self._target.shape[0] != samples:
            return
        numbers = [*self.execution.output_of.values(), *self.execution.input_of.values()]
        found = [self._values[n] for n in dict.fromkeys(numbers) if n in self._values]
        values = list({id(v): v for v in (*found, *([self._source] if self._source else []))}.values())
        values = [v for v in values if v.shape and v.shape[0] == samples]
        apart = {id(v) for v in values}
        for mask in sample_masks(samples):
            answers = stays_apart(self._gradients(self._target, values, mask), mask)
            # Where one depends on another, or no gradient arrives, each is tried alone.
            apart -= {id(value) for value, answer in zip(values, answers, strict=True) if not answer}
        ends = [v for v in values if id(v) in apart]
        self._separations.update({(id(v), id(self._target)): True for v in ends})
        self._apart_from_output = apart

    def _gradients(self, target: Value, sources: list[Value], mask: Any) -> tuple[Tensor | None, ...]:
        cotangent = cotangent_for(target, mask, seed=1)
        try:
            return torch.autograd.grad(
                target.edge, [v.edge for v in sources], cotangent, retain_graph=True, allow_unused=True
            )
        except Exception:  # said by the product that is asked for next
            return (None,) * len(sources)
