"""All layers of a stack as one function of autograd."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from levada.stacking.again import AsWritten, is_wrapped, transformed, untransformed
from levada.stacking.chunks import Rooms, chunk_length
from levada.stacking.program import Program

__all__ = ["Form", "How", "Layers", "flatten"]


class Form(NamedTuple):
    """What a state is beside its tensors."""

    spec: TreeSpec
    given: tuple[bool, ...]  # False where it holds None

    def state(self, tensors: Iterable[Tensor]) -> Any:
        """Put the state together again."""
        following = iter(tensors)
        return tree_unflatten([next(following) if given else None for given in self.given], self.spec)


def flatten(state: Any) -> tuple[list[Any], Form]:
    """Return the tensors of a state, and what it is beside.

    Args:
        state: a nest in which nothing but tensors and None is expected.
    """
    leaves, spec = tree_flatten(state)
    given = tuple(leaf is not None for leaf in leaves)
    return [leaf for leaf in leaves if leaf is not None], Form(spec, given)


class How(NamedTuple):
    """What runs the layers, beside tensors.

    Attributes:
        program: of one layer.
        rows: what each layer reads, as `program.prepare` made it.
        segments: number of segments of which only the first state is kept; 0 keeps what the backward pass needs.
        form: of the state.
        num_states: how many of the tensors are the state; the stacked parameters follow.
        as_written: runs the layers with a graph, for gradients of gradients; None of a single layer.
        memory: of gradients, by the parameter's place, from one pass to the next.
        rooms: memory of chunks of layers, the same; None where it is let go.
    """

    program: Program
    rows: Sequence[Any]
    segments: int
    form: Form
    num_states: int
    as_written: AsWritten | None
    memory: dict[int, Tensor]
    rooms: Rooms | None


_Wrapped = TypeVar("_Wrapped", bound=Callable[..., Any])


def _uncollected(function: _Wrapped) -> _Wrapped:
    """Let Python not search for garbage meanwhile: what the layers make is much, and none of it is garbage."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not gc.isenabled():
            return function(*args)
        gc.disable()
        try:
            return function(*args)
        finally:
            gc.enable()

    return run  # type: ignore[return-value]


@final
class Layers(torch.autograd.Function):
    """All layers as one function of the state and the stacked parameters."""

    @staticmethod
    @_uncollected
    def forward(ctx: Any, how: How, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the layers, and keep what their backward passes need, or the first state of each segment."""
        ctx.how = how
        program, rows, segments = how[:3]
        if how.rooms is not None:
            how.rooms.begin()
        ctx.save_for_backward(*tensors)
        states = tensors[: how.num_states]
        ctx.random = _random_state(states[0]) if program.draws else None
        ctx.segments = []
        for start, stop in _bounds(len(rows), segments):
            kept: list[Any] = []
            ctx.segments.append(
                (start, stop, states, _random_state(states[0]) if program.draws and segments else None, kept)
            )
            if segments:
                states = program.forward(itertools.islice(rows, start, stop), *states)
            else:
                states = _keeping(how, rows, kept, states)
        ctx.strides = [s.stride() for s in states]
        if how.as_written is not None:
            how.as_written.note_versions()
        if segments:  # the first state of one may be passed on to the end
            first = {s.untyped_storage()._cdata for _, _, given, *_ in ctx.segments for s in given}
            needed = tuple(s.untyped_storage()._cdata in first for s in states)
        else:
            needed = program.exposed.outputs
        ctx.ends = [(s, s._version) for s, kept_too in zip(states, needed, strict=True) if kept_too]
        # Detached: a kept tensor that is the output itself would keep the graph alive that keeps it.
        return tuple(s.detach() for s in states)

    @staticmethod
    @_uncollected
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """Run the layers' backward passes, and write the parameters' gradients into one tensor of each kind."""
        how: How = ctx.how
        program, rows, segments = how[:3]
        tensors = ctx.saved_tensors
        for end, version in ctx.ends:
            if end._version != version:
                raise RuntimeError(
                    "Stack: the output is needed for gradients, and was changed in place: it is at version "
                    f"{end._version}, expected {version}. Clone it before."
                )
        if torch.is_grad_enabled() or transformed() or any(map(is_wrapped, cotangents)):
            return None, *_again(ctx, tensors, cotangents)
        if how.as_written is not None:
            how.as_written.require_buffers()
        cotangents = tuple(
            g if g.stride() == stride else g.new_empty_strided(g.shape, stride).copy_(g)
            for g, stride in zip(cotangents, ctx.strides, strict=True)
        )
        gradients: list[Tensor | None] = []
        columns: list[Tensor] = []
        whole: list[Tensor] = []
        for i, (parameter, written) in enumerate(zip(tensors[how.num_states :], program.written, strict=True)):
            made = None if written is None else _memory_for(parameter, how.memory, i)
            gradients.append(made)
            if written is not None and made is not None:
                view = made.transpose(1, 2) if written.transposed else made.view(len(rows), *written.shape)
                (whole if written.whole else columns).append(view)
        slices = [*zip(*(column.unbind(0) for column in columns), strict=True)] if columns else [()] * len(rows)
        again, rooms = _keeps_graph(), how.rooms or Rooms()
        with torch.autocast(cotangents[0].device.type, enabled=False):
            for start, stop, states, random, kept in reversed(ctx.segments):
                if segments:
                    kept = []
                    with _drawing_again(states[0], random):
                        _keeping(how, rows[start:stop], kept, states)
                take = iter(reversed(kept)).__next__ if again and not segments else kept.pop
                for first, last in reversed([*_chunks(program, start, stop)]):
                    reverse = slice(last - 1, first - 1 if first else None, -1)
                    held, parts = take(), [made[first:last] for made in whole]
                    cotangents = program.backward(rows[reverse], rooms, held, take, slices[reverse], parts, *cotangents)
                    for room in () if again and not segments else held:
                        rooms.give(room)
        return None, *cotangents, *gradients


def _again(ctx: Any, tensors: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Iterator[Tensor | None]:
    """Yield gradients of the layers as they are written: with a graph where one is asked for, or of many at once."""
    how: How = ctx.how
    assert how.as_written is not None  # a single layer is run for its first gradients alone
    graph = torch.is_grad_enabled()
    with untransformed(), torch.enable_grad(), _drawing_again(tensors[0], ctx.random):
        # Of their own in the graph: a state may have been made of the parameters, and that is not the layers' doing.
        own = [t.view_as(t) if t.requires_grad else t for t in tensors]
        outputs, _ = flatten(how.as_written(how.form.state(own[: how.num_states]), own[how.num_states :]))
    pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if y.requires_grad]
    wanted = [t for t in own if t.requires_grad]
    ends, given = [y for y, _ in pairs], [g for _, g in pairs]
    nothing: tuple[Tensor | None, ...] = (None,) * len(wanted)
    found = iter(torch.autograd.grad(ends, wanted, given, create_graph=graph, allow_unused=True) if ends else nothing)
    for tensor in own:
        yield next(found) if tensor.requires_grad else None


def _keeping(how: How, rows: Sequence[Any], kept: list[Any], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run layers by chunks, and keep what their backward passes need."""
    rooms = how.rooms or Rooms()
    for first, last in _chunks(how.program, 0, len(rows)):
        states = how.program.forward_keeping(rows[first:last], rooms, kept.append, *states)
    return states


def _chunks(program: Program, start: int, stop: int) -> Iterator[tuple[int, int]]:
    length = chunk_length(stop - start, program.length) if program.length > 1 else stop - start
    return ((first, min(stop, first + length)) for first in range(start, stop, length))


def _bounds(depth: int, segments: int) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(i * depth // (segments or 1) for i in range((segments or 1) + 1))


_LARGE = 2**20  # bytes
_uses = getattr(torch._C, "_storage_Use_Count", None)  # private: without it, memory is new in each pass


def _memory_for(parameter: Tensor, memory: dict[int, Tensor], place: int) -> Tensor:
    """Return memory for a gradient: on a CPU that of the last one, if that is gone.

    The system hands large pieces out page by page: at 10,000 layers of width 64 this took as long as to fill them ten
    times.
    """
    held = memory.pop(place, None)  # whoever has taken it asks alone: threads share what is held
    if held is None or held.shape != parameter.shape or held.dtype != parameter.dtype or not _is_alone(held):
        held = torch.empty_like(parameter)
        if not parameter.is_cpu or held.nbytes < _LARGE or _uses is None:
            return held
    given = held.detach()
    memory[place] = held  # in use by now
    return given


def _is_alone(held: Tensor) -> bool:
    """Whether nobody else has the memory: no tensor, no array, no other process, no storage object."""
    shared: bool = held.is_shared()  # type: ignore[no-untyped-call]
    return not shared and _holders(held) == _ALONE


def _holders(held: Tensor) -> tuple[int, int]:
    storage = held.untyped_storage()
    return 0 if _uses is None else _uses(storage._cdata), sys.getrefcount(storage)


_ALONE = _holders(torch.empty(1))


_graph_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # private


def _keeps_graph() -> bool:
    """Whether a backward pass may come again; without the private answer, nothing is freed as it goes."""
    return _graph_kept is None or bool(_graph_kept())


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


@contextlib.contextmanager
def _drawing_again(like: Tensor, state: Any) -> Iterator[None]:
    """Draw the numbers that were drawn from a state of the generators on, and leave these as they are."""
    if state is None:
        yield
        return
    before = _random_state(like)
    _set_random_state(like, state)
    try:
        yield
    finally:
        _set_random_state(like, before)


def _set_random_state(like: Tensor, state: Any) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
