"""A recurrence: a state that a step turns into the next one, at given inputs; and where a model has one.

A module of any library takes part by methods. One that runs a whole sequence in a call, with time first, has
`recurrences_of_calls(name, calls, rows)`, which returns its recurrences, or says why there are none. One that takes a
step, with its state as a tuple behind the input, may have `project(x)`, `carry(projected, state)` and `gate`, which say
what of a unit's memory is kept; with `state_shapes` the state may hold more than vectors.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, final

import torch
from torch import Tensor, nn

from levada.probe.hook import Hook
from levada.probe.recorder import tensors

__all__ = [
    "LEAST_CALLS",
    "Recurrence",
    "State",
    "called_again",
    "cells",
    "longest_chain",
    "replaced_in",
    "runs_sequences",
]

State: TypeAlias = tuple[Tensor, ...]
Call = TypeVar("Call")

# A module that is called less often than this with its own output is no recurrence that has a memory to speak of.
LEAST_CALLS = 4


@final
@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """One recurrence of a model, as it ran on a batch.

    Attributes:
        site: the module, with layer and direction where it has several.
        module: qualified name of the module.
        kind: mode of a recurrent module of torch ("LSTM", "GRU", "RNN_TANH", "RNN_RELU"), or a cell's class.
        initial: the state before the first step: tensors of one batch.
        steps: number of steps.
        step: step number and state -> next state, at the inputs that the model was given.
        carry: step number and state -> factor on each unit's own memory, of shape `(rows, dim)`; None if not known.
        gate: what that factor is: "forget gate", "update gate", or "" for the gain of independent weights.
        lengths: number of steps of each row; None if all have all.
    """

    site: str
    module: str
    kind: str
    initial: State
    steps: int
    step: Callable[[int, State], State]
    carry: Callable[[int, State], Tensor] | None = None
    gate: str = ""
    lengths: Tensor | None = None


def runs_sequences(module: nn.Module) -> bool:
    """Whether a call of this module runs a whole sequence whose steps can be followed.

    Args:
        module: any module.
    """
    return isinstance(module, nn.RNNBase) or callable(getattr(module, "recurrences_of_calls", None))


@dataclass(slots=True)
class _Call:
    """What a module was called with, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def watching(model: nn.Module, names: Sequence[str], see: Callable[..., None]) -> Iterator[None]:
    """Call `see(name, module, args, kwargs, output)` after each call of the named modules."""

    def hook(name: str) -> Hook:
        return Hook(lambda module, args, kwargs, output: see(name, module, args, kwargs, output))

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def called_again(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Return the names of the modules with parameters that one run of the model calls four times or more.

    Args:
        model: the model.
        run: calls it.
    """
    names = [name for name, m in model.named_modules() if name and any(True for _ in m.parameters())]
    counts: Counter[str] = Counter()
    with watching(model, names, lambda name, *_: counts.update([name])), torch.no_grad():
        run()
    return [name for name in names if counts[name] >= LEAST_CALLS]


def cells(modules: Mapping[str, nn.Module], calls: Mapping[str, Sequence[tuple[Any, ...]]]) -> list[Recurrence]:
    """Return the modules that were called step after step with what they returned, and with something new.

    A tensor that is handed on must be the very one that was returned. A module that is called with nothing but its own
    output, or with the same tensors beside it, is a layer whose weights are shared over depth, and no recurrence in
    time. Of a cell within a cell the inner one counts.

    Args:
        modules: by name.
        calls: what each was called with and returned, `(args, kwargs, output)`, in order.
    """
    found: dict[str, Recurrence] = {}
    for name, all_calls in calls.items():
        chain = longest_chain([_Call(*one) for one in all_calls], _slots)
        if len(chain) >= LEAST_CALLS:
            recurrence = _cell(name, modules[name], chain)
            if recurrence is not None:
                found[name] = recurrence
    return [one for name, one in found.items() if not any(other.startswith(f"{name}.") for other in found)]


def _slots(before: _Call, after: _Call) -> tuple[int, ...]:
    """Return which tensors of one call's output the next call was given; () if nothing new came with them."""
    returned = list(tensors(before.output))
    given = list(tensors((after.args, after.kwargs)))
    slots = tuple(i for i, r in enumerate(returned) if any(g is r for g in given))
    old = [*returned, *tensors((before.args, before.kwargs))]
    fresh = any(not any(g is o for o in old) for g in given)
    return slots if fresh else ()


def longest_chain(
    calls: Sequence[Call], link: Callable[[Call, Call], Any], size: Callable[[Call], int] = lambda call: 1
) -> list[Call]:
    """Return the longest run of calls that go on, each from the one before and all in the same way.

    Args:
        calls: in order.
        link: a call and the next -> how the next goes on; something false if it does not.
        size: of one call, in steps.

    Example:
        >>> longest_chain([1, 2, 3, 7, 9, 11, 13], lambda before, after: after - before)
        [7, 9, 11, 13]
    """
    best: list[Call] = []
    chain = list(calls[:1])
    way: Any = None
    for before, after in itertools.pairwise(calls):
        new = link(before, after)
        if new and (len(chain) == 1 or new == way):
            chain.append(after)
        else:
            best, chain = max(best, chain, key=lambda one: sum(map(size, one))), [after]
        way = new
    return max(best, chain, key=lambda one: sum(map(size, one)))


def _cell(name: str, module: nn.Module, chain: Sequence[_Call]) -> Recurrence | None:
    slots = _slots(chain[0], chain[1])
    first = [list(tensors(chain[0].output))[i] for i in slots]
    most = max(s.dim() for s in first) if hasattr(module, "state_shapes") else 2
    if any(not 1 <= s.dim() <= most or not s.is_floating_point() for s in first):
        return None
    alone = first[0].dim() == 1
    if len({s.shape[:1] if s.dim() > 1 else () for s in first}) > 1:
        return None

    def matrices(output: Any) -> State:
        found = list(tensors(output))
        return tuple(found[i].unsqueeze(0) if alone else found[i].flatten(1) for i in slots)

    def step(t: int, state: State) -> State:
        before, call = list(tensors(chain[t].output)), chain[t + 1]
        fed = {id(before[i]): s.view_as(before[i]) for i, s in zip(slots, state, strict=True)}
        return matrices(module.forward(*replaced_in(call.args, fed), **replaced_in(call.kwargs, fed)))

    def recorded(t: int) -> State:
        return tuple(s.detach() for s in matrices(chain[t].output))

    with torch.no_grad():
        for t in range(min(3, len(chain) - 1)):
            pairs = zip(step(t, recorded(t)), recorded(t + 1), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs):
                return None  # it differs from call to call at the same inputs: dropout inside
    carry, gate = _gate_of(module, chain, alone)
    return Recurrence(name, name, type(module).__name__, recorded(0), len(chain) - 1, step, carry, gate)


def _gate_of(
    module: nn.Module, chain: Sequence[_Call], alone: bool
) -> tuple[Callable[[int, State], Tensor] | None, str]:
    """Return the gate of one of torch's cells, or of a cell that says it."""
    if callable(getattr(module, "project", None)) and callable(getattr(module, "carry", None)):
        return _own_gate(module, chain)
    if not isinstance(module, nn.LSTMCell | nn.GRUCell):
        return None, ""
    size, at, count = module.hidden_size, 1, 4 if isinstance(module, nn.LSTMCell) else 3
    rows = slice(at * size, (at + 1) * size)

    def carry(t: int, state: State) -> Tensor:
        x = chain[t + 1].args[0] if chain[t + 1].args else chain[t + 1].kwargs["input"]
        x = x.detach().unsqueeze(0) if alone else x.detach()
        biases = (None, None) if module.bias_ih is None else (module.bias_ih[rows], module.bias_hh[rows])
        return (
            nn.functional.linear(x, module.weight_ih[rows], biases[0])
            + nn.functional.linear(state[0], module.weight_hh[rows], biases[1])
        ).sigmoid()

    return carry, "forget gate" if count == 4 else "update gate"


def _own_gate(module: Any, chain: Sequence[_Call]) -> tuple[Callable[[int, State], Tensor] | None, str]:
    def carry(t: int, state: State) -> Any:
        x = next(iter(tensors((chain[t + 1].args, chain[t + 1].kwargs))))
        shaped = tuple(s.view(-1, *shape) for s, shape in zip(state, module.state_shapes, strict=True))
        return module.carry(module.project(x.detach()), shaped)

    try:
        with torch.no_grad():
            known = carry(0, tuple(s.flatten(1) for s in tensors(chain[0].output))) is not None
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return None, ""  # methods of the same names that mean something else
    return (carry, str(getattr(module, "gate", ""))) if known else (None, "")


def replaced_in(value: Any, table: Mapping[int, Any]) -> Any:
    """Return a nest of tuples, lists and mappings with some of its tensors replaced, by `id`.

    Args:
        value: the nest.
        table: `id` of a tensor -> what to put in its place.
    """
    if isinstance(value, Tensor):
        return table.get(id(value), value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced_in(item, table) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(replaced_in(item, table) for item in value)
    return {k: replaced_in(v, table) for k, v in value.items()} if isinstance(value, Mapping) else value
