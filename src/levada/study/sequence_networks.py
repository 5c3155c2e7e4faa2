"""The networks that studies train on sequences, one for each seed, and what is kept of their losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from levada.blocks import CausalConvolution
from levada.initialise import he
from levada.networks import TemporalConvolutionalNetwork

__all__ = ["LastStep", "Recurrent", "convolutions", "one_for_each", "thinned"]


def one_for_each(seeds: Sequence[int], build: Callable[[], nn.Module]) -> list[nn.Module]:
    """Build a network for each seed; the global random state is left as it was.

    Args:
        seeds: of the weights.
        build: builds one.
    """
    networks = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(build())
    return networks


def convolutions(
    dilations: Sequence[int],
    dim: int,
    inputs: int,
    outputs: int,
    kernel_size: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    **options: Any,
) -> nn.Module:
    """One causal convolution a layer, so that depth, kernel and field are those of the closed forms; He's weights.

    Args:
        dilations: one for each layer.
        dim: width of the stream.
        inputs: number of features that come in.
        outputs: number of features that go out.
        kernel_size: taps of every convolution.
        activation: builds the activation of each layer.
        options: of `TemporalConvolutionalNetwork`.
    """
    branch = functools.partial(CausalConvolution, activation=activation)
    return he(
        TemporalConvolutionalNetwork(
            dilations, dim, inputs=inputs, outputs=outputs, kernel_size=kernel_size, branch=branch, **options
        )
    )


@final
class Recurrent(nn.Module):
    """A recurrent module of torch as it is initialised, and a linear map.

    Args:
        kind: `nn.LSTM`, `nn.GRU` or `nn.RNN`.
        inputs: number of features that come in.
        dim: width of the state.
        outputs: number of features that go out.

    Shape:
        `(batch, steps, inputs)` -> `(batch, steps, outputs)`.
    """

    def __init__(self, kind: Callable[..., nn.Module], inputs: int, dim: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = kind(inputs, dim, batch_first=True)
        self.head = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run over all steps."""
        return self.head(self.recurrent(x)[0])  # type: ignore[no-any-return]


@final
class LastStep(nn.Module):
    """The answer after the last step alone.

    Args:
        network: answers at every step.

    Shape:
        `(batch, steps, inputs)` -> `(batch, 1, outputs)`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run the network, and keep its last answer."""
        return self.network(x)[:, -1:]  # type: ignore[no-any-return]


def thinned(loss: Tensor) -> dict[str, list[float]]:
    """Return the means of at most 30 windows of a loss by step, and the steps at which they end.

    Example:
        >>> thinned(torch.arange(60.0))["loss"][:3]
        [0.5, 2.5, 4.5]
    """
    window = -(-len(loss) // 30)
    steps = [float(min(start + window, len(loss))) for start in range(0, len(loss), window)]
    return {"steps": steps, "loss": [float(part.double().mean()) for part in torch.split(loss, window)]}
