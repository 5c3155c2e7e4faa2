"""The networks whose cost is counted in `levada.theory.cost`, and what their connections' states hold."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, final

from levada._errors import UsageError, require_at_least

__all__ = ["CONNECTIONS", "NetworkSize"]

CONNECTIONS: Final = (
    "Residual",
    "HyperConnection",
    "ManifoldHyperConnection",
    "AttentionResidual",
    "DepthWeightedAverage",
)


@final
@dataclass(frozen=True)
class NetworkSize:
    """A transformer of attention and feed-forward layers in turn, as `levada.networks.transformer` builds it.

    Args:
        depth: number of layers, an even number.
        dim: width of the stream.
        vocabulary: number of tokens that there are.
        tokens: length of a sequence.
        heads: number of heads.
        connection: class of the connection, with its usual options.
        streams: number of streams, for connections that have several.
        block_size: number of layers whose outputs are summed to one source, for `AttentionResidual`.

    Raises:
        UsageError: if the connection is none of those that are counted here, or a number is below 1.

    Example:
        >>> from levada.theory.cost import parameters
        >>> size = NetworkSize(depth=24, dim=1024, vocabulary=50_000, tokens=1024)
        >>> f"{parameters(size) / 1e6:.1f} million parameters"
        '253.6 million parameters'
    """

    depth: int
    dim: int
    vocabulary: int
    tokens: int
    heads: int = 8
    connection: str = "Residual"
    streams: int = 4
    block_size: int = 1

    def __post_init__(self) -> None:
        """Refuse what is not counted here."""
        if self.connection not in CONNECTIONS:
            raise UsageError(
                f"NetworkSize: connection must be one of {', '.join(CONNECTIONS)}, got {self.connection!r}."
            )
        for name in ("depth", "dim", "vocabulary", "tokens", "heads", "streams", "block_size"):
            require_at_least("NetworkSize", name, getattr(self, name), 1)

    def sources(self, layer: int) -> int:
        """Return how many sources a layer of `AttentionResidual` reads, `ceil(layer / block_size) + 1`."""
        return -(-layer // self.block_size) + 1

    def state(self, layers: int, *, known: int = -1) -> dict[Hashable, int]:
        """Return the tensors that the connection's state holds after so many layers, and the width of each.

        Args:
            layers: number of layers that have written.
            known: without those that it held already after so many layers; -1 leaves none out.
        """
        first: list[Hashable] = ["input"] if known < 0 else []
        if self.connection == "AttentionResidual":
            blocks = range(max(known, 0) // self.block_size, self.sources(layers) - 1)
            ends = [(block, min((block + 1) * self.block_size, layers)) for block in blocks]
            return dict.fromkeys([*first, *(end for end in ends if end[1] > known)], self.dim)
        if layers <= known:
            return {}
        stream: Hashable = ("stream", layers)
        if self.connection == "DepthWeightedAverage":
            outputs: list[Hashable] = [*first, *range(max(known, 0) + 1, layers + 1)]
            return dict.fromkeys([*outputs, stream] if layers else outputs, self.dim)
        return {stream: self.dim * (1 if self.connection == "Residual" else self.streams)}

    def crossing(self, layers: int) -> int:
        """Return the elements of the state after so many layers, for a token: the widths of `state` together.

        Args:
            layers: number of layers that have written.
        """
        if self.connection == "AttentionResidual":
            return self.sources(layers) * self.dim
        if self.connection == "DepthWeightedAverage":
            return (layers + 2 if layers else 1) * self.dim
        return sum(self.state(layers).values())
