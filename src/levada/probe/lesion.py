"""What happens to a model when residual blocks are dropped, or change places, at evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError, require_at_least
from levada.inputs import Batch
from levada.probe.effective_depth import residual_calls
from levada.probe.recorder import Recorder, first_floating
from levada.probe.untouched import first_batch, run_once, untouched

__all__ = ["Lesions", "Reordering", "lesion", "reorder"]

Loss: TypeAlias = Callable[..., Tensor]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Lesions:
    """The loss without each block.

    Attributes:
        blocks: names of the modules that were dropped, one at a time.
        baseline: the loss of the whole model; 0 if the relative change of the output is measured instead.
        loss: shape `(blocks,)`.
    """

    blocks: tuple[str, ...]
    baseline: float
    loss: Tensor

    @property
    def change(self) -> Tensor:
        """By how much the loss grows without each block."""
        return self.loss - self.baseline


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reordering:
    """The loss after blocks changed places.

    Attributes:
        swaps: numbers of swapped pairs.
        loss: shape `(len(swaps), draws)`.
        kendall_tau: rank correlation of the new order with the old one, of the same shape.
        baseline: the loss in order; 0 if the relative change of the output is measured instead.
    """

    swaps: tuple[int, ...]
    loss: Tensor
    kendall_tau: Tensor
    baseline: float


def lesion(
    model: nn.Module, batch: Any, blocks: Sequence[str] | None = None, *, loss: Loss | None = None, seed: int = 0
) -> Lesions:
    """Drop each residual block in turn, so that only its skip remains, and measure the loss in evaluation mode.

    Args:
        model: it stays as it was, as do random states.
        batch: inputs or `(inputs, targets)`, as `levada.check` takes them.
        blocks: names of modules that keep the shape of their first input; found as by `sampled_path_lengths` if None.
        loss: called as `loss(output, targets)`, or `loss(output)` without targets. Left out, it is the relative change
            of the output, `|y' - y| / |y|`.
        seed: for what is random in the forward pass.

    Returns:
        The losses.

    Raises:
        UsageError: if a name is unknown, a block changes the shape, or the model does not run on the batch.
        MeasurementError: if no blocks are found, or the loss is not finite.

    Example:
        >>> import levada
        >>> stack = levada.Stack([nn.Linear(2, 2, bias=False) for _ in range(3)], levada.Residual, dim=2)
        >>> for layer, gain in zip(stack, (0.0, 1.0, 3.0)):
        ...     _ = layer.branch.weight.data.copy_(gain * torch.eye(2))
        >>> lesion(stack, torch.ones(1, 2)).loss.tolist()
        [0.0, 0.5, 0.75]

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431.
    """
    trial = _Trial(model, batch, blocks, loss, seed, "lesion")
    losses = []
    for name in trial.blocks:
        handle = model.get_submodule(name).register_forward_hook(_skip, with_kwargs=True)
        try:
            losses.append(trial.measure())
        finally:
            handle.remove()
    return Lesions(trial.blocks, trial.baseline, torch.tensor(losses, dtype=torch.float64))


def reorder(
    model: nn.Module,
    batch: Any,
    blocks: Sequence[str] | None = None,
    *,
    loss: Loss | None = None,
    swaps: Sequence[int] = (1, 2, 4, 8),
    draws: int = 5,
    seed: int = 0,
) -> Reordering:
    """Swap random pairs of residual blocks of one shape, and measure the loss in evaluation mode.

    Args:
        model: it stays as it was, as do random states.
        batch: as for `lesion`.
        blocks: as for `lesion`.
        loss: as for `lesion`.
        swaps: how many pairs are swapped.
        draws: random orders for each number of swaps.
        seed: of the orders.

    Returns:
        The losses, and how far each order was from the old one.

    Raises:
        UsageError: if an argument is out of range or a name unknown, or the model does not run on the batch.
        MeasurementError: if no two blocks have one shape, or the loss is not finite.

    Example:
        >>> import levada
        >>> stack = levada.Stack([nn.Linear(2, 2) for _ in range(4)], levada.Residual, dim=2)
        >>> found = reorder(stack, torch.ones(1, 2), swaps=(1, 2), draws=3)
        >>> found.loss.shape, bool((found.kendall_tau < 1).any())
        (torch.Size([2, 3]), True)

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431.
    """
    require_at_least("reorder", "draws", draws, 1)
    for number in swaps:
        require_at_least("reorder", "each number of swaps", number, 1)
    trial = _Trial(model, batch, blocks, loss, seed, "reorder")
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(trial.shapes):
        groups.setdefault(shape, []).append(index)
    pairs = [(i, j) for group in groups.values() for i in group for j in group if i < j]
    if not pairs:
        raise MeasurementError("reorder: there are no two blocks of one shape to change places.")
    generator = torch.Generator().manual_seed(seed)
    losses = torch.empty(len(swaps), draws, dtype=torch.float64)
    taus = torch.empty_like(losses)
    for row, number in enumerate(swaps):
        for draw in range(draws):
            order = list(range(len(trial.blocks)))
            for _ in range(number):
                i, j = pairs[int(torch.randint(len(pairs), (1,), generator=generator))]
                order[i], order[j] = order[j], order[i]
            with _in_order(model, trial.blocks, order):
                losses[row, draw] = trial.measure()
            taus[row, draw] = _kendall_tau(order)
    return Reordering(tuple(swaps), losses, taus, trial.baseline)


class _Trial:
    """Evaluations of one model on one batch."""

    def __init__(
        self, model: nn.Module, batch: Any, blocks: Sequence[str] | None, loss: Loss | None, seed: int, owner: str
    ) -> None:
        self._model, self._loss, self._seed, self._owner = model, loss, seed, owner
        self._batch: Batch = first_batch(model, batch, owner)
        recorder = Recorder(model)
        recorder.attach()
        try:
            self._reference = self._run()
        finally:
            recorder.detach()
        assert recorder.root is not None  # it ran
        calls = {frame.name: frame for frame in residual_calls(recorder.root)}
        if blocks is not None:
            shown = {name for name, _ in model.named_modules()}
            unknown = next((name for name in blocks if name not in shown or not name), None)
            if unknown is not None:
                raise UsageError(f"{owner}: there is no module {unknown!r} in {type(model).__name__}.")
            calls = {f.name: f for f in _all(recorder.root) if f.name in set(blocks)}
            missing = next((name for name in blocks if name not in calls), None)
            if missing is not None:
                raise UsageError(f"{owner}: the forward pass does not call the module {missing!r}. Leave it out.")
        shapes: dict[str, tuple[int, ...]] = {}
        for name, frame in calls.items():
            before = next((recorder.shape_of[n] for n in frame.inputs if n in recorder.floating), None)
            after = None if frame.output is None else recorder.shape_of[frame.output]
            if before is not None and before == after:
                shapes[name] = before
            elif blocks is not None:
                raise UsageError(
                    f"{owner}: a residual block must keep the shape of its first input; {name} has {before} -> "
                    f"{after}. Leave it out."
                )
        if not shapes:
            raise MeasurementError(
                f"{owner}: no residual blocks were found: no Stack of layers, and no list of modules of one class that "
                "keep the shape of their input. Name them: blocks=['layers.0', ...]."
            )
        self.blocks, self.shapes = tuple(shapes), tuple(shapes.values())
        self.baseline = self._value(self._reference)

    def _run(self) -> Tensor:
        with untouched(self._model, self._seed), torch.no_grad():
            self._model.eval()
            outputs = run_once(self._model, self._batch, self._owner)
        found = first_floating(outputs)
        if found is None and hasattr(outputs, "__dict__"):
            found = first_floating(vars(outputs))
        if found is None:
            raise MeasurementError(f"{self._owner}: the model returned no floating tensor.")
        return found

    def _value(self, output: Tensor) -> float:
        if self._loss is None:
            value = float((output - self._reference).norm() / self._reference.norm())
        else:
            targets = (self._batch.targets,) if self._batch.has_targets else ()
            value = float(self._loss(output, *targets))
        if not value < float("inf"):
            raise MeasurementError(f"{self._owner}: the loss is {value} at this batch.")
        return value

    def measure(self) -> float:
        """Return the loss of the model as it stands now."""
        return self._value(self._run())


def _skip(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    given = first_floating((args, kwargs))
    return (given, *output[1:]) if isinstance(output, tuple) else given


def _all(frame: Any) -> Iterator[Any]:
    yield frame
    for inner in frame.frames():
        yield from _all(inner)


@contextlib.contextmanager
def _in_order(model: nn.Module, blocks: Sequence[str], order: Sequence[int]) -> Iterator[None]:
    places = [name.rpartition(".") for name in blocks]
    tables = [(model.get_submodule(parent)._modules, key) for parent, _, key in places]
    modules = [table[key] for table, key in tables]
    try:
        for (table, key), chosen in zip(tables, order, strict=True):
            table[key] = modules[chosen]
        yield
    finally:
        for (table, key), module in zip(tables, modules, strict=True):
            table[key] = module


def _kendall_tau(order: Sequence[int]) -> float:
    pairs = [(i, j) for j in range(len(order)) for i in range(j)]
    return sum(1 if order[i] < order[j] else -1 for i, j in pairs) / len(pairs)
