"""Golden vectors of recurrent layers: PyTorch's passes, and levada's curves of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from golden_cases import Case, drawn, listed, rms, set_parameters
from torch import Tensor, nn

from levada import theory
from levada.probe import memory_curves

KINDS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
STEPS, ROWS, INPUTS, UNITS = 6, 2, 3, 4
# Steps and the scale of the inputs: horizons that are reached, and such that are not.
MEMORIES = [("rnn", 9, 1.0), ("lstm", 9, 1.0), ("gru", 9, 1.0), ("rnn", 24, 1.5), ("lstm", 24, 0.25)]


def layer_cases() -> list[Case]:
    """A pass from a given state, with a cotangent at each output and at the last state; gradients by state too."""
    cases = []
    for name, kind in KINDS.items():
        module = kind(INPUTS, UNITS)
        values = set_parameters(f"recurrent.{name}", module)
        parts = 2 if name == "lstm" else 1
        x = drawn(f"recurrent.{name}.input", STEPS, ROWS, INPUTS, scale=2.0).requires_grad_()
        initial = [drawn(f"recurrent.{name}.initial.{i}", ROWS, UNITS).requires_grad_() for i in range(parts)]
        outputs, states = _stepped(module, x, initial)
        cotangent = drawn(f"recurrent.{name}.cotangent", STEPS, ROWS, UNITS)
        last = [drawn(f"recurrent.{name}.last.{i}", ROWS, UNITS) for i in range(parts)]
        whole, _ = module(x, _state([one[None] for one in initial]))
        torch.testing.assert_close(outputs, whole, rtol=1e-13, atol=1e-13)
        torch.autograd.backward([outputs, *states[-1]], [cotangent, *last])
        by_state = [[rms(_gradient(state[i])) for state in states] for i in range(parts)]
        cases.append({
            "name": name, "steps": STEPS, "rows": ROWS, "input": listed(x), "initial": [listed(h) for h in initial],
            "parameters": values, "cotangent": listed(cotangent), "last": [listed(h) for h in last],
            "output": listed(outputs), "byInput": listed(_gradient(x)),
            "byInitial": [listed(_gradient(h)) for h in initial], "byState": by_state,
            "byParameter": {key: listed(_gradient(p)) for key, p in module.named_parameters()},
        })  # fmt: skip
    return cases


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def _state(parts: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _stepped(module: nn.RNNBase, x: Tensor, initial: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """Run step by step; each part of a state is a variable of its own, so that its gradient is by it alone."""
    states = [initial]
    for step in x:
        _, after = module(step[None], _state([part[None] for part in states[-1]]))
        parts = [part[0] for part in (after if isinstance(after, tuple) else (after,))]
        for part in parts:
            part.retain_grad()
        states.append(parts)
    return torch.stack([state[0] for state in states[1:]]), states


def memory_cases() -> list[Case]:
    """What `levada.probe.memory_curves` measures, with the cotangents that it draws."""
    cases = []
    for name, steps, scale in MEMORIES:
        module = KINDS[name](INPUTS, UNITS)
        values = set_parameters(f"memory.{name}", module)
        x = drawn(f"memory.{name}.input", steps, ROWS, INPUTS, scale=scale)
        (found,) = memory_curves(module, _caller(module, x), cotangents=ROWS, seed=0)
        cases.append({
            "name": name, "steps": steps, "rows": ROWS, "input": listed(x), "parameters": values,
            "cotangent": [listed(part) for part in _sphere(2 if name == "lstm" else 1)],
            "curve": listed(found.curve), "parts": {key: listed(part) for key, part in found.parts.items()},
            "gatesAlone": listed(found.predicted), "slope": found.slope.value, "horizon": found.horizon.value,
            "reached": found.reached, "gate": None if found.gates is None else found.gates.mean,
        })  # fmt: skip
    return cases


def _caller(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _sphere(parts: int) -> list[Tensor]:
    """Return the cotangents that levada draws: on the sphere whose squared radius is the size of the state."""
    generator = torch.Generator().manual_seed(0)
    drawn_parts = [torch.randn(ROWS, UNITS, generator=generator) for _ in range(parts)]
    squares = sum(part.square().sum(-1, keepdim=True) for part in drawn_parts)
    assert isinstance(squares, Tensor)
    return [part * (parts * UNITS / squares).sqrt() for part in drawn_parts]


def memory_theory() -> Case:
    """Time scales, horizons and the law of carried gradients."""
    biases, carries = [-3.0, 0.0, 1.0, 6.5], [0.0, 0.1, 0.5, 0.999]
    laws = [
        {
            "carry": carry, "gain": gain,
            "kept": [theory.carried_gradient(carry, gain, k) for k in (0, 1, 2, 7, 60, 300)],
        }
        for carry, gain in ((0.0, 3**-0.5), (0.5, 0.25), (0.9, 0.1), (0.5, 0.5), (0.731, 3**-0.5 / 4))
    ]  # fmt: skip
    return {
        "biases": biases, "gateTimeScale": [theory.gate_time_scale(bias) for bias in biases],
        "carries": carries, "timeScale": [theory.time_scale(carry) for carry in carries],
        "memoryHorizon": [theory.memory_horizon(carry) for carry in carries],
        "horizons": [2.0, 50.0], "chronoBias": [theory.chrono_bias(horizon) for horizon in (2.0, 50.0)], "laws": laws,
    }  # fmt: skip
