"""Stacked layers, run: as recorded operations in one autograd function, or layer by layer as they are written."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from levada.connection import Outputs
from levada.stacking.again import AsWritten, transformed
from levada.stacking.chunks import Rooms
from levada.stacking.exposed import require_apart
from levada.stacking.function import Form, How, Layers, flatten
from levada.stacking.parameters import LayerParameters, StackedParameters
from levada.stacking.program import Program, program_of
from levada.stacking.recording import RecordingError, record, unless_it_raises
from levada.stacking.settings import Classes, settings_of

__all__ = ["run_recorded"]


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
        return (
            NotImplemented  # a checkpoint around the stack, or offloading: these see what autograd saves, and no more
        )
    leaves, form = flatten(state)
    cache: dict[str, Any] = stacked.__dict__["cache"]
    runner: Any = None
    try:
        with stacked.lock:
            runner = cache.get("runner")
            if runner is None or runner.layers != layers:
                runner = cache["runner"] = _Runner(stacked, layers)
            difference = runner.difference()
            if difference == _CLASS:
                runner = cache["runner"] = _Runner(stacked, layers)
                difference = runner.difference()
            if difference in _WATCHED:
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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_read_hooks = operator.itemgetter(*_HOOKS)
_CLASS = "a class"
_WATCHED = frozenset({*_HOOKS, "_compiled_call_impl", "compiled", "forward"})
# What layers may differ in: what they hold is looked at by itself, `layer` hidden while a layer is recorded, and the
# rest has no part in a call, or none where there are no hooks.
_OWN = frozenset({"_parameters", "_buffers", "_modules", "layer"}) | {
    *("_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks", "_is_full_backward_hook"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
}

# The hooks of who packs what a graph saves. Private: without it, such as these free nothing.
_packed = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def _has_mode() -> bool:
    """Whether somebody sees or changes each operation; that of a default device changes none of a layer's."""
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]


class _Kind:
    """Modules at one place in all layers, compared in few calls: what they do must not depend on which it is."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.states = [module.__dict__ for module in modules]
        self.names = [name for name in self.states[0] if name not in {*_OWN, *_HOOKS}]
        self.read = operator.itemgetter(*self.names, self.names[0])  # of a single name it would return no tuple
        self.length = len(self.states[0])

    def difference(self) -> str:
        """Return the name of what is not the same in all, or was not there when they were stacked; "" if nothing is."""
        with contextlib.suppress(Exception):  # tensors and arrays answer with several truth values
            hooked = any(map(any, map(_read_hooks, self.states)))
            if not hooked and all(map(self.length.__eq__, map(len, self.states))):
                expected = self.read(self.states[0])
                if all(map(expected.__eq__, map(self.read, self.states))):
                    return ""
        first = self.states[0]
        for state in self.states:
            for name in {*self.names, *_HOOKS, *state} - _OWN:
                known = name in state and (name in _HOOKS or (name in self.names and name in first))
                if not known or not _same((state[name],), ({} if name in _HOOKS else first[name],)):
                    return name
        return ""


@final
class _Runner:
    """The layers of one stack, the programs that were recorded, and the rows that these read."""

    def __init__(self, stacked: StackedParameters, layers: Sequence[nn.Module]) -> None:
        self.stacked = stacked
        self.layers = layers
        trees = [dict(layer.named_modules()) for layer in layers]
        self.alike = all(
            [(n, type(m)) for n, m in tree.items()] == [(n, type(m)) for n, m in trees[0].items()]
            and all(_is_held(module._parameters, i) for module in tree.values())
            for i, tree in enumerate(trees)
        )
        self.kinds = [_Kind([tree[path] for tree in trees]) for path in trees[0]] if self.alike else []
        tables = [module._modules for tree in trees for module in tree.values()]
        self.children, self.childless = [t for t in tables if t], [t for t in tables if not t]
        self.modules = [*itertools.chain.from_iterable(map(dict.values, self.children))]
        self.buffers = (
            [(tree[path], name) for tree in trees for path, module in trees[0].items() for name in module._buffers]
            if self.alike
            else []
        )
        self.classes = Classes([module for tree in trees for module in tree.values()])
        self.programs: dict[Any, Program | RecordingError] = {}
        self.rows: tuple[Any, list[Any]] = None, []
        self.memory: dict[int, Tensor] = {}
        self.rooms = Rooms()
        self.told = False

    def difference(self) -> str:
        """Return what is not the same in all layers."""
        children = [*itertools.chain.from_iterable(map(dict.values, self.children))]
        if not self.alike or children != self.modules or any(self.childless):
            return "the tree of modules"
        if self.classes.changed():
            return _CLASS
        return next((name if name in _WATCHED else repr(name) for k in self.kinds if (name := k.difference())), "")

    def settings(self) -> tuple[Any, ...]:
        """Return what the first layer's attributes and the kinds of its buffers are, by which a recording is found."""
        held = [module._buffers[name] for module, name in self.buffers]
        if any(b is not None and b.requires_grad for b in held):
            raise RecordingError("a buffer requires a gradient, or has a graph")
        buffers = [
            None if b is None else (type(b), b.shape, b.dtype, b.device, b.stride(), b.is_conj(), b.is_neg())
            for b in held
        ]
        step = self._num_buffers
        if buffers[step:] != buffers[:-step]:
            raise RecordingError("buffers of one name differ in kind, or only some layers have them")
        return *(settings_of(kind.states[0]) for kind in self.kinds), self.classes.settings(), *buffers[:step]

    def settings_of_all(self, difference: str) -> tuple[Any, ...]:
        """Return the settings, where nothing is not the same in all layers."""
        settings = self.settings()
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
        step, found = self._num_buffers, program.exposed
        present = itertools.count()
        places = [-1 if m._buffers[name] is None else next(present) for m, name in self.buffers[:step]]
        written = [place in found.written for place in places] * len(self.layers)
        read = [place in found.read for place in places] * len(self.layers)
        if segments:
            read = [not w for w in written]

        def ask() -> tuple[Any, ...]:
            return self.settings_of_all(self.difference())

        return AsWritten(as_written, settings, ask, self.buffers, written, read, device, self.stacked.lock)

    def _program(
        self, states: list[Tensor], form: Form, parameters: list[Any], learning: bool, settings: tuple[Any, ...]
    ) -> Program:
        device = states[0].device.type
        cast = torch.is_autocast_enabled(device)
        key = (
            form,
            tuple((t.shape, t.stride(), t.dtype, t.device) for t in states),
            tuple((p.shape, p.dtype, p.device, p.requires_grad) for p in parameters),
            (learning, cast and torch.get_autocast_dtype(device), torch.get_default_dtype()),
            (torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()),
            settings,
        )
        if key not in self.programs:
            try:
                self.programs[key] = self._record(states, form, parameters, learning)
            except RecordingError as error:
                self.programs[key] = RecordingError(*error.args)  # a traceback would hold the batch
        found = self.programs[key]
        if isinstance(found, RecordingError):
            raise RecordingError(*found.args)
        return found

    def _record(self, states: list[Tensor], form: Form, parameters: list[Any], learning: bool) -> Program:
        """Return the program of the first layer, after a look at whether it does what the last one does."""
        devices = [states[0].device.index] if states[0].is_cuda else []
        written = functools.partial(self._one_layer, None, form, states, parameters, learning=False)
        with torch.random.fork_rng(devices), torch.inference_mode(False), unless_it_raises(written):
            own = [p[0].detach().requires_grad_(p.requires_grad and learning) for p in parameters]
            with self._given(0, own, form) as (run, buffers):
                recording = record(run, states, own, buffers, backward=learning)
            program = program_of(recording, len(parameters))
            others = [s.detach() + 0.1 * torch.randn_like(s) for s in states]
            expected = self._one_layer(None, form, others, parameters, learning)
            found = self._one_layer(program, form, others, parameters, learning)
        for x, y in zip(expected, found, strict=True):
            bound = 1e3 * torch.finfo(x.dtype).eps
            if x.numel() and not torch.allclose(
                x, y, rtol=bound, atol=bound * max(1.0, float(x.abs().amax())), equal_nan=True
            ):
                raise RecordingError("its operations, run again, give something else")
        return program

    @contextlib.contextmanager
    def _given(
        self, place: int, own: Sequence[Tensor], form: Form
    ) -> Iterator[tuple[Callable[[Sequence[Tensor]], Sequence[Tensor]], list[Tensor]]]:
        """Give a layer these parameters and copies of its buffers, and hide which one it is."""
        layer: Any = self.layers[place]
        step = self._num_buffers
        held = [(m, name, m._buffers[name]) for m, name in self.buffers[place % len(self.layers) * step :][:step]]
        copies = [None if buffer is None else buffer.clone() for _, _, buffer in held]
        tables = [(self.stacked.owners[key][place]._parameters, key[1]) for key, _ in self.stacked.each()]
        before = [kind.states[place].copy() for kind in self.kinds]
        index = layer.connection.__dict__.pop("layer")  # who reads it does not do the same in all layers

        def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
            after = layer(form.state(given))
            if type(after) is Outputs:
                raise RecordingError("its branch returns more than the stream")
            tensors, ended = flatten(after)
            if ended != form:
                raise RecordingError("the state after it is not like the one before it")
            return tensors

        try:
            for (table, name), value in zip(tables, own, strict=True):
                table.install(name, value)  # type: ignore[attr-defined]
            for (module, name, _), copy in zip(held, copies, strict=True):
                module._buffers[name] = copy
            yield run, [copy for copy in copies if copy is not None]
        except AttributeError as error:
            if "'layer'" in str(error):
                raise RecordingError("it does something else in each layer") from None
            raise
        finally:
            layer.connection.__dict__["layer"] = index
            for table, name in tables:
                table.install(name, None)  # type: ignore[attr-defined]
            for module, name, buffer in held:
                module._buffers[name] = buffer
            changed = [kind for kind, old in zip(self.kinds, before, strict=True) if not _same(kind.states[place], old)]
            for kind, old in zip(self.kinds, before, strict=True) if changed else ():
                kind.states[place].clear()
                kind.states[place].update(old)
        if changed:
            raise RecordingError("it changes an attribute of its own")

    def _one_layer(
        self, program: Program | None, form: Form, states: list[Tensor], parameters: list[Any], learning: bool
    ) -> list[Tensor]:
        """Return the state after the last layer and all gradients, by a program or as it is written."""
        _seed(0, states[0])
        own = [p[-1:].detach().requires_grad_(p.requires_grad and learning) for p in parameters]
        given = [s.detach().clone().requires_grad_(learning) for s in states]
        with torch.set_grad_enabled(learning), self._given(-1, [p[0] for p in own], form) as (run, buffers):
            if program is None:
                outputs = run(given)
            else:
                with torch.no_grad(), torch.autocast(states[0].device.type, enabled=False):
                    row = program.prepare(*(p[0].detach() for p in own), *buffers)
                    outputs = () if learning else program.forward([row], *given)
                if learning:
                    outputs = Layers.apply(  # type: ignore[no-untyped-call]
                        How(program, [row], 0, form, len(given), None, {}, None), *given, *own
                    )
        if not learning:
            return [*outputs]
        _seed(1, states[0])
        wanted = [t for t in (*given, *own) if t.requires_grad]
        ends = [y for y in outputs if y.requires_grad]
        gradients = torch.autograd.grad(ends, wanted, [torch.randn_like(y) for y in ends], allow_unused=True)
        zeros = map(torch.zeros_like, wanted)
        return [*(y.detach() for y in outputs), *(z if g is None else g for g, z in zip(gradients, zeros, strict=True))]

    @property
    def _num_buffers(self) -> int:
        return len(self.buffers) // len(self.layers)

    def _rows(self, program: Program, parameters: list[Any]) -> list[Any]:
        """Return what each layer reads; as long as the parameters stay where they are, these are the same views."""
        key = program, tuple((id(p), p.untyped_storage()._cdata) for p in parameters)
        if self.rows[0] == key and not self.buffers:
            return self.rows[1]
        with torch.no_grad():
            columns = [p.detach().unbind(0) for p in parameters]
            slices = [*zip(*columns, strict=True)]
            step = self._num_buffers
            held = [module._buffers[name] for module, name in self.buffers]
            own = [[b for b in held[i : i + step] if b is not None] for i in range(0, len(held), step or 1)]
            require_apart(own, program.exposed)
            slices = [(*row, *buffers) for row, buffers in zip(slices, own, strict=True)] if own else slices
            self.rows = key, [program.prepare(*row) for row in slices]
        return self.rows[1]


def _seed(seed: int, like: Tensor) -> None:
    """Seed the generators that are given back: `torch.manual_seed` seeds those of all devices."""
    torch.default_generator.manual_seed(seed)
    if like.is_cuda:
        torch.cuda.default_generators[like.device.index].manual_seed(seed)


def _same(some: Any, other: Any) -> bool:
    """Whether two nests are equal; tensors and arrays that are not one object are taken to differ."""
    try:
        return bool(some == other)
    except Exception:
        return False


def _is_held(table: dict[str, Any], layer: int) -> bool:
    return table.layer == layer if isinstance(table, LayerParameters) else not table


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
