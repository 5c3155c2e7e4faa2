r"""What a step of training costs, in bytes and operations: closed forms in depth, width, streams and processes.

They are those of `levada.networks.transformer`, attention and feed-forward in turn, each behind a connection, and are
checked against what is counted when such a network runs: parameters and saved activations exactly, operations as
PyTorch's counter counts them, messages where they are handed to the process group.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from levada.theory.size import CONNECTIONS as CONNECTIONS
from levada.theory.size import NetworkSize

__all__ = [
    "NetworkSize",
    "boundary_bytes",
    "forward_operations",
    "gather_bytes",
    "layer_parameters",
    "loss_bytes",
    "operations",
    "parameters",
    "probe_bytes",
    "reduce_bytes",
    "run_values",
    "saved_bytes",
    "stage_bytes",
    "stage_parameters",
    "training_state_bytes",
]


def layer_parameters(size: NetworkSize, layer: int) -> int:
    r"""Count a layer's parameters: $4 d^2 + 6 d$ of attention or $8 d^2 + 7 d$ of a feed-forward, and its connection's.

    Args:
        size: the network.
        layer: index of the layer, even ones being attention.

    Returns:
        A number of parameters. Of the connection: $n^2 + 2n + (n + 4) d + 2$ (`HyperConnection`),
        $(2n + n^2)(n d + 1) + 3$ (`ManifoldHyperConnection`), $d$ but in layer 0 (`AttentionResidual`), layer + 2
        (`DepthWeightedAverage`), none (`Residual`).

    Example:
        >>> layer_parameters(NetworkSize(2, 64, 100, 16), 0)
        16768
    """
    d, n = size.dim, size.streams
    branch = 8 * d * d + 7 * d if layer % 2 else 4 * d * d + 6 * d
    own = {
        "Residual": 0,
        "HyperConnection": n * n + 2 * n + (n + 4) * d + 2,
        "ManifoldHyperConnection": (2 * n + n * n) * (n * d + 1) + 3,
        "AttentionResidual": d if layer else 0,
        "DepthWeightedAverage": layer + 2,
    }
    return branch + own[size.connection]


def parameters(size: NetworkSize, layers: Iterable[int] | None = None) -> int:
    r"""Count the parameters of all layers, of the embedding, of the last norm and of the head: $2 V d + 2 d$.

    Args:
        size: the network.
        layers: only of these layers, without what comes before and after them.

    Example:
        >>> parameters(NetworkSize(depth=2, dim=64, vocabulary=100, tokens=16))
        62912
    """
    if layers is not None:
        return sum(layer_parameters(size, layer) for layer in layers)
    return stage_parameters(size, range(size.depth))


def stage_parameters(size: NetworkSize, layers: range) -> int:
    r"""Count a stage's parameters: its layers', $V d$ of the embedding if first, $V d + 2 d$ of norm and head if last.

    Args:
        size: the network.
        layers: the stage's.

    Example:
        >>> size = NetworkSize(depth=6, dim=64, vocabulary=100, tokens=16)
        >>> sum(stage_parameters(size, part) for part in (range(3), range(3, 6))) == parameters(size)
        True
    """
    d, count = size.dim, parameters(size, layers)
    if layers.start == 0:
        count += size.vocabulary * d
    if layers.stop == size.depth:
        count += size.vocabulary * d + (3 if size.connection == "AttentionResidual" else 2) * d
    return count


def training_state_bytes(count: int, processes: int = 1, *, element: int = 4) -> float:
    r"""Return the bytes of parameters, gradients and AdamW's two moments: $4 \cdot 4 N / P$ where they are in shards.

    Args:
        count: number of parameters, N.
        processes: number of processes that share them, P; 1 for copies.
        element: bytes of each.

    Example:
        >>> training_state_bytes(10**9)
        16000000000.0
    """
    return 4 * element * count / processes


def forward_operations(size: NetworkSize, layer: int) -> int:
    r"""Count the operations of a layer's matrix products for one token, forward; a product of m x k and k x n has 2mkn.

    Args:
        size: the network.
        layer: index of the layer.

    Returns:
        $8 d^2 + 4 T d$ of attention, masked or not, or $16 d^2$ of a feed-forward; and of the connection
        $(4 n^2 + 4 n) d$ (`HyperConnection`) or $(2 n^3 + 6 n^2) d$ (`ManifoldHyperConnection`). What the others do is
        no matrix product: it takes time by the bytes that it reads.

    Example:
        >>> forward_operations(NetworkSize(2, 64, 100, 16), 1) == 16 * 64**2
        True
    """
    d, n = size.dim, size.streams
    branch = 16 * d * d if layer % 2 else 8 * d * d + 4 * size.tokens * d
    own = {"HyperConnection": (4 * n * n + 4 * n) * d, "ManifoldHyperConnection": (2 * n**3 + 6 * n * n) * d}
    return branch + own.get(size.connection, 0)


def operations(size: NetworkSize, sequences: int, *, recompute: bool = False) -> int:
    r"""Count the operations of a training step: three forward passes, or four where layers run again.

    Args:
        size: the network.
        sequences: number of sequences in the batch.
        recompute: whether layers run again in the backward pass. It is then an upper bound: PyTorch stops before what
            nobody saved, such as the last product of each segment.

    Example:
        >>> size = NetworkSize(24, 1024, 50_000, 1024)
        >>> round(operations(size, 1) / (6 * parameters(size) * 1024), 3)     # of a rule of thumb without scores
        0.897
    """
    layers = sum(forward_operations(size, layer) for layer in range(size.depth))
    head = 2 * size.dim * size.vocabulary
    return sequences * size.tokens * ((4 if recompute else 3) * layers + 3 * head)


def saved_bytes(
    size: NetworkSize, sequences: int, *, segments: int = 0, element: int = 4, layers: range | None = None
) -> int:
    r"""Return the bytes that the forward pass leaves for the backward pass, in the stack and the norm after it.

    Args:
        size: the network.
        sequences: number of sequences.
        segments: of checkpointing, of which only the first state is kept; 0 keeps all.
        element: bytes of an element.
        layers: only of these layers, without the norm.

    Returns:
        A number of bytes. For each token a layer keeps $6 d + 2 + h$ elements of attention with h heads, where scores
        are not kept, or $10 d + 2$ of a feed-forward; and for its connection

        - $(n + 1) d + 2 n^2 + 5 n$ (`HyperConnection`),
        - $(n + 1) d + 2 n^2 + 3 n + 1$ (`ManifoldHyperConnection`),
        - $d$, and 2 for each source that it reads (`AttentionResidual`): with all layers as sources this grows as
          $L^2$,
        - $d$ (`DepthWeightedAverage`), or nothing (`Residual`).

        With segments it keeps their first states, whose size is that of what crosses a stage's boundary.

    Example:
        >>> size = NetworkSize(100, 512, 1000, 128)
        >>> round(saved_bytes(size, 1, segments=10) / saved_bytes(size, 1), 3)
        0.015
    """
    run = range(size.depth) if layers is None else layers
    last = _last(size) if layers is None else 0
    if not segments:
        return sequences * size.tokens * element * (sum(_saved(size, layer) for layer in run) + last)
    kept = _starts(size, run, segments)
    if size.connection == "AttentionResidual" and layers is None:
        kept |= size.state(size.depth)
    return sequences * size.tokens * element * (sum(kept.values()) + last)


def _starts(size: NetworkSize, layers: range, segments: int, *, known: int = -1) -> dict[Hashable, int]:
    """Return the tensors in the states before the segments, each once."""
    kept: dict[Hashable, int] = {}
    for segment in range(segments):
        kept |= size.state(layers.start + segment * len(layers) // segments, known=known)
    return kept


def _last(size: NetworkSize) -> int:
    """Return the elements that the norm and the head save for a token, and the reading of all sources before them."""
    return 2 * size.dim + 2 + (2 * size.sources(size.depth) if size.connection == "AttentionResidual" else 0)


def _saved(size: NetworkSize, layer: int) -> int:
    """Return the elements that a layer saves for a token."""
    d, n = size.dim, size.streams
    own = {
        "HyperConnection": (n + 1) * d + 2 * n * n + 5 * n,
        "ManifoldHyperConnection": (n + 1) * d + 2 * n * n + 3 * n + 1,
        "AttentionResidual": d + (2 * size.sources(layer) if layer else 0),
        "DepthWeightedAverage": d,
    }
    return (10 * d + 2 if layer % 2 else 6 * d + 2 + size.heads) + own.get(size.connection, 0)


def stage_bytes(size: NetworkSize, layers: range, sequences: int, *, segments: int = 0, element: int = 4) -> int:
    r"""Return the bytes that a stage holds for a micro-batch until its backward pass, beside what arrived for it.

    Args:
        size: the network.
        layers: the stage's.
        sequences: number of sequences in the micro-batch.
        segments: of checkpointing in the stage.
        element: bytes of an element.

    Returns:
        What its layers save, and what it sent: the output of a stage is kept, and its input is where it arrived. With
        segments, the states before each of them and after the last, as far as they did not arrive. The last stage sends
        nothing, and its norm saves what it reads; what the loss keeps is in `loss_bytes`.

    Example:
        >>> size = NetworkSize(100, 512, 1000, 128)
        >>> stage_bytes(size, range(50, 60), 1) == saved_bytes(size, 1, layers=range(50, 60))
        True
    """
    first, last = layers.start == 0, layers.stop == size.depth
    if first and last:
        return saved_bytes(size, sequences, segments=segments, element=element)
    known = -1 if first else layers.start
    elements = _last(size) if last else 0
    if not segments:
        elements += sum(_saved(size, layer) for layer in layers)
        if first:  # else what is sent takes the place of what arrived
            elements += size.state(layers.stop).get(("stream", layers.stop), 0)
        elif last:
            elements -= size.state(layers.start, known=layers.start - 1).get(("stream", layers.start), 0)
    else:
        held = _starts(size, layers, segments, known=known)
        if not last or size.connection == "AttentionResidual":
            held |= size.state(layers.stop, known=known)
        elements += sum(held.values())
    return sequences * size.tokens * element * elements


def loss_bytes(size: NetworkSize, sequences: int, *, element: int = 4) -> int:
    r"""Return the bytes that a cross-entropy keeps for the backward pass: the log-probabilities, $V$ for each token.

    Args:
        size: the network.
        sequences: number of sequences.
        element: bytes of an element, at least 4: under autocast a loss is computed in float32.

    Example:
        >>> loss_bytes(NetworkSize(2, 64, 50_000, 1024), 1) / 1e6     # MB for a sequence
        204.8
    """
    return sequences * size.tokens * size.vocabulary * max(element, 4)


def boundary_bytes(size: NetworkSize, layers: int, sequences: int, *, element: int = 4) -> int:
    r"""Return the bytes that cross after so many layers for a micro-batch: forward, and as many backward.

    Args:
        size: the network.
        layers: number of layers before the boundary, l.
        sequences: number of sequences in the micro-batch.
        element: bytes of an element.

    Returns:
        For each token $d$ elements (`Residual`), $n d$ (several streams), $(\lceil l / S \rceil + 1) d$
        (`AttentionResidual` with blocks of S layers), $(l + 2) d$ (`DepthWeightedAverage`).

    Example:
        >>> size = NetworkSize(100, 512, 1000, 128, connection="AttentionResidual")
        >>> boundary_bytes(size, 50, 1) // boundary_bytes(NetworkSize(100, 512, 1000, 128), 50, 1)
        51
    """
    return sequences * size.tokens * element * size.crossing(layers)


def gather_bytes(count: int, processes: int, *, element: int = 4, passes: int = 2) -> float:
    r"""Return the bytes that a process receives to gather sharded parameters: $2 (1 - 1/P) N$ elements a step.

    Once forward and once backward, also where layers run again in the backward pass: they find what is gathered.

    Args:
        count: number of parameters, N.
        processes: number of processes, P.
        element: bytes of each in the type in which they are gathered.
        passes: 1 where parameters stay gathered after the forward pass.

    Example:
        >>> gather_bytes(1000, 2)
        4000.0
    """
    return passes * (1 - 1 / processes) * count * element


def reduce_bytes(count: int, processes: int, *, sharded: bool, element: int = 4) -> float:
    r"""Return the bytes that a process sends to sum gradients: $(1 - 1/P) N$ elements to shards, twice that to copies.

    Args:
        count: number of parameters, N.
        processes: number of processes, P.
        sharded: whether each process gets its shard of the sums (reduce-scatter), or all (all-reduce as a ring).
        element: bytes of each.

    Example:
        >>> reduce_bytes(1000, 2, sharded=True), reduce_bytes(1000, 2, sharded=False)
        (2000.0, 4000.0)
    """
    return (1 if sharded else 2) * (1 - 1 / processes) * count * element


def probe_bytes(sites: int, signals: int = 8) -> int:
    """Return the bytes that a process takes to its host, and writes down, for each sampled step: two for each value.

    Args:
        sites: number of layers that are watched in this process.
        signals: number of signals of each.

    Example:
        >>> probe_bytes(10_000)
        160000
    """
    return 2 * sites * signals


def run_values(samples: int, sites: int, signals: int = 8, *, keep: int = 4096, fade: int = 16) -> int:
    r"""Return how many values a run keeps of one process: the last samples in full, and older ones ever more coarsely.

    $$S K \left(\min(m, k) + \tfrac{3}{16} \min(m, f k) + \tfrac{3}{256} m\right)$$

    for m samples, rounded up to whole blocks: minimum, mean and maximum of each 16 samples are kept `fade` times as
    long as the samples, and those of each 256 for ever. A value is two bytes before it is compressed.

    Args:
        samples: number of sampled steps, m.
        sites: number of layers that are watched in this process, S.
        signals: number of signals of each, K.
        keep: how many of the newest samples are kept in full, k.
        fade: f.

    Example:
        >>> round(run_values(1_000_000, sites=10_000) * 2 / 1e9, 2)     # GB, of 160 that were written
        4.5
    """
    blocks = 3 * -(-min(samples, fade * keep) // 16) + 3 * -(-samples // 256)
    return sites * signals * (min(samples, keep) + blocks)
