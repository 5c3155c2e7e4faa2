"""Stacked layers, run: as recorded operations in one autograd function, or layer by layer as they are written."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from levada.stacking.again import AsWritten, transformed
from levada.stacking.chunks import Rooms
from levada.stacking.exposed import require_apart
from levada.stacking.function import Form, How, Layers, flatten
from levada.stacking.kinds import WATCHED
from levada.stacking.modules import OTHERS, Modules
from levada.stacking.parameters import StackedParameters
from levada.stacking.program import Program
from levada.stacking.recorder import Recorder
from levada.stacking.recording import RecordingError

__all__ = ["run_recorded"]

_PROGRAMS = 16  # that are kept
_ROWS = 4  # lists of rows that are kept: each is as long as the stack
_FEW = 160  # layers, of which a recording at each call costs more than it saves: 1.26 of a step at 100, 0.92 at 200
_MISSES = 8  # of twice as many calls, after which what changes is recorded only where it comes twice in a row


def run_recorded(
    stacked: StackedParameters,
    layers: Sequence[nn.Module],
    state: Any,
    segments: int,
    as_written: Callable[[Any, Sequence[Tensor]], Any],
) -> Any:
    """Return the state after all layers, or NotImplemented where they must be run as they are written.

    What must be run so are layers that somebody watches or transforms, without a word; layers that do not all do the
    same operations, with a warning that says why.

    Args:
        stacked: the parameters.
        layers: modules of one structure.
        state: what `begin` made.
        segments: as in `Stack`.
        as_written: runs the layers one by one with given parameters, for gradients of gradients.
    """
    if torch.compiler.is_compiling() or transformed() or _has_any_global_hook() or _has_mode():  # type: ignore[no-untyped-call]
        return NotImplemented
    if torch.is_grad_enabled() and _packed(False) is not None:
        return NotImplemented  # a checkpoint around the stack, or offloading: they see what autograd saves, no more
    leaves, form = flatten(state)
    cache: dict[str, Any] = stacked.__dict__["cache"]
    runner: Any = None
    try:
        with stacked.lock:
            runner = cache.get("runner")
            if runner is None or runner.layers != layers:
                runner = cache["runner"] = _Runner(stacked, layers)
            difference = runner.modules.difference()
            if difference == OTHERS:
                runner = cache["runner"] = _Runner(stacked, layers, told=runner.told)
                difference = runner.modules.difference()
            if difference in WATCHED:
                return NotImplemented
            run = runner.prepared(leaves, form, segments, as_written, runner.settings_of_all(difference))
        outputs = run()
    except RecordingError as error:
        if not runner.told:
            runner.told = True
            warnings.warn(
                f"Stack: stacked layers run one by one, because of {type(layers[0].connection).__name__} around "
                f"{type(layers[0].branch).__name__}: {error}. Their results are the same, and take longer.",
                stacklevel=4,
            )
        return NotImplemented
    return form.state(outputs)


# The hooks of who packs what a graph saves. Private: without it, such as these free nothing.
_packed = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def _has_mode() -> bool:
    """Whether somebody sees or changes each operation; that of a default device changes none of a layer's."""
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]


@final
class _Runner:
    """The layers of one stack, the programs that were recorded, and the rows that these read."""

    def __init__(self, stacked: StackedParameters, layers: Sequence[nn.Module], *, told: bool = False) -> None:
        self.stacked = stacked
        self.layers = layers
        self.modules = Modules(layers)
        self.recorder = Recorder(stacked, layers, self.modules.kinds, self.modules.classes.own)
        self.programs: OrderedDict[Any, Program | RecordingError] = OrderedDict()
        self.missed: deque[bool] = deque(maxlen=2 * _MISSES)
        self.last: Any = None
        self.rows: OrderedDict[Program, list[Any]] = OrderedDict()
        self.memory_of_rows: tuple[Any, list[Any]] = ([], []), []
        self.memory: dict[int, Tensor] = {}
        self.rooms = Rooms()
        self.told = told

    def settings_of_all(self, difference: str) -> tuple[Any, ...]:
        """Return the settings, where nothing is not the same in all layers."""
        settings = self.modules.settings()
        if difference:
            raise RecordingError(f"{difference} is not the same in all of them")
        return settings

    def prepared(
        self,
        leaves: list[Any],
        form: Form,
        segments: int,
        as_written: Callable[[Any, Sequence[Tensor]], Any],
        settings: tuple[Any, ...],
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Return what runs all layers, and returns the tensors of the state after them."""
        parameters = [parameter for _, parameter in self.stacked.each()]
        for tensor in (*leaves, *parameters):
            if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
                raise RecordingError(f"the state or a parameter is a {type(tensor).__name__}, or not of floating point")
        learning = torch.is_grad_enabled() and any(t.requires_grad for t in (*leaves, *parameters))
        states = [t if _is_dense(t) else t.contiguous() for t in leaves]
        program, device = self._program(states, form, parameters, learning, settings), states[0].device.type
        with torch.autocast(device, enabled=False):
            rows = self._rows(program, parameters)
        rooms = self.rooms if states[0].is_cpu else None
        again = self._again(program, segments, as_written, settings, device) if learning else None

        def run() -> tuple[Tensor, ...]:
            with torch.autocast(device, enabled=False):
                if not learning:
                    with torch.no_grad():
                        return program.forward(rows, *states)
                return Layers.apply(  # type: ignore[no-any-return, no-untyped-call]
                    How(program, rows, segments, form, len(states), again, self.memory, rooms), *states, *parameters
                )

        return run

    def _again(
        self, program: Program, segments: int, as_written: Callable[..., Any], settings: Any, device: str
    ) -> AsWritten:
        buffers, step, found = self.modules.buffers, self.modules.step, program.exposed
        present = itertools.count()
        places = [-1 if m._buffers[name] is None else next(present) for m, name in buffers[:step]]
        written = [place in found.written for place in places]
        read = [not w for w in written] if segments else [place in found.read for place in places]

        def same() -> bool:
            try:
                return bool(self.settings_of_all(self.modules.difference()) == settings)
            except RecordingError:
                return False

        return AsWritten(as_written, same, buffers, self.modules.held(), written, read, device, self.stacked.lock)

    def _program(
        self, states: list[Tensor], form: Form, parameters: list[Any], learning: bool, settings: tuple[Any, ...]
    ) -> Program:
        device = states[0].device.type
        cast = torch.is_autocast_enabled(device)
        key = (
            form,
            tuple(map(_layout, states)),
            tuple((*_layout(p), p.requires_grad) for p in parameters),
            (learning, cast and torch.get_autocast_dtype(device), torch.get_default_dtype()),
            (torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()),
            settings,
        )
        known, again = key in self.programs, key == self.last
        self.last = key
        self.missed.append(not known and not again)
        if not known:
            if len(self.layers) < _FEW and not again and sum(self.missed) > _MISSES:
                raise RecordingError("settings or shapes change from call to call, each time to what was not recorded")
            try:
                self.programs[key] = self.recorder.program(states, form, parameters, learning)
            except RecordingError as error:
                self.programs[key] = RecordingError(*error.args)  # a traceback would hold the batch
            if len(self.programs) > _PROGRAMS:
                self.programs.popitem(last=False)
        self.programs.move_to_end(key)
        found = self.programs[key]
        if isinstance(found, RecordingError):
            raise RecordingError(*found.args)
        return found

    def _rows(self, program: Program, parameters: list[Any]) -> list[Any]:
        """Return what each layer reads; as long as the parameters stay where they are, these are the same views."""
        held = self.modules.held()
        given = [*parameters, *held]
        memory = [t if t is None else t.data_ptr() for t in given], [p.stride() for p in parameters]
        known, objects = self.memory_of_rows
        if memory != known or len(given) != len(objects) or any(map(operator.is_not, given, objects)):
            self.rows.clear()
            self.memory_of_rows = memory, given
        if program not in self.rows:
            with torch.no_grad():
                slices = [*zip(*(p.detach().unbind(0) for p in parameters), strict=True)]
                step = self.modules.step
                own = [[b for b in held[i : i + step] if b is not None] for i in range(0, len(held), step or 1)]
                require_apart(own, program.exposed)
                slices = [(*row, *buffers) for row, buffers in zip(slices, own, strict=True)] if own else slices
                self.rows[program] = [program.prepare(*row) for row in slices]
            if len(self.rows) > _ROWS:
                self.rows.popitem(last=False)
        self.rows.move_to_end(program)
        return self.rows[program]


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device, x.is_neg()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
