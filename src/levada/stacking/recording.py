"""What one layer does, recorded: the operations of its forward and of its backward pass, as eager PyTorch runs them."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Recording", "RecordingError", "Step", "Value", "numbers", "record", "unless_it_raises"]


class RecordingError(Exception):
    """Raised where running the same operations for all layers would not be what the layers do."""


@contextlib.contextmanager
def unless_it_raises(as_written: Callable[[], Any]) -> Iterator[None]:
    """Take any error inside for a reason to run layers one by one, unless a layer as it is written has one too.

    Args:
        as_written: runs such a layer; what it raises is left to the user.

    Raises:
        RecordingError: for what was raised inside.
    """
    try:
        yield
    except RecordingError:
        raise
    except Exception as error:
        as_written()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise RecordingError(f"of its operations no program can be made ({told[:200]})") from error


class Value(NamedTuple):
    """A tensor in a recording, by number."""

    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
        operator: of the dispatcher.
        args: what it was given, a `Value` in place of each tensor.
        kwargs: the same, by name.
        outputs: what it returned, a `Value` in place of each tensor and None of all else.
        writes: whether it writes into what it was given.
        draws: whether it draws random numbers.
        views: whether what it returned is memory that it was given.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    writes: bool
    draws: bool
    views: bool

    def reads(self) -> set[int]:
        """Return the numbers of the tensors that it was given."""
        return numbers((self.args, self.kwargs))


@dataclass(frozen=True, slots=True)
class Recording:
    """The operations of a layer.

    Attributes:
        forward: steps of the forward pass.
        backward: steps of the backward pass; none where no gradient was asked for.
        states: the state before the layer.
        constants: what else the layer was given, parameters and then buffers.
        cotangents: gradients of the state after it.
        outputs: the state after it.
        gradients: of the states, and then of the parameters; None where there is none.
        layouts: shapes, strides, types and devices of all values.
        memory: by number of a value, the same for those that share memory.
    """

    forward: list[Step]
    backward: list[Step]
    states: list[int]
    constants: list[int]
    cotangents: list[int]
    outputs: list[int]
    gradients: list[int | None]
    layouts: dict[int, tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]]
    memory: dict[int, int]


def numbers(nest: Any) -> set[int]:
    """Return the numbers of the values in a nest of lists, tuples and mappings.

    Args:
        nest: arguments, or what an operation returned.
    """
    return {leaf.number for leaf in tree_leaves(nest, is_leaf=_is_value) if isinstance(leaf, Value)}


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Value)


# Ask what no later operation can tell from a tensor, or what the recording is made again for.
_QUESTIONS = frozenset({"_fused_sdp_choice", "promote_types", "result_type"})
_ALIASES = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})


@final
class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation. A tensor is known by its memory: autograd hands saved ones out as new objects."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.known: dict[Any, int] = {}
        self.kept: list[Any] = []  # so that no memory is used again while addresses stand for tensors
        self.fixed: set[int] = set()  # storages that the layers may not write into

    def number(self, tensor: Tensor, *, new: bool = False) -> int:
        key = _memory(tensor)
        if key not in self.known:
            if not new:
                raise RecordingError("it reads a tensor that is neither its state nor one of its parameters or buffers")
            self.known[key] = len(self.known)
            self.kept.append(tensor)
        return self.known[key]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, tags = function._schema.name, function.tags
        if torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
            raise RecordingError(f"{name} depends on values, which differ between layers")
        if name == "aten::lift_fresh":
            raise RecordingError("it makes a tensor of numbers that no operation made")
        given, named = tree_map(self._value, (tuple(args), kwargs))
        written = list(_written(function, args, kwargs))
        if any(t.untyped_storage()._cdata in self.fixed for t in written):
            raise RecordingError(f"{name} writes into its state or its parameters")
        result = function(*args, **kwargs)
        tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not tensors and not written:
            if name.removeprefix("aten::") in _QUESTIONS:
                return result
            raise RecordingError(f"{name} gives Python a number, on which what follows may depend")
        views = not written and _gives_views(function)
        if views and all(_memory(t) in self.known for t in tensors):
            self.kept.append(result)
            return result
        outputs = tree_map(lambda t: Value(self.number(t, new=True)) if isinstance(t, Tensor) else None, result)
        self.steps.append(
            Step(function, given, named, outputs, bool(written), torch.Tag.nondeterministic_seeded in tags, views)
        )
        return result

    def _value(self, leaf: Any) -> Any:
        return Value(self.number(leaf)) if isinstance(leaf, Tensor) else leaf


def _memory(tensor: Tensor) -> Any:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise RecordingError(f"it makes a {type(tensor).__name__} of layout {tensor.layout}")
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return *place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()


def _written(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[i] if i < len(args) else None)
            yield from (t for t in tree_leaves(value) if isinstance(t, Tensor))


def _gives_views(function: Any) -> bool:
    return all(r.alias_info is not None for r in function._schema.returns) or function._schema.name in _ALIASES


def record(
    layer: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    backward: bool,
) -> Recording:
    """Run a layer once, and return its operations.

    Args:
        layer: from the state before it to the state after it; it uses the parameters and buffers given here.
        states: the tensors of a state, no two of which share memory.
        parameters: leaves of the graph.
        buffers: may be written into.
        backward: whether to record the backward pass too.

    Raises:
        RecordingError: if other layers, or other values, might need other operations.
    """
    tape, before = _Tape(), _python_draws()
    inputs = [s.detach().clone().requires_grad_(backward) for s in states]
    given = [tape.number(t, new=True) for t in (*inputs, *parameters, *buffers)]
    tape.fixed = {t.untyped_storage()._cdata for t in (*inputs, *parameters)}
    with torch.set_grad_enabled(backward), tape:
        outputs = list(layer(inputs))
    if _python_draws() != before:
        raise RecordingError("it draws random numbers of Python or NumPy")
    _require_like(outputs, inputs)
    forward, tape.steps = tape.steps, []
    cotangents = [torch.ones_like(y) for y in outputs] if backward else []
    gradients: list[int | None] = []
    if backward:
        last = [tape.number(g, new=True) for g in cotangents]
        tape.fixed |= {t.untyped_storage()._cdata for t in cotangents}
        gradients = _record_backward(tape, inputs, parameters, outputs, cotangents)
    return Recording(
        forward=forward,
        backward=tape.steps,
        states=given[: len(inputs)],
        constants=given[len(inputs) :],
        cotangents=last if backward else [],
        outputs=[tape.number(y) for y in outputs],
        gradients=gradients,
        layouts={number: key[2:6] for key, number in tape.known.items()},
        memory={number: key[0] for key, number in tape.known.items()},
    )


def _record_backward(
    tape: _Tape,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[int | None]:
    learned = [*inputs, *(p for p in parameters if p.requires_grad)]
    pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * (len(inputs) + len(parameters))
    with tape:
        try:
            found = torch.autograd.grad([y for y, _ in pairs], learned, [g for _, g in pairs], allow_unused=True)
        except RuntimeError as error:  # run as it is written, it says so itself
            raise RecordingError(f"its backward pass raises {type(error).__name__}") from error
        by_id = {id(t): g for t, g in zip(learned, found, strict=True)}
        for state, cotangent in zip(inputs, cotangents, strict=True):
            gradient = by_id[id(state)]
            if gradient is not None and gradient.stride() != cotangent.stride():
                by_id[id(state)] = torch.empty_like(cotangent).copy_(gradient)
    ordered = [by_id.get(id(t)) for t in (*inputs, *parameters)]
    return [None if g is None else tape.number(g) for g in ordered]


def _require_like(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    kinds = [[(t.shape, t.stride(), t.dtype, t.device) for t in tensors] for tensors in (inputs, outputs)]
    if kinds[0] != kinds[1]:
        raise RecordingError("the state after it is not like the one before it")


def _python_draws() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    _, keys, position, *rest = numpy.random.get_state()
    return random.getstate(), keys.tobytes(), position, *rest
