"""The layers of `nn.RNN`, `nn.LSTM` and `nn.GRU` step by step, in double precision, from the weights that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from levada.probe.recurrence import Recurrence, State

__all__ = ["FusedCall", "unrolled"]

# Steps that must be equal to the module's own: a chaotic network takes two roundings of one number apart later on.
_COMPARED = 8


@final
class FusedCall:
    """What a recurrent module of torch was called with: one call, or several that hand their last state on.

    Args:
        module: the module.
        rows: how many rows of the batch to keep.
    """

    def __init__(self, module: nn.RNNBase, rows: int) -> None:
        self.module, self.rows = module, rows
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.initial: tuple[Tensor, ...] = ()
        self.lengths: Tensor | None = None
        self.last: tuple[Tensor, ...] = ()

    def continues(self, state: Any) -> bool:
        """Whether a call with this state goes on where this one ended."""
        given = _tensors(state)
        return self.lengths is None and bool(given) and all(any(g is h for h in self.last) for g in given)

    def add(self, given: Any, state: Any, returned: Any) -> None:
        """Take one call: its input, its initial state (or None), and what it returned."""
        output, last = returned
        inputs, lengths = self.plain(given)
        if not self.inputs:
            self.lengths = None if lengths is None else lengths[: self.rows]
            self.initial = tuple(
                (s if s.dim() == 3 else s.unsqueeze(1))[:, : self.rows].detach() for s in _tensors(state)
            )
        self.inputs.append(inputs[:, : self.rows].detach())
        self.outputs.append(self.plain(output)[0][:, : self.rows].detach())
        self.last = _tensors(last)

    @property
    def length(self) -> int:
        """Number of steps."""
        return sum(len(x) for x in self.inputs)

    def plain(self, value: Any) -> tuple[Tensor, Tensor | None]:
        """Return a sequence as `(steps, rows, dim)`, and its lengths where it is packed."""
        if isinstance(value, PackedSequence):
            padded: tuple[Tensor, Tensor] = pad_packed_sequence(value)
            return padded
        if value.dim() == 2:
            return value.unsqueeze(1), None
        return (value.transpose(0, 1) if self.module.batch_first else value), None


def unrolled(name: str, call: FusedCall) -> list[Recurrence] | str:
    """Return every layer and direction of a recurrent module as a recurrence, or why that cannot be done.

    Args:
        name: the module's name.
        call: what it was called with.
    """
    module = call.module
    if module.mode not in _CELLS:
        return f"{type(module).__name__} is of a mode that is not known, {module.mode}"
    x = torch.cat(call.inputs).to(_dtype(module))
    found: list[Recurrence] = []
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            one = _Direction(call, x, layer, direction)
            place = f"layer {layer}" if directions == 1 else f"layer {layer}, {('forward', 'backward')[direction]}"
            alone = module.num_layers * directions == 1
            found.append(one.recurrence(name if alone else f"{name}[{place}]", name))
            outputs.append(one.outputs())
        x = torch.cat(outputs, -1)
    expected = torch.cat(call.outputs)
    if module.dropout > 0 and module.training and module.num_layers > 1:
        expected = _without_dropout(call)
    if not _same(x, expected, call.lengths, directions):
        return "step by step, its weights do not give what it returns"
    return found


def _dtype(module: nn.RNNBase) -> torch.dtype:
    return torch.float32 if next(module.parameters()).device.type == "mps" else torch.float64


def _without_dropout(call: FusedCall) -> Tensor:
    """Run the module as it is outside of training: dropout acts between layers only, and on no state."""
    module = call.module
    module.training = False
    try:
        x = torch.cat(call.inputs)
        x = x.transpose(0, 1) if module.batch_first else x
        state: Any = call.initial or None
        if state is not None and module.mode != "LSTM":
            state = state[0]
        given: Any = x
        if call.lengths is not None:
            given = nn.utils.rnn.pack_padded_sequence(x, call.lengths, module.batch_first, enforce_sorted=False)
        with torch.no_grad():
            output = call.plain(type(module).forward(module, given, state)[0])[0]
        return nn.functional.pad(output, (0, 0, 0, 0, 0, call.length - len(output)))
    finally:
        module.training = True


def _same(x: Tensor, expected: Tensor, lengths: Tensor | None, directions: int) -> bool:
    near = max(1e-3, 4 * torch.finfo(expected.dtype).eps)
    steps = torch.arange(len(x), device=x.device)[:, None]
    ends = torch.full_like(x[0, :, 0], len(x)).long() if lengths is None else lengths.to(x.device)
    for direction, (ours, theirs) in enumerate(
        zip(x.chunk(directions, -1), expected.chunk(directions, -1), strict=True)
    ):
        seen = (ends - 1 - steps) if direction else steps
        among = (seen >= 0) & (seen < _COMPARED) & (steps < ends)
        if not torch.allclose(ours[among], theirs.to(ours.dtype)[among], rtol=near, atol=near):
            return False
    return True


@final
class _Direction:
    """One layer in one direction, over its whole input at once where that is possible."""

    def __init__(self, call: FusedCall, x: Tensor, layer: int, direction: int) -> None:
        module, suffix = call.module, f"_l{layer}{'_reverse' if direction else ''}"

        def weight(kind: str) -> Tensor | None:
            found = getattr(module, f"{kind}{suffix}", None)
            return None if found is None else found.detach().to(x.dtype)

        self.kind, self.recur, self.project = module.mode, weight("weight_hh"), weight("weight_hr")
        self.bias = weight("bias_hh")
        self.lengths = None if call.lengths is None else call.lengths.to(x.device)
        self.order = _reversed(len(x), x.shape[1], self.lengths, x.device) if direction else None
        x = x if self.order is None else x.gather(0, self.order[..., None].expand_as(x))
        self.read = nn.functional.linear(x, weight("weight_ih"), weight("bias_ih"))  # type: ignore[arg-type]
        index = layer * (2 if module.bidirectional else 1) + direction
        dims = (module.proj_size or module.hidden_size, module.hidden_size)[: 2 if module.mode == "LSTM" else 1]
        self.initial = tuple(s[index].to(x.dtype) for s in call.initial) or tuple(
            x.new_zeros(x.shape[1], d) for d in dims
        )

    def gates(self, t: int, state: State) -> tuple[Tensor, Tensor]:
        """Return what the step adds up from its input, and from its state."""
        assert self.recur is not None
        return self.read[t], nn.functional.linear(state[0], self.recur, self.bias)

    def step(self, t: int, state: State) -> State:
        """Return the state after step `t`; a row whose sequence has ended keeps its own."""
        after, _ = _CELLS[self.kind](*self.gates(t, state), state)
        if self.project is not None:
            after = (nn.functional.linear(after[0], self.project), *after[1:])
        if self.lengths is None:
            return after
        on = (t < self.lengths)[:, None]
        return tuple(torch.where(on, new, old) for new, old in zip(after, state, strict=True))

    def carry(self, t: int, state: State) -> Tensor:
        """Return the factor on each unit's own memory: a gate, or for a plain network the gain of a random matrix."""
        _, factor = _CELLS[self.kind](*self.gates(t, state), state)
        if factor is not None:
            return factor
        assert self.recur is not None
        slope = _SLOPES[self.kind](self.step(t, state)[0])
        # independent weights: the mean square of W'(s c) is that of s times ||W||_F^2 / n
        gain = self.recur.square().sum() / len(self.recur) * slope.square().mean(-1, keepdim=True)
        return gain.sqrt().expand_as(slope)

    def outputs(self) -> Tensor:
        """Return the hidden states in the order of the sequence."""
        state, seen = self.initial, []
        with torch.no_grad():
            for t in range(len(self.read)):
                state = self.step(t, state)
                seen.append(state[0])
        out = torch.stack(seen)
        return out if self.order is None else out.gather(0, self.order[..., None].expand_as(out))

    def recurrence(self, site: str, module: str) -> Recurrence:
        """Return it as a recurrence."""
        gate = {"LSTM": "forget gate", "GRU": "update gate"}.get(self.kind, "")
        return Recurrence(
            site, module, self.kind, self.initial, len(self.read), self.step, self.carry, gate, self.lengths
        )


def _reversed(steps: int, rows: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    t = torch.arange(steps, device=device)[:, None].expand(steps, rows)
    ends = torch.full((rows,), steps, device=device) if lengths is None else lengths
    return torch.where(t < ends, ends - 1 - t, t)


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value) if isinstance(value, Sequence) else ()


def _lstm(read: Tensor, fed: Tensor, state: State) -> tuple[State, Tensor | None]:
    i, f, g, o = (read + fed).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return (o.sigmoid() * cell.tanh(), cell), f.sigmoid()


def _gru(read: Tensor, fed: Tensor, state: State) -> tuple[State, Tensor | None]:
    (xr, xz, xn), (hr, hz, hn) = read.chunk(3, -1), fed.chunk(3, -1)
    z = (xz + hz).sigmoid()
    new = (xn + (xr + hr).sigmoid() * hn).tanh()
    return ((1 - z) * new + z * state[0],), z


def _plain_cell(function: Callable[[Tensor], Tensor]) -> Callable[..., tuple[State, Tensor | None]]:
    return lambda read, fed, state: ((function(read + fed),), None)


_CELLS: dict[str, Callable[[Tensor, Tensor, State], tuple[State, Tensor | None]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _plain_cell(torch.tanh),
    "RNN_RELU": _plain_cell(torch.relu),
}
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "RNN_TANH": lambda h: 1 - h.square(),
    "RNN_RELU": lambda h: (h > 0).to(h.dtype),
}
