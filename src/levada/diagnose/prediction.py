r"""What theory predicts for a given model, block by block: the signal's size, and the gain of the gradient.

The walk follows the recorded operations from the measured input and carries the signal's moments. A block's gain is the
factor on the root mean square of a gradient from the block's output back to its input, $\sqrt{\chi}$ for a plain layer,
$\sqrt{1 + \chi}$ for a residual one: paths through the block are summed in squares, which holds when random weights
separate them. Where theory has no answer there is a reason, and the walk starts afresh from the next measured boundary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from levada.diagnose.moments import Moments, Network, Reason
from levada.diagnose.propagation import propagate
from levada.probe.execution import Execution, Operation

__all__ = ["Prediction", "predict"]

# What gives each unit of its output a share of all units of its input.
_MIXING = frozenset({"linear", "conv", "attention", "recurrent"})
# What hands the gradient of a unit on to the same unit, scaled alike for all units.
_TRANSPARENT = frozenset(
    {"reshape", "dropout", "concatenate", "layer_norm", "rms_norm", "group_norm", "mean"}
    | {f"{kind}avg_pool{dim}d" for kind in ("", "adaptive_") for dim in (1, 2, 3)}
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Theory's word on one block.

    Attributes:
        site: the block's boundary.
        gain: factor on the gradient's root mean square from the boundary back to the one before; None if not known.
        signal: root mean square at the boundary; None if not known.
        spread: root mean square of the difference between inputs at the boundary; None if not known.
        reason: why `gain` is None; "" otherwise.
        anchored: whether the block's input was taken from the measurement, because theory did not reach it.
    """

    site: str
    gain: float | None
    signal: float | None
    spread: float | None
    reason: Reason = ""
    anchored: bool = False


def predict(model: nn.Module, execution: Execution, measured: Mapping[int, Moments]) -> tuple[Prediction, ...]:
    """Predict signal and gradient gain of every block.

    Args:
        model: the model, for its weights.
        execution: one recorded forward pass of it.
        measured: number of a value -> its measured moments: the model's inputs, and boundaries to start afresh from.

    Returns:
        One prediction per site, in order.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    network = Network(parameters, dict(model.named_modules()), execution.shape_of, _active(execution))
    states: dict[int, Moments | Reason] = {}
    readers, users = _readers(execution), _users(execution, parameters)
    predictions = []
    previous: str | None = None
    for site in execution.sites:
        operations = execution.operations[site.name]
        start, anchored = execution.input_of.get(site.name), False
        if start is not None and isinstance(states.get(start, ""), str) and start in measured:
            states[start], anchored = measured[start], start in states
        gains = _forward(network, operations, states, measured)
        gain = _backward(operations, gains, start, execution.output_of[site.name])
        shared = _shared(operations, site.name, users, parameters)
        others = [o for o in readers.get(start, ()) if o not in operations] if start is not None else []
        if previous is not None and others:
            gain = f"the output of {previous} is also read by {others[0].module or others[0].name}, in another block"
        end = execution.output_of[site.name]
        if shared is not None:
            # Weights that meet their own products are not independent of the signal, which theory needs.
            gain = states[end] = shared
        state = states.get(end, "it was never computed")
        unmixed = _unmixed(readers, end) if end in network.active else None
        if isinstance(gain, float) and unmixed is not None:
            gain = f"{unmixed} reads its output unit by unit, so that the gradient depends on which of them are on"
        shape = execution.shape_of.get(end, ())
        apart = state.spread * (1 - 1 / shape[0]) if isinstance(state, Moments) and shape else math.nan
        known = isinstance(state, Moments) and math.isfinite(state.second)
        predictions.append(
            Prediction(
                site.name,
                math.sqrt(gain) if isinstance(gain, float) else None,
                math.sqrt(state.second) if known and isinstance(state, Moments) else None,
                math.sqrt(max(0.0, apart)) if known and math.isfinite(apart) else None,
                gain if isinstance(gain, str) else "",
                anchored,
            )
        )
        previous = site.name
    return tuple(predictions)


def _users(execution: Execution, parameters: Mapping[str, nn.Parameter]) -> dict[int, list[str]]:
    """Return the blocks in which each parameter acts, by its identity: tied ones have several names."""
    users: dict[int, list[str]] = {}
    for site in execution.sites:
        names = {name for operation in execution.operations[site.name] for name in operation.parameters}
        for number in {id(parameters[name]) for name in names if name in parameters}:
            users.setdefault(number, []).append(site.name)
    return users


def _shared(
    operations: Sequence[Operation],
    site: str,
    users: Mapping[int, Sequence[str]],
    parameters: Mapping[str, nn.Parameter],
) -> Reason | None:
    """Return why theory is silent if a parameter of these operations acts in another block too."""
    for operation in operations:
        for name in operation.parameters:
            acts = users.get(id(parameters[name]), ()) if name in parameters else ()
            if len(acts) > 1:
                other = next(one for one in acts if one != site)
                return f"{name} acts in {other} too, and theory needs weights that are independent from block to block"
    return None


def _readers(execution: Execution) -> dict[int, list[Operation]]:
    readers: dict[int, list[Operation]] = {}
    for site in execution.sites:
        for operation in execution.operations[site.name]:
            for number in operation.inputs:
                readers.setdefault(number, []).append(operation)
    return readers


def _active(execution: Execution) -> frozenset[int]:
    """Return the values whose units an activation switched since a linear map last mixed them."""
    active: set[int] = set()
    for site in execution.sites:
        for operation in execution.operations[site.name]:
            passed = operation.kind not in (*_MIXING, "embedding") and any(n in active for n in operation.inputs)
            if operation.kind == "activation" or passed:
                active.add(operation.output)
    return frozenset(active)


def _unmixed(readers: Mapping[int, Sequence[Operation]], number: int) -> str | None:
    """Return the name of an operation that reads a value unit by unit, before a linear map mixes its units."""
    pending, seen = [number], {number}
    while pending:
        for operation in readers.get(pending.pop(), ()):
            if operation.kind in _MIXING:
                continue
            if operation.kind not in _TRANSPARENT and operation.name not in _TRANSPARENT:
                return operation.name
            if operation.output not in seen:
                seen.add(operation.output)
                pending.append(operation.output)
    return None


def _forward(
    network: Network,
    operations: Sequence[Operation],
    states: dict[int, Moments | Reason],
    measured: Mapping[int, Moments],
) -> list[tuple[float | Reason, ...]]:
    gains = []
    for operation in operations:
        inputs: list[Moments | Reason] = []
        for number in operation.inputs:
            if number not in states and number in measured:
                states[number] = measured[number]
            inputs.append(states.get(number, "an input that was not recorded"))
        states[operation.output], gain = propagate(network, operation, inputs)
        gains.append(gain)
    return gains


def _backward(
    operations: Sequence[Operation], gains: Sequence[tuple[float | Reason, ...]], start: int | None, end: int
) -> float | Reason:
    """Return the factor on the mean square from `end` back to `start`, over all paths."""
    if start is None:
        return "the block has no input that a gradient could reach"
    arrived: dict[int, float | Reason] = {end: 1.0}
    for operation, factors in zip(reversed(operations), reversed(gains), strict=True):
        here = arrived.get(operation.output)
        if here is None or operation.output == start or operation.output in operation.inputs:
            continue  # the last: a function that handed its input on as it was
        for number, factor in zip(operation.inputs, factors, strict=True):
            before = arrived.get(number, 0.0)
            blocked = next((value for value in (before, here, factor) if isinstance(value, str)), None)
            arrived[number] = blocked if blocked is not None else before + here * factor  # type: ignore[operator]
    return arrived.get(start, "no recorded path leads from the block's output to its input")
