"""One layer of a stack, recorded, and compared with another one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from levada.connection import Outputs
from levada.stacking.function import Form, How, Layers, flatten
from levada.stacking.kinds import Kind
from levada.stacking.parameters import StackedParameters
from levada.stacking.program import Program, program_of
from levada.stacking.recording import RecordingError, record, unless_it_raises
from levada.stacking.undo import Before

__all__ = ["Recorder"]


@final
class Recorder:
    """Makes programs of the first layer.

    Args:
        stacked: the parameters.
        layers: of one structure.
        kinds: their modules, by the place in a layer.
        classes: of the modules, as far as they may change.
    """

    def __init__(
        self,
        stacked: StackedParameters,
        layers: Sequence[nn.Module],
        kinds: Sequence[Kind],
        classes: Sequence[type],
    ) -> None:
        self.stacked, self.layers, self.kinds, self.classes = stacked, layers, kinds, classes

    def program(self, states: list[Tensor], form: Form, parameters: list[Any], learning: bool) -> Program:
        """Return the program of the first layer, after a look at whether it does what the last one does.

        Args:
            states: the tensors of the state.
            form: what else the state is.
            parameters: the stacked ones.
            learning: whether gradients may be asked for.

        Raises:
            RecordingError: if the operations of the first layer are not those of all, or not again.
        """
        devices = [states[0].device.index] if states[0].is_cuda else []
        written = functools.partial(self._one_layer, None, form, states, parameters, learning)
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
        copies: list[Tensor] = []
        buffers: list[tuple[Any, dict[str, Any], dict[str, Any], list[Any]]] = []
        tables = [(self.stacked.owners[key][place]._parameters, key[1]) for key, _ in self.stacked.each()]
        before = Before([kind.states[place] for kind in self.kinds], self.classes)
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
            for kind in self.kinds:
                module: Any = kind.modules[place]
                held: dict[str, Any] = module._buffers
                old = held.copy()
                held.update({name: None if buffer is None else buffer.clone() for name, buffer in old.items()})
                copies += (copy for copy in held.values() if copy is not None)
                buffers.append((module, held, old, [*map(_looks, held.items())]))
            yield run, copies
        except AttributeError as error:
            if "'layer'" in str(error):
                raise RecordingError("it does something else in each layer") from None
            raise
        finally:
            layer.connection.__dict__["layer"] = index
            for table, name in tables:
                table.install(name, None)  # type: ignore[attr-defined]
            put = any(
                module._buffers is not held or [*map(_looks, held.items())] != looks
                for module, held, _, looks in buffers
            )
            for module, held, old, _ in buffers:
                module._buffers = held
                held.clear()
                held.update(old)
            changed = before.put_back()
        if put:
            raise RecordingError("it puts another tensor in the place of a buffer")
        if changed:
            raise RecordingError("it changes an attribute of its own, or what one holds")

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


def _looks(item: tuple[str, Tensor | None]) -> tuple[Any, ...]:
    """Return what is another one where somebody has put another tensor, other memory or a graph in a buffer's place."""
    name, buffer = item
    return name, id(buffer), *(() if buffer is None else (buffer.requires_grad, buffer.data_ptr(), buffer.shape))


def _seed(seed: int, like: Tensor) -> None:
    """Seed the generators that are given back: `torch.manual_seed` seeds those of all devices."""
    torch.default_generator.manual_seed(seed)
    if like.is_cuda:
        torch.cuda.default_generators[like.device.index].manual_seed(seed)
