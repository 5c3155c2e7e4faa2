"""Rows of a batch that reach each other's outputs, because a recurrent or attention module takes them for time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.loss import Loss, main_output
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import Course, rehearse
from levada.diagnose.update import Factory
from levada.inputs import Batch

__all__ = ["Mixed", "batch_first", "block_of", "mixed_rows_of"]

# Fewer rows say little of their order, and one step is a batch of one sequence, whose steps are the rows.
FEW_ROWS, FEW_STEPS = 4, 2
# Rows that are looked at one by one.
LOOKED_AT = 4
# Steps of training as it is, and with rows and steps turned.
TRAINED = 20
TURNED = f"{TRAINED} steps with batch_first=False and with True"
WHAT, RULES = "the test whether rows of the batch reach each other", ("mixed_rows",)
_KINDS: Mapping[str, type[nn.Module]] = {"recurrent": nn.RNNBase, "attention": nn.MultiheadAttention}


@dataclass(frozen=True, slots=True)
class Mixed:
    """Modules with `batch_first=False` that were given the rows of the batch first.

    Attributes:
        modules: their qualified names, in order of execution.
        kind: "recurrent" or "attention".
        rows: number of rows.
        steps: size of the dimension that is taken for the rows.
        shares: of some rows, what part of the gradient of the first module's output lies at the inputs of other rows.
        succession: mean squared difference of successive rows, over that of any two: 1 of rows in any order.
        aside: whether a module of the kind keeps the rows apart, or is given steps first, so that mixing may be meant.
        moved: root mean square of the change of a row's output as others stand beside it, over the difference between
            outputs; None if it was not measured.
        repaired: the same with `batch_first=True`; None if the model does not run so.
        doubt: why it is not known which dimension holds the rows; "" if it is.
        plain: some steps of training as the model is; None if there was no reason to make them, or they were not made.
        turned: the same with `batch_first=True`.
    """

    modules: tuple[str, ...]
    kind: str
    rows: int
    steps: int
    shares: tuple[float, ...] = ()
    succession: float = 1.0
    aside: bool = False
    moved: float | None = None
    repaired: float | None = None
    doubt: str = ""
    plain: Course | None = None
    turned: Course | None = None


@dataclass(slots=True)
class _Seen:
    """One call of a module that takes the first dimension for time."""

    name: str
    kind: str
    given: Tensor
    shares: tuple[float, ...] = ()


def mixed_rows_of(run: Run, loss: Loss | None, factory: Factory) -> Mixed | None:
    """Return the modules that take the rows of the first batch for time, or None if there are none.

    Args:
        run: the model.
        loss: the loss; without one there are no steps of training.
        factory: builds the optimizer.
    """
    asked = [m for m in run.model.modules() if isinstance(m, nn.RNNBase | nn.MultiheadAttention) and not m.batch_first]
    if not asked or not run.pace.allows(WHAT, 7, 1, rules=RULES):
        return None
    try:
        seen, out = _watch(run)
    except (MeasurementError, UsageError):
        return None  # it does not run on inputs that ask for a gradient
    batch = run.batches[0]
    told = [(one, _doubt(batch, out, one.given)) for one in seen if one.shares and max(one.shares) > 0]
    sure = [one for one, doubt in told if doubt == ""]
    if not sure:
        doubtful = next(((one, doubt) for one, doubt in told if doubt), None)
        if doubtful is None:
            return None
        one, doubt = doubtful
        return Mixed((one.name,), one.kind, len(one.given), one.given.shape[1], one.shares, doubt=doubt)
    first = sure[0]
    names = tuple(dict.fromkeys(one.name for one in sure))
    ran = [m for m in run.model.modules() if isinstance(m, _KINDS[first.kind])]
    found = Mixed(
        names,
        first.kind,
        len(first.given),
        first.given.shape[1],
        first.shares,
        _succession(first.given),
        aside=any(bool(m.batch_first) for m in ran) or _both_ways(seen, first),
    )
    moved = _moved(run, out.shape)
    with batch_first(run.model, names):
        found = replace(found, moved=moved, repaired=_moved(run, out.shape))
    return _trained(run, found, loss, factory)


def _both_ways(seen: Sequence[_Seen], first: _Seen) -> bool:
    """Whether a module of the kind is given the same two dimensions the other way round."""
    rows, steps = first.given.shape[:2]
    return any(one.kind == first.kind and one.given.shape[:2] == (steps, rows) for one in seen)


def _trained(run: Run, found: Mixed, loss: Loss | None, factory: Factory) -> Mixed:
    """Make some steps as the model is and with `batch_first=True`, where these could tell a fault from what is meant.

    Attention that mixes rows on purpose learns from them too, and is left alone.
    """
    if loss is None or found.kind != "recurrent" or found.aside or found.moved is None or found.repaired is None:
        return found
    if not run.pace.allows(TURNED, 2 * (TRAINED + 1), 2 * (TRAINED + 1)):
        return found
    batch = run.batches[0]

    def course() -> Course | None:
        made = rehearse(run.model, lambda: loss(run(), batch), factory, run.pace.deadline, steps=TRAINED)
        return made if made is not None and made.complete else None

    plain = course()
    with batch_first(run.model, found.modules):
        return replace(found, plain=plain, turned=course())


@contextmanager
def batch_first(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Set `batch_first` of some modules, and set it back on leaving.

    Args:
        model: that holds them.
        names: of the modules.
    """
    modules: list[Any] = [model.get_submodule(name) for name in names]
    try:
        for module in modules:
            module.batch_first = True
        yield
    finally:
        for module in modules:
            module.batch_first = False


def _watch(run: Run) -> tuple[list[_Seen], Tensor]:
    """Run once; take the gradient of some rows of each such module's output with respect to its inputs."""
    leaves: dict[str, dict[int, Tensor]] = {}
    seen: list[_Seen] = []

    def before(name: str) -> Any:
        def cut(module: nn.Module, args: Any, kwargs: Any) -> Any:
            held: dict[int, Tensor] = {}

            def leaf(value: Any) -> Any:
                if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != 3:
                    return value
                return held.setdefault(id(value), value.detach().clone().requires_grad_())

            leaves[name] = held
            return tuple(leaf(v) for v in args), {k: leaf(v) for k, v in kwargs.items()}

        return cut

    def after(name: str, kind: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            out, given = result[0], list(leaves.pop(name, {}).values())
            if isinstance(out, Tensor) and out.dim() == 3 and given:
                first = given[0]
                same = [g for g in given if len(g) == len(first)]
                seen.append(_Seen(name, kind, first.detach(), _shares(out, same)))

        return look

    handles = []
    for name, module in run.model.named_modules():
        for kind, of in _KINDS.items():
            if isinstance(module, of) and not module.batch_first:
                handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(after(name, kind), with_kwargs=True))
    try:
        with torch.backends.cudnn.flags(enabled=False):  # it derives recurrences in training mode alone
            out = main_output(run()).detach()
    finally:
        for handle in handles:
            handle.remove()
    return seen, out


def _shares(out: Tensor, given: Sequence[Tensor]) -> tuple[float, ...]:
    """Return, of some rows of an output, the share of the gradient's size that lies at other rows of the inputs."""
    rows = len(given[0])
    if len(out) != rows or rows < 2 or not out.requires_grad:
        return ()
    drawn = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(0)).to(out.device, out.dtype)
    shares = []
    for row in _looked_at(rows):
        found = torch.autograd.grad((out[row] * drawn).sum(), given, retain_graph=True, allow_unused=True)
        squares = torch.stack([g.double().square().flatten(1).sum(1) for g in found if g is not None]).sum(0)
        total = float(squares.sum())
        shares.append(((total - float(squares[row])) / total) ** 0.5 if total > 0 else 0.0)
    return tuple(shares)


def _looked_at(rows: int) -> list[int]:
    """Return some rows, the last one first: it has every other before it."""
    count = min(LOOKED_AT, rows - 1)
    return [rows - 1 - i * (rows - 1) // count for i in range(count)]


def _doubt(batch: Batch, out: Tensor, given: Tensor) -> str | None:
    """Return "" if the first dimension holds the rows, None if it does not, or why that is not known."""
    rows, steps = given.shape[:2]
    first = next((t for t in batch.tensors() if t.dim()), None)
    if rows < FEW_ROWS or steps < FEW_STEPS or first is None or len(first) != rows:
        return None
    targets = batch.targets
    if out.dim() == 0 or len(out) != rows or (isinstance(targets, Tensor) and targets.dim() and len(targets) != rows):
        return None
    if rows == steps:
        return f"the batch has {rows} rows and as many steps"
    if isinstance(targets, Tensor) and targets.dim() == 1 and out.dim() < 3:
        return ""
    sizes = {*out.shape[1:], *(targets.shape[1:] if isinstance(targets, Tensor) else ())}
    if steps in sizes or not (targets is None or isinstance(targets, Tensor)):
        return "whether rows or steps come first is not told by outputs and targets"
    return ""


def _succession(given: Tensor) -> float:
    """Return the mean squared difference of successive rows over that of any two; 1 if all are the same."""
    values = given.flatten(1).double()
    apart = 2 * float(values.var(0).sum())
    return float((values[1:] - values[:-1]).square().sum(1).mean()) / apart if apart > 0 else 1.0


@torch.no_grad()
def _moved(run: Run, shape: torch.Size) -> float | None:
    """Return how far outputs of a row change with the other rows, over how far rows differ; None if not known.

    Batch normalisation, which makes rows depend on each other by design, uses its running statistics meanwhile.
    """
    rows = shape[0]
    norms = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        out = main_output(run()).double()
        size = float(out.var(0).mean().sqrt())
        changes = []
        for row in (rows - 1, rows // 2):
            batch = _others(run.batches[0], row, rows)
            if batch is None or out.shape != shape or not size > 0:
                return None
            there = main_output(run(batch=batch)).double()
            changes.append(float((there[row] - out[row]).square().mean()))
    except (RuntimeError, MeasurementError, UsageError):
        return None  # it does not run on such rows, or so turned
    finally:
        for norm in norms:
            norm.training = True
    return math.sqrt(sum(changes) / len(changes)) / size


def _others(batch: Batch, row: int, rows: int) -> Batch | None:
    """Return the batch with copies of half of the other rows in the place of all: one row stays as it is."""
    plain = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
    if len(plain) != len(list(batch.tensors())):
        return None
    others = [i for i in range(rows) if i != row]
    order = [others[(i + 1) // 2] for i in range(rows - 1)]
    order.insert(row, row)

    def moved(value: Any) -> Any:
        return value[order] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

    kwargs = {key: moved(value) for key, value in batch.kwargs.items()}
    return replace(batch, args=tuple(moved(v) for v in batch.args), kwargs=kwargs)


def block_of(names: Sequence[str], module: str) -> str:
    """Return the block of a module that may be no block itself: the first that is it, around it, or in it.

    Args:
        names: blocks in order.
        module: qualified name.

    Example:
        >>> block_of(["embed", "layers.0", "layers.1"], "layers.1.attention")
        'layers.1'
    """
    plain = [name.partition("#")[0] for name in names]
    around = [i for i, name in enumerate(plain) if name == module or module.startswith(f"{name}.")]
    inside = [i for i, name in enumerate(plain) if name.startswith(f"{module}.")]
    return names[next(iter([*around, *inside, 0]))]
