"""What a linear map or a convolution does to moments and gradients, from its actual weights and connections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from levada.diagnose.moments import LEAST_FAN_IN, Inputs, Moments, Network, Outcome, Reason
from levada.probe.execution import Operation

__all__ = ["linear_map"]

# Above it the weights' common mean adds more than a tenth to what their variance passes on.
LARGEST_MEAN_SHARE = 0.1
# Standard errors that the mean of weights of mean zero does not exceed.
CHANCE = 4.0
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def linear_map(network: Network, operation: Operation, inputs: Inputs) -> Outcome:
    """Return the output's moments and the gradient's gain, for weights of mean zero that do not know the signal.

    Args:
        network: weights, modules and shapes.
        operation: of kind "linear" or "conv".
        inputs: the moments of its input, or why they are not known.
    """
    module = network.modules.get(operation.module)
    if (
        len(inputs) != 1
        or not operation.parameters
        or type(module) not in _PLAIN
        or hasattr(module, "parametrizations")
    ):
        reason = f"{operation.name}: its weights may be computed from the parameters in a way that is not known"
        return reason, (reason,) * len(inputs)
    weight = network.parameters[operation.parameters[0]].detach()
    bias = [network.parameters[name].detach().double() for name in operation.parameters[1:]]
    connections = _connections(network, operation, weight)
    if isinstance(connections, str):
        return connections, (connections,)
    fan_in = connections / math.prod(operation.shape)
    mean = float(weight.mean(dtype=torch.float64))
    square = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2 / weight.numel()
    if not math.isfinite(square):
        return (reason := f"{operation.parameters[0]} is not finite"), (reason,)
    drawn = CHANCE**2 * square / weight.numel()  # how large a mean of zero may look in so many weights
    if mean**2 > max(LARGEST_MEAN_SHARE * square / fan_in, drawn):
        reason = f"{operation.parameters[0]}: the weights' mean {mean:.2g} is not small beside their spread"
        return reason, (reason,)
    gain = square * connections / network.numel(operation.inputs[0])
    state = inputs[0]
    if isinstance(state, str):
        return state, (gain,)
    shift = sum(float(b.square().mean()) for b in bias)
    moments = Moments(
        second=square * fan_in * state.second + shift,
        spread=square * fan_in * state.spread,
        mean=sum(float(b.mean()) for b in bias),
        gaussian=fan_in >= LEAST_FAN_IN,
        sources=frozenset({operation.output}),
    )
    return moments, (gain,)


def _connections(network: Network, operation: Operation, weight: Tensor) -> float | Reason:
    """Return how many weights act between the elements of the input and of the output, in all."""
    if operation.kind == "linear":
        return float(math.prod(operation.shape) * weight.shape[-1])
    module = network.modules.get(operation.module)
    if not isinstance(module, nn.modules.conv._ConvNd):
        return f"{operation.name}: its stride and padding are known only for a convolution module"
    taps = float(weight[0].numel())
    if module.transposed:
        return network.numel(operation.inputs[0]) * taps
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        sides = network.shape_of[operation.inputs[0]][-len(module.kernel_size) :]
        for out, side, dim in zip(operation.shape[-len(sides) :], sides, range(len(sides)), strict=True):
            first = torch.arange(out) * module.stride[dim] - module.padding[dim]
            reach = first[:, None] + torch.arange(module.kernel_size[dim]) * module.dilation[dim]
            taps *= float(((reach >= 0) & (reach < side)).double().mean())
    return math.prod(operation.shape) * taps
