"""Golden vectors of what units look for: Jacobians of their pre-activations by the input, through PyTorch's graph."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases import Case, drawn, listed, set_parameters
from torch import Tensor, nn

import levada
from levada import blocks

INPUTS, DIM, DEPTH = 5, 4, 3

# The engine's options, then levada's connection and the arguments of its branches.
CASES: dict[str, tuple[Case, type[levada.Connection], dict[str, Any]]] = {
    "plain": ({"connection": {"name": "plain"}}, levada.Plain, {}),
    "residual": (
        {"connection": {"name": "residual"}, "norm": "layer", "preActivation": True},
        levada.Residual, {"norm": nn.LayerNorm, "pre_activation": True},
    ),
    "post_norm": ({"connection": {"name": "post_norm"}, "norm": "layer"}, levada.PostNorm, {"norm": nn.LayerNorm}),
    "highway": ({"connection": {"name": "highway"}}, levada.Highway, {}),
    "hyper": ({"connection": {"name": "hyper"}}, levada.HyperConnection, {}),
}  # fmt: skip


def preferred_cases() -> list[Case]:
    """The Jacobian of each layer's linear outputs by one input of the network."""
    cases = []
    for name, (options, connection, arguments) in CASES.items():
        network = nn.Sequential()
        network.add_module("stem", nn.Linear(INPUTS, DIM))
        stack = levada.Stack(
            lambda dim, given=arguments: blocks.FullyConnected(dim, nn.Tanh, **given), connection, dim=DIM, depth=DEPTH
        )
        network.add_module("stack", stack)
        values = set_parameters(f"preferred.{name}", network)
        x = drawn(f"preferred.{name}.input", INPUTS)
        jacobians = _jacobians(network, stack, x)
        own = {key.removeprefix("stack."): value for key, value in values.items()}
        network_options = {"depth": DEPTH, "width": DIM, "inputs": INPUTS, "activation": "tanh", **options}
        cases.append(
            {"name": name, "options": network_options, "parameters": own, "input": listed(x), "jacobians": jacobians}
        )
    return cases


def _jacobians(network: nn.Module, stack: levada.Stack, x: Tensor) -> list[list[float]]:
    found: list[Tensor] = []
    for layer in stack.layers:
        (linear,) = [module for module in layer.branch.modules() if isinstance(module, nn.Linear)]
        linear.register_forward_hook(lambda module, inputs, output: found.append(output))

    def outputs(at: Tensor) -> tuple[Tensor, ...]:
        found.clear()
        network(at[None])
        return tuple(output[0] for output in found)

    return [listed(jacobian) for jacobian in torch.autograd.functional.jacobian(outputs, x)]
