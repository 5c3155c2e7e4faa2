r"""What one operation does to the moments of a wide signal, and to the mean square of a gradient.

The assumptions are those of mean-field theory: weights independent of the signal, with mean zero, and many of them per
sum. An operation, or an input, for which they do not hold gives a reason instead of a number.

Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Yang et al. 2019,
arXiv 1902.08129 (batch normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada.diagnose.linear import linear_map
from levada.diagnose.moments import LEAST_FAN_IN, Gains, Inputs, Moments, Network, Outcome, Reason
from levada.probe.execution import Operation
from levada.theory import Activation, correlated_moment, first_moment, second_moment, slope_second_moment

__all__ = ["propagate"]

# From fewer inputs each unit's variance is estimated so badly that its inverse is far from that of the mean.
LEAST_ROWS = 16
# Below it the exact difference between two inputs would be lost to cancellation; its first order is exact enough.
LEAST_DECORRELATION = 1e-6


def propagate(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    """Return the output's moments, and for each input the factor on the mean square of the gradient, going back.

    Args:
        network: weights, modules and shapes.
        operation: the operation.
        inputs: for each of its inputs the moments, or the reason why they are not known.

    Returns:
        The output's moments or a reason; one factor or reason per input.
    """
    rule = _add_scaled if operation.name == "addcmul" else _RULES.get(operation.kind)
    if rule is None or not inputs:
        reason = f"no theory for {operation.name}" + (f" in {operation.module}" if operation.module else "")
        return reason, (reason,) * len(inputs)
    return rule(network, operation, inputs)


def _activation(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    state = inputs[0]
    if isinstance(state, str):
        return state, (state,)
    function = _ACTIVATIONS.get(operation.name)
    reason = ""
    if function is None:
        reason = f"no theory for the activation {operation.name}"
    elif not math.isfinite(state.second):
        reason = "the signal's size is not finite"
    elif not state.gaussian:
        reason = f"{operation.name}: its input is not a sum of many independent terms, so its moments are not known"
    if function is None or reason:
        return reason, (reason,)
    options = tuple(sorted((k, v) for k, v in operation.options.items() if k != "inplace"))
    second, spread, mean, slope = _through(function, options, state.second, state.spread)
    return Moments(second, spread, mean, False, state.sources), (slope,)


_ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sin": torch.sin,
    "softsign": functional.softsign,
    "hardtanh": functional.hardtanh,
    "relu6": functional.relu6,
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
    "logsigmoid": functional.logsigmoid,
}
_KINKS = {
    "hardtanh": (-1.0, 1.0),
    "relu6": (6.0,),
    "hardsigmoid": (-3.0, 3.0),
    "hardswish": (-3.0, 3.0),
    "softplus": (20.0,),
}


@lru_cache(maxsize=4096)
def _through(
    function: Callable[..., Tensor], options: tuple[tuple[str, Any], ...], second: float, spread: float
) -> tuple[float, float, float, float]:
    name = next(key for key, known in _ACTIVATIONS.items() if known is function)
    plain = not options and name in ("relu", "leaky_relu", "erf", "tanh", "sigmoid", "gelu", "silu", "selu", "elu")
    activation = name if plain else Activation(name, partial(function, **dict(options)), _KINKS.get(name, ()))
    squared, slope = second_moment(activation, second), slope_second_moment(activation, second)
    apart = spread / second if second > 0 else 0.0
    if apart < LEAST_DECORRELATION:
        difference = spread * slope
    else:
        difference = squared - correlated_moment(activation, second, max(-1.0, 1.0 - apart))
    return squared, difference, first_moment(activation, second), slope


def _normalisation(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    state, *rest = inputs
    if isinstance(state, str) or rest:
        reason = state if isinstance(state, str) else f"{operation.name}: more than one input"
        return reason, (reason,) * len(inputs)
    variance = _normalised_variance(network, operation, state)
    if isinstance(variance, str):
        return variance, (variance,)
    weights = [network.parameters[name].detach().double() for name in operation.parameters]
    square, mean = (float(weights[0].square().mean()), float(weights[0].mean())) if weights else (1.0, 1.0)
    shift, bias = (float(weights[1].square().mean()), float(weights[1].mean())) if len(weights) > 1 else (0.0, 0.0)
    centred = operation.name != "rms_norm"
    factor = square / variance
    kept = variance - _eps(network, operation) if centred else state.second
    moments = replace(
        state,
        second=factor * kept + shift,
        spread=factor * state.spread,
        mean=bias if centred else mean * state.mean / math.sqrt(variance) + bias,
    )
    return moments, (factor,)


def _normalised_variance(network: Network, operation: Operation, state: Moments) -> float | Reason:
    eps = _eps(network, operation)
    module = network.modules.get(operation.module)
    if operation.name == "batch_norm":
        if not state.gaussian:
            # Units that are nearly off have a spread of their own, far from the mean one, and get most of the gradient.
            return "batch_norm: no linear map before it makes the spread of all units alike"
        if getattr(module, "training", operation.options.get("training", False)):
            if operation.shape[0] < LEAST_ROWS:
                return f"batch_norm: over {operation.shape[0]} inputs the spread of units that are alike still differs"
            samples = math.prod(operation.shape) / operation.shape[1]
            return state.spread * (1 - 1 / samples) + eps
        return "batch_norm in eval mode: what it divides by was learned, and says nothing about this signal"
    if operation.name == "rms_norm":
        return state.second + eps
    if operation.name == "layer_norm" or (
        operation.name == "group_norm" and _channels_per_group(module) >= LEAST_FAN_IN
    ):
        if math.isnan(state.mean):
            return f"{operation.name}: the mean over the features of its input is not known"
        return state.second - state.mean**2 + eps
    return f"no theory for {operation.name} here"


def _channels_per_group(module: nn.Module | None) -> int:
    return module.num_channels // module.num_groups if isinstance(module, nn.GroupNorm) else 0


def _eps(network: Network, operation: Operation) -> float:
    eps = getattr(network.modules.get(operation.module), "eps", None)
    eps = operation.options.get("eps") if eps is None else eps
    return float(eps) if eps is not None else torch.finfo(torch.float32).eps


def _add(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    known = [state for state in inputs if not isinstance(state, str)]
    sign = -1.0 if operation.name == "sub" else 1.0
    signs = (1.0, *(sign * float(operation.options.get("alpha", 1)) for _ in inputs[1:]))
    gains: Gains = tuple(s**2 for s in signs)
    if any(network.shape_of[number] != operation.shape for number in operation.inputs):
        reason = f"{operation.name}: its inputs are broadcast"
        return reason, (reason,) * len(inputs)
    constants = [network.parameters[name].detach().double() for name in operation.parameters]
    if len(inputs) == 1 and not constants and not _numbers(operation):
        # No gradient reaches the other summand: going back nothing happens, going forward it is unknown.
        return f"{operation.name}: a constant that is not known is added", gains
    if len(known) < len(inputs):
        return next(state for state in inputs if isinstance(state, str)), gains
    sources = [state.sources for state in known]
    if len(frozenset().union(*sources)) < sum(map(len, sources)):
        reason = f"{operation.name}: no linear map separates its inputs, so they are correlated"
        return reason, (reason,) * len(inputs)
    if sum(number in network.active for number in operation.inputs) > 1:
        # Units that are on were given by weights that point along the input: the skip and such a branch are correlated.
        reason = f"{operation.name}: more than one of its inputs ends in an activation, whose mean adds up over blocks"
        gains = (reason,) * len(inputs)
    added = [float(c.square().mean()) for c in constants] + [float(n) ** 2 for n in _numbers(operation)]
    means = [s * m.mean for s, m in zip(signs, known, strict=True)]
    means += [float(c.mean()) for c in constants] + [float(n) for n in _numbers(operation)]
    crossed = sum(means) ** 2 - sum(m**2 for m in means) if len(means) > 1 else 0.0
    moments = Moments(
        second=sum(s**2 * m.second for s, m in zip(signs, known, strict=True)) + sum(added) + crossed,
        spread=sum(s**2 * m.spread for s, m in zip(signs, known, strict=True)),
        mean=sum(means),
        gaussian=all(m.gaussian for m in known) and not _numbers(operation),
        sources=frozenset().union(*sources),
    )
    return moments, gains


def _numbers(operation: Operation) -> list[float]:
    value = operation.options.get("scalar")
    return [float(value)] if isinstance(value, int | float) else []


def _multiply(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    factors = [network.parameters[name].detach().double() for name in operation.parameters]
    numbers = _numbers(operation)
    if operation.name == "neg":
        numbers = [-1.0]
    known = operation.name in ("mul", "neg") and len(factors) + len(numbers) == 1
    if len(inputs) != 1 or not known or network.shape_of[operation.inputs[0]] != operation.shape:
        reason = f"no theory for {operation.name} of signals" + (f" in {operation.module}" if operation.module else "")
        return reason, (reason,) * len(inputs)
    if numbers:
        square, mean = numbers[0] ** 2, numbers[0]
    else:
        square, mean = float(factors[0].square().mean()), float(factors[0].mean())
    state = inputs[0]
    if isinstance(state, str):
        return state, (square,)
    scaled = replace(state, second=square * state.second, spread=square * state.spread, mean=mean * state.mean)
    return scaled, (square,)


def _add_scaled(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    """Follow `state + scale * out` with a learned scale, written as one operation."""
    shapes = [network.shape_of[number] for number in operation.inputs]
    if len(inputs) != 2 or len(operation.parameters) != 1 or shapes != [operation.shape] * 2:
        reason = f"no theory for {operation.name} of signals"
        return reason, (reason,) * len(inputs)
    scale = network.parameters[operation.parameters[0]].detach().double()
    square, mean = float(scale.square().mean()), float(scale.mean())
    branch = inputs[1]
    if not isinstance(branch, str):
        second, spread = square * branch.second, square * branch.spread
        branch = replace(branch, second=second, spread=spread, mean=mean * branch.mean)
    if not isinstance(inputs[0], str) and square == 0:  # the branch, known or not, adds nothing
        return inputs[0], (1.0, 0.0)
    moments, _ = _add(network, replace(operation, parameters=()), (inputs[0], branch))
    return moments, (1.0, square) if not isinstance(moments, str) or isinstance(branch, str) else (moments, moments)


def _dropout(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    state = inputs[0]
    p = float(operation.options.get("p", 0.5)) if operation.options.get("training", True) else 0.0
    if p >= 1:
        reason = f"{operation.name}: it drops everything"
        return reason, (reason,)
    if isinstance(state, str):
        return state, (1 / (1 - p),)
    # Masks differ between inputs: what is added to the mean square is added to the spread.
    second = state.second / (1 - p)
    dropped = replace(
        state, second=second, spread=state.spread + second - state.second, gaussian=state.gaussian and p == 0
    )
    return dropped, (1 / (1 - p),)


def _reshape(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    share = math.prod(operation.shape) / network.numel(operation.inputs[0])
    if len(inputs) != 1 or share > 1:
        reason = f"no theory for {operation.name} that makes its input larger"
        return reason, (reason,) * len(inputs)
    if share < 1 and operation.name not in ("chunk", "split", "tensor_split", "unbind"):
        reason = f"{operation.name} takes a part of its input, so the gradient is not the same everywhere"
        return reason, (reason,)
    return inputs[0], (0.0 if operation.name in ("detach", "data") else share,)


def _pool(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    # Going back, an average over windows that tile its input hands 1/k of the gradient to each of k elements. Going
    # forward, the result depends on how alike neighbours are, which theory does not carry.
    reason = f"no theory for {operation.name}"
    whole, left = divmod(network.numel(operation.inputs[0]), math.prod(operation.shape))
    if len(inputs) != 1 or left or not (operation.name == "mean" or operation.name.startswith("adaptive_avg_pool")):
        return reason, (reason,) * len(inputs)
    return reason, (1 / whole**2,)


def _concatenate(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    gains: Gains = (1.0,) * len(inputs)
    sizes = [network.numel(number) for number in operation.inputs]
    known = [state for state in inputs if not isinstance(state, str)]
    if len(known) < len(inputs) or sum(sizes) != math.prod(operation.shape):
        reasons = [state for state in inputs if isinstance(state, str)]
        missing = f"{operation.name}: a part of it is not known"
        if sum(sizes) != math.prod(operation.shape):
            gains = (missing,) * len(inputs)
        return reasons[0] if reasons else missing, gains
    shares = [size / sum(sizes) for size in sizes]
    moments = Moments(
        second=sum(w * m.second for w, m in zip(shares, known, strict=True)),
        spread=sum(w * m.spread for w, m in zip(shares, known, strict=True)),
        mean=sum(w * m.mean for w, m in zip(shares, known, strict=True)),
        gaussian=all(m.gaussian for m in known),
        sources=frozenset().union(*(m.sources for m in known)),
    )
    return moments, gains


_RULES: Mapping[str, Callable[[Network, Operation, Inputs], Outcome]] = {
    "linear": linear_map,
    "conv": linear_map,
    "activation": _activation,
    "normalisation": _normalisation,
    "add": _add,
    "multiply": _multiply,
    "dropout": _dropout,
    "pool": _pool,
    "reshape": _reshape,
    "concatenate": _concatenate,
}
